"""The world of the soak: PostgreSQL, stand-ins for EC2, control plane and platform, and an adversary."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import pg8000.exceptions

from sandbox.control_plane import ControlPlane
from sandbox.fleet import Fleet
from sandbox.http_server import Answer, Hang, Raw, Reply, Reset
from sandbox.limited_ec2 import LimitedEc2, TokenBucket
from sandbox.platform import Platform
from sandbox.postgres import OWNER_ROLE, PostgresServer
from tests.support.kept_connections import KeepingDatabase, kept_connections
from tests.support.standby import demote, promote

WORKSPACES = 100
HEARTBEAT_FRESH_S = 1.0
DEADLINE_S = 2.0
# Longer than the platform takes, as docs/decisions/0003-owed-restarts.md asks.
UNCERTAIN_S = 4.0
# Between the reconciler's last look at a row and the platform's own, the row can change: the platform's API leaves this
# window open. On a busy machine it lasts so long at most.
WINDOW_S = 2.0
# What a flip or a restart rests on may be so old (contract), plus what a busy machine adds.
EVIDENCE_S = 5.5
# The platform's own monitor takes silent rows offline after so long, here.
MONITOR_S = 3.0
FAILOVER_EVERY_S = 30.0

SETTINGS = {
    "CYCLE_DEADLINE_SECONDS": str(DEADLINE_S),
    "PROBE_TIMEOUT_SECONDS": "0.5",
    "RECONFIRM_TIMEOUT_SECONDS": "0.5",
    "HEARTBEAT_FRESH_SECONDS": str(HEARTBEAT_FRESH_S),
    "ABSENT_MIN_AGE_SECONDS": "2",
    "BREAKER_WINDOW_SECONDS": "2",
    "RESTART_GRACE_SECONDS": "1",
    "RESTART_RETRY_SECONDS": "0.5",
    "RESTART_UNCERTAIN_SECONDS": str(UNCERTAIN_S),
    "CRASH_LOOP_BACKOFF_SECONDS": "0.5",
    "CRASH_LOOP_RESET_SECONDS": "20",
}

# Records every flip as the database sees it: the row before it, and the time. The platform's own writes are none.
_WITNESS = f"""
    CREATE TABLE witness (
        workspace_id uuid, status text, instance_id text, runtime text,
        heartbeat_age_s float, at_s float DEFAULT extract(epoch FROM clock_timestamp()));
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
    BEGIN
        INSERT INTO witness (workspace_id, status, instance_id, runtime, heartbeat_age_s)
        VALUES (OLD.id, OLD.status::text, OLD.instance_id, OLD.runtime,
                extract(epoch FROM clock_timestamp() - OLD.last_heartbeat_at));
        RETURN NEW;
    END $$;
    CREATE TRIGGER note BEFORE UPDATE ON workspaces FOR EACH ROW
    WHEN (session_user <> '{OWNER_ROLE}' AND NEW.status = 'offline' AND OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION note()
"""  # noqa: S608 - put together from constants


@dataclass(slots=True)
class Ledger:
    """The truth about instances: from when to when each was dead, and when the row that recorded it last changed."""

    dead: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    changed_at: dict[str, float] = field(default_factory=dict)
    # Living instances that a restart destroyed, outside and inside the window that the platform's API leaves open.
    destroyed_alive: list[str] = field(default_factory=list)
    in_the_window: list[str] = field(default_factory=list)

    def is_dead(self, instance_id: str) -> bool:
        """Tell whether the instance is dead now."""
        return self.dead.get(instance_id, [(0.0, 0.0)])[-1][1] == math.inf

    def died(self, instance_id: str) -> None:
        """Note that an instance is about to die, before it is true, so that nobody can know sooner."""
        if not self.is_dead(instance_id):
            self.dead.setdefault(instance_id, []).append((time.time(), math.inf))

    def revived(self, instance_id: str) -> None:
        """Note that an instance runs again."""
        died_at, _ = self.dead[instance_id][-1]
        self.dead[instance_id][-1] = (died_at, time.time())

    def was_dead(self, instance_id: str, at_s: float) -> bool:
        """Tell whether evidence could say at that time that the instance was dead."""
        return any(begin <= at_s <= end + EVIDENCE_S for begin, end in self.dead.get(instance_id, []))


class World:
    """Workspaces with their instances, and everything that the reconciler asks."""

    def __init__(self, server: PostgresServer, database: KeepingDatabase, parts: ExitStack) -> None:
        self.server = server
        self.database = database
        self.ledger = Ledger()
        self.fleet = Fleet(database)
        self.ec2 = parts.enter_context(
            LimitedEc2(bucket=TokenBucket(1000, 200), unfiltered_bucket=TokenBucket(1000, 200), latency_s=0.005)
        )
        self.control_plane = parts.enter_context(ControlPlane(self.ec2.state_of, latency_s=0.01))
        self.platform = parts.enter_context(
            Platform(database, terminate=self._terminate, launch=self.launch, stop_s=0.05, boot_s=0.3)
        )
        for statement in _WITNESS.split(";\n    CREATE "):
            database.query(statement if statement.lstrip().startswith("CREATE") else f"CREATE {statement}")
        self.fleet.add_all(self.launch() for _ in range(WORKSPACES))

    def environment(self, probe: str) -> dict[str, str]:
        """Return the variables of an invocation that asks this source of truth."""
        control_plane = self.control_plane.environment if probe == "control_plane" else {}
        platform = self.platform.environment
        return {**self.ec2.environment, **platform, **SETTINGS, **control_plane, "DATABASE_URL": self.database.url}

    def launch(self) -> str:
        """Start an instance; return its id."""
        return self.ec2.add()[0]

    def kill(self, instance_id: str, state: str | None) -> None:
        """Kill an instance: `stopped`, `terminated`, or (None) unknown to EC2, which it may be already."""
        self.ledger.died(instance_id)
        with suppress(KeyError):
            if state is None:
                self.ec2.forget(instance_id)
            else:
                self.ec2.set_state(instance_id, state)

    def beat(self) -> None:
        """Let every living machine whose row is offline send a heartbeat, which sets the row online."""
        for row in self.database.query(
            "SELECT id::text AS id, instance_id FROM workspaces WHERE status = 'offline' AND instance_id <> ''"
        ):
            if self.ec2.state_of(row["instance_id"]) == "running":
                self.fleet.update(row["id"], status="online")

    def _terminate(self, instance_id: str) -> None:
        """Terminate an instance for the platform, and record it if it was alive, which must not happen."""
        if not self.ledger.was_dead(instance_id, time.time()):
            changed_ago_s = time.time() - self.ledger.changed_at.get(instance_id, 0.0)
            inside = changed_ago_s < WINDOW_S
            (self.ledger.in_the_window if inside else self.ledger.destroyed_alive).append(instance_id)
        self.kill(instance_id, "terminated")


@contextmanager
def world() -> Iterator[World]:
    """Set the world up, and take it down."""
    with ExitStack() as parts:
        postgres = parts.enter_context(PostgresServer.start())
        database = parts.enter_context(kept_connections(postgres.create_database()))
        yield World(postgres, database, parts)


class Adversary:
    """Changes rows and instances as users, the platform and AWS do, and spoils a share of all answers."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)  # noqa: S311 - it has to be the same again
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._act)
        self.actions = self.failovers = 0
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        self._spoil()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        world = self._world
        for script in (world.ec2.script, world.control_plane.script, world.platform.instead, world.platform.afterwards):
            script.clear()
        for one, status in world.fleet.statuses().items():
            if status == "paused":
                self._resume(one)

    def _spoil(self) -> None:
        world = self._world
        garbage = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
        late = Answer(404, delay_s=0.4)
        world.control_plane.script.reply(self._now_and_then([Answer(503), late, Reset(), Hang(), garbage], 0.06))
        world.ec2.script.reply(self._now_and_then([Answer(500), Answer(503), Reset(), Hang(), garbage], 0.06))
        self._spoil_platform()
        world.platform.afterwards.reply(self._now_and_then([Reset(), Hang(), garbage], 0.15))

    def _spoil_platform(self) -> None:
        busy = Answer(429, headers={"Retry-After": "1"})
        replies: list[Reply] = [Answer(503), busy, Reset(), Hang(), Answer(409), Answer(504, delay_s=0.4)]
        self._world.platform.instead.reply(self._now_and_then(replies, 0.15))

    def _now_and_then(self, replies: list[Reply], share: float) -> Callable[[object], Reply | None]:
        return lambda _: self._random.choice(replies) if self._random.random() < share else None

    def _act(self) -> None:
        actions = [
            *[self._kill] * 8,
            *[self._beat] * 30,
            *[self._degrade, self._pause, self._resume_one, self._reprovision, self._replace, self._clear] * 3,
            *[self._lock, self._lock_ours] * 4,
            *[self._stop_and_start] * 4,
            *[self._monitor] * 6,
            *[self._restart_by_itself] * 3,
            self._hang_up,
        ]
        next_failover_at = time.monotonic() + FAILOVER_EVERY_S
        try:
            while not self._stopping.wait(self._random.uniform(0.0, 0.08)):
                self._random.choice(actions)()
                self.actions += 1
                if time.monotonic() > next_failover_at:
                    self._fail_over_and_back()
                    next_failover_at = time.monotonic() + FAILOVER_EVERY_S
        except Exception as error:  # noqa: BLE001 - whatever it is, the soak has to say so
            self.failure = error

    def _one(self, *statuses: str) -> dict[str, Any] | None:
        rows = self._world.database.query(
            "SELECT id::text AS id, instance_id FROM workspaces WHERE status::text = ANY (:wanted)",
            wanted=list(statuses),
        )
        return self._random.choice(rows) if rows else None

    def _kill(self) -> None:
        row = self._one("online", "degraded")
        if row and row["instance_id"] and not self._world.ledger.is_dead(row["instance_id"]):
            self._world.kill(row["instance_id"], self._random.choice(["stopped", "terminated", "terminated", None]))

    def _beat(self) -> None:
        """The living send heartbeats; now and then a dead one's last heartbeat comes late."""
        row = self._one("online", "degraded")
        if row and (not self._world.ledger.is_dead(row["instance_id"]) or self._random.random() < 0.1):
            self._world.fleet.heartbeat(row["id"])

    def _degrade(self) -> None:
        self._world.database.query(
            "UPDATE workspaces SET status = (CASE status::text WHEN 'online' THEN 'degraded' ELSE 'online' END)"
            "::workspace_status WHERE status IN ('online', 'degraded') AND id = (SELECT id FROM workspaces"
            " ORDER BY random() LIMIT 1)"
        )

    def _pause(self) -> None:
        if row := self._one("online", "offline"):
            self._world.fleet.update(row["id"], status="paused")

    def _resume_one(self) -> None:
        if row := self._one("paused"):
            self._resume(row["id"])

    def _resume(self, workspace_id: str) -> None:
        self._record(workspace_id, self._world.launch())

    def _reprovision(self) -> None:
        if row := self._one("online", "degraded", "offline"):
            self._record(row["id"], self._world.launch())

    def _record(self, workspace_id: str, instance_id: str) -> None:
        self._world.ledger.changed_at[instance_id] = time.time() + WINDOW_S  # until it is written, at the latest
        self._world.fleet.update(workspace_id, status="online", instance_id=instance_id)
        self._world.ledger.changed_at[instance_id] = time.time()

    def _replace(self) -> None:
        if row := self._one("online", "offline"):
            self._world.fleet.delete(row["id"])
            self._world.fleet.add(self._world.launch())

    def _clear(self) -> None:
        if row := self._one("online"):
            self._world.fleet.update(row["id"], instance_id="")
            self._record(row["id"], self._world.launch())

    def _lock(self) -> None:
        if row := self._one("online", "degraded", "offline"):
            with self._world.fleet.locked(row["id"]):
                self._stopping.wait(0.05)

    def _lock_ours(self) -> None:
        """Lock a row of the reconciler's own tables, as a person's transaction would."""
        table = self._random.choice(["restarts", "doubts", "shard_coverage", "lease", "holds"])
        with closing(self._world.database.connect()) as connection:
            connection.run("BEGIN")
            connection.run(f"SELECT FROM reconciler.{table} ORDER BY random() LIMIT 1 FOR UPDATE")
            self._stopping.wait(self._random.uniform(0.0, 0.3))
            connection.run("ROLLBACK")

    def _stop_and_start(self) -> None:
        """A machine is stopped for a moment, to be resized, and started again."""
        row = self._one("online", "degraded", "offline")
        if row and row["instance_id"] and not self._world.ledger.is_dead(row["instance_id"]):
            self._world.kill(row["instance_id"], "stopped")
            self._stopping.wait(self._random.uniform(0.0, 0.5))
            if self._world.ec2.state_of(row["instance_id"]) == "stopped":  # nobody has terminated it meanwhile
                self._world.ledger.revived(row["instance_id"])
                self._world.ec2.set_state(row["instance_id"], "running")

    def _monitor(self) -> None:
        """The platform's monitor takes silent rows offline, whatever it does about them."""
        self._world.database.query(
            "UPDATE workspaces SET status = 'offline', updated_at = now() WHERE status IN ('online', 'degraded')"
            " AND last_heartbeat_at < now() - make_interval(secs => CAST(:silent_s AS float))"
            " AND instance_id = ANY (:dead)",
            silent_s=MONITOR_S,
            dead=[one for one in list(self._world.ledger.dead) if self._world.ledger.is_dead(one)],
        )

    def _restart_by_itself(self) -> None:
        """The platform restarts a workspace of its own accord: it stops the machine, then provisions another."""
        if row := self._one("online", "degraded"):
            if row["instance_id"]:
                self._world.kill(row["instance_id"], "terminated")
            self._stopping.wait(self._random.uniform(0.0, 0.5))
            self._world.fleet.update(row["id"], status="provisioning")
            self._stopping.wait(0.1)
            self._record(row["id"], self._world.launch())

    def _fail_over_and_back(self) -> None:
        """The writer becomes a standby for a moment, and the writer again."""
        world = self._world
        world.platform.instead.reply(Answer(503))  # it can do nothing without its database either
        world.platform.settle()
        demote(world.server)
        world.database.forget()
        self._stopping.wait(self._random.uniform(0.2, 2.0))
        promote(world.server)
        self.failovers += 1
        world.platform.instead.clear()
        self._spoil_platform()

    def _hang_up(self) -> None:
        try:
            self._world.database.terminate_sessions()
        except pg8000.exceptions.Error as error:
            self.failure = error
