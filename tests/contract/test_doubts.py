"""What every store does with doubts: remembered, forgotten, counted, and ended by an adoption."""

from collections.abc import Callable

import pytest

from handler.domain.decide import Fleet
from handler.domain.doubts import DoubtChanges, Known
from handler.domain.model import SkipReason, Verdict
from handler.store import Flipped
from tests.contract.steps import (
    CLOSE,
    UNCERTAIN_S,
    accepted,
    confirmed,
    doubt,
    due,
    flip,
    flipped,
    gauges,
    hold,
    holding,
    policy,
    save,
    select,
    selected,
    soon,
    the_due,
)
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

ABSENT, DEAD, UNKNOWN, TRANSITION = Verdict.ABSENT, Verdict.DEAD, Verdict.UNKNOWN, Verdict.TRANSITION
HOUR, DAY = 3600.0, 24 * 3600.0
BREAKER_WINDOW_S = 600.0


def known(subject: Subject) -> dict[tuple[str, Verdict], Known]:
    return dict(subject.store().doubts.recall(soon(), breaker_window_s=BREAKER_WINDOW_S).doubts)


def fleet(subject: Subject) -> Fleet:
    return subject.store().doubts.recall(soon(), breaker_window_s=BREAKER_WINDOW_S).fleet


def add(subject: Subject, *numbers: int) -> None:
    """Add the workspaces with these numbers: what is remembered of others counts for nothing."""
    for number in numbers:
        subject.add(uuid(number), instance(number))


def once(subject: Subject, number: int = 1, kind: Verdict = ABSENT) -> Known:
    return known(subject)[uuid(number), kind]


# --- saved ---


def test_each_kind_is_remembered_for_itself(subject: Subject) -> None:
    add(subject, 1, 2)
    save(holding(subject), doubt(1, DEAD), doubt(1, UNKNOWN, reason="timeout"), doubt(1, TRANSITION), doubt(2, ABSENT))
    assert set(known(subject)) == {(uuid(1), DEAD), (uuid(1), UNKNOWN), (uuid(1), TRANSITION), (uuid(2), ABSENT)}
    assert (uuid(1), UNKNOWN, instance(1), "timeout", 1, False, False) in subject.doubts()


@pytest.mark.parametrize("kind", [ABSENT, DEAD])
def test_sightings_add_up_from_the_first_one_on(subject: Subject, kind: Verdict) -> None:
    add(subject, 1, 2)
    for _ in range(3):
        save(holding(subject), doubt(1, kind))
        subject.age(30)
    seen = once(subject, kind=kind)
    assert (seen.instance_id, seen.sightings) == (instance(1), 3)
    assert seen.age_s == pytest.approx(90, abs=CLOSE)
    assert seen.seen_s == pytest.approx(30, abs=CLOSE)


def _an_hour_later(subject: Subject) -> None:
    subject.age(HOUR)
    save(holding(subject), doubt(1))


BEGINS_AGAIN: dict[str, Callable[[Subject], object]] = {
    "another instance": lambda subject: save(holding(subject), doubt(1, instance_id=instance(9))),
    "an hour without one": _an_hour_later,
    "it was found": lambda subject: save(holding(subject), doubt(1), found=[uuid(1)]),
}


@pytest.mark.parametrize("why", BEGINS_AGAIN)
def test_absences_are_counted_anew(subject: Subject, why: str) -> None:
    add(subject, 1, 2)
    save(holding(subject), doubt(1))
    subject.age(100)
    save(holding(subject), doubt(1))
    BEGINS_AGAIN[why](subject)
    seen = once(subject)
    assert seen.sightings == 1
    assert seen.age_s == pytest.approx(0, abs=CLOSE)


def test_a_dead_sighting_stays_as_old_as_it_is_whatever_comes_between(subject: Subject) -> None:
    add(subject, 1, 2)
    save(holding(subject), doubt(1, DEAD))
    subject.age(2 * HOUR)
    save(holding(subject), doubt(1, DEAD), found=[uuid(1)])
    assert once(subject, kind=DEAD).sightings == 2
    assert once(subject, kind=DEAD).age_s == pytest.approx(2 * HOUR, abs=CLOSE)


def test_what_does_not_count_is_refreshed_without_a_sighting(subject: Subject) -> None:
    add(subject, 1, 2)
    save(holding(subject), doubt(1))
    subject.age(50)
    save(holding(subject), doubt(1, counts=False))
    assert once(subject).sightings == 1
    assert once(subject).seen_s == pytest.approx(0, abs=CLOSE)


def test_what_a_person_asked_for_stays_so_for_the_same_instance(subject: Subject) -> None:
    store = holding(subject)
    save(store, doubt(1, DEAD, by_hand=True))
    save(store, doubt(1, DEAD))
    assert [one[5] for one in subject.doubts()] == [True]
    save(store, doubt(1, DEAD, instance_id=instance(9)))
    assert [one[5] for one in subject.doubts()] == [False]


def test_a_life_sign_forgets_every_doubt_of_the_workspace(subject: Subject) -> None:
    add(subject, 1, 2)
    store = holding(subject)
    save(store, doubt(1, DEAD), doubt(1, UNKNOWN), doubt(2))
    save(store, alive=[uuid(1)])
    assert set(known(subject)) == {(uuid(2), ABSENT)}


def test_being_found_resets_an_absence_and_nothing_else(subject: Subject) -> None:
    add(subject, 1, 2)
    store = holding(subject)
    save(store, doubt(1, ABSENT), doubt(1, DEAD))
    save(store, found=[uuid(1)])
    assert (once(subject).sightings, once(subject, kind=DEAD).sightings) == (0, 1)


def test_reasons_are_noted_of_what_looks_dead(subject: Subject) -> None:
    store = holding(subject)
    save(store, doubt(1, DEAD), doubt(1, UNKNOWN), doubt(2, ABSENT))
    store.doubts.set_reasons(soon(), {uuid(1): "breaker_open", uuid(3): "row_locked"})
    assert [one[3] for one in subject.doubts()] == ["breaker_open", "why", "why"]


def test_very_many_unknowns_with_one_cause_are_one_doubt_about_the_source(subject: Subject) -> None:
    store = holding(subject)

    def sources(**sources: int) -> None:
        store.doubts.save(soon(), DoubtChanges((), (), (), (), sources))

    sources(timeout=2000)
    subject.age(20)
    store = holding(subject)
    sources(timeout=3000, throttled=1001)
    assert gauges(store).oldest_doubt_s == pytest.approx(20, abs=CLOSE)
    sources(throttled=1001)
    assert gauges(store).oldest_doubt_s == pytest.approx(0, abs=CLOSE)
    save(store)  # a narrowed cycle says nothing about sources
    subject.age(20)
    assert gauges(store).oldest_doubt_s == pytest.approx(20, abs=CLOSE)
    store = holding(subject)
    sources()
    assert gauges(store).oldest_doubt_s == 0.0


def test_doubts_that_somebody_has_locked_stay_as_they_are_and_cost_no_others(subject: Subject) -> None:
    subject.add(uuid(1), instance(1), status="offline")
    store = holding(subject)
    save(store, doubt(1), doubt(2))
    with subject.locked_own("doubts", uuid(1)):
        save(store, doubt(1), doubt(2), doubt(3))
        store.doubts.set_reasons(soon(), {uuid(number): "row_locked" for number in (1, 2)})
        save(store, alive=[uuid(1)], found=[uuid(1)])
        store.doubts.tend(soon())
    assert subject.doubts() == [(uuid(1), ABSENT, instance(1), "why", 1, False, False)]


# --- tended ---

MOVED_ON: dict[str, Callable[[Subject], object]] = {
    "gone": lambda subject: subject.delete(uuid(1)),
    "another instance": lambda subject: subject.update(uuid(1), instance_id=instance(2)),
    "no instance": lambda subject: subject.update(uuid(1), instance_id=None),
    "external": lambda subject: subject.update(uuid(1), runtime="external"),
    **{
        status: lambda subject, status=status: subject.update(uuid(1), status=status)  # type: ignore[misc]
        for status in ("provisioning", "failed", "removed", "paused", "hibernating", "hibernated", "awaiting_agent")
    },
}


@pytest.mark.parametrize("moved_on", MOVED_ON)
def test_a_doubt_is_forgotten_once_the_row_has_moved_on(subject: Subject, moved_on: str) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    save(store, doubt(1, DEAD))
    MOVED_ON[moved_on](subject)
    store.doubts.tend(soon())
    assert subject.doubts() == []


@pytest.mark.parametrize("status", ["online", "degraded", "offline"])
def test_a_doubt_stays_as_long_as_the_row_may_be_somebodys(subject: Subject, status: str) -> None:
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    save(store, doubt(1, DEAD))
    subject.update(uuid(1), status=status)
    store.doubts.tend(soon())
    assert [one[-1] for one in subject.doubts()] == [status == "offline"]
    subject.update(uuid(1), status="online")
    store.doubts.tend(soon())
    assert [one[-1] for one in subject.doubts()] == [False]


# --- the fleet ---


def test_the_fleet_is_what_is_up_and_what_is_remembered_dead(subject: Subject) -> None:
    for number in range(1, 8):
        subject.add(uuid(number), instance(number))
    subject.add(uuid(8), instance(8), status="offline")
    subject.add(uuid(9), None)
    subject.add(uuid(10), instance(10), runtime="external")
    save(holding(subject), doubt(1, DEAD))
    subject.age(DAY)
    store = holding(subject)
    save(store, doubt(2, DEAD), doubt(3, ABSENT), doubt(4, UNKNOWN), doubt(5, TRANSITION), doubt(8, DEAD))
    save(store, doubt(6, ABSENT))
    save(store, found=[uuid(6)])
    assert fleet(subject) == Fleet(7, {uuid(2): True, uuid(3): True, uuid(8): False})
    hold(store, 2, 7, 8)
    assert fleet(subject) == Fleet(5, {uuid(3): True})


@pytest.mark.parametrize("moved_on", MOVED_ON)
def test_a_dry_run_counts_nobody_whom_an_applied_cycle_would_forget_first(subject: Subject, moved_on: str) -> None:
    """It forgets nothing, and has to decide alike. In an applied cycle, whoever moves on meanwhile still counts."""
    subject.add(uuid(1), instance(1))
    store = holding(subject)
    save(store, doubt(1, DEAD))
    MOVED_ON[moved_on](subject)
    recalled = store.doubts.recall(soon(), breaker_window_s=BREAKER_WINDOW_S, as_if_tended=True)
    assert recalled.fleet.remembered == {}
    assert fleet(subject).remembered.keys() == {uuid(1)}


def test_flipped_workspaces_are_dead_for_the_breakers_window(subject: Subject) -> None:
    flipped(subject, 1)
    subject.age(BREAKER_WINDOW_S - 10)
    assert fleet(subject) == Fleet(0, {}, {uuid(1): False})
    subject.update(uuid(1), status="online")
    assert fleet(subject) == Fleet(1, {}, {uuid(1): True})
    subject.age(20)
    assert fleet(subject) == Fleet(1)


def test_restarts_that_an_open_breaker_keeps_back_are_dead_until_they_are_released(subject: Subject) -> None:
    flipped(subject, 1, 2)
    subject.age(BREAKER_WINDOW_S + 10)
    store = holding(subject)
    store.watches.keep_back(soon(), grace_s=0.0, workspace_ids=[uuid(1)])
    assert fleet(subject) == Fleet(0, {}, {uuid(1): False})
    store.watches.release(soon(), workspace_ids=None)
    assert fleet(subject) == Fleet(0)


# --- adopted ---


def taken_offline(subject: Subject, number: int = 1, kind: Verdict = DEAD) -> None:
    """Have a cycle see a workspace dead, and then the platform take it offline."""
    subject.add(uuid(number), instance(number))
    save(holding(subject), doubt(number, kind))
    subject.update(uuid(number), status="offline")


@pytest.mark.parametrize(
    ("kind", "is_candidate"), [(DEAD, True), (ABSENT, True), (UNKNOWN, False), (TRANSITION, False)]
)
def test_an_offline_row_is_a_candidate_if_it_was_seen_dead_while_it_was_up(
    subject: Subject, kind: Verdict, is_candidate: bool
) -> None:
    taken_offline(subject, kind=kind)
    selection = select(subject.store())
    assert [(one.id, one.offline) for one in selection.workspaces] == [(uuid(1), True)] * is_candidate
    assert select(subject.store(), adopt=False).workspaces == []
    save(holding(subject), doubt(1, DEAD, by_hand=True))
    assert [one.id for one in select(subject.store(), adopt=False).workspaces] == [uuid(1)]


NOT_ADOPTED: dict[str, Callable[[Subject], object]] = {
    "another instance": lambda subject: subject.update(uuid(1), instance_id=instance(2)),
    "no instance": lambda subject: subject.update(uuid(1), instance_id=None),
    "external": lambda subject: subject.update(uuid(1), runtime="external"),
    "provisioning": lambda subject: subject.update(uuid(1), status="provisioning"),
    "a day ago": lambda subject: subject.age(DAY),
    "it was found alive": lambda subject: save(holding(subject), alive=[uuid(1)]),
}


@pytest.mark.parametrize("why", NOT_ADOPTED)
def test_other_offline_rows_are_none(subject: Subject, why: str) -> None:
    taken_offline(subject)
    assert selected(subject.store()) == [uuid(1)]
    NOT_ADOPTED[why](subject)
    assert selected(subject.store()) == []


def test_an_adoption_leaves_the_row_and_the_log_alone_and_owes_a_restart(subject: Subject) -> None:
    taken_offline(subject)
    store = holding(subject)
    assert isinstance(flip(store), Flipped)
    assert (subject.rows(), subject.events(), subject.doubts()) == ({uuid(1): ("offline", instance(1))}, [], [])
    assert [one[0] for one in subject.more()] == [True]
    assert (due(store), selected(store)) == ([], [])
    subject.age(UNCERTAIN_S + 1)
    assert the_due(store).instance_id == instance(1)


def test_an_adopted_workspaces_restart_is_due_a_while_after_a_cycle_first_saw_it_offline(subject: Subject) -> None:
    taken_offline(subject)
    holding(subject).doubts.tend(soon())
    subject.age(UNCERTAIN_S - 50)
    store = holding(subject)
    flip(store)
    assert due(store) == []
    subject.age(51)
    assert the_due(store).id == 1


def test_an_adoption_waits_anew_if_nobody_saw_the_workspace_dead_for_a_day(subject: Subject) -> None:
    """Of such old doubts a cycle tends some only: the row may have been up meanwhile."""
    taken_offline(subject)
    holding(subject).doubts.tend(soon())
    subject.age(DAY + 1)
    store = holding(subject)
    save(store, doubt(1, DEAD))
    flip(store)
    assert due(store) == []
    subject.age(UNCERTAIN_S + 1)
    assert the_due(store).id == 1


def test_an_adoption_waits_from_when_it_was_known_dead_and_offline(subject: Subject) -> None:
    """Not from when another doubt first saw it offline."""
    taken_offline(subject, kind=UNKNOWN)
    holding(subject).doubts.tend(soon())
    subject.age(UNCERTAIN_S + 1)
    store = holding(subject)
    save(store, doubt(1, DEAD))
    flip(store)
    assert due(store) == []


MOVES_ON: dict[str, tuple[Callable[[Subject], object], SkipReason]] = {
    "online": (lambda subject: subject.update(uuid(1), status="online"), SkipReason.STATUS_MOVED),
    "provisioning": (lambda subject: subject.update(uuid(1), status="provisioning"), SkipReason.STATUS_MOVED),
    "another instance": (
        lambda subject: subject.update(uuid(1), instance_id=instance(2)),
        SkipReason.INSTANCE_CHANGED,
    ),
    "a heartbeat": (lambda subject: subject.heartbeat(uuid(1), age_s=0.0), SkipReason.FRESH_HEARTBEAT),
    "on hold": (
        lambda subject: hold(subject.store(), 1),
        SkipReason.ON_HOLD,
    ),
}


@pytest.mark.parametrize("moves_on", MOVES_ON)
def test_a_row_that_moves_on_is_not_adopted(subject: Subject, moves_on: str) -> None:
    happen, reason = MOVES_ON[moves_on]
    taken_offline(subject)
    store = holding(subject)
    selection = select(store)
    happen(subject)
    seen = [confirmed(selection.workspaces[0])]
    assert store.flips.would_flip(soon(), seen, policy(selection)) == {uuid(1): reason}
    assert store.flips.flip(soon(), seen, policy(selection)) == {uuid(1): reason}
    assert subject.restarts() == []


def test_a_workspace_is_adopted_once(subject: Subject) -> None:
    taken_offline(subject)
    store = holding(subject)
    selection = select(store)
    seen = [confirmed(selection.workspaces[0])]
    assert isinstance(store.flips.flip(soon(), seen, policy(selection))[uuid(1)], Flipped)
    assert store.flips.flip(soon(), seen, policy(selection)) == {uuid(1): SkipReason.STATUS_MOVED}
    assert len(subject.restarts()) == 1


def test_what_is_owed_or_watched_is_not_adopted(subject: Subject) -> None:
    """The watch over another instance's restart is an obstacle, but not to what a person asks for."""
    store = flipped(subject)
    save(store, doubt(1, DEAD))
    assert selected(store) == []
    accepted(store)
    assert selected(store) == []
    subject.update(uuid(1), instance_id=instance(2))
    save(store, doubt(1, DEAD, instance_id=instance(2)))
    assert selected(store) == []
    save(store, doubt(1, DEAD, instance_id=instance(2), by_hand=True))
    assert selected(store) == [uuid(1)]
    assert isinstance(flip(store), Flipped)
    assert [one[2] for one in subject.restarts()] == [instance(1), instance(2)]


def test_an_event_takes_named_offline_rows_that_no_cycle_saw_dead(subject: Subject) -> None:
    for number in (1, 2, 3):
        subject.add(uuid(number), instance(number), status="offline")
    subject.add(uuid(4), instance(4))
    store = flipped(subject, 5)

    def named(*numbers: int, by_hand: bool = True) -> list[str]:
        ids = [uuid(number) for number in numbers]
        return [one.id for one in select(store, workspace_ids=ids, by_hand=by_hand).workspaces]

    assert named(1, 2, 4, 5) == [uuid(1), uuid(2), uuid(4)]
    assert named(1, 2, 4, 5, by_hand=False) == [uuid(4)]
    accepted(store, 5)
    assert named(5) == []
    subject.update(uuid(5), instance_id=instance(6))
    assert named(5) == [uuid(5)]


def test_the_oldest_doubt_is_found_behind_any_number_that_were_on_hold(subject: Subject) -> None:
    store = holding(subject)
    many = range(1, 1001)
    save(store, *(doubt(number) for number in many))
    subject.age(500)
    save(holding(subject), doubt(1001))
    hold(store, *many, lasts_s=10)
    subject.age(300)
    assert gauges(store).oldest_doubt_s == pytest.approx(300, abs=CLOSE)
    hold(store, lasts_s=10)
    assert gauges(store).oldest_doubt_s == 0
    subject.age(30)
    assert gauges(store).oldest_doubt_s == pytest.approx(20, abs=CLOSE)


def test_a_hold_on_everything_counts_every_candidate_those_to_adopt_too(subject: Subject) -> None:
    """The alarm on a hold that lasts compares the two."""
    taken_offline(subject)
    subject.add(uuid(2), instance(2))
    subject.add(uuid(3), instance(3), status="offline")
    store = holding(subject)
    assert len(selected(store)) == 2
    hold(store)
    assert store.holds.count_all(soon()) == gauges(store).on_hold == 2
