"""The scenario of several Regions: as many workspaces as in one, spread over two and over ten."""

import json
import statistics
from typing import Any

from bench.child import PROJECT
from bench.figures import APPLY, Scenario, figures
from bench.stand_ins import Ec2Regions, hosted
from bench.world import DEAD_EVERY, EC2_LATENCY_S, Ec2World, Fleet, Site

REGIONS = (
    *("eu-central-1", "eu-west-1", "eu-west-2", "eu-north-1", "us-east-1"),
    *("us-east-2", "us-west-2", "ap-south-1", "ap-southeast-1", "ap-northeast-1"),
)
# Workspaces in all, the Regions that they are spread over, runs, and how much longer than one Region they may take.
CASES = ((10_000, 2, 3, 1.2), (100_000, 10, 1, 1.5))
_FOREIGN_SHARE = 10


def targets(place: Site) -> Scenario:
    """10,000 workspaces in one Region and in two, 100,000 in one and in ten."""
    rows = []
    for size, regions, runs, most in CASES:
        alone, spread = (_cycles(place, size, count, runs) for count in (1, regions))
        ratio = statistics.median(spread["wall_s"]) / statistics.median(alone["wall_s"])
        rows += [alone, spread | {"ratio": round(ratio, 2), "most": most}]
    return {
        "conditions": f"{EC2_LATENCY_S} s a call, a bucket for each Region, 1 in {DEAD_EVERY:,} dead, "
        f"1 in {_FOREIGN_SHARE + 1} instances foreign; medians of {CASES[0][2]} runs, of the large fleet one",
        "rows": rows,
    }


def _cycles(place: Site, size: int, regions: int, runs: int) -> dict[str, Any]:
    foreign = size // _FOREIGN_SHARE
    fleet = Fleet(place, size, foreign=foreign)
    names = list(REGIONS[:regions])
    listed = json.dumps([{"region": name} for name in names])
    with hosted(Ec2Regions, EC2_LATENCY_S) as ec2:
        ec2.fill(names, size, foreign=foreign, dead_every=DEAD_EVERY)
        world = Ec2World(fleet, ec2)
        done = [world.run(PROJECT, APPLY, EC2_TARGETS=listed) for _ in range(runs)]
    fleet.database.drop()
    if any(one["answer"]["checked"] != size or one["answer"]["targets_empty"] for one in done):
        raise RuntimeError(f"{size} workspaces in {regions} Regions: {done[0]['answer']}")
    return figures(PROJECT, size, done) | {"regions": regions}
