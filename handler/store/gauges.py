"""The figures at the end of a cycle. Reads only our own tables, because the platform's may be locked."""

from handler.deadline import Deadline
from handler.domain.report import Gauges
from handler.store.session import Session

# Provisioning takes minutes. If a workspace is not back after this time, somebody has to look.
RECOVERY_SECONDS = 900

_GAUGES = """
WITH on_hold AS (SELECT workspace_id FROM reconciler.holds WHERE ends_at > now()),
owed AS (
    SELECT GREATEST(flipped_at, backoff_until, holds.ends_at) AS wanted_since,
           last_answer = 'blocked' AS blocked, backoff_until > now() AS backing_off
    FROM reconciler.restarts LEFT JOIN reconciler.holds USING (workspace_id) WHERE closed_at IS NULL
)
SELECT count(*), count(*) FILTER (WHERE blocked), count(*) FILTER (WHERE backing_off),
       (SELECT count(*) FROM reconciler.restarts AS accepted
        WHERE outcome = 'accepted' AND watch_ended_at IS NULL
          AND closed_at < now() - make_interval(secs => :recovery_s)
          AND workspace_id NOT IN (SELECT workspace_id FROM on_hold)
          AND NOT EXISTS (SELECT FROM reconciler.restarts AS later
                          WHERE later.workspace_id = accepted.workspace_id AND later.id > accepted.id)),
       CAST(COALESCE(extract(epoch FROM now() - min(wanted_since)
            FILTER (WHERE blocked IS NOT TRUE AND isfinite(wanted_since))), 0) AS double precision),
       (SELECT CAST(COALESCE(extract(epoch FROM now() - COALESCE(pass_completed_at, first_cycle_at)), 0)
                    AS double precision) FROM reconciler.coverage),
       (SELECT count(*) FROM on_hold)
FROM owed
"""


def read_gauges(session: Session, deadline: Deadline) -> Gauges:
    """Return what is open, and how old it is in seconds. Raises StoreError."""
    with session.transaction(deadline, read_only=True) as transaction:
        (figures,) = transaction.run(_GAUGES, recovery_s=RECOVERY_SECONDS)
    pending, blocked, backing_off, unrecovered, oldest_s, coverage_s, on_hold = figures
    return Gauges(
        restarts_pending=pending,
        restarts_blocked=blocked,
        restarts_backing_off=backing_off,
        restarts_unrecovered=unrecovered,
        oldest_restart_age_s=max(0.0, oldest_s),
        coverage_age_s=max(0.0, coverage_s),
        on_hold=on_hold,
    )
