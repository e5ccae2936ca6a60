"""Restarts that are due: their facts, the claim, and the platform's answers.

What becomes of a restart is decided in `handler.domain.restarts`. Here its facts are read, and the steps are written.
Restarts that are looked after without being asked for are in `handler.store.watches`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from handler.deadline import Deadline
from handler.domain.evidence import DatabaseClock, expiry
from handler.domain.model import Restart, Sighting, Verdict
from handler.domain.restarts import Owed, RestartDecision, Step
from handler.domain.shards import WHOLE, Shard
from handler.store.holds import hold_ended_at, on_hold
from handler.store.lease import LEASE_IS_OURS, Lease
from handler.store.session import LOCK_WAIT_SECONDS, Session, Transaction
from handler.store.shards import in_range, range_of
from handler.store.tables import short
from handler.store.transaction import ids_or_null

# A stop lasts a day at most. One that ends later than this from now is of a clock that has jumped since.
LATEST_END_OF_STOP_SECONDS = 90_000
# No count goes further: it must never be too large for its column.
MOST_COUNTED = 1_000_000

STOP_IS_ON = f"(ends_at > now() AND ends_at <= now() + make_interval(secs => {LATEST_END_OF_STOP_SECONDS}))"
_STOPPED = f"EXISTS (SELECT FROM reconciler.restart_stops WHERE {STOP_IS_ON})"
# It has its grace after a hold, too: during maintenance, machines are stopped and started.
_DUE = f"""(due_at <= now()
    AND COALESCE({hold_ended_at("owed.workspace_id")} + make_interval(secs => :grace_s) <= now(), true))"""
RESTART = f"""owed.id, owed.workspace_id::text, {short("owed.instance_id")}, attempts, refusals, released,
       watched_since IS NOT NULL, absent_sightings,
       COALESCE(CAST(extract(epoch FROM now() - absent_since) AS double precision), 0), streak,
       {short("last_answer")}"""
_COLUMNS = len(fields(Restart))
# The comparison is the server's: an instance id that cannot be decoded is another one.
STILL_OWED = "COALESCE(current.status = 'offline' AND current.instance_id = owed.instance_id, false)"
OWED = f"""
SELECT {RESTART},
       {STILL_OWED}, {_DUE}, {on_hold("owed.workspace_id")}, COALESCE(backoff_until > now(), false), {_STOPPED},
       COALESCE(last_heartbeat_at > clock_timestamp() - make_interval(secs => :fresh_s), false)
FROM reconciler.restarts AS owed LEFT JOIN platform.workspaces AS current ON current.id = owed.workspace_id
"""  # noqa: S608 - put together from constants
_OWED_OF = f"{OWED} WHERE owed.id = ANY (CAST(:ids AS bigint[]))"
IN_SHARD = in_range("owed.workspace_id")
NAMED = f"""({IN_SHARD}
  AND (CAST(:workspace_ids AS uuid[]) IS NULL OR owed.workspace_id = ANY (CAST(:workspace_ids AS uuid[]))))"""
# Only the breaker may keep it from being asked for now. What else waits is left out, so that it takes nobody's place.
MAY_BE_ASKED = f"""{_DUE} AND COALESCE(backoff_until <= now(), true) AND NOT {on_hold("owed.workspace_id")}
  AND NOT {_STOPPED} AND {NAMED}"""
_DUE_LIST = f"""{OWED}
WHERE closed_at IS NULL AND {MAY_BE_ASKED} AND (released OR NOT :released_only) AND (refusals > 0) = :refused
ORDER BY due_at, owed.id LIMIT :most"""
_ANY_DUE = f"""
SELECT EXISTS (SELECT FROM reconciler.restarts AS owed WHERE closed_at IS NULL AND {MAY_BE_ASKED})
"""  # noqa: S608 - put together from constants

# What somebody else has locked is passed over: the next cycle sees it again.
LOCK_RESTARTS = """
SELECT id FROM reconciler.restarts WHERE id = ANY (CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE SKIP LOCKED
"""
LOCK_OPEN = LOCK_RESTARTS.replace("ORDER BY", "AND closed_at IS NULL ORDER BY")
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
CANCEL = """
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
COUNT_ABSENCE = f"""
UPDATE reconciler.restarts
SET due_at = now(), absent_since = CASE WHEN absent_sightings > 0 THEN COALESCE(absent_since, now()) ELSE now() END,
    absent_sightings = LEAST(absent_sightings + 1, {MOST_COUNTED})
WHERE id = ANY (CAST(:ids AS bigint[]))
"""  # noqa: S608 - put together from constants
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
    last_answer = :last_answer,
    watched_since = CASE WHEN :watched THEN watched_since END
WHERE id = :id AND closed_at IS NULL AND claimed_by = CAST(:cycle_id AS uuid) AND last_answer = 'claimed'
"""
_STOP = "INSERT INTO reconciler.restart_stops (ends_at) VALUES (now() + make_interval(secs => :lasts_s))"
_FORGET_STOPS = f"""
DELETE FROM reconciler.restart_stops
WHERE id IN (SELECT id FROM reconciler.restart_stops WHERE NOT {STOP_IS_ON} FOR UPDATE SKIP LOCKED)
"""  # noqa: S608 - put together from constants

Judge = Callable[[Owed, Sighting], RestartDecision]


class Restarts:
    """The due restarts, as one cycle sees them. `workspace_ids` narrows a method to these; None: all of the shard's.

    Every method raises StoreError.
    """

    def __init__(self, session: Session, cycle_id: str, lease: Lease, shard: Shard = WHOLE) -> None:
        """Act for the cycle `cycle_id`, a UUID, on a shard's restarts, as long as the lease is ours."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease
        self._range = range_of(shard)

    def any_due(self, deadline: Deadline, *, grace_s: float, workspace_ids: Sequence[str] | None) -> bool:
        """Tell whether a restart may be asked for now."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            ids = ids_or_null(workspace_ids)
            ((found,),) = transaction.run(_ANY_DUE, grace_s=grace_s, workspace_ids=ids, **self._range)
        return bool(found)

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
                workspace_ids=ids_or_null(workspace_ids),
                **self._range,
            )
        return [owed_from(row) for row in rows]

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
            locked = [one for (one,) in transaction.run(LOCK_OPEN, ids=list(sightings))]
            rows = transaction.run(_OWED_OF, ids=locked, fresh_s=fresh_s, grace_s=grace_s)
            decisions = [judge(owed, sightings[owed.restart.id]) for owed in map(owed_from, rows)]
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
            locked = [one for (one,) in transaction.run(LOCK_OPEN, ids=[one.id for one in restarts])]
            transaction.run(_PUT_OFF, ids=locked, found=[], wait_s=wait_s)

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
            transaction.run(
                _GIVE_BACK,
                id=restart.id,
                last_answer=answered_before(restart),
                watched=restart.watched,
                cycle_id=self._cycle_id,
            )

    def stop(self, deadline: Deadline, *, lasts_s: float) -> None:
        """Have nobody ask the platform for `lasts_s` seconds; forget the stops that are over."""
        with self._session.transaction(deadline) as transaction:
            transaction.run(_STOP, lasts_s=lasts_s)
            transaction.run(_FORGET_STOPS)

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
                transaction.run(CANCEL, ids=ids[step], watch=watch)
        if Step.PUT_OFF in ids:
            found = [one for one in ids[Step.PUT_OFF] if sightings[one].verdict is Verdict.TRANSITION]
            transaction.run(_PUT_OFF, ids=ids[Step.PUT_OFF], found=found, wait_s=retry_s)
        if Step.NEXT_CYCLE in ids:
            transaction.run(COUNT_ABSENCE, ids=ids[Step.NEXT_CYCLE])


def answered_before(restart: Restart) -> str | None:
    """Return the answer that stands again once a claim is given back. An older claim without one is uncertain."""
    return "uncertain" if restart.last_answer == "claimed" else restart.last_answer


def restart_and_rest(row: Sequence[Any]) -> tuple[Restart, Sequence[Any]]:
    """Return the restart with which a row begins (the columns RESTART), and the rest of the row."""
    return Restart(*row[:_COLUMNS]), row[_COLUMNS:]


def owed_from(row: Sequence[Any]) -> Owed:
    """Return the open restart in a row with the columns of OWED."""
    restart, rest = restart_and_rest(row)
    return Owed(restart, *rest)
