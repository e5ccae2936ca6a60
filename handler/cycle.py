"""One cycle: observe → decide → act → report. Start reading here."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from handler.deadline import Deadline
from handler.domain.coverage import Progress, advance
from handler.domain.decide import Action, Plan, decide, outdated_absences
from handler.domain.model import Sighting, SkipReason, Verdict, Workspace
from handler.domain.report import Gauges, Outcome, Report, RestartCounts, no_skips
from handler.errors import LeaseLostError, ReconcilerError, RowLockedError, UnfitDatabaseError
from handler.flips import Flipper, FlipResults
from handler.probes import Probe
from handler.request import Request
from handler.restarts import Answer, Platform
from handler.restarts.worker import RestartResults, RestartWorker
from handler.settings import Settings
from handler.store import Selection, Store
from handler.telemetry import CycleLog, logger

# Phase deadlines, as fractions of the cycle. A phase may also use the time that earlier ones left. The only purpose:
# a slow control plane must not use up the time to act.
PROBING_ENDS = 0.75
FLIPPING_ENDS = 0.95
RESTARTS_END = 0.98
# A dead instance is probed twice. The slower the answers, the earlier the first probe ends: it leaves this many times
# the slowest answer for the second probe, but at most this fraction of the cycle.
SECOND_PROBE_FACTOR = 1.25
LONGEST_RESERVE = 0.5
# At most this many workspaces are brought forward, since they are stored by name. They get half of the checks at most.
MOST_FIRST = 1000
# The closing writes are short, and happen even if the cycle's time is over.
CLOSING_SECONDS = 0.5
# What a cycle can do without must not take long.
SAVING_SECONDS = 1.0
PURGE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What one cycle uses of the outside world.

    `probe` and `platform` are made when needed, by the deadline they are given. Without a platform (None), restarts
    stay owed.
    """

    cycle_id: str
    store: Store
    probe: Callable[[Deadline], Probe]
    platform: Callable[[Deadline], Platform] | None


@dataclass(frozen=True, slots=True)
class Phases:
    """The deadline of each phase of a cycle. `closing` ends a little after `whole`."""

    probing: Deadline
    flipping: Deadline
    restarts: Deadline
    whole: Deadline
    closing: Deadline

    @staticmethod
    def of(deadline: Deadline) -> "Phases":
        """Divide a cycle's time."""
        whole_s = deadline.remaining()
        return Phases(
            probing=deadline.within(PROBING_ENDS * whole_s),
            flipping=deadline.within(FLIPPING_ENDS * whole_s),
            restarts=deadline.within(RESTARTS_END * whole_s),
            whole=deadline,
            closing=deadline.extended(CLOSING_SECONDS),
        )


@dataclass(frozen=True, slots=True)
class Observed:
    """What a cycle saw: the candidates, a sighting for each that it reached, and whether time cut probing short."""

    selection: Selection
    sightings: list[Sighting]
    cut_short: bool

    @property
    def deferred(self) -> int:
        """How many candidates were not reached."""
        return len(self.selection.workspaces) - len(self.sightings)


@dataclass(frozen=True, slots=True)
class Acted:
    """What a cycle did, or what a dry run would do."""

    flips: FlipResults
    restarts: RestartResults


def run(request: Request, settings: Settings, parts: Parts, deadline: Deadline) -> tuple[Report, Gauges]:
    """Run one cycle within the deadline; return its report, and what is open in the database at its end.

    Raises ReconcilerError if a cycle cannot be run. A failure that concerns one workspace costs only that workspace.
    """
    store, phases = parts.store, Phases.of(deadline)
    store.check_rights(deadline, to_apply=request.applies)
    if not request.applies:
        return _cycle(request, settings, parts, phases)
    if not store.lease.acquire(deadline, lasts_s=phases.closing.remaining()):
        gauges = store.gauges(phases.closing)
        counts = _restart_counts(RestartResults(), gauges)
        report = Report(request.mode, settings.probe, Outcome.ALREADY_RUNNING, restarts=counts, on_hold=gauges.on_hold)
        return report, gauges
    try:
        return _cycle(request, settings, parts, phases)
    finally:
        try:
            store.lease.release(phases.closing)
        except ReconcilerError as error:
            logger.warning("lease not released", reason="it expires by itself", error=str(error))


def _cycle(request: Request, settings: Settings, parts: Parts, phases: Phases) -> tuple[Report, Gauges]:
    store, log = parts.store, CycleLog()

    # Observe.
    probe = parts.probe(phases.probing)
    limit = min(request.limit or settings.candidate_limit, settings.candidate_limit)
    selection = store.candidates.select(phases.probing, limit=limit, workspace_ids=request.workspace_ids)
    observed = _observe(probe, selection, phases, log)

    # Decide. Reading and writing memory has until `closing`: even a cycle that is too late to act remembers what it
    # saw, and the next one begins with the dead.
    memory = store.memory.recall(phases.closing, breaker_window_s=settings.breaker.window_s)
    plan = decide(
        observed.sightings, memory, settings.breaker, settings.absence, override_breaker=request.override_breaker
    )
    _log_plan(plan, log)

    # Act.
    flipper = Flipper(store.flips, probe, settings, selection.selected_at, log)
    if request.applies:
        all_selected = not request.narrowed and selection.all_selected
        outdated = outdated_absences(memory.absences, selection.workspaces, all_selected=all_selected)
        _remember_absences(store, phases, log, plan.absent, [*plan.found_again, *outdated])
        flips = flipper.flip(plan.to_flip, phases.flipping)
        if flips.found_again:
            _remember_absences(store, phases, log, (), flips.found_again)
        worker = RestartWorker(store.restarts, probe, settings, log)
        restarts = worker.run(
            parts.platform,
            phases.restarts,
            phases.closing,
            own_only=request.narrowed,
            absence_counts=plan.absence_counts,
        )
    else:
        flips, restarts = flipper.rehearse(plan.to_flip, phases.flipping), RestartResults()

    # Report.
    progress = _progress(observed, flips)
    if request.applies and not request.narrowed:
        progress = _saved(store, phases, log, progress)
    gauges = store.gauges(phases.closing)
    return _report(request, settings, observed, plan, Acted(flips, restarts), progress, gauges), gauges


def _observe(probe: Probe, selection: Selection, phases: Phases, log: CycleLog) -> Observed:
    """Probe every candidate once, as far as time allows."""
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
    return Observed(selection, sightings, cut_short=phases.probing.over())


def _remember_absences(
    store: Store, phases: Phases, log: CycleLog, absent: Sequence[Workspace], forgotten: Sequence[str]
) -> None:
    """Save what was seen of absences; a failure costs a sighting each, and no flip."""
    try:
        store.memory.remember_absences(phases.closing.within(SAVING_SECONDS), absent, forgotten)
    except (UnfitDatabaseError, LeaseLostError):
        raise
    except ReconcilerError as error:
        log.failure("absences not saved", error)


def _saved(store: Store, phases: Phases, log: CycleLog, progress: Progress) -> Progress:
    """Save where the next cycle begins, and return how far this one got; purge a little if there is time."""
    try:
        store.memory.save_coverage(phases.closing, progress)
    except RowLockedError as error:
        log.failure("coverage not saved", error)
        progress = replace(progress, completed_pass=False)
    if not phases.whole.over():
        try:
            store.memory.purge(phases.whole.within(PURGE_SECONDS))
        except ReconcilerError as error:
            log.failure("nothing purged", error)
    return progress


def _log_plan(plan: Plan, log: CycleLog) -> None:
    """Log which workspaces look dead but are not going to be flipped, and why."""
    if plan.breaker.open:
        log.breaker_open(plan.breaker.dead, plan.breaker.answered)
    for decision in plan.decisions:
        if decision.action is Action.STOP:
            log.sighting_capped("flip skipped", decision.sighting, SkipReason.BREAKER_OPEN)
        elif decision.action is Action.WAIT:
            log.sighting_capped("instance absent", decision.sighting, decision.reason)
    log.the_rest()


def _progress(observed: Observed, flips: FlipResults) -> Progress:
    selection, sightings = observed.selection, observed.sightings
    return advance(
        selection.coverage,
        selection.queues,
        checked={sighting.workspace.id for sighting in sightings},
        out_of_time=flips.out_of_time,
        most_first=min(len(sightings) // 2, MOST_FIRST),
    )


def _report(
    request: Request,
    settings: Settings,
    observed: Observed,
    plan: Plan,
    acted: Acted,
    progress: Progress,
    gauges: Gauges,
) -> Report:
    verdicts = Counter(sighting.verdict for sighting in observed.sightings)
    stopped = sum(decision.action is Action.STOP for decision in plan.decisions)
    skipped = acted.flips.skipped + Counter({SkipReason.BREAKER_OPEN: stopped})
    return Report(
        mode=request.mode,
        probe=settings.probe,
        candidates=len(observed.selection.workspaces),
        checked=len(observed.sightings),
        running=verdicts[Verdict.RUNNING],
        transition=verdicts[Verdict.TRANSITION],
        dead=verdicts[Verdict.DEAD],
        absent=verdicts[Verdict.ABSENT],
        unknown=verdicts[Verdict.UNKNOWN],
        flipped=len(acted.flips.flips) if request.applies else 0,
        completed_pass=progress.completed_pass and not request.narrowed,
        skipped=no_skips() | {str(reason): count for reason, count in skipped.items()},
        deferred=observed.deferred,
        deadline_hit=observed.cut_short or observed.deferred > 0 or bool(acted.flips.out_of_time),
        breaker_open=plan.breaker.open,
        restarts=_restart_counts(acted.restarts, gauges, superseded=len(acted.flips.superseded)),
        on_hold=gauges.on_hold,
        flips=acted.flips.flips,
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
