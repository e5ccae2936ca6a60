"""What every store does: the simulation's in memory, and the real one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from handler.deadline import Deadline
from handler.domain.backoff import CrashLoop
from handler.domain.coverage import Coverage, Progress, Queues
from handler.domain.decide import Absence
from handler.domain.model import Restart, Sighting, SkipReason, Workspace, sighting_of
from handler.domain.policy import CrashLoopPolicy
from handler.domain.report import Gauges
from handler.errors import LeaseLostError, RequestError, RowLockedError, StoreError
from handler.store import Claim, Flipped, FlipPolicy, Store
from handler.store.lease import LONGEST_SECONDS
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

LEASE_S, UNCERTAIN_S, RETRY_S, FRESH_S = 45.5, 300.0, 60.0, 60.0
LOOP = CrashLoopPolicy(backoff_s=300, reset_s=3600)
CLOSE = 5.0  # seconds by which an age may be off, because real time passes
NOTHING_PLANNED = Gauges(0, 0, 0, 0, 0.0, 0.0, 0)


def soon() -> Deadline:
    return Deadline(10)


def holding(subject: Subject, cycle: int = 0) -> Store:
    """Return the store of a cycle that has the lease."""
    store = subject.store(cycle)
    assert store.lease.acquire(soon(), lasts_s=LEASE_S)
    return store


def selected(store: Store, limit: int = 100, workspace_ids: list[str] | None = None) -> list[Workspace]:
    return store.candidates.select(soon(), limit=limit, workspace_ids=workspace_ids).workspaces


def flip(store: Store, number: int = 1, *, loop: CrashLoopPolicy = LOOP) -> Flipped | SkipReason:
    """Select and flip a workspace at once."""
    selection = store.candidates.select(soon(), limit=100, workspace_ids=[uuid(number)])
    terms = FlipPolicy(selection.selected_at, 60.0, loop)
    return store.flips.flip(soon(), sighting_of(selection.workspaces[0], "stopped"), terms)


def flipped(subject: Subject, number: int = 1) -> Store:
    """Return the store of a cycle that has just flipped a workspace."""
    subject.add(uuid(number), instance(number))
    store = holding(subject)
    assert isinstance(flip(store, number), Flipped)
    return store


def due(store: Store, *, own_only: bool = False) -> list[Restart]:
    return store.restarts.due(soon(), limit=100, own_only=own_only)


def claim(store: Store, restart: Restart) -> Claim:
    return store.restarts.claim(soon(), restart, uncertain_s=UNCERTAIN_S, heartbeat_fresh_s=FRESH_S)


def gauges(store: Store) -> Gauges:
    return store.gauges(soon())


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


WITH_THE_LEASE: dict[str, Callable[[Store, Restart], object]] = {
    "remember_absences": lambda store, _: store.memory.remember_absences(soon(), [], []),
    "save_coverage": lambda store, _: store.memory.save_coverage(soon(), Progress(Coverage(), completed_pass=True)),
    "purge": lambda store, _: store.memory.purge(soon()),
    "flip": lambda store, _: flip(store, 2),
    "cancel_moved_on": lambda store, _: store.restarts.cancel_moved_on(soon(), own_only=False),
    "claim": claim,
    "cancelled": lambda store, restart: store.restarts.cancel(soon(), restart),
    "put_off": lambda store, restart: store.restarts.put_off(soon(), [restart], wait_s=RETRY_S),
}


@pytest.mark.parametrize("call", WITH_THE_LEASE)
@pytest.mark.parametrize("lost_to", ["nobody", "another cycle"])
def test_a_cycle_that_has_lost_its_lease_changes_nothing(subject: Subject, call: str, lost_to: str) -> None:
    store = flipped(subject)
    subject.add(uuid(2), instance(2))
    (restart,) = due(store)
    before = subject.rows(), subject.events(), subject.restarts()
    subject.age(LEASE_S + 2)
    if lost_to == "another cycle":
        holding(subject, 1)
    with pytest.raises(LeaseLostError):
        WITH_THE_LEASE[call](store, restart)
    assert (subject.rows(), subject.events(), subject.restarts()) == before


def test_answers_are_recorded_with_or_without_the_lease(subject: Subject) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    assert claim(store, restart) is Claim.CLAIMED
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
    "recall": lambda store, _, late: store.memory.recall(late, breaker_window_s=600),
    "remember_absences": lambda store, _, late: store.memory.remember_absences(late, [], []),
    "save_coverage": lambda store, _, late: store.memory.save_coverage(late, Progress(Coverage(), completed_pass=True)),
    "gauges": lambda store, _, late: store.gauges(late),
    "flip": lambda store, restart, late: store.flips.flip(late, _stopped(restart), FlipPolicy("", 60, LOOP)),
    "would_flip": lambda store, restart, late: store.flips.would_flip(
        late, _stopped(restart), FlipPolicy("", 60, LOOP)
    ),
    "cancel_moved_on": lambda store, _, late: store.restarts.cancel_moved_on(late, own_only=False),
    "due": lambda store, _, late: store.restarts.due(late, limit=1, own_only=False),
    "claim": lambda store, restart, late: store.restarts.claim(
        late, restart, uncertain_s=UNCERTAIN_S, heartbeat_fresh_s=FRESH_S
    ),
    "cancelled": lambda store, restart, late: store.restarts.cancel(late, restart),
    "accepted": lambda store, restart, late: store.restarts.accepted(late, restart),
    "put_off": lambda store, restart, late: store.restarts.put_off(late, [restart], wait_s=RETRY_S),
    "stop": lambda store, _, late: store.restarts.stop(late, lasts_s=RETRY_S),
    "record_answer": lambda store, restart, late: store.restarts.record_answer(
        late, restart, "refused", wait_s=RETRY_S
    ),
    "active": lambda store, _, late: store.holds.active(late),
    "place": lambda store, restart, late: store.holds.place(late, [restart.workspace_id], reason="why", lasts_s=9),
    "release a hold": lambda store, restart, late: store.holds.release(late, [restart.workspace_id]),
}


def _stopped(restart: Restart) -> Sighting:
    return sighting_of(restart.as_candidate(), "stopped")


@pytest.mark.parametrize("call", IN_TIME)
def test_nothing_begins_without_time_left(subject: Subject, call: str) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    before = subject.rows(), subject.events(), subject.restarts()
    with pytest.raises(StoreError):
        IN_TIME[call](store, restart, Deadline(0))
    assert (subject.rows(), subject.events(), subject.restarts()) == before


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
    subject.store().holds.place(soon(), [uuid(25)], reason="why", lasts_s=100)
    found = {one.id: one for one in selected(subject.store())}
    assert list(found) == [uuid(2), uuid(4), uuid(23), uuid(24)]
    assert found[uuid(2)].instance_id == instance(2)
    assert found[uuid(2)].last_heartbeat_at is not None
    assert found[uuid(24)].last_heartbeat_at is None


def test_the_candidates_come_in_the_order_that_the_last_cycle_left(subject: Subject) -> None:
    for number in range(1, 7):
        subject.add(uuid(number), instance(number))
    store = holding(subject)
    coverage = Coverage(cursor=uuid(3), pass_start=uuid(2), brought_forward=(uuid(6), uuid(2), uuid(99)))
    store.memory.save_coverage(soon(), Progress(coverage, completed_pass=False))
    selection = store.candidates.select(soon(), limit=4, workspace_ids=None)
    assert [one.id for one in selection.workspaces] == [uuid(4), uuid(6), uuid(5), uuid(2)]
    assert (selection.all_selected, selection.coverage) == (False, coverage)
    assert selection.queues == Queues([uuid(4), uuid(5), uuid(6), uuid(1), uuid(2)], [uuid(6), uuid(2)])
    narrowed = store.candidates.select(soon(), limit=4, workspace_ids=[uuid(1), uuid(5), uuid(99)])
    assert [one.id for one in narrowed.workspaces] == [uuid(5), uuid(1)]
    assert narrowed.all_selected


def test_what_is_open_and_how_old_it_is(subject: Subject) -> None:
    store = holding(subject)
    assert gauges(store) == NOTHING_PLANNED
    store.memory.save_coverage(soon(), Progress(Coverage(), completed_pass=False))
    subject.age(50)
    assert gauges(store).coverage_age_s == pytest.approx(50, abs=CLOSE)
    store = holding(subject)
    store.memory.save_coverage(soon(), Progress(Coverage(), completed_pass=True))
    for number in range(1, 6):
        subject.add(uuid(number), instance(number))
        flip(store, number)
    free, blocked, accepted, recovered, on_hold = due(store)
    for restart in (blocked, accepted, recovered):
        claim(store, restart)
    store.restarts.record_answer(soon(), blocked, "blocked", wait_s=RETRY_S)
    store.restarts.accepted(soon(), accepted)
    store.restarts.accepted(soon(), recovered)
    store.holds.place(soon(), [on_hold.workspace_id], reason="why", lasts_s=10_000)
    subject.update(recovered.workspace_id, status="online")
    store.restarts.cancel_moved_on(soon(), own_only=False)
    subject.age(901)
    now = gauges(store)
    assert replace(now, oldest_restart_age_s=0.0, coverage_age_s=0.0) == Gauges(3, 1, 0, 1, 0.0, 0.0, 1)
    assert now.oldest_restart_age_s == pytest.approx(901, abs=CLOSE)
    assert now.coverage_age_s == pytest.approx(901, abs=CLOSE)
    assert free.id == 1


# --- what is remembered ---


def test_absences_are_counted_until_the_instance_is_found_or_another_one_is_recorded(subject: Subject) -> None:
    store = holding(subject)
    ones = [Workspace(uuid(number), instance(number), None) for number in (1, 2, 3)]

    def absences(absent: list[Workspace], found_again: list[str]) -> dict[str, tuple[str, int, float]]:
        store.memory.remember_absences(soon(), absent, found_again)
        remembered = store.memory.recall(soon(), breaker_window_s=600).absences
        return {one: (known.instance_id, known.sightings, round(known.age_s, -1)) for one, known in remembered.items()}

    assert absences(ones, []) == {one.id: (one.instance_id, 1, 0) for one in ones}
    subject.age(30)
    other = Workspace(uuid(2), instance(22), None)
    assert absences([ones[0], other], [uuid(3)]) == {
        uuid(1): (instance(1), 2, 30),
        uuid(2): (instance(22), 1, 0),
    }
    store = holding(subject)
    assert absences([ones[2]], [])[uuid(3)] == (instance(3), 1, 0)


def test_an_absence_that_was_seen_an_hour_ago_is_forgotten(subject: Subject) -> None:
    store = holding(subject)
    store.memory.remember_absences(soon(), [Workspace(uuid(1), instance(1), None)], [])
    subject.age(3590)
    assert set(store.memory.recall(soon(), breaker_window_s=1).absences) == {uuid(1)}
    subject.age(20)
    assert store.memory.recall(soon(), breaker_window_s=1).absences == {}
    store = holding(subject)
    store.memory.remember_absences(soon(), [Workspace(uuid(1), instance(1), None)], [])
    (absence,) = store.memory.recall(soon(), breaker_window_s=1).absences.values()
    assert replace(absence, age_s=0.0) == Absence(instance(1), 1, 0.0)
    assert absence.age_s == pytest.approx(0, abs=CLOSE)


def test_workspaces_flipped_recently_are_in_the_breakers_window(subject: Subject) -> None:
    store = flipped(subject, 1)
    subject.age(590)
    assert store.memory.recall(soon(), breaker_window_s=600).recently_flipped == {uuid(1)}
    subject.age(20)
    assert store.memory.recall(soon(), breaker_window_s=600).recently_flipped == frozenset()


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
        lambda subject: subject.store().holds.place(soon(), [uuid(1)], reason="why", lasts_s=60),
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
    selection = store.candidates.select(soon(), limit=1, workspace_ids=None)
    seen, terms = sighting_of(selection.workspaces[0], "stopped"), FlipPolicy(selection.selected_at, 60.0, LOOP)
    happen(subject)
    before = subject.rows()
    expected = reason or Flipped(CrashLoop(0, 0.0))
    assert store.flips.would_flip(soon(), seen, terms) == expected
    assert (subject.rows(), subject.events(), subject.restarts()) == (before, [], [])
    assert store.flips.flip(soon(), seen, terms) == expected
    if reason:
        assert (subject.rows(), subject.events(), subject.restarts()) == (before, [], [])
    else:
        assert subject.rows() == {uuid(1): ("offline", instance(1))}
        assert subject.events() == [(uuid(1), instance(1))]
        assert subject.restarts() == [(1, uuid(1), instance(1), 0, 0, None, None, 0)]


@pytest.mark.parametrize(("age_s", "fresh_s", "vetoed"), [(30, 60, True), (90, 60, False), (30, 0, False)])
def test_a_young_heartbeat_vetoes_even_if_the_select_saw_it(
    subject: Subject, age_s: float, fresh_s: float, vetoed: bool
) -> None:
    subject.add(uuid(1), instance(1), heartbeat_age_s=age_s)
    store = holding(subject)
    selection = store.candidates.select(soon(), limit=1, workspace_ids=None)
    seen, terms = sighting_of(selection.workspaces[0], "stopped"), FlipPolicy(selection.selected_at, fresh_s, LOOP)
    assert (store.flips.flip(soon(), seen, terms) is SkipReason.FRESH_HEARTBEAT) is vetoed


def test_a_locked_row_is_not_waited_for(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    with subject.locked(uuid(1)):
        with pytest.raises(RowLockedError):
            flip(store)
        assert (subject.rows(), subject.restarts()) == ({uuid(1): ("online", instance(1))}, [])
    assert isinstance(flip(store), Flipped)


def test_a_flip_cancels_the_older_restart_and_waits_as_long_as_its_request_may_take(subject: Subject) -> None:
    store = flipped(subject)
    (older,) = due(store)
    assert claim(store, older) is Claim.CLAIMED
    subject.update(uuid(1), status="online")
    outcome = flip(store)
    assert isinstance(outcome, Flipped)
    assert outcome.superseded == (replace(older, attempts=1, of_this_cycle=False),)
    assert [restart[6] for restart in subject.restarts()] == ["cancelled", None]
    assert due(store) == []
    subject.age(UNCERTAIN_S + 1)
    assert [restart.id for restart in due(store)] == [2]


def test_a_flip_of_another_instance_does_not_wait(subject: Subject) -> None:
    store = flipped(subject)
    assert claim(store, due(store)[0]) is Claim.CLAIMED
    subject.update(uuid(1), status="online", instance_id=instance(2))
    flip(store)
    assert [restart.instance_id for restart in due(store)] == [instance(2)]


def test_restarts_in_a_row_wait_longer_each_time_until_a_healthy_stretch(
    subject: Subject,
) -> None:
    subject.add(uuid(1), instance(1))
    loops, store = [], holding(subject)
    for number in range(1, 6):
        store = holding(subject)
        outcome = flip(store)
        assert isinstance(outcome, Flipped)
        loops.append(outcome.crash_loop)
        subject.age(outcome.crash_loop.backoff_s + 1)
        store = holding(subject)
        (restart,) = due(store)
        assert claim(store, restart) is Claim.CLAIMED
        store.restarts.accepted(soon(), restart)
        subject.update(uuid(1), status="online", instance_id=instance(number + 1))
    assert loops == [CrashLoop(0, 0.0), CrashLoop(1, 0.0), CrashLoop(2, 0.0), CrashLoop(3, 300.0), CrashLoop(4, 600.0)]
    assert [restart[-1] for restart in subject.restarts()] == [0, 1, 2, 3, 4]
    store.restarts.cancel_moved_on(soon(), own_only=False)
    subject.age(3601)
    outcome = flip(holding(subject))
    assert outcome == Flipped(CrashLoop(0, 0.0))


def test_health_counts_from_when_a_cycle_saw_the_workspace_online_again(subject: Subject) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    claim(store, restart)
    store.restarts.accepted(soon(), restart)
    subject.age(3000)
    subject.update(uuid(1), status="online")
    store = holding(subject)
    store.restarts.cancel_moved_on(soon(), own_only=False)
    subject.age(3000)
    assert flip(holding(subject)) == Flipped(CrashLoop(1, 0.0))


def test_a_restart_that_was_never_asked_for_does_not_count(subject: Subject) -> None:
    store = flipped(subject)
    subject.update(uuid(1), status="online")
    store.restarts.cancel_moved_on(soon(), own_only=False)
    assert flip(store) == Flipped(CrashLoop(0, 0.0))


# --- the restarts ---


def test_a_restart_is_due_at_once_for_every_cycle_that_may_ask_for_it(subject: Subject) -> None:
    first = flipped(subject)
    assert due(first) == due(first, own_only=True) == [Restart(1, uuid(1), instance(1), 0, 0, of_this_cycle=True)]
    second = subject.store(1)
    assert due(second) == [Restart(1, uuid(1), instance(1), 0, 0, of_this_cycle=False)]
    assert due(second, own_only=True) == []


def test_the_longest_due_come_first(subject: Subject) -> None:
    store = holding(subject)
    for number in (1, 2, 3):
        subject.add(uuid(number), instance(number))
        flip(store, number)
    store.restarts.put_off(soon(), due(store)[:1], wait_s=RETRY_S)
    assert [restart.id for restart in due(store)] == [2, 3]
    subject.age(RETRY_S + 1)
    assert [restart.id for restart in store.restarts.due(soon(), limit=2, own_only=False)] == [2, 3]
    assert [restart.id for restart in due(store)] == [2, 3, 1]


MOVED_ON: dict[str, Callable[[Subject], object]] = {
    "gone": lambda subject: subject.delete(uuid(1)),
    "online again": lambda subject: subject.update(uuid(1), status="online"),
    "removed": lambda subject: subject.update(uuid(1), status="removed"),
    "provisioning": lambda subject: subject.update(uuid(1), status="provisioning"),
    "offline with another instance": lambda subject: subject.update(uuid(1), instance_id=instance(2)),
    "offline without an instance": lambda subject: subject.update(uuid(1), instance_id=None),
}


@pytest.mark.parametrize("moved_on", MOVED_ON)
@pytest.mark.parametrize("by", ["claim", "cancel_moved_on"])
def test_a_restart_whose_row_has_moved_on_is_cancelled(subject: Subject, moved_on: str, by: str) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    MOVED_ON[moved_on](subject)
    if by == "claim":
        assert claim(store, restart) is Claim.CANCELLED
    else:
        assert store.restarts.cancel_moved_on(soon(), own_only=True) == [restart]
    assert subject.restarts() == [(1, uuid(1), instance(1), 0, 0, None, "cancelled", 0)]
    assert claim(store, restart) is Claim.TAKEN
    assert store.restarts.cancel_moved_on(soon(), own_only=False) == []


def test_only_due_restarts_are_cancelled_and_if_asked_only_own_ones(subject: Subject) -> None:
    store = flipped(subject)
    subject.update(uuid(1), status="online")
    store.lease.release(soon())
    second = holding(subject, 1)
    assert second.restarts.cancel_moved_on(soon(), own_only=True) == []
    second.restarts.put_off(soon(), due(second), wait_s=RETRY_S)
    assert second.restarts.cancel_moved_on(soon(), own_only=False) == []
    subject.age(RETRY_S + 1)
    assert [restart.id for restart in holding(subject, 1).restarts.cancel_moved_on(soon(), own_only=False)] == [1]


def test_a_claimed_restart_is_not_claimed_again_while_its_answer_may_come(subject: Subject) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    assert claim(store, restart) is Claim.CLAIMED
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 0, "claimed", None, 0)]
    assert claim(store, restart) is Claim.TAKEN
    assert due(store) == []
    subject.age(UNCERTAIN_S - 5)
    assert due(subject.store(1)) == []
    subject.age(10)
    second = holding(subject, 1)
    (again,) = due(second)
    assert again == Restart(1, uuid(1), instance(1), 1, 0, of_this_cycle=False)
    assert claim(second, again) is Claim.CLAIMED
    assert claim(second, replace(again, id=99)) is Claim.TAKEN


def test_while_the_platform_asks_to_be_left_alone_no_cycle_may_ask(subject: Subject) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    subject.age(LEASE_S + 2)  # what the platform said is true without the lease, too
    store.restarts.stop(soon(), lasts_s=600)
    second = holding(subject, 1)
    second.restarts.stop(soon(), lasts_s=5)  # and the longer one wins
    for cycle in (store, second):
        assert due(cycle) == []
    assert claim(second, restart) is Claim.TAKEN
    assert gauges(second).restarts_pending == 1
    subject.age(590)
    assert due(second) == []
    subject.age(20)
    second = holding(subject, 1)
    assert claim(second, due(second)[0]) is Claim.CLAIMED


def test_a_stop_that_lies_days_ahead_is_of_a_clock_that_has_jumped(subject: Subject) -> None:
    store = flipped(subject)
    store.restarts.stop(soon(), lasts_s=2 * 86_400)
    assert len(due(store)) == 1
    store.restarts.stop(soon(), lasts_s=86_400)
    assert due(store) == []
    subject.age(86_410)
    assert len(due(store)) == 1


@pytest.mark.parametrize(("wait_s", "refusals", "due_after_s"), [(RETRY_S, 1, RETRY_S), (None, 0, UNCERTAIN_S)])
def test_a_restart_that_was_not_accepted_is_due_when_its_answer_or_else_its_claim_says(
    subject: Subject, wait_s: float | None, refusals: int, due_after_s: float
) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    claim(store, restart)
    store.restarts.record_answer(soon(), restart, "blocked", wait_s=wait_s)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, refusals, "blocked", None, 0)]
    subject.age(due_after_s - 5)
    assert due(store) == []
    subject.age(10)
    assert [(one.attempts, one.refusals) for one in due(store)] == [(1, refusals)]


def test_an_answer_that_comes_after_another_cycles_claim_changes_nothing(subject: Subject) -> None:
    first = flipped(subject)
    (restart,) = due(first)
    claim(first, restart)
    subject.age(UNCERTAIN_S + 1)
    second = holding(subject, 1)
    assert claim(second, due(second)[0]) is Claim.CLAIMED
    first.restarts.record_answer(soon(), restart, "refused", wait_s=0.0)
    assert subject.restarts() == [(1, uuid(1), instance(1), 2, 0, "claimed", None, 0)]
    assert due(second) == []


@pytest.mark.parametrize("outcome", ["cancelled", "accepted"])
def test_a_restart_closes_once(subject: Subject, outcome: str) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    end: dict[str, Callable[..., object]] = {"cancelled": store.restarts.cancel, "accepted": store.restarts.accepted}
    end[outcome](soon(), restart)
    for other in end.values():
        other(soon(), restart)
    store.restarts.put_off(soon(), [restart], wait_s=0.0)
    store.restarts.record_answer(soon(), restart, "refused", wait_s=0.0)
    assert subject.restarts() == [(1, uuid(1), instance(1), 0, 0, None, outcome, 0)]
    assert due(store) == []


def test_a_restart_is_watched_until_the_workspace_is_online_or_not_wanted_any_more(subject: Subject) -> None:
    store = holding(subject)
    ends = ("online", "removed", "paused", "hibernating", "hibernated", "gone", "failed", "provisioning", "degraded")
    for number, status in enumerate(ends, 1):
        subject.add(uuid(number), instance(number))
        flip(store, number)
        (restart,) = due(store)
        claim(store, restart)
        store.restarts.accepted(soon(), restart)
        if status == "gone":
            subject.delete(uuid(number))
        else:
            subject.update(uuid(number), status=status)
    store.restarts.cancel_moved_on(soon(), own_only=False)
    subject.age(890)
    assert gauges(store).restarts_unrecovered == 0
    subject.age(20)
    assert gauges(store).restarts_unrecovered == 3


# --- the holds ---


def test_a_hold_keeps_its_restart_from_being_asked_for_until_it_ends(subject: Subject) -> None:
    store = flipped(subject)
    (restart,) = due(store)
    (hold,) = store.holds.place(soon(), [uuid(1)], reason="maintenance", lasts_s=100)
    assert (hold.workspace_id, hold.reason, hold.ends_at[10], hold.ends_at[-1]) == (uuid(1), "maintenance", "T", "Z")
    assert (claim(store, restart), due(store), gauges(store).on_hold) == (Claim.TAKEN, [], 1)
    subject.age(101)
    assert (store.holds.active(soon()), due(store), gauges(store).on_hold) == ([], [restart], 0)


def test_a_hold_is_replaced_and_ended_by_hand(subject: Subject) -> None:
    store = subject.store()
    for number in (1, 2):
        subject.add(uuid(number), instance(number))
    store.holds.place(soon(), [uuid(1), uuid(2)], reason="why", lasts_s=100)
    holds = store.holds.place(soon(), [uuid(1)], reason="why not", lasts_s=500)
    assert [(one.workspace_id, one.reason) for one in holds] == [(uuid(2), "why"), (uuid(1), "why not")]
    assert [one.workspace_id for one in store.holds.release(soon(), [uuid(1), uuid(99)])] == [uuid(2)]
    assert [one.id for one in selected(store)] == [uuid(1)]


def test_holds_that_have_ended_are_purged_but_those_that_a_restart_waited_for(subject: Subject) -> None:
    """The age of such a restart counts from the end of its hold."""
    store = flipped(subject)
    subject.add(uuid(2), instance(2))
    store.holds.place(soon(), [uuid(1), uuid(2)], reason="why", lasts_s=100)
    subject.age(150)
    store = holding(subject)
    store.memory.purge(soon())
    assert gauges(store).oldest_restart_age_s == pytest.approx(50, abs=CLOSE)
    (restart,) = due(store)
    assert store.restarts.cancel(soon(), restart)
    assert not store.restarts.cancel(soon(), restart)
    store.memory.purge(soon())
    assert flip(store, 2) == Flipped(CrashLoop(0, 0.0))


def test_a_hold_with_an_unknown_workspace_is_refused_as_a_whole(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    with pytest.raises(RequestError):
        subject.store().holds.place(soon(), [uuid(1), uuid(2)], reason="why", lasts_s=100)
    assert subject.store().holds.active(soon()) == []


def test_a_hold_waits_for_whoever_has_the_row_and_gives_up_in_time(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    with subject.locked(uuid(1)), pytest.raises(StoreError):
        subject.store().holds.place(Deadline(0.2), [uuid(1)], reason="why", lasts_s=100)
    assert subject.store().holds.active(soon()) == []


def test_a_release_ends_a_crash_loops_back_off(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    for number in range(1, 4):
        flip(store)
        claim(store, due(store)[0])
        store.restarts.accepted(soon(), Restart(number, uuid(1), "", 0, 0, of_this_cycle=True))
        subject.update(uuid(1), status="online", instance_id=instance(number + 1))
    assert flip(store) == Flipped(CrashLoop(3, 300.0))
    assert (due(store), gauges(store).restarts_backing_off) == ([], 1)
    restart = Restart(4, uuid(1), instance(4), 0, 0, of_this_cycle=True)
    assert claim(store, restart) is Claim.TAKEN
    store.holds.release(soon(), [uuid(1)])
    assert (due(store), gauges(store).restarts_backing_off) == ([restart], 0)
    assert [one[-1] for one in subject.restarts()] == [0, 0, 0, 0]
