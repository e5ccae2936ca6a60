"""The candidates, the guarded flip, and what is remembered between cycles."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from handler.database import Session, Transaction
from handler.deadline import Deadline
from handler.decide import Absence, objection
from handler.errors import SchemaMissingError
from handler.fairness import Sweep
from handler.model import CurrentRow, Gauges, Sighting, SkipReason, Workspace
from handler.registry.lease import Lease

SOURCE = "instance-state-reconciler"
# Sightings of an absence further apart than this have nothing to do with each other.
ABSENCE_KEPT_SECONDS = 3600
CLOSED_RESTARTS_KEPT_DAYS = 30

_CURRENT_ROW = """
SELECT status::text, instance_id, runtime,
       last_heartbeat_at::text IS DISTINCT FROM CAST(:captured AS text)
       OR COALESCE(last_heartbeat_at > CAST(:selected_at AS timestamptz), false)
       OR COALESCE(last_heartbeat_at > clock_timestamp() - make_interval(secs => :fresh_s), false)
FROM workspaces WHERE id = CAST(:id AS uuid)
"""
_LOCKED_ROW = _CURRENT_ROW + " FOR NO KEY UPDATE NOWAIT"


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates in fair order, and what the order rests on."""

    workspaces: list[Workspace]
    selected_at: str
    next_unselected: str | None
    sweep: Sweep


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier cycles left that a decision needs."""

    absences: Mapping[str, Absence]
    recently_flipped: frozenset[str]


class Fleet:
    """The platform's rows as one cycle sees them. Every method raises RegistryError."""

    def __init__(self, session: Session, cycle_id: str, lease: Lease) -> None:
        """Act in the name of `cycle_id`, a UUID, as long as it holds `lease`."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease

    def select(self, deadline: Deadline, *, limit: int, workspace_ids: Sequence[str] | None) -> Selection:
        """Return the candidates, at most `limit`, those first that the last full cycle left."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            ((selected_at,),) = transaction.run("SELECT now()::text")
            sweep = _sweep(transaction)
            rows = transaction.run(
                """
                SELECT id::text, instance_id, last_heartbeat_at::text
                FROM workspaces
                WHERE status IN ('online', 'degraded')
                  AND instance_id <> ''
                  AND COALESCE(runtime, '') <> 'external'
                  AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY (CAST(:ids AS uuid[])))
                ORDER BY id = ANY (CAST(:first AS uuid[])) DESC, id > CAST(:cursor AS uuid) DESC, id
                LIMIT :one_more
                """,
                ids=None if workspace_ids is None else list(workspace_ids),
                first=list(sweep.first),
                cursor=sweep.cursor,
                one_more=limit + 1,
            )
        left_out = rows[limit][0] if len(rows) > limit else None
        return Selection([Workspace(*row) for row in rows[:limit]], selected_at, left_out, sweep)

    def recall(self, deadline: Deadline, *, breaker_window_s: float) -> Memory:
        """Return what is remembered of absences, and whom the breaker's window holds."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            absences = transaction.run(
                """
                SELECT workspace_id::text, instance_id, sightings,
                       CAST(extract(epoch FROM now() - first_seen_at) AS double precision)
                FROM reconciler.absences WHERE last_seen_at > now() - make_interval(secs => :kept_s)
                """,
                kept_s=ABSENCE_KEPT_SECONDS,
            )
            flipped = transaction.run(
                """
                SELECT DISTINCT workspace_id::text FROM reconciler.restarts
                WHERE flipped_at > now() - make_interval(secs => :window_s)
                """,
                window_s=breaker_window_s,
            )
        return Memory({row[0]: Absence(*row[1:]) for row in absences}, frozenset(row[0] for row in flipped))

    def remember_absences(self, deadline: Deadline, absent: Iterable[Workspace], found_again: Iterable[str]) -> None:
        """Count one more sighting of each absence; forget those of instances that were found."""
        absent = list(absent)
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(
                "DELETE FROM reconciler.absences WHERE workspace_id = ANY (CAST(:found AS uuid[]))"
                " OR last_seen_at <= now() - make_interval(secs => :kept_s)",
                found=list(found_again),
                kept_s=ABSENCE_KEPT_SECONDS,
            )
            transaction.run(
                """
                INSERT INTO reconciler.absences AS known (workspace_id, instance_id, sightings)
                SELECT workspace_id, instance_id, 1
                FROM unnest(CAST(:workspace_ids AS uuid[]), CAST(:instance_ids AS text[]))
                     AS seen (workspace_id, instance_id)
                ON CONFLICT (workspace_id) DO UPDATE SET
                    instance_id = EXCLUDED.instance_id,
                    last_seen_at = EXCLUDED.last_seen_at,
                    sightings = CASE WHEN known.instance_id = EXCLUDED.instance_id
                                     THEN known.sightings + 1 ELSE 1 END,
                    first_seen_at = CASE WHEN known.instance_id = EXCLUDED.instance_id
                                         THEN known.first_seen_at ELSE EXCLUDED.first_seen_at END
                """,
                workspace_ids=[one.id for one in absent],
                instance_ids=[one.instance_id for one in absent],
            )

    def flip(
        self, deadline: Deadline, sighting: Sighting, *, selected_at: str, heartbeat_fresh_s: float
    ) -> SkipReason | None:
        """Set the workspace offline if its row still says what was probed; return why not, if not.

        One transaction: the row is locked without waiting, read anew, judged, and only then
        written, with the event and the restart that is now owed. Raises RowLockedError,
        LeaseLostError.
        """
        workspace = sighting.workspace
        with self._session.transaction(deadline) as transaction:
            row = _current(transaction, _LOCKED_ROW, workspace, selected_at, heartbeat_fresh_s)
            self._lease.require(transaction)
            reason = objection(row, workspace)
            if row is not None and reason is None:
                self._write_flip(transaction, sighting, previous_status=row.status)
        return reason

    def would_flip(
        self, deadline: Deadline, sighting: Sighting, *, selected_at: str, heartbeat_fresh_s: float
    ) -> SkipReason | None:
        """Return what `flip` would, without a lock or a trace: for dry runs."""
        workspace = sighting.workspace
        with self._session.transaction(deadline, read_only=True) as transaction:
            row = _current(transaction, _CURRENT_ROW, workspace, selected_at, heartbeat_fresh_s)
        return objection(row, workspace)

    def save_sweep(self, deadline: Deadline, sweep: Sweep, *, completed_pass: bool) -> None:
        """Note where the next full cycle begins."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(
                """
                UPDATE reconciler.sweep
                SET cursor = CAST(:cursor AS uuid), pass_began_at = CAST(:pass_began_at AS uuid),
                    first = CAST(:first AS uuid[]), began_at = COALESCE(began_at, now()),
                    pass_completed_at = CASE WHEN :completed THEN now() ELSE pass_completed_at END
                """,
                cursor=sweep.cursor,
                pass_began_at=sweep.pass_began_at,
                first=list(sweep.first),
                completed=completed_pass,
            )
            transaction.run(
                "DELETE FROM reconciler.restarts WHERE closed_at < now() - make_interval(days => :days)",
                days=CLOSED_RESTARTS_KEPT_DAYS,
            )

    def gauges(self, deadline: Deadline) -> Gauges:
        """Return what is open, and how old it is."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            ((pending, blocked, oldest_s, coverage_s),) = transaction.run(
                """
                SELECT count(*), count(*) FILTER (WHERE last_answer = 'blocked'),
                       CAST(COALESCE(extract(epoch FROM now() - min(flipped_at)
                            FILTER (WHERE last_answer IS DISTINCT FROM 'blocked')), 0) AS double precision),
                       (SELECT CAST(COALESCE(extract(epoch FROM now() - COALESCE(pass_completed_at, began_at)), 0)
                                    AS double precision) FROM reconciler.sweep)
                FROM reconciler.restarts WHERE closed_at IS NULL
                """
            )
        return Gauges(pending, blocked, max(0.0, oldest_s), max(0.0, coverage_s))

    def _write_flip(self, transaction: Transaction, sighting: Sighting, *, previous_status: str | None) -> None:
        workspace = sighting.workspace
        payload = {
            "instance_id": workspace.instance_id,
            "instance_state": sighting.state,
            "source": SOURCE,
            "previous_status": previous_status,
            "cycle_id": self._cycle_id,
        }
        transaction.run(
            "UPDATE workspaces SET status = 'offline', updated_at = now() WHERE id = CAST(:id AS uuid)",
            id=workspace.id,
        )
        transaction.run(
            "INSERT INTO structure_events (event_type, workspace_id, payload)"
            " VALUES ('WORKSPACE_OFFLINE', CAST(:id AS uuid), CAST(:payload AS jsonb))",
            id=workspace.id,
            payload=json.dumps(payload),
        )
        # The row was online again, so an older debt is settled. If the platform was asked about this
        # very instance not long ago, it may still be at it: it must not be asked again too soon.
        transaction.run(
            "UPDATE reconciler.restarts SET closed_at = now(), outcome = 'void'"
            " WHERE workspace_id = CAST(:id AS uuid) AND closed_at IS NULL",
            id=workspace.id,
        )
        transaction.run(
            """
            INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, next_attempt_at)
            SELECT CAST(:id AS uuid), CAST(:instance_id AS text), CAST(:cycle_id AS uuid),
                   GREATEST(now(), max(next_attempt_at))
            FROM reconciler.restarts
            WHERE workspace_id = CAST(:id AS uuid) AND instance_id = :instance_id AND asked_at IS NOT NULL
            """,
            id=workspace.id,
            instance_id=workspace.instance_id,
            cycle_id=self._cycle_id,
        )


def _sweep(transaction: Transaction) -> Sweep:
    rows = transaction.run("SELECT cursor::text, pass_began_at::text, first::text[] FROM reconciler.sweep")
    if not rows:
        raise SchemaMissingError("the table reconciler.sweep has lost its row: run infra/schema.sql")
    cursor, pass_began_at, first = rows[0]
    return Sweep(cursor, pass_began_at, tuple(first))


def _current(
    transaction: Transaction, query: str, workspace: Workspace, selected_at: str, heartbeat_fresh_s: float
) -> CurrentRow | None:
    rows = transaction.run(
        query,
        id=workspace.id,
        captured=workspace.last_heartbeat_at,
        selected_at=selected_at,
        fresh_s=heartbeat_fresh_s,
    )
    return CurrentRow(*rows[0]) if rows else None
