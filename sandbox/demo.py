"""The demo: runs two cycles of the real handler on a sample fleet and shows what they did.

python -m sandbox.demo [--probe ec2|control_plane] [--event FILE] [--workspaces N] [--json FILE]
                       [--watch | --explain NAME]
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from sandbox import show
from sandbox.explain import Explanations
from sandbox.invocation import Invocation, InvocationError
from sandbox.postgres import RECONCILER_ROLE
from sandbox.sample_fleet import sample_fleet, workspace_id
from sandbox.snapshot import Snapshot
from sandbox.terminal import headline, say, step, styled
from sandbox.watch import watch
from sandbox.world import World, world

_EVENTS = Path(__file__).parent.parent / "events"
# Seconds instead of minutes: the restarts are due by the second cycle.
_GRACE_S = 2
# Events of the other functions, by a field that only these have.
_FOR_OTHERS = {
    "install": "the installer, which the demo does not run: it has installed everything before the first cycle",
    "Records": "the function that takes state-change events from their queue. --watch shows that at work",
}
_FAILED = 1
_INTERRUPTED = 130
_TERMINATED = 143


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the process's exit code: 0, or 1 if the cycle failed."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        event = json.loads(options.event.read_text())
        headline("Setting up")
        with _populated_world(options.workspaces, options.probe) as populated:
            environment = populated.environment(options.probe) | {"RESTART_GRACE_SECONDS": str(_GRACE_S)}
            if options.explain is not None:
                answers = [_explain(populated, options.explain, environment)]
            elif options.watch and _is_cycle(event):
                watch(populated, event, environment)
                return 0
            else:
                answers = _once(populated, event, environment, title=f"{options.event.name}, probe {options.probe}")
        if options.json is not None:
            options.json.write_text("".join(f"{json.dumps(one)}\n" for one in answers))
            say()
            say(f"Kept for `make report FILE={options.json}`.")
    except InvocationError as error:
        say()
        say(styled(_failure(error.last_line), "red"))
        return _FAILED
    except KeyboardInterrupt:
        say()
        say("Interrupted. Nothing is left behind.")
        return _INTERRUPTED
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description="Runs the reconciler on a sample fleet, on this machine alone."
    )
    parser.add_argument("--probe", choices=["ec2", "control_plane"], default="ec2", help="the source of truth (ec2)")
    parser.add_argument(
        "--event",
        type=_event,
        default=_EVENTS / "scheduled.json",
        metavar="FILE",
        help="the event to send to the handler (events/scheduled.json)",
    )
    parser.add_argument("--workspaces", type=_count, default=24, metavar="N", help="how many workspaces (24)")
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--watch", action="store_true", help="kill instances, with state-change events, until Ctrl-C")
    one_of.add_argument("--explain", metavar="NAME", help="say what a cycle would do with a workspace, and why")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the answers, for `make report`")
    options = parser.parse_args(arguments)
    names = [one.name for one in sample_fleet(options.workspaces)]
    if options.explain is not None and options.explain not in names:
        parser.error(f"argument --explain: there is no {options.explain!r}; there are {', '.join(names)}")
    if options.json is not None and options.watch:
        parser.error("argument --json: not allowed with argument --watch")
    return options


def _event(text: str) -> Path:
    path = Path(text)
    try:
        event = json.loads(path.read_text())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from error
    for field, whose in _FOR_OTHERS.items():
        if isinstance(event, dict) and field in event:
            raise argparse.ArgumentTypeError(f"{text} is for {whose}")
    return path


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _exit_on_sigterm(*_: object) -> NoReturn:
    """Exit through an exception, so that everything that was started is stopped."""
    sys.exit(_TERMINATED)


@contextmanager
def _populated_world(number: int, probe: str) -> Iterator[World]:
    workspaces = sample_fleet(number)
    with world(step) as populated:
        with step(f"{number} workspaces and their EC2 instances"):
            populated.populate(workspaces)
        for place, workspace in enumerate(workspaces, start=1):
            if workspace.reprovisioned:
                populated.reprovision_while_probed(workspace_id(place), probe)
        yield populated


def _explain(populated: World, name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Show the fleet, and what the handler says of one workspace; return it. Raises InvocationError."""
    populated.database.query(f"GRANT SELECT (name, tier, created_at) ON workspaces TO {RECONCILER_ROLE}")
    before = Snapshot.of(populated)
    show.fleet_before(before)
    (workspace,) = (row["id"] for row in before.rows if row["name"] == name)
    answer, _ = _invoke({"mode": "explain", "workspace_id": workspace}, environment, f"The log of explain ({name})")
    show.explanation(answer)
    return answer


def _once(populated: World, event: Any, environment: Mapping[str, str], *, title: str) -> list[dict[str, Any]]:
    """Send the event; if its cycle flips workspaces, send it again after the grace. Show the fleet before and after.

    Return the answers. Raises InvocationError.
    """
    before = Snapshot.of(populated)
    show.fleet_before(before)
    report, lines = _invoke(
        event, environment, f"The log of the {'cycle' if _is_cycle(event) else 'request'} ({title})"
    )
    if "would" in report:
        show.explanation(report)
        return [report]
    if not _is_cycle(event):
        show.holds(report)
        return [report]
    reports, latest = [report], lines
    if report["mode"] == "apply" and report["flipped"]:
        time.sleep(_GRACE_S)
        again, latest = _invoke(event, environment, f"The log of the next cycle, after the grace of {_GRACE_S} s")
        reports.append(again)
        lines = lines + latest
    populated.platform.settle()
    explanations = Explanations(lines)
    results = {
        row["id"]: explanations.of(row, before.states[row["id"]], in_cycle=_is_included(event, row))
        for row in before.rows
    }
    show.fleet_after(before, Snapshot.of(populated), results)
    for one, which in zip(reports, ("The report", "The next cycle's report"), strict=False):
        show.report(one, which)
    show.metrics(latest)
    show.summary(reports, restarted=len(populated.platform.restarts))
    return reports


def _invoke(event: Any, environment: Mapping[str, str], title: str) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Invoke the handler and show its log under the title; return its answer and its lines."""
    headline(title)
    lines: list[Mapping[str, Any]] = []
    with Invocation(event, environment) as invocation:
        for line in invocation:
            show.log_line(line)
            if isinstance(line, dict):
                lines.append(line)
        return invocation.wait(), lines


def _failure(last_line: str) -> str:
    kind, _, said = last_line.partition(": ")
    return f"The event was refused: {said}" if kind.endswith(".RequestError") else f"The cycle failed: {last_line}"


def _is_cycle(event: Any) -> bool:
    """Tell whether an event starts a cycle. Those that hold, release or explain do not."""
    return not (isinstance(event, dict) and (event.keys() & {"hold", "release"} or event.get("mode") == "explain"))


def _is_included(event: Any, row: Mapping[str, Any]) -> bool:
    """Tell whether an event's cycle includes a workspace."""
    if not isinstance(event, dict):
        return True
    if event.get("source") == "aws.ec2":
        return bool(row["instance_id"] == event.get("detail", {}).get("instance-id"))
    wanted = event.get("workspace_ids")
    return not isinstance(wanted, list) or row["id"] in wanted


if __name__ == "__main__":
    sys.exit(main())
