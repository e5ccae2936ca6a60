"""Invocations that are killed: at a step of their own, after a time, or by whoever watches them.

A server process imports the handler once and forks for each invocation, which costs milliseconds instead of a second.
It is one of its own since a process with threads, such as the tests', cannot fork safely.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

import pg8000.native
import urllib3.connection

from handler import app
from handler.probes.control_plane import probe as _control_plane  # noqa: F401 - the handler imports them when it needs them
from handler.restarts import platform as _platform  # noqa: F401
from sandbox.lambda_context import LambdaContext
from tests.support.tools import ROOT

_START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How an invocation ended: killed, or with its report after `steps` steps in `took_s` seconds."""

    report: dict[str, Any] | None
    steps: int = 0
    took_s: float = 0.0

    @property
    def killed(self) -> bool:
        """Whether it was killed before it had returned its report."""
        return self.report is None


class Invocations:
    """Runs invocations, one at a time, each in a process of its own, cold but with the handler imported."""

    def __init__(self) -> None:
        self._pid: Future[int] = Future()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,  # Ctrl-C at the terminal is for whoever started it to handle
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()  # closes its stdin, whereupon it ends

    def run(
        self,
        event: Any,
        environment: Mapping[str, str],
        *,
        kill_at_step: int | None = None,
        kill_after_s: float | None = None,
    ) -> Ending:
        """Run one invocation to its end.

        It ends by SIGKILL right before its step number `kill_at_step` (the first is 1), or `kill_after_s` seconds
        after its beginning. Raises AssertionError with the handler's traceback if the handler raises.
        """
        self._pid = Future()
        self._write(event=event, environment=dict(environment), at_step=kill_at_step, after_s=kill_after_s)
        self._pid.set_result(self._read()["pid"])
        ending = self._read()
        assert "error" not in ending, ending["error"]
        return Ending(**ending)

    def kill(self) -> None:
        """End the invocation under way at once (SIGKILL). For hooks, which run while `run` waits."""
        with contextlib.suppress(ProcessLookupError):  # another hook's kill came first
            os.kill(self._pid.result(_START_TIMEOUT_S), signal.SIGKILL)

    def _write(self, **order: Any) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server of invocations is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer


# --- the server's side ---


class _Steps:
    """Counts the moments at which an invocation can be killed, and kills it at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.taken = 0
        self._kill_at = kill_at
        self._taking = threading.Lock()

    def before(self, owner: Any, name: str) -> None:
        """Make a step of the moment before each call of a function."""
        self._replace(owner, name, self._take, _nothing)

    def after(self, owner: Any, name: str) -> None:
        """Make a step of the moment after each call of a function."""
        self._replace(owner, name, _nothing, self._take)

    def _replace(self, owner: Any, name: str, before: Callable[[], None], after: Callable[[], None]) -> None:
        function = getattr(owner, name)

        def stepped(*arguments: Any, **options: Any) -> Any:
            before()
            result = function(*arguments, **options)
            after()
            return result

        setattr(owner, name, stepped)

    def _take(self) -> None:
        with self._taking:
            self.taken += 1
            if self.taken == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def _nothing() -> None:
    pass


def _invoke(order: Mapping[str, Any]) -> dict[str, Any]:
    """Run the handler, with a step before and after whatever it has others do."""
    os.environ.clear()
    os.environ.update(order["environment"])
    steps = _Steps(order["at_step"])
    # After a statement nothing is different until the next statement or request, so that one step serves for both.
    steps.before(pg8000.native.Connection, "run")
    steps.before(urllib3.connection.HTTPConnection, "request")
    steps.after(urllib3.connection.HTTPConnection, "request")
    steps.after(urllib3.connection.HTTPConnection, "getresponse")
    if order["after_s"] is not None:
        # In the kernel: it waits for no lock of Python's, and like SIGKILL it lets nothing be put in order.
        signal.setitimer(signal.ITIMER_REAL, order["after_s"])
    began_at = time.monotonic()
    report = app.lambda_handler(order["event"], LambdaContext())
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"report": report, "steps": steps.taken, "took_s": time.monotonic() - began_at}


def _child(order: Mapping[str, Any], answering: int) -> None:
    """Run one invocation and write how it ended; its logs and metrics go nowhere. Never returns."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        try:
            answer = _invoke(order)
        except BaseException:  # noqa: BLE001 - whatever it is, it is the answer
            answer = {"error": traceback.format_exc()}
        with os.fdopen(answering, "w") as pipe:
            json.dump(answer, pipe)
    finally:
        os._exit(0)


def _fork(order: str) -> None:
    """Run one order in a process of its own; answer with its number at once, and with how it ended in the end."""
    reading, answering = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(json.loads(order), answering)
    os.close(answering)
    print(json.dumps({"pid": pid}), flush=True)  # noqa: T201 - the answer
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    print(answer or json.dumps({"report": None}), flush=True)  # noqa: T201 - the answer


def _serve() -> None:
    """Run what each line of stdin orders, until its end."""
    gc.freeze()  # a collection in a child would copy what it shares with the others
    for line in sys.stdin:
        _fork(line)


if __name__ == "__main__":
    _serve()
