"""Attacks on what EC2's state-change events are promised to be: harmless, and never lost for a bad neighbour."""

from tests.integration.test_state_changes import event, handle
from tests.support.stage import Stage
from tests.support.story import Story, calls

# Longer than every other wait, so that a full cycle could take it for a time that a wrong clock has left behind.
SILENCE_MINUTES = 20


def test_full_cycles_do_not_shorten_the_silence_that_a_restart_waits_for(stage: Stage) -> None:
    settings: dict[str, str | None] = {"HEARTBEAT_FRESH_SECONDS": f"{SILENCE_MINUTES * 60}"}
    story = Story(stage, settings=settings)
    story.workspaces(3)
    story.answers()
    one = story.workspace("terminated", alive=False)
    assert handle(stage, event(stage, one), **settings).outcome.flipped == {one}
    outcomes = story.minutes(SILENCE_MINUTES + 1)
    assert [minute for minute, asked in enumerate(calls(outcomes), 1) if asked] == [SILENCE_MINUTES]
