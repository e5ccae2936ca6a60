"""What one cycle leaves for the next: where it begins. Times that were wrong, and what is of no use any more."""

from handler.deadline import Deadline
from handler.domain.coverage import Progress
from handler.domain.shards import WHOLE, Shard
from handler.store.holds import PURGE_HOLDS
from handler.store.lease import FLEET, Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session
from handler.store.shards import IS_OUR_SET, IS_OUR_SHARD, OUR_SET_RESTS, names_of
from handler.store.times import TAKE_BACK_TIMES

KEPT_DAYS = 30
UNUSED_DAYS = 7
# A cycle purges no more of either kind, so it takes milliseconds however much there is.
MOST_PURGED = 1000

# All rows of a set are there once one of its shards has run, so that one that never runs has an age, too. After a rest
# of the set, while another one was used, the ages begin anew.
_TAKE_UP = f"""
WITH ours AS (
    SELECT count(*) < CAST(:shards AS integer) AS lacking,
           {OUR_SET_RESTS} AS rested
    FROM reconciler.shard_coverage WHERE {IS_OUR_SET}
), created AS (
    INSERT INTO reconciler.shard_coverage (shards, shard, used_at)
    SELECT CAST(:shards AS integer), one, CASE WHEN one = CAST(:shard AS integer) THEN now() END
    FROM ours, generate_series(0, CAST(:shards AS integer) - 1) AS one WHERE lacking
    ON CONFLICT DO NOTHING
)
UPDATE reconciler.shard_coverage
SET used_at = CASE WHEN {IS_OUR_SHARD} THEN now() ELSE used_at END,
    taken_up_at = CASE WHEN rested THEN now() ELSE taken_up_at END
FROM ours WHERE {IS_OUR_SHARD} OR {IS_OUR_SET} AND rested
"""  # noqa: S608 - put together from constants
_SAVE_COVERAGE = """
INSERT INTO reconciler.shard_coverage AS saved
    (shards, shard, cursor, pass_start, brought_forward, used_at, pass_completed_at)
VALUES (CAST(:shards AS integer), CAST(:shard AS integer), CAST(:cursor AS uuid), CAST(:pass_start AS uuid),
        CAST(:brought_forward AS uuid[]), now(), CASE WHEN :completed THEN now() END)
ON CONFLICT (shards, shard) DO UPDATE
SET cursor = EXCLUDED.cursor, pass_start = EXCLUDED.pass_start, brought_forward = EXCLUDED.brought_forward,
    used_at = EXCLUDED.used_at, pass_completed_at = COALESCE(EXCLUDED.pass_completed_at, saved.pass_completed_at)
"""
_PURGE_RESTARTS = """
DELETE FROM reconciler.restarts
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts
    WHERE closed_at < now() - make_interval(days => :days) AND (watched_since IS NULL OR watch_ended_at IS NOT NULL)
    ORDER BY closed_at LIMIT :most FOR UPDATE SKIP LOCKED
))
"""
# Sets of shards that nobody has used for a week, and leases of shards that ended as long ago.
_PURGE_SHARDS = f"""
WITH leases AS (
    DELETE FROM reconciler.lease WHERE scope = ANY (ARRAY(
        SELECT scope FROM reconciler.lease
        WHERE scope <> '{FLEET}' AND expires_at < now() - make_interval(days => {UNUSED_DAYS})
        LIMIT :most FOR UPDATE SKIP LOCKED))
)
DELETE FROM reconciler.shard_coverage WHERE (shards, shard) IN (
    SELECT shards, shard FROM reconciler.shard_coverage AS unused
    WHERE NOT EXISTS (
        SELECT FROM reconciler.shard_coverage AS used WHERE used.shards = unused.shards
          AND GREATEST(used_at, taken_up_at) >= now() - make_interval(days => {UNUSED_DAYS}))
    LIMIT :most FOR UPDATE SKIP LOCKED)
"""  # noqa: S608 - put together from constants


class CycleMemory:
    """The memory between cycles. Every method raises StoreError."""

    def __init__(self, session: Session, lease: Lease, shard: Shard = WHOLE) -> None:
        """Write about a shard as long as the lease is ours."""
        self._session = session
        self._lease = lease
        self._shard = shard

    def take_up(self, deadline: Deadline) -> None:
        """Note that this set of shards is in use, and which shards it has. Raises RowLockedError."""
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            self._lease.require(transaction)
            transaction.run(_TAKE_UP, **names_of(self._shard))

    def save_coverage(self, deadline: Deadline, progress: Progress) -> None:
        """Note where the shard's next cycle begins. Raises RowLockedError."""
        coverage = progress.coverage
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            self._lease.require(transaction)
            transaction.run(
                _SAVE_COVERAGE,
                **names_of(self._shard),
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
        """Delete some of what is of no use any more: old restarts, holds that have ended, sets of shards."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_PURGE_RESTARTS, days=KEPT_DAYS, most=MOST_PURGED)
            transaction.run(PURGE_HOLDS, days=KEPT_DAYS, most=MOST_PURGED)
            transaction.run(_PURGE_SHARDS, most=MOST_PURGED)
