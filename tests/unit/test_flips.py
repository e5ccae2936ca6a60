"""Sets of flips: how they are put together, and what an error costs."""

from collections.abc import Callable, Sequence

import pytest

from handler.deadline import Deadline
from handler.domain.evidence import Confirmed, DatabaseClock
from handler.domain.model import SkipReason
from handler.errors import ConnectionLostError, NotWrittenError, StoreError
from handler.flips import LONGEST_LOCK_SECONDS, Flipper, FlipResults
from handler.store import FlipOutcomes, FlipPolicy, Flips
from handler.telemetry import CycleLog
from tests.fakes.world import World
from tests.unit.builders import Log, instance, number_of, saw, uuid
from tests.unit.invocation import Invocation, fleet

TRIGGER = StoreError("no", sqlstate="P0001")
TIMEOUT = StoreError("too slow", sqlstate="57014")


class Database(Flips):
    """The flips in memory, which may fail first; `sets` has the numbers of the workspaces in each attempt."""

    def __init__(self, flips: Flips, before: Callable[[list[int]], None]) -> None:
        self._flips, self._before = flips, before
        self.sets: list[list[int]] = []

    def flip(self, deadline: Deadline, confirmed: Sequence[Confirmed], policy: FlipPolicy) -> FlipOutcomes:
        self.sets.append([number_of(one.second.workspace.id) for one in confirmed])
        self._before(self.sets[-1])
        return self._flips.flip(deadline, confirmed, policy)


def flip(
    count: int,
    before: Callable[[list[int]], None] = lambda _: None,
    *,
    world: World | None = None,
) -> tuple[FlipResults, list[list[int]]]:
    """Flip so many dead workspaces; return the results, and the sets that were attempted."""
    world = world or fleet(count, **dict.fromkeys((f"_{number}" for number in range(1, count + 1)), "stopped"))
    invocation = Invocation(world, in_bulk=True)
    world.tables.lease = (invocation.cycle_id, world.tables.now + 3600)
    settings = invocation.settings
    clock = DatabaseClock(world.tables.now, world.tables.now)
    policy = FlipPolicy(
        repr(world.tables.now), clock, "ec2", 60, settings.crash_loop, settings.restarts, released=False
    )
    store = Database(invocation.store().flips, before)
    flipper = Flipper(store, invocation.probe(), policy, settings, CycleLog())
    heartbeats = [repr(row.heartbeat_at) for row in world.tables.workspaces.values()]
    first = [saw("stopped", number, heartbeat=heartbeats[number - 1]) for number in range(1, count + 1)]
    return flipper.flip(first, invocation.deadline(30)), store.sets


def flipped(results: FlipResults) -> list[int]:
    return [number_of(one.workspace_id) for one in results.flips]


def test_two_hundred_are_flipped_together() -> None:
    results, sets = flip(450)
    assert [len(one) for one in sets] == [200, 200, 50]
    assert len(flipped(results)) == 450


@pytest.mark.parametrize("error", [TRIGGER, NotWrittenError("not written")], ids=["a trigger", "a rule"])
def test_an_error_of_one_row_costs_that_row_alone(error: StoreError, log: Log) -> None:
    def fail(numbers: list[int]) -> None:
        if 7 in numbers:
            raise error

    results, _ = flip(16, fail)
    assert flipped(results) == [number for number in range(1, 17) if number != 7]
    assert results.reasons == {uuid(7): SkipReason.RECONFIRM_ERROR}
    (line,) = log.lines("re-read or flip failed")
    assert line["workspace_id"] == uuid(7)


def test_after_five_rows_that_fail_alike_no_set_is_split_any_more() -> None:
    def fail(_: list[int]) -> None:
        raise TRIGGER

    results, sets = flip(450, fail)
    assert sets[:5] == [list(range(1, size + 1)) for size in (200, 100, 50, 25, 12)]
    assert len(sets) < 25
    assert results.skipped == {SkipReason.RECONFIRM_ERROR: 450}


def test_bad_rows_side_by_side_stop_nobody() -> None:
    def fail(numbers: list[int]) -> None:
        if any(number < 20 for number in numbers):
            raise TRIGGER

    results, _ = flip(64, fail)
    assert sorted(flipped(results)) == list(range(20, 65))
    assert results.skipped == {SkipReason.RECONFIRM_ERROR: 19}


def test_bad_rows_among_good_ones_stop_nobody() -> None:
    def fail(numbers: list[int]) -> None:
        if any(number % 4 == 0 for number in numbers):
            raise TRIGGER

    results, _ = flip(64, fail)
    assert flipped(results) == [number for number in range(1, 65) if number % 4]


@pytest.mark.parametrize("error", [TIMEOUT, ConnectionLostError("gone")], ids=["a time-out", "the connection broke"])
def test_a_set_that_fails_as_a_whole_is_tried_once_more_in_smaller_ones(error: StoreError) -> None:
    errors = iter([error])

    def fail(_: list[int]) -> None:
        for one in errors:
            raise one

    results, sets = flip(400, fail)
    assert [len(one) for one in sets] == [200, 100, 100, 100, 100]
    assert len(flipped(results)) == 400


def test_a_row_that_takes_too_long_costs_fewer_others_each_time() -> None:
    def fail(numbers: list[int]) -> None:
        if 7 in numbers:
            raise TIMEOUT

    results, _ = flip(200, fail)
    assert flipped(results) == list(range(101, 201))


def slow_database(world: World, then: Callable[[], object] = lambda: None) -> Callable[[list[int]], None]:
    """Return a database that fails once, so that sets are smaller, and then takes six seconds for one of them."""
    turns = iter([0.0, 6.0])

    def take_long(numbers: list[int]) -> None:
        took_s = next(turns, None)
        if took_s == 0.0:
            raise TIMEOUT
        if took_s:
            world.tables.now += took_s
            then()
        del numbers

    return take_long


def all_dead(count: int) -> World:
    return fleet(count, **dict.fromkeys((f"_{number}" for number in range(1, count + 1)), "stopped"))


def test_evidence_that_expired_meanwhile_is_gathered_once_more() -> None:
    world = all_dead(400)
    results, sets = flip(400, slow_database(world), world=world)
    assert [len(one) for one in sets] == [200, 100, *[50] * 8]
    assert flipped(results) == list(range(1, 401))


def test_sets_that_take_almost_as_long_as_they_may_cost_nobody_the_evidence() -> None:
    world = all_dead(1200)

    def take_long(_: list[int]) -> None:
        world.tables.now += 0.99 * LONGEST_LOCK_SECONDS

    results, sets = flip(1200, take_long, world=world)
    assert [len(one) for one in sets] == [200] * 6
    assert len(flipped(results)) == 1200


@pytest.mark.parametrize(
    ("probe_takes_s", "reason"), [(30.0, SkipReason.OUT_OF_TIME), (20.0, SkipReason.NOT_CONFIRMED)]
)
def test_a_second_probe_that_the_deadline_cut_off_says_nothing(probe_takes_s: float, reason: SkipReason) -> None:
    """The next cycle begins with those for whom no time was left. One that times out before is no answer."""
    world = all_dead(1)
    world.probe_takes_s = probe_takes_s
    results, _ = flip(1, world=world)
    assert results.skipped == {reason: 1}


def test_machines_that_run_again_by_then_are_left_alone() -> None:
    world = all_dead(400)

    def start_again() -> None:
        for number in range(301, 401):
            world.instances[instance(number)].state = "running"

    results, _ = flip(400, slow_database(world, start_again), world=world)
    assert results.skipped == {SkipReason.NOT_CONFIRMED: 100}
