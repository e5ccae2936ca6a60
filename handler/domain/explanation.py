"""What one workspace's situation means, in words, for whoever asks about it. Pure.

What a cycle would do is decided where the cycle decides it: in `domain.decide` and `domain.restarts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from handler.domain.decide import CANDIDATE_STATUSES, EXTERNAL, OFFLINE, Action, Breaker, Decision
from handler.domain.known import Ends, OpenOrWatched, RememberedDoubt, RestartRecord, Row
from handler.domain.model import LOOKS_DEAD, Sighting, SkipReason, Verdict
from handler.domain.policy import BreakerPolicy
from handler.domain.restarts import (
    Circumstances,
    Owed,
    RestartDecision,
    Step,
    Watched,
    WatchStep,
    before_probing,
    owed_again,
    watch,
    while_kept_back,
)

_SKIPS = frozenset(str(reason) for reason in SkipReason)


class Deed(StrEnum):
    """What the next full cycle would do with a workspace."""

    FLIP = "flip"
    ADOPT = "adopt"
    SKIP = "skip"  # its instance looks dead, but something forbids the flip
    WAIT = "wait"
    ASK_FOR_RESTART = "ask_for_restart"
    CANCEL_RESTART = "cancel_restart"
    WATCH = "watch"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Would:
    """What the next full cycle would do, and why, in its own words."""

    deed: Deed
    reason: str


def candidate_words(
    row: Row | None, doubts: Sequence[RememberedDoubt], restarts: OpenOrWatched, *, selected: bool, adopts: bool
) -> str:
    """Say why the cycle's SELECT takes the row, or does not. `adopts`: the setting ADOPT_OFFLINE."""
    if row is None:
        return "there is no such workspace"
    if selected and row.status == OFFLINE:
        return "offline, and a cycle saw this instance dead while the row was up: it may be adopted"
    if selected:
        return f"its status is {row.status}, and it records an instance"
    seen_dead = any(one.kind in LOOKS_DEAD and one.instance_id == row.instance_id for one in doubts)
    reasons = {
        f"its status is {row.status}": row.status not in (*CANDIDATE_STATUSES, OFFLINE),
        "it is external: no EC2 instance of ours is behind it": row.runtime == EXTERNAL,
        "its row records no instance": not row.instance_id,
        "offline, and its restart is owed": restarts.owed is not None,
        "offline, and its restart is watched": restarts.watched is not None,
        "offline, and ADOPT_OFFLINE is false": seen_dead and not adopts,
    }
    never_seen = "offline, and no cycle saw this instance dead in the last 24 hours while the row was up"
    return next((reason for reason, holds in reasons.items() if holds), never_seen)


def breaker_words(breaker: Breaker, policy: BreakerPolicy, *, whole_fleet: bool) -> str:
    """Say what the breaker's figures are, and what they rest on."""
    basis = (
        "by what the last cycles remembered, and by a look at the whole fleet now"
        if whole_fleet
        else "by what the last cycles remembered, without a look at the whole fleet now"
    )
    return (
        f"{breaker.dead} of {breaker.of} look dead or were acted on lately, {basis}; it opens if that many are"
        f" {policy.min_dead} or more, and above {policy.max_dead_fraction:.0%} of all"
    )


def would_with_candidate(sighting: Sighting, decision: Decision | None, open_restart: Owed | None) -> Would:
    """Say what a cycle would do with a candidate that it does not flip, by what it saw and decided."""
    moved_on = "" if open_restart is None else "; its open restart is cancelled: the row has moved on"
    if decision is not None and decision.action is Action.WAIT:
        return Would(Deed.WAIT, decision.reason + moved_on)
    if decision is not None and decision.skipped is not None:
        return Would(Deed.SKIP, f"{decision.skipped}: {decision.reason}{moved_on}")
    words = {
        Verdict.RUNNING: "its instance is running",
        Verdict.TRANSITION: f"its instance is {sighting.words}: it is looked at again in the next cycle",
        Verdict.UNKNOWN: f"no usable answer, which proves nothing: {sighting.reason}",
    }.get(sighting.verdict, sighting.words)
    if open_restart is not None:
        return Would(Deed.CANCEL_RESTART, f"the row has moved on; {words}")
    return Would(Deed.NOTHING if sighting.verdict is Verdict.RUNNING else Deed.WAIT, words)


def would_flip(
    sighting: Sighting, decision: Decision, skipped: SkipReason | None, doubts: Sequence[RememberedDoubt]
) -> Would:
    """Say what becomes of a workspace that is to be flipped or adopted, by the outcome of a rehearsal."""
    if skipped is not None:
        return Would(Deed.SKIP, f"{skipped}: {decision.reason}")
    earlier = [
        f"; the last cycle could not: {one.reason}"
        for one in doubts
        if one.instance_id == sighting.workspace.instance_id and one.kind == sighting.verdict and one.reason in _SKIPS
    ]
    deed = Deed.ADOPT if sighting.workspace.offline else Deed.FLIP
    return Would(deed, f"{decision.reason}, confirmed by a second probe{''.join(earlier[:1])}")


def would_with_due(decision: RestartDecision, *, most: int, ahead: int) -> Would:
    """Say what becomes of a due restart whose instance was looked at.

    A cycle asks for `most` at most, and may not look at one with more than that `ahead` of it.
    """
    if not most:
        why = "nobody is asked: PLATFORM_BASE_URL is not set, or RESTARTS_PER_CYCLE is 0"
        return Would(Deed.WAIT, f"{why}; {decision.reason}")
    if ahead >= most:
        turn = f"it is due, but {ahead} come before it, and a cycle asks for {most} at most"
        return Would(Deed.WAIT, f"{turn}; {decision.reason}")
    return would_with_restart(decision, "")


def would_with_restart(decision: RestartDecision, waits: str) -> Would:
    """Say what becomes of an open restart. `waits` says until when it waits."""
    match decision.step:
        case Step.ASK:
            return Would(Deed.ASK_FOR_RESTART, f"its restart is due, and its instance still dead: {decision.reason}")
        case Step.CANCEL | Step.CANCEL_AND_WATCH:
            return Would(Deed.CANCEL_RESTART, decision.reason)
        case Step.WAIT | Step.PUT_OFF | Step.NEXT_CYCLE:
            return Would(Deed.WAIT, f"{decision.reason}: {waits}" if waits else decision.reason)


def decided_again(
    decision: RestartDecision, owed: Owed, record: RestartRecord, sighting: Sighting, now: Circumstances
) -> RestartDecision:
    """Return the decision about a restart that is not asked for now, after a look at its instance.

    A cycle looks at it because the open breaker, and nothing else, keeps it back.
    """
    is_due = owed.due and not owed.backing_off and not owed.stopped
    is_kept_back = now.breaker_open and not owed.restart.released and (is_due or record.kept_back_at is not None)
    if decision.step is not Step.WAIT or owed.on_hold or not is_kept_back:
        return decision
    if while_kept_back(sighting) is Step.WAIT:
        return decision
    return RestartDecision(decision.restart, while_kept_back(sighting), "the instance is running")


def would_with_watched(watched: Watched, sighting: Sighting | None, now: Circumstances) -> Would:
    """Say what becomes of a watched restart whose instance was looked at, if the watch needs that."""
    step = watch(watched)
    match step:
        case WatchStep.END:
            over = "no longer wanted" if watched.status not in CANDIDATE_STATUSES else "up for five minutes"
            return Would(Deed.WATCH, f"the watch over its restart ends: the workspace is {over}")
        case WatchStep.IS_UP:
            return Would(Deed.WATCH, "the workspace is up after its restart; the watch ends after five minutes of that")
        case WatchStep.PROBE if sighting is not None:
            if owed_again(watched.restart, sighting, now):
                return Would(Deed.WATCH, "the workspace is offline, its instance still dead: its restart is owed again")
            return Would(Deed.WATCH, f"the workspace is not up after its restart; its instance: {sighting.words}")
        case _:
            return Would(Deed.WATCH, f"the workspace is not up after its restart: its status is {watched.status}")


def restart_words(record: RestartRecord, restarts: OpenOrWatched, now: Circumstances, ends: Ends) -> str:
    """Say in what state a restart is."""
    owed = restarts.owed
    if not record.is_open:
        return _closed_words(record)
    if owed is None or owed.restart.id != record.id:
        return "open"
    settled = before_probing(owed, now)
    if settled is None:
        return "due"
    waits = waiting_words(record, owed, now, ends)
    return f"{settled.reason}: {waits}" if waits else settled.reason


def waiting_words(record: RestartRecord, owed: Owed, now: Circumstances, ends: Ends) -> str:
    """Say for what an open restart waits, and until when; empty if no more is known than the decision's reason."""
    kept_back = now.breaker_open and not owed.restart.released
    waits = {
        f"until {ends.hold}": owed.on_hold,
        f"until {ends.stop}": owed.stopped,
        "it is kept back until the breaker closes, or an event with override_breaker releases it": kept_back,
        f"backing off until {record.backoff_until}: it is restart {record.streak + 1} in a row": owed.backing_off,
        _until_due(record): record.waits,
        "it has its grace after a hold": not owed.due,
    }
    return next((words for words, holds in waits.items() if holds), "") if owed.still_owed else ""


def _until_due(record: RestartRecord) -> str:
    if record.last_answer is None and record.watched_since is not None:
        return f"owed again, and first due at {record.due_at}"
    if record.last_answer is None and record.adopted:
        return f"adopted, and somebody else may be at it until {record.due_at}"
    answered = {
        None: f"waiting for its grace until {record.due_at}",
        "claimed": f"asked for at {record.asked_at} without an answer yet, so uncertain until {record.due_at}",
        "uncertain": f"uncertain, so not asked for again until {record.due_at}",
        "refused": f"refused, and tried again at {record.due_at}",
        "blocked": f"blocked by a paused ancestor, and tried again at {record.due_at}",
    }
    return answered.get(record.last_answer, f"until {record.due_at}")


def _closed_words(record: RestartRecord) -> str:
    if not record.is_watched:
        return f"over: {record.outcome}"
    if record.up_since is not None:
        return f"watched: {record.outcome}, and the workspace is up since {record.up_since}"
    if record.unrecovered:
        return f"unrecovered: {record.outcome}, and the workspace is not up since {record.watched_since}"
    return f"watched: {record.outcome}, and the workspace is not up yet"
