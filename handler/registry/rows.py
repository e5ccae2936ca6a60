"""The flip: the one place that writes to the platform's tables."""

import json
from dataclasses import dataclass

from handler.database import Session, Transaction
from handler.deadline import Deadline
from handler.decide import CrashLoop, Loop, loop_of, objection
from handler.model import CurrentRow, Debt, Sighting, SkipReason, Workspace
from handler.registry.holds import held
from handler.registry.lease import IS_HELD, Lease

SOURCE = "instance-state-reconciler"

_CURRENT_ROW = f"""
SELECT status::text, instance_id, runtime,
       last_heartbeat_at::text IS DISTINCT FROM CAST(:captured AS text)
       OR COALESCE(last_heartbeat_at > CAST(:selected_at AS timestamptz), false)
       OR COALESCE(last_heartbeat_at > clock_timestamp() - make_interval(secs => :fresh_s), false),
       {held("workspaces.id")}, restarts, healthy_s
FROM workspaces LEFT JOIN LATERAL (
    SELECT streak + CASE WHEN asked_at IS NULL THEN 0 ELSE 1 END AS restarts,
           CAST(extract(epoch FROM now() - CASE
               WHEN outcome = 'paid' THEN COALESCE(watched_until, now()) ELSE COALESCE(closed_at, asked_at, now())
           END) AS double precision) AS healthy_s
    FROM reconciler.restarts WHERE workspace_id = workspaces.id ORDER BY id DESC LIMIT 1
) AS last_debt ON true
WHERE workspaces.id = CAST(:id AS uuid)
"""  # noqa: S608 - put together from constants
_LOCKED_ROW = _CURRENT_ROW + " FOR NO KEY UPDATE OF workspaces NOWAIT"

# The row was online again, so an older debt is settled. If the platform was asked about this very instance not
# long ago, it may still be at it: it must not be asked again too soon. A hold may have been placed between the
# re-read's snapshot and its lock, and cannot be under the lock.
_FLIP = f"""
WITH flipped AS (
    UPDATE workspaces SET status = 'offline', updated_at = now()
    WHERE id = CAST(:id AS uuid) AND {IS_HELD} AND NOT {held("workspaces.id")}
    RETURNING id
), told AS (
    INSERT INTO structure_events (event_type, workspace_id, payload)
    SELECT 'WORKSPACE_OFFLINE', id, CAST(:payload AS jsonb) FROM flipped
), superseded AS (
    UPDATE reconciler.restarts SET closed_at = now(), outcome = 'void'
    WHERE workspace_id = (SELECT id FROM flipped) AND closed_at IS NULL
    RETURNING id, workspace_id, instance_id, attempts, refusals
), owed AS (
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, streak, paused_until, next_attempt_at)
    SELECT id, :instance_id, CAST(:cycle_id AS uuid), :streak,
           now() + make_interval(secs => CAST(:pause_s AS double precision)),
           GREATEST(now(), (SELECT max(next_attempt_at) FROM reconciler.restarts
                            WHERE workspace_id = CAST(:id AS uuid) AND instance_id = :instance_id
                              AND asked_at IS NOT NULL))
    FROM flipped, (SELECT count(*) FROM superseded) AS closed_before
)
SELECT superseded.id, superseded.workspace_id::text, instance_id, attempts, refusals, false
FROM flipped LEFT JOIN superseded ON true
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Terms:
    """What the re-read row is judged by: the database's text for when it was selected; ages in seconds."""

    selected_at: str
    heartbeat_fresh_s: float
    crash_loop: CrashLoop


@dataclass(frozen=True, slots=True)
class Flipped:
    """What came of a flip: the restart that is owed now, and the older debts that it settled."""

    loop: Loop
    superseded: tuple[Debt, ...] = ()


class Rows:
    """The platform's rows, one at a time. Every method raises RegistryError."""

    def __init__(self, session: Session, cycle_id: str, lease: Lease) -> None:
        """Flip in the name of `cycle_id`, a UUID, as long as it holds `lease`."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease

    def flip(self, deadline: Deadline, sighting: Sighting, terms: Terms) -> Flipped | SkipReason:
        """Set the workspace offline if its row still says what was probed; return why not, if not.

        One transaction: the row is locked without waiting, read anew, judged, and only then
        written, with the event and the restart that is now owed. Raises RowLockedError,
        LeaseLostError.
        """
        workspace = sighting.workspace
        with self._session.transaction(deadline) as transaction:
            row = _current(transaction, _LOCKED_ROW, workspace, terms)
            reason = objection(row, workspace)
            if row is None or reason is not None:
                return reason or SkipReason.ROW_GONE
            loop = loop_of(row, terms.crash_loop)
            superseded = self._write(transaction, sighting, row, loop)
            return SkipReason.STATUS_MOVED if superseded is None else Flipped(loop, superseded)

    def would_flip(self, deadline: Deadline, sighting: Sighting, terms: Terms) -> Flipped | SkipReason:
        """Return what `flip` would, without a lock or a trace: for dry runs."""
        workspace = sighting.workspace
        with self._session.transaction(deadline, read_only=True) as transaction:
            row = _current(transaction, _CURRENT_ROW, workspace, terms)
        reason = objection(row, workspace)
        if row is None or reason is not None:
            return reason or SkipReason.ROW_GONE
        return Flipped(loop_of(row, terms.crash_loop))

    def _write(
        self, transaction: Transaction, sighting: Sighting, row: CurrentRow, loop: Loop
    ) -> tuple[Debt, ...] | None:
        """Write the flip and return the older debts that it settled; None, and nothing written, if it is held."""
        workspace = sighting.workspace
        payload = {
            "instance_id": workspace.instance_id,
            "instance_state": sighting.state,
            "source": SOURCE,
            "previous_status": row.status,
            "cycle_id": self._cycle_id,
        }
        written = transaction.run(
            _FLIP,
            **self._lease.own,
            id=workspace.id,
            instance_id=workspace.instance_id,
            payload=json.dumps(payload),
            streak=loop.streak,
            pause_s=loop.pause_s or None,
        )
        if not written:
            self._lease.require(transaction)
            return None
        return tuple(Debt(*older) for older in written if older[0] is not None)


def _current(transaction: Transaction, query: str, workspace: Workspace, terms: Terms) -> CurrentRow | None:
    rows = transaction.run(
        query,
        id=workspace.id,
        captured=workspace.last_heartbeat_at,
        selected_at=terms.selected_at,
        fresh_s=terms.heartbeat_fresh_s,
    )
    return CurrentRow(*rows[0]) if rows else None
