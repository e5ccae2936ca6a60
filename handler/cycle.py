"""One cycle: observe → decide → act → report. Start reading here."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from handler.deadline import Deadline
from handler.domain.coverage import MOST_FIRST, Progress, advance
from handler.domain.decide import Action, Memory, Plan, decide
from handler.domain.doubts import doubt_changes
from handler.domain.model import Verdict
from handler.domain.report import FleetGauges, Gauges, Outcome, Report
from handler.domain.restarts import Circumstances, longest_wait
from handler.domain.shards import WHOLE
from handler.errors import ReconcilerError
from handler.flips import Flipper
from handler.phases import CLOSING_SECONDS, Phases
from handler.probes import Probe
from handler.remembering import SAVING_SECONDS, Remembering
from handler.reporting import Acted, Observed, report_on, report_on_nobody, with_targets
from handler.request import Request
from handler.restarts import Platform
from handler.restarts.worker import RestartResults, RestartWorker
from handler.settings import Settings
from handler.state_changes import EventResults, event_results
from handler.store import FlipPolicy, Selection, Store
from handler.telemetry import CycleLog, logger

# A dead instance is probed twice. The slower the answers, the earlier the first probe ends: it leaves this many times
# the slowest answer for the second probe, but at most this fraction of the cycle.
SECOND_PROBE_FACTOR = 1.15
LONGEST_RESERVE = 0.5
# A report lists no more flips.
FLIPS_REPORTED = 100


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
class Result:
    """What one cycle did, what is open in the database at its end, and what came of EC2's events."""

    report: Report
    gauges: Gauges
    events: EventResults = field(default_factory=EventResults)


def run(request: Request, settings: Settings, parts: Parts, deadline: Deadline) -> Result:
    """Run one cycle within the deadline.

    Raises ReconcilerError if a cycle cannot be run. A failure that concerns one workspace costs only that workspace.
    """
    store, closing = parts.store, deadline.extended(CLOSING_SECONDS)
    store.check_rights(deadline, to_apply=request.applies)
    if not request.applies:
        return _cycle(request, settings, parts, Phases.of(deadline, restarts_due=False))
    if not store.lease.acquire(deadline, lasts_s=closing.remaining()):
        gauges, fleet = store.gauges(closing), _fleet(store, closing, CycleLog())
        return Result(report_on_nobody(Outcome.ALREADY_RUNNING, request, settings, gauges, fleet), gauges)
    try:
        restarts_due = _restarts_are_due(request, settings, parts, deadline)
        return _cycle(request, settings, parts, Phases.of(deadline, restarts_due=restarts_due))
    finally:
        try:
            store.lease.release(closing)
        except ReconcilerError as error:
            logger.warning("lease not released", reason="it expires by itself", error=str(error))


def _restarts_are_due(request: Request, settings: Settings, parts: Parts, deadline: Deadline) -> bool:
    """Tell whether the cycle may ask the platform for anything now."""
    if not request.asks_for_restarts or parts.platform is None:
        return False
    grace_s, ids = settings.restarts.grace_s, request.workspace_ids
    return parts.store.restarts.any_due(deadline, grace_s=grace_s, workspace_ids=ids)


def _cycle(request: Request, settings: Settings, parts: Parts, phases: Phases) -> Result:
    store, log, full = parts.store, CycleLog(), not request.narrowed
    remembering = Remembering(store, phases.closing, log)

    # Observe.
    if request.applies and full:
        remembering.tend(longest_wait_s=longest_wait(settings.restarts, silence_s=settings.heartbeat_fresh_seconds))
    selection = _selection(request, settings, store, phases)
    if request.state_changes is not None and not selection.workspaces:  # most instances of an account are not ours
        gauges = store.gauges(phases.closing)
        return Result(report_on_nobody(Outcome.COMPLETED, request, settings, gauges, FleetGauges()), gauges)
    probe = parts.probe(phases.probing)
    observed = _observe(request, probe, selection, phases, log)

    # Decide. Reading and writing memory has until `closing`: even a cycle that is too late to act remembers what it
    # saw, and the next one begins with the dead.
    memory = store.doubts.recall(
        phases.closing, breaker_window_s=settings.breaker.window_s, as_if_tended=full and not request.applies
    )
    plan = _decide(request, settings, observed, memory)

    # Act. What was seen is saved first, so that the next cycle knows it, however this one ends.
    flipper = Flipper(store.flips, probe, flip_policy(request, settings, selection), settings, log)
    if request.applies:
        changes = doubt_changes(
            observed.sightings, memory.doubts, absence_counts=plan.absence_counts, full=full, by_hand=request.adopt
        )
        if full:
            remembering.save_coverage(_progress(observed, [one.workspace.id for one in plan.to_flip]))
        remembering.save_doubts(changes, seconds=phases.flipping.remaining() if plan.breaker.open else SAVING_SECONDS)
        closing = phases.closing
        if request.shard != WHOLE and (plan.to_flip or _restarts_are_due(request, settings, parts, closing)):
            # Of shards at work together, at least the last one to save sees here what all of them have seen.
            fleet_now = store.doubts.fleet(closing, breaker_window_s=settings.breaker.window_s)
            plan = _decide(request, settings, observed, replace(memory, fleet=fleet_now))
        _log_plan(plan, log)
        flips = flipper.flip(plan.to_flip, phases.flipping)
        remembering.note_outcomes(plan, changes, flips)
        blocked = flipper.rehearse(plan.stopped[:FLIPS_REPORTED], phases.flipping, logged=False)
        acted = Acted(flips, _restarts(request, settings, parts, phases, probe, selection, plan, log), blocked.flips)
    else:
        _log_plan(plan, log)
        acted = Acted(flipper.rehearse(plan.to_flip, phases.flipping), RestartResults())

    # Report.
    progress = _progress(observed, acted.flips.out_of_time)
    if request.applies and full:
        progress = remembering.save_coverage(progress)
        remembering.purge(phases.whole)
    gauges, fleet = store.gauges(phases.closing), _fleet(store, phases.closing, log)
    report = report_on(request, settings, observed, plan, acted, progress, gauges, fleet)
    report = with_targets(report, probe.troubles(), observed, full=full)
    return Result(report, gauges, event_results(request.state_changes, selection, observed.sightings, acted.flips))


def _selection(request: Request, settings: Settings, store: Store, phases: Phases) -> Selection:
    limit = min(request.limit or settings.candidate_limit, settings.candidate_limit)
    if request.state_changes is not None:
        return store.candidates.recording(phases.probing, list(request.state_changes), limit=limit)
    return store.candidates.select(
        phases.probing,
        limit=limit,
        workspace_ids=request.workspace_ids,
        adopt=settings.adopt_offline,
        by_hand=request.adopt,
    )


def _observe(request: Request, probe: Probe, selection: Selection, phases: Phases, log: CycleLog) -> Observed:
    """Probe every candidate once, as far as time allows; meanwhile, ask which are impaired (not after EC2's events)."""
    count_impaired = probe.impaired(selection.workspaces if request.state_changes is None else [], phases.probing)
    sightings = []
    slowest_s, longest_reserve_s = 0.0, phases.whole.remaining() * LONGEST_RESERVE
    for sighting in probe.sightings(selection.workspaces, phases.probing):
        sightings.append(sighting)
        if sighting.verdict is Verdict.UNKNOWN:
            log.sighting_capped("instance unknown", sighting, sighting.reason)
        if sighting.took_s > slowest_s:
            slowest_s = sighting.took_s
            reserve_s = min(slowest_s * SECOND_PROBE_FACTOR, longest_reserve_s)
            phases.probing.shorten(phases.flipping.remaining() - reserve_s)
    cut_short = phases.probing.over()
    return Observed(selection, sightings, count_impaired(), cut_short)


def _decide(request: Request, settings: Settings, observed: Observed, memory: Memory) -> Plan:
    return decide(
        observed.sightings,
        memory,
        settings.breaker,
        settings.absence,
        in_turn=None if request.narrowed else observed.selection.queues.only_in_turn,
        override_breaker=request.override_breaker,
    )


def flip_policy(request: Request, settings: Settings, selection: Selection) -> FlipPolicy:
    """Return what a cycle judges the re-read rows by."""
    changes, restarts = request.state_changes, settings.restarts
    if changes is not None:  # the flip may come within seconds of the last heartbeat, so the restart waits for silence
        restarts = replace(restarts, grace_s=max(restarts.grace_s, settings.heartbeat_fresh_seconds))
    return FlipPolicy(
        selected_at=selection.selected_at,
        clock=selection.clock,
        probe=settings.probe,
        heartbeat_fresh_s=settings.heartbeat_fresh_seconds,
        crash_loop=settings.crash_loop,
        restarts=restarts,
        released=request.override_breaker,
        died_at={one: change.at for one, change in (changes or {}).items()},
    )


def _restarts(
    request: Request,
    settings: Settings,
    parts: Parts,
    phases: Phases,
    probe: Probe,
    selection: Selection,
    plan: Plan,
    log: CycleLog,
) -> RestartResults:
    """Look after the restarts, and ask for those that are due."""
    if not request.asks_for_restarts:
        return RestartResults()
    worker = RestartWorker(
        parts.store,
        probe,
        settings,
        clock=selection.clock,
        now=Circumstances.of(plan, settings.absence, full=not request.narrowed),
        workspace_ids=request.workspace_ids,
        most=request.shard.share(settings.restarts.per_cycle),
        log=log,
    )
    return worker.run(parts.platform, phases.restarts, phases.closing, release=request.override_breaker)


def _fleet(store: Store, closing: Deadline, log: CycleLog) -> FleetGauges:
    """Return what else is wrong with the platform's rows; zeros if they cannot be read now."""
    try:
        return store.fleet_gauges(closing)
    except ReconcilerError as error:
        log.failure("platform's rows not counted", error)
        return FleetGauges()


def _log_plan(plan: Plan, log: CycleLog) -> None:
    """Log which workspaces look dead but are not going to be flipped, and why."""
    if plan.breaker.open:
        log.breaker_open(plan.breaker.dead, plan.breaker.of)
    for decision in plan.decisions:
        if decision.skipped is not None:
            log.sighting_capped("flip skipped", decision.sighting, decision.skipped)
        elif decision.action is Action.WAIT:
            message = "instance absent" if decision.sighting.verdict is Verdict.ABSENT else "adoption waits"
            log.sighting_capped(message, decision.sighting, decision.reason)
    log.the_rest()


def _progress(observed: Observed, out_of_time: list[str]) -> Progress:
    selection, sightings = observed.selection, observed.sightings
    return advance(
        selection.coverage,
        selection.queues,
        checked={sighting.workspace.id for sighting in sightings},
        out_of_time=out_of_time,
        most_first=min(len(sightings) // 2, MOST_FIRST),
    )
