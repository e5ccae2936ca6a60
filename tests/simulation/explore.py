"""Schedules: all of them for the smallest world, and random ones for larger worlds."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import pytest

from handler.domain.restarts import RECOVERY_SECONDS
from handler.request import APPLY, DRY_RUN, Request
from tests.fakes.world import World
from tests.simulation.adversary import ACTIONS, Action, after_event, narrowed
from tests.simulation.simulation import FULL, SETTINGS, Actor, Setup, Simulation, ViolationError

# What happens in one cycle: at which point, which action. Points are counted from the cycle's first call.
Script = tuple[tuple[int, Action], ...]

# So slow that the deadline cuts off what one cycle cannot reach.
SLOW_PROBE_SECONDS = 9.0
MOST_WORKSPACES, MOST_CYCLES, MOST_ACTIONS = 5, 6, 6
# In so many worlds workspaces send heartbeats, and the platform's monitor takes silent ones offline.
LIVELY = 0.4
# So many cycles come after an event of EC2's, of such an age: of a moment ago, of the future, old, or without a time.
EVENTS, EVENT_AGES_S = 0.15, (0.0, 2.0, 40.0, 200.0, -50.0, 1000.0, None)
HEARTBEAT_AGES_S = (70.0, 130.0, 300.0)
ORDERS = (
    *(FULL,) * 12,
    Request(DRY_RUN),
    *(narrowed("workspace 1"), narrowed("workspace 1", adopt=True)),
    Request(APPLY, override_breaker=True),
)
# In so many schedules a first cycle is left alone, and some time passes, so that restarts are due, or doubts old.
LATER, GRACE_OVER_SECONDS = 0.5, 240.0
# In the smallest world, a cycle may ask for a restart right after its flip.
AT_ONCE: Setup = Setup(replace(SETTINGS, restarts=replace(SETTINGS.restarts, grace_s=0.0)))
# Half of what happens at a point is something that can happen at few others.
SPECIAL = 0.5
_LIKELY = {
    "probe": 0.2,
    "flip": 0.3,
    "inside flip": 0.4,
    "connect": 0.2,
    "claim": 0.3,
    "inside claim": 0.3,
    "restart": 0.8,
    "accepted": 0.3,
    "record_answer": 0.3,
}
_UNLIKELY = 0.03
# A heartbeat so old vetoes a full cycle's flip.
YOUNG_SECONDS = 10.0
# After a crash, the next cycle has to wait for so long at most.
LEASE_SECONDS = 60.0


@cache
def offered(call: str) -> tuple[Action, ...]:
    """Return what can happen at a point before that call."""
    return tuple(one for one in ACTIONS if one.offered(call))


@cache
def special(call: str) -> tuple[Action, ...]:
    """Return what can happen at such a point, and at few others."""
    return tuple(one for one in offered(call) if not one.offered("due"))


class _NoEffectError(BaseException):
    """An action has no effect, so the schedule is the same as one without it."""


class Scripted:
    """Plays a script on the only workspace, and notes at which call each point was."""

    def __init__(self, script: Script, workspace_id: str) -> None:
        self._script, self._workspace_id = script, workspace_id
        self.calls: list[str] = []

    def __call__(self, simulation: Simulation, actor: Actor, call: str) -> None:
        point = len(self.calls)
        self.calls.append(call)
        for at, action in self._script:
            if at == point:
                simulation.disturb(action.name)
                if not action.act(simulation, actor, self._workspace_id):
                    raise _NoEffectError


@dataclass(slots=True)
class Exhaustive:
    """Every schedule of a world with one workspace, with a number of actions in each cycle, at any points.

    A cycle keeps nothing in memory for the next one, so worlds that are equal between two cycles have the same future:
    that future is run once, and counted as often as it is reached.
    """

    world: bytes
    workspace_id: str = "workspace 1"
    setup: Setup = AT_ONCE
    # The first cycle comes after an event of EC2's, of that age.
    event_age_s: float | None = None
    _known: dict[tuple[bytes, tuple[int, ...]], int] = field(default_factory=dict)

    def schedules(self, *actions: int) -> int:
        """Run all schedules, also those with fewer actions in a cycle; return how many have all actions.

        Raises ViolationError, with what happens in the schedule, line by line.
        """
        return self._from(self.world, actions, ())

    def _from(self, start: bytes, actions: tuple[int, ...], before: tuple[Script, ...]) -> int:
        key = (start, actions)
        if key not in self._known:
            if actions:
                self._known[key] = sum(
                    self._from(end, actions[1:], (*before, script)) * (len(script) == actions[0])
                    for script, end in self._ends(start, actions[0], before)
                )
            else:
                self._run(start, None, before)
                self._known[key] = 1
        return self._known[key]

    def _ends(self, start: bytes, actions: int, before: tuple[Script, ...]) -> Iterator[tuple[Script, bytes]]:
        """Yield each script of one cycle, and the world that it leaves."""
        scripts: list[Script] = [()]
        while scripts:
            script = scripts.pop()
            adversary = Scripted(script, self.workspace_id)
            end = self._run(start, adversary, (*before, script))
            if end is None:
                continue
            yield script, end
            if len(script) < actions:
                first = script[-1][0] if script else 0
                for point, call in enumerate(adversary.calls[first:], first):
                    scripts += [(*script, (point, action)) for action in offered(call)]

    def _run(self, start: bytes, adversary: Scripted | None, scripts: tuple[Script, ...]) -> bytes | None:
        """Run a cycle (without an adversary: until all is settled); return the world if every action had an effect."""
        simulation = Simulation(World.restored(start), self.setup, adversary)
        try:
            if adversary is None:
                simulation.settle()
            else:
                simulation.minute(self._order(simulation.world, len(scripts) - 1))
        except _NoEffectError:
            return None
        except ViolationError as error:
            raise ViolationError("\n".join(self.tell(scripts))) from error
        return simulation.world.snapshot()

    def _order(self, world: World, number: int) -> Request:
        """Return what the cycle of that number, the first being 0, is to do."""
        if self.event_age_s is None or number:
            return FULL
        return after_event(world, self.workspace_id, age_s=self.event_age_s)

    def tell(self, scripts: tuple[Script, ...]) -> list[str]:
        """Run one schedule; return what happened, up to the violation if there is one."""
        trace: list[str] = []
        simulation = Simulation(World.restored(self.world), self.setup, None, trace)
        try:
            for number, script in enumerate(scripts):
                simulation.adversary = Scripted(script, self.workspace_id)
                simulation.minute(self._order(simulation.world, number))
            simulation.settle()
        except ViolationError as error:
            trace.append(f"VIOLATION: {error}")
        return trace


OFFLINE, OWED, WATCHED, JUST_STOPPED = "offline", "owed", "watched", "just stopped"
STATES = ("stopped", "running", OFFLINE, OWED, WATCHED)


def smallest_world(state: str) -> bytes:
    """Return a world with one workspace, whose instance is in that state.

    Or it is stopped, and the workspace is further on: taken OFFLINE by the platform's monitor after a cycle had seen it
    dead; OWED a restart that is due; or WATCHED, because the platform has accepted a restart in vain. JUST_STOPPED, its
    last heartbeat is seconds old.
    """
    world = World()
    if state == JUST_STOPPED:
        world.add("workspace 1", "stopped", heartbeat_age_s=YOUNG_SECONDS)
        return world.snapshot()
    world.add("workspace 1", "stopped" if state in (OFFLINE, OWED, WATCHED) else state)
    simulation = Simulation(world, AT_ONCE, None)
    if state == OFFLINE:
        simulation.adversary = _once("flip", lambda actor: setattr(actor, "crashed", True))
        simulation.minute()
        world.take_offline("workspace 1")
    elif state in (OWED, WATCHED):
        simulation.adversary = _once(
            *(
                ("claim", lambda actor: setattr(actor, "crashed", True))
                if state == OWED
                else ("restart", lambda _: setattr(world, "platform_mood", "in vain"))
            )
        )
        simulation.minute()
    world.tables.now += RECOVERY_SECONDS if state == WATCHED else LEASE_SECONDS
    return world.snapshot()


def _once(call: str, act: Callable[[Actor], object]) -> Callable[[Simulation, Actor, str], None]:
    """Return an adversary that acts at every call of that name."""

    def adversary(_: Simulation, actor: Actor, at: str) -> None:
        if at == call:
            act(actor)

    return adversary


class Random:
    """Acts at random a limited number of times, more often where it matters most."""

    def __init__(self, chance: random.Random, *, actions: int) -> None:
        self._chance, self._left = chance, actions

    def __call__(self, simulation: Simulation, actor: Actor, call: str) -> None:
        chance, workspaces = self._chance, simulation.world.tables.workspaces
        if not self._left or not workspaces or chance.random() > _LIKELY.get(call, _UNLIKELY):
            return
        actions = special(call) if chance.random() < SPECIAL else offered(call)
        action, one = chance.choice(actions or offered(call)), chance.choice(list(workspaces))
        self._left -= 1
        simulation.disturb(f"{action.name} ({one})")
        action.act(simulation, actor, one)


def walk(seed: int, trace: list[str] | None = None) -> World:
    """Run the schedule of that seed, and return the world it ends in. Raises ViolationError."""
    # It has to be the same each time.
    chance, of_events = random.Random(seed), random.Random(f"events of {seed}")  # noqa: S311
    world, count = World(), chance.randint(1, MOST_WORKSPACES)
    for number in range(1, count + 1):
        state = chance.choice(("running", "running", "stopped", "terminated", None))
        world.add(
            f"workspace {number}",
            state,
            streak=chance.choice((None, None, 0, 2, 3)),
            heartbeat_age_s=chance.choice(HEARTBEAT_AGES_S),
        )
    world.probe_takes_s = chance.choice((0.0, 0.0, 0.0, SLOW_PROBE_SECONDS))
    world.is_lively = chance.random() < LIVELY
    world.monitor_restarts = chance.random() < LIVELY
    settings = replace(
        SETTINGS,
        candidate_limit=chance.choice((2, 100)),
        heartbeat_fresh_seconds=chance.choice((0.0, 60.0)),
        restarts=replace(
            SETTINGS.restarts,
            per_cycle=chance.choice((1, 100)),
            uncertain_s=chance.choice((110.0, 300.0)),
            grace_s=chance.choice((0.0, 0.0, 0.0, 180.0)),
        ),
        breaker=replace(SETTINGS.breaker, min_dead=chance.choice((2, 3))),
    )
    setup = Setup(settings, in_bulk=chance.random() < 0.5, claims_ahead=chance.choice((1, 8)))
    cycles = chance.randint(2, MOST_CYCLES)
    simulation = Simulation(world, setup, None, trace)
    if chance.random() < LATER:
        simulation.minute()
        world.tables.now += chance.choice((0.0, GRACE_OVER_SECONDS))
    simulation.adversary = Random(chance, actions=chance.randint(1, MOST_ACTIONS))
    for _ in range(cycles):
        order = chance.choice(ORDERS)
        simulation.minute(_events(world, of_events) if of_events.random() < EVENTS else order)
    simulation.settle()
    return world


def _events(world: World, chance: random.Random) -> Request:
    workspaces = [*world.tables.workspaces]
    named = chance.sample(workspaces, chance.randint(min(1, len(workspaces)), len(workspaces)))
    return after_event(world, *named, age_s=chance.choice(EVENT_AGES_S))


@contextmanager
def told(trace: list[str], seed: int) -> Iterator[None]:
    """Add to a violation what happened before it, line by line, and the seed."""
    try:
        yield
    except ViolationError as error:
        raise ViolationError("\n".join([*trace, f"VIOLATION: {error}", f"seed {seed}"])) from error


def no_walk_breaks_anything(walk: Callable[[int], tuple[World, Counter[str]]], walks: int) -> Counter[str]:
    """Walk with each seed below `walks`; return what happened, with the ends of restarts and the absences.

    `walk` returns the world that it ends in, and what its adversary saw. Fails at a violation.
    """
    happened: Counter[str] = Counter()
    for seed in range(walks):
        try:
            world, seen = walk(seed)
        except ViolationError as error:
            pytest.fail(str(error))
        happened += seen
        happened.update(restart.outcome or "open" for restart in world.tables.restarts)
        happened["absent"] += len(world.unfound)
    return happened


def tell(seed: int) -> list[str]:
    """Return what happens in the schedule of that seed, line by line, up to the violation if there is one."""
    trace: list[str] = []
    try:
        walk(seed, trace)
    except ViolationError as error:
        trace.append(f"VIOLATION: {error}")
    return trace
