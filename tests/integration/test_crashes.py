"""The process dies in mid-cycle: each dead workspace still gets one event and one restart, never none and never two."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.http_server import Answer
from sandbox.platform import Platform
from tests.support.events import SCHEDULED
from tests.support.invoke import Invoke
from tests.support.killing import Ending, Invocations

DEAD = 3
# Long enough for leases to expire, for refusals to be tried again and for what is uncertain to be asked again.
A_WHILE_S = 400.0
# No machine is so slow that a cycle of this fleet takes as many steps as this.
MOST_STEPS = 1_000
RANDOM_KILLS = 15


@pytest.fixture(scope="module")
def invocations() -> Iterator[Invocations]:
    with Invocations() as server:
        yield server


@dataclass
class Scene:
    """A fleet whose next cycle has three restarts to ask for, one of which the platform refused in an earlier cycle."""

    invocations: Invocations
    invoke: Invoke
    fleet: Fleet
    ec2: MotoEc2
    platform: Platform
    probe: dict[str, str]

    def begin_again(self) -> None:
        """Bring every workspace of the last round out of the way, and make three new ones and let them die."""
        self.fleet.database.query("DELETE FROM workspaces")
        self.fleet.database.query("DELETE FROM structure_events")
        self.fleet.database.query("DELETE FROM reconciler.restarts")
        self.platform.restarts.clear()
        instances = self.ec2.launch(DEAD + 1)
        running, refused, *dying = instances
        self.fleet.add(running)
        self.workspaces = [self.fleet.add(refused)]
        self.ec2.terminate([refused])
        self.platform.instead.reply(Answer(503), times=1)
        assert self.invoke(**self.settings)["restarts"]["failed"] == 1
        self.platform.instead.clear()
        self.workspaces += self.fleet.add_all(dying)
        self.ec2.terminate(dying)
        self.fleet.age_everything(A_WHILE_S)

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the test's cycles: most of this fleet is dead, and not because of a fault."""
        return {**self.probe, "BREAKER_MAX_DEAD_FRACTION": "1"}

    def run(self, **kill: Any) -> Ending:
        """Run a cycle in a process that is killed, and wait for what it may have set going."""
        ending = self.invocations.run(SCHEDULED, self.invoke.environment | self.settings, **kill)
        self.platform.drain()
        self.platform.settle()
        return ending

    def go_on(self) -> None:
        """Run cycles, a while apart, until nothing is owed any more."""
        for _ in range(4):
            self.fleet.age_everything(A_WHILE_S)
            report = self.invoke(**self.settings)
            self.platform.settle()
            assert report["outcome"] == "completed"
            if report["restarts"]["pending"] == 0:
                return
        raise AssertionError(f"after four cycles restarts are still owed: {self.fleet.debts()}")

    def assert_each_restarted_once(self, when: str) -> None:
        once = dict.fromkeys(self.workspaces, 1)
        events = Counter(event["workspace_id"] for event in self.fleet.events())
        assert events == once, f"{when}: the events {self.fleet.events()}"
        restarts = Counter(restart.workspace_id for restart in self.platform.restarts)
        assert restarts == once, f"{when}: the restarts {self.platform.restarts} for the debts {self.fleet.debts()}"
        for restart in self.platform.restarts:
            row = self.fleet.row(restart.workspace_id)
            assert (row["status"], row["instance_id"]) == ("online", restart.new_instance_id), when


@pytest.fixture
def scene(  # noqa: PLR0913, PLR0917 - it is made of these
    invocations: Invocations, invoke: Invoke, fleet: Fleet, ec2: MotoEc2, platform: Platform, probe: dict[str, str]
) -> Scene:
    return Scene(invocations, invoke, fleet, ec2, platform, probe)


def test_a_kill_between_any_two_steps_of_a_cycle_loses_no_restart_and_doubles_none(scene: Scene) -> None:
    for step in range(1, MOST_STEPS):
        scene.begin_again()
        ending = scene.run(kill_at_step=step)
        scene.go_on()
        scene.assert_each_restarted_once(f"killed at step {step}")
        if not ending.killed:
            break
    print("steps", step)
