"""The figures at the end of a cycle."""

from handler.deadline import Deadline
from handler.domain.report import FleetGauges, Gauges
from handler.domain.restarts import RECOVERY_SECONDS
from handler.domain.shards import Shard
from handler.errors import StoreError
from handler.store.candidates import RESTARTING, UNOWED_SECONDS
from handler.store.holds import ALL_ON_HOLD, COUNT_ON_HOLD_SINGLY, count_all_on_hold, hold_ended_at, on_hold
from handler.store.session import Session
from handler.store.shards import IS_OUR_SET, OUR_SET_RESTS, names_of

# A hold that has ended makes a doubt younger, so the one that began first need not be the oldest. The oldest is looked
# for among this many, and is at least as old as the first one that no hold of its own has made younger.
OLDEST_DOUBTS = 500

# Reads only our own tables, because the platform's may be locked.
_GAUGES = f"""
WITH owed AS (
    SELECT GREATEST(COALESCE(first_due_at, flipped_at), backoff_until, {hold_ended_at("restarts.workspace_id")})
               AS wanted_since,
           last_answer = 'blocked' AS blocked, backoff_until > now() AS backing_off
    FROM reconciler.restarts WHERE closed_at IS NULL
)
SELECT count(*), count(*) FILTER (WHERE blocked), count(*) FILTER (WHERE backing_off),
       (SELECT count(*) FROM reconciler.restarts
        WHERE watched_since < now() - make_interval(secs => :recovery_s) AND watch_ended_at IS NULL
          AND up_since IS NULL AND NOT {on_hold("restarts.workspace_id")}),
       CAST(COALESCE(extract(epoch FROM now() - min(wanted_since)
            FILTER (WHERE blocked IS NOT TRUE AND isfinite(wanted_since))), 0) AS double precision),
       (SELECT CAST(CASE WHEN {OUR_SET_RESTS} THEN 0
                         ELSE COALESCE(extract(epoch FROM now() - min(GREATEST(pass_completed_at, taken_up_at))), 0) END
                    AS double precision) FROM reconciler.shard_coverage WHERE {IS_OUR_SET}),
       {COUNT_ON_HOLD_SINGLY}, {ALL_ON_HOLD},
       CAST(GREATEST(
           (SELECT extract(epoch FROM now() - min(GREATEST(since, {hold_ended_at("oldest.workspace_id")}))) FROM (
                SELECT workspace_id, since FROM reconciler.doubts
                WHERE isfinite(since) AND NOT {on_hold("doubts.workspace_id")} ORDER BY since LIMIT {OLDEST_DOUBTS}
            ) AS oldest),
           (SELECT extract(epoch FROM now() - GREATEST(since, {hold_ended_at("doubts.workspace_id")}))
            FROM reconciler.doubts
            WHERE isfinite(since) AND COALESCE(since >= (
                SELECT max(ends_at) FROM reconciler.holds WHERE holds.workspace_id = doubts.workspace_id), true)
            ORDER BY since LIMIT 1),
           (SELECT extract(epoch FROM now() - min(since)) FROM reconciler.source_doubts WHERE isfinite(since)),
           0) AS double precision)
FROM owed
"""  # noqa: S608 - put together from constants
_FLEET = f"""
SELECT count(*) FILTER (WHERE status <> 'offline' AND COALESCE(instance_id, '') = ''),
       count(*) FILTER (WHERE status = 'offline' AND instance_id <> ''
           AND COALESCE(updated_at, '-infinity') < now() - make_interval(secs => {UNOWED_SECONDS})
           AND NOT {RESTARTING.format(by_hand="false")})
FROM platform.workspaces
WHERE status IN ('online', 'degraded', 'offline') AND COALESCE(runtime, '') <> 'external'
"""  # noqa: S608 - put together from constants


def read_gauges(session: Session, deadline: Deadline, shard: Shard) -> Gauges:
    """Return what is open in the whole fleet, and how old it is in seconds. Raises StoreError.

    The age of the coverage is that of the set of shards that this one belongs to: of its shard that is behind most.
    A set that rests while another one is used has none.
    """
    with session.transaction(deadline, read_only=True) as transaction:
        (figures,) = transaction.run(_GAUGES, recovery_s=RECOVERY_SECONDS, **names_of(shard))
    pending, blocked, backing_off, unrecovered, oldest_s, coverage_s, singly, everything, doubt_s = figures
    return Gauges(
        restarts_pending=pending,
        restarts_blocked=blocked,
        restarts_backing_off=backing_off,
        restarts_unrecovered=unrecovered,
        oldest_restart_age_s=max(0.0, oldest_s),
        coverage_age_s=max(0.0, coverage_s),
        on_hold=_all_on_hold(session, deadline, singly) if everything else singly,
        oldest_doubt_s=max(0.0, doubt_s),
    )


def _all_on_hold(session: Session, deadline: Deadline, singly: int) -> int:
    """Return how many workspaces a hold on everything covers; those on hold singly if nobody can tell now."""
    try:
        return count_all_on_hold(session, deadline)
    except StoreError:
        return singly


def read_fleet_gauges(session: Session, deadline: Deadline) -> FleetGauges:
    """Return what the platform's rows say that nobody else watches. Raises StoreError."""
    with session.transaction(deadline, read_only=True) as transaction:
        ((unrecorded, offline_unowed),) = transaction.run(_FLEET)
    return FleetGauges(unrecorded, offline_unowed)
