"""`make undeploy`: removes a stack and the secrets that its deploy made, and names what stays."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ops import answers as answering
from ops import vault
from ops.account import Account
from ops.command import ROOT, answers_of, parser, run
from ops.console import Abandoned, AnswerError, Console, OpsError
from ops.stack import stack_of

_GOES_ON = "What was removed is gone, and the same command goes on from there."


def undeploy(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Remove an environment. Raises OpsError, Abandoned."""
    answers = answers_of(root, arguments)
    stack = stack_of(answers)
    account = stack.account
    deployed = stack.read()
    made = [vault.name_of(stack.name, part) for part in vault.PARTS if vault.find(account, stack.name, part)]
    if deployed is None and not made:
        console.say(f"There is no stack {stack.name} in {account.region}, and no secret of its own.")
        return
    console.headline(f"To be removed in {account.region}, account {account.identity()[0]}")
    if deployed is not None:
        console.say(f"  - the stack {stack.name}, with its schedule, functions, queues, alarms and dashboard")
    for name in made:
        console.say(f"  - the secret {name} (can be restored for {vault.RECOVERY_DAYS} days)")
    groups = _log_groups(account, stack.name)
    _confirm(console, arguments, stack.name)
    if deployed is not None:
        console.headline(f"Delete the stack {stack.name}")
        stack.delete()
    vault.delete(account, stack.name)
    answering.forget(root / answering.FILE, answers.environment)
    parameters = answers.parameters if deployed is None else deployed.parameters
    _say_what_stays(console, parameters.get("DatabaseRole") or "reconciler", groups)


def _log_groups(account: Account, name: str) -> list[str]:
    """Return the stack's log groups by their names, which they keep when the stack is gone."""
    own = re.compile(rf"{re.escape(name)}-(LogGroup|StateChangesLogGroup|InstallerLogGroup)-[A-Za-z0-9]+")
    listed = account.pages("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=f"{name}-")
    return sorted(group["logGroupName"] for group in listed if own.fullmatch(group["logGroupName"]))


def _confirm(console: Console, arguments: argparse.Namespace, name: str) -> None:
    if arguments.yes:
        return
    if not console.interactive:
        raise OpsError("there is no terminal to ask on: give ARGS=--yes")

    def same(answer: str) -> str:
        if answer not in ("", name):
            raise AnswerError(f"Please type {name}, or nothing to leave everything as it is.")
        return answer

    if not console.ask("Type the stack's name to remove it (Enter: leave it)", same):
        raise Abandoned("Nothing was removed.")


def _say_what_stays(console: Console, role: str, groups: Sequence[str]) -> None:
    """Name everything that is left, and how to remove it."""
    console.headline("What stays, until you remove it")
    for group in groups:
        console.say(f"  - the log group {group}, the record of what was flipped:")
        console.say(f"      aws logs delete-log-group --log-group-name {group}")
    console.say("  - in the database, the schema reconciler and the role. As the owner of the tables:")
    console.say(f'      DROP SCHEMA reconciler CASCADE; GRANT "{role}" TO CURRENT_USER;')
    console.say(f'      DROP OWNED BY "{role}"; DROP ROLE "{role}";')
    console.say(
        "  - the uploaded artifacts in SAM's bucket (stack aws-sam-cli-managed-default), which others may share"
    )
    console.say("  - infra/ca")


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Remove the environment that the command line names."""
    parsed = parser("Remove a deployed stack.").parse_args(arguments)
    return run(lambda console: undeploy(console, parsed, root=root), on_failure=_GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
