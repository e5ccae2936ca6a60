"""`make mode MODE=apply|dry-run`: changes what the stack may do, and the file that keeps the answers, in one step.

It needs neither a build nor a question, so it is quick in an incident. Broken off anywhere, file and stack may differ;
then the file is the more careful one, so that the next deploy does nothing that nobody asked for.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ops import answers as answering
from ops.account import Account
from ops.answers import Answers
from ops.command import parser, run
from ops.console import Console, OpsError
from ops.deploy import ROOT
from ops.stack import Deployed, Stack
from ops.trial import dry_run, require_passed, show

APPLY, DRY_RUN = "apply", "dry-run"


def change_mode(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Change the mode. Raises OpsError."""
    answers = known(root, arguments)
    account = Account(answers.region)
    stack = Stack(account, answers.stack)
    deployed = stack.require()
    if arguments.mode == DRY_RUN:
        _keep(root, answers, DRY_RUN)
        _change(console, stack, DRY_RUN)
        return
    if deployed.parameters.get("Mode") != APPLY:
        _check(console, account, stack, deployed)
    _change(console, stack, APPLY)
    _keep(root, answers, APPLY)


def known(root: Path, arguments: argparse.Namespace) -> Answers:
    """Return the environment's answers; without a file, the stack of the environment's name."""
    kept = answering.read(root / answering.FILE, arguments.env)
    answers = kept or Answers(environment=arguments.env, stack=answering.stack_name(arguments.env))
    region = arguments.region or answers.region or Account().region
    if not region:
        raise OpsError("no Region is known: give ARGS='--region …', or set AWS_REGION")
    return replace(answers, region=region)


def _check(console: Console, account: Account, stack: Stack, deployed: Deployed) -> None:
    """Go through the checklist before the stack may flip and restart."""
    with console.step("A dry run, and the checklist before switching on"):
        results = dry_run(account, stack, deployed)
        show(console, results)
    require_passed(console, results, "the mode stays dry-run")


def _change(console: Console, stack: Stack, mode: str) -> None:
    with console.step(f"The mode of {stack.name}: {mode}"):
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
    return run(lambda console: change_mode(console, parsed, root=root))


if __name__ == "__main__":
    sys.exit(main())
