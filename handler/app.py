"""Lambda's entry point for the schedule and the console: one event in, one answer out."""

import os
import time
from typing import Any

from handler import holds, process, request
from handler.invocation import begun, run_cycle
from handler.telemetry import logger


@logger.inject_lambda_context(clear_state=True)
def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Do what the event asks for, and return the report.

    Raises ReconcilerError if event or environment are wrong (before any connection is opened), or if a cycle cannot be
    run.
    """
    began_at = time.monotonic()
    warm = process.current(os.environ)
    asked = request.parse(event, ceiling=warm.settings.mode)
    if asked.hold or asked.release:
        with begun(asked, warm, context) as (parts, deadline):
            in_time = deadline.within(holds.ANSWER_SECONDS - (time.monotonic() - began_at))
            return holds.carry_out(asked, parts.store, deadline, in_time)
    if asked.explain is not None:
        from handler import explain  # noqa: PLC0415 - no cycle pays for it

        with begun(asked, warm, context) as (parts, deadline):
            return explain.explain(asked.explain, warm.settings, parts, warm.sources, deadline)
    answer, _ = run_cycle(asked, warm, context, began_at)
    return answer
