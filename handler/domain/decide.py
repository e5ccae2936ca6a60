"""Decides which workspaces to flip. Pure: no clock, no I/O, values in and values out.

A flip leads to a restart, which destroys the instance. So in every case of doubt, the workspace is not flipped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from handler.domain.model import FOUND, CurrentRow, Sighting, SkipReason, Verdict, Workspace
from handler.domain.policy import AbsencePolicy, BreakerPolicy

CANDIDATE_STATUSES = ("online", "degraded")
EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Absence:
    """An instance that was not found: in how many cycles so far, and how many seconds ago for the first time."""

    instance_id: str
    sightings: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier cycles remembered: absences by workspace id, and the workspaces flipped in the breaker's window."""

    absences: Mapping[str, Absence]
    recently_flipped: frozenset[str]


class Action(StrEnum):
    """What to do with a workspace that looks dead."""

    FLIP = "flip"
    WAIT = "wait"  # its instance has not been absent often or long enough
    STOP = "stop"  # the breaker is open


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one workspace, and why, as text for the log."""

    sighting: Sighting
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Breaker:
    """How many workspaces look dead, how many got an answer, and whether too many look dead."""

    dead: int
    answered: int
    open: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cycle is going to do, and what it has to remember about absences.

    `absent` workspaces get one more sighting; the absences of those `found_again` are forgotten. `absence_counts` is
    False if no instance at all was found, so that "not found" proves nothing.
    """

    decisions: tuple[Decision, ...]
    breaker: Breaker
    absent: tuple[Workspace, ...]
    found_again: tuple[str, ...]
    absence_counts: bool

    @property
    def to_flip(self) -> list[Sighting]:
        """The sightings of the workspaces to flip, in the order of the decisions."""
        return [one.sighting for one in self.decisions if one.action is Action.FLIP]


def decide(
    sightings: Iterable[Sighting],
    memory: Memory,
    breaker_policy: BreakerPolicy,
    absence_policy: AbsencePolicy,
    *,
    override_breaker: bool,
) -> Plan:
    """Decide about everything that one cycle saw.

    Only dead and absent instances get a decision; UNKNOWN has no effect at all. `override_breaker` keeps the breaker
    closed.
    """
    seen = [sighting for sighting in sightings if sighting.verdict is not Verdict.UNKNOWN]
    breaker = _breaker(seen, memory.recently_flipped, breaker_policy, override=override_breaker)
    # If no instance at all is found, the account, the Region or the credentials are wrong.
    absence_counts = not seen or any(sighting.verdict in FOUND for sighting in seen)
    decisions = []
    for sighting in seen:
        if sighting.verdict is Verdict.DEAD:
            action, reason = Action.FLIP, f"its instance is {sighting.state}"
        elif sighting.verdict is Verdict.ABSENT:
            action, reason = _absent(sighting.workspace, memory.absences, absence_policy, counts=absence_counts)
        else:
            continue
        if action is Action.FLIP and breaker.open:
            action = Action.STOP
            reason = f"the breaker is open: {breaker.dead} of {breaker.answered} look dead; {reason}"
        decisions.append(Decision(sighting, action, reason))
    absent = [one.workspace for one in seen if absence_counts and one.verdict is Verdict.ABSENT]
    found_again = [one.workspace.id for one in seen if one.verdict in FOUND and one.workspace.id in memory.absences]
    return Plan(tuple(decisions), breaker, tuple(absent), tuple(found_again), absence_counts)


def outdated_absences(
    absences: Mapping[str, Absence], selected: Iterable[Workspace], *, all_selected: bool
) -> list[str]:
    """Return the ids of the workspaces that no longer record the instance that was absent.

    With `all_selected`, a workspace missing from `selected` is no longer a candidate, so its absence is outdated.
    Otherwise the cycle may just not have selected it, so its absence is kept.
    """
    recorded = {one.id: one.instance_id for one in selected}
    return [
        one
        for one, absence in absences.items()
        if (all_selected or one in recorded) and recorded.get(one) != absence.instance_id
    ]


def _breaker(
    seen: Iterable[Sighting], recently_flipped: frozenset[str], policy: BreakerPolicy, *, override: bool
) -> Breaker:
    dead = {one.workspace.id for one in seen if one.verdict in (Verdict.DEAD, Verdict.ABSENT)}
    dead |= recently_flipped
    answered = {one.workspace.id for one in seen} | recently_flipped
    too_many = not override and len(dead) >= policy.min_dead and len(dead) / len(answered) > policy.max_dead_fraction
    return Breaker(len(dead), len(answered), too_many)


def _absent(
    workspace: Workspace, absences: Mapping[str, Absence], policy: AbsencePolicy, *, counts: bool
) -> tuple[Action, str]:
    """Decide about an instance that was not found. EC2 is eventually consistent, so once proves nothing."""
    if not counts:
        return Action.WAIT, "no instance at all was found in this cycle: account, Region or credentials?"
    earlier = absences.get(workspace.id)
    if earlier is None or earlier.instance_id != workspace.instance_id:
        earlier = Absence(workspace.instance_id, 0, 0.0)
    count = earlier.sightings + 1
    history = f"not found: sighting {count} of {policy.sightings}, over {earlier.age_s:.0f} of {policy.min_age_s:.0f} s"
    if count < policy.sightings or earlier.age_s < policy.min_age_s:
        return Action.WAIT, history
    return Action.FLIP, history


def confirms(first: Sighting, second: Sighting) -> bool:
    """Tell whether a second sighting, right before the flip, confirms the first one."""
    if first.verdict is Verdict.ABSENT:
        return second.verdict in (Verdict.ABSENT, Verdict.DEAD)
    return second.verdict is Verdict.DEAD


def objection(row: CurrentRow | None, workspace: Workspace) -> SkipReason | None:
    """Return why the re-read row forbids to flip the workspace as it was probed, or None if it does not."""
    if row is None:
        return SkipReason.ROW_GONE
    if row.status not in CANDIDATE_STATUSES or row.runtime == EXTERNAL:
        return SkipReason.STATUS_MOVED
    if not row.instance_id:
        return SkipReason.INSTANCE_CLEARED
    if row.instance_id != workspace.instance_id:
        return SkipReason.INSTANCE_CHANGED
    if row.on_hold:
        return SkipReason.ON_HOLD
    return SkipReason.FRESH_HEARTBEAT if row.fresh_heartbeat else None
