"""Fleets to be measured on: a database, an EC2 API or a control plane, and the contestants' processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from bench.child import PROJECT
from bench.stand_ins import Ec2, hosted
from sandbox.postgres import Database, PostgresServer

CHECKOUT = Path(__file__).parent.parent
EC2_LATENCY_S = 0.2
# Every nth of our instances is dead: 0.1 %.
DEAD_EVERY = 1000

# The nth instance of LimitedEc2 has the id i-{n in hex}. Ours are spread evenly among the foreign ones.
_FILL = """
    INSERT INTO workspaces (name, status, instance_id, last_heartbeat_at, updated_at)
    SELECT 'workspace ' || n, 'online',
           'i-' || lpad(to_hex((n - 1) * CAST(:instances AS bigint) / CAST(:count AS bigint) + 1), 17, '0'),
           now() - interval '5 minutes', now() - n * interval '1 millisecond'
    FROM generate_series(1, CAST(:count AS bigint)) AS numbers (n)
"""
_RESET = (
    "UPDATE workspaces SET status = 'online' WHERE status = 'offline'",
    "TRUNCATE structure_events, reconciler.restarts, reconciler.doubts, reconciler.source_doubts",
    "TRUNCATE reconciler.lease, reconciler.coverage",
    "INSERT INTO reconciler.coverage DEFAULT VALUES",
)


class Fleet:
    """Workspaces on healthy instances, in a database of their own."""

    def __init__(self, server: PostgresServer, size: int, *, foreign: int = 0) -> None:
        self.database: Database = server.create_database()
        self.database.query(_FILL, count=size, instances=size + foreign)
        self.database.query("VACUUM ANALYZE")  # which a server at work does by itself

    def reset(self) -> None:
        """Take back what a contestant did."""
        for statement in _RESET:
            self.database.query(statement)

    def environment(self, contestant: str) -> dict[str, str]:
        """Return how a contestant reaches the database: a peer as its owner, for it looks at more columns."""
        return {"DATABASE_URL": self.database.url if contestant == PROJECT else self.database.owner_url}


class Process:
    """A contestant's process, from `with` to its end; `log` is what it printed."""

    def __init__(self, contestant: str, environment: Mapping[str, str]) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="bench-")  # noqa: SIM115 - closed by `__exit__`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.child", contestant, self._log.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), **environment},
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._log.close()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def handle(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Have it handle one event; return what it measured."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contestant failed: {self._process.args!r}")
        measured: dict[str, Any] = json.loads(line)
        return measured

    def log(self) -> list[dict[str, Any]]:
        """Return the lines that it has logged."""
        lines = Path(self._log.name).read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


class Ec2World:
    """A fleet and an account that it shares with foreign instances."""

    def __init__(self, fleet: Fleet, ec2: Any) -> None:
        self.fleet = fleet
        self.ec2 = ec2

    def run(
        self,
        contestant: str,
        event: Mapping[str, Any],
        *,
        others_per_s: float = 0.0,
        **settings: str,
    ) -> dict[str, Any]:
        """Have a contestant, in a process that has looked at one row before, handle an event on a fleet as new."""
        environment = {**self.ec2.environment(), **self.fleet.environment(contestant), **settings}
        with Process(contestant, environment) as process:
            self.fleet.reset()
            process.handle({"limit": 1})
            self.ec2.begin(others_per_s=others_per_s)
            measured = process.handle(event)
            return measured | {"ec2": self.ec2.figures(), "log": process.log()}


@contextmanager
def ec2_world(
    server: PostgresServer,
    size: int,
    *,
    dead_every: int = DEAD_EVERY,
    foreign: int,
    latency_s: float = EC2_LATENCY_S,
) -> Iterator[Ec2World]:
    """Make a world with that many workspaces."""
    fleet = Fleet(server, size, foreign=foreign)
    with hosted(Ec2, latency_s) as ec2:
        ec2.fill(size, foreign=foreign, dead_every=dead_every)
        yield Ec2World(fleet, ec2)
    fleet.database.drop()
