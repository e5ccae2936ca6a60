"""No schedule breaks an invariant: all of the smallest world's, and random ones of larger worlds."""

import pytest

from tests.simulation.explore import Exhaustive, smallest_world, tell, walk
from tests.simulation.simulation import ViolationError
from tests.simulation.world import BEFORE

WALKS, CHUNKS = 4_000, 4

pytestmark = pytest.mark.no_cover  # it would take twice the time; the other tests tell what is covered


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("state", "actions", "at_least"),
    [
        ("stopped", (2, 0), 54_000),
        ("stopped", (1, 1), 92_000),
        ("stopped", (0, 2), 23_000),
        ("running", (1, 1), 56_000),
    ],
)
def test_whatever_happens_twice_in_two_cycles_breaks_nothing(
    state: str, actions: tuple[int, int], at_least: int
) -> None:
    assert Exhaustive(smallest_world(state)).schedules(*actions) >= at_least


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_random_schedule_of_a_larger_world_breaks_anything(chunk: int) -> None:
    for seed in range(chunk, WALKS, CHUNKS):
        try:
            walk(seed)
        except ViolationError:
            pytest.fail("\n".join([*tell(seed), f'run it again: make simulate ARGS="--replay {seed}"']))


def test_the_random_schedules_reach_what_there_is_to_reach() -> None:
    worlds = [walk(seed) for seed in range(600)]
    debts = [debt for world in worlds for debt in world.tables.restarts if debt.cycle_id != BEFORE]
    assert len(debts) > 200
    assert {debt.outcome for debt in debts} >= {"paid", "void"}
    assert any(debt.attempts > 1 for debt in debts)
    assert any(debt.refusals for debt in debts)
    assert any(debt.backoff_until for debt in debts)
    assert any(world.unfound for world in worlds)
    assert any(world.windows for world in worlds)


def test_a_schedule_is_the_same_each_time_it_is_run() -> None:
    assert [tell(seed) for seed in range(20)] == [tell(seed) for seed in range(20)]
