"""Random schedules of two shards that work beside each other, and of a full cycle in between."""

import random
from collections import Counter, deque
from dataclasses import replace
from unittest.mock import ANY

import pytest

from handler import cycle
from handler.domain.shards import WHOLE, Shard
from handler.request import APPLY, Request
from tests.fakes.world import World
from tests.simulation.explore import SLOW_PROBE_SECONDS, Random, no_walk_breaks_anything, told
from tests.simulation.simulation import FULL, SETTINGS, Actor, Setup, Simulation, ViolationError

WALKS = 800
SHARDS = 2
# So often, before a call, another shard or a full cycle begins and runs to its end.
BEGINS = 0.03
NO_GRACE = replace(SETTINGS, restarts=replace(SETTINGS.restarts, grace_s=0.0))
ORDERS = tuple(Request(APPLY, shard=Shard(number, SHARDS)) for number in range(SHARDS))
# Ids of the lower half and of the upper one.
NAMES = ("1 workspace", "9 workspace", "2 workspace", "a workspace", "3 workspace", "b workspace")


class Beside:
    """Acts as the other adversary does, and lets other shards or a full cycle begin meanwhile."""

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._others = chance, Random(chance, actions=chance.randint(0, 4))
        self.happened: Counter[str] = Counter()

    def __call__(self, simulation: Simulation, actor: Actor, call: str) -> None:
        chance = self._chance
        self._others(simulation, actor, call)
        if simulation.depth < SHARDS and chance.random() < BEGINS:
            order = chance.choice((*ORDERS, *ORDERS, FULL))
            simulation.disturb(f"a cycle of {order.shard} begins")
            report = simulation.cycle(order)
            overlap = WHOLE in (order.shard, actor.order.shard) or order.shard == actor.order.shard
            if report is not None:
                self.happened[f"{report.outcome}, {'overlapping' if overlap else 'beside'}"] += 1


def walk(seed: int) -> tuple[World, Counter[str]]:
    """Run the schedule of that seed; return its world, and what happened. Raises ViolationError."""
    chance = random.Random(seed)  # noqa: S311 - it has to be the same each time
    world = World()
    for name in NAMES[: chance.randint(1, len(NAMES))]:
        world.add(name, chance.choice(("running", "running", "stopped", "terminated", None)))
    world.probe_takes_s = chance.choice((0.0, 0.0, 0.0, SLOW_PROBE_SECONDS))
    adversary = Beside(chance)
    trace: list[str] = []
    settings = replace(
        NO_GRACE,
        breaker=replace(NO_GRACE.breaker, min_dead=chance.choice((2, 3))),
        candidate_limit=chance.choice((1, 100)),
    )
    simulation = Simulation(world, Setup(settings, in_bulk=chance.random() < 0.5, shards=SHARDS), adversary, trace)
    with told(trace, seed):
        for _ in range(chance.randint(2, 5)):
            for order in chance.sample(ORDERS, SHARDS):
                simulation.cycle(order)
            simulation.minute(chance.choice((*ORDERS, FULL)))
        simulation.settle()
    return world, adversary.happened


def test_no_schedule_of_two_shards_breaks_anything() -> None:
    happened = no_walk_breaks_anything(walk, WALKS)
    for one in ("already_running, overlapping", "completed, beside", "accepted", "cancelled", "absent"):
        assert happened[one] > 10, one


def test_without_a_second_look_at_the_fleet_two_shards_flip_too_many_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cycle, "WHOLE", ANY)
    with pytest.raises(ViolationError, match="within the breaker's window"):
        deque(map(walk, range(3 * WALKS)), maxlen=0)
