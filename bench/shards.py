"""One function and eight shards, with a control plane that is too slow for one."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench.child import PROJECT
from bench.figures import APPLY, NO_AWS, Scenario, figures
from bench.stand_ins import Cp, hosted
from bench.world import DEAD_EVERY, Fleet, Process, Site

ROWS = 20_000
CP_LATENCY_S = 1.0
SHARDS = (1, 8)
# What the shards have to be worth.
AT_LEAST = 7


def shards(place: Site) -> Scenario:
    """The same 20,000 workspaces in one minute: by one function, and by eight side by side."""
    rows = []
    with hosted(Cp, CP_LATENCY_S) as cp:
        fleet = Fleet(place, ROWS)
        cp.kill(fleet.instance_ids()[DEAD_EVERY - 1 :: DEAD_EVERY])
        for count in SHARDS:
            fleet.reset()
            rows.append(_minute(fleet, cp, count) | {"shards": count})
        fleet.database.drop()
    rows[-1] |= {"ratio": round(rows[-1]["checked"][0] / rows[0]["checked"][0], 2), "least": AT_LEAST}
    return {
        "conditions": f"{ROWS:,} workspaces, 1 in {DEAD_EVERY:,} dead; the control plane answers in {CP_LATENCY_S:g} s;"
        " PROBE_CONCURRENCY 64, CYCLE_DEADLINE_SECONDS 45; warm processes",
        "rows": rows,
    }


def _minute(fleet: Fleet, cp: Any, count: int) -> dict[str, Any]:
    """Run all shards at once, as the workflow does, each in a process of its own; return what they came to together."""
    environment = {**cp.environment(), **fleet.environment(PROJECT), **NO_AWS}
    events = [APPLY | {"shard": number, "shards": count} for number in range(count)]
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        processes = [stack.enter_context(Process(PROJECT, environment)) for _ in events]
        for process in processes:
            process.handle({"limit": 1})
        runs = list(pool.map(lambda process, event: process.handle(event), processes, events))
    return _together(runs)


def _together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    summed = {
        name: sum(run["answer"][name] for run in runs) for name in ("candidates", "checked", "flipped", "unknown")
    }
    whole = {
        "wall_s": max(run["wall_s"] for run in runs),
        "cpu_s": sum(run["cpu_s"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
        "answer": summed,
    }
    return figures(PROJECT, summed["candidates"], [whole]) | {"unknown": summed["unknown"]}
