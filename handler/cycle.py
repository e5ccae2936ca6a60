"""One cycle: observe → decide → act → report. Start reading here."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from handler.deadline import Deadline
from handler.domain.coverage import Progress, advance
from handler.domain.decide import Action, Plan, decide, outdated_absences
from handler.domain.model import Sighting, SkipReason, Verdict
from handler.domain.report import Gauges, Outcome, Report, RestartCounts, no_skips
from handler.errors import ReconcilerError
from handler.flips import Flipper
from handler.probes import Probe
from handler.request import APPLY, Request
from handler.restarts import Answer, Platform
from handler.restarts.worker import RestartResults, RestartWorker
from handler.settings import Settings
from handler.store import Selection, Store
from handler.telemetry import CycleLog, logger

# Phase deadlines, as fractions of the cycle. A phase may use what the ones before it left. They only keep
# a slow control plane from using up the time to act.
PROBING_ENDS = 0.75
FLIPPING_ENDS = 0.95
RESTARTS_END = 0.98
# A dead instance is probed twice. If answers are slow, probing ends early enough for the second probe.
SECOND_PROBE_FACTOR = 1.25
LONGEST_RESERVE = 0.5
# Workspaces that ran out of time come first in the next cycle, but not so many that nobody else has a turn.
MOST_FIRST = 1000
# Closing writes are short, and are made even if the cycle's time is over.
CLOSING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Parts:
    """The outside world, as one cycle may use it. Probe and platform are made within a deadline."""

    store: Store
    probe: Callable[[Deadline], Probe]
    platform: Callable[[Deadline], Platform] | None


@dataclass(frozen=True, slots=True)
class Phases:
    """Until when each phase of a cycle may last."""

    probing: Deadline
    flipping: Deadline
    restarts: Deadline
    whole: Deadline
    closing: Deadline


def run(request: Request, settings: Settings, parts: Parts, deadline: Deadline) -> tuple[Report, Gauges]:
    """Run one cycle within the deadline; return what it did, and how things stand in the database.

    Raises ReconcilerError if a cycle cannot be run. A failure about one workspace costs only that workspace.
    """
    store, closing = parts.store, deadline.extended(CLOSING_SECONDS)
    store.check_rights(deadline, to_apply=request.mode == APPLY)
    if request.mode != APPLY:
        return _cycle(request, settings, parts, deadline, closing)
    if not store.lease.acquire(deadline, lasts_s=closing.remaining()):
        gauges = store.gauges(closing)
        report = Report(
            request.mode,
            settings.probe,
            Outcome.ALREADY_RUNNING,
            restarts=_restart_counts(RestartResults(), gauges),
            on_hold=gauges.on_hold,
        )
        return report, gauges
    try:
        return _cycle(request, settings, parts, deadline, closing)
    finally:
        try:
            store.lease.release(closing)
        except ReconcilerError as error:
            logger.warning("lease not released", reason="it expires by itself", error=str(error))


def _cycle(
    request: Request, settings: Settings, parts: Parts, deadline: Deadline, closing: Deadline
) -> tuple[Report, Gauges]:
    store, log = parts.store, CycleLog()
    phases = _phases(deadline, closing)
    probe = parts.probe(phases.probing)

    limit = min(request.limit or settings.candidate_limit, settings.candidate_limit)
    selection = store.candidates.select(phases.probing, limit=limit, workspace_ids=request.workspace_ids)
    sightings = _observe(probe, selection, phases, log)
    probing_was_cut = phases.probing.over()

    # If it is too late to act, the cycle still remembers what it saw, and the dead come first in the next one.
    memory = store.memory.recall(closing, breaker_window_s=settings.breaker.window_s)
    plan = decide(sightings, memory, settings.breaker, settings.absence, override_breaker=request.override_breaker)
    _log_plan(plan, log)

    flipper = Flipper(store.flips, probe, settings, selection.selected_at, log)
    restarts = RestartResults()
    if request.mode == APPLY:
        all_selected = not request.narrowed and selection.next_unselected is None
        outdated = outdated_absences(memory.absences, selection.workspaces, all_selected=all_selected)
        store.memory.remember_absences(closing, plan.absent, [*plan.found_again, *outdated])
        flips = flipper.flip(plan.to_flip, phases.flipping)
        if flips.found_again:
            store.memory.remember_absences(closing, (), flips.found_again)
        restarts = RestartWorker(store.restarts, probe, settings, log).run(
            parts.platform,
            phases.restarts,
            closing,
            own_only=request.narrowed,
            absence_counts=plan.absence_counts,
        )
    else:
        flips = flipper.rehearse(plan.to_flip, phases.flipping)

    completed_pass = False
    if not request.narrowed:
        progress = _progress(selection, sightings, flips.out_of_time)
        completed_pass = progress.completed_pass
        if request.mode == APPLY:
            store.memory.save_coverage(closing, progress)

    gauges = store.gauges(closing)
    verdicts = Counter(sighting.verdict for sighting in sightings)
    skipped = flips.skipped + Counter(_stopped(plan))
    deferred = len(selection.workspaces) - len(sightings)
    report = Report(
        mode=request.mode,
        probe=settings.probe,
        candidates=len(selection.workspaces),
        checked=len(sightings),
        running=verdicts[Verdict.RUNNING],
        transition=verdicts[Verdict.TRANSITION],
        dead=verdicts[Verdict.DEAD],
        absent=verdicts[Verdict.ABSENT],
        unknown=verdicts[Verdict.UNKNOWN],
        flipped=len(flips.flips) if request.mode == APPLY else 0,
        completed_pass=completed_pass,
        skipped=no_skips() | {str(reason): count for reason, count in skipped.items()},
        deferred=deferred,
        deadline_hit=probing_was_cut or deferred > 0 or bool(flips.out_of_time),
        breaker_open=plan.breaker.open,
        restarts=_restart_counts(restarts, gauges, superseded=len(flips.superseded)),
        on_hold=gauges.on_hold,
        flips=flips.flips,
    )
    return report, gauges


def _phases(deadline: Deadline, closing: Deadline) -> Phases:
    whole_s = deadline.remaining()
    return Phases(
        probing=deadline.within(PROBING_ENDS * whole_s),
        flipping=deadline.within(FLIPPING_ENDS * whole_s),
        restarts=deadline.within(RESTARTS_END * whole_s),
        whole=deadline,
        closing=closing,
    )


def _observe(probe: Probe, selection: Selection, phases: Phases, log: CycleLog) -> list[Sighting]:
    """Probe every candidate once, as far as the time goes."""
    sightings = []
    slowest_s, longest_reserve_s = 0.0, phases.whole.remaining() * LONGEST_RESERVE
    for sighting in probe.sightings(selection.workspaces, phases.probing):
        sightings.append(sighting)
        if sighting.verdict is Verdict.UNKNOWN:
            log.sighting_capped("instance unknown", sighting, sighting.reason)
        if sighting.took_s > slowest_s:
            slowest_s = sighting.took_s
            reserve_s = min(slowest_s * SECOND_PROBE_FACTOR, longest_reserve_s)
            phases.probing.shorten(phases.whole.remaining() - reserve_s)
    return sightings


def _log_plan(plan: Plan, log: CycleLog) -> None:
    """Log what is not going to be flipped, and why."""
    if plan.breaker.open:
        log.breaker_open(plan.breaker.dead, plan.breaker.answered)
    for decision in plan.decisions:
        if decision.action is Action.STOP:
            log.sighting_capped("flip skipped", decision.sighting, SkipReason.BREAKER_OPEN)
        elif decision.action is Action.WAIT:
            log.sighting_capped("instance absent", decision.sighting, decision.reason)
    log.the_rest()


def _stopped(plan: Plan) -> list[SkipReason]:
    return [SkipReason.BREAKER_OPEN for decision in plan.decisions if decision.action is Action.STOP]


def _progress(selection: Selection, sightings: Sequence[Sighting], out_of_time: Sequence[str]) -> Progress:
    return advance(
        selection.coverage,
        [workspace.id for workspace in selection.workspaces],
        next_unselected=selection.next_unselected,
        checked={sighting.workspace.id for sighting in sightings},
        out_of_time=out_of_time,
        most_first=min(len(sightings) // 2, MOST_FIRST),
    )


def _restart_counts(results: RestartResults, gauges: Gauges, *, superseded: int = 0) -> RestartCounts:
    return RestartCounts(
        accepted=results.answers[Answer.ACCEPTED],
        cancelled=results.cancelled + superseded,
        refused=results.answers[Answer.REFUSED],
        uncertain=results.answers[Answer.UNCERTAIN],
        blocked=gauges.restarts_blocked,
        pending=gauges.restarts_pending,
        backing_off=gauges.restarts_backing_off,
        unrecovered=gauges.restarts_unrecovered,
    )
