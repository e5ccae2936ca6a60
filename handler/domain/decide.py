"""Decides which workspaces to flip or adopt. Pure: no clock, no I/O, values in and values out.

A flip or an adoption leads to a restart, which destroys the instance. So in every case of doubt, nothing happens.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from handler.domain.doubts import KnownDoubts, absences
from handler.domain.model import FOUND, LOOKS_DEAD, CurrentRow, Sighting, SkipReason, Verdict, Workspace
from handler.domain.policy import AbsencePolicy, BreakerPolicy

CANDIDATE_STATUSES = ("online", "degraded")
OFFLINE = "offline"
EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The whole fleet, as the breaker's second rule counts it. Rows on hold are left out.

    `up` counts the rows that are online or degraded. `remembered` has the workspaces that earlier cycles saw dead, and
    nobody alive since. `acted_on` has those that were flipped or adopted lately, or whose restart an open breaker keeps
    back. Both tell of each whether it is one of the rows that are up.
    """

    up: int = 0
    remembered: Mapping[str, bool] = field(default_factory=dict)
    acted_on: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier cycles remembered: doubts, and what the breaker needs to know of the whole fleet."""

    doubts: KnownDoubts = field(default_factory=dict)
    fleet: Fleet = Fleet()


class Action(StrEnum):
    """What to do with a workspace that looks dead."""

    FLIP = "flip"  # or adopt, if the platform has taken it offline
    WAIT = "wait"  # its instance has not been absent often or long enough
    STOP = "stop"  # the breaker is open
    HOLD = "hold"  # somebody has put it on hold


_SKIPPED = {Action.STOP: SkipReason.BREAKER_OPEN, Action.HOLD: SkipReason.ON_HOLD}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one workspace, and why, as text for the log."""

    sighting: Sighting
    action: Action
    reason: str

    @property
    def skipped(self) -> SkipReason | None:
        """Why a workspace that would be flipped is skipped (breaker, hold); None if it is flipped, or has to wait."""
        return _SKIPPED.get(self.action)


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether too many look dead to believe it: `dead` of `of`. `open` is decided by the rule that was broken first."""

    open: bool
    dead: int
    of: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cycle is going to do.

    `absence_counts` is False if no candidate's instance was found at all, so that "not found" proves nothing.
    """

    decisions: tuple[Decision, ...]
    breaker: Breaker
    absence_counts: bool

    @property
    def to_flip(self) -> list[Sighting]:
        """The sightings of the workspaces to flip or adopt, in the order of the decisions."""
        return self._with(Action.FLIP)

    @property
    def stopped(self) -> list[Sighting]:
        """The sightings of the workspaces that only the open breaker keeps from being flipped or adopted."""
        return self._with(Action.STOP)

    def _with(self, action: Action) -> list[Sighting]:
        return [one.sighting for one in self.decisions if one.action is action]


def decide(
    sightings: Iterable[Sighting],
    memory: Memory,
    breaker_policy: BreakerPolicy,
    absence_policy: AbsencePolicy,
    *,
    in_turn: Collection[str] | None,
    override_breaker: bool,
) -> Plan:
    """Decide about everything that one cycle saw.

    Only dead and absent instances get a decision; UNKNOWN has no effect at all. `in_turn` are the ids of the workspaces
    that were checked in turn, for the breaker's first rule; None in a narrowed cycle, which has only the second.
    `override_breaker` keeps the breaker closed.
    """
    seen = [sighting for sighting in sightings if sighting.verdict is not Verdict.UNKNOWN]
    breaker = _breaker(seen, memory.fleet, breaker_policy, in_turn)
    if override_breaker:
        breaker = Breaker(open=False, dead=breaker.dead, of=breaker.of)
    # If no instance at all is found, the account, the Region or the credentials are wrong.
    absence_counts = any(sighting.verdict in FOUND for sighting in seen)
    decisions = []
    for sighting in seen:
        if sighting.verdict is Verdict.DEAD:
            action, reason = Action.FLIP, f"its instance is {sighting.state}"
        elif sighting.verdict is Verdict.ABSENT:
            earlier = absences(memory.doubts, sighting.workspace)
            sighted = earlier.sightings + (in_turn is not None)  # a narrowed cycle counts no absence
            dead, reason = gone_for_good(sighted, earlier.age_s, absence_policy, counts=absence_counts)
            action = Action.FLIP if dead else Action.WAIT
        else:
            continue
        if action is Action.FLIP and sighting.workspace.offline and not _was_seen_dead(sighting, memory.doubts):
            action, reason = Action.WAIT, "offline, and not seen dead while it was up: it is remembered first"
        if action is Action.FLIP and sighting.workspace.on_hold:
            action = Action.HOLD
        elif action is Action.FLIP and breaker.open:
            action = Action.STOP
            reason = f"the breaker is open: {breaker.dead} of {breaker.of} look dead; {reason}"
        decisions.append(Decision(sighting, action, reason))
    return Plan(tuple(decisions), breaker, absence_counts)


def _was_seen_dead(sighting: Sighting, doubts: KnownDoubts) -> bool:
    """Tell whether an earlier cycle remembers the very instance as dead or absent, as an adoption needs it."""
    earlier = [doubts.get((sighting.workspace.id, kind)) for kind in LOOKS_DEAD]
    return any(one is not None and one.instance_id == sighting.workspace.instance_id for one in earlier)


def _breaker(seen: Iterable[Sighting], fleet: Fleet, policy: BreakerPolicy, in_turn: Collection[str] | None) -> Breaker:
    """Return the breaker: of the rule that is broken, or else of the second one."""
    counted = [one for one in seen if not one.workspace.on_hold]
    dead_now = {one.workspace.id: not one.workspace.offline for one in counted if one.verdict in LOOKS_DEAD}
    if in_turn is not None:
        checked = [one.workspace.id for one in counted if one.workspace.id in in_turn and not one.workspace.offline]
        first = _rule(sum(one in dead_now for one in checked), len(checked), policy)
        if first.open:
            return first
    alive = {one.workspace.id for one in counted if one.verdict is Verdict.RUNNING}
    remembered = {one: up for one, up in fleet.remembered.items() if one not in alive}
    dead = remembered | dict(fleet.acted_on) | dead_now
    return _rule(len(dead), fleet.up + sum(not up for up in dead.values()), policy)


def _rule(dead: int, of: int, policy: BreakerPolicy) -> Breaker:
    too_many = dead >= policy.min_dead and dead > policy.max_dead_fraction * of
    return Breaker(too_many, dead, of)


def gone_for_good(sightings: int, age_s: float, policy: AbsencePolicy, *, counts: bool) -> tuple[bool, str]:
    """Tell whether an instance that is not found is dead, after so many `sightings` over `age_s` seconds; and why.

    EC2 is eventually consistent, so once proves nothing. `counts` tells whether "not found" does in this cycle.
    """
    if not counts:
        return False, "no instance at all was found in this cycle: account, Region or credentials?"
    history = f"not found: sighting {sightings} of {policy.sightings}, over {age_s:.0f} of {policy.min_age_s:.0f} s"
    return sightings >= policy.sightings and age_s >= policy.min_age_s, history


def confirms(first: Sighting, second: Sighting) -> bool:
    """Tell whether a second sighting, right before the flip, confirms the first one."""
    if first.verdict is Verdict.ABSENT:
        return second.verdict in LOOKS_DEAD
    return second.verdict is Verdict.DEAD


def objection(row: CurrentRow | None, workspace: Workspace) -> SkipReason | None:
    """Return why the re-read row forbids to flip or adopt the workspace as it was probed, or None if it does not."""
    if row is None:
        return SkipReason.ROW_GONE
    objections = {
        SkipReason.ROW_LOCKED: row.locked,
        SkipReason.STATUS_MOVED: row.runtime == EXTERNAL or not _may_still_be_taken(row, workspace),
        SkipReason.INSTANCE_CLEARED: not row.instance_id,
        SkipReason.INSTANCE_CHANGED: row.instance_id != workspace.instance_id,
        SkipReason.ON_HOLD: row.on_hold,
        SkipReason.FRESH_HEARTBEAT: row.fresh_heartbeat,
    }
    return next((reason for reason, holds in objections.items() if holds), None)


def _may_still_be_taken(row: CurrentRow, workspace: Workspace) -> bool:
    """Tell whether the row is still up, or, if it is to be adopted, still offline while nobody restarts it."""
    if workspace.offline:
        return row.status == OFFLINE and not row.restarting
    return row.status in CANDIDATE_STATUSES
