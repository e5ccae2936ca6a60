"""`make mode MODE=apply|dry-run`: changes what the stack may do, and the file that keeps the answers, in one step.

It needs neither a build nor a question, so it is quick in an incident. Broken off anywhere, file and stack may differ;
then the file is the more careful one, so that the next deploy does nothing that nobody asked for.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import botocore.exceptions

from ops import answers as answering
from ops.answers import Answers
from ops.command import ROOT, answers_of, parser, run
from ops.console import Console, OpsError
from ops.plan import APPLY, DISABLED, DRY_RUN, SCHEDULE
from ops.stack import Deployed, Stack, stack_of
from ops.trial import require_passed, run_checklist

_GOES_ON = f"The same command again brings the stack and {answering.FILE} together."


def change_mode(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Change the mode. Raises OpsError."""
    answers = answers_of(root, arguments)
    stack = stack_of(answers)
    deployed = stack.require()
    if arguments.mode == DRY_RUN:
        _to_dry_run(console, root, answers, stack, deployed)
    else:
        _to_apply(console, root, answers, stack, deployed)
    if deployed.parameters.get(SCHEDULE) == DISABLED:
        console.warn("the schedule is disabled, so no cycle runs by itself: `make deploy` takes up what was broken off")


def _to_dry_run(console: Console, root: Path, answers: Answers, stack: Stack, deployed: Deployed) -> None:
    """Change the file first, then the stack; the stack also if the file cannot be changed: it stops what acts."""
    unkept = ""
    try:
        _keep(root, answers, DRY_RUN)
    except OSError as error:
        unkept = str(error)
    try:
        _change(console, stack, DRY_RUN)
    except (OpsError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, KeyboardInterrupt):
        console.warn(
            f"the stack's mode was {deployed.parameters.get('Mode')}, and may still be. {answering.FILE} says"
            f" {answers.get('Mode', DRY_RUN) if unkept else DRY_RUN}."
            " To stop it at once by other means: docs/runbook.md, Stop acting"
        )
        raise
    if unkept:
        raise _unkept(answers, DRY_RUN, unkept)


def _to_apply(console: Console, root: Path, answers: Answers, stack: Stack, deployed: Deployed) -> None:
    """Change the stack first, then the file."""
    if deployed.parameters.get("Mode") != APPLY:
        _check(console, stack, deployed)
    _change(console, stack, APPLY)
    try:
        _keep(root, answers, APPLY)
    except OSError as error:
        raise _unkept(answers, APPLY, str(error)) from error


def _unkept(answers: Answers, mode: str, why: str) -> OpsError:
    return OpsError(
        f"the stack is in mode {mode}, but {answering.FILE} could not be changed ({why}): the next deploy would set the"
        f" mode to {answers.get('Mode', DRY_RUN)} again. Correct it there"
    )


def _check(console: Console, stack: Stack, deployed: Deployed) -> None:
    """Go through the checklist before the stack may flip and restart."""
    results = run_checklist(console, stack, deployed)
    require_passed(console, results, "the mode stays dry-run")


def _change(console: Console, stack: Stack, mode: str) -> None:
    console.headline(f"The mode of {stack.name}: {mode}")
    console.say("  changed" if stack.change(Mode=mode) else "  it was so already")


def _keep(root: Path, answers: Answers, mode: str) -> None:
    """Keep the mode, if there is a file that keeps answers."""
    if answering.read(root / answering.FILE, answers.environment) is not None:
        answering.write(root / answering.FILE, answers.but(Mode=mode))


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Change the mode that the command line names."""
    commands = parser("Change the mode of a deployed stack.")
    commands.add_argument("mode", choices=[APPLY, DRY_RUN])
    parsed = commands.parse_args(arguments)
    return run(lambda console: change_mode(console, parsed, root=root), on_failure=_GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
