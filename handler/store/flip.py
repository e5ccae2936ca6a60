"""The flip: the one place that writes to the platform's tables."""

import json
from dataclasses import dataclass

from handler.deadline import Deadline
from handler.domain.backoff import CrashLoop, crash_loop
from handler.domain.decide import objection
from handler.domain.model import CurrentRow, Restart, Sighting, SkipReason, Workspace
from handler.domain.policy import CrashLoopPolicy
from handler.errors import StoreError
from handler.store.holds import on_hold
from handler.store.lease import LEASE_IS_OURS, Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction

SOURCE = "instance-state-reconciler"

_CURRENT_ROW = f"""
SELECT status::text, instance_id, runtime,
       last_heartbeat_at::text IS DISTINCT FROM CAST(:captured AS text)
       OR COALESCE(last_heartbeat_at > CAST(:selected_at AS timestamptz), false)
       OR COALESCE(last_heartbeat_at > clock_timestamp() - make_interval(secs => :fresh_s), false),
       {on_hold("workspaces.id")}, restarts, up_s
FROM platform.workspaces LEFT JOIN LATERAL (
    SELECT streak + CASE WHEN asked_at IS NULL THEN 0 ELSE 1 END AS restarts,
           CAST(extract(epoch FROM now() - CASE
               WHEN outcome = 'accepted' THEN COALESCE(watch_ended_at, now()) ELSE COALESCE(closed_at, asked_at, now())
           END) AS double precision) AS up_s
    FROM reconciler.restarts WHERE workspace_id = workspaces.id ORDER BY id DESC LIMIT 1
) AS last_restart ON true
WHERE workspaces.id = CAST(:id AS uuid)
"""  # noqa: S608 - put together from constants
_LOCKED_ROW = _CURRENT_ROW + " FOR NO KEY UPDATE OF workspaces NOWAIT"

# The row was up again, so an older open restart is cancelled. If the platform was asked to restart this same instance
# before, it may still be working on it: the new restart is due no earlier than the old one was.
# The hold is checked again, because one may have been placed between the re-read's snapshot and its lock. Under the
# lock, none can be placed.
#
# row_security is off for this statement: PostgreSQL has planned it by the time the condition turns row_security on.
# That is for the functions of the platform's triggers. They may use tables whose policies do not concern us, and
# PostgreSQL would refuse them.
_FLIP = f"""
WITH flipped AS (
    UPDATE platform.workspaces SET status = 'offline', updated_at = now()
    WHERE id = CAST(:id AS uuid) AND {LEASE_IS_OURS} AND NOT {on_hold("workspaces.id")}
      AND set_config('row_security', 'on', true) = 'on'
    RETURNING id, status
), event AS (
    INSERT INTO platform.structure_events (event_type, workspace_id, payload)
    SELECT 'WORKSPACE_OFFLINE', id, CAST(:payload AS jsonb) FROM flipped
), superseded AS (
    UPDATE reconciler.restarts SET closed_at = now(), outcome = 'cancelled'
    WHERE workspace_id = (SELECT id FROM flipped) AND closed_at IS NULL
    RETURNING id, workspace_id, instance_id, attempts, refusals
), owed AS (
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, streak, backoff_until, due_at)
    SELECT id, :instance_id, CAST(:cycle_id AS uuid), :streak,
           now() + make_interval(secs => CAST(:backoff_s AS double precision)),
           GREATEST(now(), (SELECT max(due_at) FROM reconciler.restarts
                            WHERE workspace_id = CAST(:id AS uuid) AND instance_id = :instance_id
                              AND asked_at IS NOT NULL))
    FROM flipped, (SELECT count(*) FROM superseded) AS closed_before
)
SELECT flipped.status::text, superseded.id, superseded.workspace_id::text, instance_id, attempts, refusals, false
FROM flipped LEFT JOIN superseded ON true
"""  # noqa: S608 - put together from constants
_HOLD = "SELECT " + on_hold("CAST(:id AS uuid)")


@dataclass(frozen=True, slots=True)
class FlipPolicy:
    """What the flip judges the re-read row by.

    `selected_at` is the time of the SELECT, as the database's own text. A heartbeat younger than `heartbeat_fresh_s`
    seconds prevents the flip.
    """

    selected_at: str
    heartbeat_fresh_s: float
    crash_loop: CrashLoopPolicy


@dataclass(frozen=True, slots=True)
class Flipped:
    """A flip, done or rehearsed: the crash loop that its restart is in, and the older restarts that it cancelled."""

    crash_loop: CrashLoop
    superseded: tuple[Restart, ...] = ()


class Flips:
    """The flip, for one row at a time. Every method raises StoreError."""

    def __init__(self, session: Session, cycle_id: str, lease: Lease) -> None:
        """Flip for the cycle `cycle_id`, a UUID, as long as the lease is ours."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease

    def flip(self, deadline: Deadline, sighting: Sighting, policy: FlipPolicy) -> Flipped | SkipReason:
        """Take the workspace offline, unless something in its row forbids it; then return the reason.

        All in one transaction: lock the row without waiting, read it again, judge it, and only then write the row, the
        event and the owed restart. It waits only briefly for a lock on an older restart: the platform may want the row.
        Raises RowLockedError, LeaseLostError.
        """
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            row = _judged(transaction, _LOCKED_ROW, sighting.workspace, policy)
            if isinstance(row, SkipReason):
                return row
            loop = crash_loop(row, policy.crash_loop)
            written = transaction.run(
                _FLIP,
                **self._lease.own,
                id=sighting.workspace.id,
                instance_id=sighting.workspace.instance_id,
                payload=self._payload(sighting, row),
                streak=loop.streak,
                backoff_s=loop.backoff_s or None,
            )
            if not written:  # the lease was lost, or a hold was placed
                self._lease.require(transaction)
                if transaction.run(_HOLD, id=sighting.workspace.id)[0][0]:
                    return SkipReason.ON_HOLD
            if not written or written[0][0] != "offline":
                raise StoreError("the flip was not written, without an error: does a trigger or a rule change updates?")
            # One row for each cancelled restart; if there was none, one row without a restart.
            return Flipped(loop, tuple(Restart(*older) for _, *older in written if older[0] is not None))

    def would_flip(self, deadline: Deadline, sighting: Sighting, policy: FlipPolicy) -> Flipped | SkipReason:
        """Return what `flip` would return. For dry runs: takes no lock and writes nothing."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            row = _judged(transaction, _CURRENT_ROW, sighting.workspace, policy)
        return row if isinstance(row, SkipReason) else Flipped(crash_loop(row, policy.crash_loop))

    def _payload(self, sighting: Sighting, row: CurrentRow) -> str:
        return json.dumps(
            {
                "instance_id": sighting.workspace.instance_id,
                "instance_state": sighting.state,
                "source": SOURCE,
                "previous_status": row.status,
                "cycle_id": self._cycle_id,
            }
        )


def _judged(transaction: Transaction, query: str, workspace: Workspace, policy: FlipPolicy) -> CurrentRow | SkipReason:
    """Read the row again; return it, or the reason not to flip it."""
    rows = transaction.run(
        query,
        id=workspace.id,
        captured=workspace.last_heartbeat_at,
        selected_at=policy.selected_at,
        fresh_s=policy.heartbeat_fresh_s,
    )
    row = CurrentRow(*rows[0]) if rows else None
    reason = objection(row, workspace)
    return row if row is not None and reason is None else reason or SkipReason.ROW_GONE
