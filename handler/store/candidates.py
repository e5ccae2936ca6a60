"""The candidates, in fair order, and the fleet that they are part of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from handler.deadline import Deadline
from handler.domain.coverage import BEFORE_ALL, MOST_FIRST, Coverage, Queues
from handler.domain.evidence import DatabaseClock
from handler.domain.model import Workspace
from handler.domain.shards import WHOLE, Shard
from handler.store.doubts import REMEMBERED_DEAD
from handler.store.holds import on_hold
from handler.store.session import Session, Transaction
from handler.store.shards import IS_OUR_SHARD, OVERLAPS, in_range, names_of, range_of
from handler.store.tables import IS_UP, IS_WATCHED, short
from handler.store.transaction import ids_or_null

# Instance ids in one statement.
IDS_AT_ONCE = 500
# A row that is offline for longer than this, and whose restart nobody owes, is somebody's to look at.
UNOWED_SECONDS = 900

# An array may have any size, dimensions and NULLs.
_COVERAGE = f"""
SELECT cursor::text, pass_start::text,
       ARRAY(SELECT one::text FROM unnest(brought_forward) AS one WHERE one IS NOT NULL LIMIT {MOST_FIRST})
FROM reconciler.shard_coverage WHERE {IS_OUR_SHARD} AND cursor IS NOT NULL AND pass_start IS NOT NULL
"""  # noqa: S608 - put together from constants
# A shard that has saved none yet goes on where those were that covered its ids before. The previous release has one
# row for everything.
_INHERITED_COVERAGE = f"""
WITH earlier AS (
    SELECT cursor, brought_forward, used_at FROM reconciler.shard_coverage WHERE cursor IS NOT NULL AND {OVERLAPS}
    UNION ALL
    SELECT cursor, brought_forward, first_cycle_at FROM reconciler.coverage WHERE first_cycle_at IS NOT NULL
)
SELECT (SELECT CASE WHEN {in_range("cursor")} THEN cursor END::text FROM earlier
        ORDER BY used_at DESC NULLS LAST LIMIT 1),
       ARRAY(SELECT DISTINCT one::text FROM earlier, unnest(brought_forward) AS one
             WHERE {in_range("one")} LIMIT {MOST_FIRST})
"""  # noqa: S608 - put together from constants

# The server converts nothing: some encodings have bytes without a counterpart in UTF-8, and one of them would fail the
# whole SELECT.
_UNCONVERTED = "SET LOCAL client_encoding = 'SQL_ASCII'; "
_NOW = "SELECT now()::text, CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
# Somebody is at it: the restart is open, or watched. The watch over another instance's restart is no obstacle to an
# adoption by hand.
RESTARTING = f"""EXISTS (
    SELECT FROM reconciler.restarts
    WHERE restarts.workspace_id = workspaces.id
      AND (closed_at IS NULL
           OR {IS_WATCHED} AND (restarts.instance_id = workspaces.instance_id OR NOT {{by_hand}}))
)"""
# The platform took these offline after a cycle had seen them dead; or an event names them, or has named them before.
_ADOPTED = f"""(workspaces.status = 'offline' AND workspaces.instance_id <> ''
    AND COALESCE(workspaces.runtime, '') <> 'external'
    AND (workspaces.id = ANY (CAST(:by_hand AS uuid[])) AND NOT {RESTARTING.format(by_hand="true")}
         OR EXISTS (
             SELECT FROM reconciler.doubts
             WHERE doubts.workspace_id = workspaces.id AND doubts.instance_id = workspaces.instance_id
               AND {REMEMBERED_DEAD} AND (:adopt OR doubts.by_hand)
               AND NOT {RESTARTING.format(by_hand="doubts.by_hand")})))"""
# In ORDER BY a bare `id` would be the text in front of it, which every collation sorts in its own way.
_CANDIDATES = f"""
SELECT workspaces.id::text, {short("instance_id")}, last_heartbeat_at::text, {on_hold("workspaces.id")},
       status = 'offline'
FROM platform.workspaces
WHERE {{condition}} AND {in_range("workspaces.id")}
ORDER BY workspaces.id > CAST(:cursor AS uuid) DESC, workspaces.id
LIMIT :most
"""  # noqa: S608 - put together from constants
_NAMED = "(CAST(:ids AS uuid[]) IS NULL OR workspaces.id = ANY (CAST(:ids AS uuid[])))"
_UP = _CANDIDATES.format(condition=f"{IS_UP} AND {_NAMED}")
_OFFLINE = _CANDIDATES.format(
    condition=f"""workspaces.id IN (
        SELECT workspace_id FROM reconciler.doubts WHERE {REMEMBERED_DEAD}
        UNION ALL SELECT unnest(CAST(:by_hand AS uuid[]))) AND {_ADOPTED} AND {_NAMED}"""  # noqa: S608 - put together from constants
)
_RECORDING = _CANDIDATES.format(condition=f"{IS_UP} AND workspaces.instance_id = ANY (CAST(:instance_ids AS text[]))")


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates in fair order, and the coverage that decided the order.

    `selected_at` is the time of the SELECT, as the database's own text. `clock` is the database's clock. `all_selected`
    tells that the limit left nobody out.
    """

    workspaces: list[Workspace]
    selected_at: str
    clock: DatabaseClock
    all_selected: bool
    coverage: Coverage
    queues: Queues


class Candidates:
    """The workspaces that a cycle looks at. Every method raises StoreError."""

    def __init__(self, session: Session, shard: Shard = WHOLE) -> None:
        """Select from the workspaces of a shard."""
        self._session = session
        self._shard = shard

    def select(
        self,
        deadline: Deadline,
        *,
        limit: int,
        workspace_ids: Sequence[str] | None,
        adopt: bool = True,
        by_hand: bool = False,
    ) -> Selection:
        """Return at most `limit` candidates, in fair order. With `workspace_ids`, only these are considered.

        With `adopt`, also the rows that the platform took offline after a cycle had seen them dead; those that an event
        has named before in any case. With `by_hand`, also the named rows that are offline though no cycle did.
        """
        ids = ids_or_null(workspace_ids)
        named = ids if by_hand and ids is not None else []
        with self._session.transaction(deadline, read_only=True) as transaction:
            selected_at, clock, coverage = self._began(transaction, deadline)

            def select(those: Sequence[str] | None, most: int) -> dict[str, Workspace]:
                shared = {"ids": those, "cursor": coverage.cursor, "most": most, **range_of(self._shard)}
                rows = transaction.run(_UP, **shared)
                rows += transaction.run(_OFFLINE, **shared, adopt=adopt, by_hand=named)
                found = [Workspace(*row) for row in rows]
                return {one.id: one for one in sorted(found, key=lambda one: coverage.place(one.id))[:most]}

            in_turn = select(ids, limit + 1)
            first = [one for one in coverage.brought_forward if ids is None or one in ids]
            brought_forward = select(first, len(first)) if first else {}
        return selection(in_turn, brought_forward, limit, selected_at, clock, coverage)

    def recording(self, deadline: Deadline, instance_ids: Sequence[str], *, limit: int) -> Selection:
        """Return at most `limit` candidates that are up and record one of these instances. None is adopted."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            selected_at, clock, coverage = self._began(transaction, deadline)
            found: dict[str, Workspace] = {}
            for start in range(0, len(instance_ids), IDS_AT_ONCE):
                some = list(instance_ids[start : start + IDS_AT_ONCE])
                shared = {"cursor": coverage.cursor, "most": limit + 1, **range_of(self._shard)}
                rows = transaction.run(_RECORDING, instance_ids=some, **shared)
                found |= {row[0]: Workspace(*row) for row in rows}
        in_turn = {one: found[one] for one in sorted(found, key=coverage.place)[: limit + 1]}
        return selection(in_turn, {}, limit, selected_at, clock, coverage)

    def _began(self, transaction: Transaction, deadline: Deadline) -> tuple[str, DatabaseClock, Coverage]:
        ((selected_at, shown_s),) = transaction.run(_UNCONVERTED + _NOW)
        return selected_at, DatabaseClock(shown_s, deadline.now()), self._coverage(transaction)

    def _coverage(self, transaction: Transaction) -> Coverage:
        for cursor, pass_start, brought_forward in transaction.run(_COVERAGE, **names_of(self._shard)):
            return Coverage(cursor, pass_start, tuple(brought_forward))
        shared = names_of(self._shard) | range_of(self._shard)
        ((cursor, brought_forward),) = transaction.run(_INHERITED_COVERAGE, **shared)
        return Coverage(cursor or BEFORE_ALL, cursor or BEFORE_ALL, tuple(brought_forward))


def selection(
    in_turn: Mapping[str, Workspace],
    brought_forward: Mapping[str, Workspace],
    limit: int,
    selected_at: str,
    clock: DatabaseClock,
    coverage: Coverage,
) -> Selection:
    """Return `limit` of the candidates: those in turn, one more than that, and those brought forward, in any order."""
    queues = Queues(list(in_turn), [one for one in coverage.brought_forward if one in brought_forward])
    found = {**brought_forward, **in_turn}
    workspaces = [found[one] for one in queues.fair_order()[:limit]]
    return Selection(workspaces, selected_at, clock, len(workspaces) == len(found), coverage, queues)
