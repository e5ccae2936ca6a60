"""Decides what becomes of a restart. Pure: facts in; a step and its reason out.

A restart destroys the recorded instance. So whatever is in doubt stays owed, and is looked at again.

  owed ──► asked for ──► accepted ────────────► watched ──► up for five minutes, or no longer wanted: over
   │  ▲       │  └─────► uncertain (watched) ──►   │  │
   │  └───────┘ refused, blocked: owed again later │  └──► offline with the dead instance again: owed again
   └──► cancelled: the row has moved on ───────────┘ (only if it was asked for with effect)
        cancelled: the instance runs ──────────────┘
"""

from dataclasses import dataclass
from enum import StrEnum

from handler.domain.backoff import LONGEST_RETRY_BACKOFF_S
from handler.domain.decide import CANDIDATE_STATUSES, OFFLINE, Plan, gone_for_good
from handler.domain.model import Restart, Sighting, Verdict
from handler.domain.policy import AbsencePolicy, RestartPolicy

# The platform provisions for minutes. A workspace that is not back by then counts as unrecovered, and a restart that
# turns out to have done nothing is owed again no earlier.
RECOVERY_SECONDS = 900.0
# A workspace that is up for so long has recovered.
RECOVERED_SECONDS = 300.0
UNWANTED = ("removed", "paused", "hibernating", "hibernated")


def longest_wait(policy: RestartPolicy, *, silence_s: float) -> float:
    """Return how many seconds ahead a restart's time can be, but for a crash loop.

    After a state-change event, it waits for `silence_s` seconds of silence.
    """
    waits = (policy.grace_s, silence_s, policy.uncertain_s, policy.retry_s, LONGEST_RETRY_BACKOFF_S, RECOVERY_SECONDS)
    return max(waits)


@dataclass(frozen=True, slots=True)
class Owed:
    """An open restart, and what the database says of it right now.

    `still_owed`: its row is offline with the very instance. `due`: its time has come, and so has the grace after the
    latest hold. `heartbeat`: a fresh one came after the flip. `stopped`: the platform wants to be asked for nothing.
    """

    restart: Restart
    still_owed: bool
    due: bool = True
    on_hold: bool = False
    backing_off: bool = False
    stopped: bool = False
    heartbeat: bool = False


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What holds for every restart of a cycle, be it a `full` one or not.

    `absence_counts`: "not found" proves something in this cycle.
    """

    full: bool
    breaker_open: bool
    absence_counts: bool
    absence: AbsencePolicy

    @classmethod
    def of(cls, plan: Plan, absence: AbsencePolicy, *, full: bool) -> "Circumstances":
        """Return those of a cycle, by what it has decided about its candidates."""
        return cls(full, breaker_open=plan.breaker.open, absence_counts=plan.absence_counts, absence=absence)


class Step(StrEnum):
    """What to do about an open restart."""

    ASK = "ask"
    WAIT = "wait"  # it stays as it is: something else has to happen first
    PUT_OFF = "put off"  # it is looked at again later, behind the others
    NEXT_CYCLE = "next cycle"  # it is looked at again in the next cycle, and its sighting of absence is counted
    CANCEL = "cancel"
    CANCEL_AND_WATCH = "cancel and watch"


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """What to do about one open restart, and why, as text for the log."""

    restart: Restart
    step: Step
    reason: str


def before_probing(owed: Owed, now: Circumstances) -> RestartDecision | None:
    """Decide what needs no probe: the row and the circumstances alone may settle it. None: the instance has a say."""
    reasons = {
        (Step.CANCEL, "the row has moved on"): not owed.still_owed,
        (Step.WAIT, "on hold"): owed.on_hold,
        (Step.WAIT, "the platform asked to be left alone"): owed.stopped,
        (Step.WAIT, "the breaker is open"): now.breaker_open and not owed.restart.released,
        (Step.WAIT, "not due yet"): owed.backing_off or not owed.due,
        (Step.PUT_OFF, "a heartbeat came after the flip"): owed.heartbeat,
    }
    for (step, reason), holds in reasons.items():
        if holds:
            return RestartDecision(owed.restart, step, reason)
    return None


def before_asking(owed: Owed, sighting: Sighting, now: Circumstances) -> RestartDecision:
    """Decide about a restart whose instance has just been probed. Only ASK lets the platform be asked.

    The restart is as it is now. Somebody may have changed its workspace or its instance since the probe.
    """
    settled = before_probing(owed, now)
    if settled is not None:
        return settled
    restart = owed.restart
    if (sighting.workspace.id, sighting.workspace.instance_id) != (restart.workspace_id, restart.instance_id):
        return RestartDecision(restart, Step.WAIT, "another instance was probed")
    match sighting.verdict:
        case Verdict.DEAD:
            return RestartDecision(restart, Step.ASK, sighting.state)
        case Verdict.ABSENT:
            dead, reason = _gone(restart, now)
            not_yet = Step.NEXT_CYCLE if now.full and now.absence_counts else Step.PUT_OFF
            return RestartDecision(restart, Step.ASK if dead else not_yet, reason)
        case Verdict.RUNNING:
            return RestartDecision(restart, Step.CANCEL_AND_WATCH, "the instance is running")
        case Verdict.TRANSITION | Verdict.UNKNOWN:
            return RestartDecision(restart, Step.PUT_OFF, sighting.reason or sighting.state)


def while_kept_back(sighting: Sighting) -> Step:
    """Decide about a restart that an open breaker keeps back. It is not asked for, but a living instance ends it.

    It counts as dead in the breaker. If nobody looked, the breaker could keep itself open.
    """
    return Step.CANCEL_AND_WATCH if sighting.verdict is Verdict.RUNNING else Step.WAIT


@dataclass(frozen=True, slots=True)
class Watched:
    """A workspace's latest restart, and what became of the workspace. `status` is None if the row is gone.

    `is_open`: the restart is still open (uncertain, or owed again). `same_instance`: the row still records the dead
    one. `up_s`: how many seconds ago a cycle first saw it up again, or None.
    """

    restart: Restart
    status: str | None
    is_open: bool
    same_instance: bool
    up_s: float | None
    on_hold: bool


class WatchStep(StrEnum):
    """What to do about a watched restart."""

    END = "end"
    IS_UP = "is up"
    IS_NOT_UP = "is not up"
    PROBE = "probe"  # not up, offline with the very instance: has the restart done nothing?


def watch(watched: Watched) -> WatchStep:
    """Decide whether the watch over a restart goes on."""
    if watched.status is None or watched.status in UNWANTED:
        return WatchStep.END
    if watched.status in CANDIDATE_STATUSES:
        return WatchStep.END if watched.up_s is not None and watched.up_s >= RECOVERED_SECONDS else WatchStep.IS_UP
    if watched.status == OFFLINE and watched.same_instance and not watched.is_open and not watched.on_hold:
        return WatchStep.PROBE
    return WatchStep.IS_NOT_UP


def owed_again(restart: Restart, sighting: Sighting, now: Circumstances) -> bool:
    """Tell whether a restart has to be asked for once more: its row is offline, and its instance is still dead."""
    if now.breaker_open:
        return False
    return sighting.verdict is Verdict.DEAD or (sighting.verdict is Verdict.ABSENT and _gone(restart, now)[0])


def _gone(restart: Restart, now: Circumstances) -> tuple[bool, str]:
    sightings = restart.absent_sightings + now.full  # a narrowed cycle counts no absence
    return gone_for_good(sightings, restart.absent_s, now.absence, counts=now.absence_counts)
