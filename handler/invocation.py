"""What every entry point does around a cycle: its parts, its time, its report, its metrics."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from handler import cycle, process
from handler.deadline import Deadline
from handler.domain.shards import WHOLE
from handler.request import Request
from handler.telemetry import cycle_finished, emit_event_metrics, emit_metrics, emit_would_flip, logger

_ONLY_IF_TRUE = ("adopted", "blocked")


@contextmanager
def begun(asked: Request, warm: process.Process, context: Any) -> Iterator[tuple[cycle.Parts, Deadline]]:
    """Give an invocation its parts and its time. Nothing acts after it."""
    parts = warm.parts(leased=asked.state_changes is None, shard=asked.shard)
    logger.append_keys(cycle_id=parts.cycle_id, mode=asked.mode)
    if asked.shard != WHOLE:
        logger.append_keys(shard=asked.shard.number, shards=asked.shard.of)
    deadline = Deadline(process.seconds_for(warm.settings.cycle_deadline_seconds, context))
    try:
        yield parts, deadline
    finally:
        deadline.close()
        warm.rest()


def run_cycle(
    asked: Request, warm: process.Process, context: Any, began_at: float
) -> tuple[dict[str, Any], cycle.Result]:
    """Run a cycle; return the report as it is answered, and all that the cycle returned.

    Raises ReconcilerError if it cannot be run.
    """
    with begun(asked, warm, context) as (parts, deadline):
        result = cycle.run(asked, warm.settings, parts, deadline)
    report = dataclasses.replace(result.report, duration_ms=round((time.monotonic() - began_at) * 1000))
    if asked.applies and asked.state_changes is not None:
        emit_event_metrics(report, result.events.latencies_s)
    elif asked.applies and not asked.narrowed:
        emit_metrics(report, result.gauges)
    elif asked.scheduled:  # under the setting MODE=dry-run
        emit_would_flip(report)
    answer = dataclasses.asdict(report)
    answer["flips"] = [_shown(flip) for flip in answer["flips"][: cycle.FLIPS_REPORTED]]
    cycle_finished(answer)
    return answer, result


def _shown(flip: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flip.items() if value or name not in _ONLY_IF_TRUE}
