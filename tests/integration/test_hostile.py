"""What an attacker who controls a row, a control plane, a platform or a role can make the function do.

docs/safety.md describes it. Some of these tests show what is *not* prevented: the page must not promise more.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pg8000.exceptions
import pytest

from handler.errors import StoreError
from sandbox.control_plane import state_answer
from sandbox.http_server import Answer, HttpStandIn, Reply, Request
from sandbox.postgres import RECONCILER_ROLE, PostgresServer
from tests.support.events import APPLY
from tests.support.stage import Stage, opened

ALIVE_S, SILENT_S = 5.0, 300.0
OUR_HEADERS = {
    *("host", "content-length", "accept-encoding", "user-agent", "accept", "content-type", "connection"),
    *("authorization", "x-molecule-admin-token", "cache-control"),
}

# --- a row ---

RECORDED = {
    "another parameter": "i-0a&state=stopped&admin=1",
    "another query": "i-0a?instance_id=i-0b#top",
    "another path": "../../../admin/terminate/",
    "another address": "http://169.254.169.254/latest/meta-data/",
    "a header": "i-0a\r\nX-Molecule-Admin-Token: stolen",
    "a request": "i-0a HTTP/1.1\r\nHost: elsewhere\r\n\r\nDELETE /cp/workspaces HTTP/1.1",
    "a line in the log": 'i-0a\n{"level":"ERROR","message":"breaker open"}',
    "SQL": "i-0a'; DROP TABLE workspaces; --",
    "a format": "%s%n{0.__class__}${jndi:ldap://elsewhere}",
    "no ASCII": "i-\u202e\u2028\U0001f480",
}


def test_whatever_a_row_records_stays_data_in_requests_statements_and_log_lines(stage: Stage) -> None:
    stage.add_all(len(RECORDED) + 1, "running")
    workspaces = stage.fleet.add_all(RECORDED.values())
    for workspace in workspaces:
        stage.control_plane.script.reply(state_answer("stopped"), workspace_id=workspace)
    outcome = stage.cycle(**stage.settings("control_plane"))
    recorded = dict(zip(workspaces, RECORDED.values(), strict=True))
    outcome.assert_only_flipped(dict.fromkeys(workspaces, "stopped"))
    for question in stage.control_plane.requests:
        assert question.instance_id == recorded.get(question.workspace_id, question.instance_id)
    assert {call.workspace_id: call.expected_instance_id for call in outcome.calls} == recorded
    for headers in [one.headers for one in stage.control_plane.requests] + [one.headers for one in outcome.calls]:
        assert headers.keys() <= OUR_HEADERS
    told = {line["workspace_id"]: line["instance_id"] for line in outcome.lines("workspace flipped")}
    assert told == {one: text[:64].encode("ascii", "backslashreplace").decode() for one, text in recorded.items()}
    assert outcome.lines("breaker open") == []


def test_hostile_rows_are_never_sent_to_ec2_and_stay(stage: Stage) -> None:
    stage.add("running")
    workspaces = stage.fleet.add_all(RECORDED.values())
    outcome = stage.cycle()
    outcome.assert_only_flipped({})
    assert outcome.causes == dict.fromkeys(workspaces, "malformed_instance_id")


@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
def test_an_instance_id_of_any_length_is_unknown_asks_nobody_and_stays(postgres: PostgresServer, encoding: str) -> None:
    """It is cut in the database, so that it takes no memory here. What is left of it is no instance id."""
    with opened(postgres, options=f"ENCODING '{encoding}' LOCALE 'C'") as stage:
        stage.add("running")
        stage.database.query("DROP INDEX idx_workspaces_instance_id")  # as it is, it takes 2,700 bytes at most
        workspaces = stage.fleet.add_all(["i-" + "0" * 63] * 3)
        long = "UPDATE workspaces SET instance_id = repeat(:text, :times) WHERE id = CAST(:id AS uuid)"
        stage.database.query(long, id=workspaces[1], text="\u202e", times=66)
        stage.database.query(long, id=workspaces[2], text="i-0a", times=12_500_000)
        for one in workspaces:
            stage.control_plane.script.reply(state_answer("stopped"), workspace_id=one)
        for probe in ("ec2", "control_plane"):
            outcome = stage.cycle(**stage.settings(probe))
            outcome.assert_only_flipped({})
            assert outcome.causes == dict.fromkeys(workspaces, "malformed_instance_id")
            assert len(json.dumps(outcome.report)) < 10_000
        assert {one.workspace_id for one in stage.control_plane.requests} & {*workspaces} == set()
        doubts = stage.fleet.doubts()
        # A server without an encoding does not take the text that it gave: that one is not remembered.
        assert {one["workspace_id"] for one in doubts} >= {workspaces[0], workspaces[2]}
        stage.cycle()  # and it is the same doubt in the next cycle
        assert [one["since"] for one in stage.fleet.doubts()] == [one["since"] for one in doubts]


def test_a_row_can_have_the_stopped_instance_of_a_paused_workspace_terminated(
    stage: Stage,
) -> None:
    """What is not prevented: only the platform, which terminates what a row records, can know whose it is."""
    stage.add("running")
    paused = stage.add("stopped", status="paused")
    thief = stage.fleet.add(stage.instance_of(paused))
    outcome = stage.cycle()
    outcome.assert_only_flipped({thief: "stopped"})
    assert [call.expected_instance_id for call in outcome.calls] == [stage.instance_of(paused)]


def test_a_workspace_whose_id_is_no_uuid_ends_the_cycle_and_gets_into_no_address(stage: Stage) -> None:
    database = stage.meanwhile.enter_context(contextlib.closing(stage.database.connect()))
    database.run("ALTER TABLE workspaces DROP CONSTRAINT workspaces_parent_id_fkey, ALTER id TYPE text")
    try:
        database.run(
            "INSERT INTO workspaces (id, name, status, instance_id)"
            " VALUES ('../../admin', 'one', 'online', 'i-00000000000000001')"
        )
        with pytest.raises(StoreError):
            stage.cycle(**stage.settings("control_plane"))
    finally:
        database.run("DELETE FROM workspaces; ALTER TABLE workspaces ALTER id TYPE uuid USING id::uuid")
        database.run("ALTER TABLE workspaces ADD FOREIGN KEY (parent_id) REFERENCES workspaces (id)")
    assert stage.control_plane.requests == []


# --- a control plane ---


def test_a_control_plane_that_calls_the_living_dead_takes_down_nobody_who_sends_heartbeats(stage: Stage) -> None:
    stage.add_all(6, "running")
    victims = stage.add_all(5, "running", heartbeat_age_s=ALIVE_S)
    for victim in victims:
        stage.control_plane.script.reply(state_answer("terminated"), workspace_id=victim)
    outcome = stage.cycle(**stage.settings("control_plane"))
    outcome.assert_only_flipped({})
    assert outcome.reasons == dict.fromkeys(victims, "fresh_heartbeat")


def test_a_control_plane_that_calls_the_living_dead_takes_down_at_most_half_of_the_silent_in_ten_minutes(
    stage: Stage,
) -> None:
    """What is not prevented: nobody else can tell that such an instance lives."""
    workspaces = stage.add_all(12, "running", heartbeat_age_s=SILENT_S)
    for victim in workspaces[:6]:
        stage.control_plane.script.reply(state_answer("terminated"), workspace_id=victim)
    settings = stage.settings("control_plane")
    stage.cycle(**settings).assert_only_flipped(dict.fromkeys(workspaces[:6], "terminated"))
    for victim in workspaces[6:]:
        stage.control_plane.script.reply(state_answer("terminated"), workspace_id=victim)
        outcome = stage.cycle(APPLY | {"workspace_ids": [victim]}, **settings)
        outcome.assert_only_flipped({})
        assert outcome.report["breaker_open"]


# --- a platform ---


class _Endless(HttpStandIn):
    """A platform that answers with an endless body."""

    def handle(self, _: Request) -> Reply:
        return Answer(body=b"x" * 10_000_000)


def test_a_platform_that_answers_with_a_flood_is_not_listened_to(stage: Stage) -> None:
    stage.add("running")
    dead = stage.add("terminated")
    with _Endless() as flood:
        outcome = stage.cycle(PLATFORM_BASE_URL=flood.url)
    assert outcome.report["restarts"]["accepted"] == 1
    assert outcome.flipped == {dead}
    assert "xxxx" not in outcome.output


def test_a_platform_can_put_restarts_off_for_a_day_and_no_longer(stage: Stage) -> None:
    stage.add("running")
    dead = stage.add("terminated")
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(429, headers={"Retry-After": "99999999"}))
    stage.cycle()
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(body=b"{}"))
    stage.fleet.age_everything(86_398)
    assert stage.cycle().calls == []
    stage.fleet.age_everything(3)
    assert [call.workspace_id for call in stage.cycle().calls] == [dead]


# --- the network ---


@pytest.fixture
def trap() -> Iterator[HttpStandIn]:
    """A proxy that nobody may use."""

    class Trap(HttpStandIn):
        def __init__(self) -> None:
            super().__init__()
            self.visited = threading.Event()

        def handle(self, _: Request) -> Reply:
            self.visited.set()
            return state_answer("terminated")

    with Trap() as trap:
        yield trap
        assert not trap.visited.is_set()
        assert trap.connections == 0


def test_no_proxy_is_followed(stage: Stage, trap: HttpStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setitem(os.environ, name, trap.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delitem(os.environ, name, raising=False)
    stage.add("running")
    dead = stage.add("terminated")
    for probe in ("ec2", "control_plane"):
        stage.fleet.update(dead, status="online")
        outcome = stage.cycle(**stage.settings(probe), BREAKER_WINDOW_SECONDS="0")
        assert (outcome.report["running"], outcome.flipped) == (1, {dead})


# --- the database's role ---

FORBIDDEN = {
    "reads the platform's columns": "SELECT name, url FROM workspaces",
    "reads the platform's events": "SELECT payload FROM structure_events",
    "points a row at another instance": "UPDATE workspaces SET instance_id = 'i-00000000000000001'",
    "forges a heartbeat": "UPDATE workspaces SET last_heartbeat_at = now()",
    "changes a runtime": "UPDATE workspaces SET runtime = 'external'",
    "adds a workspace": "INSERT INTO workspaces (name) VALUES ('one')",
    "deletes workspaces": "DELETE FROM workspaces",
    "empties the table": "TRUNCATE workspaces",
    "rewrites events": "UPDATE structure_events SET payload = NULL",
    "deletes events": "DELETE FROM structure_events",
    "dates an event back": "INSERT INTO structure_events (event_type, created_at) VALUES ('X', '2020-01-01')",
    "changes its own tables": "ALTER TABLE reconciler.restarts DROP COLUMN attempts",
    "adds to its schema": "CREATE TABLE reconciler.mine ()",
    "gives rights away": "GRANT SELECT ON reconciler.restarts TO public WITH GRANT OPTION",
    "makes roles": "CREATE ROLE mallory",
    "reads the server's files": "SELECT pg_read_file('postgresql.conf')",
    "runs programs": "COPY (SELECT 1) TO PROGRAM 'true'",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_functions_database_login_cannot_do_that(stage: Stage, name: str) -> None:
    with contextlib.closing(_as_reconciler(stage)) as connection:
        with pytest.raises(pg8000.exceptions.DatabaseError) as error:
            connection.run(FORBIDDEN[name])
        code = error.value.args[0]["C"]
    # insufficient_privilege, or a grant that has nothing to give
    assert code in ("42501", "0LP01")


def test_the_functions_database_login_can_take_any_workspace_offline_but_not_restart_the_living(
    stage: Stage,
) -> None:
    """What is not prevented, and what is: the flip needs the right, and each restart is preceded by a probe."""
    living = stage.add("running")
    with contextlib.closing(_as_reconciler(stage)) as connection:
        connection.run("UPDATE workspaces SET status = 'offline'")
        connection.run(
            "INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id)"
            " VALUES (CAST(:id AS uuid), :instance, gen_random_uuid())",
            id=living,
            instance=stage.instance_of(living),
        )
    outcome = stage.cycle()
    assert outcome.calls == []
    assert outcome.report["restarts"]["cancelled"] == 1


def _as_reconciler(stage: Stage) -> Any:
    server = stage.database._server  # noqa: SLF001 - only it knows the password
    return server.connect(stage.database.name, user=RECONCILER_ROLE)
