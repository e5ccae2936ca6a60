"""What every store does, the one in memory and the real one: lease, candidates, figures, flips, holds."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from handler.deadline import Deadline
from handler.domain.backoff import CrashLoop
from handler.domain.coverage import Coverage, Progress, Queues
from handler.domain.model import Restart, SkipReason, Verdict
from handler.domain.report import FleetGauges, Gauges
from handler.errors import LeaseLostError, RowLockedError, StoreError
from handler.store import ActiveHolds, Flipped, Store
from handler.store.lease import LONGEST_SECONDS
from tests.contract.steps import (
    CLOSE,
    FRESH_S,
    LEASE_S,
    NO_CHANGES,
    RETRY_S,
    UNCERTAIN_S,
    accepted,
    confirmed,
    decide,
    doubt,
    due,
    flip,
    flipped,
    gauges,
    hold,
    holding,
    note,
    policy,
    save,
    select,
    soon,
    step,
    the_due,
)
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

NOTHING_PLANNED = Gauges(0, 0, 0, 0, 0.0, 0.0, 0, 0.0)

# --- the lease ---


def test_one_cycle_has_the_lease_until_it_is_released(subject: Subject) -> None:
    first, second = subject.store(0), subject.store(1)
    assert first.lease.acquire(soon(), lasts_s=LEASE_S)
    assert not second.lease.acquire(soon(), lasts_s=LEASE_S)
    assert first.lease.acquire(soon(), lasts_s=LEASE_S)
    second.lease.release(soon())
    assert not second.lease.acquire(soon(), lasts_s=LEASE_S)
    first.lease.release(soon())
    assert second.lease.acquire(soon(), lasts_s=LEASE_S)


def test_the_lease_lasts_longer_than_requested_by_its_margin(subject: Subject) -> None:
    holding(subject, 0)
    subject.age(LEASE_S + 0.5)
    assert not subject.store(1).lease.acquire(soon(), lasts_s=LEASE_S)
    subject.age(1.0)
    assert subject.store(1).lease.acquire(soon(), lasts_s=LEASE_S)


def test_a_lease_that_ends_later_than_any_cycle_is_taken_for_free(subject: Subject) -> None:
    """The database's clock was wrong when it was taken, or is now."""
    assert subject.store(0).lease.acquire(soon(), lasts_s=LEASE_S)
    subject.age(LEASE_S - LONGEST_SECONDS + 10)
    assert not subject.store(1).lease.acquire(soon(), lasts_s=LEASE_S)
    subject.age(-10)
    assert subject.store(1).lease.acquire(soon(), lasts_s=LEASE_S)


def test_a_lease_that_somebody_has_locked_is_not_waited_for(subject: Subject) -> None:
    store = holding(subject)
    with subject.locked_own("lease"):
        assert not store.lease.acquire(soon(), lasts_s=LEASE_S)
        with pytest.raises(RowLockedError):
            store.lease.release(soon())
    assert not subject.store(1).lease.acquire(soon(), lasts_s=LEASE_S)


WITH_THE_LEASE: dict[str, Callable[[Store, Restart], object]] = {
    "tend": lambda store, _: store.doubts.tend(soon()),
    "save": lambda store, _: save(store, doubt(2)),
    "set_reasons": lambda store, _: store.doubts.set_reasons(soon(), {uuid(2): "why"}),
    "save_coverage": lambda store, _: store.memory.save_coverage(soon(), Progress(Coverage(), completed_pass=True)),
    "purge": lambda store, _: store.memory.purge(soon()),
    "take_back_times": lambda store, _: store.memory.take_back_times(soon(), longest_wait_s=900.0),
    "cancel_moved_on": lambda store, _: store.watches.cancel_moved_on(soon()),
    "note_watch": lambda store, restart: note(store, up=[restart.id]),
    "keep_back": lambda store, _: store.watches.keep_back(soon(), grace_s=0.0, workspace_ids=None),
    "look_at_kept_back": lambda store, restart: store.watches.look_at_kept_back(
        soon(), running=[restart], found=[], others=[]
    ),
    "release": lambda store, _: store.watches.release(soon(), workspace_ids=None),
    "claim": decide,
    "put_off": lambda store, restart: store.restarts.put_off(soon(), [restart], wait_s=RETRY_S),
    "count_absences": lambda store, restart: store.watches.count_absences(soon(), [restart]),
}


@pytest.mark.parametrize("call", WITH_THE_LEASE)
@pytest.mark.parametrize("lost_to", ["nobody", "another cycle"])
def test_a_cycle_that_has_lost_its_lease_changes_nothing(subject: Subject, call: str, lost_to: str) -> None:
    store = flipped(subject)
    restart, before = _without_lease(subject, store, lost_to)
    with pytest.raises(LeaseLostError):
        WITH_THE_LEASE[call](store, restart)
    assert _everything(subject) == before


@pytest.mark.parametrize("lost_to", ["nobody", "another cycle"])
def test_a_cycle_that_has_lost_its_lease_flips_nothing(subject: Subject, lost_to: str) -> None:
    store = flipped(subject)
    subject.add(uuid(2), instance(2))
    _, before = _without_lease(subject, store, lost_to)
    assert flip(store, 2) is SkipReason.OUT_OF_TIME
    assert _everything(subject) == before


def test_a_cycle_that_has_lost_its_lease_owes_nothing_again(subject: Subject) -> None:
    store = flipped(subject)
    restart = accepted(store)
    subject.age(LEASE_S + 2)
    before = _everything(subject)
    assert store.watches.owe_again(soon(), {restart.id: (0, 0.0)}) == []
    assert _everything(subject) == before


def _without_lease(subject: Subject, store: Store, lost_to: str) -> tuple[Restart, object]:
    """Have the lease run out; return the restart that is due, and all that there is."""
    restart = the_due(store)
    subject.age(LEASE_S + 2)
    if lost_to == "another cycle":
        holding(subject, 1)
    return restart, _everything(subject)


def _everything(subject: Subject) -> object:
    return subject.rows(), subject.events(), subject.restarts(), subject.more(), subject.doubts()


def test_answers_are_recorded_with_or_without_the_lease(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    assert step(store, restart) == "ask"
    subject.age(LEASE_S + 2)
    store.restarts.record_answer(soon(), restart, "refused", wait_s=RETRY_S)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 1, "refused", None, 0)]
    store.restarts.accepted(soon(), restart)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 1, "refused", "accepted", 0)]


IN_TIME: dict[str, Callable[[Store, Restart, Deadline], object]] = {
    "check_rights": lambda store, _, late: store.check_rights(late, to_apply=True),
    "acquire": lambda store, _, late: store.lease.acquire(late, lasts_s=LEASE_S),
    "release": lambda store, _, late: store.lease.release(late),
    "select": lambda store, _, late: store.candidates.select(late, limit=1, workspace_ids=None),
    "tend": lambda store, _, late: store.doubts.tend(late),
    "recall": lambda store, _, late: store.doubts.recall(late, breaker_window_s=600),
    "save": lambda store, _, late: store.doubts.save(late, NO_CHANGES),
    "set_reasons": lambda store, _, late: store.doubts.set_reasons(late, {uuid(1): "why"}),
    "save_coverage": lambda store, _, late: store.memory.save_coverage(late, Progress(Coverage(), completed_pass=True)),
    "take_back_times": lambda store, _, late: store.memory.take_back_times(late, longest_wait_s=900.0),
    "gauges": lambda store, _, late: store.gauges(late),
    "fleet_gauges": lambda store, _, late: store.fleet_gauges(late),
    "flip": lambda store, restart, late: store.flips.flip(
        late, [confirmed(restart.as_candidate())], policy(select(store))
    ),
    "would_flip": lambda store, restart, late: store.flips.would_flip(
        late, [confirmed(restart.as_candidate())], policy(select(store))
    ),
    "any_due": lambda store, _, late: store.restarts.any_due(late, grace_s=0.0, workspace_ids=None),
    "cancel_moved_on": lambda store, _, late: store.watches.cancel_moved_on(late),
    "watched": lambda store, _, late: store.watches.watched(late),
    "note_watch": lambda store, restart, late: store.watches.note_watch(late, ended=[restart.id], up=[], not_up=[]),
    "owe_again": lambda store, restart, late: store.watches.owe_again(late, {restart.id: (0, 0.0)}),
    "keep_back": lambda store, _, late: store.watches.keep_back(late, grace_s=0.0, workspace_ids=None),
    "kept_back": lambda store, _, late: store.watches.kept_back(late, workspace_ids=None),
    "look_at_kept_back": lambda store, restart, late: store.watches.look_at_kept_back(
        late, running=[restart], found=[], others=[]
    ),
    "release the restarts": lambda store, _, late: store.watches.release(late, workspace_ids=None),
    "due": lambda store, _, late: store.restarts.due(
        late, refused=False, limit=1, released_only=False, fresh_s=0.0, grace_s=0.0, workspace_ids=None
    ),
    "accepted": lambda store, restart, late: store.restarts.accepted(late, restart),
    "put_off": lambda store, restart, late: store.restarts.put_off(late, [restart], wait_s=RETRY_S),
    "count_absences": lambda store, restart, late: store.watches.count_absences(late, [restart]),
    "give_back": lambda store, restart, late: store.restarts.give_back(late, restart),
    "stop": lambda store, _, late: store.restarts.stop(late, lasts_s=RETRY_S),
    "record_answer": lambda store, restart, late: store.restarts.record_answer(
        late, restart, "refused", wait_s=RETRY_S
    ),
}


@pytest.mark.parametrize("call", IN_TIME)
def test_nothing_begins_without_time_left(subject: Subject, call: str) -> None:
    store = flipped(subject)
    restart, before = the_due(store), _everything(subject)
    with pytest.raises(StoreError):
        IN_TIME[call](store, restart, Deadline(0))
    assert _everything(subject) == before


# --- the candidates ---

STATUSES = (
    *("provisioning", "online", "offline", "degraded", "failed"),
    *("removed", "paused", "hibernated", "hibernating", "awaiting_agent"),
)


def test_the_candidates_are_those_with_an_instance_of_ours_that_should_be_up(subject: Subject) -> None:
    for number, status in enumerate(STATUSES, 1):
        subject.add(uuid(number), instance(number), status=status)
    subject.add(uuid(20), None)
    subject.add(uuid(21), "")
    subject.add(uuid(22), instance(22), runtime="external")
    subject.add(uuid(23), instance(23), runtime=None)
    subject.add(uuid(24), instance(24), heartbeat_age_s=None)
    subject.add(uuid(25), instance(25))
    hold(subject.store(), 25)
    found = {one.id: one for one in select(subject.store()).workspaces}
    assert list(found) == [uuid(2), uuid(4), uuid(23), uuid(24), uuid(25)]
    assert found[uuid(2)].instance_id == instance(2)
    assert found[uuid(2)].last_heartbeat_at is not None
    assert found[uuid(24)].last_heartbeat_at is None
    assert [one.on_hold for one in found.values()] == [False] * 4 + [True]
    assert not any(one.offline for one in found.values())


def test_the_candidates_come_in_the_order_that_the_last_cycle_left(subject: Subject) -> None:
    for number in range(1, 7):
        subject.add(uuid(number), instance(number))
    store = holding(subject)
    coverage = Coverage(cursor=uuid(3), pass_start=uuid(2), brought_forward=(uuid(6), uuid(2), uuid(99)))
    store.memory.save_coverage(soon(), Progress(coverage, completed_pass=False))
    selection = select(store, 4)
    assert [one.id for one in selection.workspaces] == [uuid(4), uuid(6), uuid(5), uuid(2)]
    assert (selection.all_selected, selection.coverage) == (False, coverage)
    assert selection.queues == Queues([uuid(4), uuid(5), uuid(6), uuid(1), uuid(2)], [uuid(6), uuid(2)])
    narrowed = select(store, 4, [uuid(1), uuid(5), uuid(99)])
    assert [one.id for one in narrowed.workspaces] == [uuid(5), uuid(1)]
    assert narrowed.all_selected


def test_coverage_that_somebody_has_locked_is_not_waited_for(subject: Subject) -> None:
    store = holding(subject)
    store.memory.take_up(soon())
    with subject.locked_own("shard_coverage"):
        with pytest.raises(RowLockedError):
            store.memory.save_coverage(soon(), Progress(Coverage(uuid(1)), completed_pass=True))
        with pytest.raises(RowLockedError):
            store.memory.take_up(soon())
    assert select(store).coverage == Coverage()


# --- figures ---


def test_what_is_open_and_how_old_it_is(subject: Subject) -> None:
    store = holding(subject)
    assert gauges(store) == NOTHING_PLANNED
    store.memory.save_coverage(soon(), Progress(Coverage(), completed_pass=False))
    subject.age(50)
    assert gauges(store).coverage_age_s == pytest.approx(50, abs=CLOSE)
    store = flipped(subject, 1, 2, 3, 4, 5)
    store.memory.save_coverage(soon(), Progress(Coverage(), completed_pass=True))
    blocked = the_due(store, 2)
    decide(store, blocked)
    store.restarts.record_answer(soon(), blocked, "blocked", wait_s=RETRY_S)
    accepted(store, 3)
    recovered = accepted(store, 4)
    hold(store, 5, lasts_s=10_000)
    note(store, up=[recovered.id])
    subject.age(901)
    now = gauges(store)
    assert replace(now, oldest_restart_age_s=0.0, coverage_age_s=0.0) == Gauges(3, 1, 0, 1, 0.0, 0.0, 1, 0.0)
    assert now.oldest_restart_age_s == pytest.approx(901, abs=CLOSE)
    assert now.coverage_age_s == pytest.approx(901, abs=CLOSE)


def test_a_restarts_age_counts_from_when_it_was_first_due(subject: Subject) -> None:
    store = flipped(subject, grace_s=180.0)
    assert gauges(store).oldest_restart_age_s == 0.0
    subject.age(200)
    assert gauges(store).oldest_restart_age_s == pytest.approx(20, abs=CLOSE)


def test_the_oldest_doubts_age_leaves_out_holds_and_counts_from_their_end(subject: Subject) -> None:
    for number in (1, 2):
        subject.add(uuid(number), instance(number))
    store = holding(subject)
    save(store, doubt(1), doubt(2))
    hold(store, 1)
    hold(store, 2, lasts_s=30)
    subject.age(50)
    assert gauges(store).oldest_doubt_s == pytest.approx(20, abs=CLOSE)
    subject.age(60)
    assert gauges(store).oldest_doubt_s == pytest.approx(80, abs=CLOSE)


def test_rows_without_an_instance_and_rows_that_nobody_brings_back_are_counted(subject: Subject) -> None:
    subject.add(uuid(1), None)
    subject.add(uuid(2), "", status="degraded")
    subject.add(uuid(3), None, runtime="external")
    subject.add(uuid(4), None, status="paused")
    subject.add(uuid(5), instance(5), status="offline", updated_age_s=1000.0)
    subject.add(uuid(6), instance(6), status="offline", updated_age_s=800.0)
    subject.add(uuid(7), instance(7), status="offline", updated_age_s=1000.0, runtime="external")
    subject.add(uuid(8), None, status="offline", updated_age_s=1000.0)
    assert subject.store().fleet_gauges(soon()) == FleetGauges(unrecorded=2, offline_unowed=1)


# --- the flip ---

LATER: dict[str, tuple[Callable[[Subject], object], SkipReason | None]] = {
    "nothing": (lambda _: None, None),
    "it degrades": (lambda subject: subject.update(uuid(1), status="degraded"), None),
    "its runtime changes": (lambda subject: subject.update(uuid(1), runtime="crewai"), None),
    "it has no runtime": (lambda subject: subject.update(uuid(1), runtime=None), None),
    "the row is gone": (lambda subject: subject.delete(uuid(1)), SkipReason.ROW_GONE),
    "it is paused": (lambda subject: subject.update(uuid(1), status="paused"), SkipReason.STATUS_MOVED),
    "it is offline": (lambda subject: subject.update(uuid(1), status="offline"), SkipReason.STATUS_MOVED),
    "it has no status": (lambda subject: subject.update(uuid(1), status=None), SkipReason.STATUS_MOVED),
    "it is external": (lambda subject: subject.update(uuid(1), runtime="external"), SkipReason.STATUS_MOVED),
    "it is on hold": (
        lambda subject: hold(subject.store(), 1),
        SkipReason.ON_HOLD,
    ),
    "the instance is cleared": (
        lambda subject: subject.update(uuid(1), instance_id=None),
        SkipReason.INSTANCE_CLEARED,
    ),
    "the instance is emptied": (lambda subject: subject.update(uuid(1), instance_id=""), SkipReason.INSTANCE_CLEARED),
    "another instance": (
        lambda subject: subject.update(uuid(1), instance_id=instance(9)),
        SkipReason.INSTANCE_CHANGED,
    ),
    "a heartbeat": (lambda subject: subject.heartbeat(uuid(1), age_s=0), SkipReason.FRESH_HEARTBEAT),
    "a heartbeat that began earlier": (
        lambda subject: subject.heartbeat(uuid(1), age_s=200),
        SkipReason.FRESH_HEARTBEAT,
    ),
    "an older heartbeat": (lambda subject: subject.heartbeat(uuid(1), age_s=900), SkipReason.FRESH_HEARTBEAT),
    "no heartbeat any more": (
        lambda subject: subject.update(uuid(1), last_heartbeat_at=None),
        SkipReason.FRESH_HEARTBEAT,
    ),
}


@pytest.mark.parametrize("later", LATER)
def test_a_flip_writes_all_or_nothing_depending_on_the_row(subject: Subject, later: str) -> None:
    happen, reason = LATER[later]
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    selection = select(store)
    terms, seen = policy(selection), [confirmed(selection.workspaces[0])]
    happen(subject)
    before = subject.rows()
    expected = {uuid(1): reason or Flipped(CrashLoop(0, 0.0))}
    assert store.flips.would_flip(soon(), seen, terms) == expected
    assert (subject.rows(), subject.events(), subject.restarts()) == (before, [], [])
    assert store.flips.flip(soon(), seen, terms) == expected
    if reason:
        assert (subject.rows(), subject.events(), subject.restarts()) == (before, [], [])
    else:
        assert subject.rows() == {uuid(1): ("offline", instance(1))}
        assert subject.events() == [(uuid(1), instance(1))]
        assert subject.restarts() == [(1, uuid(1), instance(1), 0, 0, None, None, 0)]


def test_each_workspace_of_a_set_is_flipped_or_not_for_itself(subject: Subject) -> None:
    for number in range(1, 7):
        subject.add(uuid(number), instance(number))
    store = holding(subject)
    selection = select(store)
    old = [confirmed(selection.workspaces[0], age_s=6.0)]
    seen = old + [confirmed(one) for one in selection.workspaces[1:]]
    subject.update(uuid(2), status="paused")
    subject.delete(uuid(3))
    hold(store, 4)
    with subject.locked(uuid(5)):
        outcomes = store.flips.flip(soon(), seen, policy(selection))
    assert outcomes == {
        uuid(1): SkipReason.OUT_OF_TIME,
        uuid(2): SkipReason.STATUS_MOVED,
        uuid(3): SkipReason.ROW_GONE,
        uuid(4): SkipReason.ON_HOLD,
        uuid(5): SkipReason.ROW_LOCKED,
        uuid(6): Flipped(CrashLoop(0, 0.0)),
    }
    assert subject.events() == [(uuid(6), instance(6))]
    assert [one[1] for one in subject.restarts()] == [uuid(6)]


@pytest.mark.parametrize(("age_s", "in_time"), [(0.0, True), (4.0, True), (5.5, False)])
def test_evidence_expires_after_five_seconds_by_the_databases_clock(
    subject: Subject, age_s: float, in_time: bool
) -> None:
    subject.add(uuid(1), instance(1))
    assert isinstance(flip(holding(subject), age_s=age_s), Flipped) is in_time


@pytest.mark.parametrize(("age_s", "fresh_s", "vetoed"), [(30, 60, True), (90, 60, False), (30, 0, False)])
def test_a_young_heartbeat_vetoes_even_if_the_select_saw_it(
    subject: Subject, age_s: float, fresh_s: float, vetoed: bool
) -> None:
    subject.add(uuid(1), instance(1), heartbeat_age_s=age_s)
    store = holding(subject)
    selection = select(store)
    outcomes = store.flips.flip(soon(), [confirmed(selection.workspaces[0])], policy(selection, fresh_s=fresh_s))
    assert (outcomes[uuid(1)] is SkipReason.FRESH_HEARTBEAT) is vetoed


def test_a_locked_row_is_not_waited_for(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    with subject.locked(uuid(1)):
        assert flip(store) is SkipReason.ROW_LOCKED
        assert (subject.rows(), subject.restarts()) == ({uuid(1): ("online", instance(1))}, [])
    assert isinstance(flip(store), Flipped)


@pytest.mark.parametrize("watched", [False, True], ids=["open", "watched"])
def test_a_lock_on_the_older_restart_costs_its_workspace_alone(subject: Subject, watched: bool) -> None:
    store = flipped(subject, 1)
    if watched:
        accepted(store)
    subject.update(uuid(1), status="online")
    subject.add(uuid(2), instance(2))
    selection = select(store)
    with subject.locked_own("restarts"):
        outcomes = store.flips.flip(soon(), [confirmed(one) for one in selection.workspaces], policy(selection))
    assert outcomes == {uuid(1): SkipReason.ROW_LOCKED, uuid(2): Flipped(CrashLoop(0, 0.0))}
    assert isinstance(flip(store), Flipped)


def test_a_lock_on_a_doubt_keeps_the_doubt_and_no_more(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    save(store, doubt(kind=Verdict.DEAD))
    with subject.locked_own("doubts"):
        assert isinstance(flip(store), Flipped)
    assert len(subject.doubts()) == 1


def test_a_flip_ends_the_workspaces_doubts(subject: Subject) -> None:
    for number in (1, 2):
        subject.add(uuid(number), instance(number))
    store = holding(subject)
    save(store, doubt(1, Verdict.DEAD), doubt(1, Verdict.UNKNOWN), doubt(2))
    flip(store)
    assert [one[:2] for one in subject.doubts()] == [(uuid(2), Verdict.ABSENT)]


def test_a_flip_cancels_the_older_restart_and_waits_as_long_as_its_request_may_take(subject: Subject) -> None:
    store = flipped(subject)
    older = the_due(store)
    assert step(store, older) == "ask"
    subject.update(uuid(1), status="online")
    outcome = flip(store)
    assert isinstance(outcome, Flipped)
    assert outcome.superseded == Restart(1, uuid(1), instance(1), 1)
    assert [restart[6] for restart in subject.restarts()] == ["cancelled", None]
    assert due(store) == []
    subject.age(UNCERTAIN_S + 1)
    assert [owed.restart.id for owed in due(store)] == [2]
    assert due(store)[0].restart.watched


def test_a_flip_of_another_instance_does_not_wait_and_is_not_watched_for_the_first_one(subject: Subject) -> None:
    store = flipped(subject)
    accepted(store)
    subject.update(uuid(1), status="online", instance_id=instance(2))
    flip(store)
    (owed,) = due(store)
    assert (owed.restart.instance_id, owed.restart.watched) == (instance(2), False)
    assert store.watches.watched(soon()) == []


def test_a_flips_restart_is_released_if_the_breaker_was_overridden(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    flip(store, released=True)
    assert due(store, released_only=True) == due(store)
    assert len(due(store)) == 1


@pytest.mark.parametrize(("state", "sightings"), [("not_found", 2), ("terminated", 0)])
def test_the_restart_of_an_absent_instance_goes_on_with_its_sightings(
    subject: Subject, state: str, sightings: int
) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    save(store, doubt())
    subject.age(30)
    save(store := holding(subject), doubt())
    flip(store, state=state)
    restart = the_due(store)
    assert restart.absent_sightings == sightings
    assert restart.absent_s == pytest.approx(30 if sightings else 0, abs=CLOSE)


def test_restarts_in_a_row_wait_longer_each_time_until_a_healthy_stretch(
    subject: Subject,
) -> None:
    subject.add(uuid(1), instance(1))
    loops, last = [], 0
    for number in range(1, 6):
        outcome = flip(holding(subject))
        assert isinstance(outcome, Flipped)
        loops.append(outcome.crash_loop)
        subject.age(outcome.crash_loop.backoff_s + 1)
        last = accepted(holding(subject)).id
        subject.update(uuid(1), status="online", instance_id=instance(number + 1))
    assert loops == [CrashLoop(0, 0.0), CrashLoop(1, 0.0), CrashLoop(2, 0.0), CrashLoop(3, 300.0), CrashLoop(4, 600.0)]
    assert [restart[-1] for restart in subject.restarts()] == [0, 1, 2, 3, 4]
    note(holding(subject), up=[last])
    subject.age(3601)
    assert flip(holding(subject)) == Flipped(CrashLoop(0, 0.0))


@pytest.mark.parametrize(("then_up", "streak"), [(True, 1), (False, 1)])
def test_health_counts_from_when_a_cycle_saw_the_workspace_up_and_only_as_long_as_it_was(
    subject: Subject, then_up: bool, streak: int
) -> None:
    store = flipped(subject)
    restart = accepted(store)
    subject.age(3000)
    note(holding(subject), up=[restart.id])
    subject.age(3000)
    if not then_up:
        note(holding(subject), not_up=[restart.id])
        subject.age(3000)
    subject.update(uuid(1), status="online")
    assert flip(holding(subject)) == Flipped(CrashLoop(streak, 0.0))


def test_a_restart_that_was_never_asked_for_does_not_count(subject: Subject) -> None:
    store = flipped(subject)
    subject.update(uuid(1), status="online")
    store.watches.cancel_moved_on(soon())
    assert flip(store) == Flipped(CrashLoop(0, 0.0))


# --- the holds ---


def test_a_hold_keeps_its_restart_from_being_asked_for_until_its_grace_is_over(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    active = hold(store, 1, reason="maintenance")
    (shown,) = active.holds
    assert (shown.workspace_id, shown.reason, shown.ends_at[10], shown.ends_at[-1]) == (
        *(uuid(1), "maintenance"),
        *("T", "Z"),
    )
    assert (active.singly, active.on_everything) == (1, False)
    assert (step(store, restart), due(store), gauges(store).on_hold) == ("wait", [], 1)
    subject.age(101)
    store = holding(subject)
    assert (store.holds.active(soon(), most=9), gauges(store).on_hold) == (ActiveHolds([]), 0)
    assert due(store, grace_s=180.0) == []
    assert not store.restarts.any_due(soon(), grace_s=180.0, workspace_ids=None)
    decision = decide(store, restart, grace_s=180.0)
    assert decision is not None
    assert (decision.step, decision.reason) == ("wait", "not due yet")
    subject.age(180)
    assert the_due(store) == restart


@pytest.mark.parametrize("answer", ["refused", "uncertain"])
def test_a_hold_gives_its_restart_a_grace_though_it_was_asked_for_before(subject: Subject, answer: str) -> None:
    """The hold is for maintenance, which stops and starts machines, whatever the platform said before."""
    store = flipped(subject)
    restart = the_due(store)
    decide(store, restart)
    store.restarts.record_answer(soon(), restart, answer, wait_s=RETRY_S if answer == "refused" else None)
    hold(store, 1, lasts_s=2 * UNCERTAIN_S)
    subject.age(2 * UNCERTAIN_S + 1)
    assert (due(store, grace_s=180.0), len(due(store))) == ([], 1)
    subject.age(180)
    assert len(due(store, grace_s=180.0)) == 1


def test_what_ended_long_ago_is_purged_but_nothing_that_is_watched(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    accepted(store, 1)
    accepted(store, 2)
    note(store, ended=[2])
    hold(store, 1)
    subject.age(20 * 86_400)
    holding(subject).memory.purge(soon())
    assert [one[0] for one in subject.restarts()] == [1, 2]
    subject.age(31 * 86_400)
    holding(subject).memory.purge(soon())
    assert [one[0] for one in subject.restarts()] == [1]


def test_a_restart_that_is_claimed_is_in_flight(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    assert store.holds.in_flight(soon(), None, locked=True) == []
    decide(store, restart)
    for whose, found in ((None, [uuid(1)]), ([uuid(1)], [uuid(1)]), ([uuid(2)], [])):
        assert store.holds.in_flight(soon(), whose, locked=True) == found
        assert store.holds.in_flight(soon(), whose, locked=False) == found


def test_the_age_of_a_restart_counts_from_the_end_of_its_hold(subject: Subject) -> None:
    store = flipped(subject)
    hold(store, 1)
    subject.age(150)
    store = holding(subject)
    store.memory.purge(soon())
    assert gauges(store).oldest_restart_age_s == pytest.approx(50, abs=CLOSE)


def test_a_release_ends_a_crash_loops_back_off(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    for number in range(1, 4):
        flip(store)
        accepted(store)
        subject.update(uuid(1), status="online", instance_id=instance(number + 1))
    assert flip(store) == Flipped(CrashLoop(3, 300.0))
    assert (due(store), gauges(store).restarts_backing_off) == ([], 1)
    restart = Restart(4, uuid(1), instance(4), streak=3)
    assert step(store, restart) == "wait"
    store.holds.release(soon(), [uuid(1)], most=9)
    assert (the_due(store), gauges(store).restarts_backing_off) == (replace(restart, streak=0), 0)
    assert [one[-1] for one in subject.restarts()] == [0, 0, 0, 0]


def test_a_young_heartbeat_is_told_of_a_due_restart(subject: Subject) -> None:
    store = flipped(subject)
    subject.heartbeat(uuid(1), age_s=FRESH_S - 20)
    assert [owed.heartbeat for owed in due(store)] == [True]
    subject.heartbeat(uuid(1), age_s=FRESH_S + 20)
    assert [owed.heartbeat for owed in due(store)] == [False]
