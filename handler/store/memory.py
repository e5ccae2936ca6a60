"""What one cycle remembers for the next: absences, recent flips, and where to go on."""

import json
from collections.abc import Iterable, Sequence

from handler.deadline import Deadline
from handler.domain.coverage import Progress
from handler.domain.decide import Absence, Memory
from handler.domain.model import Workspace
from handler.errors import RowLockedError
from handler.store.lease import Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session

# Sightings further apart than this are not added up.
ABSENCE_KEPT_SECONDS = 3600
CLOSED_RESTARTS_KEPT_DAYS = 30
# A cycle purges no more of either kind, so it takes milliseconds however much there is.
MOST_PURGED = 1000
# An absence that somebody else is inserting is found by halves, so that each wait has to be short.
INSERT_WAIT_SECONDS = 0.05

_ABSENCES = """
SELECT workspace_id::text, instance_id, sightings,
       CAST(extract(epoch FROM now() - first_seen_at) AS double precision)
FROM reconciler.absences WHERE last_seen_at > now() - make_interval(secs => :kept_s)
"""
_RECENTLY_FLIPPED = """
SELECT DISTINCT workspace_id::text FROM reconciler.restarts
WHERE flipped_at > now() - make_interval(secs => :window_s)
"""
# What somebody else has locked is passed over: the next cycle sees it again.
_FORGET_ABSENCES = """
DELETE FROM reconciler.absences
WHERE workspace_id = ANY (ARRAY(
    SELECT workspace_id FROM reconciler.absences
    WHERE workspace_id = ANY (CAST(:forgotten AS uuid[])) OR last_seen_at <= now() - make_interval(secs => :kept_s)
    FOR UPDATE SKIP LOCKED
))
"""
_COUNT_ABSENCES = """
WITH seen AS (
    SELECT workspace_id, instance_id
    FROM jsonb_to_recordset(CAST(:absent AS jsonb)) AS absent (workspace_id uuid, instance_id text)
), counted AS (
    UPDATE reconciler.absences AS known SET
        instance_id = seen.instance_id,
        last_seen_at = now(),
        sightings = CASE WHEN known.instance_id = seen.instance_id THEN known.sightings + 1 ELSE 1 END,
        first_seen_at = CASE WHEN known.instance_id = seen.instance_id THEN known.first_seen_at ELSE now() END
    FROM seen
    WHERE known.workspace_id = seen.workspace_id AND known.workspace_id = ANY (ARRAY(
        SELECT workspace_id FROM reconciler.absences
        WHERE workspace_id IN (SELECT workspace_id FROM seen) FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO reconciler.absences (workspace_id, instance_id, sightings)
SELECT workspace_id, instance_id, 1 FROM seen
WHERE NOT EXISTS (SELECT FROM reconciler.absences AS known WHERE known.workspace_id = seen.workspace_id)
ON CONFLICT DO NOTHING
"""
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
    WHERE closed_at < now() - make_interval(days => :days) AND (outcome <> 'accepted' OR watch_ended_at IS NOT NULL)
    ORDER BY closed_at LIMIT :most FOR UPDATE SKIP LOCKED
))
"""
# The age of a restart that a hold kept back counts from the hold's end.
_PURGE_HOLDS = """
DELETE FROM reconciler.holds
WHERE workspace_id = ANY (ARRAY(
    SELECT workspace_id FROM reconciler.holds
    WHERE ends_at <= now() AND NOT EXISTS (SELECT FROM reconciler.restarts
                                           WHERE restarts.workspace_id = holds.workspace_id AND closed_at IS NULL)
    LIMIT :most FOR UPDATE SKIP LOCKED
))
"""


class CycleMemory:
    """The memory between cycles. Every method raises StoreError."""

    def __init__(self, session: Session, lease: Lease) -> None:
        """Write as long as the lease is ours."""
        self._session = session
        self._lease = lease

    def recall(self, deadline: Deadline, *, breaker_window_s: float) -> Memory:
        """Return the absences, and the workspaces flipped in the last `breaker_window_s` seconds."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            absences = transaction.run(_ABSENCES, kept_s=ABSENCE_KEPT_SECONDS)
            flipped = transaction.run(_RECENTLY_FLIPPED, window_s=breaker_window_s)
        return Memory({row[0]: Absence(*row[1:]) for row in absences}, frozenset(row[0] for row in flipped))

    def remember_absences(self, deadline: Deadline, absent: Iterable[Workspace], forgotten: Iterable[str]) -> None:
        """Count one more sighting of each absence; forget the absences of the `forgotten` workspaces."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_FORGET_ABSENCES, forgotten=list(forgotten), kept_s=ABSENCE_KEPT_SECONDS)
        self._count(deadline, list(absent))

    def _count(self, deadline: Deadline, absent: Sequence[Workspace]) -> None:
        """Count one more sighting of each absence, but for one that somebody else is inserting."""
        # As JSON: in an array's elements pg8000 lets PostgreSQL take the text "null" for NULL.
        counted = json.dumps([{"workspace_id": one.id, "instance_id": one.instance_id} for one in absent])
        try:
            with self._session.transaction(deadline, lock_wait_s=INSERT_WAIT_SECONDS) as transaction:
                self._lease.require(transaction)
                transaction.run(_COUNT_ABSENCES, absent=counted)
        except RowLockedError:
            half = len(absent) // 2
            for part in (absent[:half], absent[half:]) if half else ():
                self._count(deadline, part)

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

    def purge(self, deadline: Deadline) -> None:
        """Delete some of what is of no use any more: restarts that closed long ago, and holds that have ended."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_PURGE_RESTARTS, days=CLOSED_RESTARTS_KEPT_DAYS, most=MOST_PURGED)
            transaction.run(_PURGE_HOLDS, most=MOST_PURGED)
