"""A story, told minute by minute on real parts: what happens in the world, and what each cycle makes of it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.http_server import Answer
from tests.support.events import APPLY
from tests.support.stage import Outcome, Stage

MINUTE_S = 60.0
# The platform's own monitor takes a row offline so long after its last heartbeat.
MONITOR_S = 180.0
# In production the settings have their defaults.
DEFAULTS: dict[str, str | None] = {"RESTART_GRACE_SECONDS": None}

_HEARTBEATS = """
UPDATE workspaces SET last_heartbeat_at = now(), updated_at = now(),
    status = CASE WHEN status IN ('offline', 'provisioning') THEN 'online' ELSE status END
WHERE id IN (SELECT value::uuid FROM jsonb_array_elements_text(CAST(:ids AS jsonb)))
"""
_MONITOR = """
UPDATE workspaces SET status = 'offline', updated_at = now()
WHERE status NOT IN ('removed', 'paused', 'hibernating', 'hibernated', 'offline')
  AND last_heartbeat_at < now() - make_interval(secs => 180)
"""


class Story:
    """A stage on which a minute passes with each cycle, at default settings.

    Workspaces that are `alive` send heartbeats, which set an offline or provisioning row online, as the platform does.
    With `monitor`, the platform takes the silent ones offline. What the platform answers is up to the stage.
    """

    def __init__(self, stage: Stage, *, monitor: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.stage = stage
        self.monitor = monitor
        self.alive: set[str] = set()
        self._settings = {**DEFAULTS, **(settings or {})}

    def workspace(self, state: str | None = "running", *, alive: bool = True) -> str:
        """Add a workspace whose instance is in that state; one that is alive sends heartbeats."""
        one = self.stage.add(state, heartbeat_age_s=0.0 if alive else 300.0)
        if alive:
            self.alive.add(one)
        return one

    def workspaces(self, count: int) -> list[str]:
        """Add that many living ones."""
        return [self.workspace() for _ in range(count)]

    def dies(self, *workspaces: str, state: str = "terminated", heartbeat_age_s: float = 70.0) -> None:
        """Let instances die that sent their last heartbeat a while ago."""
        for one in workspaces:
            self.alive.discard(one)
            self.stage.ec2.set_state(self.stage.instance_of(one), state)
            self.stage.fleet.heartbeat(one, age_s=heartbeat_age_s)

    def comes_back(self, workspace: str, *, on_new_instance: bool = True) -> None:
        """Let a workspace's machine run, and send heartbeats from the next minute on."""
        if on_new_instance:
            (instance,) = self.stage.instances(1, "running")
            self.stage.fleet.update(workspace, instance_id=instance)
        else:
            self.stage.ec2.set_state(self.stage.instance_of(workspace), "running")
        self.alive.add(workspace)

    def becomes(self, workspace: str, **columns: Any) -> None:
        """Let the platform write to a workspace's row."""
        self.stage.fleet.update(workspace, **columns)

    def answers(self, answer: Any = None) -> None:
        """Let the platform give this answer to every restart; by default, accept it and do nothing else."""
        self.stage.platform.instead.clear()
        self.stage.platform.instead.reply(answer or Answer(202))

    def minute(self, event: Any = APPLY, *, lasts_s: float = MINUTE_S, **settings: str | None) -> Outcome:
        """Let a minute pass (or `lasts_s` seconds), and then a cycle run; return what it did."""
        self.passes(lasts_s)
        return self.stage.glance(event, **{**self._settings, **settings})

    def passes(self, seconds: float) -> None:
        """Let time pass, with heartbeats at its end."""
        self.stage.fleet.age_everything(seconds, rows=True)
        self.stage.database.query(_HEARTBEATS, ids=json.dumps(sorted(self.alive)))
        if self.monitor:
            self.stage.database.query(_MONITOR)

    def minutes(self, count: int, event: Any = APPLY, **settings: str | None) -> list[Outcome]:
        """Let that many minutes pass, with a cycle in each."""
        return [self.minute(event, lasts_s=MINUTE_S, **settings) for _ in range(count)]

    def status(self, workspace: str) -> str:
        """Return a row's status."""
        return str(self.stage.fleet.row(workspace)["status"])

    def restarts(self, workspace: str) -> list[str | None]:
        """Return how a workspace's restarts ended, None for an open one."""
        return [one["outcome"] for one in self.stage.fleet.restarts(workspace)]


def calls(outcomes: Iterable[Outcome]) -> list[list[str]]:
    """Return, for each cycle, for which workspaces it asked."""
    return [[call.workspace_id for call in one.calls] for one in outcomes]


def restarts_of(outcome: Outcome) -> dict[str, int]:
    """Return a report's figures of restarts, without the zeros."""
    return {name: count for name, count in outcome.report["restarts"].items() if count}
