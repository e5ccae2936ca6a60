"""What every store does for a state-change cycle: its expiry, its candidates, and its heartbeat rule."""

from collections.abc import Callable

import pytest

from handler.domain.coverage import Coverage, Progress
from handler.domain.model import SkipReason, Verdict
from handler.errors import LeaseLostError
from handler.store import Flipped, Store
from handler.store.lease import MARGIN_SECONDS
from tests.contract.steps import LEASE_S, confirmed, doubt, hold, holding, policy, save, select, soon
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

ALREADY_OVER = -MARGIN_SECONDS - 1.0


def begun(subject: Subject, cycle: int = 0, *, lasts_s: float = LEASE_S) -> Store:
    """Return the store of a state-change cycle that has begun."""
    store = subject.store(cycle, leased=False)
    assert store.lease.acquire(soon(), lasts_s=lasts_s)
    return store


def recording(store: Store, *numbers: int, limit: int = 100) -> list[str]:
    return [one.id for one in store.candidates.recording(soon(), [*map(instance, numbers)], limit=limit).workspaces]


def flip(store: Store, number: int = 1, *, died_s: float | None = 2.0, grace_s: float = 0.0) -> Flipped | SkipReason:
    """Flip a workspace after an event of that age (None: without a time)."""
    selection = store.candidates.recording(soon(), [instance(number)], limit=9)
    (one,) = selection.workspaces
    terms = policy(selection, died_s={instance(number): died_s}, grace_s=grace_s)
    return store.flips.flip(soon(), [confirmed(one)], terms)[one.id]


# --- the expiry ---


def test_it_needs_no_lease_and_takes_none(subject: Subject) -> None:
    holding(subject, 1)
    store = begun(subject)
    subject.add(uuid(1), instance(1))
    assert isinstance(flip(store), Flipped)
    store.lease.release(soon())
    assert not subject.store(0).lease.acquire(soon(), lasts_s=LEASE_S)


def test_two_such_cycles_work_beside_each_other(subject: Subject) -> None:
    stores = begun(subject, 0), begun(subject, 1)
    for number, store in enumerate(stores, 1):
        subject.add(uuid(number), instance(number))
        assert isinstance(flip(store, number), Flipped)


WRITES: dict[str, Callable[[Store], object]] = {
    "save": lambda store: save(store, doubt(1, Verdict.DEAD)),
    "set_reasons": lambda store: store.doubts.set_reasons(soon(), {uuid(1): "why"}),
    "save_coverage": lambda store: store.memory.save_coverage(soon(), Progress(Coverage(), completed_pass=True)),
}


@pytest.mark.parametrize("ended", ["never begun", "over"])
def test_past_its_expiry_it_writes_nothing(subject: Subject, ended: str) -> None:
    store = subject.store(0, leased=False) if ended == "never begun" else begun(subject, lasts_s=ALREADY_OVER)
    subject.add(uuid(1), instance(1))
    for write in WRITES.values():
        with pytest.raises(LeaseLostError):
            write(store)
    assert flip(store) is SkipReason.OUT_OF_TIME
    assert (subject.rows()[uuid(1)][0], subject.events(), subject.restarts(), subject.doubts()) == (
        "online",
        [],
        [],
        [],
    )


def test_it_lasts_longer_than_requested_by_its_margin(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    assert isinstance(flip(begun(subject, lasts_s=0.5 - MARGIN_SECONDS)), Flipped)


# --- the candidates ---


def test_only_rows_that_are_up_and_record_the_instance_are_selected(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    subject.add(uuid(2), instance(2), status="degraded")
    for number, columns in enumerate(
        ({"status": "offline"}, {"status": "paused"}, {"runtime": "external"}, {"status": "provisioning"}), 3
    ):
        subject.add(uuid(number), instance(number), **columns)
    subject.add(uuid(7), instance(7))
    subject.add(uuid(8), None)
    subject.add(uuid(9), "")
    store = begun(subject)
    assert recording(store, 1, 2, 3, 4, 5, 6) == [uuid(1), uuid(2)]
    assert recording(store, 10) == []


def test_a_row_that_was_seen_dead_and_is_offline_is_not_selected(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    save(holding(subject), doubt(1, Verdict.DEAD))
    subject.update(uuid(1), status="offline")
    store = begun(subject)
    assert [one.id for one in select(store).workspaces] == [uuid(1)]
    assert recording(store, 1) == []


def test_two_rows_that_record_one_instance_are_both_selected(subject: Subject) -> None:
    for number in (1, 2):
        subject.add(uuid(number), instance(1))
    assert recording(begun(subject), 1) == [uuid(1), uuid(2)]


def test_a_limit_leaves_some_out_and_says_so(subject: Subject) -> None:
    for number in (1, 2, 3):
        subject.add(uuid(number), instance(number))
    ids = [instance(number) for number in (1, 2, 3)]
    for limit, all_selected in ((2, False), (3, True)):
        selection = begun(subject).candidates.recording(soon(), ids, limit=limit)
        assert (len(selection.workspaces), selection.all_selected) == (limit, all_selected)


def test_a_row_on_hold_is_selected_as_such(subject: Subject) -> None:
    subject.add(uuid(1), instance(1))
    hold(subject.store(), 1)
    (one,) = begun(subject).candidates.recording(soon(), [instance(1)], limit=9).workspaces
    assert one.on_hold


# --- the heartbeat ---


@pytest.mark.parametrize(
    ("died_s", "beat_s", "flips"),
    [
        pytest.param(10.0, 20.0, True, id="before the death"),
        pytest.param(20.0, 18.0, True, id="within the tolerance"),
        pytest.param(20.0, 10.0, False, id="after the death"),
        pytest.param(800.0, 700.0, False, id="after the death, long ago"),
        pytest.param(10.0, None, True, id="none at all"),
        pytest.param(None, 30.0, False, id="young, and no time"),
        pytest.param(None, 90.0, True, id="old, and no time"),
        pytest.param(-30.0, 30.0, False, id="young, and a time to come"),
        pytest.param(-30.0, 90.0, True, id="old, and a time to come"),
        pytest.param(930.0, 30.0, False, id="young, and a time too long ago"),
        pytest.param(930.0, 90.0, True, id="old, and a time too long ago"),
    ],
)
def test_a_heartbeat_vetoes_the_flip_if_it_came_after_the_death(
    subject: Subject, died_s: float | None, beat_s: float | None, flips: bool
) -> None:
    subject.add(uuid(1), instance(1), heartbeat_age_s=beat_s)
    outcome = flip(begun(subject), died_s=died_s)
    assert isinstance(outcome, Flipped) if flips else outcome is SkipReason.FRESH_HEARTBEAT


def test_a_heartbeat_since_the_select_vetoes_the_flip_whatever_its_time(subject: Subject) -> None:
    store = begun(subject)
    subject.add(uuid(1), instance(1))
    selection = store.candidates.recording(soon(), [instance(1)], limit=9)
    subject.heartbeat(uuid(1), age_s=200.0)
    (one,) = selection.workspaces
    terms = policy(selection, died_s={instance(1): 2.0})
    assert store.flips.flip(soon(), [confirmed(one)], terms) == {one.id: SkipReason.FRESH_HEARTBEAT}


def test_each_of_a_set_is_judged_by_its_own_event(subject: Subject) -> None:
    store = begun(subject)
    for number in range(1, 5):
        subject.add(uuid(number), instance(number), heartbeat_age_s=30.0)
    selection = store.candidates.recording(soon(), [instance(number) for number in range(1, 5)], limit=9)
    terms = policy(selection, died_s={instance(1): 20.0, instance(2): 60.0, instance(3): None})
    outcomes = store.flips.flip(soon(), [confirmed(one) for one in reversed(selection.workspaces)], terms)
    assert [isinstance(outcomes[uuid(number)], Flipped) for number in range(1, 5)] == [True, False, False, False]
    rehearsed = store.flips.would_flip(soon(), [confirmed(one) for one in selection.workspaces[1:]], terms)
    assert rehearsed == {uuid(number): SkipReason.FRESH_HEARTBEAT for number in (2, 3, 4)}
