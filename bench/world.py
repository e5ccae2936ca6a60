"""Fleets to be measured on: a database, an EC2 API or a control plane, and the contestants' processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.child import PROJECT
from bench.conditions import ZONE_DISTANCE_S, Distance, limited
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
    "TRUNCATE reconciler.lease, reconciler.coverage, reconciler.shard_coverage",
    "INSERT INTO reconciler.coverage DEFAULT VALUES",
)
_OWE = """
    WITH taken AS (
        UPDATE workspaces SET status = 'offline'
        WHERE id IN (SELECT id FROM workspaces ORDER BY name LIMIT CAST(:count AS bigint)) RETURNING id, instance_id
    )
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, flipped_at, due_at, first_due_at)
    SELECT id, instance_id, gen_random_uuid(), at, at, at
    FROM taken, (SELECT now() - interval '20 minutes' AS at) AS times RETURNING instance_id
"""
_LEFT_BEHIND = """
    SELECT (SELECT count(*) FROM reconciler.doubts) AS doubts,
           EXISTS (SELECT FROM reconciler.shard_coverage WHERE cursor IS NOT NULL) AS place_saved,
           (SELECT count(*) FROM reconciler.restarts WHERE closed_at IS NULL) AS restarts_open,
           (SELECT count(*) FROM structure_events) AS events
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A database server, and the way to it: it is in another zone."""

    server: PostgresServer
    way: Any


@contextmanager
def site() -> Iterator[Site]:
    """Start a server, and lay the way to it."""
    with PostgresServer.start() as server, hosted(Distance, ZONE_DISTANCE_S) as way:
        yield Site(server, way)


class Fleet:
    """Workspaces on healthy instances, in a database of their own."""

    def __init__(self, place: Site, size: int, *, foreign: int = 0) -> None:
        self.database: Database = place.server.create_database()
        self._urls = {one: place.way.to(one) for one in (self.database.url, self.database.owner_url)}
        self.database.query(_FILL, count=size, instances=size + foreign)
        self.database.query("VACUUM ANALYZE")  # which a server at work does by itself

    def reset(self) -> None:
        """Take back what a contestant did."""
        for statement in _RESET:
            self.database.query(statement)

    def environment(self, contestant: str) -> dict[str, str]:
        """Return how a contestant reaches the database: a peer as its owner, for it looks at more columns."""
        return {"DATABASE_URL": self._urls[self.database.url if contestant == PROJECT else self.database.owner_url]}

    def instance_ids(self) -> list[str]:
        """Return the workspaces' instances."""
        rows = self.database.query("SELECT instance_id FROM workspaces ORDER BY instance_id")
        return [row["instance_id"] for row in rows]

    def owe(self, count: int) -> list[str]:
        """Take so many workspaces offline, and owe each a restart that is due; return their instances."""
        return [row["instance_id"] for row in self.database.query(_OWE, count=count)]

    def left_behind(self) -> dict[str, Any]:
        """Return what a cycle left for the next one: doubts, the place where it begins, open restarts, events."""
        (row,) = self.database.query(_LEFT_BEHIND)
        return row


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

    def handle(self, event: Mapping[str, Any], *, share: float | None = None) -> dict[str, Any]:
        """Have it handle one event, with a `share` of a processor (None: all of it); return what it measured."""
        if share is not None:
            with limited(self.pid, share):
                return self.handle(event)
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
        share: float | None = None,
        **settings: str,
    ) -> dict[str, Any]:
        """Have a contestant, in a process that has looked at one row before, handle an event on a fleet as new."""
        environment = {**self.ec2.environment(), **self.fleet.environment(contestant), **settings}
        with Process(contestant, environment) as process:
            self.fleet.reset()
            process.handle({"limit": 1})
            self.ec2.begin(others_per_s=others_per_s)
            measured = process.handle(event, share=share)
            return measured | {"ec2": self.ec2.figures(), "log": process.log()}


@contextmanager
def ec2_world(
    place: Site,
    size: int,
    *,
    dead_every: int = DEAD_EVERY,
    foreign: int,
    latency_s: float = EC2_LATENCY_S,
) -> Iterator[Ec2World]:
    """Make a world with that many workspaces."""
    fleet = Fleet(place, size, foreign=foreign)
    with hosted(Ec2, latency_s) as ec2:
        ec2.fill(size, foreign=foreign, dead_every=dead_every)
        yield Ec2World(fleet, ec2)
    fleet.database.drop()
