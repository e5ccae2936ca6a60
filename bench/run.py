"""The scenarios, each of which lets the contestants take turns in one world."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore

from bench import importing
from bench.child import PROJECT
from bench.events import events
from bench.extremes import https_checks, mass_death, own_tables, slow_control_plane
from bench.figures import APPLY, LAMBDA_SHARE, NO_AWS, Scenario, figures
from bench.shards import shards
from bench.stand_ins import Cp, Platform, hosted
from bench.targets import targets
from bench.world import CHECKOUT, DEAD_EVERY, EC2_LATENCY_S, Fleet, Process, Site, ec2_world
from sandbox.terminal import step

LARGE = 100_000
GROWTH = (100, 1_000, 10_000)
# One foreign instance for ten of ours, or very many for very few.
FOREIGN_SHARE = 10
MANY_FOREIGN = 10_000
PEERS = ("batches", "batches_at_once")
# What a peer would need minutes for is measured on this many rows, and scaled.
PEER_ROWS = 5_000
LOOP_ROWS = 50
CP_LATENCIES_S = (8.0, 4.0, 2.0, 1.0, 0.1)
CP_ROWS = (10, 100, 1_000)
COLD_RUNS = 11
WARM_RUNS = 5
ALLOWED_BURST, ALLOWED_PER_S = 100, 20
ARTIFACT = CHECKOUT / ".aws-sam" / "build" / "Reconciler"


def large_fleet(place: Site) -> Scenario:
    """100,000 workspaces in one cycle; then the same while other tools drain EC2's bucket."""
    share = PEER_ROWS / LARGE
    with ec2_world(place, LARGE, foreign=LARGE // FOREIGN_SHARE) as world:
        own: list[Any] = []
        others: dict[str, list[Any]] = {name: [] for name in PEERS}
        for _ in range(2):
            own.append(world.run(PROJECT, APPLY))
            for name, runs in others.items():
                runs.append(world.run(name, {"limit": PEER_ROWS}))
        limited = world.run(PROJECT, APPLY, share=LAMBDA_SHARE)
        loop = [world.run("loop_ec2", {"limit": LOOP_ROWS})]
        drained = world.run(PROJECT, APPLY, others_per_s=2 * ALLOWED_PER_S, CYCLE_DEADLINE_SECONDS="30")
    rows = [figures(PROJECT, LARGE, own)]
    rows += [figures(name, LARGE, runs, share=share) for name, runs in others.items()]
    rows.append(figures("loop_ec2", 200, loop, share=LOOP_ROWS / 200))
    report = own[0]["answer"]
    ec2 = drained["ec2"]
    return {
        "conditions": f"{EC2_LATENCY_S} s a call, bucket of {ALLOWED_BURST} calls and {ALLOWED_PER_S}/s, "
        f"1 in {DEAD_EVERY:,} dead, {LARGE // FOREIGN_SHARE:,} foreign instances, three zones",
        "rows": rows,
        "limited": figures(PROJECT, LARGE, [limited]),
        "report": {name: report[name] for name in ("candidates", "checked", "dead", "flipped", "deferred")},
        "by_action": own[0]["ec2"]["by_action"],
        "plan": _said(own[0], "plan chosen")[-1],
        "drained": {
            "conditions": f"other tools try {2 * ALLOWED_PER_S} calls a second; deadline of 30 s",
            "wall_s": round(drained["wall_s"], 2),
            "checked": drained["answer"]["checked"],
            "deferred": drained["answer"]["deferred"],
            "flipped": drained["answer"]["flipped"],
            "calls": ec2["calls"],
            "throttled": ec2["throttled"],
            "others_served": ec2["others_served"],
            "allowance": round(ALLOWED_BURST + ALLOWED_PER_S * drained["wall_s"]),
        },
    }


def small_account(place: Site) -> Scenario:
    """50 workspaces among 10,000 foreign instances."""
    with ec2_world(place, 50, dead_every=0, foreign=MANY_FOREIGN) as world:
        runs = [world.run(PROJECT, APPLY) for _ in range(3)]
    return {
        "conditions": f"50 workspaces, {MANY_FOREIGN:,} foreign instances; {EC2_LATENCY_S} s a call",
        "rows": [figures(PROJECT, 50, runs)],
        "plan": _said(runs[0], "plan chosen")[-1],
    }


def growth(place: Site) -> Scenario:
    """The same cycle on ever larger fleets (the largest one is in `large_fleet`)."""
    rows = []
    for size in GROWTH:
        with ec2_world(place, size, foreign=size // FOREIGN_SHARE) as world:
            runs: dict[str, list[Any]] = {name: [] for name in (PROJECT, *PEERS)}
            for turn in range(3):
                for name, done in runs.items():
                    if name == PROJECT or size < PEER_ROWS or turn == 0:
                        done.append(world.run(name, APPLY if name == PROJECT else {}))
        rows += [figures(name, size, done) for name, done in runs.items()]
    return {
        "conditions": f"{EC2_LATENCY_S} s a call, 1 in {DEAD_EVERY:,} dead, 1 in {FOREIGN_SHARE + 1} instances foreign",
        "rows": rows,
    }


def zone(place: Site) -> Scenario:
    """A zone is lost: 2,000 dead of 4,000, the breaker lifted, and a platform that takes restarts."""
    lifted = APPLY | {"override_breaker": True}
    restarts, events = [], 0
    with ec2_world(place, 4_000, dead_every=2, foreign=400) as world, hosted(Platform, 0.05) as platform:
        own, peer = [], []
        for _ in range(2):
            own.append(world.run(PROJECT, lifted, **platform.environment()))
            restarts.append(platform.figures())
            events = world.fleet.left_behind()["events"]
            peer.append(world.run("batches_at_once", {}))
        flips = [world.run(PROJECT, lifted) for _ in range(2)]
        limited = world.run(PROJECT, lifted, share=LAMBDA_SHARE)
    return {
        "conditions": "4,000 workspaces, 2,000 of them dead, breaker lifted; the platform takes a restart in 0.05 s",
        "rows": [figures(PROJECT, 4_000, own), figures("batches_at_once", 4_000, peer)],
        "flips": figures(PROJECT, 4_000, flips),
        "limited": figures(PROJECT, 4_000, [limited]),
        "events": events,
        "restarts": restarts[0]["restarts"],
        "restarts_at_once": max(one["peak_in_flight"] for one in restarts),
    }


def warm(place: Site) -> Scenario:
    """1,000 running workspaces in a process that has done it before, beside the bare SELECT and calls."""
    rows = []
    for latency_s in (0.0, EC2_LATENCY_S):
        names = (PROJECT, "bare_calls", "bare_call")
        runs: dict[str, list[Any]] = {name: [] for name in names}
        with ec2_world(place, 1_000, dead_every=0, foreign=100, latency_s=latency_s) as world:
            environments = {name: {**world.ec2.environment(), **world.fleet.environment(name)} for name in names}
            processes = {name: Process(name, environments[name]) for name in names}
            for turn in range(1 + WARM_RUNS):
                for name, process in processes.items():
                    world.ec2.begin()
                    measured = process.handle(APPLY if name == PROJECT else {}) | {"ec2": world.ec2.figures()}
                    runs[name] += [measured] if turn else []
            for process in processes.values():
                process.close()
        rows += [figures(name, 1_000, done) | {"latency_s": latency_s} for name, done in runs.items()]
    return {
        "conditions": f"all running, 100 foreign instances; medians of {WARM_RUNS} cycles in warm processes",
        "rows": rows,
    }


def control_plane(place: Site) -> Scenario:
    """CP mode at every size and latency, beside the loop; then a CP that begins to fail."""
    grid = [(rows, latency_s) for latency_s in CP_LATENCIES_S for rows in CP_ROWS]
    grid.append((200, 8.0))
    jobs = [(PROJECT, *cell) for cell in grid] + [("loop", 1_000, latency_s) for latency_s in CP_LATENCIES_S]
    # What mostly waits may wait side by side; what computes has the machine for itself.
    waiting = [job for job in jobs if job[2] >= 1 or job[0] == "loop"]
    computing = [job for job in jobs if job not in waiting]
    rows = [_control_plane_cycle(place, *job) for job in computing]
    with ThreadPoolExecutor(len(waiting) + 2) as pool:
        slow_cycle = pool.submit(slow_control_plane, place)
        failing_cycle = pool.submit(_control_plane_cycle, place, PROJECT, 1_000, 0.1, fail_after=300)
        rows += pool.map(lambda job: _control_plane_cycle(place, *job), waiting)
        failing = failing_cycle.result()
        slow = slow_cycle.result()
    return {
        "conditions": "PROBE_CONCURRENCY 64, CYCLE_DEADLINE_SECONDS 45, every instance running",
        "rows": rows,
        "slow": slow,
        "failing": {
            "conditions": "1,000 workspaces; the CP answers in 0.1 s, and from the 301st check on with 503",
            "calls_each_second": _each_second(failing["at_s"]),
            "said": failing["said"],
            "wall_s": failing["wall_s"][0],
            "checked": failing["checked"][0],
        },
    }


def _control_plane_cycle(
    place: Site, contestant: str, rows: int, latency_s: float, *, fail_after: int | None = None
) -> dict[str, Any]:
    fleet = Fleet(place, rows)
    with hosted(Cp, latency_s) as cp:
        if fail_after is not None:
            cp.fail_after(fail_after)
        with Process(contestant, {**cp.environment(), **fleet.environment(contestant), **NO_AWS}) as process:
            measured = process.handle(APPLY)
            said = [{"count": line["count"], "reason": line["reason"]} for line in process.log() if _eased(line)]
        asked = cp.figures()
    fleet.database.drop()
    return figures(contestant, rows, [measured]) | {
        "latency_s": latency_s,
        "calls": [asked["calls"]],
        "peak_in_flight": asked["peak_in_flight"],
        "at_s": asked["at_s"] if fail_after is not None else [],
        "said": said,
    }


def _eased(line: Mapping[str, Any]) -> bool:
    return line.get("message") == "concurrency changed"


def _each_second(times: Iterable[float]) -> list[int]:
    seconds = [int(at) for at in times]
    return [seconds.count(second) for second in range(max(seconds) + 1)] if seconds else []


def _said(measured: Mapping[str, Any], message: str) -> list[str]:
    return [line["reason"] for line in measured["log"] if line.get("message") == message]


def _lambda_python() -> tuple[str, str]:
    """Return Lambda's Python, 3.13, if `make test` has found one here, else this one; and its version."""
    of_lambda = CHECKOUT / ".venv-lambda" / "bin" / "python"
    python = str(of_lambda) if of_lambda.exists() else sys.executable
    version = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"], check=True, capture_output=True, text=True
    )
    return python, version.stdout.strip()


def cold(place: Site) -> Scenario:
    """The artifact's one-row cycle in a new process, beside the least script; where its time goes; what it imports."""
    scripts = {PROJECT: "cycle.py", "least": "least.py"}
    if not ARTIFACT.is_dir():
        raise FileNotFoundError(f"{ARTIFACT} is not there: run `make build`")
    python, version = _lambda_python()
    taken: dict[str, list[float]] = {name: [] for name in scripts}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        ec2_world(place, 1, dead_every=0, foreign=0, latency_s=0.0) as world,
    ):
        # A copy, as another Python than 3.13 writes bytecode of its own into it.
        artifact = shutil.copytree(ARTIFACT, Path(directory) / "artifact")
        # The least script reads botocore's own description of EC2, which the artifact leaves out.
        shutil.copytree(
            Path(botocore.__file__).parent / "data" / "ec2", artifact / "botocore" / "data" / "ec2", dirs_exist_ok=True
        )
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(artifact),
            **world.ec2.environment(),
            # Here the database is near: this is about starting, and a cycle has many more round trips than one query.
            "DATABASE_URL": world.fleet.database.url,
        }

        def start(name: str, *options: str, **variables: str) -> tuple[float, str]:
            world.fleet.reset()
            world.ec2.begin()
            began_at = time.perf_counter()
            done = subprocess.run(
                [python, *options, str(CHECKOUT / "bench" / "cold" / scripts[name])],
                cwd=CHECKOUT,
                env=environment | variables,
                check=True,
                capture_output=True,
                text=True,
            )
            return time.perf_counter() - began_at, done.stderr

        for name in scripts:
            start(name)  # which writes the bytecode
        for _ in range(COLD_RUNS):
            for name in scripts:
                taken[name].append(round(start(name)[0], 4))
        phases = {name: importing.phases([start(name, BENCH_PHASES="1") for _ in range(5)]) for name in scripts}
        imports = {name: importing.profile([start(name, "-X", "importtime")[1] for _ in range(5)]) for name in scripts}
    return {
        "conditions": f"the built artifact on Python {version}, HTTPS, no latency, database near, bytecode present; "
        f"medians of {COLD_RUNS} processes each, taken in turn",
        "wall_s": taken,
        "phases": phases,
        "imports": imports,
    }


SCENARIOS: Mapping[str, tuple[str, Callable[[Site], Scenario]]] = {
    "cold": ("cold start", cold),
    "warm": ("warm cycle of 1,000", warm),
    "small_account": ("a small account", small_account),
    "growth": ("growth", growth),
    "large_fleet": ("100,000 workspaces", large_fleet),
    "targets": ("several Regions", targets),
    "events": ("state-change events", events),
    "zone": ("a lost zone", zone),
    "mass_death": ("45,000 dead of 100,000", mass_death),
    "own_tables": ("growth of our own tables", own_tables),
    "https": ("HTTPS", https_checks),
    "control_plane": ("control plane", control_plane),
    "shards": ("eight shards", shards),
}


def run(place: Site, names: Iterable[str]) -> dict[str, Scenario]:
    """Run scenarios by name, showing each as a step."""
    results = {}
    for name in names:
        title, scenario = SCENARIOS[name]
        with step(title):
            results[name] = scenario(place)
    return results
