"""Shards: cycles over ranges of the ids, side by side, that together do what a full cycle does."""

from typing import Any
from uuid import UUID

import pytest

from handler.domain.shards import Shard
from handler.store import candidates
from handler.store.shards import range_of
from tests.support.stage import Stage
from tests.support.under_way import TIMEOUT_S, under_way

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


def test_a_dry_run_of_a_shard_writes_nothing(stage: Stage) -> None:
    dead = add_to(stage, Shard(1, 2), "terminated")
    rehearsal = stage.cycle({"shard": 1, "shards": 2}, **MOSTLY_DEAD)
    assert [flip["workspace_id"] for flip in rehearsal.report["flips"]] == [dead]
    rehearsal.assert_untouched(dead)
    for table in ("lease", "shard_coverage", "doubts"):
        assert stage.database.query(f"SELECT FROM reconciler.{table}") == []
    assert stage.cycle({"shard": 0, "shards": 2}, **MOSTLY_DEAD).report["flips"] == []


# --- the breaker, over everything ---


def test_what_another_shard_flipped_or_remembers_counts_in_the_breaker(stage: Stage) -> None:
    low, high = Shard(0, 2), Shard(1, 2)
    for nth in range(4):
        add_to(stage, high, "running", nth=nth)
    theirs = {add_to(stage, high, "terminated", nth=nth): "terminated" for nth in range(4, 7)}
    ours = [add_to(stage, low, "terminated", nth=nth) for nth in range(2)]
    stage.cycle(shard(1, 2)).assert_only_flipped(theirs)
    cycle = stage.cycle(shard(0, 2))
    assert (cycle.report["breaker_open"], cycle.report["flipped"]) == (True, 0)
    cycle.assert_untouched(*ours)
    (line,) = cycle.lines("breaker open")
    assert (line["dead"], line["counted"]) == (5, 9), "those two of nine, and not of two"
    again = stage.cycle(shard(1, 2))
    assert (again.report["breaker_open"], again.report["dead"]) == (True, 0), "it counts what the other one remembers"


# --- restarts ---


def test_shards_share_the_restarts_of_a_cycle(stage: Stage) -> None:
    for number in range(2):
        for nth in range(6):
            add_to(stage, Shard(number, 2), "terminated" if nth < 3 else "running", nth=nth)
    settings = MOSTLY_DEAD | {"RESTARTS_PER_CYCLE": "5"}
    calls = [stage.cycle(shard(number, 2), **settings).calls for number in range(2)]
    assert [len(one) for one in calls] == [2, 2]
    for number, some in enumerate(calls):
        one = Shard(number, 2)
        assert all(one.first_id <= call.workspace_id <= one.last_id for call in some)


def test_a_shard_has_one_restart_at_least(stage: Stage) -> None:
    for nth in range(6):
        add_to(stage, Shard(3, 4), "terminated" if nth < 3 else "running", nth=nth)
    assert len(stage.cycle(shard(3, 4), RESTARTS_PER_CYCLE="2").calls) == 1
    assert stage.cycle(shard(3, 4), RESTARTS_PER_CYCLE="0").calls == []


# --- side by side ---


def test_a_shard_excludes_full_cycles_and_its_own_range_alone(stage: Stage) -> None:
    ids = [add_to(stage, Shard(number, 2), "running", nth=nth) for number in range(2) for nth in range(2)]
    dead = [add_to(stage, Shard(number, 2), "terminated", nth=9) for number in range(2)]
    with under_way(stage, shard(0, 2)) as finish:
        for event in ({"mode": "apply"}, shard(0, 2), shard(1, 3), {"mode": "apply", "workspace_ids": [ids[-1]]}):
            assert stage.glance(event).report["outcome"] == "already_running"
        beside = stage.cycle(shard(1, 2))
        beside.assert_only_flipped({dead[1]: "terminated"})
        assert finish()["flipped"] == 1
    assert stage.cycle().report["outcome"] == "completed"


def test_a_shard_that_was_killed_costs_the_others_nothing_and_its_age_grows(stage: Stage) -> None:
    for number in range(2):
        add_to(stage, Shard(number, 2), "running")
    with stage.invoke.in_process(shard(0, 2), **stage.settings("control_plane")) as doomed:
        stage.control_plane.script.before(lambda _: doomed.process.kill(), nth=1)
        doomed.process.wait(TIMEOUT_S)
    assert stage.glance(shard(0, 2)).report["outcome"] == "already_running"
    stage.fleet.age_everything(300)
    (metrics,) = stage.glance(shard(1, 2)).metrics()
    assert metrics["CycleCompleted"] == [1]
    assert metrics["CoverageAge"][0] > 299, "the other one never completed a pass"
    assert stage.glance(shard(0, 2)).report["completed_pass"]
    (metrics,) = stage.glance(shard(1, 2)).metrics()
    assert metrics["CoverageAge"][0] < 200


# --- many rows ---


def test_a_shard_reads_its_range_by_the_primary_key(stage: Stage) -> None:
    stage.database.query(
        "INSERT INTO workspaces (id, name, status, instance_id)"
        " SELECT CAST(md5(number::text) AS uuid), 'one', 'online', 'i-1' FROM generate_series(1, 20000) AS number"
    )
    stage.database.query("ANALYZE workspaces")
    one = Shard(3, 8)
    statement = candidates._UP.replace("platform.workspaces", "workspaces")  # noqa: SLF001 - as the cycle runs it
    rows = stage.database.query(f"EXPLAIN {statement}", ids=None, cursor=one.first_id, most=100_001, **range_of(one))
    plan = "\n".join(row["QUERY PLAN"] for row in rows)
    assert "workspaces_pkey" in plan
    assert "Seq Scan on workspaces" not in plan
