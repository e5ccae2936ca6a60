"""Owed restarts, from the flip until the workspace is up again or nobody wants it any more.

What becomes of a restart is decided in `handler.domain.restarts`. Here its facts are read, and the steps are written.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from handler.deadline import Deadline
from handler.domain.evidence import DatabaseClock, expiry
from handler.domain.model import Restart, Sighting, Verdict
from handler.domain.restarts import RECOVERY_SECONDS, Owed, RestartDecision, Step, Watched
from handler.store.holds import hold_ended_at, on_hold
from handler.store.lease import LEASE_IS_OURS, Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction
from handler.store.tables import short

# A stop lasts a day at most. One that ends later than this from now is of a clock that has jumped since.
LATEST_END_OF_STOP_SECONDS = 90_000
# A cycle cancels no more restarts than this because their rows moved on, and marks no more as kept back; the others
# follow in the next ones.
MOST_AT_ONCE = 5000
# A cycle looks at no more watched restarts.
MOST_WATCHED = 20_000
# No count goes further: it must never be too large for its column.
MOST_COUNTED = 1_000_000

_STOP_IS_ON = f"(ends_at > now() AND ends_at <= now() + make_interval(secs => {LATEST_END_OF_STOP_SECONDS}))"
_STOPPED = f"EXISTS (SELECT FROM reconciler.restart_stops WHERE {_STOP_IS_ON})"
# One that was never asked for has its grace after a hold, too.
_DUE = f"""(due_at <= now() AND (attempts > 0
    OR COALESCE({hold_ended_at("owed.workspace_id")} + make_interval(secs => :grace_s) <= now(), true)))"""
_RESTART = f"""owed.id, owed.workspace_id::text, {short("owed.instance_id")}, attempts, refusals, released,
       watched_since IS NOT NULL, absent_sightings,
       COALESCE(CAST(extract(epoch FROM now() - absent_since) AS double precision), 0), streak"""
# The comparison is the server's: an instance id that cannot be decoded is another one.
_STILL_OWED = "COALESCE(current.status = 'offline' AND current.instance_id = owed.instance_id, false)"
_OWED = f"""
SELECT {_RESTART},
       {_STILL_OWED}, {_DUE}, {on_hold("owed.workspace_id")}, COALESCE(backoff_until > now(), false), {_STOPPED},
       COALESCE(last_heartbeat_at > clock_timestamp() - make_interval(secs => :fresh_s), false)
FROM reconciler.restarts AS owed LEFT JOIN platform.workspaces AS current ON current.id = owed.workspace_id
WHERE closed_at IS NULL
"""  # noqa: S608 - put together from constants
_OWED_OF = f"{_OWED} AND owed.id = ANY (CAST(:ids AS bigint[]))"
# What cannot be asked for now is left out, so that it takes nobody's place.
_MAY_BE_ASKED = f"""{_DUE} AND COALESCE(backoff_until <= now(), true) AND NOT {on_hold("owed.workspace_id")}
  AND NOT {_STOPPED} AND (released OR NOT :released_only)
  AND (CAST(:workspace_ids AS uuid[]) IS NULL OR owed.workspace_id = ANY (CAST(:workspace_ids AS uuid[])))"""
_DUE_LIST = f"""{_OWED} AND {_MAY_BE_ASKED} AND (refusals > 0) = :refused
ORDER BY due_at, owed.id LIMIT :most"""
_ANY_DUE = f"""
SELECT count(*) FROM (
    SELECT FROM reconciler.restarts AS owed WHERE closed_at IS NULL AND {_MAY_BE_ASKED} LIMIT :most
) AS due
"""  # noqa: S608 - put together from constants

# What somebody else has locked is passed over, here and below: the next cycle sees it again.
_CANCEL_MOVED_ON = f"""
UPDATE reconciler.restarts SET closed_at = now(), outcome = 'cancelled'
WHERE id = ANY (ARRAY(
    SELECT owed.id FROM reconciler.restarts AS owed
    WHERE closed_at IS NULL
      AND NOT EXISTS (SELECT FROM platform.workspaces AS current
                      WHERE current.id = owed.workspace_id AND {_STILL_OWED})
    LIMIT {MOST_AT_ONCE} FOR UPDATE SKIP LOCKED
))
RETURNING id, workspace_id::text, {short("instance_id")}, attempts
"""  # noqa: S608 - put together from constants
_WATCHED = f"""
SELECT {_RESTART}, {short("current.status::text")}, closed_at IS NULL,
       COALESCE(current.instance_id = owed.instance_id, false),
       CAST(extract(epoch FROM now() - up_since) AS double precision), {on_hold("owed.workspace_id")}
FROM reconciler.restarts AS owed LEFT JOIN platform.workspaces AS current ON current.id = owed.workspace_id
WHERE watched_since IS NOT NULL AND watch_ended_at IS NULL
ORDER BY owed.id LIMIT {MOST_WATCHED}
"""  # noqa: S608 - put together from constants
_NOTE_WATCH = """
UPDATE reconciler.restarts SET
    watch_ended_at = CASE WHEN id = ANY (CAST(:ended AS bigint[])) THEN now() END,
    up_since = CASE WHEN id = ANY (CAST(:up AS bigint[])) THEN COALESCE(up_since, now())
                    WHEN id = ANY (CAST(:ended AS bigint[])) THEN up_since END
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts
    WHERE id = ANY (CAST(:all AS bigint[])) AND watch_ended_at IS NULL
      AND (id = ANY (CAST(:ended AS bigint[])) OR (id = ANY (CAST(:up AS bigint[]))) = (up_since IS NULL))
    FOR UPDATE SKIP LOCKED
))
"""
_OWE_AGAIN = f"""
WITH again AS (
    SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb))
                  AS again (id bigint, streak integer, backoff_s double precision)
), ended AS (
    UPDATE reconciler.restarts AS owed SET watch_ended_at = now()
    FROM platform.workspaces AS current
    WHERE owed.id IN (SELECT id FROM reconciler.restarts
                      WHERE id IN (SELECT id FROM again) AND closed_at IS NOT NULL AND watch_ended_at IS NULL
                      FOR UPDATE SKIP LOCKED)
      AND current.id = owed.workspace_id AND {_STILL_OWED} AND NOT {on_hold("owed.workspace_id")} AND {LEASE_IS_OURS}
      AND NOT EXISTS (SELECT FROM reconciler.restarts AS other
                      WHERE other.workspace_id = owed.workspace_id AND other.closed_at IS NULL)
    RETURNING owed.*
)
INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, flipped_at, adopted, streak, backoff_until,
                                 watched_since, absent_sightings, absent_since, due_at, first_due_at, released)
SELECT workspace_id, instance_id, CAST(:cycle_id AS uuid), flipped_at, adopted, again.streak,
       now() + make_interval(secs => again.backoff_s), watched_since, absent_sightings, absent_since, due.at, due.at,
       :released
FROM ended JOIN again USING (id), LATERAL (
    SELECT GREATEST(now(), GREATEST(asked_at, closed_at) + make_interval(secs => {RECOVERY_SECONDS})) AS at
) AS due
RETURNING id, workspace_id::text, {short("instance_id")}
"""  # noqa: S608 - put together from constants
_KEEP_BACK = f"""
UPDATE reconciler.restarts SET kept_back_at = now()
WHERE id = ANY (ARRAY(
    SELECT owed.id FROM reconciler.restarts AS owed
    WHERE closed_at IS NULL AND due_at <= now() AND kept_back_at IS NULL AND NOT released
      AND NOT {on_hold("owed.workspace_id")}
      AND (CAST(:workspace_ids AS uuid[]) IS NULL OR workspace_id = ANY (CAST(:workspace_ids AS uuid[])))
    LIMIT {MOST_AT_ONCE} FOR UPDATE SKIP LOCKED
))
"""  # noqa: S608 - put together from constants
_RELEASE = """
UPDATE reconciler.restarts SET released = true
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts
    WHERE closed_at IS NULL AND NOT released
      AND (CAST(:workspace_ids AS uuid[]) IS NULL OR workspace_id = ANY (CAST(:workspace_ids AS uuid[])))
    FOR UPDATE SKIP LOCKED
))
"""
_LOCK_ANY = """
SELECT id FROM reconciler.restarts WHERE id = ANY (CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE SKIP LOCKED
"""
_LOCK = _LOCK_ANY.replace("ORDER BY", "AND closed_at IS NULL ORDER BY")
# A hold may have been placed since the facts were read, and the evidence may have grown old. The watch begins with the
# claim: from then on, the platform may be at work.
_CLAIM = f"""
UPDATE reconciler.restarts AS owed
SET attempts = LEAST(attempts + 1, {MOST_COUNTED}), claimed_by = CAST(:cycle_id AS uuid), asked_at = now(),
    last_answer = 'claimed', due_at = now() + make_interval(secs => :uncertain_s),
    watched_since = COALESCE(watched_since, now())
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS asked (id bigint, not_after double precision)
WHERE owed.id = asked.id AND {LEASE_IS_OURS} AND clock_timestamp() <= to_timestamp(not_after)
  AND NOT {on_hold("owed.workspace_id")} AND NOT {_STOPPED}
RETURNING owed.id
"""  # noqa: S608 - put together from constants
# A watch begins with the sight of life, so the absences before it are forgotten.
_CANCEL = """
UPDATE reconciler.restarts
SET closed_at = now(), outcome = 'cancelled',
    watched_since = CASE WHEN :watch THEN COALESCE(watched_since, now()) ELSE watched_since END,
    absent_sightings = CASE WHEN :watch THEN 0 ELSE absent_sightings END
WHERE id = ANY (CAST(:ids AS bigint[]))
"""
_PUT_OFF = """
UPDATE reconciler.restarts
SET due_at = now() + make_interval(secs => :wait_s),
    absent_sightings = CASE WHEN id = ANY (CAST(:found AS bigint[])) THEN 0 ELSE absent_sightings END
WHERE id = ANY (CAST(:ids AS bigint[]))
"""
_COUNT_ABSENCE = f"""
UPDATE reconciler.restarts
SET due_at = now(), absent_since = CASE WHEN absent_sightings > 0 THEN COALESCE(absent_since, now()) ELSE now() END,
    absent_sightings = LEAST(absent_sightings + 1, {MOST_COUNTED})
WHERE id = ANY (CAST(:ids AS bigint[]))
"""  # noqa: S608 - put together from constants
_FORGET_ABSENCES = "UPDATE reconciler.restarts SET absent_sightings = 0 WHERE id = ANY (CAST(:ids AS bigint[]))"
# An answer that settles nothing (REFUSED, BLOCKED) began no work, so it begins no watch.
# A restart that could not be asked for stays untouched if somebody has claimed it since it was read.
_RECORD_ANSWER = f"""
UPDATE reconciler.restarts
SET last_answer = :answer,
    refusals = LEAST(refusals + CASE WHEN CAST(:wait_s AS double precision) IS NULL THEN 0 ELSE 1 END, {MOST_COUNTED}),
    watched_since = CASE WHEN :watched THEN watched_since END,
    due_at = COALESCE(now() + make_interval(secs => CAST(:wait_s AS double precision)), due_at)
WHERE id = :id AND closed_at IS NULL
  AND CASE WHEN :claimed THEN claimed_by = CAST(:cycle_id AS uuid) ELSE attempts = :attempts END
"""  # noqa: S608 - put together from constants
_ACCEPT = """
UPDATE reconciler.restarts SET closed_at = now(), outcome = 'accepted'
WHERE id = :id AND closed_at IS NULL
"""
_GIVE_BACK = """
UPDATE reconciler.restarts
SET attempts = GREATEST(attempts - 1, 0), claimed_by = NULL, due_at = now(),
    asked_at = CASE WHEN attempts > 1 THEN asked_at END,
    last_answer = CASE WHEN :watched THEN 'uncertain' END,
    watched_since = CASE WHEN :watched THEN watched_since END
WHERE id = :id AND closed_at IS NULL AND claimed_by = CAST(:cycle_id AS uuid) AND last_answer = 'claimed'
"""
_STOP = "INSERT INTO reconciler.restart_stops (ends_at) VALUES (now() + make_interval(secs => :lasts_s))"
_FORGET_STOPS = f"""
DELETE FROM reconciler.restart_stops
WHERE id IN (SELECT id FROM reconciler.restart_stops WHERE NOT {_STOP_IS_ON} FOR UPDATE SKIP LOCKED)
"""  # noqa: S608 - put together from constants

Judge = Callable[[Owed, Sighting], RestartDecision]


class Restarts:
    """The restarts as one cycle sees them. `workspace_ids` narrows a method to these; None means everybody's.

    Every method raises StoreError.
    """

    def __init__(self, session: Session, cycle_id: str, lease: Lease) -> None:
        """Act for the cycle `cycle_id`, a UUID, as long as the lease is ours."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease

    def count_due(self, deadline: Deadline, *, most: int, grace_s: float, workspace_ids: Sequence[str] | None) -> int:
        """Return how many restarts may be asked for now, but no more than `most`."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            ((count,),) = transaction.run(
                _ANY_DUE, released_only=False, grace_s=grace_s, workspace_ids=_ids(workspace_ids), most=most
            )
        return int(count)

    def cancel_moved_on(self, deadline: Deadline) -> list[Restart]:
        """Cancel the open restarts whose row is gone, or is no longer offline with the dead instance; return them."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            rows = transaction.run(_CANCEL_MOVED_ON)
        return [Restart(*row) for row in rows]

    def watched(self, deadline: Deadline) -> list[Watched]:
        """Return the watched restarts, and what became of their workspaces."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            rows = transaction.run(_WATCHED)
        return [Watched(Restart(*row[:10]), *row[10:]) for row in rows]

    def note_watch(self, deadline: Deadline, *, ended: Sequence[int], up: Sequence[int], not_up: Sequence[int]) -> None:
        """Note which watches are over, and which watched workspaces are up and not up, by their restarts' ids."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_NOTE_WATCH, ended=list(ended), up=list(up), all=[*ended, *up, *not_up])

    def owe_again(
        self, deadline: Deadline, loops: Mapping[int, tuple[int, float]], *, released: bool = False
    ) -> list[Restart]:
        """Owe closed restarts once more whose instance is still dead; return the new ones.

        `loops` has, by a restart's id, the streak and the back-off in seconds of the new one. An open breaker does not
        stop `released` ones.
        """
        rows = [{"id": one, "streak": streak, "backoff_s": wait_s or None} for one, (streak, wait_s) in loops.items()]
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            again = transaction.run(_OWE_AGAIN, **self._lease.own, rows=json.dumps(rows), released=released)
        return [Restart(*row) for row in again]

    def keep_back(self, deadline: Deadline, *, workspace_ids: Sequence[str] | None) -> None:
        """Note which due restarts the open breaker keeps back."""
        self._write(deadline, _KEEP_BACK, workspace_ids)

    def release(self, deadline: Deadline, *, workspace_ids: Sequence[str] | None) -> None:
        """Have the open restarts pass an open breaker, in this cycle and in any later one."""
        self._write(deadline, _RELEASE, workspace_ids)

    def due(
        self,
        deadline: Deadline,
        *,
        refused: bool,
        limit: int,
        released_only: bool,
        fresh_s: float,
        grace_s: float,
        workspace_ids: Sequence[str] | None,
    ) -> list[Owed]:
        """Return at most `limit` restarts that may be asked for now, the longest due first.

        Either those that the platform has `refused` before, or the others. With `released_only`, only those that an
        open breaker does not stop.
        """
        with self._session.transaction(deadline, read_only=True) as transaction:
            rows = transaction.run(
                _DUE_LIST,
                refused=refused,
                most=limit,
                released_only=released_only,
                fresh_s=fresh_s,
                grace_s=grace_s,
                workspace_ids=_ids(workspace_ids),
            )
        return [_owed(row) for row in rows]

    def claim(
        self,
        deadline: Deadline,
        looked_at: Sequence[tuple[Restart, Sighting]],
        judge: Judge,
        *,
        clock: DatabaseClock,
        fresh_s: float,
        grace_s: float,
        uncertain_s: float,
        retry_s: float,
    ) -> list[RestartDecision]:
        """Decide about restarts whose instances were just probed, and carry the decisions out; return them.

        All in one transaction: lock the restarts, read their facts in a newer snapshot, let `judge` decide, write. Each
        ASK is claimed then: nobody else asks for it for `uncertain_s` seconds. What is put off is due in `retry_s`.
        """
        sightings = {restart.id: sighting for restart, sighting in looked_at}
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            self._lease.require(transaction)
            locked = [one for (one,) in transaction.run(_LOCK, ids=list(sightings))]
            rows = transaction.run(_OWED_OF, ids=locked, fresh_s=fresh_s, grace_s=grace_s)
            decisions = [judge(owed, sightings[owed.restart.id]) for owed in map(_owed, rows)]
            claimed = self._claim(transaction, decisions, sightings, clock, uncertain_s)
            self._carry_out(transaction, decisions, sightings, retry_s)
        return [
            RestartDecision(one.restart, Step.WAIT, "the evidence is too old, or a hold or a stop came between")
            if one.step is Step.ASK and one.restart.id not in claimed
            else one
            for one in decisions
        ]

    def put_off(self, deadline: Deadline, restarts: Iterable[Restart], *, wait_s: float) -> None:
        """Look at the restarts again in `wait_s` seconds, behind the others."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            locked = [one for (one,) in transaction.run(_LOCK, ids=[one.id for one in restarts])]
            transaction.run(_PUT_OFF, ids=locked, found=[], wait_s=wait_s)

    def count_absences(self, deadline: Deadline, absent: Iterable[Restart], *, found: Iterable[Restart] = ()) -> None:
        """Count one more cycle in which the instances of watched restarts were `absent`; forget it of those `found`."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            for statement, restarts in ((_COUNT_ABSENCE, absent), (_FORGET_ABSENCES, found)):
                locked = transaction.run(_LOCK_ANY, ids=[one.id for one in restarts])
                transaction.run(statement, ids=[one for (one,) in locked])

    def accepted(self, deadline: Deadline, restart: Restart) -> None:
        """Close an accepted restart. It stays watched. Needs no lease: the platform has it, whatever else happened."""
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            transaction.run(_ACCEPT, id=restart.id)

    def record_answer(
        self, deadline: Deadline, restart: Restart, answer: str, *, wait_s: float | None, claimed: bool = True
    ) -> None:
        """Record an answer that leaves the restart open: it is due again in `wait_s` seconds.

        None keeps the time that the claim set, as after an uncertain answer. Not `claimed`: it could not be asked for.
        """
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            transaction.run(
                _RECORD_ANSWER,
                id=restart.id,
                answer=str(answer),
                wait_s=wait_s,
                watched=restart.watched or wait_s is None,
                claimed=claimed,
                attempts=restart.attempts,
                cycle_id=self._cycle_id,
            )

    def give_back(self, deadline: Deadline, restart: Restart) -> None:
        """Undo the claim of a restart that was not sent to the platform after all."""
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            transaction.run(_GIVE_BACK, id=restart.id, watched=restart.watched, cycle_id=self._cycle_id)

    def stop(self, deadline: Deadline, *, lasts_s: float) -> None:
        """Have nobody ask the platform for `lasts_s` seconds; forget the stops that are over."""
        with self._session.transaction(deadline) as transaction:
            transaction.run(_STOP, lasts_s=lasts_s)
            transaction.run(_FORGET_STOPS)

    def _write(self, deadline: Deadline, query: str, workspace_ids: Sequence[str] | None) -> None:
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(query, workspace_ids=_ids(workspace_ids))

    def _claim(
        self,
        transaction: Transaction,
        decisions: Iterable[RestartDecision],
        sightings: Mapping[int, Sighting],
        clock: DatabaseClock,
        uncertain_s: float,
    ) -> set[int]:
        asked = [
            {"id": one.restart.id, "not_after": clock.at(expiry(sightings[one.restart.id]))}
            for one in decisions
            if one.step is Step.ASK
        ]
        if not asked:
            return set()
        rows = transaction.run(_CLAIM, **self._lease.own, rows=json.dumps(asked), uncertain_s=uncertain_s)
        return {one for (one,) in rows}

    @staticmethod
    def _carry_out(
        transaction: Transaction,
        decisions: Iterable[RestartDecision],
        sightings: Mapping[int, Sighting],
        retry_s: float,
    ) -> None:
        ids: dict[Step, list[int]] = {}
        for one in decisions:
            ids.setdefault(one.step, []).append(one.restart.id)
        for step, watch in ((Step.CANCEL, False), (Step.CANCEL_AND_WATCH, True)):
            if step in ids:
                transaction.run(_CANCEL, ids=ids[step], watch=watch)
        if Step.PUT_OFF in ids:
            found = [one for one in ids[Step.PUT_OFF] if sightings[one].verdict is Verdict.TRANSITION]
            transaction.run(_PUT_OFF, ids=ids[Step.PUT_OFF], found=found, wait_s=retry_s)
        if Step.NEXT_CYCLE in ids:
            transaction.run(_COUNT_ABSENCE, ids=ids[Step.NEXT_CYCLE])


def _ids(workspace_ids: Sequence[str] | None) -> list[str] | None:
    return None if workspace_ids is None else list(workspace_ids)


def _owed(row: Sequence[object]) -> Owed:
    return Owed(Restart(*row[:10]), *row[10:])  # type: ignore[arg-type]  # the driver has no types
