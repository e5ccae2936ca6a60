"""The real cycle in the simulated world, an adversary between its calls, and the invariants that it may not break."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil, inf
from typing import Any, TypeVar

import pytest

from handler import cycle, flips
from handler.deadline import Deadline
from handler.domain.backoff import LONGEST_CRASH_LOOP_BACKOFF_S
from handler.domain.doubts import Doubt
from handler.domain.evidence import EVIDENCE_SECONDS, Confirmed
from handler.domain.model import NOT_FOUND, Restart, Sighting, Workspace
from handler.domain.report import Report
from handler.domain.restarts import RECOVERY_SECONDS, UNWANTED
from handler.domain.shards import Shard
from handler.errors import ConnectionLostError, ReconcilerError
from handler.phases import CLOSING_SECONDS
from handler.request import APPLY, Request
from handler.restarts import asking
from handler.settings import Settings
from handler.store.lease import MARGIN_SECONDS
from handler.telemetry import logger
from tests.fakes.store import Watch, fake_store
from tests.fakes.tables import Row, StoredDoubt, StoredRestart, Tables, contains
from tests.fakes.targets import Targets, target_of, without_threads
from tests.fakes.world import DEAD, ERROR, Asked, Platform, Probe, World

FULL = Request(APPLY)
SETTINGS = Settings.from_env({"DATABASE_URL": "postgresql://role:word@simulated/platform?sslmode=disable"})
PERIOD_SECONDS = 60.0
OTHERS = "others"  # who has locked a row, if no cycle has
# So much time passes before each of the quiet cycles that have to close every restart and end every watch, even if each
# accepts only one: long enough for any grace, back-off and watch, and often enough for sightings of absence to add up.
LONG_QUIET_SECONDS = LONGEST_CRASH_LOOP_BACKOFF_S + 60.0
QUIET_SECONDS = (200.0, 200.0, 400.0, *((LONG_QUIET_SECONDS, 400.0, 400.0) * 8))

# Writes that need no lease: they record what happened, or concern the lease itself.
_WITHOUT_LEASE = ("acquire", "release", "accepted", "record_answer", "give_back", "stop")
# All that a cycle after EC2's events may write.
_AFTER_EVENTS = ("forget", "save", "set_reasons", "flip")
# With these statuses, a watch has to end before long.
_WATCH_ENDS = (*UNWANTED, "online", "degraded")

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
    With several `targets`, the real probe over Regions and accounts asks models of them (`targets.py`). With several
    `shards`, each of these has a cycle of its own.
    """

    settings: Settings = SETTINGS
    in_bulk: bool = False
    claims_ahead: int = 1
    targets: int = 1
    shards: int = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """A candidate as the SELECT saw it. `in_turn` tells that it was not brought forward."""

    instance_id: str | None
    heartbeat_at: float | None
    on_hold: bool
    offline: bool
    in_turn: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """What EC2 said of an instance, whether it lied, and when, by the database's clock and by the process's."""

    word: str
    lied: bool
    at: float
    clock: float

    @property
    def is_gone(self) -> bool:
        return self.word in (NOT_FOUND, *DEAD)


def _is_still_meant(tables: Tables, doubt: StoredDoubt) -> bool:
    """Tell whether the row still records the doubt's instance, and is up, or offline by somebody else's hand."""
    row = tables.workspaces.get(doubt.workspace_id)
    if row is None or row.instance_id != doubt.instance_id:
        return False
    restarts = tables.restarts_of(doubt.workspace_id)
    is_flipped = any(one.is_open and one.instance_id == row.instance_id for one in restarts)
    return row.is_up or (row.is_offline and not is_flipped)


class Oracle:
    """The breaker by its two rules, worked out anew from what one cycle saw and what the database says."""

    def __init__(self, actor: "Actor") -> None:
        """Look at the database at the moment at which the cycle reads what is remembered."""
        tables, policy = actor.tables, actor.simulation.setup.settings.breaker
        counted = {one: seen for one, seen in actor.selected.items() if one in actor.swept and not seen.on_hold}
        words = {one: actor.swept[one] for one in counted if actor.swept[one] != ERROR}
        dead_now = {one for one, word in words.items() if word in (NOT_FOUND, *DEAD)}
        in_turn = [one for one in words if counted[one].in_turn and not counted[one].offline]
        acted_on = {
            one.workspace_id
            for one in tables.restarts
            if one.flipped_at > tables.now - policy.window_s
            or (one.is_open and one.kept_back_at is not None and not one.released)
        }
        forgets_nothing = not actor.order.applies and not actor.order.narrowed  # an applied one has done so by now
        remembered = {
            one.workspace_id
            for one in tables.doubts.values()
            if tables.remembers_dead(one) and one.sightings > 0
            if not forgets_nothing or _is_still_meant(tables, one)
        }
        running = {one for one, word in words.items() if word == "running"}
        others = {one for one in acted_on | (remembered - running) if not tables.is_on_hold(one)}
        up = {one for one, row in tables.workspaces.items() if row.is_up and not tables.is_on_hold(one)}
        not_up = {one for one in dead_now if counted[one].offline} | {one for one in others - dead_now if one not in up}
        dead, fleet = len(dead_now | others), len(up) + len(not_up)

        def too_many(dead: int, of: int) -> bool:
            return dead >= policy.min_dead and dead > policy.max_dead_fraction * of

        first = not actor.order.narrowed and too_many(len(dead_now.intersection(in_turn)), len(in_turn))
        self.is_open = not actor.order.override_breaker and (first or too_many(dead, fleet))


class Actor(Watch):
    """One invocation of the function. It may be frozen, killed, or lose its connection to the database."""

    def __init__(self, simulation: "Simulation", order: Request) -> None:
        self.simulation, self.world, self.order = simulation, simulation.world, order
        self.tables = self.world.tables
        self.world.cycles += 1
        self.cycle_id = f"cycle {self.world.cycles}"
        self.frozen_s = 0.0
        self.crashed = self.disturbed = self.coverage_is_saved = False
        self.fault: str | None = None
        self.closes_at = self.clock() + simulation.setup.settings.cycle_deadline_seconds + CLOSING_SECONDS
        self.expires_at = -inf  # of a cycle after EC2's events, at the latest
        self.selected: dict[str, Seen] = {}
        self.died: set[str] = set()
        self.answers: dict[str, list[Answered]] = {}
        self.swept: dict[str, str] = {}  # the first answers, by workspace
        self.breaker: Oracle | None = None
        self.noted: set[tuple[str, str]] = set()  # whose absence this cycle has saved
        self.rows: dict[str, Row] = {}
        self.claims: dict[int, float] = {}
        self.asked: dict[int, Asked] = {}

    @property
    def settings(self) -> Settings:
        return self.simulation.setup.settings

    def clock(self) -> float:
        """Return the process's monotonic time, which stands still while it is frozen."""
        return self.tables.now - self.frozen_s

    # what happens to it

    def before(self, call: str) -> None:
        self._point(call)
        if self.fault == "before":
            self.fault = None
            raise ConnectionLostError("simulated: the request is lost")

    def inside(self, call: str) -> None:
        # A claim locks no row of the platform's. This is its last look at them.
        self.rows = {one: replace(row) for one, row in self.tables.workspaces.items()} if call == "claim" else {}
        self._point(f"inside {call}")

    def after(self, call: str) -> None:
        if call in ("select", "recording"):
            self._selects()
        elif call == "acquire":
            settings = self.simulation.setup.settings
            self.expires_at = self.tables.now + settings.cycle_deadline_seconds + CLOSING_SECONDS + MARGIN_SECONDS
        elif call in ("recall", "fleet"):
            self.breaker = Oracle(self)
        if self.fault == "after":
            self.fault = None
            raise ConnectionLostError("simulated: the answer is lost")

    def _point(self, call: str) -> None:
        if not self.crashed:
            self.simulation.point(self, call)
        if self.crashed:
            raise CrashError

    def _selects(self) -> None:
        tables, first = self.tables, self.tables.coverage_of(self.order.shard).brought_forward
        named = self.order.workspace_ids or ()
        changes = self.order.state_changes
        self.selected = {
            one: Seen(row.instance_id, row.heartbeat_at, tables.is_on_hold(one), row.is_offline, one not in first)
            for one, row in tables.workspaces.items()
            if contains(self.order.shard, one)
            and (changes is None or row.instance_id in changes)
            and (row.is_up or (changes is None and row.is_offline and self._may_be_taken(one, row, named)))
        }
        self.died |= {one for one, instance in self.world.instances.items() if instance.is_dead}

    def _may_be_taken(self, workspace_id: str, row: Row, named: Sequence[str]) -> bool:
        return self._may_be_adopted(workspace_id, row) or (self.order.adopt and workspace_id in named)

    def _may_be_adopted(self, workspace_id: str, row: Row) -> bool:
        tables = self.tables
        remembered = [one for one in tables.doubts_of(workspace_id) if tables.remembers_dead(one)]
        adopts = self.settings.adopt_offline
        known = any(one.instance_id == row.instance_id and (adopts or one.by_hand) for one in remembered)
        return known and tables.live_restart(workspace_id) is None

    # what it does, checked against the invariants

    def require(self, condition: object, what: str) -> None:
        if not condition:
            raise ViolationError(f"{self.cycle_id}: {what}")

    def wrote(self, call: str, subject: object = None) -> None:
        self.simulation.note(self.cycle_id, "writes:", call)
        self.require(self.order.mode == APPLY, f"a dry run writes: {call}")
        self.require(self.clock() <= self.closes_at, f"{call} after the deadline")
        lease = self.tables.leases.get(self.order.shard)
        if self.order.state_changes is not None:
            self.require(call in _AFTER_EVENTS, f"a cycle after EC2's events writes: {call}")
            self.require(self.tables.now < self.expires_at, f"{call} past the expiry")
        elif call not in _WITHOUT_LEASE:
            is_ours = lease is not None and lease[0] == self.cycle_id and lease[1] > self.tables.now
            self.require(is_ours, f"{call} without the lease")
        checks: dict[str, Callable[[Any], None]] = {
            "tend": lambda _: self._looks_who_is_offline(),
            "save_coverage": lambda _: self._checked_these(),
            "save": self._remembers,
            "flip": self._flips,
            "adopt": self._flips,
            "claim": lambda looked_at: self._claims(*looked_at),
            "owe_again": self._owes_again,
            "count_absences": self._not_found_again,
            "next cycle": lambda decision: self._not_found_again(decision.restart),
            "accepted": self._is_accepted,
            "give_back": self._gives_back,
        }
        if call in checks:
            checks[call](subject)

    def _is_accepted(self, restart: Restart) -> None:
        asked = self.asked.get(restart.id)
        self.require(asked is not None and not asked.is_refused, "a restart is called accepted that is not")

    def _gives_back(self, restart: Restart) -> None:
        self.require(restart.id not in self.asked, "a claim is given back though the platform was asked")

    def _checked_these(self) -> None:
        """Note who was checked, whatever becomes of the cycle."""
        self.coverage_is_saved = True
        for one in self.swept:
            self.world.waited.pop((self.order.shard.of, one), None)

    def _looks_who_is_offline(self) -> None:
        """Forget since when workspaces were offline that a cycle sees up again."""
        for one in [one for one in self.world.offline_at if not self._is_offline(one)]:
            del self.world.offline_at[one]

    def _is_offline(self, workspace_id: str) -> bool:
        row = self.tables.workspaces.get(workspace_id)
        return row is not None and row.status == "offline"

    def _flips(self, confirmed: Confirmed) -> None:
        workspace, world, now = confirmed.second.workspace, self.world, self.tables.now
        row, selected = self.tables.workspaces.get(workspace.id), self.selected.get(workspace.id)
        if row is None or selected is None:
            raise ViolationError("a row is flipped that is gone, or was no candidate")
        is_candidate = row.status == "offline" if workspace.offline else row.status in ("online", "degraded")
        self.require(is_candidate, "a row is flipped that is no candidate")
        self.require(row.runtime != "external", "an external workspace is flipped")
        self.require(not self.tables.is_on_hold(workspace.id), "a workspace on hold is flipped")
        self.require(row.instance_id == selected.instance_id, "a row is flipped that records another instance")
        self.require(row.heartbeat_at == selected.heartbeat_at, "a workspace is flipped that sent a heartbeat")
        self._no_young_heartbeat(row, self._died_at(workspace.instance_id))
        self.require(self.breaker is not None and not self.breaker.is_open, "a flip though the breaker is open")
        self._was_dead(workspace)
        self._is_fresh(workspace.instance_id)
        if workspace.offline:
            pair = (workspace.id, workspace.instance_id)
            self.require(pair in world.seen_dead, "a row is adopted that no cycle saw dead while it was up")
            live = self.tables.live_restart(workspace.id)
            self.require(live is None, "a row is adopted that somebody is restarting")
            world.adopted_from[workspace.id] = world.offline_at.get(workspace.id, now)
        else:
            world.flipped += 1
        if self.order.state_changes is not None:
            world.event_flips.add(max((one.id for one in self.tables.restarts), default=0) + 1)
        world.flips = [(at, one) for at, one in world.flips if at > now - self._window_s] + [(now, workspace.id)]
        self._bounds_the_damage()

    def _is_fresh(self, instance_id: str) -> None:
        """Require that the latest answer is five seconds old at most, by the database's clock."""
        age_s = self.tables.now - self.answers[instance_id][-1].at
        self.require(age_s <= EVIDENCE_SECONDS, f"acted on evidence that is {age_s:.1f} s old")

    def _no_young_heartbeat(self, row: Row, died_at: float | None = None) -> None:
        """Require that no heartbeat is young, or later than the death that an event tells of."""
        latest_at = self.tables.now - self.settings.heartbeat_fresh_seconds if died_at is None else died_at + 5.0
        young = row.heartbeat_at is not None and row.heartbeat_at > latest_at
        self.require(not young, "acted though the heartbeat is young")

    def _died_at(self, instance_id: str) -> float | None:
        """Return since when the instance is dead, if an event says so that is neither of the future nor old."""
        change = (self.order.state_changes or {}).get(instance_id)
        if change is None or change.at is None or not 0 <= self.tables.now - change.at <= 15 * 60:
            return None
        return change.at

    @property
    def _window_s(self) -> float:
        return self.settings.breaker.window_s

    def _was_dead(self, workspace: Workspace) -> None:
        """Require that the instance was dead, or was absent for as often and as long as the policy asks."""
        answers = self.answers.get(workspace.instance_id, [])[-2:]
        self.require([one.is_gone for one in answers] == [True, True], "flipped, but not seen dead twice")
        if workspace.instance_id in self.died or self._was_absent(workspace.id, workspace.instance_id):
            return
        # EC2 is eventually consistent: nobody can detect that both of its answers were stale.
        stale = all(one.lied and one.word in DEAD for one in answers)
        self.require(stale, "a workspace is flipped whose instance was never dead")
        self.world.stale_flips += 1

    def _was_absent(self, workspace_id: str, instance_id: str) -> bool:
        """Tell whether the instance was absent for as often and as long as the policy asks, this time included."""
        policy, times = self.settings.absence, self.world.unfound.get((workspace_id, instance_id), [])
        if (workspace_id, instance_id) not in self.noted:  # this cycle's own sighting counts, even if it was not saved
            times = [*times, self.tables.now]
        return len(times) >= policy.sightings and self.tables.now - times[0] >= policy.min_age_s

    def _bounds_the_damage(self) -> None:
        """Require that few are flipped within the breaker's window, but for those that were on hold in between."""
        settings, tables, world = self.settings, self.tables, self.world
        if world.overridden_at is not None and world.overridden_at > tables.now - self._window_s:
            return
        flipped = len({one for _, one in world.flips if one not in tables.holds})
        most = max(settings.breaker.min_dead - 1, settings.breaker.max_dead_fraction * world.population)
        self.require(flipped <= most, f"{flipped} of {world.population} are flipped within the breaker's window")

    def _remembers(self, doubt: Doubt) -> None:
        """Note the sightings of absence, and what is remembered dead while its row was up."""
        one, unfound = doubt.workspace, self.world.unfound
        pair = (one.id, one.instance_id)
        if doubt.kind in ("dead", "absent"):
            self.require(not one.offline or pair in self.world.seen_dead or doubt.by_hand, "an offline row is doubted")
            self.world.seen_dead.add(pair)
        if doubt.kind == "absent" and doubt.counts:
            self.require(not self.order.narrowed, "a cycle that is not full counts an absence")
            self.noted.add(pair)
            unfound[pair] = [*unfound.get(pair, []), self.tables.now]

    def _not_found_again(self, restart: Restart | StoredRestart) -> None:
        pair = (restart.workspace_id, restart.instance_id)
        self.world.unfound[pair] = [*self.world.unfound.get(pair, []), self.tables.now]

    def _claims(self, restart: Restart, sighting: Sighting) -> None:
        tables, settings, now = self.tables, self.settings, self.tables.now
        (owed,) = (one for one in tables.restarts if one.id == restart.id)
        row = self.rows.get(owed.workspace_id)
        if row is None or row.status != "offline" or row.instance_id != owed.instance_id:
            raise ViolationError("a restart is claimed that is not owed any more")
        self.require(not tables.is_on_hold(owed.workspace_id), "the restart of a workspace on hold is claimed")
        self.require(not tables.is_stopped(), "a restart is claimed though the platform asked for none")
        is_open = self.breaker is None or self.breaker.is_open
        self.require(not is_open or owed.released, "a restart is claimed though the breaker is open")
        self._no_young_heartbeat(row)
        self.require(owed.due_at <= now, "a restart is claimed that is not due")
        self.require(owed.backoff_until is None or owed.backoff_until <= now, "a restart is claimed in its back-off")
        self.require(sighting.verdict in ("dead", "absent"), "a restart is claimed whose instance is not dead")
        self._is_fresh(owed.instance_id)
        earliest = tables.hold_ended_at(owed.workspace_id) + settings.restarts.grace_s
        if owed.attempts == 0 and owed.adopted:
            earliest = max(earliest, self.world.adopted_from[owed.workspace_id] + settings.restarts.uncertain_s)
        elif owed.attempts == 0:
            earliest = max(earliest, owed.flipped_at + settings.restarts.grace_s)
        if owed.attempts == 0 and owed.id in self.world.event_flips:
            silence_over_at = owed.flipped_at + settings.heartbeat_fresh_seconds
            self.require(now >= silence_over_at, "a restart is claimed before the silence is over")
        self.require(now >= earliest, "a restart is claimed before its grace is over")
        self.claims[owed.id] = now

    def _owes_again(self, restart: StoredRestart) -> None:
        self.require(not self.tables.is_on_hold(restart.workspace_id), "owed again on hold")
        self.require(self.breaker is not None and not self.breaker.is_open, "owed again though the breaker is open")
        self.require(self.answers[restart.instance_id][-1].is_gone, "owed again though the instance is not dead")
        self.world.again.add(max(one.id for one in self.tables.restarts) + 1)

    def answered(self, workspace: Workspace, word: str, *, lied: bool) -> None:
        self.simulation.note(self.cycle_id, "hears:", workspace.instance_id, word, "(a lie)" if lied else "")
        answer = Answered(word, lied, self.tables.now, self.clock())
        self.answers.setdefault(workspace.instance_id, []).append(answer)
        if self.breaker is None:
            self.swept[workspace.id] = word
        if word not in (NOT_FOUND, ERROR):
            self.world.unfound.pop((workspace.id, workspace.instance_id), None)

    def asks(self, workspace_id: str, instance_id: str) -> Asked:
        owed = [
            one.id
            for one in self.tables.restarts
            if (one.workspace_id, one.instance_id) == (workspace_id, instance_id) and one.id in self.claims
        ]
        self.require(owed, "a restart is asked for without a claim")
        answer = self.answers[instance_id][-1]
        self.require(answer.is_gone, "a restart is asked for, and nobody looked again")
        self.require(self.clock() - answer.clock <= EVIDENCE_SECONDS, "a restart is asked for on old evidence")
        was_dead = instance_id in self.died or self._was_absent(workspace_id, instance_id)
        # A single stale answer suffices here: the flip has had two before.
        self.require(was_dead or (answer.lied and answer.word in DEAD), "restarted, but its instance was never dead")
        asked = Asked(owed[-1], workspace_id, instance_id, self.claims[owed[-1]])
        for earlier in self.world.asked:
            same = (earlier.workspace_id, earlier.instance_id) == (workspace_id, instance_id)
            owed_again = asked.restart_id in self.world.again and earlier.restart_id < asked.restart_id
            wait_s = RECOVERY_SECONDS if owed_again else self.settings.restarts.uncertain_s
            under_way = same and not earlier.is_refused and abs(asked.claimed_at - earlier.claimed_at) < wait_s
            self.require(not under_way, "a restart is asked for while an earlier request may be under way")
        self.world.asked.append(asked)
        self.asked[asked.restart_id] = asked
        return asked


# The invocations under way, the innermost last.
_running: list[Actor] = []

# May do anything at a point: before a call, or inside a flip or a claim.
Adversary = Callable[["Simulation", Actor, str], None]


class Simulation:
    """Cycles over one world, with an adversary at each point."""

    def __init__(self, world: World, setup: Setup, adversary: Adversary | None, trace: list[str] | None = None) -> None:
        self.world, self.setup, self.adversary, self.trace = world, setup, adversary, trace
        self.waiting: list[Callable[[], object]] = []
        self.hints: dict[str, int] = {}  # what the process remembers of the targets

    @property
    def shards(self) -> list[Shard]:
        """The shards of a minute, by default the whole fleet."""
        return [Shard(number, self.setup.shards) for number in range(self.setup.shards)]

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

    def disturb(self, what: str) -> None:
        """Note that an adversary is about to act."""
        self.note(f"    >>> {what}")
        for actor in _running:
            actor.disturbed = True

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
        if self.world.is_lively:
            self.world.live()

    def cycle(self, order: Request = FULL) -> Report | None:
        """Run one invocation to its end, however it ends; return its report if there is one."""
        actor = Actor(self, order)
        _running.append(actor)
        self.world.died.append(actor.died)
        world, setup = self.world, self.setup
        if order.override_breaker:
            world.overridden_at = world.tables.now
        parts = cycle.Parts(
            actor.cycle_id,
            fake_store(world.tables, actor.cycle_id, actor, leased=order.state_changes is None, shard=order.shard),
            lambda _: self._probe(actor),
            lambda _: Platform(world, actor),
        )
        deadline = Deadline(setup.settings.cycle_deadline_seconds, clock=actor.clock)
        report = None
        try:
            report = cycle.run(order, setup.settings, parts, deadline).report
        except CrashError:
            self.note(f"{actor.cycle_id} has crashed")
        except ReconcilerError as error:
            self.note(f"{actor.cycle_id} fails: {error}")
        finally:
            _running.pop()
            self.world.died.pop()
        self._catch_up()
        self._check_books()
        if report is not None and report.outcome == "completed":
            self._check_report(actor, report)
        return report

    def _probe(self, actor: Actor) -> Probe | Targets:
        timeout_s = self.setup.settings.probe_timeout_seconds
        if self.setup.targets > 1:
            return Targets(self.world, actor, count=self.setup.targets, timeout_s=timeout_s, hints=self.hints)
        return Probe(self.world, actor, in_bulk=self.setup.in_bulk, timeout_s=timeout_s)

    def minute(self, order: Request = FULL) -> None:
        """Run a cycle, and let the rest of its minute pass."""
        tables = self.world.tables
        ends_at = tables.now + PERIOD_SECONDS
        self.cycle(order)
        self._unlock()
        tables.now = max(tables.now, ends_at)
        self._catch_up()

    def _unlock(self) -> None:
        tables = self.world.tables
        tables.locked.clear()
        for row in tables.workspaces.values():
            row.locked_by = None
        for restart in tables.restarts:
            restart.locked_by = None
        for doubt in tables.doubts.values():
            doubt.locked_by = None

    def settle(self) -> None:
        """Run quiet cycles until nothing is left to do. Raises ViolationError if something is, or somebody is silent.

        If none of the candidates' instances is found at all, "not found" proves nothing, and the restart of an absent
        instance may wait. So may everything while the breaker is open.
        """
        world, self.adversary = self.world, None
        world.lies.clear()
        world.platform_mood, world.unreachable, world.monitor_restarts = None, False, False
        world.probe_takes_s = 0.0
        world.down.clear()
        world.blind.clear()
        is_stopped = False
        for seconds in QUIET_SECONDS:
            if is_stopped or not self._unsettled():
                break
            world.tables.now += seconds
            self._catch_up()
            reports = [self.cycle(Request(APPLY, shard=shard)) for shard in self.shards]
            is_open = any(report is not None and report.breaker_open for report in reports)
            is_stopped = is_open and seconds == LONG_QUIET_SECONDS
        if not is_stopped and self._unsettled():
            raise ViolationError(f"this stays as it is: {self._unsettled()}")
        if is_stopped and self._counted_though_alive():
            raise ViolationError(f"these keep the breaker open, and they run: {self._counted_though_alive()}")

    def _counted_though_alive(self) -> list[str]:
        """Return the workspaces that count as dead in the breaker, and nowhere else, although their instance runs."""
        tables, world = self.world.tables, self.world
        return [
            one.workspace_id
            for one in tables.open_restarts()
            if one.kept_back_at is not None and not one.released and not tables.is_on_hold(one.workspace_id)
            if one.instance_id in world.instances and world.instances[one.instance_id].state == "running"
        ]

    def _unsettled(self) -> list[str]:
        """Return the restarts that are owed, the watches without need, and the rows that nobody takes or cares for."""
        tables = self.world.tables
        left: list[str] = []
        for shard in self.shards:
            candidates = [one for one, row in tables.workspaces.items() if row.is_up and contains(shard, one)]
            instances = {tables.workspaces[one].instance_id or "" for one in candidates} & self.world.instances.keys()
            nothing_found = len({target_of(one, self.setup.targets) for one in instances}) < self.setup.targets
            for restart in tables.restarts:
                if contains(shard, restart.workspace_id):
                    left += self._of_restart(restart, nothing_found=nothing_found)
        return left + [text for one, row in tables.workspaces.items() for text in self._of_row(one, row)]

    def _of_restart(self, restart: StoredRestart, *, nothing_found: bool) -> Iterator[str]:
        world, row = self.world, self.world.tables.workspaces.get(restart.workspace_id)
        if restart.workspace_id in world.blocked or (nothing_found and restart.instance_id not in world.instances):
            return  # it may wait
        if restart.is_open:
            yield f"restart {restart.id} is owed"
        elif restart.is_watched:
            in_vain = row is not None and row.status == "offline" and row.instance_id == restart.instance_id
            if row is None or row.status in _WATCH_ENDS or (in_vain and not self._runs(restart.instance_id)):
                yield f"restart {restart.id} is watched"

    def _of_row(self, workspace_id: str, row: Row) -> Iterator[str]:
        world, tables = self.world, self.world.tables
        doubts, is_live = tables.doubts_of(workspace_id), tables.live_restart(workspace_id) is not None
        if is_live or self._runs(row.instance_id or ""):
            return
        if row.is_up and not doubts:
            yield f"{workspace_id} is silent"
        if tables.is_on_hold(workspace_id) or row.instance_id not in world.instances:
            return
        known = any(tables.remembers_dead(one) and one.instance_id == row.instance_id for one in doubts)
        if row.is_up or (row.is_offline and known and self.setup.settings.adopt_offline):
            yield f"{workspace_id} is to be taken"
        latest = next(reversed(tables.restarts_of(workspace_id)), None)
        was_asked_for = latest is not None and any(
            one.restart_id == latest.id and not one.is_refused for one in world.asked
        )
        if latest is not None and was_asked_for and row.is_offline and row.instance_id == latest.instance_id:
            yield f"restart {latest.id} came to nothing, and nobody watches it"

    def _runs(self, instance_id: str) -> bool:
        instance = self.world.instances.get(instance_id)
        return instance is not None and not instance.is_dead

    def _check_books(self) -> None:
        """Check: one event and one restart for each flip; at most one open or watched restart for each workspace."""
        world, tables = self.world, self.world.tables
        first = [one for one in tables.restarts if not one.adopted and one.id not in world.again]
        restarts = [(one.workspace_id, one.instance_id) for one in first]
        if restarts != tables.events or len(restarts) != world.flipped:
            raise ViolationError("flips, events and restarts do not agree")
        live = [one.workspace_id for one in tables.restarts if one.is_open or one.is_watched]
        if len(set(live)) < len(live):
            raise ViolationError("two live restarts for one workspace")

    def _check_report(self, actor: Actor, report: Report) -> None:
        if actor.breaker is None and not actor.selected and actor.order.state_changes is not None:
            return  # nobody is concerned, so it ended there
        if actor.breaker is None or report.breaker_open is not actor.breaker.is_open:
            raise ViolationError("the breaker is not what its two rules say")
        self._check_doubts(actor)
        self._check_fairness(actor, report)

    def _check_doubts(self, actor: Actor) -> None:
        """Check that an undisturbed full cycle leaves nobody that it saw in trouble without a doubt or a restart."""
        tables = self.world.tables
        if actor.order.narrowed or actor.order.mode != APPLY or actor.disturbed:
            return
        for one, word in actor.swept.items():
            row = tables.workspaces.get(one)
            if word == "running" or row is None or not (row.is_up or row.is_offline):
                continue
            if row.instance_id == actor.selected[one].instance_id:
                cared_for = tables.doubts_of(one) or tables.live_restart(one) is not None
                ran_again = actor.answers[row.instance_id or ""][-1].word == "running"
                if not cared_for and not ran_again:
                    raise ViolationError(f"{one} looks dead, and nobody remembers it")

    def _check_fairness(self, actor: Actor, report: Report) -> None:
        """Check that nobody waits longer than it takes to go round, however little each cycle got done."""
        if not actor.coverage_is_saved or (report.deferred and not report.checked):
            return
        world = self.world
        world.crowded |= bool(
            world.tables.coverage_of(actor.order.shard).brought_forward
        )  # at most half of the room is theirs
        room = report.checked if report.deferred else self.setup.settings.candidate_limit
        world.room = min(world.room, room - room // 2 if world.crowded else room)
        bound = ceil(world.population / world.room)
        unchecked = actor.selected.keys() - actor.swept.keys()
        of = actor.order.shard.of  # a cycle of another number of shards has another cursor
        world.waited = {
            key: since for key, since in world.waited.items() if key[0] != of or not contains(actor.order.shard, key[1])
        } | {(of, one): world.waited.get((of, one), 0) + 1 for one in unchecked}
        if max(world.waited.values(), default=0) > bound:
            raise ViolationError(f"not everybody was checked within {bound} cycles: {world.waited}")


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Replace the handler's threads by simulated calls, and silence its log."""
    level = logger.log_level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "in_parallel", _one_after_another)
        for module in (flips, asking):
            patch.setattr(module, "gathered", _together)
        without_threads(patch)
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


def _together(
    items: Iterator[Item], deadline: Deadline, *, most: int, longest_s: float, leave_s: float = 0.0
) -> Iterator[list[Item]]:
    """Do what handler.parallel.gathered does: items of a probe in bulk come together, others one by one."""
    del deadline, longest_s, leave_s
    while together := list(islice(items, most if _running[-1].simulation.setup.in_bulk else 1)):
        yield together
