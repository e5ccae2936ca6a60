"""One invocation, as Lambda would make it, in a process of its own.

    python -m sandbox.invoke EVENT.json [--report FILE] [--remaining SECONDS]

The handler takes its settings from the environment and writes its logs and metrics to stdout. Its report goes to FILE;
`-` as the event reads it from stdin. The exit code is 1 when the handler raised, whose error then is on stderr.
"""

import argparse
import json
import sys
import traceback
from pathlib import Path

from sandbox.lambda_context import LambdaContext


def main(arguments: list[str] | None = None) -> int:
    """Invoke the handler once; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.invoke", description="Invoke the handler once.")
    parser.add_argument("event", help="a file with the event, or - for stdin")
    parser.add_argument("--report", type=Path, help="where to write the report, as JSON")
    parser.add_argument("--remaining", type=float, default=55.0, metavar="SECONDS", help="Lambda's timeout (55)")
    options = parser.parse_args(arguments)
    event = json.loads(sys.stdin.read() if options.event == "-" else Path(options.event).read_text())
    context = LambdaContext(options.remaining)
    try:
        # Imported here, as Lambda does when it initialises: what is wrong with it is the invocation's error.
        from handler.app import lambda_handler  # noqa: PLC0415

        report = json.dumps(lambda_handler(event, context))
    except Exception:  # noqa: BLE001 - whatever it is, Lambda counts it as an error and goes on
        traceback.print_exc()
        return 1
    if options.report is not None:
        options.report.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
