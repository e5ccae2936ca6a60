"""What an operator asks of the deployed function: how things stand, an explanation, a hold, a release, an override."""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops import queries
from ops.command import answers_of
from ops.console import Abandoned, Console, OpsError
from ops.plan import APPLY, DRY_RUN, SCHEDULE
from ops.report.layout import document_of
from ops.report.reading import UnreadableError, printable
from ops.report.terminal import show
from ops.stack import Deployed, Stack, stack_of

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
INSTANCE_ID = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
# The log keeps what it says of an instance for so long at most.
_LOGGED_FOR_S = 30 * 86_400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ANSWER = "the function's answer"

_DRY_RUN = {"mode": DRY_RUN}
# As a dry run it changes nothing, and answers what is on hold.
_HOLDS = {**_DRY_RUN, "release": "all"}

Order = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Function:
    """The reconciler of a deployed stack."""

    stack: Stack
    deployed: Deployed

    @staticmethod
    def of(arguments: argparse.Namespace, root: Path) -> "Function":
        """Return the one that the command line names. Raises OpsError."""
        stack = stack_of(answers_of(root, arguments))
        return Function(stack, stack.require())

    def send(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Send an event; return the answer. Raises OpsError if the function fails."""
        return self.stack.invoke(self.deployed.outputs["ReconcilerName"], event)

    def workspace(self, console: Console, named: str) -> str:
        """Return a workspace's id, given that or the id of its instance, of which the log knows whose it was.

        The function takes workspaces alone. Raises OpsError.
        """
        if UUID.fullmatch(named):
            return named.lower()
        if not INSTANCE_ID.fullmatch(named):
            raise OpsError(f"{printable(named)} is neither a workspace's id nor an instance's")
        groups = sorted(self.stack.resources("AWS::Logs::LogGroup").values())
        query = (
            f'filter instance_id = "{named}" and ispresent(workspace_id)'
            " | stats max(@timestamp) as latest by workspace_id | sort latest desc | limit 10"
        )
        query_id = queries.start(self.stack.account, groups, query, since_s=_LOGGED_FOR_S)
        status, rows = queries.results(self.stack.account, query_id)
        if status != "Complete":
            raise OpsError(f"the log cannot be asked whose instance {named} is: {status}")
        found = [row["workspace_id"] for row in rows if UUID.fullmatch(row.get("workspace_id", ""))]
        if not found:
            raise OpsError(
                f"no cycle has logged anything about {named} in 30 days, as of one that is healthy: name the workspace"
                " instead, whose id the platform's database has beside the instance's"
            )
        if len(found) > 1:
            raise OpsError(f"{named} was recorded by several workspaces, so name one: {', '.join(found)}")
        console.say(f"{named} was recorded by the workspace {found[0]}.")
        return found[0]


def status(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Show how things stand: mode, schedule, alarms, holds, and what a dry run finds. Changes nothing."""
    function = Function.of(arguments, root)
    parameters = function.deployed.parameters
    console.headline(f"The stack {function.stack.name} in {function.stack.account.region}: {function.deployed.status}")
    console.say(f"  mode      {parameters.get('Mode')}")
    console.say(f"  schedule  {parameters.get(SCHEDULE)}")
    loud = [name for name, one in function.stack.alarms().items() if one is not None and one["StateValue"] == "ALARM"]
    console.say(f"  alarms    {', '.join(loud) or 'none'}", "red" if loud else "")
    holds = function.send(_HOLDS)
    for hold in holds["holds"]:
        whose = hold["workspace_id"] or "everything"
        console.say(f"  on hold   {whose} until {hold['ends_at']}: {hold['reason']}", "yellow")
    _show(console, function.send(_DRY_RUN))


def explain(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Show what is known of a workspace, and what a cycle would do with it and why. Changes nothing."""
    function = Function.of(arguments, root)
    workspace = function.workspace(console, arguments.workspace)
    answer = function.send({"mode": "explain", "workspace_id": workspace})
    _show(console, answer)
    recorded = (answer.get("row") or {}).get("instance_id")
    if arguments.workspace not in (recorded, workspace) and INSTANCE_ID.fullmatch(arguments.workspace):
        console.warn(f"The row now records {recorded or 'no instance'}, no longer {arguments.workspace}.")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(answer))
        console.say(f"The answer is in {printable(str(arguments.json))}.")


def hold(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Put workspaces, or everything, on hold."""
    function = Function.of(arguments, root)
    whose, said = _whose(console, function, arguments)
    _sure(console, arguments, f"Put {said} on hold for {arguments.lasts}")
    wanted = {"all": True} if whose is None else {"workspace_ids": whose}
    order = {**wanted, "reason": arguments.reason, "seconds": seconds(arguments.lasts)}
    _change(console, function, {"hold": order})


def release(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """End the holds and back-offs of workspaces, or the hold on everything."""
    function = Function.of(arguments, root)
    whose, said = _whose(console, function, arguments)
    _sure(console, arguments, f"End the hold on {said}" + ("" if whose is None else ", and back-offs"))
    _change(console, function, {"release": whose or "all"})


def override_breaker(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Show what one cycle would do whose breaker is lifted, and run it."""
    function = Function.of(arguments, root)
    preview = function.send({**_DRY_RUN, "override_breaker": True})
    _show(console, preview)
    _sure(console, arguments, "Flip these now, and have them and all owed workspaces restarted")
    _change(console, function, {"override_breaker": True})


def seconds(text: str) -> int:
    """Return how long `90s`, `30m`, `4h` or `2d` are. Raises ValueError."""
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in _UNITS or not int(number):
        raise ValueError(text)
    return int(number) * _UNITS[unit]


def _whose(console: Console, function: Function, arguments: argparse.Namespace) -> tuple[list[str] | None, str]:
    """Return the workspaces that the command line names, or None for everything; and how to name them."""
    if arguments.all == bool(arguments.workspaces):
        raise OpsError("name workspaces, or give --all, and not both")
    if arguments.all:
        return None, "everything"
    whose = [function.workspace(console, one) for one in arguments.workspaces]
    return whose, ", ".join(whose)


def _sure(console: Console, arguments: argparse.Namespace, question: str) -> None:
    if not arguments.yes and not console.interactive:
        raise OpsError("there is no terminal to ask on: give --yes")
    if not arguments.yes and not console.confirm(question, default=False):
        raise Abandoned("Nothing was changed.")


def _change(console: Console, function: Function, order: Mapping[str, Any]) -> None:
    """Send an order to be applied. Raises OpsError if it changed nothing."""
    answer = function.send({"mode": APPLY, **order})
    _show(console, answer)
    if answer.get("mode") != APPLY:
        raise OpsError("nothing was changed: the stack's mode is dry-run, in which nothing is flipped or restarted")
    if answer.get("outcome") == "already_running":
        raise OpsError("nothing was done: another cycle is running. Try again in a minute")


def _show(console: Console, answer: Mapping[str, Any]) -> None:
    try:
        show(console, document_of(json.dumps(answer), _ANSWER))
    except UnreadableError as error:
        raise OpsError(str(error)) from error
