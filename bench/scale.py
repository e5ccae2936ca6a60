"""How far it goes: a model of one cycle's capacity and of a month's cost, checked against what the bench measured.

tests/unit/test_scale.py holds it to bench/results.json within TOLERANCE. It is a model: it knows nothing of other tools
that use EC2's bucket, of mass deaths, or of a control plane that gets slower as more is asked of it.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.tables import markdown

# How far the model may be from a measured point, as a fraction of it.
TOLERANCE = 0.15

# The cycle: handler/phases.py, handler/cycle.py, handler/settings.py, and infra/template.yaml.
DEADLINE_S = 45.0
PROBING_S, FLIPPING_S, SECOND_PROBE_FACTOR = 0.75 * DEADLINE_S, 0.95 * DEADLINE_S, 1.15
CANDIDATE_LIMIT = 100_000
MOST_SHARDS, MOST_CONCURRENCY = 40, 900
# The EC2 probe: handler/probes/ec2.
PAGE, IDS_PER_CALL, CALLS_AT_ONCE, ZONES_ABOVE, LISTING_SHARE = 1_000, 200, 8, 5_000, 0.6
BURST_CALLS, CALLS_PER_S = 50, 10  # half of what AWS allows one account and Region
ALLOWED_CALLS_PER_S = 20
MOST_TARGETS = 15  # what fits into a function's variables

# Measured, on a whole core: results.json has the points. Lambda gives a whole core at 1,769 MB, and Python uses one.
WHOLE_CORE_MB = 1_769
BASE_S, BASE_CPU_S = 0.19, 0.03
CPU_S_PER_CHECK, CHECK_OVERHEAD_S = 0.00075, 0.012
CPU_S_PER_LISTED = 0.000018
CPU_S_PER_ASKED = 0.00048  # DescribeInstances is ten times as much to read
BASE_MIB, MIB_PER_ROW = 54.0, 0.00081

# USD, list prices of us-east-1 without free tiers, as known in November 2026. They are on aws.amazon.com, in
# lambda/pricing, step-functions/pricing, cloudwatch/pricing, xray/pricing and eventbridge/pricing.
CYCLES_A_MONTH = 43_800  # 730 hours
LAMBDA_GB_S, LAMBDA_REQUEST = 0.0000133334, 0.0000002  # Arm
SCHEDULE, WORKFLOW_REQUEST, WORKFLOW_GB_S = 0.000001, 0.000001, 0.00001667
WORKFLOW_GB, WORKFLOW_S = 0.0625, 1.0  # billed in steps of 64 MB
LOG_GB, TRACE = 0.50, 0.000005
LOG_GB_A_CYCLE = 0.000003
FIXED = 28 * 0.30 + 25 * 0.10 + 3.00 + 0.26 + 1.29  # metrics, alarms, dashboard, queues, secrets: docs/deploy.md
WORKFLOW_ALARM = 3 * 0.10


@dataclass(frozen=True, slots=True)
class Setup:
    """What an installation is made of. `latency_s` is how long one check or one call to EC2 takes."""

    probe: str
    latency_s: float
    memory_mb: int = 512
    concurrency: int = 64
    shards: int = 1
    targets: int = 1
    foreign: float = 0.1  # of all instances, those that are not ours, for each of ours
    start_s: float = 0.5  # until the first checks are under way, with new connections

    @property
    def core(self) -> float:
        """The share of a core that a function has."""
        return min(1.0, self.memory_mb / WHOLE_CORE_MB)


# --- the control plane ---


def checks_per_cycle(setup: Setup) -> int:
    """Return how many workspaces the control plane answers for in one cycle, all shards together."""
    probing_s = min(PROBING_S, FLIPPING_S - SECOND_PROBE_FACTOR * setup.latency_s) - setup.start_s
    rounds = math.floor(probing_s / (setup.latency_s + CHECK_OVERHEAD_S))
    waiting = rounds * setup.concurrency
    computing = probing_s * setup.core / CPU_S_PER_CHECK
    return setup.shards * min(int(min(waiting, computing)), CANDIDATE_LIMIT)


def _checking_s(setup: Setup, rows: int) -> float:
    """Return how long one function takes for some checks."""
    waiting = math.ceil(rows / setup.concurrency) * (setup.latency_s + CHECK_OVERHEAD_S)
    return setup.start_s + max(waiting, rows * CPU_S_PER_CHECK / setup.core)


# --- EC2 ---


@dataclass(frozen=True, slots=True)
class Ec2Cycle:
    """What one cycle asks EC2 for, in all targets together, and how long it takes."""

    calls: int
    seconds: float


def listing(setup: Setup, rows: int, *, dead: bool = True) -> Ec2Cycle:
    """Return a cycle that lists what runs: for fleets of which all candidates fit into one cycle."""
    per_target = math.ceil(rows / setup.targets)
    instances = math.ceil(per_target * (1 + setup.foreign))
    zones = 3 if per_target > ZONES_ABOVE and setup.targets == 1 else 1
    lists = rows > IDS_PER_CALL
    chain = math.ceil(instances / zones / PAGE) if lists else math.ceil(rows / IDS_PER_CALL)
    others = 1 + (zones > 1) + (2 if dead and lists else 0)  # impaired; zones; what is missing, and asked again
    calls = setup.targets * (chain * zones + others)
    taken = calls / setup.targets
    bucket_s = max(0.0, taken - BURST_CALLS) / CALLS_PER_S
    cpu_s = BASE_CPU_S + CPU_S_PER_LISTED * instances * setup.targets
    return Ec2Cycle(calls, BASE_S + max((chain + others) * setup.latency_s, bucket_s) + cpu_s / setup.core)


def ec2_per_cycle(setup: Setup, fleet: int) -> int:
    """Return how many workspaces one cycle checks of a fleet that is too large for one.

    It lists while a page names at least as many candidates as a call by id would; then it asks by id.
    """
    instances = fleet * (1 + setup.foreign)
    on_a_page = PAGE * min(fleet, CANDIDATE_LIMIT) / instances
    listing_s = LISTING_SHARE * PROBING_S if on_a_page >= IDS_PER_CALL else 0.0
    by_bucket = setup.targets * (BURST_CALLS + CALLS_PER_S * listing_s)
    by_latency = 3 * setup.targets * listing_s / setup.latency_s
    by_core = listing_s * setup.core / (CPU_S_PER_LISTED * PAGE)
    pages = min(by_bucket, by_latency, by_core, instances / PAGE)
    by_id = _asked(setup, PROBING_S - listing_s, setup.targets * BURST_CALLS if not listing_s else 0)
    return int(min(pages * on_a_page + by_id, CANDIDATE_LIMIT))


def _asked(setup: Setup, seconds: float, burst_calls: int) -> float:
    by_bucket = IDS_PER_CALL * (burst_calls + setup.targets * CALLS_PER_S * seconds)
    by_latency = CALLS_AT_ONCE * IDS_PER_CALL * seconds / setup.latency_s
    return min(by_bucket, by_latency, seconds * setup.core / CPU_S_PER_ASKED)


def memory_mib(rows: int) -> float:
    """Return the most memory that a function with so many candidates takes."""
    return BASE_MIB + MIB_PER_ROW * min(rows, CANDIDATE_LIMIT)


# --- a fleet ---


@dataclass(frozen=True, slots=True)
class Answer:
    """What a set-up does for a fleet: in how many minutes everybody has been checked, and what a month costs."""

    setup: Setup
    minutes: int
    usd: float


def answer(setup: Setup, fleet: int) -> Answer:
    """Work out a set-up for a fleet."""
    if setup.probe == "control_plane":
        capacity = checks_per_cycle(setup)
        each = min(math.ceil(fleet / setup.shards), capacity // setup.shards)
        busy_s = BASE_S + _checking_s(setup, each)
    elif fleet <= CANDIDATE_LIMIT and (cycle := listing(setup, fleet)).seconds <= PROBING_S:
        capacity, busy_s = fleet, cycle.seconds
    else:
        capacity, busy_s = ec2_per_cycle(setup, fleet), PROBING_S
    return Answer(setup, math.ceil(fleet / capacity), cost(setup, busy_s))


def cost(setup: Setup, busy_s: float) -> float:
    """Return USD a month for a stack whose functions take so long each minute. Without network and database."""
    each = busy_s * setup.memory_mb / 1024 * LAMBDA_GB_S + LAMBDA_REQUEST + TRACE + LOG_GB_A_CYCLE * LOG_GB
    workflow = WORKFLOW_REQUEST + WORKFLOW_GB * WORKFLOW_S * WORKFLOW_GB_S if setup.shards > 1 else 0.0
    alarm = WORKFLOW_ALARM if setup.shards > 1 else 0.0
    return FIXED + alarm + CYCLES_A_MONTH * (setup.shards * each + SCHEDULE + workflow)


_SIZES_MB, _CONCURRENCIES = (512, 1_024, WHOLE_CORE_MB), (64, 256, MOST_CONCURRENCY)


def fitting(probe: str, latency_s: float, fleet: int) -> Answer:
    """Return the set-up that checks everybody within a minute with the fewest shards, and asks the least at once.

    If none does, return the fastest one.
    """
    answers = [answer(one, fleet) for one in _setups(probe, latency_s)]
    fast = [one for one in answers if one.minutes == 1]
    if fast:
        return min(fast, key=lambda one: (one.setup.shards, one.setup.concurrency, one.usd))
    return min(answers, key=lambda one: (one.minutes, one.usd))


def _setups(probe: str, latency_s: float) -> Iterator[Setup]:
    base = Setup(probe, latency_s)
    for memory_mb in _SIZES_MB:
        if probe == "ec2":
            yield replace(base, memory_mb=memory_mb)
            continue
        for concurrency, shards in product(_CONCURRENCIES, range(1, MOST_SHARDS + 1)):
            yield replace(base, memory_mb=memory_mb, concurrency=concurrency, shards=shards)


def largest(setup: Setup) -> int:
    """Return the largest fleet that a set-up checks within one minute."""
    if setup.probe == "control_plane":
        return checks_per_cycle(setup)
    return max(size for size in range(PAGE, CANDIDATE_LIMIT + 1, PAGE) if listing(setup, size).seconds <= PROBING_S)


def ids_a_minute(accounts: int = 1, *, ours: bool = True) -> int:
    """Return how many instances can be listed in a minute of one Region of so many accounts: our half of it, or all."""
    return accounts * PAGE * 60 * (CALLS_PER_S if ours else ALLOWED_CALLS_PER_S)


# --- the page ---

FLEETS = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_EC2_LATENCY_S = 0.2
_CP_LATENCIES_S = (0.1, 1.0)
_PROBE_TIMEOUT_S = 10.0


def table() -> Mapping[int, list[Answer]]:
    """Return the set-ups for each size of fleet: EC2, then a quick and a slow control plane."""
    return {
        size: [fitting("ec2", _EC2_LATENCY_S, size), *(fitting("control_plane", one, size) for one in _CP_LATENCIES_S)]
        for size in FLEETS
    }


def page() -> str:
    """Return the generated section of docs/scale.md."""
    head = ("workspaces", "EC2, 0.2 s a call", *(f"control plane, {one:g} s an answer" for one in _CP_LATENCIES_S))
    sizes = [(f"{size:,}", *map(_cell, answers)) for size, answers in table().items()]
    how = (
        "everybody is checked within a minute where that can be had; the fewest shards, then the fewest checks at once"
    )
    ends = ("set-up", "workspaces checked a minute", "what limits it", "USD a month")
    first = f"**Which size needs which set-up**, and USD a month ({how}):"
    return "\n\n".join([first, markdown(head, sizes), "**Where it ends:**", markdown(ends, list(_limits()))])


def _limits() -> Iterator[tuple[str, ...]]:
    ec2 = Setup("ec2", _EC2_LATENCY_S)
    whole = replace(ec2, memory_mb=WHOLE_CORE_MB)
    yield "one function, EC2, 512 MB", *_limit(ec2, largest(ec2), "`CANDIDATE_LIMIT`")
    for setup, why in ((ec2, "CPU"), (whole, "CPU, closely followed by EC2's bucket")):
        capacity = ec2_per_cycle(setup, FLEETS[-2])
        usd = answer(setup, FLEETS[-2]).usd
        yield f"the same of a million in one account, {setup.memory_mb:,} MB", f"{capacity:,}", why, f"{usd:,.0f}"
    for latency_s, why in ((0.1, "CPU"), (1.0, "the answers"), (8.0, "the answers")):
        slow = Setup("control_plane", latency_s)
        fast = replace(slow, memory_mb=WHOLE_CORE_MB, concurrency=MOST_CONCURRENCY)
        for setup in (slow, fast, replace(fast, shards=8), replace(fast, shards=MOST_SHARDS)):
            load = f"{setup.concurrency} at once, {setup.memory_mb:,} MB"
            yield f"{_functions(setup)}, control plane at {latency_s:g} s, {load}", *_limit(setup, largest(setup), why)
    for accounts in (1, 1_000):
        where = "one account and Region" if accounts == 1 else "a thousand accounts, one Region of each"
        yield (
            f"{where}: AWS's whole bucket",
            f"{ids_a_minute(accounts, ours=False):,}",
            "20 calls a second of 1,000 ids",
            "",
        )
        yield f"{where}: the half that we take", f"{ids_a_minute(accounts):,}", "10 calls a second of 1,000 ids", ""
    stacks = math.ceil(1_000 / MOST_TARGETS)
    full = answer(replace(ec2, targets=MOST_TARGETS), CANDIDATE_LIMIT)
    yield (
        f"a thousand accounts, EC2: {stacks} stacks of {MOST_TARGETS} targets, each with a database of its own, 512 MB",
        f"{stacks * CANDIDATE_LIMIT:,}",
        "`CANDIDATE_LIMIT`, and what fits into `Ec2Targets`",
        f"{stacks * full.usd:,.0f}",
    )


def _limit(setup: Setup, capacity: int, why: str) -> tuple[str, str, str]:
    return f"{capacity:,}", why, f"{answer(setup, capacity).usd:,.0f}"


def _functions(setup: Setup) -> str:
    return "one function" if setup.shards == 1 else f"{setup.shards} shards"


def _cell(one: Answer) -> str:
    setup = one.setup
    parts = [f"{setup.memory_mb:,} MB"]
    if setup.probe == "control_plane":
        parts = [_functions(setup), f"{setup.concurrency} at once", *parts]
    every = "" if one.minutes == 1 else f"every {one.minutes} minutes: "
    return f"{every}{', '.join(parts)}; {one.usd:,.0f} USD"


def asked(workspaces: int, answer_s: float) -> str:
    """Return what a fleet of one's own needs, over EC2 and over a control plane that takes so long to answer."""
    probes = (("EC2", "ec2", _EC2_LATENCY_S), (f"control plane, {answer_s:g} s an answer", "control_plane", answer_s))
    return "\n".join(f"{name}: {_cell(fitting(probe, each_s, workspaces))} a month" for name, probe, each_s in probes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page's section, or what one fleet needs."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="How far it goes.")
    parser.add_argument("--workspaces", type=int, metavar="N", help="only what a fleet of this size needs")
    parser.add_argument("--answer", type=float, default=1.0, metavar="SECONDS", help="of the control plane (1)")
    options = parser.parse_args(arguments)
    if options.workspaces is not None and options.workspaces < 1:
        parser.error("argument --workspaces: at least 1")
    if not 0 < options.answer <= _PROBE_TIMEOUT_S:
        parser.error(f"argument --answer: above 0, and {_PROBE_TIMEOUT_S:g} at most: what comes later is no answer")
    sys.stdout.write((page() if options.workspaces is None else asked(options.workspaces, options.answer)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
