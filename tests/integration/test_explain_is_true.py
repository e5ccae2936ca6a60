"""What `explain` says that the next cycle would do is what an applied cycle then does, for whatever may be the case."""

import random
from typing import Any

import pytest

from sandbox.http_server import Answer
from tests.support.stage import Outcome, Stage
from tests.support.story import DEFAULTS, MINUTE_S, Story

WORKSPACES = 16
MINUTES = 4
STATES = (*["running"] * 6, *["terminated", "stopped"] * 3, "stopping", "pending", None)
STATUSES = (*["online"] * 12, "degraded", "offline", "paused", "provisioning", "removed")
ANSWERS = (Answer(202), Answer(202), Answer(400), Answer(409), Answer(504))
AGES_S = (5.0, 70.0, 300.0)
SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"BREAKER_MAX_DEAD_FRACTION": "1"},
    {"BREAKER_MAX_DEAD_FRACTION": "1", "RESTART_GRACE_SECONDS": "0", "ABSENT_MIN_AGE_SECONDS": "0"},
    {"BREAKER_MIN_DEAD": "1", "BREAKER_MAX_DEAD_FRACTION": "0.3"},
    {"BREAKER_MAX_DEAD_FRACTION": "1", "ADOPT_OFFLINE": "false", "HEARTBEAT_FRESH_SECONDS": "0"},
)

# By seed, what is said at least once: so much has to happen.
SAID = {
    3: {"skip", "wait", "nothing"},
    5: {"adopt", "flip", "ask_for_restart"},
    7: {"flip", "cancel_restart", "watch"},
    10: {"flip", "skip", "watch"},
}


class Happenings:
    """Whatever happens to a workspace between two cycles, at random."""

    def __init__(self, story: Story, chance: random.Random) -> None:
        self._story = story
        self._stage = story.stage
        self._chance = chance

    def happen(self, workspace: str) -> None:
        """Let one of them happen, or nothing."""
        happening: Any = self._chance.choice(
            [
                *[self._nothing] * 4,
                *[self._state] * 4,
                *[self._offline] * 2,
                *(self._status, self._heartbeat, self._hold, self._instance),
            ]
        )
        happening(workspace)

    def _nothing(self, workspace: str) -> None:
        pass

    def _state(self, workspace: str) -> None:
        instance = self._stage.instance_of(workspace)
        state = self._chance.choice(STATES)
        if self._stage.ec2.state_of(instance) is None:
            return  # EC2 has forgotten it for good
        if state is None:
            self._stage.ec2.forget(instance)
        else:
            self._stage.ec2.set_state(instance, state)

    def _status(self, workspace: str) -> None:
        self._stage.fleet.update(workspace, status=self._chance.choice(STATUSES))

    def _offline(self, workspace: str) -> None:
        """The platform's own monitor misses heartbeats."""
        self._stage.fleet.update(workspace, status="offline")
        self._stage.fleet.heartbeat(workspace, age_s=300.0)

    def _heartbeat(self, workspace: str) -> None:
        self._stage.fleet.heartbeat(workspace, age_s=self._chance.choice(AGES_S))

    def _hold(self, workspace: str) -> None:
        hold = {"workspace_ids": [workspace], "reason": "somebody is at it", "seconds": 86_400}
        self._stage.glance({"mode": "apply", "hold": hold})

    def _instance(self, workspace: str) -> None:
        (instance,) = self._stage.instances(1, self._chance.choice(STATES))
        self._stage.fleet.update(workspace, instance_id=instance)


def done(outcome: Outcome, open_before: set[str]) -> dict[str, str]:
    """Return what a cycle did with each workspace, in explain's words, if it did anything."""
    flips = [one for one in outcome.report["flips"] if "blocked" not in one]
    adopted = {one["workspace_id"]: "adopt" for one in flips if "adopted" in one}
    ended = {
        one["workspace_id"]: "cancel_restart"
        for one in outcome.after.restarts
        if one["outcome"] == "cancelled" and str(one["id"]) in open_before
    }
    return {
        **ended,
        **dict.fromkeys(outcome.reasons, "skip"),
        **{call.workspace_id: "ask_for_restart" for call in outcome.calls},
        **dict.fromkeys(outcome.flipped, "flip"),
        **adopted,
    }


@pytest.mark.parametrize("seed", SAID)
def test_what_explain_says_is_what_the_next_cycle_does(stage: Stage, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - for a test
    settings: dict[str, str | None] = {
        **DEFAULTS,
        **SETTINGS[seed % len(SETTINGS)],
        **stage.settings(["ec2", "control_plane"][seed % 2]),
    }
    story, happenings = Story(stage), Happenings(Story(stage), chance)
    workspaces = [
        stage.add(chance.choice(STATES), status=chance.choice(STATUSES), heartbeat_age_s=chance.choice(AGES_S))
        for _ in range(WORKSPACES)
    ]
    said: set[str] = set()
    for _ in range(MINUTES):
        story.answers(chance.choice(ANSWERS))
        story.minute(lasts_s=MINUTE_S, **settings)
        for one in workspaces:
            happenings.happen(one)
        stage.fleet.age_everything(chance.choice([1.0, 70.0, 200.0, 1000.0]))
        explained = {one: _explained(stage, one, settings) for one in workspaces}
        open_before = {str(one["id"]) for one in stage.fleet.restarts() if one["outcome"] is None}
        did = done(stage.cycle(**settings), open_before)
        wrong = {one: (would, did.get(one)) for one, would in explained.items() if not _agree(would, did.get(one))}
        assert wrong == {}
        said.update(would["action"] for would in explained.values())
    assert said >= SAID[seed]


def _explained(stage: Stage, workspace: str, settings: dict[str, str | None]) -> dict[str, Any]:
    report = stage.glance({"mode": "explain", "workspace_id": workspace}, **settings).report
    assert "notes" not in report
    would: dict[str, Any] = report["would"]
    return would


def _agree(would: dict[str, Any], did: str | None) -> bool:
    """Tell whether the cycle did what explain said: the very thing, or, where it said to do nothing, nothing."""
    if did == "cancel_restart" and "the row has moved on" in would["reason"]:
        return True
    return (would["action"] if would["action"] not in ("wait", "watch", "nothing") else None) == did
