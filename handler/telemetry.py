"""Powertools' Logger and Metrics, and the names that dashboards, alarms and queries rely on."""

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit

from handler.domain.backoff import CrashLoop
from handler.domain.model import LONGEST_INSTANCE_ID, Restart, Sighting, SkipReason
from handler.domain.report import Gauges, Outcome, Report
from handler.errors import ReconcilerError, StoreError
from handler.settings import LOG_LEVELS

SERVICE = "instance-state-reconciler"
NAMESPACE = "InstanceStateReconciler"

# After this many lines, further ones of the same kind are only counted: while the control plane is down, a cycle must
# not log a line for each row.
LINES_OF_A_KIND = 100

# An error may contain a trigger's message, which can be of any length.
_LONGEST_ERROR = 500

METRIC_UNITS = {
    "CycleCompleted": MetricUnit.Count,
    "AlreadyRunning": MetricUnit.Count,
    "Candidates": MetricUnit.Count,
    "Checked": MetricUnit.Count,
    "Dead": MetricUnit.Count,
    "Unknown": MetricUnit.Count,
    "Impaired": MetricUnit.Count,
    "Flipped": MetricUnit.Count,
    "Adopted": MetricUnit.Count,
    "SkippedFlips": MetricUnit.Count,
    "FlipErrors": MetricUnit.Count,
    "Deferred": MetricUnit.Count,
    "BreakerOpen": MetricUnit.Count,
    "DeadlineHit": MetricUnit.Count,
    "CycleDuration": MetricUnit.Milliseconds,
    "CoverageAge": MetricUnit.Seconds,
    "OldestDoubtAge": MetricUnit.Seconds,
    "Unrecorded": MetricUnit.Count,
    "OfflineUnowed": MetricUnit.Count,
    "RestartsAccepted": MetricUnit.Count,
    "RestartsPending": MetricUnit.Count,
    "RestartsBlocked": MetricUnit.Count,
    "RestartsBackingOff": MetricUnit.Count,
    "RestartsUnrecovered": MetricUnit.Count,
    "OldestRestartAge": MetricUnit.Seconds,
    "OnHold": MetricUnit.Count,
}
METRIC_NAMES = tuple(METRIC_UNITS)
# The only metric of a cycle that the schedule starts under the setting MODE=dry-run.
WOULD_FLIP = "WouldFlip"
# The metrics of a state-change cycle.
EVENT_FLIPS = "EventFlips"
DETECTION_LATENCY = "DetectionLatency"
# Values of one metric in one EMF record: CloudWatch takes 100, and at 100 Powertools would print them on its own.
_MOST_VALUES = 99

# Every key, beside Powertools' own, that a log line may carry.
LOG_KEYS = (
    *("cycle_id", "mode", "shard", "shards", "reason", "error"),
    *("function_name", "function_memory_size", "function_arn", "function_request_id", "cold_start"),
    *("workspace_id", "instance_id", "instance_state", "verdict", "target", "attempt"),
    *("what", "count", "dead", "counted"),
    *("probe", "outcome", "candidates", "checked", "running", "transition", "absent", "unknown", "impaired"),
    *("oldest_doubt_seconds", "unrecorded", "offline_unowed", "targets_failed", "targets_empty"),
    *("flipped", "adopted", "completed_pass", "skipped", "deferred", "deadline_hit", "breaker_open", "restarts"),
    *("on_hold", "duration_ms", "report"),
)


def _level() -> str:
    """Return the configured level, or INFO if it is not a level: the settings refuse it later."""
    level = os.environ.get("POWERTOOLS_LOG_LEVEL", "").upper()
    return level if level in LOG_LEVELS else "INFO"


logger = Logger(service=os.environ.get("POWERTOOLS_SERVICE_NAME") or SERVICE, level=_level(), use_rfc3339=True)
# Powertools prefers AWS_LAMBDA_LOG_LEVEL, the level of Lambda's own filter. That one never goes above INFO, because
# Lambda treats metrics as lines of level INFO and would drop them. So lines below our level are dropped here.
logging.getLogger(logger.name).setLevel(_level())

_record = logging.getLogRecordFactory()
_BELOW_EVERY_HANDLER = -1


def _own_record(name: str, level: int, path: str, line: int, *rest: Any, **more: Any) -> logging.LogRecord:
    """Make a log record. One that is not ours gets no text, and a level at which nobody prints it."""
    if name == logger.name:
        return _record(name, level, path, line, *rest, **more)
    return _record(name, _BELOW_EVERY_HANDLER, path, line, "left out", (), None)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    logger.error("thread failed", error=failure.exc_type.__name__)


def _only_own_lines() -> None:
    """Let nothing be printed but our own lines, at any level, whatever handlers there are.

    Libraries log, warn and raise with what a remote has sent them, and that may be a request with its tokens. Lambda's
    runtime has put a handler on the root logger before this module is loaded.
    """
    logging.setLogRecordFactory(_own_record)
    logging.getLogger().setLevel(logging.WARNING)  # so that records for nobody are not even made
    logging.captureWarnings(capture=True)
    if threading.excepthook is threading.__excepthook__:  # pytest's notice what a test leaves behind
        threading.excepthook = _thread_failed
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = lambda _: None


_only_own_lines()


class CycleLog:
    """The log lines of one cycle: one for each decision that matters."""

    def __init__(self) -> None:
        """Start with nothing logged."""
        self._lines: Counter[str] = Counter()
        self._unlogged: Counter[tuple[str, str]] = Counter()

    def sighting(self, message: str, sighting: Sighting, reason: str) -> None:
        """Log a decision about one workspace."""
        where: dict[str, Any] = {"target": sighting.target} if sighting.target else {}
        logger.info(
            message,
            workspace_id=sighting.workspace.id,
            instance_id=_printable(sighting.workspace.instance_id),
            instance_state=sighting.state,
            verdict=sighting.verdict.value,
            reason=reason,
            count=1,  # queries add these up with the counts of `the_rest`
            **where,
        )

    def sighting_capped(self, message: str, sighting: Sighting, reason: str) -> None:
        """Log a decision that may be the same for many workspaces: the first ones get a line, the rest are counted."""
        if self._gets_a_line(message, reason):
            self.sighting(message, sighting, reason)

    def the_rest(self) -> None:
        """Log how many more decisions there were, by reason."""
        for (message, reason), count in sorted(self._unlogged.items()):
            logger.warning("more of the same", what=message, reason=reason, count=count)
        self._unlogged.clear()

    def restart(self, message: str, restart: Restart, reason: str, *, attempt: int | None = None) -> None:
        """Log what became of an owed restart: the first ones of each kind get a line, the rest are counted.

        `attempt` is how often it was claimed, this time included; by default, as often as before.
        """
        if self._gets_a_line(message, reason):
            logger.info(
                message,
                workspace_id=restart.workspace_id,
                instance_id=_printable(restart.instance_id),
                attempt=restart.attempts if attempt is None else attempt,
                reason=reason,
            )

    def restarts_stopped(self, lasts_s: float) -> None:
        """Log that the platform asks to be left alone."""
        reason = f"Retry-After: the platform is asked for no restart for {lasts_s:.0f} s"
        logger.warning("restarts stopped", reason=reason)

    def backing_off(self, sighting: Sighting, loop: CrashLoop) -> None:
        """Log that a workspace which dies again and again has to wait for its restart."""
        restart, message = loop.streak + 1, "restart backing off"
        if self._gets_a_line(message, "crash loop"):
            logger.warning(
                message,
                workspace_id=sighting.workspace.id,
                instance_id=_printable(sighting.workspace.instance_id),
                attempt=restart,
                reason=f"crash loop: restart {restart} in a row waits {loop.backoff_s:.0f} s",
            )

    def failure(self, message: str, error: Exception) -> None:
        """Log an error that cost only a part of the cycle."""
        logger.warning(message, error=_printable(str(error), _LONGEST_ERROR))

    def flip_failed(self, sighting: Sighting, error: ReconcilerError) -> None:
        """Log an error that prevented a flip: the first one of each kind gets a line, the rest are counted."""
        message, kind = "re-read or flip failed", self.kind_of(error)
        self._lines[f"{message}: {kind}"] += 1
        if self._lines[f"{message}: {kind}"] > 1:
            self._unlogged[message, kind] += 1
            return
        logger.warning(
            message,
            workspace_id=sighting.workspace.id,
            instance_id=_printable(sighting.workspace.instance_id),
            reason=kind,
            error=_printable(str(error), _LONGEST_ERROR),
        )

    @staticmethod
    def kind_of(error: ReconcilerError) -> str:
        """Return the server's code for an error, or our own name for it."""
        code = error.sqlstate if isinstance(error, StoreError) else None
        return _printable(code or type(error).__name__)

    def breaker_open(self, dead: int, counted: int) -> None:
        """Log that too much of what the rule counts looks dead, so that nothing is flipped."""
        logger.error("breaker open", dead=dead, counted=counted, reason="too many look dead: nothing is flipped")

    def _gets_a_line(self, message: str, reason: str) -> bool:
        """Count a line of this kind; tell whether it is to be logged, or was only added to the rest."""
        self._lines[message] += 1
        logged = self._lines[message] <= LINES_OF_A_KIND
        if not logged:
            self._unlogged[message, reason] += 1
        return logged


def hold_changed(change: str, workspace_ids: Sequence[str] | None, reason: str) -> None:
    """Log a hold or a release by hand: of everything (None), or of each workspace. The first ones get a line."""
    if workspace_ids is None:
        message = f"everything {change}"
        logger.warning(message, reason=reason)
        return
    message = f"workspace {change}"
    for one in workspace_ids[:LINES_OF_A_KIND]:
        logger.info(message, workspace_id=one, reason=reason)
    if len(workspace_ids) > LINES_OF_A_KIND:
        logger.info("more of the same", what=message, reason=reason, count=len(workspace_ids) - LINES_OF_A_KIND)


def hold_trouble(message: str, error: Exception) -> None:
    """Log an error that cost only a part of the answer to a hold or release."""
    logger.warning(message, error=_printable(str(error), _LONGEST_ERROR))


def messages_dropped(reasons: Sequence[str]) -> None:
    """Log the messages of a batch that are no state changes, and why. The first ones get a line."""
    message = "message dropped"
    for one in reasons[:LINES_OF_A_KIND]:
        logger.warning(message, reason=_printable(one, _LONGEST_ERROR))
    if len(reasons) > LINES_OF_A_KIND:
        rest = len(reasons) - LINES_OF_A_KIND
        logger.warning("more of the same", what=message, reason="no state change of an instance", count=rest)


def batch_failed(error: ReconcilerError, count: int) -> None:
    """Log that a whole batch goes back to its queue."""
    text = _printable(str(error), _LONGEST_ERROR)
    logger.error("messages returned", reason=type(error).__name__, error=text, count=count)


def cycle_finished(summary: dict[str, Any]) -> None:
    """Log the report's figures."""
    logger.info("cycle finished", **{key: value for key, value in summary.items() if key != "flips"})


def emit_metrics(report: Report, gauges: Gauges) -> None:
    """Print one EMF line with every metric of a full applied cycle."""
    completed = report.outcome is Outcome.COMPLETED
    values = {
        "CycleCompleted": int(completed),
        "AlreadyRunning": int(not completed),
        "Candidates": report.candidates,
        "Checked": report.checked,
        "Dead": report.dead,
        "Unknown": report.unknown,
        "Impaired": report.impaired,
        "Flipped": report.flipped,
        "Adopted": report.adopted,
        "SkippedFlips": sum(report.skipped.values()),
        "FlipErrors": report.skipped[SkipReason.RECONFIRM_ERROR],
        "Deferred": report.deferred,
        "BreakerOpen": int(report.breaker_open),
        "DeadlineHit": int(report.deadline_hit),
        "CycleDuration": report.duration_ms,
        "CoverageAge": gauges.coverage_age_s,
        "OldestDoubtAge": report.oldest_doubt_seconds,
        "Unrecorded": report.unrecorded,
        "OfflineUnowed": report.offline_unowed,
        "RestartsAccepted": report.restarts.accepted,
        "RestartsPending": gauges.restarts_pending,
        "RestartsBlocked": gauges.restarts_blocked,
        "RestartsBackingOff": gauges.restarts_backing_off,
        "RestartsUnrecovered": gauges.restarts_unrecovered,
        "OnHold": gauges.on_hold,
        "OldestRestartAge": gauges.oldest_restart_age_s,
    }
    _emit({name: (unit, values[name]) for name, unit in METRIC_UNITS.items()})


def emit_would_flip(report: Report) -> None:
    """Print one EMF line with what a scheduled cycle would have flipped or adopted, had the setting MODE allowed it."""
    _emit({WOULD_FLIP: (MetricUnit.Count, len(report.flips))})


def emit_event_metrics(report: Report, latencies_s: Sequence[float]) -> None:
    """Print what an applied state-change cycle did: as many EMF lines as the latencies need, but at least one."""
    for start in range(0, max(1, len(latencies_s)), _MOST_VALUES):
        metrics = _metrics()
        if start == 0:
            metrics.add_metric(name=EVENT_FLIPS, unit=MetricUnit.Count, value=report.flipped)
        for one in latencies_s[start : start + _MOST_VALUES]:
            metrics.add_metric(name=DETECTION_LATENCY, unit=MetricUnit.Milliseconds, value=round(one * 1000))
        metrics.flush_metrics()


def _emit(values: Mapping[str, tuple[MetricUnit, float]]) -> None:
    metrics = _metrics()
    for name, (unit, value) in values.items():
        metrics.add_metric(name=name, unit=unit, value=value)
    metrics.flush_metrics()


def _metrics() -> Metrics:
    return Metrics(
        namespace=os.environ.get("POWERTOOLS_METRICS_NAMESPACE") or NAMESPACE,
        service=os.environ.get("POWERTOOLS_SERVICE_NAME") or SERVICE,
    )


def _printable(text: str, longest: int = LONGEST_INSTANCE_ID) -> str:
    """Return text from the database, which may be anything, as short ASCII that cannot break a log line."""
    return text[:longest].encode("ascii", "backslashreplace").decode()
