"""What cannot be promised: the schedules that do harm, and how narrow they are."""

import pytest

from tests.fakes.world import World
from tests.simulation.adversary import ACTIONS
from tests.simulation.explore import AT_ONCE, smallest_world
from tests.simulation.simulation import Actor, Simulation

WORKSPACE = "workspace 1"
_NAMED = {action.name: action for action in ACTIONS}


def after(state: str, *happenings: tuple[str, int, str]) -> World:
    """Run one cycle in which something happens before the nth call of a kind; return the world."""
    seen: dict[str, int] = {}

    def adversary(simulation: Simulation, actor: Actor, call: str) -> None:
        seen[call] = seen.get(call, 0) + 1
        for when, nth, name in happenings:
            if (when, nth) == (call, seen[call]):
                assert _NAMED[name].act(simulation, actor, WORKSPACE)

    world = World.restored(smallest_world(state))
    Simulation(world, AT_ONCE, adversary).minute()
    return world


@pytest.mark.parametrize("change", ["records another instance", "reprovisions it"])
def test_a_row_that_changes_between_the_claim_and_the_platforms_own_read_loses_its_new_instance(change: str) -> None:
    world = after("stopped", ("restart", 1, change))
    assert world.windows == 1
    assert [one.state for one in world.instances.values() if one.before == "running"] == ["terminated"]


@pytest.mark.parametrize("change", ["records another instance", "reprovisions it"])
def test_a_row_that_changes_any_earlier_keeps_its_new_instance(change: str) -> None:
    for when in ("select", "recall", "flip", "inside flip", "cancel_moved_on", "due", "claim"):
        world = after("stopped", (when, 1, change))
        assert world.windows == 0
        assert not any(one.before == "running" for one in world.instances.values()), when


def test_a_function_that_is_frozen_in_that_window_asks_again_when_it_thaws() -> None:
    world = after("stopped", ("restart", 1, "frozen, a second cycle"))
    assert len(world.asked) == 2


def test_a_workspace_whose_running_instance_ec2_twice_calls_stopped_is_flipped() -> None:
    stale = [("probe", number, "EC2 is stale") for number in (1, 2)]
    assert after("stopped", ("check_rights", 1, "starts the instance"), *stale).stale_flips == 1
    assert after("stopped", ("check_rights", 1, "starts the instance"), stale[0]).flipped == 0


def test_a_heartbeat_saves_a_workspace_whose_running_instance_ec2_twice_calls_stopped() -> None:
    stale = [("probe", number, "EC2 is stale") for number in (1, 2)]
    beats = ("recall", 1, "records a heartbeat")
    assert after("stopped", ("check_rights", 1, "starts the instance"), *stale, beats).flipped == 0
