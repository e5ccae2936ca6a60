"""Lambda's entry point for the schedule and the console: one event in, one answer out."""

import dataclasses
import os
import time
from typing import Any

from handler import cycle, holds, process, request
from handler.deadline import Deadline
from handler.telemetry import cycle_finished, emit_metrics, emit_would_flip, logger

_ONLY_IF_TRUE = ("adopted", "blocked")


@logger.inject_lambda_context(clear_state=True)
def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Do what the event asks for, and return the report.

    Raises ReconcilerError if event or environment are wrong (before any connection is opened), or if a cycle cannot be
    run.
    """
    began_at = time.monotonic()
    warm = process.current(os.environ)
    asked = request.parse(event, ceiling=warm.settings.mode)
    parts = warm.parts()
    logger.append_keys(cycle_id=parts.cycle_id, mode=asked.mode)
    deadline = Deadline(process.seconds_for(warm.settings.cycle_deadline_seconds, context))
    try:
        if asked.hold or asked.release:
            in_time = deadline.within(holds.ANSWER_SECONDS - (time.monotonic() - began_at))
            return holds.carry_out(asked, parts.store, deadline, in_time)
        report, gauges = cycle.run(asked, warm.settings, parts, deadline)
    finally:
        deadline.close()
        warm.rest()
    report = dataclasses.replace(report, duration_ms=round((time.monotonic() - began_at) * 1000))
    if asked.applies and not asked.narrowed:
        emit_metrics(report, gauges)
    elif asked.scheduled:  # under the setting MODE=dry-run
        emit_would_flip(report)
    answer = dataclasses.asdict(report)
    answer["flips"] = [_shown(flip) for flip in answer["flips"][: cycle.FLIPS_REPORTED]]
    cycle_finished(answer)
    return answer


def _shown(flip: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flip.items() if value or name not in _ONLY_IF_TRUE}
