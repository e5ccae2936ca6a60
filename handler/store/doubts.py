"""Doubts: what earlier cycles could neither call alive nor flip, and the fleet that the breaker counts."""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from handler.deadline import Deadline
from handler.domain.decide import Fleet, Memory
from handler.domain.doubts import ABSENCES_ADD_UP_SECONDS, Doubt, DoubtChanges, Known
from handler.domain.model import Verdict
from handler.domain.shards import WHOLE, Shard
from handler.errors import RowLockedError, StoreError
from handler.store.holds import on_hold
from handler.store.lease import Lease
from handler.store.session import Session, Transaction
from handler.store.shards import (
    IS_OUR_SET,
    IS_OUR_SHARD,
    IS_WITHIN,
    OVERLAPS,
    RESTED_SECONDS,
    in_range,
    names_of,
    range_of,
)
from handler.store.sqlstate import concerns_a_row
from handler.store.tables import IS_UP, short

# Rows in one statement. It is small enough to end in time, and large enough for few round trips.
ROWS_AT_ONCE = 500
# A cycle looks at no more of the doubts that nothing rests on, in each direction from a random place, ...
MOST_LOOKED_AT = 500
# ... and forgets or changes no more than this; the others follow in the next ones.
MOST_TENDED = 5000
# This many dead are enough for the breaker, and fit into memory.
MOST_DEAD = 200_000
# A doubt that somebody else is inserting is found by halves, so that each wait has to be short.
INSERT_WAIT_SECONDS = 0.05

SEEN_LATELY = "doubts.last_seen_at > now() - make_interval(hours => 24)"
# An absence without sightings was refuted: the instance was found, though not running.
REMEMBERED_DEAD = f"""(doubts.kind IN ('absent', 'dead') AND doubts.sightings > 0 AND {SEEN_LATELY})"""
# The row may still be somebody's to flip or adopt, with this very instance. A flip ends its doubts, but another cycle,
# which saw the instance dead before, may save one after it.
_RECORDS_IT = f"""({short("workspaces.instance_id")} = doubts.instance_id
    AND status IN ('online', 'degraded', 'offline') AND COALESCE(runtime, '') <> 'external'
    AND NOT (status = 'offline' AND EXISTS (
        SELECT FROM reconciler.restarts
        WHERE restarts.workspace_id = workspaces.id AND restarts.instance_id = doubts.instance_id
          AND closed_at IS NULL)))"""

# The shard's workspaces whose doubts no longer fit their row. This looks at the doubts that the breaker and the
# adoptions rest on, and at some others, around a place that is random in each cycle.
_TO_TEND = f"""
SELECT doubts.workspace_id::text FROM (
    SELECT * FROM reconciler.doubts WHERE {REMEMBERED_DEAD}
    UNION ALL
    (SELECT * FROM reconciler.doubts WHERE workspace_id >= CAST(:place AS uuid)
     ORDER BY workspace_id LIMIT {MOST_LOOKED_AT})
    UNION ALL
    (SELECT * FROM reconciler.doubts WHERE workspace_id < CAST(:place AS uuid)
     ORDER BY workspace_id DESC LIMIT {MOST_LOOKED_AT})
) AS doubts LEFT JOIN LATERAL (
    SELECT status = 'offline' AS is_offline, {_RECORDS_IT} AS records_it
    FROM platform.workspaces WHERE workspaces.id = doubts.workspace_id LIMIT 1
) AS recorded ON true
WHERE (NOT COALESCE(records_it, false) OR (offline_since IS NULL) = COALESCE(is_offline, false))
  AND {in_range("doubts.workspace_id")}
LIMIT {MOST_TENDED}
"""  # noqa: S608 - put together from constants
# What somebody else has locked is passed over, here and below: the next cycle sees it again.
_FORGET_OUTDATED = f"""
DELETE FROM reconciler.doubts
WHERE (workspace_id, kind) IN (
    SELECT workspace_id, kind FROM reconciler.doubts
    WHERE workspace_id = ANY (CAST(:ids AS uuid[])) AND NOT EXISTS (
        SELECT FROM platform.workspaces WHERE workspaces.id = doubts.workspace_id AND {_RECORDS_IT}
    ) FOR UPDATE SKIP LOCKED
)
"""  # noqa: S608 - put together from constants
_NOTE_OFFLINE = """
UPDATE reconciler.doubts SET offline_since = CASE WHEN offline_since IS NULL THEN now() END
WHERE (workspace_id, kind) IN (
    SELECT workspace_id, kind FROM reconciler.doubts
    WHERE workspace_id = ANY (CAST(:ids AS uuid[])) AND (offline_since IS NULL) = EXISTS (
        SELECT FROM platform.workspaces WHERE workspaces.id = doubts.workspace_id AND status = 'offline'
    ) FOR UPDATE SKIP LOCKED
)
"""
# The shard's, without those that no candidate has: rows that are offline, and were not seen dead lately.
_DOUBTS = f"""
SELECT workspace_id::text, kind, instance_id, sightings,
       CAST(extract(epoch FROM now() - since) AS double precision),
       CAST(extract(epoch FROM now() - last_seen_at) AS double precision)
FROM reconciler.doubts
WHERE {{condition}} AND {in_range("workspace_id")}
  AND EXISTS (SELECT FROM platform.workspaces WHERE workspaces.id = doubts.workspace_id)
"""  # noqa: S608 - put together from constants
_DOUBTS_OF_CANDIDATES = f"""
{_DOUBTS.format(condition="offline_since IS NULL")} UNION ALL
{_DOUBTS.format(condition=f"offline_since IS NOT NULL AND {REMEMBERED_DEAD}")}
"""
_UP = f"""
SELECT count(*) FROM platform.workspaces
WHERE {IS_UP} AND NOT {on_hold("workspaces.id")}
"""  # noqa: S608 - put together from constants
_DEAD_WHERE = f"""
SELECT dead.workspace_id::text, acted_on,
       COALESCE({IS_UP}, false)
FROM (
    SELECT workspace_id, bool_or(acted_on) AS acted_on FROM (
        SELECT workspace_id, false AS acted_on FROM reconciler.doubts WHERE {REMEMBERED_DEAD} AND {{condition}}
        UNION ALL
        SELECT workspace_id, true FROM reconciler.restarts WHERE flipped_at > now() - make_interval(secs => :window_s)
        UNION ALL
        SELECT workspace_id, true FROM reconciler.restarts
        WHERE closed_at IS NULL AND kept_back_at IS NOT NULL AND NOT released
    ) AS counted GROUP BY workspace_id
) AS dead LEFT JOIN platform.workspaces ON workspaces.id = dead.workspace_id
WHERE NOT {on_hold("dead.workspace_id")} LIMIT {MOST_DEAD}
"""  # noqa: S608 - put together from constants
_DEAD = _DEAD_WHERE.format(condition="true")
_DEAD_IF_TENDED = _DEAD_WHERE.format(
    condition=f"""EXISTS (
        SELECT FROM platform.workspaces WHERE workspaces.id = doubts.workspace_id AND {_RECORDS_IT})"""
)
_FORGET = """
DELETE FROM reconciler.doubts
WHERE (workspace_id, kind) IN (
    SELECT workspace_id, kind FROM reconciler.doubts
    WHERE workspace_id = ANY (CAST(:ids AS uuid[])) FOR UPDATE SKIP LOCKED
)
"""
_NOT_ABSENT = """
UPDATE reconciler.doubts SET sightings = 0
WHERE (workspace_id, kind) IN (
    SELECT workspace_id, kind FROM reconciler.doubts
    WHERE workspace_id = ANY (CAST(:ids AS uuid[])) AND kind = 'absent' FOR UPDATE SKIP LOCKED
)
"""
# A doubt about the source ends with the next cycle that sees nothing of the kind in all of its range. Those of a set of
# shards that is no longer in use end by themselves; new ones go on from them.
_SAVE_SOURCES = f"""
WITH seen AS (
    SELECT * FROM unnest(CAST(:causes AS text[]), CAST(:counts AS integer[])) AS seen (cause, workspaces)
), ended AS (
    DELETE FROM reconciler.source_doubts
    WHERE (cause, shards, shard) IN (
        SELECT cause, shards, shard FROM reconciler.source_doubts
        WHERE {IS_WITHIN} AND cause <> ALL (CAST(:causes AS text[]))
           OR NOT {IS_OUR_SET} AND last_seen_at < now() - make_interval(secs => {RESTED_SECONDS})
        FOR UPDATE SKIP LOCKED)
), known AS (
    SELECT cause FROM reconciler.source_doubts
    WHERE {IS_OUR_SHARD} AND cause = ANY (CAST(:causes AS text[])) FOR UPDATE SKIP LOCKED
), updated AS (
    UPDATE reconciler.source_doubts SET workspaces = seen.workspaces, last_seen_at = now()
    FROM seen JOIN known USING (cause) WHERE source_doubts.cause = seen.cause AND {IS_OUR_SHARD}
)
INSERT INTO reconciler.source_doubts (cause, shards, shard, workspaces, since)
SELECT cause, CAST(:shards AS integer), CAST(:shard AS integer), workspaces,
       COALESCE((SELECT min(since) FROM reconciler.source_doubts AS earlier
                 WHERE earlier.cause = seen.cause AND {OVERLAPS}), now())
FROM seen WHERE NOT EXISTS (
    SELECT FROM reconciler.source_doubts WHERE source_doubts.cause = seen.cause AND {IS_OUR_SHARD})
ON CONFLICT DO NOTHING
"""  # noqa: S608 - put together from constants
# Redundant, but PostgreSQL has no idea how few rows a JSON document holds, and would read the whole table.
_OF_THESE = "doubts.workspace_id = ANY (CAST(:ids AS uuid[]))"
_SAVE = f"""
WITH seen AS (
    SELECT * FROM jsonb_to_recordset(CAST(:doubts AS jsonb))
                  AS seen (workspace_id uuid, kind text, instance_id text, reason text, counts boolean, by_hand boolean)
), known AS (
    SELECT doubts.workspace_id, doubts.kind,
           doubts.instance_id = seen.instance_id AS same_instance,
           {SEEN_LATELY} AS recent,
           doubts.instance_id = seen.instance_id AND (doubts.kind <> 'absent' OR (doubts.sightings > 0
               AND last_seen_at > now() - make_interval(secs => {ABSENCES_ADD_UP_SECONDS}))) AS adds_up
    FROM reconciler.doubts JOIN seen USING (workspace_id, kind) WHERE {_OF_THESE} FOR UPDATE OF doubts SKIP LOCKED
), updated AS (
    UPDATE reconciler.doubts SET
        instance_id = seen.instance_id, reason = seen.reason, last_seen_at = now(),
        sightings = CASE WHEN adds_up THEN LEAST(doubts.sightings, 999999) ELSE 0 END
                    + CASE WHEN counts OR seen.by_hand AND NOT adds_up THEN 1 ELSE 0 END,
        since = CASE WHEN adds_up THEN doubts.since ELSE now() END,
        by_hand = seen.by_hand OR same_instance AND doubts.by_hand,
        offline_since = CASE WHEN same_instance AND recent THEN doubts.offline_since END
    FROM seen JOIN known USING (workspace_id, kind)
    WHERE doubts.workspace_id = seen.workspace_id AND doubts.kind = seen.kind AND {_OF_THESE}
)
INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, reason, by_hand)
SELECT workspace_id, kind, instance_id, reason, by_hand FROM seen
WHERE NOT EXISTS (SELECT FROM reconciler.doubts
                  WHERE doubts.workspace_id = seen.workspace_id AND doubts.kind = seen.kind AND {_OF_THESE})
ON CONFLICT DO NOTHING
"""  # noqa: S608 - put together from constants
_SET_REASONS = """
UPDATE reconciler.doubts SET reason = seen.reason
FROM jsonb_to_recordset(CAST(:reasons AS jsonb)) AS seen (workspace_id uuid, reason text)
WHERE doubts.workspace_id = seen.workspace_id AND kind IN ('absent', 'dead')
  AND (doubts.workspace_id, doubts.kind) IN (
      SELECT workspace_id, kind FROM reconciler.doubts
      WHERE workspace_id = ANY (CAST(:ids AS uuid[])) FOR UPDATE SKIP LOCKED)
"""

Item = TypeVar("Item")


class Doubts:
    """The doubts, as one cycle uses them. Every method raises StoreError."""

    def __init__(self, session: Session, lease: Lease, shard: Shard = WHOLE) -> None:
        """Read and write those of a shard; write as long as the lease is ours."""
        self._session = session
        self._lease = lease
        self._shard = shard

    def tend(self, deadline: Deadline) -> None:
        """Forget the doubts whose row has moved on, and note which rows the platform has taken offline since."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            ids = [one for (one,) in transaction.run(_TO_TEND, place=_somewhere(self._shard), **range_of(self._shard))]
            if ids:
                transaction.run(_FORGET_OUTDATED, ids=ids)
                transaction.run(_NOTE_OFFLINE, ids=ids)

    def recall(self, deadline: Deadline, *, breaker_window_s: float, as_if_tended: bool = False) -> Memory:
        """Return the doubts of the shard's candidates, and the whole fleet as the breaker counts it.

        What was flipped or adopted in the last `breaker_window_s` seconds counts as acted on. With `as_if_tended`, what
        `tend` would forget does not count: an applied cycle forgets it before it decides.
        """
        with self._session.transaction(deadline, read_only=True) as transaction:
            return memory_of(transaction, range_of(self._shard), breaker_window_s, as_if_tended=as_if_tended)

    def fleet(self, deadline: Deadline, *, breaker_window_s: float) -> Fleet:
        """Return the whole fleet alone, as it is now."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            return _fleet(transaction, breaker_window_s)

    def save(self, deadline: Deadline, changes: DoubtChanges) -> None:
        """Write what has changed, new doubts first, as far as time allows."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            if changes.alive:
                transaction.run(_FORGET, ids=list(changes.alive))
            if changes.found:
                transaction.run(_NOT_ABSENT, ids=list(changes.found))
            if changes.sources is not None:
                causes, counts = list(changes.sources), list(changes.sources.values())
                transaction.run(_SAVE_SOURCES, causes=causes, counts=counts, **names_of(self._shard))
        refused = [self._save(deadline, doubts) for doubts in _chunks((*changes.new, *changes.again), ROWS_AT_ONCE)]
        for error in filter(None, refused):
            raise error

    def set_reasons(self, deadline: Deadline, reasons: Mapping[str, str]) -> None:
        """Note why workspaces that look dead, by id, were not flipped."""
        for some in _chunks(reasons.items(), ROWS_AT_ONCE):
            rows = [{"workspace_id": one, "reason": reason} for one, reason in some]
            with self._session.transaction(deadline) as transaction:
                self._lease.require(transaction)
                transaction.run(_SET_REASONS, reasons=json.dumps(rows), ids=[one for one, _ in some])

    def _save(self, deadline: Deadline, doubts: Sequence[Doubt]) -> StoreError | None:
        """Save doubts, but for one that somebody else is inserting, or that the database refuses; return such an error.

        A refusal is found by halves.
        """
        refused = None
        # As JSON: in an array's elements pg8000 lets PostgreSQL take the text "null" for NULL.
        rows = [
            {
                "workspace_id": one.workspace.id,
                "kind": str(one.kind),
                "instance_id": one.workspace.instance_id,
                "reason": one.reason,
                "counts": one.counts,
                "by_hand": one.by_hand,
            }
            for one in doubts
        ]
        try:
            with self._session.transaction(deadline, lock_wait_s=INSERT_WAIT_SECONDS) as transaction:
                self._lease.require(transaction)
                transaction.run(_SAVE, doubts=json.dumps(rows), ids=[one.workspace.id for one in doubts])
        except RowLockedError:
            pass
        except StoreError as error:
            if not concerns_a_row(error):
                raise
            refused = error
        else:
            return None
        half = len(doubts) // 2
        if not half:
            return refused
        errors = [self._save(deadline, part) for part in (doubts[:half], doubts[half:])]
        return next(filter(None, errors), None)


def memory_of(
    transaction: Transaction, ids: Mapping[str, str], breaker_window_s: float, *, as_if_tended: bool
) -> Memory:
    """Return the doubts of the candidates in a range of ids, and the whole fleet as the breaker counts it."""
    doubts = transaction.run(_DOUBTS_OF_CANDIDATES, **ids)
    fleet = _fleet(transaction, breaker_window_s, _DEAD_IF_TENDED if as_if_tended else _DEAD)
    return Memory({(row[0], Verdict(row[1])): Known(*row[2:]) for row in doubts}, fleet)


def _fleet(transaction: Transaction, breaker_window_s: float, statement: str = _DEAD) -> Fleet:
    ((count,),) = transaction.run(_UP)
    dead = transaction.run(statement, window_s=breaker_window_s)
    remembered, acted_on = ({one: up for one, acted, up in dead if acted is wanted} for wanted in (False, True))
    return Fleet(count, remembered, acted_on)


def _somewhere(shard: Shard) -> str:
    """Return an id from the shard's range."""
    first, last = (uuid.UUID(one).int for one in (shard.first_id, shard.last_id))
    return str(uuid.UUID(int=first + uuid.uuid4().int % (last - first + 1)))


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
