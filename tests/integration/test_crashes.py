"""The process dies in mid-cycle: each dead workspace still gets exactly one event and one restart."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import pytest

from sandbox.control_plane import ControlPlane
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.http_server import Answer
from sandbox.platform import Platform, RestartCall
from sandbox.postgres import Database
from tests.support.events import SCHEDULED
from tests.support.invoke import Invoke
from tests.support.kept_connections import kept_connections
from tests.support.killing import Ending, Invocations

pytestmark = pytest.mark.no_cover  # many times the same lines; the other tests measure coverage

# Long enough for leases to expire, for refusals to be tried again and for what is uncertain to be asked for again.
A_WHILE_S = 400.0
# Long enough for a lease to expire, and too short for what is uncertain.
A_LITTLE_S = 120.0
# A cycle with three restarts takes more steps than this, unless most steps are not counted.
FEWEST_STEPS = 60
RANDOM_KILLS = 15
SHARDS = tuple({"mode": "apply", "shard": number, "shards": 2} for number in range(2))
# Most of these fleets is dead, and the probe is right about it.
NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}


class Instances(Protocol):
    """What workspaces run on: moto's instances, or those of `Remembered`."""

    def launch(self, count: int = 1) -> list[str]: ...

    def terminate(self, instance_ids: Iterable[str]) -> None: ...


class Remembered:
    """Instances that only a control plane knows. Hundreds of cycles need them made quickly."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._changing = threading.Lock()
        self.state_of = self._states.get

    def launch(self, count: int = 1) -> list[str]:
        with self._changing:
            launched = [f"i-{len(self._states) + number:017x}" for number in range(count)]
            self._states.update(dict.fromkeys(launched, "running"))
        return launched

    def terminate(self, instance_ids: Iterable[str]) -> None:
        self._states.update(dict.fromkeys(instance_ids, "terminated"))


class Scene:
    """Three dead workspaces beside a live one; the first was flipped in an earlier cycle and refused its restart."""

    def __init__(
        self,
        invocations: Invocations,
        database: Database,
        platform: Platform,
        instances: Instances,
        environment: Mapping[str, str],
    ) -> None:
        self.platform = platform
        self.fleet = Fleet(database)
        self.workspaces: list[str] = []
        settings = {**NO_BREAKER, "DATABASE_URL": database.url, "RESTART_GRACE_SECONDS": "0"}
        self.invoke = Invoke({**environment, **platform.environment, **settings})
        self._invocations = invocations
        self._database = database
        self._instances = instances
        self.events: tuple[Any, ...] = (SCHEDULED,)  # of one minute; the last one is doomed

    def begin(self) -> None:
        """Set the scene, with nothing left of an earlier one."""
        self._database.query("TRUNCATE workspaces, structure_events, reconciler.doubts, reconciler.restarts")
        self.platform.restarts.clear()
        live, refused, *dying = self._instances.launch(4)
        _, *self.workspaces = self.fleet.add_all([live, refused])
        self._instances.terminate([refused])
        self.platform.instead.reply(Answer(503), times=1)
        assert self.invoke(SCHEDULED)["restarts"]["refused"] == 1
        self.platform.instead.clear()
        self.workspaces += self.fleet.add_all(dying)
        self._instances.terminate(dying)
        self.fleet.age_everything(A_WHILE_S)

    def cycle(self) -> dict[str, Any]:
        """Run a minute's cycles that nobody kills; return the last one's report."""
        *_, report = [self.invoke(event) for event in self.events]
        self.platform.settle()
        return report

    def doomed_cycle(self, **kill: Any) -> Ending:
        """Run a cycle in a separate process, and wait until the platform has finished its work."""
        ending = self.start_doomed_cycle(**kill)
        self.platform.drain()
        self.platform.settle()
        return ending

    def start_doomed_cycle(self, **kill: Any) -> Ending:
        """Run a cycle in a separate process, and let the platform go on working."""
        return self._invocations.run(self.events[-1], self.invoke.environment, **kill)

    def kill(self, _: RestartCall) -> None:
        """Kill the process of the doomed cycle, as a hook of the platform."""
        self._invocations.kill()

    def go_on(self) -> None:
        """Run cycles, a while apart, until nothing is owed any more."""
        for _ in range(4):
            self.fleet.age_everything(A_WHILE_S)
            if self.cycle()["restarts"]["pending"] == 0:
                return
        raise AssertionError(f"four cycles later restarts are still owed: {self.fleet.restarts()}")

    def assert_each_restarted_once(self, when: str = "in the end") -> None:
        once = dict.fromkeys(self.workspaces, 1)
        assert Counter(event["workspace_id"] for event in self.fleet.events()) == once, when
        restarts = self.platform.restarts
        assert Counter(one.workspace_id for one in restarts) == once, f"{when}: {restarts} for {self.fleet.restarts()}"
        for one in restarts:
            row = self.fleet.row(one.workspace_id)
            assert (row["status"], row["instance_id"]) == ("online", one.new_instance_id), when


@pytest.fixture(scope="module")
def invocations() -> Iterator[Invocations]:
    with Invocations() as server:
        yield server


@pytest.fixture
def scene(invocations: Invocations, database: Database) -> Iterator[Scene]:
    """Set in front of a control plane, without EC2 behind it."""
    instances = Remembered()
    with ExitStack() as stack:
        kept = stack.enter_context(kept_connections(database))
        control_plane = stack.enter_context(ControlPlane(instances.state_of))
        platform = stack.enter_context(
            Platform(kept, terminate=lambda old: instances.terminate([old]), launch=lambda: instances.launch()[0])
        )
        scene = Scene(invocations, kept, platform, instances, control_plane.environment)
        stack.callback(scene.invoke.cold)
        scene.begin()
        yield scene


@pytest.fixture
def scene_on_ec2(
    invocations: Invocations, database: Database, platform: Platform, ec2: MotoEc2, probe: dict[str, str]
) -> Iterator[Scene]:
    """Set on moto's instances, with either probe."""
    scene = Scene(invocations, database, platform, ec2, ec2.environment | probe)
    scene.begin()
    yield scene
    scene.invoke.cold()


@pytest.mark.parametrize("first_step", [1, 2], ids=["odd steps", "even steps"])
def test_a_kill_between_any_two_steps_of_a_cycle_neither_loses_nor_doubles_a_restart(
    scene: Scene, first_step: int
) -> None:
    for step in itertools.count(first_step, 2):
        scene.begin()
        ending = scene.doomed_cycle(kill_at_step=step)
        scene.go_on()
        scene.assert_each_restarted_once(f"killed at step {step}")
        if not ending.killed:
            assert ending.steps > FEWEST_STEPS
            break


def test_kills_at_random_moments_neither_lose_nor_double_a_restart(scene: Scene) -> None:
    moments = random.Random(2)  # noqa: S311 - so that a failure comes again
    whole_s = scene.doomed_cycle().took_s
    endings = []
    for _ in range(RANDOM_KILLS):
        scene.begin()
        moment_s = moments.uniform(0, whole_s)
        endings.append(scene.doomed_cycle(kill_after_s=moment_s))
        scene.go_on()
        scene.assert_each_restarted_once(f"killed after {moment_s:.3f} of {whole_s:.3f} seconds")
    assert any(ending.killed for ending in endings)


def test_a_kill_in_the_middle_of_a_shard_neither_loses_nor_doubles_a_restart(scene: Scene) -> None:
    """The cycles before it are full ones, and those after it shards again."""
    whole_steps = 0
    for step in itertools.count(5, 7):
        scene.events = SHARDS
        scene.begin()
        ending = scene.doomed_cycle(kill_at_step=step)
        scene.go_on()
        scene.assert_each_restarted_once(f"killed at step {step}")
        if not ending.killed:
            whole_steps = ending.steps
            break
    assert whole_steps > FEWEST_STEPS / 2


@pytest.mark.parametrize("nth", [1, 3], ids=["the first", "the last"])
@pytest.mark.parametrize(
    "order",
    [lambda platform: platform.instead, lambda platform: platform.afterwards],
    ids=["as it is received", "when it is carried out"],
)
def test_a_kill_while_the_platform_is_asked_neither_loses_nor_doubles_a_restart(
    scene_on_ec2: Scene, order: Callable[[Platform], Any], nth: int
) -> None:
    order(scene_on_ec2.platform).before(scene_on_ec2.kill, nth=nth)
    assert scene_on_ec2.doomed_cycle().killed
    scene_on_ec2.go_on()
    scene_on_ec2.assert_each_restarted_once()


def test_a_process_that_dies_in_every_cycle_still_gets_every_workspace_restarted_once(scene: Scene) -> None:
    scene.platform.instead.before(scene.kill)
    for _ in scene.workspaces:
        scene.doomed_cycle()
        scene.fleet.age_everything(A_WHILE_S)
    scene.platform.instead.clear()
    assert scene.platform.restarts
    scene.go_on()
    scene.assert_each_restarted_once()


def test_a_restart_that_the_platform_still_works_on_is_not_asked_for_again_after_a_crash(scene: Scene) -> None:
    at_work = threading.Event()

    def kill_and_take_time(call: RestartCall) -> None:
        scene.kill(call)
        at_work.wait()

    scene.platform.instead.before(kill_and_take_time)
    scene.platform.calls.clear()
    assert scene.start_doomed_cycle().killed
    try:
        scene.fleet.age_everything(A_LITTLE_S)
        scene.platform.instead.clear()
        assert scene.cycle()["outcome"] == "completed"
    finally:
        at_work.set()
    scene.platform.drain()
    scene.go_on()
    scene.assert_each_restarted_once()
    assert Counter(call.workspace_id for call in scene.platform.calls) == dict.fromkeys(scene.workspaces, 1)


def test_a_cycle_that_was_killed_keeps_the_next_one_out_until_its_lease_expires(scene: Scene) -> None:
    scene.platform.instead.before(scene.kill, nth=1)
    scene.doomed_cycle()
    asked = list(scene.platform.calls)
    assert scene.cycle()["outcome"] == "already_running"
    assert scene.platform.calls == asked
    scene.go_on()
    scene.assert_each_restarted_once()
