"""A workspace that lives on a machine which its row does not record, and EC2's event about the one that it records."""

from dataclasses import replace

import pytest

from tests.fakes.world import HEARTBEAT_SECONDS, World
from tests.simulation.adversary import Action, after_event
from tests.simulation.explore import offered
from tests.simulation.simulation import SETTINGS, Actor, Setup, Simulation

LIVING = "workspace 1"
MINUTES = 6
WITHOUT_GRACE = Setup(replace(SETTINGS, restarts=replace(SETTINGS.restarts, grace_s=0.0)))


class Once:
    """Does something to the workspace at one point of the cycle, and notes the calls at all of them."""

    def __init__(self, point: int | None = None, action: Action | None = None) -> None:
        self._point, self._action = point, action
        self.calls: list[str] = []

    def __call__(self, simulation: Simulation, actor: Actor, call: str) -> None:
        self.calls.append(call)
        if self._action is not None and len(self.calls) - 1 == self._point:
            self._action.act(simulation, actor, LIVING)


def living_elsewhere(offset_s: float) -> World:
    """Return a world so long after a heartbeat of the workspace. Its recorded machine has just been terminated."""
    world = World(is_lively=True)
    for number in range(1, 5):
        world.add(f"workspace {number}", "running")
    world.elsewhere.add(LIVING)
    tables = world.tables
    tables.now += HEARTBEAT_SECONDS - tables.now % HEARTBEAT_SECONDS
    world.live()
    tables.now += offset_s
    world.become(tables.workspaces[LIVING].instance_id, "terminated")
    return world


def live_on(world: World, setup: Setup, adversary: Once) -> None:
    """Run a cycle after the event, and then a few minutes."""
    simulation = Simulation(world, setup, adversary)
    simulation.minute(after_event(world, LIVING))
    simulation.adversary = None
    for _ in range(MINUTES):
        simulation.minute()


@pytest.mark.parametrize("grace_s", [0.0, 180.0])
@pytest.mark.parametrize("offset_s", range(0, int(HEARTBEAT_SECONDS), 3))
def test_it_is_flipped_and_back_with_its_next_heartbeat_and_never_restarted(offset_s: int, grace_s: float) -> None:
    world = living_elsewhere(float(offset_s))
    live_on(world, Setup(replace(SETTINGS, restarts=replace(SETTINGS.restarts, grace_s=grace_s))), Once())
    assert [one for one, _ in world.tables.events] == [LIVING]
    assert [(one.workspace_id, one.outcome) for one in world.tables.restarts] == [(LIVING, "cancelled")]
    assert (world.tables.workspaces[LIVING].status, world.asked) == ("online", [])


def test_whatever_happens_once_in_that_cycle_it_is_never_restarted() -> None:
    undisturbed = Once()
    live_on(living_elsewhere(7.0), WITHOUT_GRACE, undisturbed)
    calls = undisturbed.calls[: undisturbed.calls.index("fleet_gauges")]
    schedules = [(point, action) for point, call in enumerate(calls) for action in offered(call)]
    assert len(schedules) > 150
    harmed = []
    for point, action in schedules:
        world = living_elsewhere(7.0)
        live_on(world, WITHOUT_GRACE, Once(point, action))
        if world.asked:
            harmed.append((calls[point], action.name))
    assert harmed == []
