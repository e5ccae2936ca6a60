"""Doubts that last several cycles: instances that EC2 does not know, and too many that look dead."""

from collections.abc import Mapping
from typing import Any

import pytest

from sandbox.control_plane import state_answer
from sandbox.http_server import Answer
from tests.support.events import APPLY, DRY_RUN, SCHEDULED
from tests.support.stage import Outcome, Stage

OVERRIDE = APPLY | {"override_breaker": True}
SIGHTINGS, MIN_AGE_S = 3, 120
A_MINUTE_S = 60.0
# Absences are believed as soon as they have been seen often enough, or at first sight.
SOON = {"ABSENT_MIN_AGE_SECONDS": "0"}
AT_ONCE = {"ABSENT_SIGHTINGS": "1", "ABSENT_MIN_AGE_SECONDS": "0"}


def only(*workspaces: str, mode: str = "apply") -> dict[str, Any]:
    """Return the event that narrows a cycle to these workspaces."""
    return {"mode": mode, "workspace_ids": list(workspaces)}


def sightings(stage: Stage) -> dict[str, int]:
    """Return how often each workspace's instance was not found, as far as that is remembered."""
    absent = [row for row in stage.fleet.doubts() if row["kind"] == "absent"]
    return {row["workspace_id"]: row["sightings"] for row in absent if row["sightings"]}


# --- an instance that EC2 does not know ---


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_an_instance_that_is_not_found_is_dead_after_three_sightings_over_two_minutes(stage: Stage, probe: str) -> None:
    stage.add("running")
    workspace = stage.add(None)
    for number in (1, 2):
        outcome = stage.cycle(**stage.settings(probe))
        outcome.assert_only_flipped({})
        assert (outcome.report["absent"], sightings(stage)) == (1, {workspace: number})
        stage.fleet.age_everything(A_MINUTE_S)
    stage.cycle(**stage.settings(probe)).assert_only_flipped({workspace: "not_found"})


def test_many_sightings_within_two_minutes_are_not_enough(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    for _ in range(5):
        stage.cycle().assert_only_flipped({})
    stage.fleet.age_everything(MIN_AGE_S)
    stage.cycle().assert_only_flipped({workspace: "not_found"})


def test_life_at_the_second_probe_resets_the_count(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    settings = stage.settings("control_plane")
    for _ in (1, 2):
        stage.cycle(**settings)
        stage.fleet.age_everything(A_MINUTE_S)
    stage.control_plane.script.reply(state_answer("running"), nth=2, workspace_id=workspace)
    outcome = stage.cycle(**settings)
    outcome.assert_only_flipped({})
    assert (outcome.reasons, sightings(stage)) == ({workspace: "not_confirmed"}, {})
    stage.fleet.age_everything(A_MINUTE_S)
    stage.cycle(**settings).assert_only_flipped({})
    assert sightings(stage) == {workspace: 1}


@pytest.mark.parametrize("status", ["online", "provisioning"], ids=["and nobody knew of it", "and was no candidate"])
def test_recording_another_instance_meanwhile_resets_the_count(stage: Stage, status: str) -> None:
    stage.add("running")
    workspace = stage.add(None)
    gone, (other,) = stage.instance_of(workspace), stage.instances(1, "running")
    settings = stage.settings("control_plane")
    for _ in (1, 2):
        stage.cycle(**settings)
        stage.fleet.age_everything(A_MINUTE_S)
    stage.fleet.update(workspace, instance_id=other, status=status)
    stage.control_plane.script.reply(Answer(503), instance_id=other)
    stage.cycle(**settings)
    assert sightings(stage) == {}
    stage.fleet.update(workspace, instance_id=gone, status="online")
    stage.cycle(**settings).assert_only_flipped({})
    assert sightings(stage) == {workspace: 1}


def test_a_cycle_that_looks_at_others_forgets_nobody(stage: Stage) -> None:
    running, workspace = stage.add("running"), stage.add(None)
    stage.cycle()
    stage.cycle(only(running))
    assert sightings(stage) == {workspace: 1}
    stage.add_all(3, "running")
    for _ in range(5):
        stage.cycle(CANDIDATE_LIMIT="1")
    assert workspace in sightings(stage)


def test_two_sightings_over_many_minutes_are_not_enough(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    stage.cycle().assert_only_flipped({})
    stage.fleet.age_everything(10 * A_MINUTE_S)
    stage.cycle().assert_only_flipped({})
    stage.cycle().assert_only_flipped({workspace: "not_found"})


def test_how_many_sightings_over_how_long_it_takes_can_be_set(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    stage.cycle(ABSENT_SIGHTINGS="1").assert_only_flipped({})
    stage.cycle(ABSENT_SIGHTINGS="4", **SOON).assert_only_flipped({})
    stage.cycle(ABSENT_SIGHTINGS="3", **SOON).assert_only_flipped({workspace: "not_found"})


def flipped_at(stage: Stage, workspace: str, *words: str | None) -> int | None:
    """Make the control plane give these states for a workspace's instance, one in each cycle (None: it fails).

    Return after how many of them the workspace was flipped, or None.
    """
    for number, word in enumerate(words, start=1):
        stage.control_plane.script.clear()
        stage.control_plane.script.reply(state_answer(word) if word else Answer(500), workspace_id=workspace)
        if stage.cycle(**stage.settings("control_plane"), **SOON).flipped:
            return number
    return None


NOT_FOUND = "not_found"


@pytest.mark.parametrize("found", ["running", "pending", "stopping", "shutting-down"])
def test_one_sighting_of_life_resets_the_count(stage: Stage, found: str) -> None:
    stage.add("running")
    workspace = stage.add("running")
    assert flipped_at(stage, workspace, NOT_FOUND, NOT_FOUND, found) is None
    assert sightings(stage) == {}
    assert flipped_at(stage, workspace, NOT_FOUND, NOT_FOUND, NOT_FOUND) == SIGHTINGS


def test_a_probe_without_an_answer_neither_counts_nor_resets_the_count(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add("running")
    assert flipped_at(stage, workspace, NOT_FOUND, None, NOT_FOUND, None, None, NOT_FOUND) == 6


def test_another_instance_that_is_not_found_either_begins_at_one(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    for _ in range(2):
        stage.cycle(**SOON).assert_only_flipped({})
    stage.fleet.update(workspace, instance_id=stage.instances(1, None)[0])
    stage.cycle(**SOON).assert_only_flipped({})
    assert sightings(stage) == {workspace: 1}
    stage.cycle(**SOON).assert_only_flipped({})
    stage.cycle(**SOON).assert_only_flipped({workspace: NOT_FOUND})


def test_absences_more_than_an_hour_apart_are_not_added_up(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    for _ in range(4):
        stage.cycle().assert_only_flipped({})
        assert sightings(stage) == {workspace: 1}
        stage.fleet.age_everything(70 * A_MINUTE_S)


def test_sightings_older_than_an_hour_do_not_count(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    for _ in range(2):
        stage.cycle().assert_only_flipped({})
        stage.fleet.age_everything(A_MINUTE_S)
    assert sightings(stage) == {workspace: 2}
    stage.fleet.age_everything(70 * A_MINUTE_S)
    stage.cycle().assert_only_flipped({})
    assert sightings(stage) == {workspace: 1}


def test_when_nothing_at_all_is_found_no_absence_ever_counts(stage: Stage) -> None:
    stage.add_all(2, None)
    stage.fleet.add("no id")
    stage.add("running", status="paused")
    for _ in range(4):
        outcome = stage.cycle(**AT_ONCE)
        outcome.assert_only_flipped({})
        assert (outcome.report["absent"], sightings(stage)) == (2, {})
        for line in outcome.lines("instance absent"):
            assert "account, Region or credentials" in line["reason"]


def test_a_cycle_narrowed_to_the_one_that_is_not_found_proves_nothing(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    stage.cycle(only(workspace), **AT_ONCE).assert_only_flipped({})
    stage.cycle(**AT_ONCE).assert_only_flipped({workspace: NOT_FOUND})


@pytest.mark.parametrize("state", ["stopped", "pending"])
def test_another_instance_that_is_found_vouches_for_the_account_even_if_it_does_not_run(
    stage: Stage, state: str
) -> None:
    stage.add(state, heartbeat_age_s=0.0)
    workspace = stage.add(None)
    stage.cycle(**AT_ONCE).assert_only_flipped({workspace: NOT_FOUND})


def test_a_dry_run_counts_no_sighting_and_says_whom_the_next_cycle_would_flip(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add(None)
    for _ in range(3):
        assert stage.cycle(DRY_RUN, **SOON).report["flips"] == []
    assert sightings(stage) == {}
    for _ in range(2):
        stage.cycle(**SOON)
    for _ in range(2):
        rehearsal = stage.cycle(DRY_RUN, **SOON)
        rehearsal.assert_only_flipped({})
        assert [flip["workspace_id"] for flip in rehearsal.report["flips"]] == [workspace]
    assert sightings(stage) == {workspace: 2}


@pytest.mark.parametrize("second", ["running", "pending", None])
def test_an_instance_that_turns_up_at_the_last_moment_saves_its_workspace(stage: Stage, second: str | None) -> None:
    stage.add("running")
    workspace = stage.add(None)
    stage.control_plane.script.reply(state_answer(second) if second else Answer(500), nth=2, workspace_id=workspace)
    outcome = stage.cycle(**stage.settings("control_plane"), **AT_ONCE)
    outcome.assert_only_flipped({})
    assert outcome.reasons == {workspace: "not_confirmed"}


@pytest.mark.parametrize("second", ["stopped", "terminated"])
def test_an_instance_that_turns_up_dead_does_not_save_its_workspace(stage: Stage, second: str) -> None:
    stage.add("running")
    workspace = stage.add(None)
    stage.control_plane.script.reply(state_answer(second), nth=2, workspace_id=workspace)
    stage.cycle(**stage.settings("control_plane"), **AT_ONCE).assert_only_flipped({workspace: second})


# --- too many look dead ---

UNKNOWN = "unknown"
NO_ID = "no id"  # which EC2 cannot be asked for


def populated(stage: Stage, **counts: int) -> list[str]:
    """Add that many workspaces in each state; return the dead ones, the absent ones among them."""
    dead = []
    for state, count in counts.items():
        if state == UNKNOWN:
            stage.fleet.add_all([NO_ID] * count)
            stage.control_plane.script.reply(Answer(500), instance_id=NO_ID)
        else:
            added = stage.add_all(count, None if state == "absent" else state)
            dead += added if state in ("stopped", "absent") else []
    return dead


def assert_open(outcome: Outcome, stopped: list[str], *, dead: int, counted: int) -> None:
    outcome.assert_only_flipped({})
    assert outcome.report["breaker_open"] is True
    assert outcome.reasons == dict.fromkeys(stopped, "breaker_open")
    assert outcome.skips == {"breaker_open": len(stopped)}
    (line,) = outcome.lines("breaker open")
    assert (line["level"], line["dead"], line["counted"]) == ("ERROR", dead, counted)


def assert_closed(outcome: Outcome, flipped: Mapping[str, str]) -> None:
    outcome.assert_only_flipped(dict(flipped))
    assert outcome.report["breaker_open"] is False
    assert outcome.lines("breaker open") == []


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        pytest.param({"running": 2, "stopped": 3}, {}, id="three of five"),
        pytest.param({"running": 2, "stopped": 3, UNKNOWN: 10}, {}, id="no answer is no sign of life"),
        pytest.param({"running": 2, "stopped": 2, "absent": 1}, AT_ONCE, id="the absent count"),
        pytest.param({"running": 7, "stopped": 3}, {"BREAKER_MAX_DEAD_FRACTION": "0.2"}, id="a smaller fraction"),
        pytest.param(
            {"running": 9, "stopped": 1}, {"BREAKER_MAX_DEAD_FRACTION": "0", "BREAKER_MIN_DEAD": "1"}, id="none"
        ),
    ],
)
def test_when_too_many_look_dead_nobody_is_flipped_and_the_alarm_is_raised(
    stage: Stage, probe: str, counts: dict[str, int], settings: dict[str, str]
) -> None:
    dead = populated(stage, **counts)
    outcome = stage.cycle(SCHEDULED, **stage.settings(probe), **settings)
    assert_open(outcome, dead, dead=len(dead), counted=sum(counts.values()) - counts.get(UNKNOWN, 0))
    (metrics,) = outcome.metrics()
    assert (metrics["BreakerOpen"], metrics["Flipped"], metrics["SkippedFlips"]) == ([1], [0], [len(dead)])


@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        pytest.param({"running": 3, "stopped": 3}, {}, id="exactly half"),
        pytest.param({"pending": 3, "stopped": 3}, {}, id="whatever is not dead is alive"),
        pytest.param({"stopped": 2}, {}, id="fewer than three"),
        pytest.param({"running": 1, "stopped": 5}, {"BREAKER_MIN_DEAD": "6"}, id="fewer than set"),
        pytest.param({"stopped": 5}, {"BREAKER_MAX_DEAD_FRACTION": "1"}, id="all of them, if they may"),
    ],
)
def test_as_many_as_the_policy_allows_are_flipped(
    stage: Stage, counts: dict[str, int], settings: dict[str, str]
) -> None:
    dead = populated(stage, **counts)
    assert_closed(stage.cycle(**settings), dict.fromkeys(dead, "stopped"))


def test_an_absence_that_is_not_believed_yet_counts_all_the_same(stage: Stage) -> None:
    populated(stage, running=2, absent=2)
    dead = stage.add("stopped")
    assert_open(stage.cycle(), [dead], dead=3, counted=5)


def test_an_open_breaker_says_whom_it_stops_after_a_second_probe_and_closes_by_itself(stage: Stage) -> None:
    dead = populated(stage, running=2, stopped=3)
    outcome = stage.cycle()
    assert_open(outcome, dead, dead=3, counted=5)
    assert {flip["workspace_id"]: flip["blocked"] for flip in outcome.report["flips"]} == dict.fromkeys(dead, True)
    assert sorted(call.action for call in stage.ec2.calls) == [
        "DescribeInstanceStatus",
        *["DescribeInstances"] * 2,
    ]
    revived = dead.pop()
    stage.ec2.set_state(stage.instance_of(revived), "running")
    assert_closed(stage.cycle(), dict.fromkeys(dead, "stopped"))


def test_the_override_lifts_the_breaker_for_one_cycle(stage: Stage) -> None:
    dead = populated(stage, running=2, stopped=3)
    assert_closed(stage.cycle(OVERRIDE), dict.fromkeys(dead, "stopped"))
    another = stage.add("stopped")
    assert_open(stage.cycle(), [another], dead=4, counted=6)


@pytest.mark.parametrize("event", [{}, {"mode": "explain"}], ids=["dry run", "explain"])
def test_what_the_next_cycle_forgets_opens_no_breaker_of_a_dry_run_either(stage: Stage, event: dict[str, Any]) -> None:
    """Three were seen dead, and are paused now. The applied cycle flipped the fourth; a dry run called it too many."""
    moved_on, dead = stage.add_all(3, "terminated"), stage.add("terminated")
    stage.add_all(2, "running")
    assert stage.cycle().report["breaker_open"]
    for one in moved_on:
        stage.fleet.update(one, status="paused")
    rehearsed = stage.cycle(event | ({"workspace_id": dead} if event else {})).report
    said = rehearsed["would"]["action"] if event else [one["workspace_id"] for one in rehearsed["flips"]]
    assert said == ("flip" if event else [dead])
    stage.cycle().assert_only_flipped({dead: "terminated"})


def test_a_dry_run_reports_an_open_breaker_and_with_the_override_whom_it_stops(stage: Stage) -> None:
    dead = populated(stage, running=2, stopped=3)
    rehearsal = stage.cycle(DRY_RUN)
    assert_open(rehearsal, dead, dead=3, counted=5)
    assert rehearsal.report["flips"] == []
    overridden = stage.cycle(DRY_RUN | {"override_breaker": True})
    assert_closed(overridden, {})
    assert {flip["workspace_id"] for flip in overridden.report["flips"]} == set(dead)


# --- not at once, but one after the other ---


def wave_after(stage: Stage, seconds: float, **settings: str) -> tuple[Outcome, list[str]]:
    """Let four of ten die, and later two more; return what the next cycle does, and the ids of these two."""
    populated(stage, running=6)
    first = populated(stage, stopped=4)
    assert_closed(stage.cycle(**settings), dict.fromkeys(first, "stopped"))
    stage.platform_is_at_work()
    stage.fleet.age_everything(seconds)
    second = [one for one, status in stage.fleet.statuses().items() if status == "online"][:2]
    for one in second:
        stage.ec2.set_state(stage.instance_of(one), "stopped")
    return stage.cycle(**settings), second


def test_what_was_flipped_in_the_last_ten_minutes_counts_as_dead(stage: Stage) -> None:
    outcome, second = wave_after(stage, 590)
    assert_open(outcome, second, dead=6, counted=10)


@pytest.mark.parametrize(
    ("after_s", "settings"),
    [
        pytest.param(610.0, {}, id="ten minutes later"),
        pytest.param(0.0, {"BREAKER_WINDOW_SECONDS": "0"}, id="without a window"),
        pytest.param(70.0, {"BREAKER_WINDOW_SECONDS": "60"}, id="after a shorter window"),
    ],
)
def test_older_flips_do_not_count_as_dead(stage: Stage, after_s: float, settings: dict[str, str]) -> None:
    outcome, second = wave_after(stage, after_s, **settings)
    assert_closed(outcome, dict.fromkeys(second, "stopped"))


def test_a_workspace_that_is_online_again_still_counts_as_flipped(stage: Stage) -> None:
    populated(stage, running=2)
    restarted = populated(stage, stopped=2)
    assert_closed(stage.cycle(), dict.fromkeys(restarted, "stopped"))
    for one in restarted:
        stage.fleet.update(one, status="online", instance_id=stage.instances(1, "running")[0])
    another = stage.add("stopped")
    assert_open(stage.cycle(), [another], dead=3, counted=5)


def test_cycles_for_one_workspace_each_do_not_bypass_the_breaker(stage: Stage) -> None:
    first, second, third = stage.add_all(3, "stopped")
    stage.add("running")
    for one in (first, second):
        assert_closed(stage.cycle(only(one)), {one: "stopped"})
    assert_open(stage.cycle(only(third)), [third], dead=3, counted=4)
    assert_closed(stage.cycle(only(third) | OVERRIDE), {third: "stopped"})
