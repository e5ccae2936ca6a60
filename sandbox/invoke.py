"""Invokes the handler once, as Lambda would, in a process of its own.

    python -m sandbox.invoke EVENT.json [--handler MODULE] [--report FILE] [--remaining SECONDS]

The handler reads its settings from the environment and writes logs and metrics to stdout. Its report goes to FILE. With
`-` as EVENT.json, the event comes from stdin. If the handler raises, its error goes to stderr and the exit code is 1.
"""

import argparse
import importlib
import json
import sys
import traceback
from pathlib import Path

from sandbox.lambda_context import LambdaContext


def main(arguments: list[str] | None = None) -> int:
    """Invoke the handler once; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.invoke", description="Invoke the handler once.")
    parser.add_argument("event", help="a file with the event, or - for stdin")
    parser.add_argument("--handler", default="handler.app", metavar="MODULE", help="whose lambda_handler (handler.app)")
    parser.add_argument("--report", type=Path, help="where to write the report, as JSON")
    parser.add_argument("--remaining", type=float, default=55.0, metavar="SECONDS", help="Lambda's timeout (55)")
    options = parser.parse_args(arguments)
    event = json.loads(sys.stdin.read() if options.event == "-" else Path(options.event).read_text())
    context = LambdaContext(options.remaining)
    try:
        # Imported here, so that an error at import counts as the invocation's error, as in Lambda.
        report = json.dumps(importlib.import_module(options.handler).lambda_handler(event, context))
    except Exception:  # noqa: BLE001 - Lambda, too, counts any exception as an error
        traceback.print_exc()
        return 1
    if options.report is not None:
        options.report.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
