"""Owed restarts, from the flip until the platform has accepted them or the row has moved on."""

from collections.abc import Sequence
from enum import Enum, auto

from handler.deadline import Deadline
from handler.domain.model import Restart
from handler.store.holds import on_hold
from handler.store.lease import Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction

# A stop lasts a day at most. One that ends later than this from now is of a clock that has jumped since.
LATEST_END_OF_STOP_SECONDS = 90_000
_STOP_IS_ON = f"(ends_at > now() AND ends_at <= now() + make_interval(secs => {LATEST_END_OF_STOP_SECONDS}))"
# Neither backing off nor on hold, and the platform may be asked at all.
_FREE = f"""COALESCE(backoff_until <= now(), true) AND NOT {on_hold("owed.workspace_id")}
  AND NOT EXISTS (SELECT FROM reconciler.restart_stops WHERE {_STOP_IS_ON})"""

# What somebody else has locked is passed over, here and below: the next cycle sees it again.
_END_WATCH = """
UPDATE reconciler.restarts SET watch_ended_at = now()
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts AS accepted
    WHERE outcome = 'accepted' AND watch_ended_at IS NULL
      AND NOT EXISTS (SELECT FROM platform.workspaces WHERE workspaces.id = accepted.workspace_id
                      AND status NOT IN ('online', 'removed', 'paused', 'hibernating', 'hibernated'))
    FOR UPDATE SKIP LOCKED
))
"""
_CANCEL_MOVED_ON = """
UPDATE reconciler.restarts SET closed_at = now(), outcome = 'cancelled'
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts AS owed
    WHERE closed_at IS NULL AND due_at <= now()
      AND (cycle_id = CAST(:cycle_id AS uuid) OR NOT :own_only)
      AND NOT EXISTS (SELECT FROM platform.workspaces AS current WHERE current.id = owed.workspace_id
                      AND current.status = 'offline' AND current.instance_id = owed.instance_id)
    FOR UPDATE SKIP LOCKED
))
RETURNING id, workspace_id::text, instance_id, attempts, refusals, cycle_id = CAST(:cycle_id AS uuid)
"""
_DUE = f"""
SELECT id, workspace_id::text, instance_id, attempts, refusals, cycle_id = CAST(:cycle_id AS uuid)
FROM reconciler.restarts AS owed
WHERE closed_at IS NULL AND due_at <= now() AND {_FREE}
  AND (cycle_id = CAST(:cycle_id AS uuid) OR NOT :own_only)
ORDER BY due_at, id LIMIT :most
"""  # noqa: S608 - put together from constants
_LOCK = f"""
SELECT flipped_at::text FROM reconciler.restarts AS owed
WHERE id = :id AND closed_at IS NULL AND due_at <= now() AND {_FREE}
FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - put together from constants
# The comparison is the server's: an instance id that cannot be decoded is another one.
_ROW = """
SELECT status = 'offline' AND COALESCE(instance_id = :instance_id, false),
       COALESCE(last_heartbeat_at > GREATEST(CAST(:flipped_at AS timestamptz),
                clock_timestamp() - make_interval(secs => :fresh_s)), false)
FROM platform.workspaces WHERE id = CAST(:id AS uuid)
"""
# A hold may have been placed between the snapshot of _LOCK and its lock.
_CLAIM = f"""
UPDATE reconciler.restarts AS owed
SET attempts = attempts + 1, claimed_by = CAST(:cycle_id AS uuid), asked_at = now(),
    last_answer = 'claimed', due_at = now() + make_interval(secs => :uncertain_s)
WHERE id = :id AND {_FREE}
RETURNING 1
"""  # noqa: S608 - put together from constants
_CLOSE = "UPDATE reconciler.restarts SET closed_at = now(), outcome = :outcome WHERE id = :id AND closed_at IS NULL"
_LOCK_OPEN = "SELECT id FROM reconciler.restarts WHERE id = :id AND closed_at IS NULL FOR UPDATE SKIP LOCKED"
_PUT_OFF = """
UPDATE reconciler.restarts SET due_at = now() + make_interval(secs => :wait_s)
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts
    WHERE id = ANY (CAST(:ids AS bigint[])) AND closed_at IS NULL AND due_at <= now()
    FOR UPDATE SKIP LOCKED
))
"""
_RECORD_ANSWER = """
UPDATE reconciler.restarts
SET last_answer = :answer,
    refusals = refusals + CASE WHEN CAST(:wait_s AS double precision) IS NULL THEN 0 ELSE 1 END,
    due_at = COALESCE(now() + make_interval(secs => CAST(:wait_s AS double precision)), due_at)
WHERE id = :id AND closed_at IS NULL AND claimed_by = CAST(:cycle_id AS uuid)
"""
_STOP = "INSERT INTO reconciler.restart_stops (ends_at) VALUES (now() + make_interval(secs => :lasts_s))"
_FORGET_STOPS = f"""
DELETE FROM reconciler.restart_stops
WHERE id IN (SELECT id FROM reconciler.restart_stops WHERE NOT {_STOP_IS_ON} FOR UPDATE SKIP LOCKED)
"""  # noqa: S608 - put together from constants


class Claim(Enum):
    """The result of a claim. The platform may be asked only after CLAIMED."""

    CLAIMED = auto()
    CANCELLED = auto()  # the row has moved on: the restart is closed
    TAKEN = auto()  # another cycle has it, or it is on hold, backing off or stopped
    HEARTBEAT = auto()  # a fresh heartbeat came after the flip


class Restarts:
    """The restarts as one cycle sees them. Every method raises StoreError."""

    def __init__(self, session: Session, cycle_id: str, lease: Lease) -> None:
        """Act for the cycle `cycle_id`, a UUID, as long as the lease is ours."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease

    def cancel_moved_on(self, deadline: Deadline, *, own_only: bool) -> list[Restart]:
        """Cancel the due restarts whose row is gone, or is no longer offline with the dead instance; return them.

        With `own_only`, only those of this cycle's flips. Also end the watch over accepted restarts whose workspace is
        online again, or no longer wanted.
        """
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_END_WATCH)
            rows = transaction.run(_CANCEL_MOVED_ON, cycle_id=self._cycle_id, own_only=own_only)
        return [Restart(*row) for row in rows]

    def due(self, deadline: Deadline, *, limit: int, own_only: bool) -> list[Restart]:
        """Return at most `limit` restarts that may be asked for now, the longest due first."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            rows = transaction.run(_DUE, cycle_id=self._cycle_id, own_only=own_only, most=limit)
        return [Restart(*row) for row in rows]

    def claim(self, deadline: Deadline, restart: Restart, *, uncertain_s: float, heartbeat_fresh_s: float) -> Claim:
        """Claim a restart that is still owed, so that nobody else asks for it for `uncertain_s` seconds.

        A heartbeat that came after the flip, less than `heartbeat_fresh_s` seconds ago, puts the restart off.
        """
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            locked = transaction.run(_LOCK, id=restart.id)
            if not locked:
                return Claim.TAKEN
            ((flipped_at,),) = locked
            rows = transaction.run(
                _ROW,
                id=restart.workspace_id,
                instance_id=restart.instance_id,
                flipped_at=flipped_at,
                fresh_s=heartbeat_fresh_s,
            )
            if not any(is_owed for is_owed, _ in rows):
                _close(transaction, restart, "cancelled")
                return Claim.CANCELLED
            if any(fresh_heartbeat for _, fresh_heartbeat in rows):
                return Claim.HEARTBEAT
            claimed = transaction.run(_CLAIM, id=restart.id, cycle_id=self._cycle_id, uncertain_s=uncertain_s)
        return Claim.CLAIMED if claimed else Claim.TAKEN

    def cancel(self, deadline: Deadline, restart: Restart) -> bool:
        """Close a restart that is no longer owed; return False if it is closed or locked."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            is_ours = bool(transaction.run(_LOCK_OPEN, id=restart.id))
            if is_ours:
                _close(transaction, restart, "cancelled")
        return is_ours

    def accepted(self, deadline: Deadline, restart: Restart) -> None:
        """Close a restart that the platform has accepted. It needs no lease: what happened stays true.

        Raises RowLockedError.
        """
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            _close(transaction, restart, "accepted")

    def put_off(self, deadline: Deadline, restarts: Sequence[Restart], *, wait_s: float) -> None:
        """Put off restarts that cannot be asked for yet: they are due again in `wait_s` seconds."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_PUT_OFF, ids=[restart.id for restart in restarts], wait_s=wait_s)

    def record_answer(self, deadline: Deadline, restart: Restart, answer: str, *, wait_s: float | None) -> None:
        """Record the platform's answer. The restart is due again in `wait_s` seconds; with None, as the claim said.

        Raises RowLockedError.
        """
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            transaction.run(_RECORD_ANSWER, id=restart.id, answer=answer, wait_s=wait_s, cycle_id=self._cycle_id)

    def stop(self, deadline: Deadline, *, lasts_s: float) -> None:
        """Have no cycle claim any restart for `lasts_s` seconds from now, a day at most. A longer stop goes on.

        It needs no lease: what the platform said stays true.
        """
        with self._session.transaction(deadline) as transaction:
            transaction.run(_FORGET_STOPS)
            transaction.run(_STOP, lasts_s=lasts_s)


def _close(transaction: Transaction, restart: Restart, outcome: str) -> None:
    transaction.run(_CLOSE, id=restart.id, outcome=outcome)
