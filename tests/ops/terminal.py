"""A pseudo-terminal with a person at it, who answers what is asked on it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.tools import ROOT, tool

CTRL_C, CTRL_D = "\x03", "\x04"
_TIMEOUT_S = 110.0  # three seconds on an idle machine
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

# A dry run of a small fleet in which nothing is wrong.
DRY_RUN = {
    "mode": "dry-run",
    "outcome": "completed",
    "candidates": 20,
    "checked": 20,
    "unknown": 0,
    "absent": 0,
    "breaker_open": False,
    "deadline_hit": False,
    "offline_unowed": 0,
    "unrecorded": 0,
    "duration_ms": 900,
    "targets_failed": [],
    "targets_empty": [],
    "flips": [],
}


class Played:
    """What was on the screen, and what came of it in the account."""

    def __init__(self, screen: str, outcome: dict[str, Any], root: Path) -> None:
        self.screen = screen
        self.outcome = outcome
        self.root = root

    def __getitem__(self, name: str) -> Any:
        """Return a part of the outcome."""
        return self.outcome[name]

    def config(self) -> str:
        """Return the file that keeps the answers."""
        file = self.root / "samconfig.toml"
        return file.read_text() if file.exists() else ""


def play(root: Path, runs: Sequence[Sequence[str]], answers: Sequence[tuple[str, str]] = (), **scenario: Any) -> Played:
    """Run commands on a terminal, and answer each question, in their order. Without answers there is no terminal.

    `answers` are pairs of what a question has in it and what is typed.
    """
    request, outcome = root / "scenario.json", root / "outcome.json"
    scenario = {"dry_run": DRY_RUN, **scenario, "root": str(root), "runs": [list(run) for run in runs]}
    request.write_text(json.dumps(scenario))
    command = [tool("deploy", "python"), "-m", "tests.ops.tools.laptop", str(request), str(outcome)]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "TERM": "xterm",
        "COLUMNS": "200",
    }
    screen = _on_terminal(command, environment, answers) if answers else _without(command, environment)
    assert outcome.exists(), screen
    return Played(screen, json.loads(outcome.read_text()), root)


def _without(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    return done.stdout + done.stderr


def _on_terminal(command: Sequence[str], environment: dict[str, str], answers: Sequence[tuple[str, str]]) -> str:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(command[0], list(command), environment)  # noqa: S606 - the child of a terminal
    screen, read_up_to, left = "", 0, list(answers)
    give_up_at = time.monotonic() + _TIMEOUT_S
    try:
        while time.monotonic() < give_up_at:
            ready, _, _ = select.select([terminal], [], [], 1)
            if ready:
                try:
                    part = os.read(terminal, 65536)
                except OSError:  # the other side has ended
                    part = b""
                if not part:
                    break
                screen += _COLOURS.sub("", part.decode(errors="replace"))
            elif screen.endswith("^C"):
                # It came between Python's look at its signals and the read: a person presses the key again.
                os.write(terminal, CTRL_C.encode())
            if left and left[0][0] in screen[read_up_to:] and screen.rstrip("\r\n").endswith(": "):
                _, typed = left.pop(0)
                read_up_to = len(screen)
                os.write(terminal, typed.encode() if typed in (CTRL_C, CTRL_D) else f"{typed}\n".encode())
        else:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"not over in time; unanswered: {left}\n{screen}")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    assert not left, f"never asked: {left}\n{screen}"
    return screen
