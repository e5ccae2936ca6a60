"""What went wrong in other projects of this kind, tried on this one. Each docstring names the public report."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sandbox import ec2_xml
from sandbox.ec2_xml import Instance
from sandbox.http_server import Answer
from sandbox.limited_ec2 import DescribeCall
from sandbox.postgres import RECONCILER_ROLE, PostgresServer
from tests.support.stage import Stage, opened

SCHEMA = Path(__file__).parents[2] / "infra" / "schema.sql"
POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
ALL_MAY_BE_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
# What a cycle may take until a test looks at the times that it has written.
A_CYCLE_S = 5.0


def page(states: dict[str, str], next_token: str | None = None) -> Answer:
    """Return a page of DescribeInstances with these instances."""
    rows = [Instance(one, state, "eu-central-1a", position=0) for one, state in states.items()]
    return Answer(body=ec2_xml.instances(rows, next_token, request_id="page"), headers={"Content-Type": "text/xml"})


def test_a_listing_whose_tokens_go_in_circles_is_given_up_at_once(stage: Stage) -> None:
    """A page leads to B, B leads back to A, and the client reads on as long as it has time: botocore#3778."""
    workspaces = stage.add_all(3, "running")

    def circling(call: DescribeCall) -> Answer:
        return page({}, next_token="B" if call.parameters.get("NextToken") == "A" else "A")

    stage.ec2.script.reply(circling, action="DescribeInstances")
    outcome = stage.cycle()
    assert outcome.causes == dict.fromkeys(workspaces, "garbled_answer")
    assert [call.action for call in stage.ec2.calls].count("DescribeInstances") == 3
    assert outcome.flipped == set()


@pytest.mark.parametrize("order", [("running", "stopped"), ("stopped", "running"), ("pending", "terminated")])
def test_an_instance_that_one_listing_calls_both_alive_and_dead_is_unknown(
    stage: Stage, order: tuple[str, str]
) -> None:
    """What moves during a listing stands on two pages (citrine-python#439), and one may be out of date (boto3#4386)."""
    workspace = stage.add("running")
    others = stage.add_all(3, "running")
    instance = stage.instance_of(workspace)
    running = {stage.instance_of(one): "running" for one in others}

    def twice(call: DescribeCall) -> Answer:
        first, second = ({instance: state} for state in order)
        return page(second) if "NextToken" in call.parameters else page(running | first, next_token="more")

    stage.ec2.script.reply(twice, action="DescribeInstances")
    outcome = stage.cycle()
    assert outcome.causes == {workspace: "garbled_answer"}
    assert outcome.report["running"] == len(others)
    outcome.assert_untouched(workspace)


def test_an_address_that_cannot_be_looked_up_for_a_moment_costs_a_retry_and_no_cycle(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver that says "try again" was taken for a final answer: smithy-typescript#2060, aws-cli#1766."""
    stage.add("running")
    dead = stage.add("stopped")
    look_up, port = socket.getaddrinfo, urlsplit(stage.ec2.url).port
    failures = [socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")]

    def flaky(host: Any, service: Any, *args: Any, **options: Any) -> Any:
        if str(service) == str(port) and failures:
            raise failures.pop()
        return look_up(host, service, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", flaky)
    outcome = stage.cycle(**ALL_MAY_BE_DEAD)
    assert failures == []
    outcome.assert_only_flipped({dead: "stopped"})


@pytest.mark.parametrize("ahead_s", [-1800, 1800])
def test_a_date_in_retry_after_is_read_by_the_clock_of_whoever_wrote_it(stage: Stage, ahead_s: float) -> None:
    """A date says nothing to a client whose clock differs; the answer's own Date does: carbon-apimgt#7059."""
    stage.add("running")
    stage.add("stopped")
    its_now = datetime.now(UTC) + timedelta(seconds=ahead_s)
    later = its_now + timedelta(seconds=600)
    stage.platform.instead.clear()
    dates = {"Date": format_datetime(its_now, usegmt=True), "Retry-After": format_datetime(later, usegmt=True)}
    stage.platform.instead.reply(Answer(429, headers=dates))
    assert stage.cycle(**ALL_MAY_BE_DEAD).report["restarts"]["refused"] == 1
    ((waits_s,),) = _rows(
        stage, "SELECT CAST(extract(epoch FROM ends_at - now()) AS float) FROM reconciler.restart_stops"
    )
    assert 600 - A_CYCLE_S < waits_s <= 600


def test_after_a_move_by_logical_replication_the_installer_makes_flips_possible_again(
    stage: Stage, postgres: PostgresServer
) -> None:
    """Rows move to the new server, identities begin at 1 again, and every insert collides: pglogical#136."""
    stage.add("running")
    stage.add_all(3, "stopped")
    assert stage.cycle(**ALL_MAY_BE_DEAD).report["flipped"] == 3
    _rows(stage, "UPDATE workspaces SET status = 'online'")
    _rows(stage, "ALTER TABLE reconciler.restarts ALTER COLUMN id RESTART")
    postgres.psql(stage.database.owner_url, SCHEMA)
    outcome = stage.cycle(**ALL_MAY_BE_DEAD)
    assert outcome.report["flipped"] == 3
    assert [row["id"] for row in stage.fleet.restarts()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("does", ["RETURN NULL", "NEW.status := OLD.status; RETURN NEW"])
def test_a_flip_that_a_trigger_undoes_counts_as_an_error_and_leaves_nothing(stage: Stage, does: str) -> None:
    """A trigger can make an UPDATE of no rows, or of none that matters, without an error: pgslice#26, pg_pathman#24."""
    stage.add("running")
    dead = stage.add("stopped")
    _rows(stage, f"CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {does}; END'")
    _rows(stage, "CREATE TRIGGER undo BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION undo()")
    try:
        outcome = stage.cycle(**ALL_MAY_BE_DEAD)
    finally:
        _rows(stage, "DROP FUNCTION undo CASCADE")
    outcome.assert_untouched(dead)
    assert outcome.skips == {"reconfirm_error": 1}
    assert "trigger" in outcome.lines("re-read or flip failed")[0]["error"]


@pytest.fixture
def postgres_15_stage() -> Iterator[Stage]:
    if not POSTGRES_15.is_dir():
        pytest.skip("PostgreSQL 15 is not installed")
    with PostgresServer.start(POSTGRES_15) as server, opened(server) as stage:
        yield stage


def test_a_hold_without_an_end_fails_no_cycle(postgres_15_stage: Stage) -> None:
    """Before version 17 PostgreSQL cannot subtract 'infinity' from a time: DocIntel#80."""
    stage = postgres_15_stage
    stage.add("running")
    dead = stage.add("stopped")
    stage.cycle(**ALL_MAY_BE_DEAD, PLATFORM_BASE_URL=None).assert_only_owed(dead)
    hold = "INSERT INTO reconciler.holds (workspace_id, reason, ends_at) VALUES (CAST(:id AS uuid), 'x', 'infinity')"
    _rows(stage, hold, id=dead)
    outcome = stage.cycle(**ALL_MAY_BE_DEAD)
    assert (outcome.report["restarts"]["pending"], outcome.report["on_hold"], outcome.calls) == (1, 1, [])
    (metrics,) = outcome.metrics()
    assert metrics["OldestRestartAge"] == [0.0]


def test_a_server_that_ends_idle_sessions_costs_no_cycle(stage: Stage, postgres: PostgresServer) -> None:
    """Between two invocations the server hangs up on the warm session: node-postgres#2718."""
    stage.add("running")
    postgres.execute(f"ALTER ROLE {RECONCILER_ROLE} SET idle_session_timeout = '200ms'")
    try:
        stage.invoke.cold()
        for _ in range(2):
            assert stage.cycle().report["running"] == 1
            while postgres.execute(f"SELECT FROM pg_stat_activity WHERE usename = '{RECONCILER_ROLE}'"):
                pass
    finally:
        postgres.execute(f"ALTER ROLE {RECONCILER_ROLE} RESET idle_session_timeout")


def _rows(stage: Stage, statement: str, **parameters: Any) -> list[list[Any]]:
    """Run a statement as the owner; return its rows."""
    return [list(row.values()) for row in stage.database.query(statement, **parameters)]
