"""What one cycle saw and did, and the report that is put together from it."""

from collections import Counter
from dataclasses import dataclass, replace

from handler.domain.coverage import Progress
from handler.domain.decide import Plan
from handler.domain.model import Cause, Sighting, Verdict
from handler.domain.report import FleetGauges, Flip, Gauges, Outcome, Report, RestartCounts, no_skips
from handler.flips import FlipResults
from handler.probes import TargetTroubles
from handler.request import Request
from handler.restarts import Answer
from handler.restarts.worker import RestartResults
from handler.settings import Settings
from handler.store import Selection
from handler.telemetry import logger


@dataclass(frozen=True, slots=True)
class Observed:
    """What a cycle saw: the candidates, a sighting for each that it reached, and whether time cut probing short.

    `impaired` instances run, but fail EC2's system status check.
    """

    selection: Selection
    sightings: list[Sighting]
    impaired: int
    cut_short: bool

    @property
    def deferred(self) -> int:
        """How many candidates were not reached."""
        return len(self.selection.workspaces) - len(self.sightings)


@dataclass(frozen=True, slots=True)
class Acted:
    """What a cycle did, or what a dry run would do; and what the open breaker kept it from."""

    flips: FlipResults
    restarts: RestartResults
    blocked: tuple[Flip, ...] = ()


def report_on_nobody(
    outcome: Outcome, request: Request, settings: Settings, gauges: Gauges, fleet: FleetGauges
) -> Report:
    """Report on a cycle that ended before it looked at anybody: how things stand."""
    return Report(
        mode=request.mode,
        probe=settings.probe,
        outcome=outcome,
        restarts=_restart_counts(RestartResults(), gauges),
        on_hold=gauges.on_hold,
        oldest_doubt_seconds=round(gauges.oldest_doubt_s),
        unrecorded=fleet.unrecorded,
        offline_unowed=fleet.offline_unowed,
    )


def report_on(
    request: Request,
    settings: Settings,
    observed: Observed,
    plan: Plan,
    acted: Acted,
    progress: Progress,
    gauges: Gauges,
    fleet: FleetGauges,
) -> Report:
    """Report on a cycle that ran to its end."""
    verdicts = Counter(sighting.verdict for sighting in observed.sightings)
    skipped = acted.flips.skipped + Counter(one.skipped for one in plan.decisions if one.skipped is not None)
    done = Counter(flip.adopted for flip in acted.flips.flips) if request.applies else Counter()
    blocked = tuple(replace(flip, blocked=True) for flip in acted.blocked)
    return replace(
        report_on_nobody(Outcome.COMPLETED, request, settings, gauges, fleet),
        candidates=len(observed.selection.workspaces),
        checked=len(observed.sightings),
        running=verdicts[Verdict.RUNNING],
        transition=verdicts[Verdict.TRANSITION],
        dead=verdicts[Verdict.DEAD],
        absent=verdicts[Verdict.ABSENT],
        unknown=verdicts[Verdict.UNKNOWN],
        impaired=observed.impaired,
        flipped=done[False],
        adopted=done[True],
        completed_pass=progress.completed_pass and not request.narrowed,
        skipped=no_skips() | {str(reason): count for reason, count in skipped.items()},
        deferred=observed.deferred,
        deadline_hit=observed.cut_short or observed.deferred > 0 or bool(acted.flips.out_of_time),
        breaker_open=plan.breaker.open,
        restarts=_restart_counts(acted.restarts, gauges, superseded=acted.flips.cancelled),
        flips=acted.flips.flips + blocked,
    )


def with_targets(report: Report, troubles: TargetTroubles, observed: Observed, *, full: bool) -> Report:
    """Name the targets that failed, and those that are empty.

    A narrowed cycle looks at too few to call a target empty, unless that keeps somebody from being absent.
    """
    matters = full or any(one.failure and one.failure.cause is Cause.EMPTY_TARGET for one in observed.sightings)
    empty = list(troubles.empty) if matters else []
    for target, failure in troubles.failed.items():
        logger.warning("target failed", target=target, error=str(failure))
    for target in empty:
        logger.warning("target empty", target=target, reason="no candidate's instance was found there")
    return replace(report, targets_failed=list(troubles.failed), targets_empty=empty)


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
