"""Shards: cycles over ranges of the ids, side by side, that together do what a full cycle does."""

from typing import Any
from uuid import UUID

import pytest

from handler.domain.shards import Shard
from tests.support.stage import Stage

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}


def shard(number: int, of: int, **more: Any) -> dict[str, Any]:
    """Return the event for a shard."""
    return {"mode": "apply", "shard": number, "shards": of, **more}


def add_to(stage: Stage, one: Shard, state: str | None, *, nth: int = 0, **columns: Any) -> str:
    """Add a workspace to a shard; return its id."""
    workspace_id = str(UUID(int=UUID(one.first_id).int + nth))
    return stage.add(state, id=workspace_id, **columns)


def test_shards_together_do_what_a_full_cycle_does_and_each_only_its_own(stage: Stage) -> None:
    shards = [Shard(number, 4) for number in range(4)]
    dead = {add_to(stage, one, "terminated"): one.number for one in shards}
    for one in shards:
        for nth in range(1, 4):
            add_to(stage, one, "running", nth=nth)
    last = stage.add("running", id="ffffffff-ffff-ffff-ffff-ffffffffffff")
    for number in range(4):
        cycle = stage.cycle(shard(number, 4))
        cycle.assert_only_flipped({one: "terminated" for one, owner in dead.items() if owner == number})
        assert cycle.report["candidates"] == 4 + (number == 3)
        assert cycle.report["completed_pass"]
        assert {(one["shard"], one["shards"]) for one in cycle.log if "_aws" not in one} == {(number, 4)}
        assert len(cycle.metrics()) == 1
    assert stage.fleet.statuses()[last] == "online"


@pytest.mark.parametrize("status_type", ["enum"])
def test_one_shard_of_one_is_a_full_cycle(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead = stage.add("stopped")
    cycle = stage.cycle(shard(0, 1))
    cycle.assert_only_flipped({dead: "stopped"})
    assert not any("shard" in one for one in cycle.log)
