"""Nobody is left out: what a deadline or a limit leaves undone is taken up by the next cycle."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from handler.errors import StoreError
from sandbox.control_plane import state_answer
from sandbox.http_server import Hang
from tests.support.events import APPLY, DRY_RUN
from tests.support.ids import in_order
from tests.support.stage import Outcome, Stage

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}


def fill(stage: Stage, ids: list[str], state: str = "running") -> list[str]:
    """Add a workspace for each id; return the ids."""
    instances = stage.instances(len(ids), state)
    return stage.fleet.insert(
        {"id": one, "instance_id": instance} for one, instance in zip(ids, instances, strict=True)
    )


def touch_all_but(stage: Stage, quiet: set[str]) -> None:
    """Record a heartbeat for every workspace but these, so that its row is the latest one."""
    stage.database.query(
        "UPDATE workspaces SET updated_at = now(), last_heartbeat_at = now() WHERE id::text <> ALL (:quiet)",
        quiet=list(quiet),
    )


class Watch:
    """Which workspaces were asked about, cycle by cycle."""

    def __init__(self, stage: Stage, probe: str) -> None:
        self._stage = stage
        self._probe = probe
        self.cycles: list[list[str]] = []

    def cycle(self, event: Any = APPLY, **settings: str) -> Outcome:
        """Run a cycle, and note the workspaces that it asked about, in that order."""
        asked, calls = len(self._stage.control_plane.requests), len(self._stage.ec2.calls)
        outcome = self._stage.cycle(event, **self._stage.settings(self._probe), **settings)
        if self._probe == "control_plane":
            self.cycles.append([one.workspace_id for one in self._stage.control_plane.requests[asked:]])
        else:
            workspace_of = {row["instance_id"]: one for one, row in outcome.before.rows.items()}
            named = [one for call in self._stage.ec2.calls[calls:] for one in call.filters.get("instance-id", ())]
            self.cycles.append([workspace_of[one] for one in named])
        return outcome

    def seen(self) -> set[str]:
        """Return all that were asked about so far."""
        return {one for cycle in self.cycles for one in cycle}


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
@pytest.mark.parametrize(("rows", "limit"), [(10, 3), (9, 3), (7, 1), (5, 20)], ids=str)
def test_with_a_limit_every_workspace_is_checked_in_turn_though_the_others_send_heartbeats(
    stage: Stage, probe: str, rows: int, limit: int
) -> None:
    ids = set(fill(stage, in_order(rows)))
    watch = Watch(stage, probe)
    passes = []
    for _ in range(math.ceil(rows / limit) + 1):
        report = watch.cycle(CANDIDATE_LIMIT=str(limit)).report
        assert report["checked"] == report["candidates"] == min(rows, limit)
        passes.append(report["completed_pass"])
        touch_all_but(stage, ids - watch.seen())
    assert watch.seen() == ids
    first_pass = math.ceil(rows / limit)
    assert passes[:first_pass] == [False] * (first_pass - 1) + [True]


def test_with_slow_answers_every_workspace_is_checked_in_turn_though_the_others_send_heartbeats(stage: Stage) -> None:
    ids = set(fill(stage, in_order(18)))
    stage.control_plane.script.reply(state_answer("running", delay_s=0.15))
    watch = Watch(stage, "control_plane")
    checked = []
    while watch.seen() != ids:
        touch_all_but(stage, ids - watch.seen())
        report = watch.cycle(CYCLE_DEADLINE_SECONDS="1", PROBE_CONCURRENCY="2").report
        assert report["checked"] + report["deferred"] == report["candidates"] == 18
        checked.append(report["checked"])
        capacity = min(checked)
        assert len(checked) <= math.ceil(18 / capacity) + 1
    assert len(checked) > 1, "one cycle was enough, which shows nothing"


def test_hanging_workspaces_at_the_head_do_not_starve_those_behind(stage: Stage) -> None:
    hanging, fine = fill(stage, in_order(4)), set(fill(stage, in_order(4, beginning=5)))
    for one in hanging:
        stage.control_plane.script.reply(Hang(), workspace_id=one)
    watch = Watch(stage, "control_plane")
    running = 0
    for _ in range(math.ceil(8 / 2) + 1):
        report = watch.cycle(CYCLE_DEADLINE_SECONDS="1", PROBE_CONCURRENCY="2").report
        running += report["running"]
        if watch.seen() >= fine:
            break
    assert watch.seen() >= fine
    assert running >= len(fine)


def test_one_hanging_workspace_delays_no_other(stage: Stage) -> None:
    hanging, *fine = fill(stage, in_order(12))
    stage.control_plane.script.reply(Hang(), workspace_id=hanging)
    report = Watch(stage, "control_plane").cycle(CYCLE_DEADLINE_SECONDS="1", PROBE_CONCURRENCY="4").report
    assert (report["running"], report["unknown"], report["deferred"]) == (len(fine), 1, 0)
    assert report["completed_pass"]


def test_dead_workspaces_without_time_for_a_flip_are_every_second_check_of_the_next_cycle(stage: Stage) -> None:
    living = fill(stage, in_order(4))
    dead = fill(stage, in_order(20, beginning=5), "terminated")
    fill(stage, in_order(4, beginning=25))
    for one in dead:
        stage.control_plane.script.reply(state_answer("terminated", delay_s=0.8), nth=2, workspace_id=one)
    watch = Watch(stage, "control_plane")
    cut_short = watch.cycle(CYCLE_DEADLINE_SECONDS="2", PROBE_CONCURRENCY="8", **MOSTLY_DEAD)
    late = {one for one, reason in cut_short.reasons.items() if reason == "out_of_time"}
    assert len(late) == cut_short.report["skipped"]["out_of_time"] >= 4
    assert cut_short.report["checked"] == 28
    stage.control_plane.script.clear()
    watch.cycle(PROBE_CONCURRENCY="1", **MOSTLY_DEAD)
    in_turn, brought_forward = watch.cycles[-1][:8:2], watch.cycles[-1][1:8:2]
    assert (in_turn, set(brought_forward) <= late) == (living, True)
    watch.cycle(PROBE_CONCURRENCY="8", **MOSTLY_DEAD)
    assert {one for one, status in stage.fleet.statuses().items() if status == "offline"} == set(dead)


def test_a_cycle_that_lost_its_lease_moves_no_cursor(stage: Stage) -> None:
    ids = fill(stage, in_order(6))
    watch = Watch(stage, "control_plane")
    watch.cycle(CANDIDATE_LIMIT="2")
    stage.control_plane.script.before(lambda _: stage.fleet.age_everything(400), nth=1)
    with pytest.raises(StoreError, match="lease"):
        watch.cycle(CANDIDATE_LIMIT="2")
    watch.cycle(CANDIDATE_LIMIT="2")
    assert [sorted(cycle) for cycle in watch.cycles] == [ids[0:2], ids[2:4]]


def test_a_cycle_that_was_killed_moves_no_cursor(stage: Stage) -> None:
    ids = fill(stage, in_order(6))
    watch = Watch(stage, "control_plane")
    watch.cycle(CANDIDATE_LIMIT="2")
    settings = stage.settings("control_plane") | {"CANDIDATE_LIMIT": "2"}
    with stage.invoke.in_process(**settings) as doomed:
        stage.control_plane.script.before(lambda _: doomed.process.kill(), nth=1)
        doomed.process.wait()
    stage.fleet.age_everything(400)
    watch.cycle(CANDIDATE_LIMIT="2")
    assert [sorted(cycle) for cycle in watch.cycles] == [ids[0:2], ids[2:4]]


NARROWED: Mapping[str, Callable[[list[str]], Any]] = {
    "a dry run": lambda _: DRY_RUN,
    "a cycle over one workspace": lambda ids: {"mode": "apply", "workspace_ids": [ids[3]]},
    "a cycle with a limit": lambda _: {"mode": "apply", "limit": 1},
}


@pytest.mark.parametrize("event", NARROWED.values(), ids=NARROWED.keys())
def test_only_full_applied_cycles_move_the_cursor(stage: Stage, event: Callable[[list[str]], Any]) -> None:
    ids = fill(stage, in_order(6))
    watch = Watch(stage, "control_plane")
    watch.cycle(CANDIDATE_LIMIT="2")
    watch.cycle(event(ids), CANDIDATE_LIMIT="2")
    watch.cycle(CANDIDATE_LIMIT="2")
    assert sorted(watch.cycles[-1]) == ids[2:4]


def test_whoever_comes_and_goes_meanwhile_leaves_nobody_out(stage: Stage) -> None:
    """Between the cycles the one at the cursor goes, and others come before and behind it."""
    ids = fill(stage, in_order(6, beginning=10))
    watch = Watch(stage, "control_plane")
    watch.cycle(CANDIDATE_LIMIT="2")
    stage.fleet.delete(ids[1])
    before, behind = fill(stage, in_order(1, beginning=1)), fill(stage, in_order(1, beginning=50))
    for _ in range(4):
        watch.cycle(CANDIDATE_LIMIT="2")
    assert watch.seen() == {*ids, *before, *behind}


def coverage_age(outcome: Outcome) -> float:
    """Return the metric CoverageAge: for how many seconds somebody has been waiting."""
    (line,) = outcome.metrics()
    (age,) = line["CoverageAge"]
    return float(age)


def test_the_coverage_s_age_grows_until_every_workspace_was_checked(stage: Stage) -> None:
    fill(stage, in_order(5))
    ages = []
    for _ in range(6):
        outcome = stage.cycle(CANDIDATE_LIMIT="2")
        ages.append((outcome.report["completed_pass"], coverage_age(outcome)))
        stage.fleet.age_everything(60)
    minutes = [(done, round(age / 60)) for done, age in ages]
    assert minutes == [(False, 0), (False, 1), (True, 0), (False, 1), (False, 2), (True, 0)]


def test_a_source_that_never_answers_completes_no_pass_by_being_asked(stage: Stage) -> None:
    """A check that was cut off counts, so the pass goes on; but one that was never begun does not."""
    fill(stage, in_order(6))
    stage.control_plane.script.reply(Hang())
    outcome = Watch(stage, "control_plane").cycle(CYCLE_DEADLINE_SECONDS="1", PROBE_CONCURRENCY="2")
    assert (outcome.report["unknown"], outcome.report["deferred"]) == (2, 4)
    assert not outcome.report["completed_pass"]


def test_a_fleet_without_candidates_is_covered(stage: Stage) -> None:
    stage.fleet.add(None)
    outcome = stage.cycle()
    assert outcome.report["completed_pass"]
    assert coverage_age(outcome) < 1


def test_the_slowest_answers_still_count(stage: Stage) -> None:
    """An answer that takes a third of the cycle leaves time for the second look, and for the flip."""
    dead = fill(stage, in_order(1), "terminated")
    stage.control_plane.script.reply(state_answer("terminated", delay_s=1.3))
    outcome = stage.cycle(**stage.settings("control_plane"), CYCLE_DEADLINE_SECONDS="4", **MOSTLY_DEAD)
    assert outcome.flipped == set(dead)
