"""A fleet with everything around it, and what a cycle did to it: rows, events, owed restarts, calls, output."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Self

from handler.telemetry import logger
from sandbox.control_plane import ControlPlane
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.http_server import Answer, Reply
from sandbox.limited_ec2 import LimitedEc2, TokenBucket
from sandbox.platform import Platform, RestartCall
from sandbox.postgres import Database, PostgresServer, StatusType
from tests.support.events import APPLY
from tests.support.invoke import Invoke
from tests.support.kept_connections import kept_connections

SOURCE = "instance-state-reconciler"
CYCLES_APART_S = 60.0  # as EC2's limits see it; a test runs many a second
# What a flip's event says besides.
EVIDENCE = {"cycle_id", "probe", "target", "first_answer_at", "second_answer_at", "heartbeat_age_seconds"}

_ROWS = """
    SELECT id::text, name, tier, status::text, runtime, instance_id, url, parent_id::text,
           last_heartbeat_at, created_at, updated_at, xmin::text
    FROM workspaces
"""
_EVENTS = "SELECT event_type, workspace_id::text, payload, created_at FROM structure_events ORDER BY created_at, id"
_RESTARTS = "SELECT id, workspace_id::text, instance_id, outcome FROM reconciler.restarts ORDER BY id"

Row = dict[str, Any]


@dataclass(slots=True)
class Snapshot:
    """The rows by their ids, with the transaction that wrote each (`xmin`); events and owed restarts, oldest first."""

    rows: dict[str, Row]
    events: list[Row]
    restarts: list[Row]

    @classmethod
    def of(cls, database: Database) -> "Snapshot":
        """Return a snapshot of the database."""
        with contextlib.closing(database.connect()) as connection:
            rows, events, restarts = (_selected(connection, query) for query in (_ROWS, _EVENTS, _RESTARTS))
        return cls({row["id"]: row for row in rows}, events, restarts)


NOTHING = Snapshot({}, [], [])

_EMPTY = """
    TRUNCATE workspaces, structure_events,
             reconciler.lease, reconciler.coverage, reconciler.shard_coverage, reconciler.doubts,
             reconciler.source_doubts, reconciler.restarts, reconciler.restart_stops, reconciler.holds RESTART IDENTITY;
    INSERT INTO reconciler.coverage DEFAULT VALUES
"""

# Of the reconciler's role.
_SESSIONS = (
    "SELECT count(*)::int AS number FROM pg_stat_activity"
    " WHERE datname = current_database() AND usename <> current_user"
)

_PROVISION = """
    UPDATE workspaces SET status = 'provisioning', updated_at = now()
    WHERE status = 'offline' AND id IN (SELECT workspace_id FROM reconciler.restarts WHERE outcome = 'accepted')
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one cycle did. `calls` are the restarts that it asked for; `output` is everything it printed."""

    report: dict[str, Any]
    before: Snapshot
    after: Snapshot
    calls: list[RestartCall]
    output: str
    log: list[dict[str, Any]]

    @property
    def flipped(self) -> set[str]:
        """The workspaces whose row the cycle changed to offline."""
        rows = self.after.rows.items()
        return {one for one, row in rows if row["status"] == "offline" and self.before.rows[one]["status"] != "offline"}

    @property
    def reasons(self) -> dict[str, str]:
        """Why each workspace that looked dead was not flipped, as the log says."""
        return {line["workspace_id"]: line["reason"] for line in self.lines("flip skipped")}

    @property
    def causes(self) -> dict[str, str]:
        """Why each workspace is unknown, as the log says."""
        return {line["workspace_id"]: line["reason"] for line in self.lines("instance unknown")}

    @property
    def skips(self) -> dict[str, int]:
        """The report's reasons for not flipping, without the zeros."""
        return {reason: count for reason, count in self.report["skipped"].items() if count}

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Return the log lines with that message."""
        return [line for line in self.log if line.get("message") == message]

    def metrics(self) -> list[dict[str, Any]]:
        """Return the EMF lines."""
        return [line for line in self.log if "_aws" in line]

    def traces(self, workspace_id: str) -> list[Any]:
        """Return the events, the owed restarts and the calls that the cycle left for one workspace."""
        events = [one for one in self.after.events[len(self.before.events) :] if one["workspace_id"] == workspace_id]
        restarts = self.after.restarts[len(self.before.restarts) :]
        own = [one for one in restarts if one["workspace_id"] == workspace_id]
        return [*events, *own, *(call for call in self.calls if call.workspace_id == workspace_id)]

    def assert_flipped(self, workspace_id: str, state: str) -> None:
        """Fail unless the workspace was flipped once, with everything that belongs to a flip and nothing else."""
        before, after = self.before.rows[workspace_id], self.after.rows[workspace_id]
        written = {"status": "offline", "updated_at": after["updated_at"], "xmin": after["xmin"]}
        assert after == before | written
        assert after["updated_at"] > before["updated_at"]
        event, restart, call = self.traces(workspace_id)
        assert event["event_type"] == "WORKSPACE_OFFLINE"
        assert event["payload"].items() >= {
            ("instance_id", before["instance_id"]),
            ("instance_state", state),
            ("source", SOURCE),
            ("previous_status", before["status"]),
        }
        assert event["payload"].keys() >= EVIDENCE
        assert (restart["instance_id"], restart["outcome"]) == (before["instance_id"], "accepted")
        assert call.expected_instance_id == before["instance_id"]
        flip = {"workspace_id": workspace_id, "instance_id": before["instance_id"], "instance_state": state}
        assert self.report["flips"].count(flip) == 1

    def assert_untouched(self, *workspace_ids: str) -> None:
        """Fail if the cycle wrote to these rows, even the same values, or left anything else for them."""
        for one in workspace_ids:
            assert self.after.rows.get(one) == self.before.rows.get(one)
            assert self.traces(one) == []

    def assert_only_flipped(self, states: dict[str, str]) -> None:
        """Fail unless exactly these workspaces were flipped, each for its instance's state."""
        for workspace_id, state in states.items():
            self.assert_flipped(workspace_id, state)
        self.assert_untouched(*(self.before.rows.keys() | self.after.rows.keys()) - states.keys())
        assert self.report["flipped"] == len(states)

    def assert_only_owed(self, workspace_id: str) -> None:
        """Fail unless exactly this workspace was flipped, and its restart is still owed."""
        assert self.flipped == {workspace_id}
        assert [(one["workspace_id"], one["outcome"]) for one in self.after.restarts] == [(workspace_id, None)]
        assert self.calls == []


class Stage:
    """A database with a fleet, EC2 with its limits, a control plane that answers from it, and a platform.

    The platform accepts every restart and does nothing, so that a row stays as the reconciler left it. With `moto`,
    instances are launched there, and the EC2 probe asks it. Contexts entered in `meanwhile` are left when a cycle ends.
    """

    def __init__(
        self,
        database: Database,
        ec2: LimitedEc2,
        control_plane: ControlPlane,
        platform: Platform,
        moto: MotoEc2 | None = None,
    ) -> None:
        self.database = database
        self.fleet = Fleet(database)
        self.ec2 = ec2
        self.moto = moto
        self.control_plane = control_plane
        self.platform = platform
        self.meanwhile = ExitStack()
        self._before = NOTHING
        self._credentials = (control_plane.shared_secret, control_plane.admin_token)
        self._be_ready()

    def _be_ready(self) -> None:
        self.platform.instead.reply(Answer(body=b"{}"))
        account = self.moto or self.ec2
        environment = {
            **account.environment,
            **self.platform.environment,
            "DATABASE_URL": self.database.url,
            "RESTART_GRACE_SECONDS": "0",  # so that one cycle shows everything
        }
        self.invoke = Invoke(environment)

    def clear(self) -> None:
        """Undo everything that a test has done. Raises what failed in a stand-in."""
        for stand_in in (self.ec2, self.control_plane, self.platform):
            stand_in.check()
            if not stand_in.running:
                stand_in.start()
            stand_in.peak_in_flight = stand_in.connections = 0
        self.database.query(_EMPTY)
        self.ec2.reset()
        self.ec2.bucket = TokenBucket(capacity=100, refill_per_s=20)
        self.control_plane.script.clear()
        self.control_plane.requests.clear()
        self.control_plane.latency_s = 0.0
        self.control_plane.shared_secret, self.control_plane.admin_token = self._credentials
        self.platform.instead.clear()
        self.platform.calls.clear()
        self._be_ready()

    def settings(self, probe: str) -> dict[str, str]:
        """Return the settings that make `ec2` or `control_plane` the source of truth."""
        return self.control_plane.environment if probe == "control_plane" else {}

    def add(self, state: str | None, **columns: Any) -> str:
        """Add a workspace whose instance is in that state, or is unknown to EC2 (None); return the workspace's id."""
        return self.add_all(1, state, **columns)[0]

    def add_all(self, count: int, state: str | None, **columns: Any) -> list[str]:
        """Add that many; return their ids."""
        return self.fleet.add_all(self.instances(count, state), **columns)

    def instances(self, count: int, state: str | None) -> list[str]:
        """Add that many instances in a state to EC2, or (None) make up ids that it does not know; return their ids."""
        ids = self.ec2.add(count) if self.moto is None else self.moto.launch(count)
        account = self.moto or self.ec2
        for one in ids:
            if state is None:
                account.forget(one)
            else:
                account.set_state(one, state)
        return ids

    def instance_of(self, workspace_id: str) -> str:
        """Return the instance that a workspace records."""
        return str(self.fleet.row(workspace_id)["instance_id"])

    def platform_is_at_work(self) -> None:
        """Let the platform provision new instances for the workspaces whose restart it has accepted."""
        self.database.query(_PROVISION)

    def sessions(self) -> int:
        """Return how many sessions the reconciler's role has in the database."""
        (row,) = self.database.query(_SESSIONS)
        return int(row["number"])

    def wait_for_the_killed(self) -> None:
        """Wait until the server has noticed that a killed process is gone, and with it the locks that it had."""
        self.invoke.cold()
        while self.sessions():
            pass

    def mark(self, *workspace_ids: str) -> None:
        """Compare the running cycle with these rows as they are now, because something else changed them."""
        now = Snapshot.of(self.database)
        for one in workspace_ids:
            self._before.rows.pop(one, None)
            if one in now.rows:
                self._before.rows[one] = now.rows[one]

    def cycle(self, event: Any = APPLY, **settings: str | None) -> Outcome:
        """Run one cycle and return what it did. Raises what the cycle raises."""
        self._before = Snapshot.of(self.database)
        outcome = self.glance(event, **settings)
        return replace(outcome, before=self._before, after=Snapshot.of(self.database))

    def glance(self, event: Any = APPLY, **settings: str | None) -> Outcome:
        """Do the same without the snapshots before and after, which are slow with many rows."""
        self.ec2.bucket.pass_time(CYCLES_APART_S)
        calls = len(self.platform.calls)
        with recorded() as output, self.meanwhile:
            report = self.invoke(event, **settings)
        text = output.getvalue()
        return Outcome(report, NOTHING, NOTHING, self.platform.calls[calls:], text, list(_parsed(text)))


@contextmanager
def opened(
    postgres: PostgresServer,
    status_type: StatusType = "enum",
    *,
    moto: MotoEc2 | None = None,
    options: str | None = None,
) -> Iterator[Stage]:
    """Set a stage, for a test or for all of a module; with `options`, on a database made with them."""
    database = (
        postgres.create_database(status_type)
        if options is None
        else postgres.create_database_with(options, status_type)
    )
    with ExitStack() as parts:
        parts.callback(database.drop)
        database = parts.enter_context(kept_connections(database))
        ec2 = parts.enter_context(LimitedEc2())
        control_plane = parts.enter_context(ControlPlane(ec2.state_of))
        platform = parts.enter_context(Platform(database, terminate=_never, launch=_never))
        stage = Stage(database, ec2, control_plane, platform, moto)
        parts.callback(stage.invoke.cold)
        if moto is not None:
            parts.callback(moto.reset)
        yield stage


class Stages:
    """Stages that tests reuse, because setting one up takes longer than most tests."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._postgres = postgres
        self._parts = ExitStack()
        self._idle: dict[StatusType, list[Stage]] = {"enum": [], "text": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    @contextmanager
    def borrowed(self, status_type: StatusType = "enum") -> Iterator[Stage]:
        """Lend an empty stage. One in which something failed is not lent again."""
        idle = self._idle[status_type]
        stage = idle.pop() if idle else self._parts.enter_context(opened(self._postgres, status_type))
        yield stage
        stage.clear()
        idle.append(stage)


def from_question(number: int, answer: Reply) -> Callable[[object], Reply | None]:
    """Return a reply for a script: this answer to each question from number `number` on."""
    questions = count(1)
    return lambda _: answer if next(questions) >= number else None


@contextmanager
def recorded() -> Iterator[io.StringIO]:
    """Capture the handler's logs and metrics, which it writes to stdout."""
    output = io.StringIO()
    handler = logger.registered_handler
    stream = handler.stream  # type: ignore[attr-defined]  # Powertools declares the handler as the plain kind
    handler.stream = output  # type: ignore[attr-defined]
    try:
        with contextlib.redirect_stdout(output):
            yield output
    finally:
        handler.stream = stream  # type: ignore[attr-defined]


def _selected(connection: Any, query: str) -> list[Row]:
    rows = connection.run(query)
    names = [column["name"] for column in connection.columns]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    """Yield the lines. A line that is not JSON is an error, because CloudWatch could not filter it."""
    for line in text.splitlines():
        yield json.loads(line)


def _never(*_: object) -> str:
    raise AssertionError("the platform is asked to do something")
