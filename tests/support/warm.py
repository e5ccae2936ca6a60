"""A separate warm process, which is invoked many times and counts its open resources."""

import json
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from handler import app
from sandbox.lambda_context import LambdaContext
from tests.support.tools import ROOT

_LET_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Holdings:
    """A process's open resources between two invocations, and how many earlier invocations ended in which way."""

    threads: int
    descriptors: int
    peak_mib: float
    outcomes: dict[str, int]


class WarmProcess:
    """Runs invocations one after the other in one process, as Lambda does as long as it is kept."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", os.defpath), **environment},
            start_new_session=True,  # Ctrl-C at the terminal is for whoever started it to handle
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, whereupon it ends

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def invoke(self, event: Any, times: int) -> Holdings:
        """Invoke the handler this many times; return the process's open resources afterwards."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"event": event, "times": times}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the warm process is gone"
        return Holdings(**json.loads(line))


# --- the process's side ---


def _invoke(event: Any, times: int) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    for _ in range(times):
        try:
            outcomes[app.lambda_handler(event, LambdaContext())["outcome"]] += 1
        except Exception as error:  # noqa: BLE001 - Lambda goes on with the next invocation, whatever it is
            outcomes[type(error).__name__] += 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(_LET_END_S)
    # Listing the directory opens one more.
    descriptors = len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - there is nothing to join to a path
    return {
        "threads": threading.active_count(),
        "descriptors": descriptors,
        "peak_mib": _peak_mib(),
        "outcomes": outcomes,
    }


def _peak_mib() -> float:
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024  # getrusage(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _serve() -> None:
    """Run what each line of stdin asks for, until stdin ends. Logs and metrics are dropped."""
    answering = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with os.fdopen(answering, "w") as pipe:
        for line in sys.stdin:
            json.dump(_invoke(**json.loads(line)), pipe)
            pipe.write("\n")
            pipe.flush()


if __name__ == "__main__":
    _serve()
