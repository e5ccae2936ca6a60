"""The process dies in mid-cycle: each dead workspace still gets one event and one restart, never none and never two."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import pytest

from sandbox.control_plane import ControlPlane
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.http_server import Answer
from sandbox.platform import Platform
from sandbox.postgres import Database
from tests.support.events import SCHEDULED
from tests.support.invoke import Invoke
from tests.support.killing import Ending, Invocations

# Long enough for leases to expire, for refusals to be tried again and for what is uncertain to be asked for again.
A_WHILE_S = 400.0
# More steps than a cycle of this fleet takes, by far.
MOST_STEPS = 1_000
RANDOM_KILLS = 15


class Instances(Protocol):
    """What a workspace runs on: moto's instances, or those of `Remembered`."""

    def launch(self, count: int = 1) -> list[str]: ...

    def terminate(self, instance_ids: Iterable[str]) -> None: ...


class Remembered:
    """Instances of which only a control plane tells: as quick to make as hundreds of cycles need."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def launch(self, count: int = 1) -> list[str]:
        launched = [f"i-{len(self._states) + number:017x}" for number in range(count)]
        self._states |= dict.fromkeys(launched, "running")
        return launched

    def terminate(self, instance_ids: Iterable[str]) -> None:
        self._states |= dict.fromkeys(instance_ids, "terminated")

    def state_of(self, instance_id: str) -> str | None:
        return self._states.get(instance_id)


class Scene:
    """Three dead workspaces, one of which was flipped in an earlier cycle and refused its restart, beside a live one."""

    def __init__(
        self, invocations: Invocations, invoke: Invoke, database: Database, platform: Platform, instances: Instances
    ) -> None:
        self._invocations = invocations
        self._invoke = invoke
        self._database = database
        self._instances = instances
        self.fleet = Fleet(database)
        self.platform = platform
        self.workspaces: list[str] = []

    def begin(self) -> None:
        """Begin anew, with nothing left of an earlier beginning."""
        self._database.query("TRUNCATE workspaces, structure_events, reconciler.restarts")
        self.platform.restarts.clear()
        live, refused, *dying = self._instances.launch(4)
        self.workspaces = self.fleet.add_all([live, refused])[1:]
        self._instances.terminate([refused])
        self.platform.instead.reply(Answer(503), times=1)
        assert self.cycle()["restarts"]["failed"] == 1
        self.platform.instead.clear()
        self.workspaces += self.fleet.add_all(dying)
        self._instances.terminate(dying)
        self.wait_a_while()

    def run(self, **kill: Any) -> Ending:
        """Run a cycle in a process of its own, and wait for what it leaves going on at the platform."""
        ending = self._invocations.run(SCHEDULED, self._invoke.environment, **kill)
        self.platform.drain()
        self.platform.settle()
        return ending

    def kill(self, _: object = None) -> None:
        """Kill the process under way."""
        self._invocations.kill()

    def cycle(self) -> dict[str, Any]:
        """Run a cycle that nobody kills."""
        report = self._invoke(SCHEDULED)
        self.platform.settle()
        return report

    def wait_a_while(self) -> None:
        """Let the time pass that a lease, a pause or an uncertainty lasts."""
        self.fleet.age_everything(A_WHILE_S)

    def go_on(self) -> None:
        """Run cycles, a while apart, until nothing is owed any more."""
        for _ in range(4):
            self.wait_a_while()
            if self.cycle()["restarts"]["pending"] == 0:
                return
        raise AssertionError(f"four cycles later restarts are still owed: {self.fleet.debts()}")

    def assert_each_restarted_once(self, when: str) -> None:
        once = dict.fromkeys(self.workspaces, 1)
        assert Counter(event["workspace_id"] for event in self.fleet.events()) == once, when
        restarts = self.platform.restarts
        assert Counter(one.workspace_id for one in restarts) == once, f"{when}: {restarts} for {self.fleet.debts()}"
        for one in restarts:
            row = self.fleet.row(one.workspace_id)
            assert (row["status"], row["instance_id"]) == ("online", one.new_instance_id), when


@pytest.fixture(scope="module")
def invocations() -> Iterator[Invocations]:
    with Invocations() as server:
        yield server


@pytest.fixture
def quick_scene(invocations: Invocations, database: Database) -> Iterator[Scene]:
    instances = Remembered()
    with (
        ControlPlane(instances.state_of) as control_plane,
        Platform(
            database, terminate=lambda old: instances.terminate([old]), launch=lambda: instances.launch()[0]
        ) as platform,
    ):
        invoke = Invoke({
            **control_plane.environment, **platform.environment, "DATABASE_URL": database.url,
            "BREAKER_MAX_DEAD_FRACTION": "1",
        })
        yield Scene(invocations, invoke, database, platform, instances)
        invoke.cold()


def test_a_kill_between_any_two_steps_of_a_cycle_loses_no_restart_and_doubles_none(quick_scene: Scene) -> None:
    for step in range(1, MOST_STEPS):
        quick_scene.begin()
        ending = quick_scene.run(kill_at_step=step)
        quick_scene.go_on()
        quick_scene.assert_each_restarted_once(f"killed at step {step}")
        if not ending.killed:
            break
    print("steps", step)
