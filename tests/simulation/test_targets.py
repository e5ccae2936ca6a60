"""Random schedules over two targets: one may be down for a while, or know nobody for a cycle."""

import random
from collections import Counter, deque
from dataclasses import replace
from typing import Any

import pytest

from handler.probes.ec2 import search
from handler.probes.ec2.search import Decided
from handler.probes.ec2.targets import TargetsProbe
from tests.fakes.world import World
from tests.simulation.explore import ORDERS, Random, no_walk_breaks_anything, told
from tests.simulation.simulation import SETTINGS, Actor, Setup, Simulation, ViolationError

WALKS = 1000
NO_GRACE = replace(SETTINGS, restarts=replace(SETTINGS.restarts, grace_s=0.0))
# So often, before a probe, a target goes down or comes back; and knows nobody in a cycle.
GOES, IS_BLIND, IS_COLD = 0.15, 0.15, 0.3


class Targeted:
    """Acts as the other adversary does, and on the targets."""

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._others = chance, Random(chance, actions=chance.randint(0, 4))
        self.happened: Counter[str] = Counter()

    def __call__(self, simulation: Simulation, actor: Actor, call: str) -> None:
        chance, world = self._chance, simulation.world
        self._others(simulation, actor, call)
        if call == "probe" and chance.random() < GOES:
            simulation.disturb("a target goes down, or comes back")
            world.down ^= {chance.randrange(2)}
            self.happened["down"] += 1


def walk(seed: int) -> tuple[World, Counter[str]]:
    """Run the schedule of that seed; return its world, and what happened. Raises ViolationError."""
    chance = random.Random(seed)  # noqa: S311 - it has to be the same each time
    world = World()
    for number in range(1, chance.randint(2, 6)):
        world.add(f"workspace {number}", chance.choice(("running", "running", "stopped", "terminated", None)))
    world.probe_takes_s = chance.choice((0.0, 0.0, 0.2, 9.0))
    adversary = Targeted(chance)
    trace: list[str] = []
    simulation = Simulation(world, Setup(NO_GRACE, targets=2), adversary, trace)
    with told(trace, seed):
        for _ in range(chance.randint(2, 6)):
            world.blind = {chance.randrange(2)} if chance.random() < IS_BLIND else set()
            if chance.random() < IS_COLD:
                simulation.hints.clear()
            simulation.minute(chance.choice(ORDERS))
        simulation.settle()
    return world, adversary.happened


def test_no_schedule_over_two_targets_breaks_anything() -> None:
    happened = no_walk_breaks_anything(walk, WALKS)
    assert min(happened[one] for one in ("down", "accepted", "cancelled", "absent")) > 10


def _believes_failed_targets(asked: search.Search, one: str, case: search._Case) -> Decided:
    case.failure = None
    decided: Decided = _OF(asked, one, case)
    return decided


_OF = vars(search.Search)["_of"]  # as it is, before a test replaces it


@pytest.mark.parametrize(
    ("where", "name", "without"),
    [
        pytest.param(TargetsProbe, "_without_finds", lambda _: [], id="empty target"),
        pytest.param(search.Search, "_of", _believes_failed_targets, id="failed target"),
    ],
)
def test_without_a_guard_some_schedule_breaks_an_invariant(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, without: Any
) -> None:
    monkeypatch.setattr(where, name, without)
    with pytest.raises(ViolationError):
        deque(map(walk, range(WALKS)), maxlen=0)
