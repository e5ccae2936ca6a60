"""What every store does for shards, the one in memory and the real one: each its own range, and nothing twice."""

from collections.abc import Mapping

import pytest

from handler.domain.coverage import BEFORE_ALL, Coverage, Progress
from handler.domain.doubts import DoubtChanges
from handler.domain.model import Verdict
from handler.domain.shards import WHOLE, Shard
from handler.store import Store
from handler.store.lease import LONGEST_SECONDS
from handler.store.shards import RESTED_SECONDS
from tests.contract.steps import (
    CLOSE,
    LEASE_S,
    accepted,
    doubt,
    due,
    flip,
    flipped,
    gauges,
    holding,
    save,
    select,
    selected,
    soon,
    watched,
)
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

LOW, HIGH = Shard(0, 2), Shard(1, 2)
A_DAY_S = 86_400.0
IN_HIGH = 2**127  # the first id of the upper half
NARROW = Shard(0, 1000)


def leased(subject: Subject, shard: Shard, cycle: int = 0) -> Store:
    """Return the store of a cycle that has the shard's lease."""
    store = subject.store(cycle, shard=shard)
    assert store.lease.acquire(soon(), lasts_s=LEASE_S)
    return store


def after_the_others(subject: Subject, shard: Shard) -> Store:
    """Return the same, taken up, once the leases of the cycles before it have expired."""
    subject.age(LEASE_S + 5)
    store = leased(subject, shard)
    store.memory.take_up(soon())
    return store


def progress(cursor: int, *first: int, completed: bool = False) -> Progress:
    return Progress(Coverage(uuid(cursor), uuid(cursor), tuple(map(uuid, first))), completed)


# --- leases ---


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (LOW, HIGH, False),
        (LOW, LOW, True),
        (WHOLE, HIGH, True),
        (Shard(0, 3), LOW, True),
        (Shard(1, 3), LOW, True),
        (Shard(2, 3), LOW, False),
        (Shard(499, 1000), HIGH, False),
        (Shard(500, 1000), HIGH, True),
        (Shard(332, 999), Shard(1, 3), False),
        (Shard(333, 999), Shard(1, 3), True),
    ],
    ids=str,
)
def test_leases_exclude_each_other_where_their_ranges_overlap(
    subject: Subject, one: Shard, other: Shard, *, overlap: bool
) -> None:
    for first, second in ((one, other), (other, one)):
        theirs, ours = leased(subject, first, 0), subject.store(1, shard=second)
        assert ours.lease.acquire(soon(), lasts_s=LEASE_S) is not overlap
        theirs.lease.release(soon())
        assert ours.lease.acquire(soon(), lasts_s=LEASE_S)
        ours.lease.release(soon())


def test_a_shard_s_lease_that_has_expired_or_lies_far_ahead_keeps_nobody_away(subject: Subject) -> None:
    leased(subject, LOW, 0)
    whole = subject.store(1)
    assert not whole.lease.acquire(soon(), lasts_s=LEASE_S)
    subject.age(LEASE_S + 5)
    assert whole.lease.acquire(soon(), lasts_s=LEASE_S)
    subject.age(-LONGEST_SECONDS - 60)
    assert subject.store(shard=HIGH).lease.acquire(soon(), lasts_s=LEASE_S)


def test_only_the_shard_that_has_the_lease_writes(subject: Subject) -> None:
    subject.add(uuid(IN_HIGH), instance(1))
    leased(subject, LOW, 0)
    high = subject.store(1, shard=HIGH)
    assert flip(high, IN_HIGH) == "out_of_time"
    assert high.lease.acquire(soon(), lasts_s=LEASE_S)
    assert flip(high, IN_HIGH) != "out_of_time"


# --- candidates and coverage ---


def test_a_shard_selects_its_own_from_the_first_id_to_the_last(subject: Subject) -> None:
    ids = {LOW: [0, 5, IN_HIGH - 1], HIGH: [IN_HIGH, IN_HIGH + 7, 2**128 - 1]}
    for number in (one for some in ids.values() for one in some):
        subject.add(uuid(number), instance(1))
    for shard, own in ids.items():
        assert set(selected(subject.store(shard=shard))) == set(map(uuid, own))
    assert set(selected(subject.store())) == {uuid(one) for some in ids.values() for one in some}


def test_each_shard_has_its_own_cursor(subject: Subject) -> None:
    for number in (1, 2, IN_HIGH + 1, IN_HIGH + 2):
        subject.add(uuid(number), instance(1))
    leased(subject, LOW).memory.save_coverage(soon(), progress(1))
    assert selected(subject.store(shard=LOW)) == [uuid(2), uuid(1)]
    assert selected(subject.store(shard=HIGH)) == [uuid(IN_HIGH + 1), uuid(IN_HIGH + 2)]


def test_a_new_shard_goes_on_where_those_before_it_were(subject: Subject) -> None:
    """From the latest of them, if it was in this range; those brought forward come from all of them."""
    after_the_others(subject, Shard(2, 3)).memory.save_coverage(soon(), progress(2**128 - 9, 2**128 - 8))
    after_the_others(subject, WHOLE).memory.save_coverage(soon(), progress(IN_HIGH + 3, 7, IN_HIGH + 8))
    assert select(subject.store(shard=LOW)).coverage == Coverage(BEFORE_ALL, BEFORE_ALL, (uuid(7),))
    high = select(subject.store(shard=HIGH)).coverage
    assert (high.cursor, high.pass_start) == (uuid(IN_HIGH + 3), uuid(IN_HIGH + 3))
    assert set(high.brought_forward) == {uuid(IN_HIGH + 8), uuid(2**128 - 8)}
    after_the_others(subject, HIGH)
    assert select(subject.store(shard=HIGH)).coverage == high, "it has saved nothing yet"


def test_shards_of_another_number_keep_their_cursors(subject: Subject) -> None:
    after_the_others(subject, WHOLE).memory.save_coverage(soon(), progress(5))
    after_the_others(subject, LOW).memory.save_coverage(soon(), progress(9))
    assert select(subject.store()).coverage.cursor == uuid(5)


def test_shards_that_nobody_used_for_a_week_are_forgotten(subject: Subject) -> None:
    after_the_others(subject, Shard(1, 3)).memory.save_coverage(soon(), progress(2**127))
    subject.age(5 * A_DAY_S)
    after_the_others(subject, LOW).memory.save_coverage(soon(), progress(9))
    subject.age(3 * A_DAY_S)
    after_the_others(subject, HIGH).memory.purge(soon())
    assert select(subject.store(shard=LOW)).coverage.cursor == uuid(9), "its set is in use"
    assert select(subject.store(shard=HIGH)).coverage == Coverage()


# --- ages ---


def age(store: Store) -> float:
    return gauges(store).coverage_age_s


def test_the_coverage_is_as_old_as_that_of_the_shard_that_is_behind_most(subject: Subject) -> None:
    """Even if it never ran, and though the other one completes its passes."""
    for _ in range(4):
        after_the_others(subject, LOW).memory.save_coverage(soon(), progress(9, completed=True))
        subject.age(100)
    expected = 4 * 100 + 3 * (LEASE_S + 5)
    assert age(subject.store(shard=LOW)) == pytest.approx(expected, abs=CLOSE)
    assert age(subject.store(shard=HIGH)) == pytest.approx(expected, abs=CLOSE)
    after_the_others(subject, HIGH).memory.save_coverage(soon(), progress(IN_HIGH, completed=True))
    assert age(subject.store(shard=HIGH)) == pytest.approx(100 + LEASE_S + 5, abs=CLOSE)


def test_the_ages_begin_anew_when_a_set_is_used_again_after_another_one(subject: Subject) -> None:
    after_the_others(subject, LOW)
    subject.age(RESTED_SECONDS)
    after_the_others(subject, WHOLE)
    subject.age(60)
    low = after_the_others(subject, LOW)
    assert age(low) == pytest.approx(0, abs=CLOSE)


def test_a_set_that_rests_has_no_age_for_a_cycle_that_finds_another_one_running(subject: Subject) -> None:
    """Such a cycle takes nothing up, but reports: a full cycle by hand beside shards, in a fleet that they cover."""
    after_the_others(subject, WHOLE).memory.save_coverage(soon(), progress(9, completed=True))
    subject.age(A_DAY_S)
    assert age(subject.store()) >= A_DAY_S
    after_the_others(subject, LOW)
    assert age(subject.store()) == 0


def test_a_full_cycle_by_hand_hides_no_shard_that_is_behind(subject: Subject) -> None:
    after_the_others(subject, LOW)
    for _ in range(2):
        subject.age(RESTED_SECONDS / 2)
        after_the_others(subject, WHOLE).memory.save_coverage(soon(), progress(9, completed=True))
        after_the_others(subject, LOW)
    assert age(subject.store(shard=LOW)) > RESTED_SECONDS


def test_a_rest_of_everything_makes_nobody_younger(subject: Subject) -> None:
    after_the_others(subject, WHOLE)
    after_the_others(subject, LOW)
    subject.age(10 * RESTED_SECONDS)
    assert age(after_the_others(subject, LOW)) > 10 * RESTED_SECONDS


# --- doubts ---


def test_a_shard_recalls_its_own_doubts_and_the_whole_fleet(subject: Subject) -> None:
    for number in (1, 2, IN_HIGH, IN_HIGH + 1):
        subject.add(uuid(number), instance(number % 9 + 1))
    save(holding(subject), doubt(1, Verdict.DEAD, instance_id=instance(2)))
    subject.age(LEASE_S + 5)
    high = leased(subject, HIGH)
    save(high, doubt(IN_HIGH, Verdict.DEAD, instance_id=instance(IN_HIGH % 9 + 1)))
    for store, own in ((high, IN_HIGH), (subject.store(1, shard=LOW), 1)):
        memory = store.doubts.recall(soon(), breaker_window_s=600)
        assert memory.doubts.keys() == {(uuid(own), Verdict.DEAD)}
        assert (memory.fleet.up, memory.fleet.remembered) == (4, {uuid(1): True, uuid(IN_HIGH): True})


def test_a_shard_forgets_only_its_own_doubts(subject: Subject) -> None:
    for number in (1, IN_HIGH):
        subject.add(uuid(number), instance(1))
    save(holding(subject), *(doubt(number, instance_id=instance(1)) for number in (1, IN_HIGH)))
    for number in (1, IN_HIGH):
        subject.update(uuid(number), status="removed")
    subject.age(LEASE_S + 5)
    leased(subject, HIGH).doubts.tend(soon())
    assert [one[0] for one in subject.doubts()] == [uuid(1)]


def sources(store: Store, causes: Mapping[str, int]) -> None:
    store.doubts.save(soon(), DoubtChanges((), (), (), (), causes))


def oldest(subject: Subject) -> float:
    return gauges(subject.store()).oldest_doubt_s


def test_one_shard_s_good_minute_does_not_end_another_s_doubt_about_the_source(subject: Subject) -> None:
    low, high = leased(subject, LOW, 0), leased(subject, HIGH, 1)
    sources(low, {"timeout": 2000})
    subject.age(30)
    sources(high, {})
    assert oldest(subject) == pytest.approx(30, abs=CLOSE)
    sources(high, {"timeout": 2000})
    sources(low, {})
    assert oldest(subject) == pytest.approx(0, abs=CLOSE)


def test_a_full_cycle_ends_all_shards_doubts_about_the_source_and_no_part_ends_that_of_a_whole(
    subject: Subject,
) -> None:
    sources(leased(subject, LOW, 0), {"timeout": 2000})
    sources(leased(subject, HIGH, 1), {"throttled": 2000})
    subject.age(LEASE_S + 5)
    sources(leased(subject, NARROW), {})
    assert oldest(subject) > LEASE_S
    subject.age(LEASE_S + 5)
    sources(holding(subject), {})
    assert oldest(subject) == 0


def test_a_doubt_about_the_source_goes_on_under_another_number_of_shards(subject: Subject) -> None:
    sources(holding(subject), {"timeout": 2000})
    subject.age(LEASE_S + 5)
    high = leased(subject, HIGH)
    sources(high, {"timeout": 1001})
    subject.age(RESTED_SECONDS)
    subject.age(-LEASE_S)
    sources(leased(subject, HIGH), {"timeout": 1001})
    assert oldest(subject) > RESTED_SECONDS, "as old as the first one, which has ended"
    sources(leased(subject, HIGH), {})
    assert oldest(subject) == 0


# --- restarts ---


def test_a_shard_looks_after_its_own_restarts(subject: Subject) -> None:
    numbers = (1, 2, IN_HIGH, IN_HIGH + 1)
    for number in numbers:
        subject.add(uuid(number), instance(1))
    store = holding(subject)
    for number in numbers:
        flip(store, number)
    accepted(store, 1)
    accepted(store, IN_HIGH)
    subject.age(LEASE_S + 5)
    low, high = leased(subject, LOW, 0), leased(subject, HIGH, 1)
    for shard, own, watch in ((low, 2, 1), (high, IN_HIGH + 1, IN_HIGH)):
        assert shard.restarts.any_due(soon(), grace_s=0, workspace_ids=None)
        assert [one.restart.workspace_id for one in due(shard)] == [uuid(own)]
        assert [one.restart.workspace_id for one in watched(shard)] == [uuid(watch)]
    low.watches.keep_back(soon(), grace_s=0, workspace_ids=None)
    assert high.watches.kept_back(soon(), workspace_ids=None) == []
    assert [one.workspace_id for one in low.watches.kept_back(soon(), workspace_ids=None)] == [uuid(2)]
    low.watches.release(soon(), workspace_ids=None)
    assert [one.restart.released for one in (*due(low), *due(high))] == [True, False]
    for number in (2, IN_HIGH + 1):
        subject.update(uuid(number), status="online")
    assert [one.workspace_id for one in high.watches.cancel_moved_on(soon())] == [uuid(IN_HIGH + 1)]
    assert [one.workspace_id for one in low.watches.cancel_moved_on(soon())] == [uuid(2)]


def test_the_platform_s_wish_to_be_left_alone_stops_every_shard(subject: Subject) -> None:
    flipped(subject, IN_HIGH)
    subject.age(LEASE_S + 5)
    leased(subject, LOW).restarts.stop(soon(), lasts_s=600)
    assert due(leased(subject, HIGH, 1)) == []
