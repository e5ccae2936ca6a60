"""What `explain` reads of one workspace. Each part is a transaction of its own, so that a lock costs only its part."""

from collections.abc import Callable
from typing import Any, TypeVar

from handler.deadline import Deadline
from handler.domain.decide import Memory
from handler.domain.known import ActiveHold, RememberedDoubt, RestartRecord, Row, RowDetails
from handler.domain.model import LONGEST_REASON
from handler.domain.restarts import RECOVERY_SECONDS, Owed, Watched
from handler.errors import RightsMissingError
from handler.store.doubts import memory_of
from handler.store.holds import on_hold
from handler.store.restarts import OWED, STOP_IS_ON, owed_from, restart_and_rest
from handler.store.session import LOCK_WAIT_SECONDS, Session
from handler.store.tables import IS_WATCHED, short
from handler.store.watches import WATCHED

# The newest ones are enough for a person.
MOST_RESTARTS = 20
LONGEST_NAME = 200


def _utc(time: str) -> str:
    """Return the SQL for a time in UTC, RFC 3339; `time` is an SQL expression. An infinite one stays as it is."""
    return f"""CASE WHEN isfinite({time}) THEN to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        ELSE {time}::text END"""


# As the cycle's SELECT does: the server converts nothing, so that no value fails the statement.
_UNCONVERTED = "SET LOCAL client_encoding = 'SQL_ASCII'"
_ID = "CAST(:id AS uuid)"
_ROW = f"""
SELECT {short("status::text")}, {short("runtime")}, {short("instance_id")}, {_utc("last_heartbeat_at")},
       {_utc("updated_at")}
FROM platform.workspaces WHERE workspaces.id = {_ID}
"""  # noqa: S608 - put together from constants
_DETAILS = f"""
SELECT left(name, {LONGEST_NAME}), tier, {_utc("created_at")} FROM platform.workspaces WHERE workspaces.id = {_ID}
"""  # noqa: S608 - put together from constants
_DOUBTS = f"""
SELECT kind, {short("instance_id")}, {_utc("since")}, sightings, {_utc("last_seen_at")}, left(reason, {LONGEST_REASON})
FROM reconciler.doubts WHERE workspace_id = {_ID} ORDER BY kind
"""  # noqa: S608 - put together from constants
_RESTARTS = f"""
SELECT id, {short("instance_id")}, {_utc("flipped_at")}, {_utc("due_at")}, {_utc("first_due_at")}, attempts, streak,
       {short("last_answer")}, {_utc("asked_at")}, outcome, {_utc("closed_at")}, {_utc("watched_since")},
       {_utc("up_since")}, {_utc("backoff_until")}, {_utc("kept_back_at")}, adopted, closed_at IS NULL, {IS_WATCHED},
       COALESCE({IS_WATCHED} AND up_since IS NULL AND watched_since < now() - make_interval(secs => {RECOVERY_SECONDS})
                AND NOT {on_hold("restarts.workspace_id")}, false),
       due_at > now()
FROM reconciler.restarts WHERE workspace_id = {_ID} ORDER BY id DESC LIMIT {MOST_RESTARTS}
"""  # noqa: S608 - put together from constants
_HOLD = f"""
SELECT workspace_id IS NULL, left(reason, {LONGEST_REASON}), {_utc("ends_at")} FROM reconciler.holds
WHERE (workspace_id = {_ID} OR workspace_id IS NULL) AND ends_at > now()
ORDER BY ends_at DESC, workspace_id NULLS LAST LIMIT 1
"""  # noqa: S608 - put together from constants
_STOP = f"SELECT {_utc('max(ends_at)')} FROM reconciler.restart_stops WHERE {STOP_IS_ON}"  # noqa: S608 - constants
# After a change of their number, the shards of both numbers have doubts about the same workspaces for a while.
_SOURCES = f"""
SELECT left(cause, {LONGEST_REASON}), CAST(max(workspaces) AS bigint), {_utc("min(since)")}
FROM (SELECT cause, sum(workspaces) AS workspaces, min(since) AS since
      FROM reconciler.source_doubts GROUP BY cause, shards) AS sets
GROUP BY cause ORDER BY cause LIMIT 10
"""  # noqa: S608 - put together from constants
_OWED = f"{OWED} WHERE owed.workspace_id = {_ID} AND closed_at IS NULL"
_WATCHED = f"{WATCHED} AND owed.workspace_id = {_ID} ORDER BY owed.id DESC LIMIT 1"

Value = TypeVar("Value")


class Explaining:
    """What is known of one workspace. It reads, and waits half a second for a lock. Every method raises StoreError."""

    def __init__(self, session: Session) -> None:
        """Use a session of the database."""
        self._session = session

    def row(self, deadline: Deadline, workspace_id: str) -> Row | None:
        """Return the platform's row, or None if there is none."""
        return self._one(Row, deadline, _ROW, id=workspace_id)

    def details(self, deadline: Deadline, workspace_id: str) -> RowDetails | None:
        """Return what no cycle reads of the row; None without the right to, which infra/grants.sql does not give."""
        try:
            return self._one(RowDetails, deadline, _DETAILS, id=workspace_id)
        except RightsMissingError:
            return None

    def doubts(self, deadline: Deadline, workspace_id: str) -> list[RememberedDoubt]:
        """Return the workspace's doubts, at most one of each kind."""
        return self._all(RememberedDoubt, deadline, _DOUBTS, id=workspace_id)

    def sources(self, deadline: Deadline) -> list[tuple[str, int, str]]:
        """Return the doubts about the source: the cause, how many workspaces it concerns, and since when."""
        return self._all(lambda *row: row, deadline, _SOURCES)

    def restarts(self, deadline: Deadline, workspace_id: str) -> list[RestartRecord]:
        """Return the workspace's latest restarts, open and closed, the newest first."""
        return self._all(RestartRecord, deadline, _RESTARTS, id=workspace_id)

    def hold(self, deadline: Deadline, workspace_id: str) -> ActiveHold | None:
        """Return the hold on the workspace or on everything, of several the last one to end; None if there is none."""
        return self._one(ActiveHold, deadline, _HOLD, id=workspace_id)

    def stopped_until(self, deadline: Deadline) -> str | None:
        """Return until when the platform wants to be asked for nothing, or None."""
        return self._one(lambda until: until, deadline, _STOP)

    def owed(self, deadline: Deadline, workspace_id: str, *, fresh_s: float, grace_s: float) -> Owed | None:
        """Return the workspace's open restart, due or not, or None."""
        return self._one(
            lambda *row: owed_from(row), deadline, _OWED, id=workspace_id, fresh_s=fresh_s, grace_s=grace_s
        )

    def memory(self, deadline: Deadline, workspace_id: str, *, breaker_window_s: float) -> Memory:
        """Return what the next cycle remembers of the workspace, and the whole fleet as its breaker counts it."""
        ids = {"first_id": workspace_id, "last_id": workspace_id}
        with self._session.transaction(deadline, read_only=True, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            return memory_of(transaction, ids, breaker_window_s, as_if_tended=True)

    def watched(self, deadline: Deadline, workspace_id: str) -> Watched | None:
        """Return the workspace's watched restart, or None."""

        def watched(*row: Any) -> Watched:
            restart, rest = restart_and_rest(row)
            return Watched(restart, *rest)

        return self._one(watched, deadline, _WATCHED, id=workspace_id)

    def _all(self, make: Callable[..., Value], deadline: Deadline, sql: str, **parameters: Any) -> list[Value]:
        with self._session.transaction(deadline, read_only=True, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            transaction.run(_UNCONVERTED)
            return [make(*map(_readable, row)) for row in transaction.run(sql, **parameters)]

    def _one(self, make: Callable[..., Value], *arguments: Any, **parameters: Any) -> Value | None:
        return next(iter(self._all(make, *arguments, **parameters)), None)


def _readable(value: Any) -> Any:
    """Return a text without bytes that no encoding explains: the answer has to be JSON in UTF-8."""
    return value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value
