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


def says(story: Story, workspace: str, state: str) -> None:
    """Let the control plane say from now on that the instance is in that state."""
    story.stage.control_plane.script.clear()
    story.stage.control_plane.script.reply(state_answer(state), workspace_id=workspace)


def stopped(story: Story, *, minutes: int) -> str:
    """Return a workspace whose instance was stopped so many minutes ago: it is flipped, and its restart owed."""
    one = story.workspace()
    says(story, one, "stopped")
    story.alive.discard(one)
    story.stage.fleet.heartbeat(one, age_s=70.0)
    story.minutes(minutes)
    return one


def flipped_for_its_absence(story: Story) -> str:
    one = story.workspace(alive=False)
    says(story, one, "not_found")
    assert [out.report["flipped"] for out in story.minutes(3)] == [0, 0, 1]
    return one


def assert_that_an_absence_begins_anew(story: Story, one: str) -> None:
    """It counts from its first sighting, so two cycles in which it is seen restart nothing."""
    says(story, one, "not_found")
    assert calls(story.minutes(2)) == [[], []]


class TestAbsenceAfterLife:
    """The machine runs, sends no heartbeats yet, and EC2 forgets it for a moment."""

    def test_of_a_watched_machine_begins_anew(self, asking: Story) -> None:
        story, one = asking, stopped(asking, minutes=2)
        says(story, one, "running")
        story.minutes(20)
        assert story.restarts(one) == ["cancelled"]
        says(story, one, "not_found")
        story.minutes(2)
        says(story, one, "running")
        story.minutes(10)
        assert_that_an_absence_begins_anew(story, one)

    def test_that_was_flipped_for_its_absence_begins_anew(self, asking: Story) -> None:
        story, one = asking, flipped_for_its_absence(asking)
        says(story, one, "running")
        story.minutes(25)
        assert story.restarts(one) == ["cancelled"]
        assert_that_an_absence_begins_anew(story, one)

    def test_right_after_the_sight_of_life_begins_anew(self, asking: Story) -> None:
        story, one = asking, flipped_for_its_absence(asking)
        says(story, one, "running")
        while story.restarts(one) != ["cancelled"]:
            story.minute()
        says(story, one, "not_found")
        story.minute()
        says(story, one, "running")
        story.minutes(13)
        assert_that_an_absence_begins_anew(story, one)

    def test_that_was_absent_while_its_restart_was_owed_begins_anew(self, asking: Story) -> None:
        story, one = asking, stopped(asking, minutes=3)
        says(story, one, "not_found")
        story.minutes(2)
        says(story, one, "running")
        story.minutes(20)
        assert story.restarts(one) == ["cancelled"]
        assert_that_an_absence_begins_anew(story, one)

    def test_really_gone_is_still_restarted(self, asking: Story) -> None:
        story, one = asking, stopped(asking, minutes=2)
        says(story, one, "running")
        story.minutes(20)
        says(story, one, "not_found")
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
    says(story, one, "not_found")
    story.minute()
    says(story, one, "stopping")
    story.minute()
    story.becomes(one, status="offline")
    says(story, one, "stopped")
    outcomes = story.minutes(12)
    assert {out.report["adopted"] for out in outcomes} == {0}
    assert calls(outcomes) == [[]] * 12
