"""What an operator asks of a deployed stack."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ops import orders
from ops.command import ROOT, options, run

_EPILOG = (
    "A workspace is named by its id, or by its instance's (i-…), of which the log knows whose it was. With make: "
    """make ops ARGS="hold WORKSPACE --reason 'its disk is replaced' --for 4h", and ENV=staging for --env staging."""
)


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Do what the command line asks for; return the exit status."""
    parsed = _parser().parse_args(arguments)
    return run(lambda console: parsed.order(console, parsed, root=root))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=".venv-deploy/bin/python -m ops", description=__doc__, epilog=_EPILOG)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, order: orders.Order, said: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=said, description=said, epilog=_EPILOG)
        options(added)
        added.set_defaults(order=order)
        return added

    command("status", orders.status, "show mode, schedule, alarms and holds, and what a dry run finds")
    explained = command("explain", orders.explain, "show what is known of a workspace, what a cycle would do, and why")
    explained.add_argument("workspace", metavar="WORKSPACE")
    explained.add_argument("--json", type=Path, metavar="FILE", help="also keep the answer, for `make report`")
    held = command("hold", orders.hold, "keep the reconciler away from workspaces, or from everything, for a while")
    held.add_argument("--reason", required=True, help="who does what, for whoever finds the hold")
    held.add_argument("--for", dest="lasts", type=_lasting, default="1h", help="90s, 30m, 4h or 2d; 30d at most (1h)")
    released = command("release", orders.release, "end holds and back-offs, or (--all) the hold on everything")
    for one in (held, released):
        one.add_argument("workspaces", nargs="*", metavar="WORKSPACE")
        one.add_argument("--all", action="store_true", help="everything")
    command("override-breaker", orders.override_breaker, "run one cycle that an open breaker does not stop")
    return parser


def _lasting(text: str) -> str:
    try:
        orders.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 90s, 30m, 4h or 2d") from error
    return text


if __name__ == "__main__":
    sys.exit(main())
