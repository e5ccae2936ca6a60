"""One whole cycle in a cold process, from its start to its report."""

import json
import os
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

began_at = time.perf_counter()
from handler import app, process  # noqa: E402 - the import is what is measured
from handler.net import aws  # noqa: E402 - the import is what is measured
from handler.probes.ec2 import api  # noqa: E402 - the import is what is measured
from handler.store import session  # noqa: E402 - the import is what is measured

imported_at = time.perf_counter()
took: dict[str, float] = {}

# What Powertools reads of Lambda's context.
CONTEXT = SimpleNamespace(
    function_name="reconciler",
    memory_limit_in_mb=512,
    invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:reconciler",
    aws_request_id="00000000-0000-4000-8000-000000000000",
)


def main() -> None:
    """Run the cycle; with BENCH_PHASES in the environment say on stderr where its time went."""
    traced = "BENCH_PHASES" in os.environ
    if traced:
        _time(process, "aws", "EC2 client")  # boto3's session
        _time(aws.Aws, "ec2", "EC2 client")
        _time(api.Ec2Api, "_page", "EC2 call")
        _time(session.Session, "_connect", "connection to PostgreSQL")
        _time(session.Session, "_run", "queries")
    report = app.lambda_handler({"mode": "apply"}, CONTEXT)
    assert report["checked"] == report["running"] == 1, report  # noqa: S101 - it did what it is measured for
    if traced:
        print(json.dumps({"imports": imported_at - began_at, **took}), file=sys.stderr)


def _time(owner: Any, name: str, phase: str) -> None:
    inner: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*arguments, **named)
        finally:
            took[phase] = took.get(phase, 0.0) + time.perf_counter() - started

    setattr(owner, name, timed)


if __name__ == "__main__":
    main()
