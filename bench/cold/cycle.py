"""One whole cycle in a cold process, from its start to its report."""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

began_at = time.perf_counter()
from handler import app  # noqa: E402 - the import is what is measured
from handler.net import aws  # noqa: E402 - the import is what is measured
from handler.store import session  # noqa: E402 - the import is what is measured

imported_at = time.perf_counter()
took: dict[str, float] = {}


def main() -> None:
    """Run the cycle; with BENCH_PHASES in the environment say on stderr where its time went."""
    traced = "BENCH_PHASES" in os.environ
    if traced:
        _time(aws.Aws, "client", "EC2 client")
        _time(aws.Aws, "call", "EC2 call")
        _time(session.Session, "_connect", "connection to PostgreSQL")
        _time(session.Session, "_run", "queries")
    report = app.lambda_handler({"mode": "apply"}, None)
    assert report["checked"] == report["running"] == 1, report  # noqa: S101 - it did what it is measured for
    if traced:
        phases = {"imports": imported_at - began_at, **took}
        phases["EC2 call"] -= phases["EC2 client"]  # the first call makes the client
        print(json.dumps(phases), file=sys.stderr)


def _time(owner: type, name: str, phase: str) -> None:
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
