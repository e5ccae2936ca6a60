"""One contestant in a process of its own, measured there.

    python -m bench.child CONTESTANT LOG

Each line on stdin is an event, each line on stdout what handling it took and came to. What the contestant prints goes
to the file LOG. Nothing is imported here that the contestant would not import.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = "project"
# The project's function for state-change events.
EVENTS = "events"


def main() -> None:
    """Handle events until stdin ends."""
    name, log = sys.argv[1:]
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as results:
        with Path(log).open("wb") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
        run = _contestant(name)
        for line in sys.stdin:
            results.write(json.dumps(_measured(run, json.loads(line))) + "\n")
            results.flush()


def _measured(run: Callable[[Any], dict[str, Any]], event: Any) -> dict[str, Any]:
    cpu_began_at, began_at = time.process_time(), time.perf_counter()
    answer = run(event)
    wall_s, cpu_s = time.perf_counter() - began_at, time.process_time() - cpu_began_at
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": _peak_mib(), "answer": answer}


def _contestant(name: str) -> Callable[[Any], dict[str, Any]]:
    if name in (PROJECT, EVENTS):
        from sandbox.lambda_context import LambdaContext  # noqa: PLC0415 - a peer does without it

        entry_point = importlib.import_module("handler.app" if name == PROJECT else "handler.events")
        return lambda event: entry_point.lambda_handler(event, LambdaContext())
    from bench import peers  # noqa: PLC0415 - likewise

    peer: Callable[[Any], dict[str, Any]] = getattr(peers, name)
    return peer


def _peak_mib() -> float:
    """Return the peak of this process's resident memory."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # macOS, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024
    # Not ru_maxrss: it begins with the memory of the process that started this one.
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
