"""Runs random schedules by the million, or all schedules of the smallest world."""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.explore import STATES, Exhaustive, smallest_world, tell, walk
from tests.simulation.simulation import ViolationError, simulated

_BATCH = 2_000
_PROGRESS_SECONDS = 5.0


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make simulate ARGS=...", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000, help="how many random ones (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; the others follow it (default: 0)")
    parser.add_argument("--exhaustive", action="store_true", help="all schedules of the smallest world instead")
    parser.add_argument("--replay", type=int, metavar="SEED", help="tell one schedule, line by line, instead")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        with simulated():
            print(*tell(arguments.replay), sep="\n")
        return 0
    if arguments.exhaustive:
        searches = [partial(_all, state, actions) for state in STATES for actions in ((2, 0), (0, 2), (1, 1))]
    else:
        end = arguments.seed + arguments.schedules
        searches = [partial(_random, first, min(first + _BATCH, end)) for first in range(arguments.seed, end, _BATCH)]
    return _report(searches)


def _report(searches: list[partial[tuple[int, str]]]) -> int:
    """Run the searches on all processors; print their progress, and any schedule that breaks an invariant."""
    began_at = told_at = time.monotonic()
    schedules = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for number, (count, broken) in enumerate(pool.map(_run, searches), 1):
            schedules += count
            now = time.monotonic()
            if broken or number == len(searches) or now - told_at > _PROGRESS_SECONDS:
                told_at = now
                rate = schedules / (now - began_at)
                print(f"{schedules:,} schedules in {now - began_at:.0f} s ({rate:,.0f} a second)", flush=True)
            if broken:
                print(broken)
                pool.shutdown(cancel_futures=True)
                return 1
    return 0


def _run(search: partial[tuple[int, str]]) -> tuple[int, str]:
    with simulated():
        return search()


def _all(state: str, actions: tuple[int, int]) -> tuple[int, str]:
    """Return how many schedules there are with these actions, and the one that breaks an invariant, if any."""
    try:
        return Exhaustive(smallest_world(state)).schedules(*actions), ""
    except ViolationError as error:
        return 0, str(error)


def _random(first: int, end: int) -> tuple[int, str]:
    """Return how many schedules were run, and the one that breaks an invariant, if any."""
    for seed in range(first, end):
        try:
            walk(seed)
        except ViolationError:
            again = f'To run it again: make simulate ARGS="--replay {seed}"'
            return seed - first + 1, "\n".join([*tell(seed), again])
    return end - first, ""


if __name__ == "__main__":
    sys.exit(main())
