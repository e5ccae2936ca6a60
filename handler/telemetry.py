"""Powertools' Logger and Metrics, and the names that dashboards, alarms and queries rest on."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit

from handler.decide import Loop
from handler.model import Debt, Gauges, Report, Sighting
from handler.settings import LOG_LEVELS

SERVICE = "instance-state-reconciler"
NAMESPACE = "InstanceStateReconciler"

# Past this many lines, what is the same for many is only counted: a dead control plane must not write
# a line a row, every minute.
LINES_OF_A_KIND = 100

METRIC_UNITS = {
    "CycleCompleted": MetricUnit.Count,
    "AlreadyRunning": MetricUnit.Count,
    "Candidates": MetricUnit.Count,
    "Checked": MetricUnit.Count,
    "Dead": MetricUnit.Count,
    "Unknown": MetricUnit.Count,
    "Flipped": MetricUnit.Count,
    "SkippedFlips": MetricUnit.Count,
    "Deferred": MetricUnit.Count,
    "BreakerOpen": MetricUnit.Count,
    "DeadlineHit": MetricUnit.Count,
    "CycleDuration": MetricUnit.Milliseconds,
    "CoverageAge": MetricUnit.Seconds,
    "RestartsRequested": MetricUnit.Count,
    "RestartsPending": MetricUnit.Count,
    "RestartsBlocked": MetricUnit.Count,
    "RestartsPaused": MetricUnit.Count,
    "RestartsUnrecovered": MetricUnit.Count,
    "OldestRestartAge": MetricUnit.Seconds,
    "Held": MetricUnit.Count,
}
METRIC_NAMES = tuple(METRIC_UNITS)

# Every key, beside Powertools' own, that a log line may carry.
LOG_KEYS = (
    *("cycle_id", "mode", "function_request_id", "reason", "error"),
    *("workspace_id", "instance_id", "instance_state", "verdict", "attempt"),
    *("what", "count", "dead", "answered"),
    *("probe", "outcome", "candidates", "checked", "running", "transition", "absent", "unknown"),
    *("flipped", "completed_pass", "skipped", "deferred", "deadline_hit", "breaker_open", "restarts"),
    *("restarts_paused", "restarts_unrecovered", "held"),
    *("duration_ms", "report"),
)

# They tell of credentials found and connections dropped, without a cycle's keys.
for _library in ("botocore", "urllib3"):
    logging.getLogger(_library).setLevel(logging.WARNING)


def _level() -> str | None:
    """Return None for what Powertools reads itself, or a level in place of what is none: the settings will say so."""
    return None if os.environ.get("POWERTOOLS_LOG_LEVEL", "INFO").upper() in ("", *LOG_LEVELS) else "INFO"


logger = Logger(service=os.environ.get("POWERTOOLS_SERVICE_NAME") or SERVICE, level=_level())


class Story:
    """What a cycle tells of its decisions while it makes them: one line for each that matters."""

    def __init__(self) -> None:
        """Begin with nothing told."""
        self._lines: Counter[str] = Counter()
        self._untold: Counter[tuple[str, str]] = Counter()

    def tell(self, message: str, sighting: Sighting, reason: str) -> None:
        """Log a decision about one workspace."""
        logger.info(
            message,
            workspace_id=sighting.workspace.id,
            instance_id=_printable(sighting.workspace.instance_id),
            instance_state=sighting.state,
            verdict=sighting.verdict.value,
            reason=reason,
        )

    def tell_some(self, message: str, sighting: Sighting, reason: str) -> None:
        """Log what may be the same for very many workspaces: the first ones; the rest is counted."""
        self._lines[message] += 1
        if self._lines[message] <= LINES_OF_A_KIND:
            self.tell(message, sighting, reason)
        else:
            self._untold[message, reason] += 1

    def tell_the_rest(self) -> None:
        """Log how many more there were, by reason."""
        for (message, reason), count in sorted(self._untold.items()):
            logger.warning("more of the same", what=message, reason=reason, count=count)
        self._untold.clear()

    def restart(self, message: str, debt: Debt, reason: str, *, attempt: int) -> None:
        """Log what became of a restart that is owed."""
        logger.info(
            message,
            workspace_id=debt.workspace_id,
            instance_id=_printable(debt.instance_id),
            attempt=attempt,
            reason=reason,
        )

    def restart_paused(self, sighting: Sighting, loop: Loop) -> None:
        """Log that a workspace which dies again and again has to wait for its restart."""
        logger.warning(
            "restart paused",
            workspace_id=sighting.workspace.id,
            instance_id=_printable(sighting.workspace.instance_id),
            attempt=loop.streak + 1,
            reason=f"crash loop: restart {loop.streak + 1} without a stretch of health waits {loop.pause_s:.0f} s",
        )

    def trouble(self, message: str, error: Exception) -> None:
        """Log what went wrong with a part of the cycle, and cost only that part."""
        logger.warning(message, error=str(error))

    def breaker_opened(self, dead: int, answered: int) -> None:
        """Log that nothing is flipped, since too much looks dead."""
        logger.error("breaker open", dead=dead, answered=answered, reason="too many look dead: nothing is flipped")


def exemption_changed(message: str, workspace_ids: Iterable[str], reason: str) -> None:
    """Log what was ordered by hand for these workspaces."""
    for one in workspace_ids:
        logger.info(message, workspace_id=one, reason=reason)


def cycle_finished(summary: dict[str, Any]) -> None:
    """Log the report's figures."""
    logger.info("cycle finished", **{key: value for key, value in summary.items() if key != "flips"})


def emit_metrics(report: Report, gauges: Gauges) -> None:
    """Print one EMF line with every metric of a full applied cycle."""
    completed = report.outcome == "completed"
    values = {
        "CycleCompleted": int(completed),
        "AlreadyRunning": int(not completed),
        "Candidates": report.candidates,
        "Checked": report.checked,
        "Dead": report.dead,
        "Unknown": report.unknown,
        "Flipped": report.flipped,
        "SkippedFlips": sum(report.skipped.values()),
        "Deferred": report.deferred,
        "BreakerOpen": int(report.breaker_open),
        "DeadlineHit": int(report.deadline_hit),
        "CycleDuration": report.duration_ms,
        "CoverageAge": gauges.coverage_age_s,
        "RestartsRequested": report.restarts.requested,
        "RestartsPending": gauges.restarts_pending,
        "RestartsBlocked": gauges.restarts_blocked,
        "RestartsPaused": gauges.restarts_paused,
        "RestartsUnrecovered": gauges.restarts_unrecovered,
        "Held": gauges.held,
        "OldestRestartAge": gauges.oldest_restart_age_s,
    }
    metrics = Metrics(
        namespace=os.environ.get("POWERTOOLS_METRICS_NAMESPACE") or NAMESPACE,
        service=os.environ.get("POWERTOOLS_SERVICE_NAME") or SERVICE,
    )
    for name, unit in METRIC_UNITS.items():
        metrics.add_metric(name=name, unit=unit, value=values[name])
    metrics.flush_metrics()


def _printable(instance_id: str) -> str:
    """Cut short what the platform recorded, which may be anything, and leave nothing that bends or breaks a line."""
    return instance_id[:64].encode("ascii", "backslashreplace").decode()
