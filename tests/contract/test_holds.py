"""Holds in memory behave as the real ones do. What locks do to them is in tests/integration/test_hold_in_time.py."""

from collections.abc import Callable

import pytest

from handler.deadline import Deadline
from handler.errors import RequestError, StoreError
from handler.store import ActiveHolds, Store
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

SOON_S, MOST = 30.0, 3


def soon() -> Deadline:
    return Deadline(SOON_S)


def hold(store: Store, *workspaces: str, lasts_s: float = 100, reason: str = "why") -> ActiveHolds:
    """Put the workspaces on hold; with none, everything."""
    return store.holds.place(soon(), workspaces or None, reason=reason, lasts_s=lasts_s, most=MOST)


def shown(active: ActiveHolds) -> list[tuple[str | None, str]]:
    return [(one.workspace_id, one.reason) for one in active.holds]


def test_a_hold_ends_by_itself(subject: Subject) -> None:
    store = subject.store()
    active = hold(store, uuid(1), reason="maintenance")
    (one,) = active.holds
    assert (one.workspace_id, one.reason, one.ends_at[10], one.ends_at[-1]) == (uuid(1), "maintenance", "T", "Z")
    assert (active.singly, active.on_everything, store.gauges(soon()).on_hold) == (1, False, 1)
    subject.age(101)
    assert store.holds.active(soon(), most=MOST) == ActiveHolds([])
    assert store.gauges(soon()).on_hold == 0


def test_a_later_hold_takes_the_place_of_the_earlier_one_longer_or_shorter(subject: Subject) -> None:
    store = subject.store()
    hold(store, uuid(1), uuid(2))
    assert shown(hold(store, uuid(1), lasts_s=500, reason="long")) == [(uuid(2), "why"), (uuid(1), "long")]
    active = hold(store, uuid(1), lasts_s=50, reason="short")
    assert (shown(active), active.singly) == ([(uuid(1), "short"), (uuid(2), "why")], 2)


def test_a_release_ends_what_it_names(subject: Subject) -> None:
    store = subject.store()
    hold(store, uuid(1), uuid(2))
    left = store.holds.release(soon(), [uuid(1), uuid(99)], most=MOST)
    assert (shown(left), left.singly) == ([(uuid(2), "why")], 1)


def test_a_hold_on_everything_and_single_ones_end_each_by_itself(subject: Subject) -> None:
    for number, columns in enumerate(({}, {}, {"status": "offline"}, {"runtime": "external"}), 1):
        subject.add(uuid(number), instance(number), **columns)
    store = subject.store()
    hold(store, uuid(1), uuid(3), lasts_s=50)
    active = hold(store, lasts_s=200)
    assert [one.workspace_id for one in active.holds] == [uuid(1), uuid(3), None]
    assert (active.singly, active.on_everything) == (2, True)
    assert store.holds.count_all(soon()) == store.gauges(soon()).on_hold == 3
    assert store.holds.release(soon(), [uuid(1)], most=MOST).on_everything
    assert shown(store.holds.release(soon(), None, most=MOST)) == [(uuid(3), "why")]
    hold(store)
    subject.age(101)
    assert store.holds.active(soon(), most=MOST) == ActiveHolds([])


def test_the_answer_shows_the_first_to_end_and_counts_all(subject: Subject) -> None:
    store = subject.store()
    for number in range(1, 6):
        hold(store, uuid(number), lasts_s=100 - number)
    active = store.holds.active(soon(), most=MOST)
    assert ([one.workspace_id for one in active.holds], active.singly) == ([uuid(5), uuid(4), uuid(3)], 5)


def test_unknown_workspaces_are_refused_and_a_locked_row_is_known(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    holds = subject.store().holds
    with subject.locked(uuid(1)):
        assert holds.exist(soon(), [uuid(1)])
    with pytest.raises(RequestError):
        holds.exist(soon(), [uuid(1), uuid(2)])


CALLS: dict[str, Callable[[Store, Deadline], object]] = {
    "place": lambda store, late: store.holds.place(late, [uuid(1)], reason="why", lasts_s=9, most=MOST),
    "release": lambda store, late: store.holds.release(late, None, most=MOST),
    "active": lambda store, late: store.holds.active(late, most=MOST),
    "in flight": lambda store, late: store.holds.in_flight(late, None, locked=True),
    "count": lambda store, late: store.holds.count_all(late),
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_begins_without_time_left(subject: Subject, call: str) -> None:
    store = subject.store()
    with pytest.raises(StoreError):
        CALLS[call](store, Deadline(0))
    assert store.holds.active(soon(), most=MOST) == ActiveHolds([])
