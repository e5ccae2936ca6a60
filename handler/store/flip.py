"""The flip: the one place that writes to the platform's tables.

Many workspaces are flipped in one transaction, because each round trip to a database in another zone takes
milliseconds. What is promised, is promised for each of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from handler.deadline import Deadline
from handler.domain.backoff import CrashLoop, crash_loop
from handler.domain.decide import objection
from handler.domain.evidence import Confirmed, DatabaseClock, expiry
from handler.domain.model import CurrentRow, Restart, SkipReason, Verdict, Workspace
from handler.domain.policy import CrashLoopPolicy, RestartPolicy
from handler.domain.state_changes import HEARTBEAT_ARRIVES_SECONDS, OLDEST_EVENT_SECONDS
from handler.errors import NotWrittenError
from handler.store.candidates import RESTARTING
from handler.store.doubts import REMEMBERED_DEAD
from handler.store.holds import on_hold
from handler.store.lease import Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction
from handler.store.tables import IS_OPEN_OR_WATCHED, short

SOURCE = "instance-state-reconciler"

# When the instance died, as EC2's event has it, if it has a time that may be true.
_DIED_AT = "(CAST(:died_at AS double precision[]))[array_position(CAST(:ids AS uuid[]), workspaces.id)]"
_NOW_S = "extract(epoch FROM clock_timestamp())"
_ROWS = f"""
SELECT workspaces.id::text, {short("status::text")}, {short("instance_id")}, {short("runtime")},
       last_heartbeat_at::text,
       COALESCE(last_heartbeat_at > CAST(:selected_at AS timestamptz), false)
       OR COALESCE(last_heartbeat_at > CASE
              WHEN {_DIED_AT} BETWEEN {_NOW_S} - {OLDEST_EVENT_SECONDS} AND {_NOW_S}
              THEN to_timestamp({_DIED_AT} + {HEARTBEAT_ARRIVES_SECONDS})
              ELSE clock_timestamp() - make_interval(secs => :fresh_s) END, false),
       CASE WHEN isfinite(last_heartbeat_at)
            THEN CAST(extract(epoch FROM clock_timestamp() - last_heartbeat_at) AS double precision) END
FROM platform.workspaces WHERE workspaces.id = ANY (CAST(:ids AS uuid[])) ORDER BY workspaces.id
"""  # noqa: S608 - put together from constants
# A row that somebody else has locked is passed over.
_LOCKED_ROWS = _ROWS + " FOR NO KEY UPDATE SKIP LOCKED"
_LOCK_RESTARTS = f"""
SELECT workspace_id::text FROM reconciler.restarts
WHERE workspace_id = ANY (CAST(:ids AS uuid[])) AND {IS_OPEN_OR_WATCHED}
ORDER BY id FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - put together from constants
# What our own tables say, read after the locks and so in a newer snapshot: a hold that was placed meanwhile counts. A
# restart counts as asked for from its claim on. Unwatched ones are of a time before there was a watch.
_OWN = f"""
SELECT asked.id::text, EXISTS (SELECT FROM platform.workspaces WHERE workspaces.id = asked.id),
       {on_hold("asked.id")}, last_restart.restarts, last_restart.up_s, last_restart.open_or_watched,
       EXISTS (SELECT FROM platform.workspaces WHERE workspaces.id = asked.id AND {
    RESTARTING.format(by_hand="COALESCE(doubt.by_hand, false)")
}),
       COALESCE(doubt.sightings, 0), COALESCE(doubt.absent_s, 0), COALESCE(doubt.offline_s, 0)
FROM unnest(CAST(:ids AS uuid[])) AS asked (id)
LEFT JOIN LATERAL (
    SELECT streak + CASE WHEN asked_at IS NULL THEN 0 ELSE 1 END AS restarts,
           {IS_OPEN_OR_WATCHED} AS open_or_watched,
           CAST(extract(epoch FROM now() - CASE
               WHEN watched_since IS NOT NULL THEN COALESCE(up_since, now())
               ELSE COALESCE(watch_ended_at, closed_at, asked_at, now()) END) AS double precision) AS up_s
    FROM reconciler.restarts WHERE workspace_id = asked.id ORDER BY id DESC LIMIT 1
) AS last_restart ON true
LEFT JOIN LATERAL (
    SELECT bool_or(by_hand) AS by_hand, max(sightings) FILTER (WHERE kind = 'absent') AS sightings,
           CAST(extract(epoch FROM now() - min(since) FILTER (WHERE kind = 'absent')) AS double precision) AS absent_s,
           CAST(extract(epoch FROM now() - min(offline_since) FILTER (WHERE {REMEMBERED_DEAD})) AS double precision)
               AS offline_s
    FROM reconciler.doubts WHERE workspace_id = asked.id
) AS doubt ON true
"""  # noqa: S608 - put together from constants

# Each workspace's lease, hold and evidence are checked once more, in the statement that writes. The row was up again:
# an older open restart is cancelled, and an older watch is over; a watch over the same instance's restart goes on with
# the new one. If the platform was asked to restart this same instance before, it may still be working on it, so the new
# restart is first due a while after the last call.
#
# row_security is off for this statement: PostgreSQL has planned it by the time the condition turns row_security on.
# That is for the functions of the platform's triggers. They may use tables whose policies do not concern us, and
# PostgreSQL would refuse them.
_WRITE = f"""
WITH asked AS MATERIALIZED (
    SELECT *, {{lease_is_ours}} AS lease_is_ours, {on_hold("asked.id")} AS on_hold,
           clock_timestamp() <= to_timestamp(not_after) AS in_time
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS asked (
        id uuid, instance_id text, payload jsonb, adopted boolean, not_after double precision, streak integer,
        backoff_s double precision, due_s double precision, absent_sightings integer, absent_s double precision)
), flipped AS (
    UPDATE platform.workspaces SET status = 'offline', updated_at = now()
    FROM asked
    WHERE workspaces.id = asked.id AND lease_is_ours AND in_time AND NOT on_hold AND NOT adopted
      AND set_config('row_security', 'on', true) = 'on'
    RETURNING workspaces.id, workspaces.status::text AS status
), passed AS MATERIALIZED (
    SELECT asked.*, flipped.status FROM asked LEFT JOIN flipped USING (id)
    WHERE lease_is_ours AND in_time AND NOT on_hold AND (adopted OR flipped.id IS NOT NULL)
), event AS (
    INSERT INTO platform.structure_events (event_type, workspace_id, payload)
    SELECT 'WORKSPACE_OFFLINE', id, payload FROM passed WHERE NOT adopted
), ended AS (
    UPDATE reconciler.restarts
    SET closed_at = COALESCE(closed_at, now()), outcome = COALESCE(outcome, 'cancelled'), watch_ended_at = now()
    FROM passed
    WHERE restarts.workspace_id = passed.id AND {IS_OPEN_OR_WATCHED}
    RETURNING restarts.id, restarts.workspace_id, {short("restarts.instance_id")} AS instance_id, attempts,
              closed_at = now() AS cancelled,
              CASE WHEN restarts.instance_id = passed.instance_id THEN watched_since END AS watched_since
), owed AS (
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, adopted, released, streak, backoff_until,
                                     absent_sightings, absent_since, watched_since, due_at, first_due_at)
    SELECT id, instance_id, CAST(:cycle_id AS uuid), adopted, :released, streak,
           now() + make_interval(secs => backoff_s), absent_sightings, now() - make_interval(secs => absent_s),
           (SELECT min(watched_since) FROM ended WHERE workspace_id = passed.id), due.at, due.at
    FROM passed, LATERAL (
        SELECT GREATEST(now() + make_interval(secs => due_s),
                        (SELECT max(asked_at) + make_interval(secs => :uncertain_s) FROM reconciler.restarts
                         WHERE restarts.workspace_id = passed.id AND restarts.instance_id = passed.instance_id)) AS at
    ) AS due, (SELECT count(*) FROM ended) AS ended_before
    RETURNING workspace_id
), ended_doubts AS (
    DELETE FROM reconciler.doubts
    WHERE (workspace_id, kind) IN (SELECT workspace_id, kind FROM reconciler.doubts
                                   WHERE workspace_id IN (SELECT id FROM passed) FOR UPDATE SKIP LOCKED)
)
SELECT asked.id::text, asked.lease_is_ours, asked.in_time, asked.on_hold, owed.workspace_id IS NOT NULL,
       asked.adopted OR COALESCE(passed.status = 'offline', false),
       ended.id, ended.instance_id, ended.attempts
FROM asked LEFT JOIN passed USING (id) LEFT JOIN owed ON owed.workspace_id = passed.id
LEFT JOIN ended ON ended.workspace_id = passed.id AND cancelled
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class FlipPolicy:
    """What the flip judges a re-read row by, and what it records.

    `selected_at` is the time of the SELECT, as the database's own text; `clock` the database's clock; `probe` the
    source of truth, by its name. A heartbeat younger than `heartbeat_fresh_s` seconds prevents the flip; if `died_at`
    has a usable time for the instance, in seconds since 1970, one that came after that does instead. `released`
    restarts are not stopped by an open breaker.
    """

    selected_at: str
    clock: DatabaseClock
    probe: str
    heartbeat_fresh_s: float
    crash_loop: CrashLoopPolicy
    restarts: RestartPolicy
    released: bool
    died_at: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flipped:
    """A flip or adoption, done or rehearsed: its restart's crash loop, and the older open restart that it cancelled."""

    crash_loop: CrashLoop
    superseded: Restart | None = None


@dataclass(frozen=True, slots=True)
class _Current:
    """What the re-read says of one workspace."""

    row: CurrentRow | None
    heartbeat_age_s: float | None = None
    absent_sightings: int = 0
    absent_s: float = 0.0
    offline_s: float = 0.0


# By workspace id.
FlipOutcomes = Mapping[str, Flipped | SkipReason]


class Flips:
    """The flip, for a set of workspaces at a time. Every method raises StoreError."""

    def __init__(self, session: Session, cycle_id: str, lease: Lease) -> None:
        """Flip for the cycle `cycle_id`, a UUID, as long as the lease is ours."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease
        self._write = _WRITE.format(lease_is_ours=lease.condition)

    def flip(self, deadline: Deadline, confirmed: Sequence[Confirmed], policy: FlipPolicy) -> FlipOutcomes:
        """Take the workspaces offline, unless something in a row forbids it; return the outcome for each.

        All in one transaction: lock the rows without waiting, read them again, judge each, and only then write the
        rows, the events and the owed restarts. Adopted workspaces only get their owed restart. Evidence that is too old
        by the database's clock, or a lost lease, is OUT_OF_TIME. An error of a single row fails the set as a whole, the
        server's or NotWrittenError.
        """
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            current = self._read(transaction, confirmed, policy, locking=True)
            outcomes: dict[str, Flipped | SkipReason] = {}
            to_write: dict[str, Flipped] = {}
            rows = []
            for one in confirmed:
                workspace, now = one.second.workspace, current[one.second.workspace.id]
                reason = objection(now.row, workspace)
                if reason is not None or now.row is None:
                    outcomes[workspace.id] = reason or SkipReason.ROW_GONE
                    continue
                loop = crash_loop(now.row.restarts, now.row.up_s, policy.crash_loop)
                to_write[workspace.id] = Flipped(loop)
                rows.append(self._record(one, now, loop, policy))
            if rows:
                outcomes |= self._written(transaction, to_write, rows, policy)
        return outcomes

    def would_flip(self, deadline: Deadline, confirmed: Sequence[Confirmed], policy: FlipPolicy) -> FlipOutcomes:
        """Return what `flip` would return. For dry runs: takes no lock and writes nothing."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            current = self._read(transaction, confirmed, policy, locking=False)
        outcomes: dict[str, Flipped | SkipReason] = {}
        for one in confirmed:
            row = current[one.second.workspace.id].row
            reason = objection(row, one.second.workspace)
            loop = CrashLoop(0, 0.0) if row is None else crash_loop(row.restarts, row.up_s, policy.crash_loop)
            outcomes[one.second.workspace.id] = reason or Flipped(loop)
        return outcomes

    def _read(
        self, transaction: Transaction, confirmed: Sequence[Confirmed], policy: FlipPolicy, *, locking: bool
    ) -> dict[str, _Current]:
        """Read the rows again, locked or not, and then what our own tables say; return both by workspace id."""
        captured = {one.second.workspace.id: one.second.workspace for one in confirmed}
        ids = list(captured)
        terms = {
            "selected_at": policy.selected_at,
            "fresh_s": policy.heartbeat_fresh_s,
            "died_at": [policy.died_at.get(one.instance_id) for one in captured.values()],
        }
        rows = {row[0]: row[1:] for row in transaction.run(_LOCKED_ROWS if locking else _ROWS, ids=ids, **terms)}
        ours = {one for (one,) in transaction.run(_LOCK_RESTARTS, ids=ids)} if locking else None
        return {
            own[0]: _current(captured[own[0]], rows.get(own[0]), own[1:], ours=ours)
            for own in transaction.run(_OWN, ids=ids)
        }

    def _record(self, one: Confirmed, now: _Current, loop: CrashLoop, policy: FlipPolicy) -> dict[str, Any]:
        """Return one workspace as the statement that writes takes it."""
        second, restarts = one.second, policy.restarts
        absent = second.verdict is Verdict.ABSENT
        adopted = second.workspace.offline
        return {
            "id": second.workspace.id,
            "instance_id": second.workspace.instance_id,
            "payload": self._payload(one, now, policy),
            "adopted": adopted,
            "not_after": policy.clock.at(expiry(second)),
            "streak": loop.streak,
            "backoff_s": loop.backoff_s or None,
            "due_s": max(0.0, restarts.uncertain_s - now.offline_s) if adopted else restarts.grace_s,
            "absent_sightings": now.absent_sightings if absent else 0,
            "absent_s": now.absent_s if absent else None,
        }

    def _payload(self, one: Confirmed, now: _Current, policy: FlipPolicy) -> dict[str, Any]:
        return {
            "instance_id": one.second.workspace.instance_id,
            "instance_state": one.second.state,
            "source": SOURCE,
            "previous_status": None if now.row is None else now.row.status,
            "cycle_id": self._cycle_id,
            "probe": policy.probe,
            "target": one.second.target,
            "first_answer_at": _rfc3339(policy.clock.at(one.first.answered_at)),
            "second_answer_at": _rfc3339(policy.clock.at(one.second.answered_at)),
            "heartbeat_age_seconds": now.heartbeat_age_s,
        }

    def _written(
        self, transaction: Transaction, to_write: Mapping[str, Flipped], rows: list[dict[str, Any]], policy: FlipPolicy
    ) -> FlipOutcomes:
        written = transaction.run(
            self._write,
            **self._lease.own,
            rows=json.dumps(rows),
            released=policy.released,
            uncertain_s=policy.restarts.uncertain_s,
        )
        outcomes: dict[str, Flipped | SkipReason] = {}
        for one, lease_is_ours, in_time, is_on_hold, was_written, is_offline, *older in written:
            if not lease_is_ours:
                outcomes[one] = SkipReason.OUT_OF_TIME  # it outlasts the cycle, so the time is over
            elif is_on_hold:
                outcomes[one] = SkipReason.ON_HOLD
            elif not in_time:
                outcomes[one] = SkipReason.OUT_OF_TIME
            elif not was_written or not is_offline:
                raise NotWrittenError(
                    "the flip was not written, without an error: does a trigger or a rule change updates?"
                )
            else:
                restart_id, instance_id, attempts = older
                superseded = None if restart_id is None else Restart(restart_id, one, instance_id, attempts)
                outcomes[one] = Flipped(to_write[one].crash_loop, superseded)
        return outcomes


def _current(captured: Workspace, row: Sequence[Any] | None, own: Sequence[Any], *, ours: set[str] | None) -> _Current:
    """Put together what the database says.

    `ours` are the workspaces whose restart, open or watched, we have locked; None: no lock is needed.
    """
    exists, is_on_hold, restarts, up_s, open_or_watched, restarting, sightings, absent_s, offline_s = own
    if row is None:
        # The row is gone, or somebody else has locked it; then nothing else about it matters.
        locked = CurrentRow(None, None, None, fresh_heartbeat=False, locked=True)
        return _Current(locked if exists else None)
    status, instance_id, runtime, heartbeat_at, fresh, heartbeat_age_s = row
    current = CurrentRow(
        status,
        instance_id,
        runtime,
        fresh_heartbeat=fresh or heartbeat_at != captured.last_heartbeat_at,
        on_hold=is_on_hold,
        restarts=restarts,
        up_s=up_s,
        restarting=restarting,
        locked=bool(open_or_watched) and ours is not None and captured.id not in ours,
    )
    return _Current(current, heartbeat_age_s, sightings, absent_s, offline_s)


def _rfc3339(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
