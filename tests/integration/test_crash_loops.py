"""A workspace that dies again and again is restarted at growing intervals; a restart is watched until it has worked."""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from sandbox.http_server import Answer, Reset
from tests.support.marks import both_status_types
from tests.support.stage import Outcome, Stage

# How far a moment that is reckoned from the test's clock may lie from the one that was reckoned within a cycle.
SLACK_S = 10.0
AN_HOUR_S = 3600.0
# How long an accepted restart may take to bring its workspace back.
RECOVERY_S = 900.0
# How long a workspace has to be up until it has recovered.
RECOVERED_S = 300.0
# Most of these fleets is dead, and the probe is right about it.
NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
IN_A_ROW = 3


def about(seconds: float) -> Any:
    return pytest.approx(seconds, abs=SLACK_S)


def cycle(stage: Stage, **settings: str | None) -> Outcome:
    return stage.cycle(**NO_BREAKER, **settings)


def comes_back(stage: Stage, workspace: str, state: str = "running") -> None:
    """Let the platform bring a workspace back on a new instance."""
    (instance,) = stage.instances(1, state)
    stage.fleet.update(workspace, status="online", instance_id=instance)


def dies(stage: Stage, workspace: str, **settings: str | None) -> Outcome:
    """Let a workspace come back and die at once; return the cycle that finds it."""
    comes_back(stage, workspace, "terminated")
    return cycle(stage, **settings)


def in_a_loop(stage: Stage, times: int = IN_A_ROW, **settings: str | None) -> str:
    """Return a workspace that has died so many times in a row, and was restarted each time."""
    workspace = stage.add("terminated")
    for _ in range(times):
        assert len(dies(stage, workspace, **settings).calls) == 1
    return workspace


def backoff_s(stage: Stage, workspace: str) -> float:
    """Return for how many seconds the newest restart backs off."""
    backoff_until: datetime | None = stage.fleet.restarts(workspace)[-1]["backoff_until"]
    return 0.0 if backoff_until is None else (backoff_until - datetime.now(UTC)).total_seconds()


def release(stage: Stage, *workspaces: str, mode: str = "apply") -> Outcome:
    return stage.glance({"mode": mode, "release": list(workspaces)})


# --- the back-offs ---


@pytest.mark.parametrize(
    ("settings", "backoffs_s"),
    [
        pytest.param({}, [300, 600, 1200, 2400, 4800, 9600, 14_400, 14_400], id="as set by default"),
        pytest.param({"CRASH_LOOP_BACKOFF_SECONDS": "5000"}, [5000, 10_000, 14_400], id="from 5000 seconds on"),
    ],
)
def test_from_the_fourth_death_in_a_row_on_each_restart_waits_twice_as_long_up_to_four_hours(
    stage: Stage, settings: dict[str, str], backoffs_s: list[float]
) -> None:
    workspace = in_a_loop(stage, IN_A_ROW, **settings)
    for expected_s in backoffs_s:
        found_dead = dies(stage, workspace, **settings)
        assert (found_dead.flipped, found_dead.calls) == ({workspace}, [])
        assert backoff_s(stage, workspace) == about(expected_s)
        stage.fleet.age_everything(expected_s - SLACK_S)
        assert cycle(stage, **settings).calls == []
        stage.fleet.age_everything(SLACK_S)
        assert [call.workspace_id for call in cycle(stage, **settings).calls] == [workspace]


def test_without_a_backoff_every_restart_is_asked_for_at_once(stage: Stage) -> None:
    workspace = in_a_loop(stage, 6, CRASH_LOOP_BACKOFF_SECONDS="0")
    assert {one["backoff_until"] for one in stage.fleet.restarts(workspace)} == {None}


@pytest.mark.parametrize(
    ("settings", "healthy_s"),
    [({}, AN_HOUR_S), ({"CRASH_LOOP_RESET_SECONDS": "100"}, 100.0)],
    ids=["as set by default", "as set to 100 seconds"],
)
def test_a_stretch_of_health_ends_the_loop_and_a_shorter_one_does_not(
    stage: Stage, settings: dict[str, str], healthy_s: float
) -> None:
    workspace = in_a_loop(stage)

    def is_up_and_dies(seconds: float) -> Outcome:
        comes_back(stage, workspace)
        assert cycle(stage, **settings).flipped == set()
        stage.fleet.age_everything(seconds)
        return dies(stage, workspace, **settings)

    assert is_up_and_dies(healthy_s - SLACK_S).calls == []
    assert backoff_s(stage, workspace) == about(300)
    stage.fleet.age_everything(300)
    assert len(cycle(stage, **settings).calls) == 1
    assert len(is_up_and_dies(healthy_s).calls) == 1
    for _ in range(IN_A_ROW - 1):
        assert len(dies(stage, workspace, **settings).calls) == 1, "the count begins anew"
    assert dies(stage, workspace, **settings).calls == []


def test_health_begins_when_a_cycle_sees_the_workspace_online_again_and_not_when_its_restart_was_taken(
    stage: Stage,
) -> None:
    workspace = in_a_loop(stage)
    stage.fleet.update(workspace, status="provisioning")
    cycle(stage)
    stage.fleet.age_everything(2 * AN_HOUR_S)
    comes_back(stage, workspace)
    cycle(stage)
    assert dies(stage, workspace).calls == []
    assert backoff_s(stage, workspace) == about(300)


def test_a_workspace_that_no_cycle_has_seen_online_again_was_not_healthy(stage: Stage) -> None:
    workspace = in_a_loop(stage)
    stage.fleet.age_everything(2 * AN_HOUR_S)  # while its machine is provisioned
    assert dies(stage, workspace).calls == []
    assert backoff_s(stage, workspace) == about(300)


def test_a_restart_that_was_never_asked_for_lengthens_no_loop(stage: Stage) -> None:
    workspace = stage.add("terminated")
    for _ in range(3):
        dies(stage, workspace, PLATFORM_BASE_URL=None)
        dies(stage, workspace, PLATFORM_BASE_URL=None)
        comes_back(stage, workspace)
        cycle(stage, PLATFORM_BASE_URL=None)
    assert len(dies(stage, workspace).calls) == 1
    assert {one["streak"] for one in stage.fleet.restarts(workspace)} == {0}


@pytest.mark.parametrize("seen", [False, True], ids=["it dies at once", "a cycle sees it before"])
def test_the_time_that_a_workspace_spends_offline_in_a_backoff_is_no_health(stage: Stage, seen: bool) -> None:
    workspace = in_a_loop(stage)
    comes_back(stage, workspace)
    cycle(stage)
    dies(stage, workspace, CRASH_LOOP_BACKOFF_SECONDS="10000")
    stage.fleet.age_everything(2 * AN_HOUR_S)
    if seen:
        comes_back(stage, workspace)  # somebody has restarted it by hand
        cycle(stage)
    assert dies(stage, workspace).calls == []
    assert backoff_s(stage, workspace) == about(300)
    comes_back(stage, workspace)
    cycle(stage)
    stage.fleet.age_everything(AN_HOUR_S)
    assert len(dies(stage, workspace).calls) == 1


def test_a_loop_keeps_nobody_elses_restart_waiting(stage: Stage) -> None:
    workspace = in_a_loop(stage)
    other = stage.add("stopped")
    outcome = dies(stage, workspace)
    assert outcome.flipped == {workspace, other}
    assert [call.workspace_id for call in outcome.calls] == [other]


def test_a_restart_in_backoff_is_cancelled_when_the_workspace_moves_on(stage: Stage) -> None:
    workspace = in_a_loop(stage)
    dies(stage, workspace)
    comes_back(stage, workspace)
    restarts = cycle(stage).report["restarts"]
    assert (restarts["cancelled"], restarts["pending"], restarts["backing_off"]) == (1, 0, 0)


# --- seen from outside ---


def test_a_backoff_is_in_the_log_the_report_and_the_metrics_and_is_no_overdue_restart(stage: Stage) -> None:
    workspace = in_a_loop(stage)
    outcome = dies(stage, workspace)
    (line,) = outcome.lines("restart backing off")
    assert (line["workspace_id"], line["attempt"], line["level"]) == (workspace, 4, "WARNING")
    assert line["instance_id"] == stage.instance_of(workspace)
    assert "crash loop" in line["reason"]
    assert "300 s" in line["reason"]
    for since_s in (0.0, 200.0):
        stage.fleet.age_everything(since_s)
        waiting = outcome if not since_s else cycle(stage)
        assert (waiting.report["restarts"]["backing_off"], waiting.report["restarts"]["pending"]) == (1, 1)
        (metrics,) = waiting.metrics()
        assert (metrics["RestartsBackingOff"], metrics["RestartsPending"]) == ([1], [1])
        assert metrics["OldestRestartAge"] == [0]


def test_a_restart_becomes_overdue_from_the_end_of_its_backoff_on(stage: Stage) -> None:
    workspace = in_a_loop(stage)
    dies(stage, workspace)
    stage.fleet.age_everything(300 + 40)
    outcome = cycle(stage, PLATFORM_BASE_URL=None)
    assert outcome.report["restarts"]["backing_off"] == 0
    assert outcome.metrics()[0]["OldestRestartAge"] == [about(40)]


def test_the_first_restarts_are_not_reported_as_backing_off(stage: Stage) -> None:
    workspace = stage.add("terminated")
    for _ in range(IN_A_ROW):
        outcome = dies(stage, workspace)
        assert outcome.lines("restart backing off") == []
        assert outcome.report["restarts"]["backing_off"] == 0


# --- released by hand ---


def test_a_released_restart_is_asked_for_in_the_next_cycle_and_the_loop_is_forgotten(stage: Stage) -> None:
    workspace = in_a_loop(stage)
    dies(stage, workspace)
    answer = release(stage, workspace)
    assert (answer.report["outcome"], answer.report["holds"]) == ("released", [])
    assert [line["workspace_id"] for line in answer.lines("workspace released")] == [workspace]
    assert [call.workspace_id for call in cycle(stage).calls] == [workspace]
    assert len(dies(stage, workspace).calls) == 1


def test_a_release_ends_nobody_elses_backoff(stage: Stage) -> None:
    workspaces = [in_a_loop(stage), in_a_loop(stage)]
    for workspace in workspaces:
        dies(stage, workspace)
    release(stage, workspaces[0])
    assert [call.workspace_id for call in cycle(stage).calls] == workspaces[:1]


@pytest.mark.parametrize("times", [0, IN_A_ROW], ids=["first death", "in a loop"])
def test_a_release_shortens_no_wait_for_a_request_that_may_be_under_way(stage: Stage, times: int) -> None:
    workspace = in_a_loop(stage, times)
    comes_back(stage, workspace, "terminated")
    cycle(stage, PLATFORM_BASE_URL=None)
    stage.fleet.age_everything(300)  # past its back-off, if any
    stage.platform.instead.clear()
    stage.platform.instead.reply(Reset(), nth=1)
    stage.platform.instead.reply(Answer(202))
    assert cycle(stage).report["restarts"]["uncertain"] == 1
    release(stage, workspace)
    assert cycle(stage).calls == []
    stage.fleet.age_everything(300 - SLACK_S)
    assert cycle(stage).calls == []
    stage.fleet.age_everything(SLACK_S)
    assert len(cycle(stage).calls) == 1


# --- accepted restarts ---


def rows_status(status: str) -> Callable[[Stage, str], None]:
    return lambda stage, workspace: stage.fleet.update(workspace, status=status)


def deleted(stage: Stage, workspace: str) -> None:
    stage.fleet.delete(workspace)


def degraded(stage: Stage, workspace: str) -> None:
    comes_back(stage, workspace)
    stage.fleet.update(workspace, status="degraded")


NOT_BACK = {one: rows_status(one) for one in ("offline", "provisioning", "failed", "awaiting_agent")}
BACK = {"online": comes_back, "degraded": degraded}
BACK_OR_NOT_WANTED = {
    **BACK,
    **{one: rows_status(one) for one in ("paused", "removed", "hibernating", "hibernated")},
    "gone": deleted,
}


def restarted(stage: Stage) -> str:
    """Return a workspace whose restart the platform has accepted."""
    workspace = stage.add("terminated")
    assert cycle(stage).report["restarts"]["accepted"] == 1
    return workspace


def unrecovered(outcome: Outcome) -> int:
    """Return how many restarts have not worked: the report and the metric have to agree."""
    count: int = outcome.report["restarts"]["unrecovered"]
    assert [line["RestartsUnrecovered"] for line in outcome.metrics()] == [[count]]
    return count


@both_status_types
@pytest.mark.parametrize("becomes", NOT_BACK.values(), ids=NOT_BACK.keys())
def test_a_restart_that_has_not_brought_its_workspace_back_in_a_quarter_of_an_hour_is_counted(
    stage: Stage, becomes: Callable[[Stage, str], None]
) -> None:
    becomes(stage, restarted(stage))
    stage.fleet.age_everything(RECOVERY_S - SLACK_S)
    assert unrecovered(cycle(stage)) == 0
    stage.fleet.age_everything(SLACK_S)
    assert unrecovered(cycle(stage)) == 1


@both_status_types
@pytest.mark.parametrize("becomes", BACK_OR_NOT_WANTED.values(), ids=BACK_OR_NOT_WANTED.keys())
def test_a_restart_that_worked_or_is_not_wanted_any_more_is_not_counted(
    stage: Stage, becomes: Callable[[Stage, str], None]
) -> None:
    workspace = restarted(stage)
    stage.fleet.update(workspace, status="provisioning")
    stage.fleet.age_everything(2 * RECOVERY_S)
    assert unrecovered(cycle(stage)) == 1
    becomes(stage, workspace)
    assert unrecovered(cycle(stage)) == 0
    if becomes in BACK.values():
        stage.fleet.age_everything(RECOVERED_S)
        assert unrecovered(cycle(stage)) == 0
    if becomes is not deleted:  # what happens to it later is no fault of that restart
        stage.fleet.update(workspace, status="failed")
        assert unrecovered(cycle(stage)) == 0


@pytest.mark.parametrize("becomes", BACK.values(), ids=BACK.keys())
def test_a_workspace_that_is_up_for_less_than_five_minutes_has_not_recovered(
    stage: Stage, becomes: Callable[[Stage, str], None]
) -> None:
    workspace = restarted(stage)
    becomes(stage, workspace)
    assert unrecovered(cycle(stage)) == 0
    stage.fleet.age_everything(RECOVERED_S - SLACK_S)
    assert unrecovered(cycle(stage)) == 0
    stage.fleet.update(workspace, status="failed")
    stage.fleet.age_everything(RECOVERY_S - RECOVERED_S)
    assert unrecovered(cycle(stage)) == 0
    stage.fleet.age_everything(SLACK_S)
    assert unrecovered(cycle(stage)) == 1


def test_only_the_newest_restart_of_a_workspace_is_counted(stage: Stage) -> None:
    workspace = restarted(stage)
    dies(stage, workspace)
    stage.fleet.age_everything(2 * RECOVERY_S)
    assert unrecovered(cycle(stage)) == 1


def test_a_restart_that_is_still_owed_is_not_one_that_did_not_work(stage: Stage) -> None:
    stage.add("terminated")
    cycle(stage, PLATFORM_BASE_URL=None)
    stage.fleet.age_everything(2 * RECOVERY_S)
    assert unrecovered(cycle(stage, PLATFORM_BASE_URL=None)) == 0


def test_a_restart_that_did_not_work_is_not_counted_while_its_workspace_is_on_hold(stage: Stage) -> None:
    workspace = restarted(stage)
    stage.fleet.age_everything(2 * RECOVERY_S)
    order = {"workspace_ids": [workspace], "reason": "we are on it", "seconds": 60}
    stage.invoke({"mode": "apply", "hold": order})
    assert unrecovered(cycle(stage)) == 0
    release(stage, workspace)
    assert unrecovered(cycle(stage)) == 1


def test_a_lock_on_the_platforms_table_leaves_the_figures_at_the_end_as_they_are(stage: Stage) -> None:
    restarted(stage)
    stage.fleet.age_everything(2 * RECOVERY_S)
    stage.add("stopped")
    connection = stage.meanwhile.enter_context(contextlib.closing(stage.database.connect()))

    def lock(_: object) -> None:
        connection.run("BEGIN")
        connection.run("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")

    stage.ec2.script.before(lock, nth=2, action="DescribeInstances")
    outcome = cycle(stage, RECONFIRM_TIMEOUT_SECONDS="0.2", CYCLE_DEADLINE_SECONDS="3")
    assert outcome.skips == {"reconfirm_error": 1}
    assert unrecovered(outcome) == 1
