"""Holds: workspaces, or everything, that a person has exempted for a while.

Placing a hold waits for nobody and makes nobody wait: it only inserts. A release locks what is free, or it changes
nothing.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from handler.deadline import Deadline
from handler.domain.model import LONGEST_REASON, Hold
from handler.errors import ConnectionLostError, RequestError, RowLockedError, SecretError, StoreError
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction
from handler.store.sqlstate import QUERY_CANCELED
from handler.store.tables import IS_UP, RIGHTS_TO_HOLD
from handler.store.transaction import ids_or_null

# How long the table `workspaces` is waited for, to learn whether the named ones exist. It is less if connecting took
# long, because some of the answer's time is kept to place the hold.
CHECK_SECONDS = 1.0
_LEAST_CHECK_SECONDS = 0.2
_KEPT_SECONDS = 0.4
# A release that comes upon a lock looks again after this long.
_PAUSE_SECONDS = 0.05
# An answer lists no more holds than this, because nobody reads more, ...
MOST_SHOWN = 100
# ... and no more workspaces in flight: a cycle asks for some hundred restarts.
MOST_IN_FLIGHT = 1000

# A row without a workspace is a hold on everything.
ALL_ON_HOLD = "EXISTS (SELECT FROM reconciler.holds WHERE holds.workspace_id IS NULL AND holds.ends_at > now())"
# How many workspaces are on hold singly.
COUNT_ON_HOLD_SINGLY = "(SELECT count(DISTINCT workspace_id) FROM reconciler.holds WHERE ends_at > now())"
# Ages count from a hold's end, so holds are kept for some time. Parameters: `days`, and `most` rows.
PURGE_HOLDS = """
DELETE FROM reconciler.holds
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.holds
    WHERE ends_at < now() - make_interval(days => :days) ORDER BY ends_at LIMIT :most FOR UPDATE SKIP LOCKED
))
"""

_UNKNOWN = """
SELECT asked.id::text FROM unnest(CAST(:ids AS uuid[])) AS asked (id)
WHERE NOT EXISTS (SELECT FROM platform.workspaces WHERE workspaces.id = asked.id)
ORDER BY asked.id LIMIT 10
"""
_THESE = "workspace_id = ANY (CAST(:ids AS uuid[]))"
_EVERYTHING = "workspace_id IS NULL"
_EVERYBODY = f"(CAST(:ids AS uuid[]) IS NULL OR {_THESE})"
# What somebody else has locked is passed over, here and below.
_END = """
UPDATE reconciler.holds SET ends_at = now()
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.holds WHERE {whose} AND ends_at > now() FOR UPDATE SKIP LOCKED
))
"""
# It takes the place of an earlier hold. One that is locked stays, too: the later end counts.
_PLACE = f"""
WITH earlier AS ({_END})
INSERT INTO reconciler.holds (workspace_id, reason, ends_at)
SELECT workspace_id, :reason, now() + make_interval(secs => :lasts_s)
FROM {{placed}} AS placed (workspace_id)
"""  # noqa: S608 - put together from constants
_PLACE_ON_THESE = _PLACE.format(whose=_THESE, placed="unnest(CAST(:ids AS uuid[]))")
_PLACE_ON_EVERYTHING = _PLACE.format(whose=_EVERYTHING, placed="(VALUES (CAST(NULL AS uuid)))")
_END_BACKOFFS = f"""
UPDATE reconciler.restarts SET streak = 0, backoff_until = NULL
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts
    WHERE {_THESE} AND (streak > 0 OR backoff_until IS NOT NULL)
    FOR UPDATE SKIP LOCKED
))
"""  # noqa: S608 - put together from constants
_END_STOPS = """
DELETE FROM reconciler.restart_stops
WHERE id = ANY (ARRAY(SELECT id FROM reconciler.restart_stops FOR UPDATE SKIP LOCKED))
"""
_RELEASE = (_END.format(whose=_THESE), _END_BACKOFFS)
_RELEASE_EVERYTHING = (_END.format(whose=_EVERYTHING), _END_STOPS)
_STILL_ON_HOLD = f"""
SELECT workspace_id::text FROM reconciler.holds
WHERE {_THESE} AND ends_at > now()
UNION
SELECT workspace_id::text FROM reconciler.restarts
WHERE {_THESE} AND (streak > 0 OR backoff_until IS NOT NULL)
LIMIT 10
"""  # noqa: S608 - put together from constants
_STILL_STOPPED = f"""
SELECT 'the hold on everything' WHERE {ALL_ON_HOLD}
UNION ALL
SELECT 'a stop that the platform asked for (Retry-After)'
WHERE EXISTS (SELECT FROM reconciler.restart_stops WHERE ends_at > now())
"""  # noqa: S608 - put together from constants
# Of several holds of one workspace, the last one to end counts.
_ACTIVE = f"""
SELECT workspace_id::text, left(reason, {LONGEST_REASON}),
       to_char(ends_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
       {COUNT_ON_HOLD_SINGLY}, {ALL_ON_HOLD}
FROM (
    SELECT DISTINCT ON (holds.workspace_id) * FROM reconciler.holds WHERE ends_at > now()
    ORDER BY holds.workspace_id, ends_at DESC
) AS active
ORDER BY ends_at, active.workspace_id LIMIT :most
"""  # noqa: S608 - put together from constants
_CLAIMED = f"""
SELECT workspace_id::text FROM reconciler.restarts
WHERE closed_at IS NULL AND last_answer = 'claimed' AND {_EVERYBODY}
ORDER BY restarts.workspace_id LIMIT :most
"""  # noqa: S608 - put together from constants
# A claim locks its restart, and then reads the holds. So whoever claims a restart that is free now will find the hold.
# The claimed ones need no lock, so that nobody waits to record an answer.
_CLAIMED_OR_LOCKED = f"""
WITH free AS MATERIALIZED (
    SELECT id FROM reconciler.restarts
    WHERE closed_at IS NULL AND last_answer IS DISTINCT FROM 'claimed' AND {_EVERYBODY}
    FOR UPDATE SKIP LOCKED
)
SELECT workspace_id::text FROM reconciler.restarts
WHERE closed_at IS NULL AND {_EVERYBODY} AND id NOT IN (SELECT id FROM free)
ORDER BY restarts.workspace_id LIMIT :most
"""  # noqa: S608 - put together from constants
# A hold on everything also keeps rows from being adopted. They are counted, too: an alarm compares with the candidates.
_COUNT_ALL = f"""
SELECT {COUNT_ON_HOLD_SINGLY} + (
    SELECT count(*) FROM platform.workspaces
    WHERE ({IS_UP} OR workspaces.status = 'offline' AND COALESCE(workspaces.runtime, '') <> 'external' AND EXISTS (
               SELECT FROM reconciler.doubts
               WHERE doubts.workspace_id = workspaces.id AND doubts.instance_id = workspaces.instance_id
                 AND kind IN ('absent', 'dead')))
      AND NOT EXISTS (
        SELECT FROM reconciler.holds WHERE holds.workspace_id = workspaces.id AND holds.ends_at > now())
)
"""  # noqa: S608 - put together from constants


def on_hold(workspace_id: str) -> str:
    """Return the SQL condition that a workspace is on hold now, singly or with everything.

    `workspace_id` is an SQL expression.
    """
    return f"""(
        EXISTS (SELECT FROM reconciler.holds WHERE holds.workspace_id = {workspace_id} AND holds.ends_at > now())
        OR {ALL_ON_HOLD}
    )"""


def hold_ended_at(workspace_id: str) -> str:
    """Return the SQL expression for the time at which the latest hold ends or ended; NULL if there was none."""
    return f"""GREATEST(
        (SELECT max(holds.ends_at) FROM reconciler.holds WHERE holds.workspace_id = {workspace_id}),
        (SELECT max(holds.ends_at) FROM reconciler.holds WHERE holds.workspace_id IS NULL))"""  # noqa: S608 - an expression


def count_all_on_hold(session: Session, deadline: Deadline) -> int:
    """Return how many workspaces are on hold while everything is: all candidates, and those on hold singly.

    Raises StoreError, if the table `workspaces` is locked.
    """
    with session.transaction(deadline, read_only=True, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
        ((count,),) = transaction.run(_COUNT_ALL)
    return int(count)


@dataclass(frozen=True, slots=True)
class ActiveHolds:
    """Holds that have not ended, the first to end first; on how many workspaces; whether one is on everything."""

    holds: list[Hold]
    singly: int = 0
    on_everything: bool = False


class Holds:
    """The holds in the database. Workspaces None means everything. Every method raises StoreError."""

    def __init__(self, session: Session) -> None:
        """Use a session of the database."""
        self._session = session

    def active(self, deadline: Deadline, *, most: int = MOST_SHOWN) -> ActiveHolds:
        """Return the holds that have not ended, but no more than `most` of them."""
        with self._session.transaction(deadline, read_only=True, rights=RIGHTS_TO_HOLD) as transaction:
            return _active(transaction, most)

    def exist(self, deadline: Deadline, workspace_ids: Sequence[str]) -> bool:
        """Tell whether it could be checked in time that the workspaces exist.

        Takes no row's lock. Raises RequestError if one does not exist.
        """
        try:
            with self._session.transaction(deadline, read_only=True, lock_wait_s=CHECK_SECONDS) as transaction:
                wait_s = max(_LEAST_CHECK_SECONDS, min(CHECK_SECONDS, deadline.remaining() - _KEPT_SECONDS))
                transaction.run(f"SET LOCAL statement_timeout = {int(wait_s * 1000)}")
                unknown = transaction.run(_UNKNOWN, ids=list(workspace_ids))
        except (StoreError, SecretError) as error:
            given_up = isinstance(error, StoreError) and error.sqlstate == QUERY_CANCELED
            if given_up or isinstance(error, RowLockedError | ConnectionLostError) or deadline.over():
                return False
            raise
        if unknown:
            raise RequestError(f"event field hold.workspace_ids: no workspace {', '.join(one for (one,) in unknown)}")
        return True

    def place(
        self,
        deadline: Deadline,
        workspace_ids: Sequence[str] | None,
        *,
        reason: str,
        lasts_s: float,
        most: int = MOST_SHOWN,
    ) -> ActiveHolds:
        """Put the workspaces on hold for `lasts_s` seconds from now, in place of what holds they have.

        Returns all active holds, but no more than `most` of them. Once it returns, no new flip or claim begins. Raises
        RowLockedError if somebody has locked the table.
        """
        statement = _PLACE_ON_EVERYTHING if workspace_ids is None else _PLACE_ON_THESE
        with self._writing(deadline, "no hold was placed") as transaction:
            transaction.run(statement, ids=ids_or_null(workspace_ids), reason=reason, lasts_s=lasts_s)
            return _active(transaction, most)

    def release(
        self, deadline: Deadline, workspace_ids: Sequence[str] | None, *, most: int = MOST_SHOWN
    ) -> ActiveHolds:
        """End the workspaces' holds and back-offs, and forget their crash loops; return the holds that are active.

        Of everything: end the hold on everything, and what stop the platform asked for. All or nothing: raises
        RowLockedError if somebody keeps some of it locked.
        """
        give_up = deadline.within(LOCK_WAIT_SECONDS)
        while True:
            try:
                return self._released(deadline, workspace_ids, most)
            except RowLockedError:
                if give_up.remaining() < _PAUSE_SECONDS:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def in_flight(self, deadline: Deadline, workspace_ids: Sequence[str] | None, *, locked: bool) -> list[str]:
        """Return the workspaces whose restart was asked for and not answered yet, but no more than MOST_IN_FLIGHT.

        With `locked`, also those whose restart somebody has locked, as a claim does. That tells, after a hold, which
        restarts it may have come too late for.
        """
        statement = _CLAIMED_OR_LOCKED if locked else _CLAIMED
        with self._session.transaction(
            deadline, read_only=not locked, rights=RIGHTS_TO_HOLD, lock_wait_s=LOCK_WAIT_SECONDS
        ) as transaction:
            rows = transaction.run(statement, ids=ids_or_null(workspace_ids), most=MOST_IN_FLIGHT)
        return [one for (one,) in rows]

    def count_all(self, deadline: Deadline) -> int:
        """Return how many workspaces are on hold while everything is."""
        return count_all_on_hold(self._session, deadline)

    def _released(self, deadline: Deadline, workspace_ids: Sequence[str] | None, most: int) -> ActiveHolds:
        end, still = (_RELEASE_EVERYTHING, _STILL_STOPPED) if workspace_ids is None else (_RELEASE, _STILL_ON_HOLD)
        ids = ids_or_null(workspace_ids)
        with self._writing(deadline, "nothing was released") as transaction:
            for statement in end:
                transaction.run(statement, ids=ids)
            locked = [one for (one,) in transaction.run(still, ids=ids)]
            if locked:
                raise RowLockedError(f"somebody else has locked our rows about {', '.join(locked)}")
            return _active(transaction, most)

    @contextlib.contextmanager
    def _writing(self, deadline: Deadline, if_locked: str) -> Iterator[Transaction]:
        """Open a transaction that waits for a lock half a second at most, and then says what has not happened."""
        try:
            with self._session.transaction(
                deadline, rights=RIGHTS_TO_HOLD, lock_wait_s=LOCK_WAIT_SECONDS
            ) as transaction:
                yield transaction
        except RowLockedError as error:
            raise RowLockedError(f"{if_locked}, send the event again: {error}", sqlstate=error.sqlstate) from error


def _active(transaction: Transaction, most: int) -> ActiveHolds:
    rows = transaction.run(_ACTIVE, most=most)
    if not rows:
        return ActiveHolds([])
    *_, singly, on_everything = rows[0]
    return ActiveHolds([Hold(*row[:3]) for row in rows], singly, on_everything)
