"""The scenario of state-change events: from an event's arrival in the queue to the commit of its flip."""

import json
import queue
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from bench.child import EVENTS, PROJECT
from bench.figures import LAMBDA_SHARE, Scenario
from bench.world import EC2_LATENCY_S, Ec2World, Process, Site, ec2_world
from sandbox.ec2 import MotoEc2
from sandbox.event_source import BATCH, CONCURRENCY, WINDOW_S, EventSourceMapping
from sandbox.queue import StateChangeQueue
from sandbox.state_changes import state_change

SIZES = (1, 100, 500)
RUNS = 3
_FLEET = 4_000
_LONGEST_S = 60.0
_AT_ONCE = 10
_LATENCY = "DetectionLatency"


def events(place: Site) -> Scenario:
    """1, 100 and 500 deaths, with an event each, in two warm processes; then the same with Lambda's part of a CPU."""
    with ec2_world(place, _FLEET, dead_every=0, foreign=_FLEET // 10) as world, ExitStack() as stack:
        settings = {**world.ec2.environment(), **world.fleet.environment(PROJECT), "CYCLE_DEADLINE_SECONDS": "25"}
        processes = [stack.enter_context(Process(EVENTS, settings)) for _ in range(CONCURRENCY)]
        instance_ids = iter(world.fleet.instance_ids())
        living = _record(state_change(next(instance_ids), "stopped"))
        for process in processes:  # imports, clients, connections
            process.handle({"Records": [living]})
        rows = [
            _figures(
                size, share, [_run(world, processes, list(islice(instance_ids, size)), share) for _ in range(runs)]
            )
            for share, runs in ((None, RUNS), (LAMBDA_SHARE, 1))
            for size in SIZES
        ]
    return {
        "conditions": f"{_FLEET:,} workspaces, {EC2_LATENCY_S} s a call; batches of {BATCH}, "
        f"a window of {WINDOW_S:g} s, {CONCURRENCY} at once, in warm processes; medians of {RUNS} runs, "
        "but of one with a part of a CPU",
        "rows": rows,
    }


def _run(world: Ec2World, processes: Sequence[Process], instance_ids: list[str], share: float | None) -> dict[str, Any]:
    """Kill instances, tell of each, and wait until no event is left; return what it came to."""
    world.fleet.reset()
    world.ec2.kill(instance_ids)
    world.ec2.begin()
    lines = [len(process.log()) for process in processes]
    idle: queue.SimpleQueue[Process] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def invoke(batch: Mapping[str, Any]) -> Any:
        process = idle.get()
        try:
            return process.handle(batch, share=share)["answer"]
        finally:
            idle.put(process)

    with MotoEc2() as account, StateChangeQueue(account) as waiting:
        mapping = EventSourceMapping(waiting, invoke)
        with mapping:
            began_at = time.monotonic()
            _send(waiting, instance_ids)
            while waiting.waiting():
                mapping.wait(_LONGEST_S)
            wall_s = time.monotonic() - began_at
    said = [line for process, old in zip(processes, lines, strict=True) for line in process.log()[old:]]
    latencies_ms = [one for line in said for one in _values(line.get(_LATENCY))]
    if len(latencies_ms) != len(instance_ids):
        raise RuntimeError(f"{len(latencies_ms)} of {len(instance_ids)} dead workspaces were flipped")
    return {
        "latencies_s": sorted(one / 1000 for one in latencies_ms),
        "wall_s": wall_s,
        "batches": len(mapping.deliveries),
        "calls": world.ec2.figures()["calls"],
    }


def _send(waiting: StateChangeQueue, instance_ids: Sequence[str]) -> None:
    """Send an event for each instance, whose time is that of its own arrival, and not in whole seconds as EC2's."""
    for start in range(0, len(instance_ids), _AT_ONCE):
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        some = instance_ids[start : start + _AT_ONCE]
        waiting.send(*(state_change(one) | {"time": now} for one in some))


def _record(event: Mapping[str, Any]) -> dict[str, Any]:
    return {"messageId": "warm", "body": json.dumps(event), "eventSource": "aws:sqs"}


def _values(metric: float | list[float] | None) -> list[float]:
    if metric is None:
        return []
    return metric if isinstance(metric, list) else [metric]


def _figures(size: int, share: float | None, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "events": size,
        "cpu_share": share,
        "median_s": [round(_percentile(run["latencies_s"], 0.5), 2) for run in runs],
        "p99_s": [round(_percentile(run["latencies_s"], 0.99), 2) for run in runs],
        "wall_s": [round(run["wall_s"], 2) for run in runs],
        "batches": [run["batches"] for run in runs],
        "calls": [run["calls"] for run in runs],
    }


def _percentile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
