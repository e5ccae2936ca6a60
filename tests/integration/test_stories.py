"""What becomes of workspaces, told minute by minute at default settings, on real parts."""

import itertools

import pytest

from sandbox.http_server import Answer, Reset
from tests.support.stage import Stage
from tests.support.story import Story, calls, restarts_of

AN_HOUR = 60
GRACE = 3  # minutes


@pytest.fixture
def story(stage: Stage) -> Story:
    """A fleet of ten, nine of which stay alive, and a platform that accepts restarts and does no more."""
    story = Story(stage)
    story.workspaces(9)
    return story


def test_a_terminated_instance_is_flipped_at_once_and_restarted_after_the_grace(story: Story) -> None:
    one = story.workspace()
    story.dies(one)
    story.answers()
    first = story.minute()
    assert (first.report["flipped"], story.status(one)) == (1, "offline")
    assert calls(story.minutes(GRACE)) == [[], [], [one]]
    story.becomes(one, status="provisioning")
    story.minutes(2)
    story.comes_back(one)
    after = story.minutes(20)
    assert calls(after) == [[]] * 20
    assert story.restarts(one) == ["accepted"]
    assert story.stage.fleet.restarts(one)[0]["watch_ended_at"] is not None
    assert {one.report["restarts"]["unrecovered"] for one in after} == {0}
    assert {one.report["oldest_doubt_seconds"] for one in after} == {0}


def test_a_machine_that_is_stopped_to_be_resized_is_not_destroyed(story: Story) -> None:
    one = story.workspace()
    story.dies(one, state="stopped")
    assert story.minute().report["flipped"] == 1
    story.minute()
    story.comes_back(one, on_new_instance=False)
    assert calls(story.minutes(20)) == [[]] * 20
    assert (story.status(one), story.restarts(one)) == ("online", ["cancelled"])


def test_a_machine_that_runs_again_before_its_heartbeats_is_not_destroyed(story: Story) -> None:
    one = story.workspace()
    story.dies(one, state="stopped")
    story.minutes(2)
    story.stage.ec2.set_state(story.stage.instance_of(one), "running")
    assert calls(story.minutes(10)) == [[]] * 10
    assert story.restarts(one) == ["cancelled"]


def test_the_platforms_own_restart_is_left_alone(story: Story) -> None:
    """It stops the machine, leaves the row online for three minutes, then provisions."""
    one = story.workspace()
    story.dies(one, state="shutting-down")
    story.minute()
    story.stage.ec2.set_state(story.stage.instance_of(one), "terminated")
    assert story.minute().report["flipped"] == 1
    story.minute()
    story.becomes(one, status="provisioning")
    story.minutes(2)
    story.comes_back(one)
    after = story.minutes(10)
    assert calls(after) == [[]] * 10
    assert (story.status(one), story.restarts(one)) == ("online", ["cancelled"])


class TestALostZone:
    """Fifteen of twenty-four machines are gone, and the platform's monitor is faster than anybody."""

    @pytest.fixture
    def story(self, stage: Stage) -> Story:
        story = Story(stage, monitor=True)
        story.answers()
        return story

    @pytest.fixture
    def lost(self, story: Story) -> list[str]:
        story.workspaces(9)
        lost = story.workspaces(15)
        story.dies(*lost)
        return lost

    def test_the_breaker_stays_open_over_the_dead_for_as_long_as_they_are(self, story: Story, lost: list[str]) -> None:
        outcomes = story.minutes(AN_HOUR)
        assert {one.report["breaker_open"] for one in outcomes} == {True}
        assert {one.report["flipped"] + one.report["adopted"] for one in outcomes} == {0}
        assert calls(outcomes) == [[]] * AN_HOUR
        assert {story.status(one) for one in lost} == {"offline"}
        assert outcomes[-1].report["offline_unowed"] == 15
        assert outcomes[-1].report["oldest_doubt_seconds"] >= 58 * 60

    def test_what_the_breaker_blocks_stands_in_the_report(self, story: Story, lost: list[str]) -> None:
        report = story.minute().report
        assert {one["workspace_id"] for one in report["flips"]} == set(lost)
        assert all(one["blocked"] and "adopted" not in one for one in report["flips"])
        story.minutes(5)
        report = story.minute().report
        assert all(one["blocked"] and one["adopted"] for one in report["flips"])
        assert len(report["flips"]) == 15

    def test_an_override_after_ten_minutes_restarts_them_all(self, story: Story, lost: list[str]) -> None:
        story.minutes(10)
        override = story.minute({"mode": "apply", "override_breaker": True})
        assert (override.report["adopted"], override.report["flipped"]) == (15, 0)
        after = story.minutes(8)
        assert {one.report["breaker_open"] for one in after} == {True}
        asked = [one for cycle in [override, *after] for one in calls([cycle])[0]]
        assert sorted(asked) == sorted(lost)

    def test_instances_that_ec2_forgets_are_still_restarted_after_an_override(
        self, story: Story, lost: list[str]
    ) -> None:
        story.minutes(5)
        for one in lost:
            story.stage.ec2.forget(story.stage.instance_of(one))
        story.minutes(5)
        override = story.minute({"mode": "apply", "override_breaker": True})
        assert override.report["adopted"] == 15
        asked = [one for cycle in [override, *story.minutes(10)] for one in calls([cycle])[0]]
        assert sorted(asked) == sorted(lost)

    def test_a_hundred_restarts_a_minute_at_most(self, stage: Stage) -> None:
        story = Story(stage)
        story.answers()
        lost = story.workspaces(12)
        story.workspaces(10)
        story.dies(*lost)
        story.minute({"mode": "apply", "override_breaker": True}, RESTARTS_PER_CYCLE="5")
        per_minute = [len(one.calls) for one in story.minutes(8, RESTARTS_PER_CYCLE="5")]
        assert per_minute == [0, 0, 5, 5, 2, 0, 0, 0]


class TestWhatThePlatformAnswers:
    def test_one_that_never_answers_in_time_is_asked_again_after_five_minutes(self, story: Story) -> None:
        one = story.workspace()
        story.dies(one)
        story.answers(Reset())
        story.minute()
        outcomes = story.minutes(25)
        assert [minute for minute, asked in enumerate(calls(outcomes), 1) if asked] == [3, 8, 13, 18, 23]
        assert restarts_of(outcomes[2]) == {"uncertain": 1, "pending": 1}
        assert [out.report["restarts"]["unrecovered"] for out in outcomes[16:19]] == [0, 1, 1]

    def test_an_uncertain_restart_is_watched_to_the_end(self, story: Story) -> None:
        """The platform answers too late, provisions, and that fails."""
        one = story.workspace()
        story.dies(one)
        story.answers(Answer(504))
        story.minutes(1 + GRACE)
        story.becomes(one, status="provisioning")
        outcomes = story.minutes(20)
        assert calls(outcomes) == [[]] * 20
        assert outcomes[-1].report["restarts"]["unrecovered"] == 1
        story.becomes(one, status="failed")
        assert story.minute().report["restarts"]["unrecovered"] == 1
        story.comes_back(one)
        story.becomes(one, status="online")
        assert story.minutes(8)[-1].report["restarts"]["unrecovered"] == 0

    def test_a_paused_ancestor_blocks_for_weeks_and_is_nobodys_failure(self, story: Story) -> None:
        one = story.workspace()
        story.dies(one)
        story.answers(Answer(409))
        outcomes = story.minutes(AN_HOUR)
        asked = [minute for minute, some in enumerate(calls(outcomes)) if some]
        assert asked[:5] == [3, 4, 6, 10, 18]
        assert max(later - earlier for earlier, later in itertools.pairwise(asked)) <= 15
        assert restarts_of(outcomes[-1]) == {"blocked": 1, "pending": 1}
        story.answers()
        assert calls(story.minutes(16)).count([one]) == 1

    def test_one_that_asks_to_be_left_alone_is_left_alone(self, story: Story) -> None:
        one, other = story.workspace(), story.workspace()
        story.dies(one, other)
        story.answers(Answer(503, headers={"Retry-After": "600"}))
        story.minutes(GRACE)
        assert len(story.minute().calls) <= 2
        story.answers()
        outcomes = story.minutes(12)
        assert [bool(asked) for asked in calls(outcomes)] == [False] * 9 + [True, False, False]

    @pytest.mark.parametrize("instance", ["same", "none", "new"])
    def test_provisioning_that_fails_is_never_silent(self, story: Story, instance: str) -> None:
        one = story.workspace()
        story.dies(one)
        story.answers()
        story.minutes(1 + GRACE)
        story.becomes(one, status="provisioning")
        story.minutes(2)
        if instance == "none":
            story.becomes(one, instance_id=None)
        elif instance == "new":
            story.becomes(one, instance_id=story.stage.instances(1, "terminated")[0])
        story.becomes(one, status="offline")
        outcomes = story.minutes(20)
        assert outcomes[-1].report["restarts"]["unrecovered"] == 1
        asked = [minute for minute, some in enumerate(calls(outcomes), 3) if some]
        assert asked == ([15] if instance == "same" else [])


class TestDoubts:
    def test_a_control_plane_that_answers_nonsense_is_one_doubt(self, stage: Stage) -> None:
        story = Story(stage, settings=stage.settings("control_plane"))
        stage.fleet.add_all(stage.instances(1001, "running"))
        stage.control_plane.script.reply(Answer(body=b"<html>"))
        outcomes = story.minutes(5)
        assert stage.fleet.doubts() == []
        assert outcomes[-1].report["oldest_doubt_seconds"] in range(239, 300)  # four minutes, and what the test takes
        assert len(outcomes[-1].lines("instance unknown")) <= 300
        stage.control_plane.script.clear()
        back = story.minute()
        assert (back.report["running"], back.report["oldest_doubt_seconds"]) == (1001, 0)

    def test_ec2_that_does_not_know_one_instance_is_believed_at_the_third_time(self, story: Story) -> None:
        one = story.workspace(None, alive=False)
        outcomes = story.minutes(5)
        assert [out.report["flipped"] for out in outcomes] == [0, 0, 1, 0, 0]
        assert calls(outcomes) == [[]] * 5
        assert calls(story.minutes(1)) == [[one]]

    def test_ec2_that_knows_nothing_flips_nothing_and_says_so(self, stage: Stage) -> None:
        story = Story(stage)
        for _ in range(5):
            story.workspace(None, alive=False)
        outcomes = story.minutes(40)
        assert {one.report["flipped"] for one in outcomes} == {0}
        assert outcomes[-1].report["oldest_doubt_seconds"] >= 38 * 60

    def test_one_stuck_in_shutting_down_for_two_hours_is_a_doubt(self, story: Story) -> None:
        one = story.workspace()
        story.dies(one, state="shutting-down")
        outcomes = story.minutes(2 * AN_HOUR)
        assert {out.report["flipped"] for out in outcomes} == {0}
        assert outcomes[-1].report["oldest_doubt_seconds"] >= 118 * 60

    def test_a_heartbeat_from_the_year_9999_vetoes_for_ever_and_is_a_doubt(self, story: Story) -> None:
        one = story.workspace()
        story.dies(one)
        story.becomes(one, last_heartbeat_at="9999-01-01 00:00:00+00")
        outcomes = story.minutes(35)
        assert {out.report["flipped"] for out in outcomes} == {0}
        assert outcomes[-1].report["oldest_doubt_seconds"] >= 33 * 60
        assert [doubt["reason"] for doubt in story.stage.fleet.doubts(one)] == ["fresh_heartbeat"]

    def test_rows_without_an_instance_are_counted(self, story: Story) -> None:
        story.stage.fleet.add(None)
        story.stage.fleet.add("", runtime="external")
        assert story.minute().report["unrecorded"] == 1


class TestACrashLoop:
    def test_of_a_day_restarts_at_growing_intervals(self, story: Story) -> None:
        """The workspace dies as soon as it is back. Once the intervals are long, time passes in longer steps."""
        one = story.workspace()
        story.answers()
        asked, minute = [], 0
        while minute < 24 * AN_HOUR:
            step_minutes = 5 if minute < 2 * AN_HOUR else 20
            minute += step_minutes
            if story.status(one) == "online":
                story.dies(one)
            for _ in story.minute(lasts_s=60.0 * step_minutes).calls:
                asked.append(minute)
                story.comes_back(one)
                story.becomes(one, status="online")
        waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
        backoffs = [0, 0, 5, 10, 20, 40, 80, 160, 240, 240, 240]
        for wait, backoff in zip(waits, backoffs, strict=False):
            assert backoff < wait <= backoff + 2 * (5 if backoff < 40 else 20), waits
        assert len(waits) >= 9

    def test_is_over_once_the_workspace_was_up_for_an_hour(self, story: Story) -> None:
        one = story.workspace()
        story.answers()
        for _ in range(4):
            story.dies(one)
            while not story.minute().calls:
                pass
            story.comes_back(one)
            story.becomes(one, status="online")
        story.minutes(70)
        story.dies(one)
        assert story.minute().report["restarts"]["backing_off"] == 0

    def test_five_deaths_in_weeks_are_none_though_the_workspace_was_degraded_in_between(self, story: Story) -> None:
        one = story.workspace()
        story.answers()
        for _ in range(5):
            story.dies(one)
            story.minutes(GRACE)
            assert len(story.minute().calls) == 1
            story.comes_back(one)
            story.becomes(one, status="degraded")
            story.minutes(7)
            story.stage.fleet.age_everything(5 * 86_400.0, rows=True)


def test_a_function_that_was_down_for_an_hour_goes_on_where_it_was(story: Story) -> None:
    one, other = story.workspace(), story.workspace()
    story.dies(one)
    story.answers()
    story.minute()
    story.dies(other)
    story.stage.fleet.age_everything(3600.0, rows=True)
    for living in story.alive:
        story.stage.fleet.heartbeat(living)
    first = story.minute()
    assert (first.report["flipped"], calls([first])) == (1, [[one]])
    assert calls(story.minutes(GRACE)) == [[], [], [other]]
