"""What one cycle leaves for the next: where it begins. Times that were wrong, and what is of no use any more."""

from handler.deadline import Deadline
from handler.domain.coverage import Progress
from handler.store.holds import PURGE_HOLDS
from handler.store.lease import Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session
from handler.store.times import TAKE_BACK_TIMES

KEPT_DAYS = 30
# A cycle purges no more of either kind, so it takes milliseconds however much there is.
MOST_PURGED = 1000

_SAVE_COVERAGE = """
UPDATE reconciler.coverage
SET cursor = CAST(:cursor AS uuid), pass_start = CAST(:pass_start AS uuid),
    brought_forward = CAST(:brought_forward AS uuid[]), first_cycle_at = COALESCE(first_cycle_at, now()),
    pass_completed_at = CASE WHEN :completed THEN now() ELSE pass_completed_at END
"""
_PURGE_RESTARTS = """
DELETE FROM reconciler.restarts
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts
    WHERE closed_at < now() - make_interval(days => :days) AND (watched_since IS NULL OR watch_ended_at IS NOT NULL)
    ORDER BY closed_at LIMIT :most FOR UPDATE SKIP LOCKED
))
"""


class CycleMemory:
    """The memory between cycles. Every method raises StoreError."""

    def __init__(self, session: Session, lease: Lease) -> None:
        """Write as long as the lease is ours."""
        self._session = session
        self._lease = lease

    def save_coverage(self, deadline: Deadline, progress: Progress) -> None:
        """Note where the next full cycle begins. Raises RowLockedError."""
        coverage = progress.coverage
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            self._lease.require(transaction)
            transaction.run(
                _SAVE_COVERAGE,
                cursor=coverage.cursor,
                pass_start=coverage.pass_start,
                brought_forward=list(coverage.brought_forward),
                completed=progress.completed_pass,
            )

    def take_back_times(self, deadline: Deadline, *, longest_wait_s: float) -> None:
        """Take back our own times that lie further ahead than anything may, because the database's clock was wrong.

        A restart is due in `longest_wait_s` seconds at most.
        """
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(TAKE_BACK_TIMES, longest_wait_s=longest_wait_s)

    def purge(self, deadline: Deadline) -> None:
        """Delete some of what is of no use any more: restarts that closed long ago, and holds that have ended."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_PURGE_RESTARTS, days=KEPT_DAYS, most=MOST_PURGED)
            transaction.run(PURGE_HOLDS, days=KEPT_DAYS, most=MOST_PURGED)
