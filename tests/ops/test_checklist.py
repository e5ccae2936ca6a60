"""The checklist before switching on: each point fails for its own reason."""

from typing import Any

import pytest

from ops.checklist import checked, passed
from tests.ops.terminal import DRY_RUN

FLIPS = {"flips": [{"instance_id": "i-1"}, {"instance_id": "i-2"}]}


def failures(report: dict[str, Any], states: dict[str, str] | None = None) -> list[str]:
    return [f"{one.name}: {one.reason}" for one in checked(DRY_RUN | report, states) if not one.passed]


def test_a_small_fleet_in_which_nothing_is_wrong_passes() -> None:
    assert passed(checked(DRY_RUN, None))
    assert failures(FLIPS, {"i-1": "stopped", "i-2": "terminated"}) == []
    assert failures({"candidates": 0, "checked": 0}) == [], "a new platform"


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"outcome": "already_running"}, "the cycle completed: its outcome is already_running"),
        ({"deadline_hit": True}, "the cycle completed: "),
        ({"duration_ms": 41_000}, "there is time to spare: 41.0 s of 45 s for 20 candidates: raise MemorySize"),
        ({"unknown": 2}, "unknown is near 0: 2 of 20: the saved query"),
        ({"absent": 20}, "absent is near 0: 20 of 20: does the stack run in"),
        ({"breaker_open": True}, "the breaker is closed: more than half"),
        ({"offline_unowed": 1}, "offline_unowed is 0: it is 1: docs/runbook.md"),
        ({"unrecorded": 3}, "unrecorded is 0: it is 3: docs/runbook.md"),
        ({"targets_failed": ["eu-west-1"]}, "every target answers: eu-west-1"),
        ({"targets_empty": ["eu-west-1"]}, "every target answers: eu-west-1"),
    ],
)
def test_a_point_that_fails_says_why(report: dict[str, Any], said: str) -> None:
    (failure,) = failures(report)
    assert failure.startswith(said)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"i-1": "stopped", "i-2": "running"}, "i-2 is running"),
        ({"i-1": "stopped"}, "i-2 is not found"),
        ({"i-1": "shutting-down", "i-2": "terminated"}, "i-1 is shutting-down"),
    ],
)
def test_an_instance_that_ec2_does_not_call_dead_fails(states: dict[str, str], said: str) -> None:
    (failure,) = failures(FLIPS, states)
    assert failure.endswith(said)
