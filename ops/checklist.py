"""The checklist before switching on: what a dry run has to look like before anything may act on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# "Near zero": of a hundred checks, a few may fail by chance.
_MOST_FRACTION = 0.05
# A cycle has 45 s. One that needs most of it in a dry run has none left for flips and restarts.
MOST_DURATION_MS = 30_000
_DEAD = ("stopped", "terminated")


@dataclass(frozen=True, slots=True)
class Result:
    """One point of a list: its name, whether it passed, and why, or what to do."""

    name: str
    passed: bool
    reason: str = ""


def checked(report: Mapping[str, Any], states: Mapping[str, str] | None) -> list[Result]:
    """Judge the report of a dry run.

    `states` are the states that EC2 has for the instances in `flips`; None if EC2 is not the source of truth.
    """
    seen = max(1, report["checked"])
    return [
        Result(
            "the cycle completed",
            report["outcome"] == "completed" and not report["deadline_hit"],
            "" if report["outcome"] == "completed" else f"its outcome is {report['outcome']}",
        ),
        Result(
            "there is time to spare",
            report["duration_ms"] <= MOST_DURATION_MS,
            f"{report['duration_ms'] / 1000:.1f} s of 45 s for {report['candidates']} candidates"
            + ("" if report["duration_ms"] <= MOST_DURATION_MS else ": raise MemorySize"),
        ),
        _near_zero("unknown", report["unknown"], seen, "the saved query 'What was unknown and why' names the cause"),
        _near_zero("absent", report["absent"], seen, "does the stack run in the instances' account and Region?"),
        Result(
            "the breaker is closed",
            not report["breaker_open"],
            "more than half of the fleet looks dead: events/dry-run-override.json shows what would be flipped"
            if report["breaker_open"]
            else "",
        ),
        _zero("offline_unowed", report["offline_unowed"], "docs/runbook.md, Workspaces stay offline"),
        _zero("unrecorded", report["unrecorded"], "docs/runbook.md, Rows without an instance"),
        Result(
            "every target answers",
            not report.get("targets_failed") and not report.get("targets_empty"),
            ", ".join(map(str, [*report.get("targets_failed", []), *report.get("targets_empty", [])])),
        ),
        *([] if states is None else [_really_dead(report["flips"], states)]),
    ]


def passed(results: Sequence[Result]) -> bool:
    """Tell whether every point passed."""
    return all(result.passed for result in results)


def _near_zero(name: str, count: int, seen: int, remedy: str) -> Result:
    fine = count <= _MOST_FRACTION * seen
    return Result(f"{name} is near 0", fine, f"{count} of {seen}" + ("" if fine else f": {remedy}"))


def _zero(name: str, count: int, remedy: str) -> Result:
    return Result(f"{name} is 0", count == 0, "" if count == 0 else f"it is {count}: {remedy}")


def _really_dead(flips: Sequence[Mapping[str, Any]], states: Mapping[str, str]) -> Result:
    alive = {
        one["instance_id"]: states.get(one["instance_id"], "not found")
        for one in flips
        if states.get(one["instance_id"], "not found") not in _DEAD
    }
    name = "EC2, asked again, calls every instance that would be flipped stopped or terminated"
    said = ", ".join(f"{instance} is {state}" for instance, state in sorted(alive.items()))
    return Result(name, not alive, said or f"{len(flips)} would be flipped")
