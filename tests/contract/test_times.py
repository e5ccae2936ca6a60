"""What every store does about times that a clock, while it was wrong, has left in the future."""

import pytest

from handler.domain.decide import Fleet
from handler.domain.model import Verdict
from handler.store import Store
from tests.contract.steps import (
    CLOSE,
    accepted,
    decide,
    doubt,
    due,
    flipped,
    gauges,
    holding,
    note,
    save,
    soon,
    the_due,
    watched,
)
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

A_YEAR_S, LONGEST_WAIT_S, WINDOW_S = 365 * 86_400.0, 900.0, 600.0


def taken_back(subject: Subject) -> Store:
    """Have the clock show a year too much until now, and then a cycle take back what it left."""
    subject.age(-A_YEAR_S)
    store = holding(subject, 1)
    store.memory.take_back_times(soon(), longest_wait_s=LONGEST_WAIT_S)
    return store


def test_a_restart_is_due_after_the_longest_wait(subject: Subject) -> None:
    flipped(subject, grace_s=180.0)
    store = taken_back(subject)
    subject.age(LONGEST_WAIT_S - CLOSE)
    assert due(store) == []
    subject.age(2 * CLOSE)
    assert the_due(store).workspace_id == uuid(1)
    subject.age(60)
    assert gauges(store).oldest_restart_age_s == pytest.approx(60 + CLOSE, abs=CLOSE)


def test_times_that_may_be_ahead_stay(subject: Subject) -> None:
    store = flipped(subject, grace_s=180.0)
    store.memory.take_back_times(soon(), longest_wait_s=LONGEST_WAIT_S)
    subject.age(180 + CLOSE)
    assert the_due(store).workspace_id == uuid(1)


def test_a_watch_goes_on(subject: Subject) -> None:
    store = flipped(subject)
    restart = accepted(store)
    note(store, up=[restart.id])
    store = taken_back(subject)
    subject.age(300)
    (one,) = watched(store)
    assert one.up_s == pytest.approx(300, abs=CLOSE)
    store = holding(subject)
    note(store, not_up=[restart.id])
    subject.age(601)
    assert gauges(store).restarts_unrecovered == 1


def test_flips_leave_the_breakers_window(subject: Subject) -> None:
    flipped(subject)
    store = taken_back(subject)
    subject.age(WINDOW_S + CLOSE)
    assert store.doubts.recall(soon(), breaker_window_s=WINDOW_S).fleet == Fleet()


def test_doubts_grow_old(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    save(holding(subject), doubt())
    store = taken_back(subject)
    subject.age(100)
    ((_, known),) = store.doubts.recall(soon(), breaker_window_s=WINDOW_S).doubts.items()
    assert [known.age_s, known.seen_s] == pytest.approx([100, 100], abs=CLOSE)
    assert gauges(store).oldest_doubt_s == pytest.approx(100, abs=CLOSE)


def test_an_absence_grows_old_while_its_restart_is_owed(subject: Subject) -> None:
    store = flipped(subject)
    decide(store, the_due(store), "not_found")
    store = taken_back(subject)
    subject.age(LONGEST_WAIT_S + CLOSE)
    assert the_due(store).absent_s == pytest.approx(LONGEST_WAIT_S + CLOSE, abs=CLOSE)


def test_a_locked_row_costs_only_itself(subject: Subject) -> None:
    store = flipped(subject, 1, 2)
    for number in (3, 4):
        subject.add(uuid(number), instance(number))
    save(store, doubt(3, Verdict.DEAD), doubt(4, Verdict.DEAD))
    subject.age(-A_YEAR_S)
    store = holding(subject, 1)
    with subject.locked_own("restarts", uuid(1)), subject.locked_own("doubts", uuid(3)):
        store.memory.take_back_times(soon(), longest_wait_s=LONGEST_WAIT_S)
    subject.age(LONGEST_WAIT_S + CLOSE)
    assert [one.restart.workspace_id for one in due(store)] == [uuid(2)]
    known = store.doubts.recall(soon(), breaker_window_s=0).doubts
    assert [known[uuid(number), Verdict.DEAD].age_s > 0 for number in (3, 4)] == [False, True]
