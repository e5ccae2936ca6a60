"""What an open breaker keeps back is still looked at, so that the breaker never holds itself open."""

import pytest

from sandbox.http_server import Answer
from tests.support.stage import Outcome, Stage
from tests.support.story import Story, calls


def open_breaker(story: Story) -> list[str]:
    """Lose most of a fleet in three waves, so that the breaker opens; return who is then kept back."""
    story.answers(Answer(500))
    first, second, third = story.workspaces(5), story.workspaces(2), story.workspace()
    story.workspaces(2)
    story.dies(*first)
    story.minutes(14)
    story.dies(*second)
    assert story.minute().report["flipped"] == 2
    story.minutes(4)
    story.dies(third)
    assert story.minute().report["breaker_open"]
    story.minutes(16)
    story.comes_back(third, on_new_instance=False)
    kept_back = [one["workspace_id"] for one in story.stage.fleet.restarts() if one["kept_back_at"] is not None]
    assert sorted(kept_back) == sorted([*first, *second])
    return kept_back


def runs_again(story: Story, workspaces: list[str]) -> None:
    for one in workspaces:
        story.stage.ec2.set_state(story.stage.instance_of(one), "running")


@pytest.mark.parametrize("platform", ["there", "not there"])
def test_machines_that_run_again_close_the_breaker(stage: Stage, platform: str) -> None:
    """They send no heartbeats yet, so that their rows stay offline."""
    story = Story(stage)
    kept_back = open_breaker(story)
    runs_again(story, kept_back)
    settings = {} if platform == "there" else {"PLATFORM_BASE_URL": None}
    outcomes = story.minutes(2, **settings)
    assert [one.report["breaker_open"] for one in outcomes] == [True, False]
    assert outcomes[0].report["restarts"]["cancelled"] == len(kept_back)
    assert calls(outcomes) == [[], []]
    assert {one["outcome"] for one in stage.fleet.restarts()} == {"cancelled"}
    assert {one["watch_ended_at"] for one in stage.fleet.restarts() if one["watched_since"] is not None} == {None}


def test_a_platform_that_wants_to_be_left_alone_does_not_hold_the_breaker_open(stage: Stage) -> None:
    story = Story(stage)
    kept_back = open_breaker(story)
    stage.database.query("INSERT INTO reconciler.restart_stops (ends_at) VALUES (now() + interval '1 day')")
    runs_again(story, kept_back)
    assert [one.report["breaker_open"] for one in story.minutes(2)] == [True, False]


def test_the_dead_stay_kept_back_and_are_never_asked_for(stage: Stage) -> None:
    story = Story(stage)
    kept_back = open_breaker(story)
    runs_again(story, kept_back[:1])
    before = {one["workspace_id"]: one["due_at"] for one in stage.fleet.restarts()}
    outcome = stage.glance()
    assert (outcome.report["breaker_open"], outcome.report["restarts"]["cancelled"]) == (True, 1)
    assert outcome.calls == []
    left = {one["workspace_id"]: one["due_at"] for one in stage.fleet.restarts() if one["outcome"] is None}
    assert left == {one: before[one] for one in kept_back[1:]}


def test_what_waits_for_something_else_is_not_kept_back(stage: Stage) -> None:
    """A back-off, a stop of the platform's, and the grace after a hold."""
    story = Story(stage)
    backing_off, stopped, graced, due = story.workspaces(4)
    story.workspaces(1)
    story.dies(backing_off, stopped, graced, due)

    def change(one: str, assignment: str) -> None:
        stage.database.query(
            f"UPDATE reconciler.restarts SET {assignment} WHERE workspace_id = CAST(:id AS uuid)",  # noqa: S608 - from below
            id=one,
        )

    def kept_back() -> set[str]:
        return {one["workspace_id"] for one in stage.fleet.restarts() if one["kept_back_at"] is not None}

    story.minute({"mode": "apply", "override_breaker": True})
    change(backing_off, "backoff_until = now() + interval '1 hour'")
    stage.database.query("UPDATE reconciler.restarts SET released = false, due_at = now()")
    stage.database.query(
        "INSERT INTO reconciler.holds (workspace_id, reason, ends_at) VALUES (CAST(:id AS uuid), 'why', now())",
        id=graced,
    )
    stage.database.query("INSERT INTO reconciler.restart_stops (ends_at) VALUES (now() + interval '1 minute')")

    def cycle() -> Outcome:
        return stage.glance(RESTART_GRACE_SECONDS=None)

    assert cycle().report["breaker_open"]
    assert kept_back() == set()
    stage.database.query("DELETE FROM reconciler.restart_stops")
    cycle()
    assert kept_back() == {stopped, due}
