"""The lease: it lets one applied cycle work at a time. And the expiry of those that work without one."""

from typing import Any

from handler.deadline import Deadline
from handler.errors import LeaseLostError, RowLockedError
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction

FLEET = "fleet"
# A lease lasts this much longer than its cycle, so that a cycle that ends late is still alone.
MARGIN_SECONDS = 1.5
# Lambda ends a function after 15 minutes. A lease that ends later was taken by a clock that was wrong.
LONGEST_SECONDS = 960

# A condition for statements that must do nothing once the lease is lost. Its parameters are in `Lease.own`.
LEASE_IS_OURS = """EXISTS (
    SELECT FROM reconciler.lease
    WHERE scope = :scope AND holder = CAST(:cycle_id AS uuid) AND expires_at > clock_timestamp()
)"""
_ACQUIRE = """
INSERT INTO reconciler.lease AS current (scope, holder, expires_at)
VALUES (:scope, CAST(:cycle_id AS uuid), clock_timestamp() + make_interval(secs => :lasts_s))
ON CONFLICT (scope) DO UPDATE
SET holder = EXCLUDED.holder, acquired_at = now(), expires_at = EXCLUDED.expires_at
WHERE current.expires_at <= clock_timestamp() OR current.holder = EXCLUDED.holder
   OR current.expires_at > clock_timestamp() + make_interval(secs => :longest_s)
RETURNING 1
"""


class Lease:
    """One cycle's right to act. It only avoids double work: locks and claims keep anything from happening twice.

    `condition` is the SQL for it, with the parameters in `own`.
    """

    condition = LEASE_IS_OURS

    def __init__(self, session: Session, cycle_id: str) -> None:
        """Prepare the lease of the cycle `cycle_id`, a UUID. `acquire` takes it."""
        self._session = session
        self.own: dict[str, Any] = {"scope": FLEET, "cycle_id": cycle_id}

    def acquire(self, deadline: Deadline, *, lasts_s: float) -> bool:
        """Take the lease for `lasts_s` seconds, the longest that the cycle can last; tell whether it was free.

        One that somebody has locked is not: it may be about to be taken.
        """
        lasts_s += MARGIN_SECONDS
        try:
            with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
                return bool(transaction.run(_ACQUIRE, **self.own, lasts_s=lasts_s, longest_s=LONGEST_SECONDS))
        except RowLockedError:
            return False

    def require(self, transaction: Transaction) -> None:
        """Raise LeaseLostError unless the lease is ours: a cycle that was frozen past its lease must write nothing."""
        ((is_ours,),) = transaction.run("SELECT " + self.condition, **self.own)
        if not is_ours:
            raise LeaseLostError("this cycle's lease has expired or is another cycle's")

    def release(self, deadline: Deadline) -> None:
        """Give the lease back, if it is still ours. Raises RowLockedError."""
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            transaction.run(
                "DELETE FROM reconciler.lease WHERE scope = :scope AND holder = CAST(:cycle_id AS uuid)",
                **self.own,
            )


class Expiry(Lease):
    """A state-change cycle's right to act. It excludes nobody, and ends by itself, by the database's clock.

    So a process that was frozen and thaws writes nothing.
    """

    condition = "clock_timestamp() < to_timestamp(:expires_at)"

    def __init__(self, session: Session, cycle_id: str) -> None:
        """Prepare the expiry of the cycle `cycle_id`, a UUID. Before `acquire`, it is over."""
        super().__init__(session, cycle_id)
        self.own = {"cycle_id": cycle_id, "expires_at": 0.0}

    def acquire(self, deadline: Deadline, *, lasts_s: float) -> bool:
        """Begin: the right lasts for `lasts_s` seconds, the longest that the cycle can last. It is always free."""
        with self._session.transaction(deadline) as transaction:
            ((now_s,),) = transaction.run("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)")
        self.own["expires_at"] = now_s + lasts_s + MARGIN_SECONDS
        return True

    def release(self, deadline: Deadline) -> None:
        """Do nothing: nobody waits for it."""
