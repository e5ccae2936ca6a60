"""Eight shards for real: the translated workflow in moto, a process for each, PostgreSQL, a control plane.

How much more they check than one function is measured, not tested: `python -m bench shards`.
"""

import itertools
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from handler.domain.shards import Shard
from sandbox.control_plane import ControlPlane, StatusRequest, state_answer
from sandbox.fleet import Fleet
from sandbox.invocation import Invocation, InvocationError
from sandbox.lambda_api import LambdaApi
from sandbox.platform import Platform
from sandbox.postgres import Database
from tests.support.workflow import execute, workflow

SHARDS, ROWS = 8, 20_000
DEAD_OF_EACH, OWED_OF_EACH = 3, 5
RESTARTS_PER_CYCLE = 16
KILLED, FROZEN, SLOW = 1, 3, 6
SLOW_ANSWERS = 100
MOST_MINUTES = 3  # one is enough, on a machine that is quick enough to act in time

_OWE = """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, flipped_at, due_at, first_due_at)
    SELECT id, instance_id, gen_random_uuid(), at, at, at
    FROM workspaces, (SELECT now() - interval '20 minutes' AS at) AS times WHERE status = 'offline'
    RETURNING workspace_id
"""


def number_of(workspace_id: str) -> int:
    return UUID(workspace_id).int * SHARDS >> 128


class Functions:
    """Runs the real handler once for each event, each time in a process of its own, and keeps what came of it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._running: dict[int, Invocation] = {}
        self._started = threading.Condition()
        self._threads: dict[int, threading.Thread] = {}
        self.reports: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, int] = {}

    def run(self, event: dict[str, Any]) -> None:
        number = event["shard"]
        invocation = Invocation(event, self._environment)
        with self._started:
            self._running[number] = invocation
            self._started.notify_all()
        self._threads[number] = threading.Thread(target=self._wait, args=(number, invocation), daemon=True)
        self._threads[number].start()

    def _wait(self, number: int, invocation: Invocation) -> None:
        try:
            self.reports[number] = invocation.wait()
        except InvocationError as error:
            self.failed[number] = error.exit_code

    def send(self, number: int, what: signal.Signals) -> None:
        with self._started:
            self._started.wait_for(lambda: number in self._running)
        self._running[number].process.send_signal(what)

    def join(self, *numbers: int) -> None:
        """Wait for the end of these."""
        for number in numbers:
            self._threads[number].join()


class World:
    """20,000 workspaces, evenly among eight shards. The first ones of each shard are dead, or owed a restart."""

    def __init__(self, database: Database, control_plane: ControlPlane, platform: Platform, dead: set[str]) -> None:
        self.database, self.control_plane, self.platform = database, control_plane, platform
        self.fleet = Fleet(database)
        rows = [self._row(number, nth) for number in range(SHARDS) for nth in range(ROWS // SHARDS)]
        self.fleet.insert(rows)
        dead.update(row["instance_id"] for row in rows if row["name"] != "running")
        self.dead = {row["id"] for row in rows if row["name"] == "dead"}
        self.owed = {str(row["workspace_id"]) for row in database.query(_OWE)}
        database.query("VACUUM ANALYZE")

    @staticmethod
    def _row(number: int, nth: int) -> dict[str, Any]:
        columns = {
            "id": str(UUID(int=UUID(Shard(number, SHARDS).first_id).int + nth)),
            "instance_id": f"i-{number}{nth:016x}",
        }
        if nth < DEAD_OF_EACH:
            return columns | {"name": "dead"}
        if nth < DEAD_OF_EACH + OWED_OF_EACH:
            return columns | {"name": "owed", "status": "offline"}
        return columns | {"name": "running"}

    def environment(self) -> dict[str, str]:
        return {
            **self.control_plane.environment,
            **self.platform.environment,
            "DATABASE_URL": self.database.url,
            "AWS_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PROBE_CONCURRENCY": "16",
            "RESTARTS_PER_CYCLE": str(RESTARTS_PER_CYCLE),
        }

    def flipped(self) -> Counter[str]:
        """Return how often each workspace was flipped."""
        return Counter(one["workspace_id"] for one in self.fleet.events())

    def assert_nobody_is_flipped_or_restarted_twice_or_wrongly(self) -> None:
        flipped = self.flipped()
        assert flipped.keys() <= self.dead
        assert set(flipped.values()) <= {1}
        owed = Counter(one["workspace_id"] for one in self.fleet.restarts())
        assert set(owed) == self.owed | flipped.keys()
        assert set(owed.values()) == {1}
        asked = Counter(one.workspace_id for one in self.platform.calls)
        assert asked.keys() <= self.owed
        assert set(asked.values()) <= {1}


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    dead: set[str] = set()
    new = itertools.count(1)
    with (
        ControlPlane(lambda one: "terminated" if one in dead else "running") as control_plane,
        Platform(database, terminate=lambda _: None, launch=lambda: f"i-{next(new):017x}") as platform,
    ):
        yield World(database, control_plane, platform, dead)


@pytest.mark.timeout(180)
def test_a_killed_a_frozen_and_a_slow_shard_cost_the_others_nothing(world: World) -> None:
    definition = workflow(SHARDS)
    first = Functions(world.environment())

    def trouble(request: StatusRequest) -> None:
        if (number := number_of(request.workspace_id)) == KILLED:
            first.send(number, signal.SIGKILL)
        elif number == FROZEN:
            first.send(number, signal.SIGSTOP)

    for number in (KILLED, FROZEN):  # at its first question, whatever that is about
        once = iter([trouble])
        world.control_plane.script.before(
            lambda request, number=number, once=once: (  # type: ignore[misc]
                next(once, lambda _: None)(request) if number_of(request.workspace_id) == number else None
            )
        )
    world.control_plane.script.reply(
        lambda request: state_answer("running", delay_s=1) if _is_slow_and_alive(request) else None
    )

    with LambdaApi(first.run) as api:
        assert execute(definition, api)["status"] == "SUCCEEDED"
        asked = [(one.kind, one.event) for one in api.invocations]
    well = [number for number in range(SHARDS) if number not in (KILLED, FROZEN)]
    first.join(*well, KILLED)
    assert sorted(asked, key=lambda one: one[1]["shard"]) == [
        ("Event", {"mode": "apply", "shard": number, "shards": SHARDS}) for number in range(SHARDS)
    ]
    assert first.failed == {KILLED: -signal.SIGKILL}
    assert first.reports.keys() == set(well)
    for number in well:
        assert first.reports[number]["outcome"] == "completed"
        assert first.reports[number]["flipped"] == sum(number_of(one) == number for one in world.flipped())
        assert first.reports[number]["candidates"] == ROWS // SHARDS - OWED_OF_EACH
    assert {number_of(one) for one in world.flipped()} <= set(well)
    world.assert_nobody_is_flipped_or_restarted_twice_or_wrongly()
    assert len(world.platform.calls) <= RESTARTS_PER_CYCLE
    first.send(FROZEN, signal.SIGCONT)
    first.join(FROZEN)
    world.assert_nobody_is_flipped_or_restarted_twice_or_wrongly()
    assert len(world.platform.calls) <= RESTARTS_PER_CYCLE

    # The next minutes, with the leases of what was killed expired: everybody completes.
    world.control_plane.script.clear()
    for _ in range(MOST_MINUTES):
        world.fleet.age_everything(60)
        before = len(world.platform.calls)
        later = Functions(world.environment())
        with LambdaApi(later.run) as api:
            assert execute(definition, api)["status"] == "SUCCEEDED"
        later.join(*range(SHARDS))
        assert later.failed == {}
        assert {one["outcome"] for one in later.reports.values()} == {"completed"}
        world.assert_nobody_is_flipped_or_restarted_twice_or_wrongly()
        assert 0 < len(world.platform.calls) - before <= RESTARTS_PER_CYCLE
        if world.flipped().keys() == world.dead:
            break
    assert world.flipped().keys() == world.dead


def _is_slow_and_alive(request: StatusRequest) -> bool:
    nth = UUID(request.workspace_id).int - UUID(Shard(SLOW, SHARDS).first_id).int
    return 0 <= nth - DEAD_OF_EACH - OWED_OF_EACH < SLOW_ANSWERS
