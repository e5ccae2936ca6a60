"""The candidates, and what is remembered between cycles."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from handler.database import Session, Transaction
from handler.deadline import Deadline
from handler.decide import Absence
from handler.errors import SchemaMissingError
from handler.fairness import Sweep
from handler.model import Gauges, Workspace
from handler.registry.holds import held
from handler.registry.lease import Lease

# Sightings of an absence further apart than this have nothing to do with each other.
ABSENCE_KEPT_SECONDS = 3600
CLOSED_RESTARTS_KEPT_DAYS = 30
# A platform takes minutes to provision; when a workspace is not back by then, somebody has to look.
RECOVERY_SECONDS = 900


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
    """The fleet as one cycle sees it. Every method raises RegistryError."""

    def __init__(self, session: Session, lease: Lease) -> None:
        """Remember things as long as the cycle holds `lease`."""
        self._session = session
        self._lease = lease

    def select(self, deadline: Deadline, *, limit: int, workspace_ids: Sequence[str] | None) -> Selection:
        """Return the candidates, at most `limit`, those first that the last full cycle left."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            ((selected_at,),) = transaction.run("SELECT now()::text")
            sweep = _sweep(transaction)
            rows = transaction.run(
                f"""
                SELECT id::text, instance_id, last_heartbeat_at::text
                FROM workspaces
                WHERE status IN ('online', 'degraded')
                  AND instance_id <> ''
                  AND COALESCE(runtime, '') <> 'external'
                  AND NOT {held("workspaces.id")}
                  AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY (CAST(:ids AS uuid[])))
                ORDER BY id = ANY (CAST(:first AS uuid[])) DESC, id > CAST(:cursor AS uuid) DESC, id
                LIMIT :one_more
                """,  # noqa: S608 - put together from constants
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

    def remember_absences(self, deadline: Deadline, absent: Iterable[Workspace], forgotten: Iterable[str]) -> None:
        """Count one more sighting of each absence; forget those of other workspaces, by id."""
        absent = list(absent)
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(
                "DELETE FROM reconciler.absences WHERE workspace_id = ANY (CAST(:forgotten AS uuid[]))"
                " OR last_seen_at <= now() - make_interval(secs => :kept_s)",
                forgotten=list(forgotten),
                kept_s=ABSENCE_KEPT_SECONDS,
            )
            transaction.run(
                """
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
                """,
                # As JSON: of an array's elements pg8000 lets PostgreSQL take the text "null" for NULL.
                absent=json.dumps([{"workspace_id": one.id, "instance_id": one.instance_id} for one in absent]),
            )

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
        """Return what is open, and how old it is. Looks at no table of the platform's, which may be locked."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            (figures,) = transaction.run(
                """
                WITH held AS (SELECT workspace_id FROM reconciler.holds WHERE ends_at > now()),
                owed AS (
                    SELECT GREATEST(flipped_at, paused_until, holds.ends_at) AS wanted_since,
                           last_answer = 'blocked' AS blocked, paused_until > now() AS paused
                    FROM reconciler.restarts LEFT JOIN reconciler.holds USING (workspace_id) WHERE closed_at IS NULL
                )
                SELECT count(*), count(*) FILTER (WHERE blocked), count(*) FILTER (WHERE paused),
                       CAST(COALESCE(extract(epoch FROM now() - min(wanted_since)
                            FILTER (WHERE blocked IS NOT TRUE)), 0) AS double precision),
                       (SELECT CAST(COALESCE(extract(epoch FROM now() - COALESCE(pass_completed_at, began_at)), 0)
                                    AS double precision) FROM reconciler.sweep),
                       (SELECT count(*) FROM reconciler.restarts AS paid
                        WHERE outcome = 'paid' AND watched_until IS NULL
                          AND closed_at < now() - make_interval(secs => :recovery_s)
                          AND workspace_id NOT IN (SELECT workspace_id FROM held)
                          AND NOT EXISTS (SELECT FROM reconciler.restarts AS later
                                          WHERE later.workspace_id = paid.workspace_id AND later.id > paid.id)),
                       (SELECT count(*) FROM held)
                FROM owed
                """,
                recovery_s=RECOVERY_SECONDS,
            )
        pending, blocked, paused, oldest_s, coverage_s, unrecovered, held = figures
        return Gauges(
            restarts_pending=pending,
            restarts_blocked=blocked,
            restarts_paused=paused,
            restarts_unrecovered=unrecovered,
            oldest_restart_age_s=max(0.0, oldest_s),
            coverage_age_s=max(0.0, coverage_s),
            held=held,
        )


def _sweep(transaction: Transaction) -> Sweep:
    rows = transaction.run("SELECT cursor::text, pass_began_at::text, first::text[] FROM reconciler.sweep")
    if not rows:
        raise SchemaMissingError("the table reconciler.sweep has lost its row: run infra/schema.sql")
    cursor, pass_began_at, first = rows[0]
    return Sweep(cursor, pass_began_at, tuple(first))
