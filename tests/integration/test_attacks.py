"""Stories that broke the product once: machines destroyed, restarts kept back."""

import pytest

from sandbox.control_plane import state_answer
from tests.support.stage import Stage
from tests.support.story import Story, calls

OVERRIDE = {"mode": "apply", "override_breaker": True}


@pytest.fixture
def asking(stage: Stage) -> Story:
    """Nine living workspaces, a platform that only accepts, and a control plane that says what a test has it say."""
    story = Story(stage, settings=stage.settings("control_plane"))
    story.workspaces(9)
    story.answers()
    return story


def becomes(story: Story, workspace: str, state: str) -> None:
    story.stage.control_plane.script.clear()
    story.stage.control_plane.script.reply(state_answer(state), workspace_id=workspace)


class TestAbsenceAfterLife:
    """The machine runs, sends no heartbeats yet, and EC2 forgets it for a moment."""

    def test_of_a_watched_machine_begins_anew(self, asking: Story) -> None:
        story, one = asking, asking.workspace()
        becomes(story, one, "stopped")
        story.alive.discard(one)
        story.stage.fleet.heartbeat(one, age_s=70.0)
        story.minutes(2)
        becomes(story, one, "running")
        story.minutes(20)
        assert story.restarts(one) == ["cancelled"]
        for _ in range(2):
            becomes(story, one, "not_found")
            story.minute()
        becomes(story, one, "running")
        story.minutes(10)
        becomes(story, one, "not_found")
        assert calls(story.minutes(2)) == [[], []]

    def test_that_was_flipped_for_its_absence_begins_anew(self, asking: Story) -> None:
        story, one = asking, asking.workspace(alive=False)
        becomes(story, one, "not_found")
        assert [out.report["flipped"] for out in story.minutes(3)] == [0, 0, 1]
        becomes(story, one, "running")
        story.minutes(25)
        assert story.restarts(one) == ["cancelled"]
        becomes(story, one, "not_found")
        assert calls(story.minutes(2)) == [[], []]

    def test_right_after_the_sight_of_life_begins_anew(self, asking: Story) -> None:
        story, one = asking, asking.workspace(alive=False)
        becomes(story, one, "not_found")
        assert [out.report["flipped"] for out in story.minutes(3)] == [0, 0, 1]
        becomes(story, one, "running")
        while story.restarts(one) != ["cancelled"]:
            story.minute()
        becomes(story, one, "not_found")
        story.minute()
        becomes(story, one, "running")
        story.minutes(13)
        becomes(story, one, "not_found")
        assert calls(story.minutes(2)) == [[], []]

    def test_that_was_absent_while_its_restart_was_owed_begins_anew(self, asking: Story) -> None:
        story, one = asking, asking.workspace()
        becomes(story, one, "stopped")
        story.alive.discard(one)
        story.stage.fleet.heartbeat(one, age_s=70.0)
        story.minutes(3)
        for _ in range(2):
            becomes(story, one, "not_found")
            story.minute()
        becomes(story, one, "running")
        story.minutes(20)
        assert story.restarts(one) == ["cancelled"]
        becomes(story, one, "not_found")
        assert calls(story.minutes(2)) == [[], []]

    def test_really_gone_is_still_restarted(self, asking: Story) -> None:
        story, one = asking, asking.workspace()
        becomes(story, one, "stopped")
        story.alive.discard(one)
        story.stage.fleet.heartbeat(one, age_s=70.0)
        story.minutes(2)
        becomes(story, one, "running")
        story.minutes(20)
        becomes(story, one, "not_found")
        assert calls(story.minutes(5)) == [[], [], [], [one], []]


def test_an_override_also_releases_the_restarts_that_are_owed_again(stage: Stage) -> None:
    """A zone is lost; the platform accepts and does nothing; a second zone follows."""
    story = Story(stage)
    story.answers()
    first, second = story.workspaces(4), story.workspaces(6)
    story.workspaces(2)
    story.dies(*first)
    story.minutes(4)
    assert [story.restarts(one) for one in first] == [["accepted"]] * 4
    story.dies(*second)
    assert {one.report["breaker_open"] for one in story.minutes(8)} == {True}
    assert story.minute(OVERRIDE).report["flipped"] == 6
    after = story.minutes(8)
    assert {one.report["breaker_open"] for one in after} == {True}
    assert {one for some in calls(after) for one in some} == {*first, *second}


def test_an_absence_that_was_refuted_is_no_death_that_was_seen(stage: Stage) -> None:
    """EC2 does not know the machine once. Later it is stopped to be resized, and the platform's monitor is faster."""
    story = Story(stage, monitor=True, settings=stage.settings("control_plane"))
    story.workspaces(9)
    story.answers()
    one = story.workspace()
    story.alive.discard(one)
    becomes(story, one, "not_found")
    story.minute()
    becomes(story, one, "stopping")
    story.minute()
    story.becomes(one, status="offline")
    becomes(story, one, "stopped")
    outcomes = story.minutes(12)
    assert {out.report["adopted"] for out in outcomes} == {0}
    assert calls(outcomes) == [[]] * 12
