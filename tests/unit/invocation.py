"""Runs one cycle over tests/fakes, and lets things happen meanwhile."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn

from handler import cycle
from handler.deadline import Deadline
from handler.domain.model import Workspace
from handler.domain.report import Report
from handler.domain.shards import WHOLE, Shard
from handler.request import APPLY, Request
from handler.restarts import Connection, Platform, Reply
from handler.settings import Settings
from handler.store import Store
from tests.fakes import world as fakes
from tests.fakes.store import Watch, fake_store
from tests.fakes.tables import Row, StoredRestart
from tests.fakes.world import Asked, Instance, World
from tests.unit.builders import instance, number_of, uuid

Happening = Callable[[], object]

FULL = Request(APPLY)
EARLIER = "an earlier cycle"
# Longer ago than a heartbeat that vetoes a flip.
LONG_AGO_S = 1000.0


def fleet(count: int, **states: str | None) -> World:
    """Return a world of this many workspaces. Their instances run, unless `states` says otherwise: `_3="stopped"`.

    With None, EC2 does not know the instance.
    """
    world = World()
    for number in range(1, count + 1):
        world.add(uuid(number), states.get(f"_{number}", "running"))
    return world


def row(world: World, number: int) -> Row:
    return world.tables.workspaces[uuid(number)]


def owe(
    world: World,
    number: int,
    *,
    by: str = EARLIER,
    state: str | None = "terminated",
    attempts: int = 0,
    refusals: int = 0,
) -> None:
    """Add a workspace with an owed restart, which the cycle `by` flipped long ago. Its instance is in `state`."""
    tables, at = world.tables, world.tables.now - LONG_AGO_S
    tables.workspaces[uuid(number)] = Row(instance(number), status="offline", heartbeat_at=at - LONG_AGO_S)
    if state is not None:
        world.instances[instance(number)] = Instance(state)
    owed = StoredRestart(
        len(tables.restarts) + 1, uuid(number), instance(number), by, at, at, attempts=attempts, refusals=refusals
    )
    tables.restarts.append(owed)


def fails(error: Exception) -> Callable[[], NoReturn]:
    """Return a happening: the call fails."""

    def fail() -> NoReturn:
        raise error

    return fail


def nothing() -> None:
    """Do nothing."""


class Invocation(Watch):
    """One invocation of the function. It sees how the store is called, and asks the probe and the platform.

    `first` is what happens before the first calls of a name take effect, one after the other; `each` is what happens at
    every call. `answers_take_s` is how many seconds each answer takes. With `in_bulk`, the probe answers about many
    instances at once.
    """

    def __init__(
        self,
        world: World,
        *,
        first: Mapping[str, list[Happening]] | None = None,
        each: Mapping[str, Happening] | None = None,
        answers_take_s: Mapping[str, float] | None = None,
        asked: Callable[[str], object] = lambda _: None,
        in_bulk: bool = False,
        **variables: str,
    ) -> None:
        world.cycles += 1
        self.world, self.cycle_id = world, f"cycle {world.cycles}"
        defaults = {"DATABASE_URL": "postgresql://u@h/n", "RESTART_GRACE_SECONDS": "0"}
        self.settings = Settings.from_env(defaults | variables)
        self.rights: list[bool] = []
        self.wrote_by: list[str] = []
        self.probed: list[int] = []
        self.asked: list[int] = []
        self._first = {call: list(happenings) for call, happenings in (first or {}).items()}
        self._each = each or {}
        self._answers_take_s = answers_take_s or {}
        self._when_asked = asked
        self._in_bulk = in_bulk

    def run(self, request: Request = FULL, seconds: float = 45) -> Report:
        """Run the cycle."""
        return self.result(request, seconds).report

    def result(self, request: Request = FULL, seconds: float = 45) -> cycle.Result:
        """Run the cycle; return all that it returns."""
        parts = self.parts(leased=request.state_changes is None, shard=request.shard)
        return cycle.run(request, self.settings, parts, self.deadline(seconds))

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds, clock=self.clock)

    def parts(self, *, leased: bool = True, shard: Shard = WHOLE) -> cycle.Parts:
        store = self.store(leased=leased, shard=shard)
        return cycle.Parts(self.cycle_id, store, lambda _: self.probe(), lambda _: self.platform())

    def store(self, *, leased: bool = True, shard: Shard = WHOLE) -> Store:
        """Return the store, which also records which rights are checked."""
        store = fake_store(self.world.tables, self.cycle_id, self, leased=leased, shard=shard)
        check = store.check_rights

        def check_rights(deadline: Deadline, *, to_apply: bool) -> None:
            self.rights.append(to_apply)
            check(deadline, to_apply=to_apply)

        store.check_rights = check_rights  # type: ignore[method-assign]
        return store

    def probe(self) -> fakes.Probe:
        return fakes.Probe(self.world, self, in_bulk=self._in_bulk, timeout_s=self.settings.probe_timeout_seconds)

    def platform(self) -> Platform:
        return _OneByOne(fakes.Platform(self.world, self))

    # what the store, the probe and the platform tell

    def clock(self) -> float:
        return self.world.tables.now

    def before(self, call: str) -> None:
        self._each.get(call, nothing)()
        if happenings := self._first.get(call):
            happenings.pop(0)()

    def wrote(self, call: str, subject: object = None) -> None:
        del subject
        self.wrote_by.append(call)

    def after(self, call: str) -> None:
        self.world.tables.now += self._answers_take_s.get(call, 0.0)

    def answered(self, workspace: Workspace, word: str, *, lied: bool) -> None:
        del word, lied
        self.probed.append(number_of(workspace.id))

    def asks(self, workspace_id: str, instance_id: str) -> Asked:
        self.asked.append(number_of(workspace_id))
        self._when_asked(workspace_id)
        return Asked(0, workspace_id, instance_id, self.clock())


class _OneByOne:
    """A platform that answers one request at a time, because the world in memory is not thread-safe."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._answering = threading.Lock()

    def connect(self, deadline: Deadline) -> Connection | Reply:
        with self._answering:
            made = self._platform.connect(deadline)
        return made if isinstance(made, Reply) else _OneConnection(made, self._answering)


class _OneConnection:
    def __init__(self, connection: Connection, answering: threading.Lock) -> None:
        self._connection, self._answering = connection, answering
        self.close = connection.close

    def restart(self, workspace_id: str, instance_id: str, deadline: Deadline, *, not_after: float = math.inf) -> Reply:
        with self._answering:
            return self._connection.restart(workspace_id, instance_id, deadline, not_after=not_after)
