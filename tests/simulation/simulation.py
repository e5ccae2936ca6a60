"""The real cycle in the simulated world, an adversary between its calls, and the invariants that it may not break."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import TypeVar

import pytest

from handler import cycle
from handler.deadline import Deadline
from handler.domain.backoff import LONGEST_CRASH_LOOP_BACKOFF_S
from handler.domain.decide import CANDIDATE_STATUSES, EXTERNAL
from handler.domain.model import NOT_FOUND, Restart, Sighting, Workspace
from handler.domain.report import Report
from handler.errors import ConnectionLostError, ReconcilerError
from handler.request import APPLY, Request
from handler.restarts import worker
from handler.settings import Settings
from handler.telemetry import logger
from tests.fakes.store import Watch, fake_store
from tests.fakes.tables import Row
from tests.fakes.world import DEAD, ERROR, Asked, Platform, Probe, World

FULL = Request(APPLY)
SETTINGS = Settings.from_env({"DATABASE_URL": "postgresql://role:word@simulated/platform?sslmode=disable"})
PERIOD_SECONDS = 60.0
OTHERS = "others"  # who has locked a row, if no cycle has
# This many quiet cycles, each after the longest wait, have to close every restart, even if each accepts only one.
QUIET_CYCLES = 8
QUIET_SECONDS = LONGEST_CRASH_LOOP_BACKOFF_S + 60.0

# Writes that need no lease: they record what happened, or concern the lease itself.
_WITHOUT_LEASE = ("acquire", "release", "accepted", "record_answer", "stop")

Item = TypeVar("Item")
Result = TypeVar("Result")


class CrashError(BaseException):
    """The function is killed. Nothing that it does afterwards has an effect."""


class ViolationError(BaseException):
    """An invariant is broken. No handler of `Exception` may swallow it."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a schedule is run with.

    With `in_bulk`, the probe answers about all instances at once. `claims_ahead` is the number of claims before a call.
    """

    settings: Settings = SETTINGS
    in_bulk: bool = False
    claims_ahead: int = 1


class Actor(Watch):
    """One invocation of the function. It may be frozen, killed, or lose its connection to the database."""

    def __init__(self, simulation: "Simulation", order: Request) -> None:
        self.simulation, self.world, self.order = simulation, simulation.world, order
        self.tables = self.world.tables
        self.world.cycles += 1
        self.cycle_id = f"cycle {self.world.cycles}"
        self.frozen_s = 0.0
        self.crashed = self.remembered = False
        self.fault: str | None = None
        self.closes_at = self.clock() + simulation.setup.settings.cycle_deadline_seconds + cycle.CLOSING_SECONDS
        self.selected: dict[str, tuple[str | None, float | None]] = {}
        self.died: set[str] = set()
        self.answers: dict[str, list[tuple[str, bool]]] = {}
        self.first: dict[str, tuple[str, str]] = {}
        self.claims: dict[int, float] = {}
        self.asked: dict[int, Asked] = {}

    def clock(self) -> float:
        """Return the process's monotonic time, which stands still while it is frozen."""
        return self.tables.now - self.frozen_s

    # what happens to it

    def before(self, call: str) -> None:
        self._point(call)
        if self.fault == "before":
            self.fault = None
            raise ConnectionLostError("simulated: the request is lost")

    def inside(self) -> None:
        self._point("inside flip")

    def after(self, call: str) -> None:
        if call == "select":
            self.selected = {
                one: (row.instance_id, row.heartbeat_at)
                for one, row in self.tables.workspaces.items()
                if row.status in ("online", "degraded")
                and row.instance_id
                and row.runtime != "external"
                and not self.tables.is_on_hold(one)
            }
            self.died |= {one for one, instance in self.world.instances.items() if instance.is_dead}
        if self.fault == "after":
            self.fault = None
            raise ConnectionLostError("simulated: the answer is lost")

    def _point(self, call: str) -> None:
        if not self.crashed:
            self.simulation.point(self, call)
        if self.crashed:
            raise CrashError

    # what it does, checked against the invariants

    def require(self, condition: object, what: str) -> None:
        if not condition:
            raise ViolationError(f"{self.cycle_id}: {what}")

    def wrote(self, call: str, subject: object = None) -> None:
        self.simulation.note(self.cycle_id, "writes:", call)
        self.require(self.order.mode == APPLY, f"a dry run writes: {call}")
        self.require(self.clock() <= self.closes_at, f"{call} after the deadline")
        lease = self.tables.lease
        if call not in _WITHOUT_LEASE:
            is_ours = lease is not None and lease[0] == self.cycle_id and lease[1] > self.tables.now
            self.require(is_ours, f"{call} without the lease")
        if isinstance(subject, Sighting):
            self._flips(subject)
        elif isinstance(subject, Restart) and call == "claim":
            row = self.tables.workspaces.get(subject.workspace_id)
            owed = row is not None and row.status == "offline" and row.instance_id == subject.instance_id
            self.require(owed, "a restart is claimed that is not owed any more")
            self.require(
                not self.tables.is_on_hold(subject.workspace_id), "the restart of a workspace on hold is claimed"
            )
            self.require(not self.tables.is_stopped(), "a restart is claimed though the platform asked for none")
            self.claims[subject.id] = self.tables.now
        elif isinstance(subject, Restart) and call == "accepted":
            asked = self.asked.get(subject.id)
            self.require(asked is not None and not asked.is_refused, "a restart is called accepted that is not")
        elif call == "remember_absences":
            self._remembers()

    def _flips(self, sighting: Sighting) -> None:
        workspace, world, now = sighting.workspace, self.world, self.tables.now
        row, selected = self.tables.workspaces.get(workspace.id), self.selected.get(workspace.id)
        if row is None or selected is None:
            raise ViolationError("a row is flipped that is gone, or was no candidate")
        fresh_s = self.simulation.setup.settings.heartbeat_fresh_seconds
        self.require(row.status in ("online", "degraded"), "a row is flipped that is no candidate")
        self.require(row.runtime != "external", "an external workspace is flipped")
        self.require(not self.tables.is_on_hold(workspace.id), "a workspace on hold is flipped")
        self.require(row.instance_id == selected[0], "a row is flipped that records another instance")
        self.require(row.heartbeat_at == selected[1], "a workspace is flipped that sent a heartbeat")
        young = row.heartbeat_at is not None and row.heartbeat_at > now - fresh_s
        self.require(not young, "a workspace is flipped whose heartbeat is young")
        self._was_dead(workspace)
        world.flipped += 1
        world.flips = [(at, one) for at, one in world.flips if at > now - self._window_s] + [(now, workspace.id)]
        self._bounds_the_damage()

    @property
    def _window_s(self) -> float:
        return self.simulation.setup.settings.breaker.window_s

    def _was_dead(self, workspace: Workspace) -> None:
        """Require that the instance was dead, or was absent for as often and as long as the policy asks."""
        settings, answers = self.simulation.setup.settings, self.answers.get(workspace.instance_id, [])
        seen_dead = [word in (NOT_FOUND, *DEAD) for word, _ in answers[-2:]]
        self.require(seen_dead == [True, True], "a workspace is flipped whose instance was not seen dead twice")
        if workspace.instance_id in self.died:
            return
        times = self.world.unfound.get((workspace.id, workspace.instance_id), [])
        if not self.remembered:  # this cycle's own sighting counts, even if it could not be saved
            times = [*times, self.tables.now]
        if len(times) >= settings.absence.sightings and self.tables.now - times[0] >= settings.absence.min_age_s:
            return
        # EC2 is eventually consistent: nobody can detect that both of its answers were stale.
        stale = all(lied and word in DEAD for word, lied in answers[-2:])
        self.require(stale, "a workspace is flipped whose instance was never dead")
        self.world.stale_flips += 1

    def _bounds_the_damage(self) -> None:
        settings = self.simulation.setup.settings
        flipped = len({one for _, one in self.world.flips})
        most = max(settings.breaker.min_dead - 1, settings.breaker.max_dead_fraction * self.world.population)
        self.require(flipped <= most, f"{flipped} of {self.world.population} are flipped within the breaker's window")

    def _remembers(self) -> None:
        unfound = self.world.unfound
        self.remembered = True
        found = any(word not in (NOT_FOUND, ERROR) for _, word in self.first.values())
        for workspace_id, (instance_id, word) in self.first.items():
            if word == ERROR or not found:
                continue
            kept = unfound.pop((workspace_id, instance_id), [])
            for other in [key for key in unfound if key[0] == workspace_id]:
                del unfound[other]
            if word == NOT_FOUND:
                unfound[workspace_id, instance_id] = [*kept, self.tables.now]

    def answered(self, workspace: Workspace, word: str, *, lied: bool) -> None:
        self.simulation.note(self.cycle_id, "hears:", workspace.instance_id, word, "(a lie)" if lied else "")
        self.answers.setdefault(workspace.instance_id, []).append((word, lied))
        self.first.setdefault(workspace.id, (workspace.instance_id, word))

    def asks(self, workspace_id: str, instance_id: str) -> Asked:
        owed = [
            one for one in self.tables.restarts if (one.workspace_id, one.instance_id) == (workspace_id, instance_id)
        ]
        self.require(owed and owed[-1].id in self.claims, "a restart is asked for without a claim")
        restart_id = owed[-1].id
        words = [word for word, _ in self.answers.get(instance_id, ())]
        self.require(words and words[-1] in (NOT_FOUND, *DEAD), "a restart is asked for, and nobody looked again")
        asked = Asked(restart_id, workspace_id, instance_id, self.claims[restart_id])
        uncertain_s = self.simulation.setup.settings.restarts.uncertain_s
        for earlier in self.world.asked:
            same = (earlier.workspace_id, earlier.instance_id) == (asked.workspace_id, asked.instance_id)
            apart_s = abs(asked.claimed_at - earlier.claimed_at)
            under_way = same and not earlier.is_refused and apart_s < uncertain_s
            self.require(not under_way, "a restart is asked for while an earlier request may be under way")
        self.world.asked.append(asked)
        self.asked[restart_id] = asked
        return asked


# The invocations under way, the innermost last.
_running: list[Actor] = []

# May do anything at a point: before a call, or inside a flip.
Adversary = Callable[["Simulation", Actor, str], None]


class Simulation:
    """Cycles over one world, with an adversary at each point."""

    def __init__(self, world: World, setup: Setup, adversary: Adversary | None, trace: list[str] | None = None) -> None:
        self.world, self.setup, self.adversary, self.trace = world, setup, adversary, trace
        self.waiting: list[Callable[[], object]] = []

    @property
    def depth(self) -> int:
        """How many invocations are running."""
        return len(_running)

    def note(self, *words: str) -> None:
        """Record what happens, if anybody wants to know."""
        if self.trace is not None:
            self.trace.append("    " * (len(_running) - 1) + " ".join(words))

    def point(self, actor: Actor, call: str) -> None:
        """Let others act."""
        self._catch_up()
        self.note(actor.cycle_id, "is at:", call)
        if self.adversary is not None:
            self.adversary(self, actor, call)
            self._catch_up()

    def on_row(self, workspace_id: str, write: Callable[[Row], bool]) -> bool:
        """Write to a row, or, if a flip has locked it, right after the flip; tell whether that has an effect."""
        row = self.world.tables.workspaces.get(workspace_id)
        if row is None or row.locked_by == OTHERS:
            return False
        if row.locked_by is None:
            return write(row)
        self.waiting.append(lambda: self.on_row(workspace_id, write))
        return True

    def _catch_up(self) -> None:
        rows = self.world.tables.workspaces.values()
        if self.waiting and all(row.locked_by in (None, OTHERS) for row in rows):
            waiting, self.waiting = self.waiting, []
            for write in waiting:
                write()
        if self.world.jobs:
            self.world.work()

    def cycle(self, order: Request = FULL) -> Report | None:
        """Run one invocation to its end, however it ends; return its report if there is one."""
        actor = Actor(self, order)
        _running.append(actor)
        self.world.died.append(actor.died)
        world, setup = self.world, self.setup
        parts = cycle.Parts(
            actor.cycle_id,
            fake_store(world.tables, actor.cycle_id, actor),
            lambda _: Probe(world, actor, in_bulk=setup.in_bulk, timeout_s=setup.settings.probe_timeout_seconds),
            lambda _: Platform(world, actor),
        )
        deadline = Deadline(setup.settings.cycle_deadline_seconds, clock=actor.clock)
        report = None
        try:
            report, _ = cycle.run(order, setup.settings, parts, deadline)
        except CrashError:
            self.note(f"{actor.cycle_id} has crashed")
        except ReconcilerError as error:
            self.note(f"{actor.cycle_id} fails: {error}")
        finally:
            _running.pop()
            self.world.died.pop()
        self._catch_up()
        self._check_books()
        if report is not None:
            self._check_fairness(actor, report)
        return report

    def minute(self, order: Request = FULL) -> None:
        """Run a cycle, and let the rest of its minute pass."""
        tables = self.world.tables
        ends_at = tables.now + PERIOD_SECONDS
        self.cycle(order)
        for row in tables.workspaces.values():
            row.locked_by = None
        tables.now = max(tables.now, ends_at)
        self._catch_up()

    def settle(self) -> None:
        """Run quiet cycles until no restart is owed, or only blocked ones are. Raises ViolationError if one stays owed.

        If none of the candidates' instances is found at all, "not found" proves nothing, and the restart of an absent
        instance may wait.
        """
        world, self.adversary = self.world, None
        world.lies.clear()
        world.platform_mood = None
        world.probe_takes_s = 0.0
        for _ in range(QUIET_CYCLES):
            if not self._unsettled():
                return
            world.tables.now += QUIET_SECONDS
            self._catch_up()
            self.cycle()
        if self._unsettled():
            raise ViolationError(f"restarts stay owed: {self._unsettled()}")

    def _unsettled(self) -> list[int]:
        world = self.world
        candidates = [
            one
            for one, row in world.tables.workspaces.items()
            if row.status in CANDIDATE_STATUSES
            and row.runtime != EXTERNAL
            and row.instance_id
            and not world.tables.is_on_hold(one)
        ]
        nothing_found = bool(candidates) and not any(map(world.instance_of, candidates))
        return [
            one.id
            for one in world.tables.open_restarts()
            if one.workspace_id not in world.blocked and not (nothing_found and one.instance_id not in world.instances)
        ]

    def _check_books(self) -> None:
        """Check: one event and one restart for each flip; at most one open restart for each workspace."""
        tables = self.world.tables
        restarts = [(one.workspace_id, one.instance_id) for one in tables.restarts]
        if restarts != tables.events or len(restarts) != self.world.flipped:
            raise ViolationError("flips, events and restarts do not agree")
        owed = [one.workspace_id for one in tables.open_restarts()]
        if len(set(owed)) < len(owed):
            raise ViolationError("two open restarts for one workspace")

    def _check_fairness(self, actor: Actor, report: Report) -> None:
        """Check that nobody waits longer than it takes to go round, however little each cycle got done."""
        if actor.order != FULL or report.outcome != "completed" or (report.deferred and not report.checked):
            return
        world = self.world
        world.crowded |= bool(world.tables.coverage.brought_forward)  # at most half of the room is theirs
        room = report.checked if report.deferred else self.setup.settings.candidate_limit
        world.room = min(world.room, room - room // 2 if world.crowded else room)
        bound = ceil(world.population / world.room)
        unchecked = actor.selected.keys() - actor.first.keys()
        world.waited = {one: world.waited.get(one, 0) + 1 for one in unchecked}
        if max(world.waited.values(), default=0) > bound:
            raise ViolationError(f"not everybody was checked within {bound} cycles: {world.waited}")


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Replace the handler's thread pool by simulated calls, and silence its log."""
    level = logger.log_level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "in_parallel", _one_after_another)
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _one_after_another(
    work: Callable[[Item], Result], items: Iterator[Item], deadline: Deadline, *, at_once: int
) -> Iterator[Result]:
    """Do what handler.parallel.in_parallel does, on one thread, so that a schedule runs the same way each time."""
    while not deadline.over():
        taken = list(islice(items, min(at_once, _running[-1].simulation.setup.claims_ahead)))
        if not taken:
            return
        yield from [work(item) for item in taken]
