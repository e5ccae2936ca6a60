"""What every store does with a restart, from the flip to the end of its watch."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from handler.domain.model import Restart
from handler.errors import RowLockedError
from handler.store import Flipped, Store
from tests.contract.steps import (
    CLOSE,
    LEASE_S,
    NOW,
    RETRY_S,
    UNCERTAIN_S,
    accepted,
    decide,
    due,
    flip,
    flipped,
    gauges,
    hold,
    holding,
    note,
    soon,
    step,
    the_due,
    watched,
)
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

RECOVERY_S = 900.0


def ids(store: Store, **those: bool) -> list[int]:
    return [owed.restart.id for owed in due(store, **those)]  # type: ignore[arg-type]  # flags alone


# --- due ---


def test_a_restart_is_due_after_its_grace_for_every_cycle(subject: Subject) -> None:
    first = flipped(subject, grace_s=180.0)
    assert due(first) == []
    assert not first.restarts.any_due(soon(), grace_s=180.0, workspace_ids=None)
    subject.age(181)
    assert the_due(first) == the_due(subject.store(1)) == Restart(1, uuid(1), instance(1))
    assert first.restarts.any_due(soon(), grace_s=180.0, workspace_ids=None)


def test_the_longest_due_come_first_and_what_is_put_off_goes_behind(subject: Subject) -> None:
    store = flipped(subject, 1, 2, 3)
    store.restarts.put_off(soon(), [the_due(store, 1)], wait_s=RETRY_S)
    assert ids(store) == [2, 3]
    subject.age(RETRY_S + 1)
    assert [owed.restart.id for owed in due(store, refused=False, limit=2)] == [2, 3]
    assert ids(store) == [2, 3, 1]
    assert store.restarts.any_due(soon(), grace_s=0.0, workspace_ids=[uuid(2), uuid(99)])
    assert not store.restarts.any_due(soon(), grace_s=0.0, workspace_ids=[uuid(99)])


def test_those_that_were_refused_are_listed_apart(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    refused = the_due(store, 1)
    decide(store, refused)
    store.restarts.record_answer(soon(), refused, "refused", wait_s=0.0)
    assert (ids(store, refused=True), ids(store, refused=False)) == ([1], [2])


def test_what_may_not_be_asked_for_is_left_out(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    hold(store, 1)
    assert ids(store) == [2]
    assert ids(store, released_only=True) == []
    store.watches.release(soon(), workspace_ids=[uuid(2)])
    assert ids(store, released_only=True) == [2]


def test_an_open_breaker_keeps_back_what_is_due_free_and_not_released(subject: Subject) -> None:
    store = flipped(subject, 1, 2, 3, 4, 5)
    store.watches.release(soon(), workspace_ids=[uuid(2)])
    hold(store, 3)
    store.restarts.put_off(soon(), [the_due(store, 4)], wait_s=RETRY_S)
    with subject.locked_own("restarts", uuid(5)):
        store.watches.keep_back(soon(), grace_s=0.0, workspace_ids=None)
        store.watches.release(soon(), workspace_ids=[uuid(5)])
    assert [one[-1] for one in subject.more()] == [True, False, False, False, False]
    assert [one[1] for one in subject.more()] == [False, True, False, False, False]


def test_what_waits_for_something_else_is_not_kept_back(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    hold(store, 1, lasts_s=10)
    store.restarts.stop(soon(), lasts_s=10)
    store.watches.keep_back(soon(), grace_s=60.0, workspace_ids=None)
    assert store.watches.kept_back(soon(), workspace_ids=None) == []
    subject.age(20)
    store.watches.keep_back(soon(), grace_s=60.0, workspace_ids=None)
    assert [one.id for one in store.watches.kept_back(soon(), workspace_ids=None)] == [2]


def test_what_is_kept_back_is_looked_at_in_turn_and_ends_if_its_instance_runs(subject: Subject) -> None:
    store = flipped(subject, 1, 2, 3, 4, 5)
    store.watches.keep_back(soon(), grace_s=0.0, workspace_ids=None)
    store.watches.release(soon(), workspace_ids=[uuid(4)])
    hold(store, 5)
    one, two, three = store.watches.kept_back(soon(), workspace_ids=None)
    assert [restart.id for restart in (one, two, three)] == [1, 2, 3]
    assert store.watches.kept_back(soon(), workspace_ids=[uuid(2)]) == [two]
    subject.age(1)
    with subject.locked_own("restarts", uuid(3)):
        assert store.watches.look_at_kept_back(soon(), running=[one, three], found=[], others=[two]) == [one]
    assert [outcome for *_, outcome, _ in subject.restarts()] == ["cancelled", None, None, None, None]
    assert [one.restart.id for one in watched(store)] == [1]
    assert [one.id for one in store.watches.kept_back(soon(), workspace_ids=None)] == [3, 2]
    assert the_due(store, 2) == two


def test_an_instance_that_is_found_while_its_restart_is_kept_back_was_not_absent(subject: Subject) -> None:
    store = flipped(subject)
    decide(store, the_due(store), "not_found")
    store.watches.keep_back(soon(), grace_s=0.0, workspace_ids=None)
    (one,) = store.watches.kept_back(soon(), workspace_ids=None)
    assert one.absent_sightings == 1
    store.watches.look_at_kept_back(soon(), running=[], found=[one], others=[])
    assert the_due(store).absent_sightings == 0


# --- moved on ---

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
    restart = the_due(store)
    MOVED_ON[moved_on](subject)
    if by == "claim":
        assert step(store, restart) == "cancel"
    else:
        assert store.watches.cancel_moved_on(soon()) == [restart]
    assert subject.restarts() == [(1, uuid(1), instance(1), 0, 0, None, "cancelled", 0)]
    assert (watched(store), step(store, restart)) == ([], None)
    assert store.watches.cancel_moved_on(soon()) == []


def test_those_that_are_not_due_are_cancelled_too_and_what_was_asked_for_stays_watched(subject: Subject) -> None:
    store = flipped(subject, 1)
    decide(store, the_due(store))
    subject.update(uuid(1), status="provisioning")
    assert [one.id for one in store.watches.cancel_moved_on(soon())] == [1]
    (watch,) = watched(store)
    assert (watch.status, watch.is_open, watch.same_instance, watch.up_s) == ("provisioning", False, True, None)


def test_a_restart_that_somebody_has_locked_is_left_to_the_next_cycle(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    restart = the_due(store, 1)
    for number in (1, 2):
        subject.update(uuid(number), status="online")
    with subject.locked_own("restarts", uuid(1)):
        assert [one.id for one in store.watches.cancel_moved_on(soon())] == [2]
        assert step(store, restart) is None
        store.restarts.put_off(soon(), [restart], wait_s=RETRY_S)
    assert step(store, restart) == "cancel"


# --- claimed ---


def test_a_claimed_restart_is_not_claimed_again_while_its_answer_may_come(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    assert step(store, restart) == "ask"
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 0, "claimed", None, 0)]
    assert (step(store, restart), due(store)) == ("wait", [])
    subject.age(UNCERTAIN_S - 5)
    assert due(subject.store(1)) == []
    subject.age(10)
    second = holding(subject, 1)
    again = the_due(second)
    assert again == Restart(1, uuid(1), instance(1), attempts=1, watched=True, last_answer="claimed")
    assert step(second, again) == "ask"
    assert step(second, replace(again, id=99)) is None


@pytest.mark.parametrize("moment", ["old evidence", "a hold", "a stop"])
def test_nothing_is_claimed_if_something_comes_after_the_decision(subject: Subject, moment: str) -> None:
    """The statement that writes looks again. Here the decision itself sees nothing of it."""
    store = flipped(subject)
    restart = the_due(store)
    if moment == "a hold":
        hold(store, 1)
    if moment == "a stop":
        store.restarts.stop(soon(), lasts_s=100)
    blind = decide(store, restart, age_s=6.0 if moment == "old evidence" else 0.0, blind=True)
    assert blind is not None
    assert (blind.step, subject.restarts()[0][3]) == ("wait", 0)


@pytest.mark.parametrize(
    ("state", "decided", "outcome"),
    [
        ("stopped", "ask", None),
        ("running", "cancel and watch", "cancelled"),
        ("stopping", "put off", None),
        ("no such word", "put off", None),
        ("not_found", "next cycle", None),
    ],
)
def test_each_step_is_carried_out(subject: Subject, state: str, decided: str, outcome: str | None) -> None:
    store = flipped(subject)
    assert step(store, the_due(store), state) == decided
    assert subject.restarts()[0][6] == outcome
    assert (ids(store) == [1]) is (decided == "next cycle")
    assert len(watched(store)) == (decided in ("ask", "cancel and watch"))


def test_absences_of_a_restart_are_counted_over_its_cycles_until_it_is_found(subject: Subject) -> None:
    store = flipped(subject)
    for state, decided, sightings in (
        ("not_found", "next cycle", 1),
        ("stopping", "put off", 0),
        ("not_found", "next cycle", 1),
        ("no such word", "put off", 1),
        ("not_found", "next cycle", 2),
        ("not_found", "ask", 2),
    ):
        assert step(store, the_due(store), state) == decided
        assert subject.more()[0][2] == sightings
        subject.age(70)
        store = holding(subject)


def test_in_a_cycle_that_found_nothing_no_absence_is_counted(subject: Subject) -> None:
    store = flipped(subject)
    decision = decide(store, the_due(store), "not_found", now=replace(NOW, absence_counts=False))
    assert decision is not None
    assert (decision.step, subject.more()[0][2]) == ("put off", 0)


def test_while_the_platform_asks_to_be_left_alone_no_cycle_may_ask(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    subject.age(60)  # what the platform said is true without the lease, too
    store.restarts.stop(soon(), lasts_s=600)
    second = holding(subject, 1)
    second.restarts.stop(soon(), lasts_s=5)  # and the longer one wins
    for cycle in (store, second):
        assert due(cycle) == []
    assert step(second, restart) == "wait"
    assert gauges(second).restarts_pending == 1
    subject.age(590)
    assert due(second) == []
    subject.age(20)
    second = holding(subject, 1)
    assert step(second, the_due(second)) == "ask"


def test_a_stop_that_lies_days_ahead_is_of_a_clock_that_has_jumped(subject: Subject) -> None:
    store = flipped(subject)
    store.restarts.stop(soon(), lasts_s=2 * 86_400)
    assert ids(store) == [1]
    store.restarts.stop(soon(), lasts_s=86_400)
    assert ids(store) == []
    subject.age(86_410)
    assert ids(store) == [1]


# --- answered ---


@pytest.mark.parametrize(
    ("answer", "wait_s", "refusals", "due_after_s", "is_watched"),
    [("blocked", RETRY_S, 1, RETRY_S, False), ("uncertain", None, 0, UNCERTAIN_S, True)],
)
def test_a_restart_that_was_not_accepted_is_due_when_its_answer_or_else_its_claim_says(
    subject: Subject, answer: str, wait_s: float | None, refusals: int, due_after_s: float, is_watched: bool
) -> None:
    """What was only refused began nothing, so it is not watched."""
    store = flipped(subject)
    restart = the_due(store)
    decide(store, restart)
    store.restarts.record_answer(soon(), restart, answer, wait_s=wait_s)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, refusals, answer, None, 0)]
    subject.age(due_after_s - 5)
    assert due(store) == []
    subject.age(10)
    assert the_due(store) == Restart(1, uuid(1), instance(1), 1, refusals, watched=is_watched, last_answer=answer)


def test_one_that_was_uncertain_before_stays_watched_when_it_is_refused(subject: Subject) -> None:
    store = flipped(subject)
    decide(store, the_due(store))
    subject.age(UNCERTAIN_S + 1)
    store = holding(subject)
    again = the_due(store)
    decide(store, again)
    store.restarts.record_answer(soon(), again, "refused", wait_s=RETRY_S)
    assert len(watched(store)) == 1


def test_one_that_nobody_could_connect_for_is_refused_without_a_claim(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    store.restarts.record_answer(soon(), restart, "refused", wait_s=RETRY_S, claimed=False)
    assert subject.restarts() == [(1, uuid(1), instance(1), 0, 1, "refused", None, 0)]
    assert due(store) == []


def test_an_answer_that_comes_after_another_cycles_claim_changes_nothing(subject: Subject) -> None:
    first = flipped(subject)
    restart = the_due(first)
    decide(first, restart)
    subject.age(UNCERTAIN_S + 1)
    second = holding(subject, 1)
    assert step(second, the_due(second)) == "ask"
    for claimed in (True, False):
        first.restarts.record_answer(soon(), restart, "refused", wait_s=0.0, claimed=claimed)
    first.restarts.give_back(soon(), restart)
    assert subject.restarts() == [(1, uuid(1), instance(1), 2, 0, "claimed", None, 0)]
    assert due(second) == []


def test_a_connection_refused_says_nothing_of_what_another_cycle_has_asked_for_since(subject: Subject) -> None:
    """The first cycle was frozen as it connected. The second one's request may still be under way."""
    first = flipped(subject)
    restart = the_due(first)
    subject.age(LEASE_S + 2)
    second = holding(subject, 1)
    decide(second, the_due(second))
    second.restarts.record_answer(soon(), restart, "uncertain", wait_s=None)
    first.restarts.record_answer(soon(), restart, "refused", wait_s=RETRY_S, claimed=False)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 0, "uncertain", None, 0)]
    assert len(watched(second)) == 1
    subject.age(UNCERTAIN_S - 10)
    assert due(second) == []


def test_a_connection_refused_puts_off_one_that_was_uncertain_before(subject: Subject) -> None:
    store = flipped(subject)
    decide(store, the_due(store))
    subject.age(UNCERTAIN_S + 1)
    again = the_due(store)
    store.restarts.record_answer(soon(), again, "refused", wait_s=RETRY_S, claimed=False)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 1, "refused", None, 0)]
    assert (due(store), len(watched(store))) == ([], 1)


def test_what_was_not_sent_gives_its_claim_back(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    decide(store, restart)
    store.restarts.give_back(soon(), restart)
    assert subject.restarts() == [(1, uuid(1), instance(1), 0, 0, None, None, 0)]
    assert (the_due(store), watched(store)) == (restart, [])


def test_a_claim_that_is_given_back_leaves_an_earlier_uncertain_one_as_it_was(subject: Subject) -> None:
    store = flipped(subject)
    decide(store, the_due(store))
    subject.age(UNCERTAIN_S + 1)
    store = holding(subject)
    again = the_due(store)
    decide(store, again)
    store.restarts.give_back(soon(), again)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 0, "uncertain", None, 0)]
    assert (the_due(store), len(watched(store))) == (replace(again, last_answer="uncertain"), 1)


def test_answers_wait_for_nobodys_lock(subject: Subject) -> None:
    store = flipped(subject)
    restart = the_due(store)
    decide(store, restart)
    with subject.locked_own("restarts"):
        with pytest.raises(RowLockedError):
            store.restarts.accepted(soon(), restart)
        with pytest.raises(RowLockedError):
            store.restarts.record_answer(soon(), restart, "refused", wait_s=RETRY_S)
        with pytest.raises(RowLockedError):
            store.restarts.give_back(soon(), restart)
    assert subject.restarts() == [(1, uuid(1), instance(1), 1, 0, "claimed", None, 0)]


@pytest.mark.parametrize("outcome", ["cancelled", "accepted"])
def test_a_restart_closes_once(subject: Subject, outcome: str) -> None:
    store = flipped(subject)
    restart = the_due(store)
    if outcome == "accepted":
        store.restarts.accepted(soon(), restart)
        subject.update(uuid(1), status="online")
    else:
        subject.update(uuid(1), status="online")
        store.watches.cancel_moved_on(soon())
    store.restarts.accepted(soon(), restart)
    assert store.watches.cancel_moved_on(soon()) == []
    store.restarts.put_off(soon(), [restart], wait_s=0.0)
    store.restarts.record_answer(soon(), restart, "refused", wait_s=0.0, claimed=False)
    store.restarts.give_back(soon(), restart)
    assert subject.restarts() == [(1, uuid(1), instance(1), 0, 0, None, outcome, 0)]
    assert due(store) == []


# --- watched ---


def test_a_watch_says_what_became_of_the_workspace(subject: Subject) -> None:
    store = flipped(subject, 1, 2, 3)
    restart = accepted(store, 1)
    assert step(store, the_due(store, 2), "running") == "cancel and watch"
    assert step(store, the_due(store, 3)) == "ask"
    subject.update(uuid(1), status="degraded")
    subject.delete(uuid(3))
    hold(store, 2)
    note(store, up=[restart.id])
    subject.age(30)
    one, two, three = sorted(watched(store), key=lambda watch: watch.restart.id)
    assert (one.status, one.is_open, one.same_instance, one.on_hold) == ("degraded", False, True, False)
    assert one.up_s == pytest.approx(30, abs=CLOSE)
    assert (two.status, two.is_open, two.same_instance, two.on_hold, two.up_s) == ("offline", False, True, True, None)
    assert (three.status, three.is_open, three.same_instance) == (None, True, False)


def test_a_watch_ends_once_and_a_fall_counts_from_its_first_sight(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    first, second = accepted(store, 1), accepted(store, 2)
    note(store, up=[first.id, second.id])
    subject.age(100)
    store = holding(subject)
    note(store, up=[first.id], not_up=[second.id])
    up_s = [watch.up_s for watch in sorted(watched(store), key=lambda watch: watch.restart.id)]
    assert up_s == [pytest.approx(100, abs=CLOSE), None]
    note(store, ended=[first.id])
    note(store, not_up=[first.id])
    assert [one[3:6] for one in subject.more()] == [(True, True, True), (True, False, False)]


def test_a_watched_restart_that_somebody_has_locked_is_noted_later(subject: Subject) -> None:
    store = flipped(subject)
    restart = accepted(store)
    with subject.locked_own("restarts"):
        note(store, ended=[restart.id])
        store.watches.count_absences(soon(), [restart])
        assert store.watches.owe_again(soon(), {restart.id: (1, 0.0)}) == []
    assert len(watched(store)) == 1
    assert subject.more()[0][2] == 0


def test_a_watched_restart_that_somebody_has_locked_costs_no_other(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    locked, other = accepted(store, 1), accepted(store, 2)
    loops = {locked.id: (1, 0.0), other.id: (1, 0.0)}
    with subject.locked_own("restarts", uuid(1)):
        store.watches.count_absences(soon(), [locked, other])
        assert [one.workspace_id for one in store.watches.owe_again(soon(), loops)] == [uuid(2)]
    assert [one[2] for one in subject.more()] == [0, 1, 1]
    assert [one.restart.workspace_id for one in watched(store) if not one.is_open] == [uuid(1)]


def test_a_restart_counts_as_unrecovered_a_while_after_it_was_first_asked_for(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    accepted(store, 1)
    decide(store, the_due(store, 2))
    subject.age(RECOVERY_S - 10)
    assert gauges(store).restarts_unrecovered == 0
    store = holding(subject)
    decide(store, the_due(store, 2))  # asking again does not restart the clock
    subject.age(20)
    assert gauges(store).restarts_unrecovered == 2
    note(holding(subject), up=[1])
    assert gauges(store).restarts_unrecovered == 1
    hold(store, 2)
    assert gauges(store).restarts_unrecovered == 0


def test_a_restart_that_did_nothing_is_owed_again_a_while_after_its_last_call(subject: Subject) -> None:
    store = flipped(subject)
    restart = accepted(store)
    subject.age(100)
    store = holding(subject)
    (again,) = store.watches.owe_again(soon(), {restart.id: (4, 0.0)})
    assert again == Restart(2, uuid(1), instance(1))
    assert subject.restarts()[1] == (2, uuid(1), instance(1), 0, 0, None, None, 4)
    assert [one[3:5] for one in subject.more()] == [(True, True), (True, False)]
    assert (due(store), gauges(store).oldest_restart_age_s) == ([], 0.0)
    subject.age(RECOVERY_S - 110)
    assert due(store) == []
    subject.age(20)
    assert the_due(store) == replace(again, watched=True, streak=4)


def test_one_that_is_owed_again_backs_off_in_a_crash_loop_and_keeps_its_absences(subject: Subject) -> None:
    store = flipped(subject)
    restart = accepted(store)
    store.watches.count_absences(soon(), [restart])
    subject.age(2 * RECOVERY_S)
    store = holding(subject)
    store.watches.owe_again(soon(), {restart.id: (4, 600.0)})
    assert gauges(store).restarts_backing_off == 1
    subject.age(601)
    assert the_due(store).absent_sightings == 1


NOT_AGAIN: dict[str, Callable[[Subject, Store], object]] = {
    "the row is up": lambda subject, _: subject.update(uuid(1), status="online"),
    "another instance": lambda subject, _: subject.update(uuid(1), instance_id=instance(2)),
    "gone": lambda subject, _: subject.delete(uuid(1)),
    "on hold": lambda _, store: hold(store, 1),
    "the watch is over": lambda _, store: note(store, ended=[1]),
    "owed already": lambda _, store: store.watches.owe_again(soon(), {1: (0, 0.0)}),
}


@pytest.mark.parametrize("why", NOT_AGAIN)
def test_nothing_else_is_owed_again(subject: Subject, why: str) -> None:
    store = flipped(subject)
    accepted(store)
    NOT_AGAIN[why](subject, store)
    assert store.watches.owe_again(soon(), {1: (0, 0.0)}) == []


def test_an_open_restart_is_not_owed_twice(subject: Subject) -> None:
    store = flipped(subject)
    decide(store, the_due(store))
    assert store.watches.owe_again(soon(), {1: (0, 0.0)}) == []


def test_a_flip_ends_the_watch_and_goes_on_with_the_same_instances(subject: Subject) -> None:
    store = flipped(subject)
    accepted(store)
    subject.update(uuid(1), status="online")
    assert isinstance(flip(store), Flipped)
    assert [one[3:5] for one in subject.more()] == [(True, True), (True, False)]
    assert due(store) == []
    subject.age(UNCERTAIN_S + 1)
    assert the_due(store).watched


@pytest.mark.parametrize("answer", ["refused", "blocked", "uncertain", "claimed"])
def test_a_claim_that_is_given_back_leaves_the_answer_before_it(subject: Subject, answer: str) -> None:
    store = flipped(subject)
    first = the_due(store)
    decide(store, first)
    if answer != "claimed":
        waits = None if answer == "uncertain" else RETRY_S
        store.restarts.record_answer(soon(), first, answer, wait_s=waits)
    subject.age(UNCERTAIN_S + 1)
    store = holding(subject)
    decision = decide(store, the_due(store))
    assert decision is not None
    store.restarts.give_back(soon(), decision.restart)
    assert gauges(store).restarts_blocked == (answer == "blocked")
    assert subject.restarts()[0][5] == ("uncertain" if answer == "claimed" else answer)


def test_the_watched_are_listed_in_the_order_in_which_they_were_looked_at(subject: Subject) -> None:
    store = flipped(subject, 1, 2, 3)
    one, two, three = (accepted(store, number) for number in (1, 2, 3))
    subject.age(UNCERTAIN_S + 1)
    store = holding(subject)
    store.watches.count_absences(soon(), [one])
    subject.age(1)
    store.watches.count_absences(soon(), [], others=[two])
    subject.age(1)
    store.watches.count_absences(soon(), [], found=[three])
    assert [seen.restart.id for seen in watched(store)] == [1, 2, 3]
    subject.age(1)
    store.watches.count_absences(soon(), [], others=[one])
    assert [seen.restart.id for seen in watched(store)] == [2, 3, 1]
