"""Attacks on what EC2's state-change events are promised to be: harmless, and never lost for a bad neighbour."""

from tests.integration.test_state_changes import event, handle
from tests.support.events import APPLY
from tests.support.stage import Stage
from tests.support.story import Story, calls

# Longer than every other wait, so that a full cycle could take it for a time that a wrong clock has left behind.
SILENCE_MINUTES = 20


def test_full_cycles_do_not_shorten_the_silence_that_a_restart_waits_for(stage: Stage) -> None:
    settings = {"HEARTBEAT_FRESH_SECONDS": f"{SILENCE_MINUTES * 60}"}
    story = Story(stage, settings=settings)
    story.workspaces(3)
    story.answers()
    one = story.workspace("terminated", alive=False)
    assert handle(stage, event(stage, one), **settings).outcome.flipped == {one}
    outcomes = story.minutes(SILENCE_MINUTES + 1)
    assert [minute for minute, asked in enumerate(calls(outcomes), 1) if asked] == [SILENCE_MINUTES]


def test_a_full_cycle_that_comes_too_late_to_flip_leaves_no_doubt_behind(stage: Stage) -> None:
    """It has seen the instance dead, and an event's cycle is faster. So there is nothing left to doubt."""
    stage.add_all(8, "running")
    one = stage.add("terminated")
    settings = stage.settings("control_plane") | {"RESTART_GRACE_SECONDS": "3600"}

    def flip_meanwhile(_: object) -> None:
        with stage.invoke.in_process(event(stage, one), **settings) as process:
            assert process.wait(30)["flipped"] == 1

    stage.control_plane.script.before(flip_meanwhile, nth=1, workspace_id=one)
    assert stage.glance(APPLY, **settings).report["skipped"]["status_moved"] == 1
    stage.fleet.age_everything(60)
    outcome = stage.glance(APPLY, **settings)
    assert (stage.fleet.doubts(one), outcome.report["oldest_doubt_seconds"]) == ([], 0)


def test_of_two_rows_that_record_one_dead_instance_each_is_judged_by_its_own_heartbeat(stage: Stage) -> None:
    stage.add_all(5, "running")
    dead = stage.add("terminated", heartbeat_age_s=20.0)
    lives_elsewhere, on_hold = (stage.add("running", heartbeat_age_s=1.0) for _ in range(2))
    for one in (lives_elsewhere, on_hold):
        stage.fleet.update(one, instance_id=stage.instance_of(dead))
    stage.fleet.heartbeat(on_hold, age_s=300.0)
    stage.invoke({"mode": "apply", "hold": {"workspace_ids": [on_hold], "reason": "why", "seconds": 600}})
    handled = handle(stage, event(stage, dead, age_s=10.0))
    assert (handled.returned, handled.outcome.flipped) == ([], {dead})
    assert handled.outcome.reasons == {lives_elsewhere: "fresh_heartbeat", on_hold: "on_hold"}
