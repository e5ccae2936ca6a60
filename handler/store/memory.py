"""What one cycle remembers for the next: absences, recent flips, and where to go on."""

import json
from collections.abc import Iterable

from handler.deadline import Deadline
from handler.domain.coverage import Progress
from handler.domain.decide import Absence, Memory
from handler.domain.model import Workspace
from handler.store.lease import Lease
from handler.store.session import Session

# Sightings further apart than this are not added up.
ABSENCE_KEPT_SECONDS = 3600
CLOSED_RESTARTS_KEPT_DAYS = 30

_ABSENCES = """
SELECT workspace_id::text, instance_id, sightings,
       CAST(extract(epoch FROM now() - first_seen_at) AS double precision)
FROM reconciler.absences WHERE last_seen_at > now() - make_interval(secs => :kept_s)
"""
_RECENTLY_FLIPPED = """
SELECT DISTINCT workspace_id::text FROM reconciler.restarts
WHERE flipped_at > now() - make_interval(secs => :window_s)
"""
_FORGET_ABSENCES = """
DELETE FROM reconciler.absences
WHERE workspace_id = ANY (CAST(:forgotten AS uuid[])) OR last_seen_at <= now() - make_interval(secs => :kept_s)
"""
_COUNT_ABSENCES = """
INSERT INTO reconciler.absences AS known (workspace_id, instance_id, sightings)
SELECT workspace_id, instance_id, 1
FROM jsonb_to_recordset(CAST(:absent AS jsonb)) AS seen (workspace_id uuid, instance_id text)
ON CONFLICT (workspace_id) DO UPDATE SET
    instance_id = EXCLUDED.instance_id,
    last_seen_at = EXCLUDED.last_seen_at,
    sightings = CASE WHEN known.instance_id = EXCLUDED.instance_id
                     THEN known.sightings + 1 ELSE 1 END,
    first_seen_at = CASE WHEN known.instance_id = EXCLUDED.instance_id
                         THEN known.first_seen_at ELSE EXCLUDED.first_seen_at END
"""
_SAVE_COVERAGE = """
UPDATE reconciler.coverage
SET cursor = CAST(:cursor AS uuid), pass_start = CAST(:pass_start AS uuid),
    brought_forward = CAST(:brought_forward AS uuid[]), first_cycle_at = COALESCE(first_cycle_at, now()),
    pass_completed_at = CASE WHEN :completed THEN now() ELSE pass_completed_at END
"""
_PURGE_RESTARTS = "DELETE FROM reconciler.restarts WHERE closed_at < now() - make_interval(days => :days)"


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
        # As JSON: pg8000 does not quote the text "null" in an array, so PostgreSQL would take it for NULL.
        counted = json.dumps([{"workspace_id": one.id, "instance_id": one.instance_id} for one in absent])
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_FORGET_ABSENCES, forgotten=list(forgotten), kept_s=ABSENCE_KEPT_SECONDS)
            transaction.run(_COUNT_ABSENCES, absent=counted)

    def save_coverage(self, deadline: Deadline, progress: Progress) -> None:
        """Note where the next full cycle begins, and purge restarts that closed long ago."""
        coverage = progress.coverage
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(
                _SAVE_COVERAGE,
                cursor=coverage.cursor,
                pass_start=coverage.pass_start,
                brought_forward=list(coverage.brought_forward),
                completed=progress.completed_pass,
            )
            transaction.run(_PURGE_RESTARTS, days=CLOSED_RESTARTS_KEPT_DAYS)
