"""Values for tests, the log, and a clock that moves only when a test moves it."""

import io
import json
import threading
from collections.abc import Iterable
from functools import cache
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from handler.domain.coverage import Coverage, Queues
from handler.domain.model import Restart, Sighting, Workspace, sighting_of


@cache
def uuid(number: int) -> str:
    """Return the id of workspace `number`; ids sort like their numbers."""
    return str(UUID(int=number))


@cache
def number_of(id_: str) -> int:
    """Return the number of the workspace with that id."""
    return UUID(id_).int


def instance(number: int) -> str:
    """Return the id of instance `number`."""
    return f"i-{number:017x}"


def workspace(number: int = 1, instance_id: str | None = None, heartbeat: str | None = None) -> Workspace:
    """Return workspace `number`; by default it records the instance of the same number."""
    return Workspace(uuid(number), instance(number) if instance_id is None else instance_id, heartbeat)


def saw(state: str, number: int = 1, instance_id: str | None = None, heartbeat: str | None = None) -> Sighting:
    """Return the sighting of workspace `number`'s instance in a state: UNKNOWN if EC2 has no such word."""
    return sighting_of(workspace(number, instance_id, heartbeat), state)


def restart(number: int = 1, *, attempts: int = 0, refusals: int = 0) -> Restart:
    """Return the restart that is owed to workspace `number`."""
    return Restart(number, uuid(number), instance(number), attempts, refusals)


def queues(ids: Iterable[str], coverage: Coverage) -> Queues:
    """Return who may be checked, of the candidates with these ids."""
    in_turn = sorted(ids, key=coverage.place)
    return Queues(in_turn, [one for one in coverage.brought_forward if one in in_turn])


def lambda_context(seconds_left: float = 60, request_id: str = "r-1") -> Any:
    """Return the context of an invocation that Lambda ends in `seconds_left` seconds."""
    return SimpleNamespace(
        function_name="reconciler",
        memory_limit_in_mb=512,
        invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:reconciler",
        aws_request_id=request_id,
        get_remaining_time_in_millis=lambda: seconds_left * 1000,
    )


class Log:
    """The lines logged since they were last read."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self, message: str | None = None) -> list[dict[str, Any]]:
        """Return the lines, or those with this message, and forget them all."""
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if message in (None, line["message"])]


class Clock:
    """A clock whose sleep is the only thing that moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self._moving = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move the clock on by `seconds`."""
        with self._moving:
            self.now += seconds
            self.slept.append(seconds)
