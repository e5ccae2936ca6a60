"""One cycle: observe → decide → act → tell. Start reading here."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from handler.deadline import Deadline
from handler.decide import Action, Plan, Policy, decide, moved_on
from handler.errors import ReconcilerError
from handler.fairness import Progress, advance
from handler.flips import Flips
from handler.model import Gauges, Report, Sighting, SkipReason, Verdict
from handler.payments import Payments
from handler.probes import Probe
from handler.registry import Registry, Selection
from handler.request import APPLY, Request
from handler.restarts import Platform
from handler.settings import Settings
from handler.telemetry import Story, logger

# Until when each part of a cycle may last, as shares of its whole time. What a part leaves over, the
# next one has: this is only what keeps a slow control plane from eating the time to act.
PROBING_ENDS = 0.75
FLIPPING_ENDS = 0.95
PAYING_ENDS = 0.98
# A dead instance has to be probed twice. When answers are slow, probing ends early enough for that.
SECOND_PROBE_FACTOR = 1.25
LONGEST_RESERVE = 0.5
# Those that ran out of time come first in the next cycle, but not so many that nobody else has a turn.
MOST_FIRST = 1000
# What is left to say at the end is short, and is said even when the cycle's time is over.
CLOSING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Parts:
    """The outside world, as one cycle may use it; probe and platform are reached within a deadline."""

    registry: Registry
    probe: Callable[[Deadline], Probe]
    platform: Callable[[Deadline], Platform] | None


def run(order: Request, settings: Settings, parts: Parts, deadline: Deadline) -> tuple[Report, Gauges]:
    """Run one cycle within the deadline, and return what it did and how things stand.

    Raises ReconcilerError when a cycle cannot be run. A workspace that goes wrong costs only itself.
    """
    report = Report(order.mode, settings.probe)
    closing = Deadline(deadline.remaining() + CLOSING_SECONDS)
    parts.registry.check_rights(deadline, to_apply=order.mode == APPLY)
    if order.mode != APPLY:
        return _cycle(order, settings, parts, deadline, closing, report)
    if not parts.registry.lease.acquire(deadline, lasts_s=closing.remaining()):
        report.outcome = "already_running"
        return report, _gauges(parts.registry, closing, report)
    try:
        return _cycle(order, settings, parts, deadline, closing, report)
    finally:
        try:
            parts.registry.lease.release(closing)
        except ReconcilerError as error:
            logger.warning("lease not released", reason="it expires by itself", error=str(error))


def _cycle(
    order: Request, settings: Settings, parts: Parts, deadline: Deadline, closing: Deadline, report: Report
) -> tuple[Report, Gauges]:
    whole_s = deadline.remaining()
    probing, flipping, paying = (
        deadline.within(share * whole_s) for share in (PROBING_ENDS, FLIPPING_ENDS, PAYING_ENDS)
    )
    registry, story = parts.registry, Story()
    probe = parts.probe(probing)
    limit = min(order.limit or settings.candidate_limit, settings.candidate_limit)
    selection = registry.fleet.select(probing, limit=limit, workspace_ids=order.workspace_ids)

    sightings = _observe(probe, selection, probing, deadline, story)
    _count(report, selection, sightings)
    probing_was_cut = probing.over()

    # Too late to act is no failure: what was seen is remembered, and what is dead comes first next time.
    memory = registry.fleet.recall(closing, breaker_window_s=settings.breaker_window_seconds)
    plan = decide(sightings, memory.absences, memory.recently_flipped, _policy(order, settings))
    _tell(plan, report, story)

    flips = Flips(registry.rows, probe, settings, selection.selected_at, report, story)
    if order.mode == APPLY:
        everybody = not order.narrowed and selection.next_unselected is None
        gone = moved_on(memory.absences, selection.workspaces, everybody=everybody)
        registry.fleet.remember_absences(closing, plan.absent, [*plan.found_again, *gone])
        flips.carry_out(plan, flipping)
        if flips.found_again:
            registry.fleet.remember_absences(closing, (), flips.found_again)
        Payments(registry.debts, probe, settings, report, story).pay(
            parts.platform, paying, closing, own_only=order.narrowed, absence_counts=plan.absence_counts
        )
    else:
        flips.rehearse(plan, flipping)

    report.deadline_hit = probing_was_cut or report.deferred > 0 or report.skipped[SkipReason.OUT_OF_TIME] > 0
    if not order.narrowed:
        progress = _progress(selection, sightings, flips.out_of_time)
        report.completed_pass = progress.completed_pass
        if order.mode == APPLY:
            registry.fleet.save_sweep(closing, progress.sweep, completed_pass=progress.completed_pass)
    return report, _gauges(registry, closing, report)


def _observe(probe: Probe, selection: Selection, probing: Deadline, deadline: Deadline, story: Story) -> list[Sighting]:
    """Probe every candidate once, as far as the time goes."""
    sightings = []
    slowest_s, longest_reserve_s = 0.0, deadline.remaining() * LONGEST_RESERVE
    for sighting in probe.sightings(selection.workspaces, probing):
        sightings.append(sighting)
        if sighting.verdict is Verdict.UNKNOWN:
            story.tell_some("instance unknown", sighting, sighting.cause)
        if sighting.took_s > slowest_s:
            slowest_s = sighting.took_s
            reserve_s = min(slowest_s * SECOND_PROBE_FACTOR, longest_reserve_s)
            probing.shorten(deadline.remaining() - reserve_s)
    return sightings


def _count(report: Report, selection: Selection, sightings: Sequence[Sighting]) -> None:
    report.candidates = len(selection.workspaces)
    report.checked = len(sightings)
    report.deferred = report.candidates - report.checked
    verdicts = Counter(sighting.verdict for sighting in sightings)
    for verdict in Verdict:
        setattr(report, verdict.value, verdicts[verdict])


def _policy(order: Request, settings: Settings) -> Policy:
    return Policy(
        breaker_max_dead_fraction=settings.breaker_max_dead_fraction,
        breaker_min_dead=settings.breaker_min_dead,
        absent_sightings=settings.absent_sightings,
        absent_min_age_s=settings.absent_min_age_seconds,
        override_breaker=order.override_breaker,
    )


def _tell(plan: Plan, report: Report, story: Story) -> None:
    """Say what is not going to be flipped, and why."""
    report.breaker_open = plan.breaker.open
    if plan.breaker.open:
        story.breaker_opened(plan.breaker.dead, plan.breaker.answered)
    for decision in plan.decisions:
        if decision.action is Action.STOP:
            report.skipped[SkipReason.BREAKER_OPEN] += 1
            story.tell_some("flip skipped", decision.sighting, SkipReason.BREAKER_OPEN)
        elif decision.action is Action.WAIT:
            story.tell_some("instance absent", decision.sighting, decision.reason)
    story.tell_the_rest()


def _progress(selection: Selection, sightings: Sequence[Sighting], out_of_time: Sequence[str]) -> Progress:
    return advance(
        selection.sweep,
        [workspace.id for workspace in selection.workspaces],
        next_unselected=selection.next_unselected,
        checked={sighting.workspace.id for sighting in sightings},
        out_of_time=out_of_time,
        most_first=min(len(sightings) // 2, MOST_FIRST),
    )


def _gauges(registry: Registry, closing: Deadline, report: Report) -> Gauges:
    gauges = registry.fleet.gauges(closing)
    report.restarts.pending = gauges.restarts_pending
    report.restarts.blocked = gauges.restarts_blocked
    report.restarts_paused = gauges.restarts_paused
    report.restarts_unrecovered = gauges.restarts_unrecovered
    report.held = gauges.held
    return gauges
