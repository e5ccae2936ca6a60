"""What every scenario keeps of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

Scenario = dict[str, Any]

APPLY = {"mode": "apply"}
# The settings that keep a process without an EC2 API from asking AWS.
NO_AWS = {"AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true"}
# Lambda gives a function of 512 MB so much of a processor: in each 100 ms it may use it for 29 ms.
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
LAMBDA_SHARE = 0.29


def figures(contestant: str, rows: int, runs: Sequence[Mapping[str, Any]], *, share: float = 1.0) -> dict[str, Any]:
    """Return what a contestant came to, run by run; `share` is the part of the rows that it was measured on."""
    return {
        "contestant": contestant,
        "rows": rows,
        "share": share,
        "wall_s": [round(run["wall_s"], 4) for run in runs],
        "cpu_s": [round(run["cpu_s"], 4) for run in runs],
        "peak_mib": [round(run["peak_mib"], 1) for run in runs],
        "checked": [run["answer"]["checked"] for run in runs],
        "flipped": [run["answer"]["flipped"] for run in runs],
        "calls": [run["ec2"]["calls"] for run in runs if "ec2" in run],
    }


def at_share(wall_s: float, cpu_s: float, share: float = LAMBDA_SHARE) -> float:
    """Return how many seconds something takes with a share of a processor: what it computes takes longer."""
    return wall_s + cpu_s * (1 / share - 1)
