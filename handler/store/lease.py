"""The lease: it lets one applied cycle at a time work in a range of ids. And the expiry of those without one."""

from typing import Any

from handler.deadline import Deadline
from handler.domain.shards import WHOLE, Shard
from handler.errors import LeaseLostError, RowLockedError
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction
from handler.store.shards import OVERLAPS, names_of

FLEET = "fleet"
# A lease lasts this much longer than its cycle, so that a cycle that ends late is still alone.
MARGIN_SECONDS = 1.5
# A session that is frozen while it acquires a lease, keeps all others from it no longer than this.
ACQUIRING_SECONDS = 5.0
# Lambda ends a function after 15 minutes. A lease that ends later was taken by a clock that was wrong.
LONGEST_SECONDS = 960

# A condition for statements that must do nothing once the lease is lost. Its parameters are in `Lease.own`.
LEASE_IS_OURS = """EXISTS (
    SELECT FROM reconciler.lease
    WHERE scope = :scope AND holder = CAST(:cycle_id AS uuid) AND expires_at > clock_timestamp()
)"""
# Whoever acquires a lease locks the fleet's first, so that the next statement of its transaction sees every lease that
# there is. If there is none, an expired one of nobody's takes its place.
_QUEUE = f"""
INSERT INTO reconciler.lease (scope, holder, expires_at)
VALUES ('{FLEET}', '00000000-0000-0000-0000-000000000000', '2001-01-01Z')
ON CONFLICT (scope) DO UPDATE SET scope = EXCLUDED.scope
"""  # noqa: S608 - put together from constants
_ACQUIRE = f"""
INSERT INTO reconciler.lease (scope, holder, shards, shard, expires_at)
SELECT :scope, CAST(:cycle_id AS uuid), CAST(:shards AS integer), CAST(:shard AS integer),
       clock_timestamp() + make_interval(secs => :lasts_s)
WHERE NOT EXISTS (
    SELECT FROM reconciler.lease
    WHERE {OVERLAPS} AND holder <> CAST(:cycle_id AS uuid)
      AND expires_at > clock_timestamp() AND expires_at <= clock_timestamp() + make_interval(secs => :longest_s))
ON CONFLICT (scope) DO UPDATE
SET holder = EXCLUDED.holder, shards = EXCLUDED.shards, shard = EXCLUDED.shard, acquired_at = now(),
    expires_at = EXCLUDED.expires_at
RETURNING 1
"""  # noqa: S608 - put together from constants


class Lease:
    """One cycle's right to act. It only avoids double work: locks and claims keep anything from happening twice.

    `condition` is the SQL for it, with the parameters in `own`.
    """

    condition = LEASE_IS_OURS

    def __init__(self, session: Session, cycle_id: str, shard: Shard = WHOLE) -> None:
        """Prepare the lease of the cycle `cycle_id`, a UUID, on the ids of a shard. `acquire` takes it."""
        self._session = session
        self._shard = shard
        scope = FLEET if shard == WHOLE else f"shard {shard.number} of {shard.of}"
        self.own: dict[str, Any] = {"scope": scope, "cycle_id": cycle_id}

    def acquire(self, deadline: Deadline, *, lasts_s: float) -> bool:
        """Take the lease for `lasts_s` seconds, the longest that the cycle can last; tell whether it was free.

        It is free unless another cycle has one that overlaps. One that somebody has locked is not: it may be about to
        be taken.
        """
        times = {"lasts_s": lasts_s + MARGIN_SECONDS, "longest_s": LONGEST_SECONDS}
        in_time = deadline.within(ACQUIRING_SECONDS)
        try:
            with self._session.transaction(in_time, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
                transaction.run(_QUEUE)
                return bool(transaction.run(_ACQUIRE, **self.own, **names_of(self._shard), **times))
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
