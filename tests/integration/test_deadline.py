"""Whatever hangs, drips or is locked, the cycle ends in time, and nothing that it left behind acts later."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from handler.errors import ReconcilerError, SecretError, StoreError
from sandbox.control_plane import state_answer
from sandbox.http_server import Answer, Hang, HttpStandIn, Raw, Reply, Request, drip_body, drip_headers
from sandbox.invocation import InvocationError
from sandbox.script import Script
from tests.support.events import APPLY, DRY_RUN
from tests.support.ids import in_order
from tests.support.postgres_proxy import PostgresProxy
from tests.support.stage import Outcome, Snapshot, Stage

# What a cycle may take beyond its deadline.
TOLERANCE_S = 1.0
# Long enough for leases to expire, for refusals to be tried again and for what is uncertain to be asked again.
A_WHILE_S = 400.0
SECRET_ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:hanging"

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
# The words of the statement that writes flips.
FLIPS_WRITE = b"WITH asked AS MATERIALIZED"
DEAD_S_ANSWER = b'{"state": "terminated"}'


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Fail unless the block ends in this time, plus the second that a cycle may take beyond its deadline."""
    began_at = time.monotonic()
    yield
    took_s = time.monotonic() - began_at
    assert took_s <= seconds + TOLERANCE_S


def timed_cycle(stage: Stage, deadline_s: float, event: Any = APPLY, **settings: str | None) -> Outcome:
    """Run a cycle that has to end within its deadline."""
    before = Snapshot.of(stage.database)
    calls = len(stage.platform.calls)
    with ends_within(deadline_s):
        report = stage.invoke(event, CYCLE_DEADLINE_SECONDS=str(deadline_s), **settings)
    return Outcome(report, before, Snapshot.of(stage.database), stage.platform.calls[calls:], "", [])


def timed_failure(
    stage: Stage, deadline_s: float, error: type[ReconcilerError] = StoreError, **settings: str | None
) -> str:
    """Run a cycle that cannot be run, and must say so within its deadline; return its error's message."""
    with ends_within(deadline_s), pytest.raises(error) as raised:
        stage.invoke(CYCLE_DEADLINE_SECONDS=str(deadline_s), **settings)
    return str(raised.value)


def assert_each_once(stage: Stage, workspaces: list[str]) -> None:
    """Fail unless each of these, and nobody else, is down with one event and one restart, accepted in one call."""
    once = dict.fromkeys(workspaces, 1)
    down = [one for one, status in stage.fleet.statuses().items() if status != "online"]
    assert sorted(down) == sorted(workspaces)
    assert Counter(event["workspace_id"] for event in stage.fleet.events()) == once
    assert Counter(call.workspace_id for call in stage.platform.calls) == once
    assert Counter(one["workspace_id"] for one in stage.fleet.restarts() if one["outcome"] == "accepted") == once


def go_on(stage: Stage, **settings: str) -> None:
    """Run cycles, a while apart, until nobody is online any more and nothing is owed."""
    for _ in range(6):
        stage.platform_is_at_work()
        stage.fleet.age_everything(A_WHILE_S)
        report = stage.cycle(**settings).report
        if report["restarts"]["pending"] == 0 and "online" not in stage.fleet.statuses().values():
            return


# --- the source of truth ---


def test_checks_that_hang_or_drip_are_unknown_and_the_dead_beside_them_are_flipped_and_restarted(stage: Stage) -> None:
    faults: list[Reply] = [
        Hang(),
        Answer(body=DEAD_S_ANSWER, delay_s=30),
        drip_headers(0.02),
        drip_body(DEAD_S_ANSWER, 0.5),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n" + DEAD_S_ANSWER, delay_s=30),
    ]
    hanging = stage.add_all(len(faults), "terminated")
    for workspace, fault in zip(hanging, faults, strict=True):
        stage.control_plane.script.reply(fault, workspace_id=workspace)
    running, dead = stage.add("running"), stage.add("terminated")
    outcome = timed_cycle(stage, 8, **stage.settings("control_plane"), **MOSTLY_DEAD)
    outcome.assert_only_flipped({dead: "terminated"})
    outcome.assert_untouched(running, *hanging)
    report = outcome.report
    assert (report["checked"], report["running"], report["unknown"], report["deferred"]) == (7, 1, 5, 0)
    assert report["deadline_hit"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which connections are made, by the kernel, and nobody ever reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_a_source_that_takes_connections_and_never_reads_leaves_every_row_as_it_was(
    stage: Stage, probe: str, silent_port: int
) -> None:
    stage.add_all(3, "terminated")
    silent = f"http://127.0.0.1:{silent_port}"
    address = {"AWS_ENDPOINT_URL_EC2": silent} if probe == "ec2" else {"CP_BASE_URL": silent}
    outcome = timed_cycle(stage, 3, **stage.settings(probe) | address, **MOSTLY_DEAD)
    outcome.assert_only_flipped({})
    assert (outcome.report["unknown"], outcome.report["deadline_hit"]) == (3, True)


EC2_FAULTS = {
    "hangs": Hang(),
    "drips its headers": drip_headers(0.02),
    "drips its body": drip_body(b"<DescribeInstancesResponse>" + b" " * 1_000, 0.02),
}


@pytest.mark.parametrize("fault", EC2_FAULTS.values(), ids=EC2_FAULTS.keys())
def test_an_ec2_call_that_never_ends_costs_only_its_own_instances(stage: Stage, fault: Reply) -> None:
    """More instances than one call may name, so that there are two calls at least."""
    states = ["terminated" if number % 20 == 0 else "stopping" for number in range(240)]
    instances = [stage.instances(1, state)[0] for state in states]
    workspaces = stage.fleet.insert(
        {"id": one, "instance_id": instance} for one, instance in zip(in_order(240), instances, strict=True)
    )
    stage.ec2.script.reply(fault, nth=1, action="DescribeInstances")
    outcome = timed_cycle(stage, 4)
    hung = next(call.filters["instance-id"] for call in stage.ec2.calls if call.action == "DescribeInstances")
    reached = {
        workspace: state
        for workspace, instance, state in zip(workspaces, instances, states, strict=True)
        if state == "terminated" and instance not in hung
    }
    assert outcome.flipped == reached.keys() != set()
    assert (outcome.report["unknown"], outcome.report["checked"]) == (len(hung), 240)


# --- the database ---


def lock_table(stage: Stage, table: str, locks: ExitStack) -> None:
    """Lock a table, as a migration of the platform would, until `locks` is left."""
    connection = locks.enter_context(contextlib.closing(stage.database.connect()))
    connection.run(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")


def test_rows_that_are_all_locked_are_passed_over_without_waiting(stage: Stage) -> None:
    dead = stage.add_all(20, "terminated")
    with stage.fleet.locked(*dead):
        outcome = timed_cycle(stage, 5, **MOSTLY_DEAD)
    outcome.assert_only_flipped({})
    assert outcome.skips == {"row_locked": 20}
    assert not outcome.report["deadline_hit"]
    timed_cycle(stage, 20, **MOSTLY_DEAD).assert_only_flipped(dict.fromkeys(dead, "terminated"))


def test_a_table_that_is_locked_from_the_start_ends_the_cycle_with_an_error_in_time(stage: Stage) -> None:
    stage.add("terminated")
    with ExitStack() as locks:
        lock_table(stage, "workspaces", locks)
        message = timed_failure(stage, 2)
    assert "timeout" in message or "no time is left" in message
    assert Snapshot.of(stage.database).events == []


@pytest.mark.parametrize("table", ["workspaces", "structure_events", "reconciler.restarts"])
def test_a_table_that_is_locked_right_before_the_flip_costs_the_flips_and_not_the_deadline(
    stage: Stage, table: str
) -> None:
    dead = stage.add("terminated")
    settings = stage.settings("control_plane") | MOSTLY_DEAD
    with ExitStack() as locks:
        stage.control_plane.script.before(lambda _: lock_table(stage, table, locks), nth=2)
        with ends_within(1), contextlib.suppress(StoreError):
            stage.invoke(CYCLE_DEADLINE_SECONDS="1", **settings)
    assert stage.fleet.statuses() == {dead: "online"}
    assert (stage.fleet.events(), stage.fleet.restarts(), stage.platform.calls) == ([], [], [])
    stage.fleet.age_everything(A_WHILE_S)
    stage.cycle(**settings).assert_only_flipped({dead: "terminated"})


@dataclass(frozen=True, slots=True)
class Freeze:
    """Where the database falls silent: before these words, or the ones after them; and how long a cycle is to last."""

    words: bytes
    then: bytes = b""
    deadline_s: float = 2


FREEZES = {
    "at its first words": Freeze(b"BEGIN", deadline_s=1),
    "as the lease is taken": Freeze(b"INSERT INTO reconciler.lease", deadline_s=1),
    "as the candidates are selected": Freeze(b"instance_id <> ", deadline_s=1),
    "as the flips are written": Freeze(FLIPS_WRITE),
    "as the flips are committed": Freeze(FLIPS_WRITE, then=b"COMMIT"),
    "as a restart is claimed": Freeze(b"claimed_by = "),
    "as a claim is committed": Freeze(b"claimed_by = ", then=b"COMMIT"),
    "as the cursor is saved": Freeze(b"SET cursor"),
    "as the lease is given back": Freeze(b"DELETE FROM reconciler.lease"),
}


@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES.keys())
def test_a_database_that_falls_silent_delays_no_cycle_and_leaves_nothing_half_done(
    stage: Stage, freeze: Freeze
) -> None:
    dead = stage.add_all(2, "terminated")
    with PostgresProxy(stage.database) as proxy:
        settings = stage.settings("control_plane") | MOSTLY_DEAD | {"DATABASE_URL": proxy.url}
        settings["CYCLE_DEADLINE_SECONDS"] = str(freeze.deadline_s)
        stage.cycle(DRY_RUN, **settings)  # the process is warm when it happens
        proxy.before(freeze.words, lambda: proxy.before(freeze.then, proxy.freeze) if freeze.then else proxy.freeze())
        with ends_within(freeze.deadline_s), contextlib.suppress(StoreError):
            stage.invoke(**settings)
        assert proxy.frozen
        proxy.thaw()
        go_on(stage, **settings | {"CYCLE_DEADLINE_SECONDS": "10"})
    assert_each_once(stage, dead)


def test_a_flip_that_the_network_lost_locks_its_row_only_for_a_moment(stage: Stage) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    with PostgresProxy(stage.database) as proxy, contextlib.closing(stage.database.connect()) as platform:
        proxy.before(FLIPS_WRITE, proxy.freeze)
        settings = {"DATABASE_URL": proxy.url, "RECONFIRM_TIMEOUT_SECONDS": "0.2", "CYCLE_DEADLINE_SECONDS": "2"}
        with contextlib.suppress(StoreError):
            stage.invoke(APPLY, **settings)
        assert proxy.frozen
        platform.run("SET lock_timeout = '5s'")
        platform.run("UPDATE workspaces SET status = 'paused' WHERE id::text = :id", id=dead)
        proxy.thaw()
    assert (stage.fleet.statuses()[dead], stage.fleet.events(), stage.fleet.restarts()) == ("paused", [], [])


def test_a_database_that_drips_its_answers_delays_no_cycle(stage: Stage) -> None:
    dead = stage.add("terminated")
    with PostgresProxy(stage.database) as proxy:
        settings = {"DATABASE_URL": proxy.url, "CYCLE_DEADLINE_SECONDS": "1"}
        stage.cycle(DRY_RUN, **settings)
        proxy.drip(0.03)
        with ends_within(1), pytest.raises(StoreError):
            stage.invoke(**settings)
    assert stage.fleet.statuses() == {dead: "online"}


# --- the platform, and the secrets ---


def test_a_platform_that_hangs_delays_no_cycle_and_is_not_asked_again_by_the_next(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead = stage.add_all(3, "terminated")
    stage.platform.instead.clear()
    stage.platform.instead.reply(Hang())
    outcome = timed_cycle(stage, 2)
    assert outcome.flipped == set(dead)
    assert Counter(call.workspace_id for call in outcome.calls) == dict.fromkeys(dead, 1)
    assert (outcome.report["restarts"]["uncertain"], outcome.report["restarts"]["pending"]) == (3, 3)
    assert timed_cycle(stage, 2).calls == []


class Silent(HttpStandIn):
    """A service that reads every request and never answers."""

    def handle(self, _: Request) -> Reply:
        return Hang()


@pytest.fixture
def silent_secrets() -> Iterator[dict[str, str]]:
    """The settings that lead to a Secrets Manager that never answers."""
    with Silent() as service:
        yield {"AWS_ENDPOINT_URL_SECRETS_MANAGER": service.url}


@pytest.mark.parametrize("kind", ["DATABASE", "CP"])
def test_a_secret_that_never_comes_is_named_in_time(stage: Stage, silent_secrets: dict[str, str], kind: str) -> None:
    stage.add("terminated")
    without = {"DATABASE": {"DATABASE_URL": None}, "CP": {"CP_SHARED_SECRET": None, "CP_ADMIN_TOKEN": None}}[kind]
    settings = stage.settings("control_plane") | silent_secrets | {f"{kind}_SECRET_ARN": SECRET_ARN} | without
    message = timed_failure(stage, 1, SecretError, **settings, DATABASE_HOST="127.0.0.1", DATABASE_NAME="any")
    assert message == f"{kind}_SECRET_ARN: the secret cannot be fetched: timeout"


def test_a_platform_secret_that_never_comes_leaves_the_restarts_owed(
    stage: Stage, silent_secrets: dict[str, str]
) -> None:
    dead = stage.add("terminated")
    settings = silent_secrets | {"PLATFORM_SECRET_ARN": SECRET_ARN}
    outcome = timed_cycle(stage, 2, **settings, PLATFORM_TOKEN=None, **MOSTLY_DEAD)
    assert outcome.flipped == {dead}
    assert (outcome.report["restarts"]["pending"], outcome.calls) == (1, [])
    stage.cycle(**MOSTLY_DEAD)
    assert_each_once(stage, [dead])


# --- Lambda ---


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_what_lambda_leaves_less_a_reserve_wins_when_it_is_shorter(stage: Stage, probe: str) -> None:
    stage.add_all(3, "terminated")
    stage.control_plane.script.reply(Hang())
    stage.ec2.script.reply(Hang())
    left_s = 4.5
    began_at = time.monotonic()
    report = stage.invoke.with_remaining(left_s)(**stage.settings(probe), **MOSTLY_DEAD)
    assert time.monotonic() - began_at < left_s - 1, "Lambda would have no time to hand the report over"
    assert (report["unknown"], report["deadline_hit"], report["flipped"]) == (3, True, 0)


def test_an_invocation_without_time_says_so_and_does_nothing(stage: Stage) -> None:
    dead = stage.add("terminated")
    with ends_within(0), pytest.raises(StoreError):
        stage.invoke.with_remaining(1)(**MOSTLY_DEAD)
    assert (stage.fleet.statuses(), stage.ec2.calls) == ({dead: "online"}, [])


# --- afterwards ---


def test_an_answer_that_comes_after_the_cycle_changes_nothing(stage: Stage) -> None:
    stage.add_all(3, "terminated")
    over = threading.Event()
    stage.control_plane.script.before(lambda _: over.wait())
    stage.ec2.script.before(lambda _: over.wait())
    for probe in ("ec2", "control_plane"):
        timed_cycle(stage, 1, **stage.settings(probe), **MOSTLY_DEAD)
    left = Snapshot.of(stage.database)
    over.set()
    stage.control_plane.drain()
    stage.ec2.drain()
    assert Snapshot.of(stage.database) == left
    assert (left.events, left.restarts, stage.platform.calls) == ([], [], [])


def run_frozen(stage: Stage, script: Script[Any], meanwhile: Callable[[], object], **which: Any) -> None:
    """Run a cycle, in a process that is frozen at a call until its lease is over and `meanwhile` is done."""

    def freeze(_: object) -> None:
        os.kill(process.process.pid, signal.SIGSTOP)
        stage.database.query("UPDATE reconciler.lease SET expires_at = now()")
        meanwhile()
        os.kill(process.process.pid, signal.SIGCONT)

    script.before(freeze, **which)
    with (
        stage.invoke.in_process(APPLY, **stage.settings("control_plane")) as process,
        contextlib.suppress(InvocationError),  # a cycle without its lease may say so, or go home
    ):
        process.wait()


@pytest.mark.parametrize("look", [1, 2], ids=["at the first look", "at the second look"])
def test_a_process_that_was_frozen_past_its_lease_flips_nothing(stage: Stage, look: int) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    run_frozen(stage, stage.control_plane.script, lambda: None, nth=look, workspace_id=dead)
    assert stage.fleet.statuses()[dead] == "online"
    assert (stage.fleet.events(), stage.fleet.restarts(), stage.platform.calls) == ([], [], [])
    stage.cycle()
    assert_each_once(stage, [dead])


def test_a_process_that_was_frozen_while_another_cycle_did_the_work_does_nothing_more(stage: Stage) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")

    def work() -> None:
        assert stage.cycle().report["flipped"] == 1
        stage.fleet.update(dead, status="online")  # the platform is early, and has not recorded the new instance yet

    run_frozen(stage, stage.control_plane.script, work, nth=2, workspace_id=dead)
    assert stage.fleet.statuses()[dead] == "online"
    assert len(stage.fleet.events()) == len(stage.fleet.restarts()) == len(stage.platform.calls) == 1


def test_a_process_that_was_frozen_among_its_restarts_leaves_the_rest_to_the_next_cycle(stage: Stage) -> None:
    dead = stage.add_all(20, "terminated")
    stage.invoke.environment |= MOSTLY_DEAD
    run_frozen(stage, stage.platform.instead, lambda: None, nth=1)
    assert len(stage.platform.calls) < 20
    go_on(stage)
    assert_each_once(stage, dead)


def test_a_process_that_was_frozen_after_a_claim_asks_for_no_restart_after_its_deadline(stage: Stage) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    with PostgresProxy(stage.database) as proxy, ExitStack() as processes:
        committed = threading.Event()

        def freeze() -> None:
            os.kill(frozen.process.pid, signal.SIGSTOP)
            committed.set()

        proxy.before(b"claimed_by = ", lambda: proxy.before(b"COMMIT", freeze))
        settings = stage.settings("control_plane") | {"DATABASE_URL": proxy.url, "CYCLE_DEADLINE_SECONDS": "3"}
        frozen = processes.enter_context(stage.invoke.in_process(APPLY, **settings))
        assert committed.wait(30)
        stage.fleet.database.query(
            "SELECT pg_sleep(extract(epoch FROM expires_at - clock_timestamp())) FROM reconciler.lease"
        )
        assert stage.fleet.restarts(dead)[0]["attempts"] == 1
        os.kill(frozen.process.pid, signal.SIGCONT)
        with contextlib.suppress(InvocationError):
            frozen.wait()
    assert stage.platform.calls == []
    stage.fleet.age_everything(A_WHILE_S)
    stage.cycle()
    assert_each_once(stage, [dead])


# --- a fair share ---


@pytest.mark.parametrize(
    ("earlier_answers_s", "last_one"),
    [([0.2], "unknown"), ([0.7, 0.7], "deferred")],
    ids=["had most of the time", "was begun late"],
)
def test_a_check_that_the_deadline_cut_off_counts_if_it_had_its_share(
    stage: Stage, earlier_answers_s: list[float], last_one: str
) -> None:
    ids = in_order(len(earlier_answers_s) + 1)
    stage.fleet.insert(
        {"id": one, "instance_id": instance}
        for one, instance in zip(ids, stage.instances(len(ids), "running"), strict=True)
    )
    for workspace, seconds in zip(ids, earlier_answers_s, strict=False):
        stage.control_plane.script.reply(state_answer("running", delay_s=seconds), workspace_id=workspace)
    stage.control_plane.script.reply(Hang(), workspace_id=ids[-1])
    report = timed_cycle(stage, 3, **stage.settings("control_plane"), PROBE_CONCURRENCY="1").report
    assert (report["running"], report[last_one], report["unknown"] + report["deferred"]) == (len(ids) - 1, 1, 1)
    assert report["completed_pass"] == (last_one == "unknown")
