"""The world that a cycle acts on: the database, EC2's instances, the probe and the platform. One clock for all."""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from handler.deadline import Deadline
from handler.domain.model import NOT_FOUND, Cause, Failure, Sighting, Workspace, sighting_of, unknown
from handler.probes import TargetTroubles, fair_share
from handler.restarts import Answer, Connection, Reply
from handler.restarts.asking import CALL_SECONDS
from tests.fakes.tables import Row, StoredRestart, Tables

DEAD = ("stopped", "terminated")
# The id of the cycle that flipped and restarted before a world begins.
BEFORE = "an earlier cycle"
# What answers, as the sightings name it.
TARGET = "simulated"
ERROR = "error"
# How long the platform takes: to write (or even to read) the row when it is late, and to provision.
LATE_SECONDS = 100.0
BOOT_SECONDS = 90.0
# How often a living workspace sends a heartbeat, and how long the platform's own monitor waits for one.
HEARTBEAT_SECONDS = 30.0
MONITOR_SECONDS = 180.0
# When the platform restarts a workspace by itself, so much time passes between the machine's end and its write.
OWN_RESTART_SECONDS = 60.0
_NOT_MONITORED = ("removed", "paused", "hibernated", "offline")
_BEATS_SET_ONLINE = ("offline", "provisioning")
# A heartbeat too old to veto a flip; a restart before the breaker's window, but too recent for a healthy stretch.
HEARTBEAT_AGE_SECONDS = 300.0
RESTARTED_AGO_SECONDS = 700.0


def _http(status: int) -> Failure:
    return Failure(Cause.HTTP_STATUS, str(status))


_REFUSALS = {
    "refuse": Reply(Answer.REFUSED, _http(503)),
    "throttle": Reply(Answer.REFUSED, _http(429), 120.0),
    "blocked": Reply(Answer.BLOCKED, _http(409)),
}


@dataclass
class Instance:
    """An instance's state, and the one before it, which a stale answer still gives. It has its state `since` then."""

    state: str
    before: str | None = None
    since: float = 0.0

    @property
    def is_dead(self) -> bool:
        return self.state in DEAD


@dataclass
class Lie:
    """What EC2 says about an instance in the next `times` answers."""

    word: str
    times: int


@dataclass
class Asked:
    """A restart that the platform was asked for. `is_refused` tells that it refused and did nothing."""

    restart_id: int
    workspace_id: str
    instance_id: str
    claimed_at: float
    is_refused: bool = False


@dataclass
class Job:
    """What the platform still has to do for a restart: `read` the row, `write` `provisioning`, `boot`, or `fail`."""

    at: float
    step: str
    workspace_id: str
    asked: Asked | None = None


class Caller(Protocol):
    """The invocation that uses the probe and the platform."""

    cycle_id: str

    def before(self, call: str) -> None: ...
    def clock(self) -> float: ...
    def answered(self, workspace: Workspace, word: str, *, lied: bool) -> None: ...
    def asks(self, workspace_id: str, instance_id: str) -> Asked: ...


@dataclass
class World:
    """Everything that outlives a cycle. Two worlds are equal if their snapshots are equal bytes."""

    tables: Tables = field(default_factory=Tables)
    instances: dict[str, Instance] = field(default_factory=dict)
    lies: dict[str, Lie] = field(default_factory=dict)
    # Instances that fail EC2's system status check.
    impaired: set[str] = field(default_factory=set)
    # How long a probe's answer takes, unless the deadline cuts it off.
    probe_takes_s: float = 0.0
    # Of several targets, those that answer with an error, and those that know nobody: a role of the wrong account.
    down: set[int] = field(default_factory=set)
    blind: set[int] = field(default_factory=set)
    jobs: list[Job] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    platform_mood: str | None = None
    # Nobody can connect to the platform.
    unreachable: bool = False
    # Running instances send heartbeats, and the platform's own monitor takes silent workspaces offline.
    is_lively: bool = False
    # These send heartbeats from a machine that their row does not record.
    elsewhere: set[str] = field(default_factory=set)
    # Ids of restarts whose flip came after an event.
    event_flips: set[int] = field(default_factory=set)
    # The monitor also restarts what it takes offline, once.
    monitor_restarts: bool = False
    # Since when a workspace is offline, for all that any cycle has seen; and since when one was that was adopted.
    offline_at: dict[str, float] = field(default_factory=dict)
    adopted_from: dict[str, float] = field(default_factory=dict)
    # Workspaces and instances that a cycle saw dead or absent while the row was up, or by hand; ids of restarts that
    # were owed again.
    seen_dead: set[tuple[str, str]] = field(default_factory=set)
    again: set[int] = field(default_factory=set)
    # When the breaker was overridden last.
    overridden_at: float | None = None
    blocked: set[str] = field(default_factory=set)
    # For each workspace and its instance: the times of its remembered absences, as long as nothing resets them.
    unfound: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    # How many full cycles have been completed since a candidate was checked last; the least that one checked in turn.
    waited: dict[tuple[int, str], int] = field(default_factory=dict)
    room: int = 1_000_000
    crowded: bool = False
    flips: list[tuple[float, str]] = field(default_factory=list)
    windows: int = 0
    stale_flips: int = 0
    cycles: int = 0
    flipped: int = 0
    population: int = 0
    # For each running cycle: the instances that were dead at some moment since its SELECT.
    died: list[set[str]] = field(default_factory=list)

    def snapshot(self) -> bytes:
        """Return the world as bytes."""
        return pickle.dumps(self)

    @classmethod
    def restored(cls, snapshot: bytes) -> Self:
        """Return the world of a snapshot."""
        world = pickle.loads(snapshot)  # noqa: S301 - bytes of our own making
        assert isinstance(world, cls)
        return world

    def add(
        self,
        workspace_id: str,
        state: str | None,
        *,
        streak: int | None = None,
        heartbeat_age_s: float = HEARTBEAT_AGE_SECONDS,
    ) -> None:
        """Add a workspace whose instance is in a state, or not known to EC2 (None).

        With `streak`, it was restarted some minutes ago, after that many restarts in a row.
        """
        instance_id = f"i-{len(self.tables.workspaces) + 1:017x}"
        if state is not None:
            self.instances[instance_id] = Instance(state)
        self.population += 1
        self.tables.workspaces[workspace_id] = Row(
            instance_id, heartbeat_at=self.tables.now - heartbeat_age_s, updated_at=self.tables.now
        )
        if streak is not None:
            self._was_restarted(workspace_id, streak)

    def _was_restarted(self, workspace_id: str, streak: int) -> None:
        tables, at, old = self.tables, self.tables.now - RESTARTED_AGO_SECONDS, "i-00000000"
        tables.restarts.append(
            StoredRestart(
                len(tables.restarts) + 1,
                workspace_id,
                old,
                BEFORE,
                flipped_at=at,
                due_at=at,
                attempts=1,
                asked_at=at,
                closed_at=at,
                outcome="accepted",
                streak=streak,
            )
        )
        tables.events.append((workspace_id, old))
        self.flipped += 1

    def launch(self) -> str:
        """Return a new running instance."""
        instance_id = f"i-{0x1000 + len(self.instances):017x}"
        self.instances[instance_id] = Instance("running", since=self.tables.now)
        return instance_id

    def become(self, instance_id: str | None, state: str) -> bool:
        """Change an instance's state; tell whether that changes anything."""
        instance = self.instances.get(instance_id or "")
        if instance is None or instance.state in (state, "terminated"):
            return False
        instance.before, instance.state, instance.since = instance.state, state, self.tables.now
        if instance.is_dead:
            for witnessed in self.died:
                witnessed.add(instance_id or "")
        return True

    def instance_of(self, workspace_id: str) -> Instance | None:
        row = self.tables.workspaces.get(workspace_id)
        return None if row is None else self.instances.get(row.instance_id or "")

    def is_dead(self, instance_id: str) -> bool:
        instance = self.instances.get(instance_id)
        return instance is not None and instance.is_dead

    def answer(self, instance_id: str) -> tuple[str, bool]:
        """Return EC2's word for an instance, and whether it is a lie."""
        instance = self.instances.get(instance_id)
        truth = NOT_FOUND if instance is None else instance.state
        lie = self.lies.get(instance_id)
        if lie is None:
            return truth, False
        lie.times -= 1
        if not lie.times:
            del self.lies[instance_id]
        return lie.word, lie.word != truth

    def read(self, asked: Asked, *, writes_at: float) -> None:
        """Let the platform begin a restart: it reads the row, and terminates the recorded instance."""
        row = self.tables.workspaces.get(asked.workspace_id)
        if row is None or row.status == "removed":
            asked.is_refused = True
            return
        destroyed = self.become(row.instance_id, "terminated")
        if destroyed and row.instance_id != asked.instance_id:  # at the claim it was still the flipped one
            self.windows += 1
        self.jobs.append(Job(writes_at, "write", asked.workspace_id))

    def work(self) -> None:
        """Do the platform's due jobs. A job on a locked row waits."""
        while self.jobs:
            rows, now = self.tables.workspaces, self.tables.now
            due = [job for job in self.jobs if job.at <= now and not self._is_locked(job)]
            if not due:
                return
            job = min(due, key=lambda one: one.at)
            self.jobs.remove(job)
            row = rows.get(job.workspace_id)
            if job.asked is not None:
                self.read(job.asked, writes_at=now)
            elif row is not None and job.step in ("write", "write in vain"):
                row.status, row.updated_at = "provisioning", now
                step = "boot" if job.step == "write" else "fail"
                self.jobs.append(Job(now + BOOT_SECONDS, step, job.workspace_id))
            elif row is not None and job.step == "fail":
                row.status, row.updated_at = ("failed" if row.status == "provisioning" else row.status), now
            elif row is not None and row.status in _BEATS_SET_ONLINE:  # the monitor takes long provisioning offline
                row.status, row.instance_id, row.heartbeat_at, row.updated_at = "online", self.launch(), now, now

    def restart_itself(self, workspace_id: str) -> bool:
        """Let the platform restart a workspace by itself: the machine ends now, the row says so later."""
        row = self.tables.workspaces.get(workspace_id)
        if row is None or not self.become(row.instance_id, "terminated"):
            return False
        self.jobs.append(Job(self.tables.now + OWN_RESTART_SECONDS, "write", workspace_id))
        return True

    def take_offline(self, workspace_id: str) -> bool:
        """Let the platform's monitor take a workspace offline; tell whether that changes anything."""
        row, now = self.tables.workspaces[workspace_id], self.tables.now
        if row.status in _NOT_MONITORED or row.locked_by is not None:
            return False
        row.status, row.updated_at = "offline", now
        self.offline_at.setdefault(workspace_id, now)
        if self.monitor_restarts:
            self.become(row.instance_id, "terminated")
            self.jobs.append(Job(now + OWN_RESTART_SECONDS, "write", workspace_id))
        return True

    def live(self) -> None:
        """Let running instances send their heartbeats, and the monitor look for them."""
        now = self.tables.now
        latest = now - now % HEARTBEAT_SECONDS
        for workspace_id, row in self.tables.workspaces.items():
            instance = self.instances.get(row.instance_id or "")
            runs = instance is not None and instance.state == "running" and instance.since <= latest
            beats = runs or workspace_id in self.elsewhere
            if beats and row.locked_by is None and (row.heartbeat_at or 0.0) < latest:
                row.heartbeat_at = row.updated_at = latest
                row.status = "online" if row.status in _BEATS_SET_ONLINE else row.status
            if row.heartbeat_at is not None and row.heartbeat_at < now - MONITOR_SECONDS:
                self.take_offline(workspace_id)

    def _is_locked(self, job: Job) -> bool:
        row = self.tables.workspaces.get(job.workspace_id)
        return job.asked is None and row is not None and row.locked_by is not None


class Probe:
    """A source of truth: EC2 answers about many instances at once, a control plane about one after the other."""

    def __init__(self, world: World, caller: Caller, *, in_bulk: bool, timeout_s: float) -> None:
        self._world, self._caller, self._in_bulk, self._timeout_s = world, caller, in_bulk, timeout_s

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See handler.probes.Probe."""
        answers = self._answers(workspaces, deadline, fair_share(self._timeout_s, deadline))
        yield from list(answers) if self._in_bulk else answers

    def impaired(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Callable[[], int]:
        """See handler.probes.Probe."""
        if deadline.over():
            return lambda: 0
        running = {one for one, instance in self._world.instances.items() if instance.state == "running"}
        impaired = running & self._world.impaired
        return lambda: sum(one.instance_id in impaired for one in workspaces)

    def troubles(self) -> TargetTroubles:
        """See handler.probes.Probe."""
        return TargetTroubles()

    def _answers(self, workspaces: Sequence[Workspace], deadline: Deadline, enough_s: float) -> Iterator[Sighting]:
        answered_at = 0.0
        for number, workspace in enumerate(workspaces):
            if deadline.over():
                return
            began_at, left_s = self._caller.clock(), deadline.remaining()
            if number == 0 or not self._in_bulk:
                self._caller.before("probe")
                self._world.tables.now += min(self._world.probe_takes_s, deadline.remaining())
                answered_at = self._caller.clock()
            took_s = self._caller.clock() - began_at
            if deadline.over() or took_s > self._timeout_s:
                if min(took_s, left_s) < min(enough_s, self._timeout_s):
                    return
                self._caller.answered(workspace, ERROR, lied=False)
                yield unknown(workspace, Failure(Cause.TIMEOUT))
                continue
            word, lied = self._world.answer(workspace.instance_id)
            self._caller.answered(workspace, word, lied=lied)
            yield (
                unknown(workspace, Failure(Cause.SERVER_ERROR))
                if word == ERROR
                else sighting_of(workspace, word, answered_at=answered_at, target=TARGET, took_s=took_s)
            )


class Platform:
    """The platform's restart API."""

    def __init__(self, world: World, caller: Caller) -> None:
        self._world, self._caller = world, caller

    def connect(self, deadline: Deadline) -> Connection | Reply:
        """See handler.restarts.Platform."""
        self._caller.before("connect")
        if deadline.over() or self._world.unreachable:
            return Reply(Answer.REFUSED, Failure(Cause.TIMEOUT))
        return _Connection(self._world, self._caller)


class _Connection:
    """A connection to the platform, for one call."""

    def __init__(self, world: World, caller: Caller) -> None:
        self._world, self._caller, self._is_open = world, caller, True

    def close(self) -> None:
        """See handler.restarts.Connection."""
        self._is_open = False

    def restart(self, workspace_id: str, instance_id: str, deadline: Deadline, *, not_after: float = math.inf) -> Reply:
        """See handler.restarts.Connection."""
        world, began_at = self._world, self._caller.clock()
        self._caller.before("restart")
        if self._caller.clock() > not_after:
            return Reply(Answer.REFUSED, Failure(Cause.OUT_OF_TIME))
        if deadline.over():
            return Reply(Answer.REFUSED, Failure(Cause.TIMEOUT))  # nothing is sent past the deadline
        if not self._is_open:
            return Reply(Answer.REFUSED, Failure(Cause.BROKEN_CONNECTION))
        self._is_open = False
        asked = self._caller.asks(workspace_id, instance_id)
        mood, world.platform_mood = world.platform_mood, None
        refusal = _REFUSALS.get("blocked" if workspace_id in world.blocked else mood or "")
        if refusal is not None:
            asked.is_refused = True
            return refusal
        late_at = world.tables.now + LATE_SECONDS
        if mood in (None, "in vain", "fail"):
            world.read(asked, writes_at=world.tables.now)
            if mood is not None and not asked.is_refused:
                job = world.jobs.pop()
                if mood == "fail":
                    world.jobs.append(Job(job.at, "write in vain", workspace_id))
            world.work()
            return Reply(Answer.REFUSED, _http(404)) if asked.is_refused else Reply(Answer.ACCEPTED, _http(202))
        if mood == "write late":
            world.read(asked, writes_at=late_at)
        elif mood == "read late":
            world.jobs.append(Job(late_at, "read", workspace_id, asked))
        else:
            assert mood == "lose"
        world.tables.now += max(0.0, CALL_SECONDS - (self._caller.clock() - began_at))
        return Reply(Answer.UNCERTAIN, Failure(Cause.TIMEOUT))
