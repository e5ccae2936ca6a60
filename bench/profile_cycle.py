"""Where the CPU time of a 100,000-row cycle goes: py-spy on all threads that hold the interpreter's lock.

    python -m bench.profile_cycle [--workspaces N] [--py-spy FILE]

On Linux that needs the right to trace a process of one's own; on macOS root.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.child import PROJECT
from bench.world import CHECKOUT, Process, ec2_world, site
from sandbox.terminal import headline, say, step, table

_SAMPLES_PER_S = 200
_ATTACHING_S = 1.0
_SHOWN = 20


def main() -> int:
    """Profile one cycle and print the functions that cost most; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile_cycle", description="Profile a large cycle.")
    parser.add_argument("--workspaces", type=int, default=100_000, metavar="N", help="how large the fleet is (100000)")
    parser.add_argument("--py-spy", type=Path, default=CHECKOUT / ".venv-bench/bin/py-spy", metavar="FILE")
    options = parser.parse_args()
    with step("one cycle"):
        samples, measured = _profile(options.workspaces, options.py_spy)
    total = sum(samples.values())
    say(f"  {measured['wall_s']:.1f} s, {measured['cpu_s']:.1f} s of CPU, peak of {measured['peak_mib']:.0f} MiB")
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for stack, count in samples.items():
        own[stack[-1]] += count
        whole.update(dict.fromkeys(stack, count))
    for title, counts in (("By a function's own time", own), ("With all that it calls", whole)):
        headline(title)
        rows = [(f"{count / total:.1%}", function) for function, count in counts.most_common(_SHOWN)]
        table(("share", "function"), rows)
    return 0


def _profile(workspaces: int, py_spy: Path) -> tuple[Counter[tuple[str, ...]], dict[str, float]]:
    with (
        site() as place,
        ec2_world(place, workspaces, foreign=workspaces // 10) as world,
        Process(PROJECT, {**world.ec2.environment(), **world.fleet.environment(PROJECT)}) as process,
        tempfile.NamedTemporaryFile() as file,
    ):
        process.handle({"limit": 1})
        world.ec2.begin()
        command = [str(py_spy), "record", "--gil", "--rate", str(_SAMPLES_PER_S), "--format", "raw", "--output"]
        spy = subprocess.Popen(
            [*command, file.name, "--pid", str(process.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(_ATTACHING_S)
        measured = process.handle({"mode": "apply"})
        spy.send_signal(signal.SIGINT)
        if spy.wait() != 0:
            raise RuntimeError("py-spy failed: may this user trace a process?")
        samples: Counter[tuple[str, ...]] = Counter()
        for line in Path(file.name).read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            functions = (re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";"))
            samples[tuple(functions)] += int(count)
    return samples, measured


if __name__ == "__main__":
    sys.exit(main())
