"""What to do about what was seen. Pure: no clock, no I/O, values in and values out.

An instance is killed for good when its workspace is flipped, so every doubt ends in not flipping.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from handler.model import FOUND, CurrentRow, Sighting, SkipReason, Verdict, Workspace

CANDIDATE_STATUSES = ("online", "degraded")
EXTERNAL = "external"
# So many restarts may follow one another at once; before each further one there is a pause.
RESTARTS_WITHOUT_PAUSE = 3
LONGEST_LOOP_PAUSE_S = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that a decision rests on; ages in seconds."""

    breaker_max_dead_fraction: float
    breaker_min_dead: int
    absent_sightings: int
    absent_min_age_s: float
    override_breaker: bool


@dataclass(frozen=True, slots=True)
class Absence:
    """What is remembered of an instance that EC2 did not know: how often, and since when."""

    instance_id: str
    sightings: int
    age_s: float


class Action(StrEnum):
    """What is to become of a workspace that looks dead."""

    FLIP = "flip"
    WAIT = "wait"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """One workspace's fate, and why, in words for a person."""

    sighting: Sighting
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Breaker:
    """How many look dead, among how many that got an answer, and whether that is too many."""

    dead: int
    answered: int
    open: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cycle is to do, and what it has to remember of absences.

    `absence_counts` tells whether "not found" is to be believed at all in this cycle.
    """

    decisions: tuple[Decision, ...]
    breaker: Breaker
    absent: tuple[Workspace, ...]
    found_again: tuple[str, ...]
    absence_counts: bool


def decide(
    sightings: Iterable[Sighting],
    absences: Mapping[str, Absence],
    recently_flipped: frozenset[str],
    policy: Policy,
) -> Plan:
    """Decide about all that was seen in one cycle.

    `absences` are those of earlier cycles, by workspace id; `recently_flipped` are the workspaces
    flipped within the breaker's window. Decisions are made for the dead and the absent only.
    """
    seen = [sighting for sighting in sightings if sighting.verdict is not Verdict.UNKNOWN]
    breaker = _breaker(seen, recently_flipped, policy)
    # Where nothing at all is found, it is the account, the Region or the credentials that are wrong.
    credible = not seen or any(sighting.verdict in FOUND for sighting in seen)
    decisions = []
    for sighting in seen:
        if sighting.verdict is Verdict.DEAD:
            action, reason = Action.FLIP, f"its instance is {sighting.state}"
        elif sighting.verdict is Verdict.ABSENT:
            action, reason = _absent(sighting.workspace, absences, policy, credible=credible)
        else:
            continue
        if action is Action.FLIP and breaker.open:
            action = Action.STOP
            reason = f"the breaker is open: {breaker.dead} of {breaker.answered} look dead; {reason}"
        decisions.append(Decision(sighting, action, reason))
    absent = [one.workspace for one in seen if credible and one.verdict is Verdict.ABSENT]
    found_again = [one.workspace.id for one in seen if one.verdict in FOUND and one.workspace.id in absences]
    return Plan(tuple(decisions), breaker, tuple(absent), tuple(found_again), credible)


def moved_on(absences: Mapping[str, Absence], selected: Iterable[Workspace], *, everybody: bool) -> list[str]:
    """Return the workspaces whose absences say nothing any more, since they record another instance.

    `everybody` tells that all candidates were selected: who is not among them is none.
    """
    recorded = {one.id: one.instance_id for one in selected}
    return [
        one
        for one, absence in absences.items()
        if recorded.get(one, None if everybody else absence.instance_id) != absence.instance_id
    ]


def _breaker(seen: Iterable[Sighting], recently_flipped: frozenset[str], policy: Policy) -> Breaker:
    dead = {one.workspace.id for one in seen if one.verdict in (Verdict.DEAD, Verdict.ABSENT)}
    dead |= recently_flipped
    answered = {one.workspace.id for one in seen} | recently_flipped
    too_many = (
        not policy.override_breaker
        and len(dead) >= policy.breaker_min_dead
        and len(dead) / len(answered) > policy.breaker_max_dead_fraction
    )
    return Breaker(len(dead), len(answered), too_many)


def _absent(
    workspace: Workspace, absences: Mapping[str, Absence], policy: Policy, *, credible: bool
) -> tuple[Action, str]:
    """Decide about an instance that EC2 does not know; it is eventually consistent."""
    if not credible:
        return Action.WAIT, "no instance at all was found in this cycle: account, Region or credentials?"
    earlier = absences.get(workspace.id)
    if earlier is None or earlier.instance_id != workspace.instance_id:
        earlier = Absence(workspace.instance_id, 0, 0.0)
    count = earlier.sightings + 1
    history = (
        f"not found: sighting {count} of {policy.absent_sightings},"
        f" for {earlier.age_s:.0f} of {policy.absent_min_age_s:.0f} s"
    )
    if count < policy.absent_sightings or earlier.age_s < policy.absent_min_age_s:
        return Action.WAIT, history
    return Action.FLIP, history


def confirms(first: Sighting, second: Sighting) -> bool:
    """Tell whether a second sighting, right before the flip, bears the first one out."""
    if first.verdict is Verdict.ABSENT:
        return second.verdict in (Verdict.ABSENT, Verdict.DEAD)
    return second.verdict is Verdict.DEAD


@dataclass(frozen=True, slots=True)
class CrashLoop:
    """The settings for workspaces that die again and again; both in seconds.

    The first pause is `pause_s`, each further one twice as long, until a workspace was up for `healthy_s`.
    """

    pause_s: float
    healthy_s: float


@dataclass(frozen=True, slots=True)
class Loop:
    """How many restarts came before without a stretch of health, and for how many seconds the next one waits."""

    streak: int
    pause_s: float


def loop_of(row: CurrentRow, settings: CrashLoop) -> Loop:
    """Return where in a crash loop a workspace is that dies now."""
    if row.restarts is None or row.healthy_s is None or row.healthy_s >= settings.healthy_s:
        return Loop(0, 0.0)
    doublings = min(row.restarts - RESTARTS_WITHOUT_PAUSE, 32)
    pause_s = 0.0 if doublings < 0 else min(settings.pause_s * 2.0**doublings, LONGEST_LOOP_PAUSE_S)
    return Loop(row.restarts, pause_s)


def objection(row: CurrentRow | None, workspace: Workspace) -> SkipReason | None:
    """Return what the locked row says against flipping the workspace that was probed, if anything."""
    if row is None:
        return SkipReason.ROW_GONE
    if row.status not in CANDIDATE_STATUSES or row.runtime == EXTERNAL or row.held:
        return SkipReason.STATUS_MOVED
    if not row.instance_id:
        return SkipReason.INSTANCE_CLEARED
    if row.instance_id != workspace.instance_id:
        return SkipReason.INSTANCE_CHANGED
    return SkipReason.FRESH_HEARTBEAT if row.fresh_heartbeat else None
