"""A pseudo-terminal with a person at it, who answers what is asked on it."""

import atexit
import contextlib
import functools
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.tools import ROOT, tool

CTRL_C, CTRL_D = "\x03", "\x04"
_TIMEOUT_S = 110.0  # a second or two on an idle machine
_AGAIN_S = 5.0
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_REGION": "eu-central-1",
    "AWS_DEFAULT_REGION": "eu-west-1",  # the other one wins, as for the AWS CLI
    "AWS_EC2_METADATA_DISABLED": "true",
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",  # thousands, that nobody starts
    "TERM": "xterm",
    "COLUMNS": "200",
}
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


# A kept environment, with its Region alone: on a terminal, a deploy asks only whether to go on.
WITH_A_REGION = 'version = 0.1\n[default.deploy.parameters]\nregion = "eu-central-1"\n'


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


class Laptop:
    """The process that plays the scenarios. It has imported everything before the first."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        command = [tool("deploy", "python"), "-m", "tests.ops.tools.laptop", str(theirs.fileno())]
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **_ENVIRONMENT}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._heard = b""
        self._player = 0

    def request(self, **request: Any) -> None:
        """Have a scenario played."""
        self._line.sendall(json.dumps(request).encode() + b"\n")

    def fileno(self) -> int:
        """Return what to wait for."""
        return self._line.fileno()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what it says: a question, or the end."""
        said = self._line.recv(65536)
        assert said, "the laptop has ended: its own error is above"
        *lines, self._heard = (self._heard + said).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._player = message.get("process", self._player)
            yield message

    def waits(self) -> bool:
        """Tell whether the player sleeps. Ctrl-C is lost if it comes before Python has begun to read."""
        status = Path(f"/proc/{self._player}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "S"

    def end(self) -> None:
        """End it, and whoever plays."""
        if self._player:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._player, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._line.close()
        _laptop.cache_clear()


@functools.cache
def _laptop() -> Laptop:
    laptop = Laptop()
    atexit.register(laptop.end)
    return laptop


def play(root: Path, runs: Sequence[Sequence[str]], answers: Sequence[tuple[str, str]] = (), **scenario: Any) -> Played:
    """Run commands on a terminal, and answer each question, in their order. Without answers there is no terminal.

    `answers` are pairs of what is on the screen since the last answer, and what is typed.
    """
    request, outcome = root / "scenario.json", root / "outcome.json"
    scenario = {"dry_run": DRY_RUN, **scenario, "root": str(root), "runs": [list(run) for run in runs]}
    request.write_text(json.dumps(scenario))
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), **_ENVIRONMENT}
    laptop = _laptop()
    ours, theirs = os.openpty() if answers else (None, None)
    output = os.ttyname(theirs) if theirs is not None else str(root / "output")
    person = _Person(laptop, ours, answers)
    laptop.request(scenario=str(request), outcome=str(outcome), output=output, environment=environment)
    try:
        person.sits_through_it()
    except BaseException:
        laptop.end()
        raise
    finally:
        for descriptor in (ours, theirs):
            if descriptor is not None:
                os.close(descriptor)
    screen = person.screen if answers else Path(output).read_text()
    assert outcome.exists(), screen
    return Played(screen, json.loads(outcome.read_text()), root)


class _Person:
    """Whoever reads the screen and types the answers."""

    def __init__(self, laptop: Laptop, terminal: int | None, answers: Sequence[tuple[str, str]]) -> None:
        self.screen = ""
        self._laptop = laptop
        self._terminal = terminal
        self._left = list(answers)
        self._read_up_to = 0
        self._question = ""
        self._typed_at = 0.0

    def sits_through_it(self) -> None:
        """Answer until the commands have ended. Every wait ends, with an error that shows the screen."""
        give_up_at = time.monotonic() + _TIMEOUT_S
        while not self._hear():
            self._answer()
            if time.monotonic() > give_up_at:
                raise AssertionError(f"not over in time; unanswered: {self._left}\n{self.screen}")
        assert not self._left, f"never asked: {self._left}\n{self.screen}"

    def _hear(self) -> bool:
        """Read what is new; tell whether it was the end."""
        sources = [self._laptop.fileno(), *([] if self._terminal is None else [self._terminal])]
        # The waiting for a process to sleep has no descriptor to wait on.
        ready, _, _ = select.select(sources, [], [], 0.02 if self._question else 1)
        self._read_screen()
        if self._laptop.fileno() not in ready:
            return False
        ended = False
        for message in self._laptop.messages():
            self._question = message.get("asks", self._question)
            ended = ended or "ended" in message
        if ended:
            self._read_screen()
        return ended

    def _read_screen(self) -> None:
        while self._terminal is not None and select.select([self._terminal], [], [], 0)[0]:
            part = os.read(self._terminal, 65536)  # never the end: the other side is open here, too
            self.screen += _COLOURS.sub("", part.decode(errors="replace"))

    def _answer(self) -> None:
        """Answer the question that is on the screen."""
        if self._terminal is None:
            return
        if self.screen.endswith("^C") and time.monotonic() - self._typed_at > _AGAIN_S:
            # It came between Python's look at its signals and the read: a person presses the key again.
            self._type(CTRL_C)
        if not self._question or not self.screen.endswith(self._question):
            return
        expected, typed = self._left[0] if self._left else ("nothing more", "")
        shown = self.screen[self._read_up_to :]
        assert expected in shown, f"asked: {self._question!r}, expected: {expected!r}\n{self.screen}"
        if typed in (CTRL_C, CTRL_D) and not self._laptop.waits():
            return
        self._left.pop(0)
        self._question, self._read_up_to = "", len(self.screen)
        self._type(typed if typed in (CTRL_C, CTRL_D) else f"{typed}\n")

    def _type(self, keys: str) -> None:
        assert self._terminal is not None
        self._typed_at = time.monotonic()
        os.write(self._terminal, keys.encode())
