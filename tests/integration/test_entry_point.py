"""Which events the handler accepts or refuses, what it answers, and what a narrowed cycle or a dry run does."""

import contextlib
import io
import json
import socket
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from handler.errors import ConnectionLostError, ReconcilerError, RightsMissingError
from sandbox.ec2 import AWS_ENVIRONMENT
from sandbox.http_server import Answer
from sandbox.postgres import Database
from tests.support.events import APPLY, DRY_RUN, SCHEDULED, event
from tests.support.invoke import Invoke
from tests.support.stage import Stage, recorded

SCHEDULED_RULE = event("scheduled-rule")
ID = "00000000-0000-4000-8000-000000000001"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:reconciler-AbCdEf"

SECRETS = {
    "DATABASE_URL": "database-pass-word",
    "CP_SHARED_SECRET": "shared-sec-ret",
    "CP_ADMIN_TOKEN": "admin-tok-en",
    "PLATFORM_TOKEN": "platform-tok-en",
    "AWS_SECRET_ACCESS_KEY": "aws-sec-ret",
}


# --- what is refused, before anybody is contacted ---


class World:
    """Everything that the settings point to, as one listener. It notices any contact, and never answers."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        host, port = listener.getsockname()
        url = f"http://{host}:{port}"
        self.invoke = Invoke(
            {
                **AWS_ENVIRONMENT,
                **SECRETS,
                "AWS_ENDPOINT_URL": url,
                "CP_BASE_URL": url,
                "PLATFORM_BASE_URL": url,
                "DATABASE_URL": f"postgresql://reconciler:{SECRETS['DATABASE_URL']}@{host}:{port}/x?sslmode=disable",
            }
        )

    def was_contacted(self) -> bool:
        """Tell whether anybody has connected since the last call."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True

    def refusal(self, event: Any, **changes: str | None) -> str:
        """Return the handler's error. Fail if there is none, if anybody was contacted, or if a secret shows."""
        with (
            recorded() as output,
            contextlib.redirect_stderr(io.StringIO()) as errors,
            pytest.raises(ReconcilerError) as refusal,
        ):
            self.invoke(event, **changes)
        assert not self.was_contacted()
        told = output.getvalue() + errors.getvalue() + "".join(traceback.format_exception(refusal.value))
        for secret in SECRETS.values():
            assert secret not in told
        return str(refusal.value)


@pytest.fixture
def world() -> Iterator[World]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        world = World(listener)
        yield world
        world.invoke.cold()


def test_what_is_not_refused_does_contact_the_database(world: World) -> None:
    with pytest.raises(ConnectionLostError), recorded():
        world.invoke(DRY_RUN, CYCLE_DEADLINE_SECONDS="1")
    assert world.was_contacted()


STATE_CHANGE = {
    "source": "aws.ec2",
    "detail-type": "EC2 Instance State-change Notification",
    "detail": {"instance-id": "i-0123456789abcdef0", "state": "terminated"},
}

# The field that the error has to name, and the event.
BAD_EVENTS: Mapping[str, tuple[str, Any]] = {
    "nothing": ("event", None),
    "a list": ("event", [APPLY]),
    "a string": ("event", '{"mode": "apply"}'),
    "a number": ("event", 1),
    "a mode of its own": ("mode", {"mode": "force"}),
    "a mode in capitals": ("mode", {"mode": "APPLY"}),
    "a mode with an underscore": ("mode", {"mode": "dry_run"}),
    "a mode that is nothing": ("mode", {"mode": None}),
    "a mode that is empty": ("mode", {"mode": ""}),
    "a mode that is a list": ("mode", {"mode": ["apply"]}),
    "a field of another name": ("dry_run", {"mode": "apply", "dry_run": True}),
    "a field in capitals": ("Mode", {"Mode": "apply"}),
    "a field without a name": ("''", {"": "apply"}),
    "ids that are no list": ("workspace_ids", APPLY | {"workspace_ids": ID}),
    "ids that are none": ("workspace_ids", APPLY | {"workspace_ids": []}),
    "ids that are nothing": ("workspace_ids", APPLY | {"workspace_ids": None}),
    "an id that is no UUID": ("workspace_ids[1]", APPLY | {"workspace_ids": [ID, "workspace-1"]}),
    "an id that is a number": ("workspace_ids[0]", APPLY | {"workspace_ids": [1]}),
    "an id with SQL": ("workspace_ids[0]", APPLY | {"workspace_ids": [f"{ID}' OR ''='"]}),
    "an id with a line break": ("workspace_ids[0]", APPLY | {"workspace_ids": [ID + "\n"]}),
    "no limit": ("limit", APPLY | {"limit": 0}),
    "a limit below nothing": ("limit", APPLY | {"limit": -1}),
    "a limit with a fraction": ("limit", APPLY | {"limit": 1.5}),
    "a limit in words": ("limit", APPLY | {"limit": "10"}),
    "a limit that is true": ("limit", APPLY | {"limit": True}),
    "an override in words": ("override_breaker", APPLY | {"override_breaker": "true"}),
    "an override that is a number": ("override_breaker", APPLY | {"override_breaker": 1}),
    "an override that is nothing": ("override_breaker", APPLY | {"override_breaker": None}),
    "a shard that there is not": ("shard", APPLY | {"shard": 2, "shards": 2}),
    "a state change of no instance": ("detail.instance-id", STATE_CHANGE | {"detail": {"state": "stopped"}}),
    "a state change that asks for more": ("mode", STATE_CHANGE | {"mode": "dry-run"}),
    "another service's event": ("source", {"source": "aws.s3", "detail-type": "Object Created", "detail": {}}),
    "an event of nobody": ("source", {"detail-type": "Scheduled Event"}),
    "another event of the scheduler": ("detail-type", SCHEDULED | {"detail-type": "Scheduled Action"}),
    "a scheduled event that asks for more": ("mode", SCHEDULED | {"mode": "dry-run"}),
    "a scheduled event that is narrowed": ("limit", SCHEDULED_RULE | {"limit": 1}),
    "a scheduled event with a detail": ("detail", SCHEDULED | {"detail": '{"mode": "dry-run"}'}),
    "a scheduled event with a list": ("detail", SCHEDULED_RULE | {"detail": []}),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_an_event_that_is_not_understood_is_refused_by_the_name_of_its_field(world: World, name: str) -> None:
    field, bad = BAD_EVENTS[name]
    error = world.refusal(bad)
    assert field in error
    assert "expected" in error


CONTROL_PLANE = {"PROBE": "control_plane"}
SECRET_DATABASE = {"DATABASE_URL": None, "DATABASE_SECRET_ARN": ARN, "DATABASE_HOST": "db", "DATABASE_NAME": "x"}

# The variable that the error has to name, and what is set (None: it is not).
BAD_SETTINGS: Mapping[str, tuple[str, Mapping[str, str | None]]] = {
    "another probe": ("PROBE", {"PROBE": "cloudtrail"}),
    "a probe in capitals": ("PROBE", {"PROBE": "EC2"}),
    "another mode": ("MODE", {"MODE": "live"}),
    "no Region": ("AWS_REGION", {"AWS_REGION": None}),
    "no database": ("DATABASE_URL", {"DATABASE_URL": None}),
    "an empty database": ("DATABASE_URL", {"DATABASE_URL": ""}),
    "two databases": ("DATABASE_SECRET_ARN", {"DATABASE_SECRET_ARN": ARN}),
    "another kind of database": ("DATABASE_URL", {"DATABASE_URL": "mysql://u:database-pass-word@h/x"}),
    "a database nowhere": ("DATABASE_URL", {"DATABASE_URL": "postgresql://u:database-pass-word@/x"}),
    "a database without a name": ("DATABASE_URL", {"DATABASE_URL": "postgresql://u:database-pass-word@h:5432"}),
    "a database of nobody": ("DATABASE_URL", {"DATABASE_URL": "postgresql://h:5432/x"}),
    "a database on no port": ("DATABASE_URL", {"DATABASE_URL": "postgresql://u:database-pass-word@h:all/x"}),
    "a database in a bracket": ("DATABASE_URL", {"DATABASE_URL": "postgresql://u:database-pass-word@[h/x"}),
    "a database with another option": ("DATABASE_URL", {"DATABASE_URL": "postgresql://u:p@h/x?options=-c"}),
    "an sslmode in the address": ("DATABASE_URL", {"DATABASE_URL": "postgresql://u:p@h/x?sslmode=always"}),
    "a secret's name in place of its ARN": ("DATABASE_SECRET_ARN", SECRET_DATABASE | {"DATABASE_SECRET_ARN": "db"}),
    "another ARN": ("DATABASE_SECRET_ARN", SECRET_DATABASE | {"DATABASE_SECRET_ARN": "arn:aws:iam::1:role/db"}),
    "a port beyond the last": ("DATABASE_PORT", SECRET_DATABASE | {"DATABASE_PORT": "65536"}),
    "a port in words": ("DATABASE_PORT", SECRET_DATABASE | {"DATABASE_PORT": "postgres"}),
    "another sslmode": ("DATABASE_SSLMODE", SECRET_DATABASE | {"DATABASE_SSLMODE": "on"}),
    "certificates that are not there": ("DATABASE_CA_FILE", {"DATABASE_CA_FILE": "/no/such/file.pem"}),
    "other certificates that are not there": ("HTTPS_CA_FILE", {"HTTPS_CA_FILE": "/no/such/file.pem"}),
    "another way to log in": ("DATABASE_AUTH", {"DATABASE_AUTH": "kerberos"}),
    "a token in the clear": ("DATABASE_SSLMODE", {"DATABASE_AUTH": "iam"}),
    "no control plane": ("CP_BASE_URL", CONTROL_PLANE | {"CP_BASE_URL": None}),
    "a control plane by file": ("CP_BASE_URL", CONTROL_PLANE | {"CP_BASE_URL": "file:///etc/passwd"}),
    "a control plane without a host": ("CP_BASE_URL", CONTROL_PLANE | {"CP_BASE_URL": "https://"}),
    "a control plane's login": ("CP_BASE_URL", CONTROL_PLANE | {"CP_BASE_URL": "https://u:admin-tok-en@cp"}),
    "a control plane's query": ("CP_BASE_URL", CONTROL_PLANE | {"CP_BASE_URL": "https://cp/?key=admin-tok-en"}),
    "a control plane with a blank": ("CP_BASE_URL", CONTROL_PLANE | {"CP_BASE_URL": "https://cp/a b"}),
    "a secret and its ARN": ("CP_SECRET_ARN", CONTROL_PLANE | {"CP_SECRET_ARN": ARN}),
    "a secret with a line break": ("CP_SHARED_SECRET", {"CP_SHARED_SECRET": "shared-sec-ret\r\nX-Admin: 1"}),
    "a token beyond ASCII": ("CP_ADMIN_TOKEN", {"CP_ADMIN_TOKEN": "admin-tok-en\u20ac"}),
    "a platform that is a word": ("PLATFORM_BASE_URL", {"PLATFORM_BASE_URL": "platform"}),
    "a platform on no port": ("PLATFORM_BASE_URL", {"PLATFORM_BASE_URL": "https://platform:99999"}),
    "a platform's token with a line break": ("PLATFORM_TOKEN", {"PLATFORM_TOKEN": "platform-tok-en\n"}),
    "a platform's token and its ARN": ("PLATFORM_SECRET_ARN", {"PLATFORM_SECRET_ARN": ARN}),
    "an organisation with a line break": ("PLATFORM_ORG_ID", {"PLATFORM_ORG_ID": "org\nX: 1"}),
}

NUMBERS = (
    *("CYCLE_DEADLINE_SECONDS", "PROBE_TIMEOUT_SECONDS", "RECONFIRM_TIMEOUT_SECONDS", "PROBE_CONCURRENCY"),
    *("CANDIDATE_LIMIT", "BREAKER_MAX_DEAD_FRACTION", "BREAKER_MIN_DEAD", "BREAKER_WINDOW_SECONDS"),
    *("ABSENT_SIGHTINGS", "ABSENT_MIN_AGE_SECONDS", "HEARTBEAT_FRESH_SECONDS", "RESTARTS_PER_CYCLE"),
    *("RESTART_RETRY_SECONDS", "RESTART_UNCERTAIN_SECONDS"),
)


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_that_is_not_understood_is_refused_by_the_name_of_its_variable(world: World, name: str) -> None:
    variable, settings = BAD_SETTINGS[name]
    error = world.refusal(DRY_RUN, **settings)
    assert variable in error


@pytest.mark.parametrize("variable", NUMBERS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "many", "1e99", "5 s"])
def test_a_number_that_makes_no_sense_is_refused_by_the_name_of_its_variable(
    world: World, variable: str, value: str
) -> None:
    error = world.refusal(DRY_RUN, **{variable: value})
    assert error.startswith(f"{variable}: found '{value}'; expected a")


# --- what is taken ---


def cursor(database: Database) -> dict[str, Any]:
    """Return how far the full cycles have got."""
    rows = database.query("SELECT cursor, pass_completed_at FROM reconciler.shard_coverage")
    return rows[0] if rows else {}


@pytest.mark.parametrize("scheduled", [SCHEDULED, SCHEDULED_RULE, APPLY], ids=["Scheduler", "rule", "by hand"])
def test_a_full_cycle_applies_moves_the_cursor_and_is_measured_once(stage: Stage, scheduled: Any) -> None:
    before = cursor(stage.database)
    stage.add_all(2, "running")
    workspace = stage.add("stopped")
    outcome = stage.cycle(scheduled)
    outcome.assert_only_flipped({workspace: "stopped"})
    assert (outcome.report["mode"], outcome.report["probe"], outcome.report["outcome"]) == ("apply", "ec2", "completed")
    assert cursor(stage.database) != before
    assert len(outcome.metrics()) == 1


def everything(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of all tables, with the transaction that wrote each."""
    tables = database.query(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
        " WHERE schemaname IN ('public', 'reconciler')"
    )
    names = [str(table["name"]) for table in tables]
    return {
        name: database.query(f"SELECT one::text, xmin::text FROM {name} AS one ORDER BY 1")  # noqa: S608 - its own
        for name in names
    }


SELECT_ONLY = """
    REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA reconciler FROM reconciler;
    REVOKE UPDATE (status, updated_at) ON workspaces FROM reconciler;
    REVOKE INSERT (event_type, workspace_id, payload) ON structure_events FROM reconciler
"""


MAY_WRITE = """
    GRANT INSERT, UPDATE, DELETE
    ON reconciler.lease, reconciler.doubts, reconciler.source_doubts, reconciler.restarts, reconciler.restart_stops,
       reconciler.holds, reconciler.shard_coverage
    TO reconciler;
    GRANT UPDATE (status, updated_at) ON workspaces TO reconciler;
    GRANT INSERT (event_type, workspace_id, payload) ON structure_events TO reconciler
"""


def let_it_only_read(stage: Stage) -> None:
    """Take away the reconciler's right to write until the next cycle has ended."""
    stage.database.query(SELECT_ONLY)
    stage.meanwhile.callback(stage.database.query, MAY_WRITE)


def a_busy_fleet(stage: Stage) -> dict[str, str]:
    """Set up a workspace for everything that an applied cycle would write; return the ones it would flip."""
    stage.add_all(6, "running")
    owed = stage.add("stopped")
    stage.add(None)
    stage.cycle(PLATFORM_BASE_URL=None).assert_only_owed(owed)
    stage.add("pending")
    return {one: state for state in ("stopped", "terminated") for one in stage.add_all(1, state)}


REHEARSALS = {
    "an event that says nothing": ({}, {}),
    "an event that says dry run": (DRY_RUN, {}),
    "a scheduled event under the ceiling": (SCHEDULED, {"MODE": "dry-run"}),
    "an applying event under the ceiling": (APPLY | {"override_breaker": True}, {"MODE": "dry-run"}),
}


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
@pytest.mark.parametrize("name", REHEARSALS)
def test_a_dry_run_writes_nothing_anywhere_and_needs_no_right_to(stage: Stage, probe: str, name: str) -> None:
    would_flip = a_busy_fleet(stage)
    let_it_only_read(stage)
    before = everything(stage.database)
    order, settings = REHEARSALS[name]
    outcome = stage.cycle(order, **stage.settings(probe), **settings)
    assert everything(stage.database) == before
    assert outcome.calls == []
    measured = [[float(len(would_flip))]] if order == SCHEDULED else []  # the schedule's dry runs alone say so
    assert [line["WouldFlip"] for line in outcome.metrics()] == measured
    report = outcome.report
    assert (report["mode"], report["outcome"], report["flipped"]) == ("dry-run", "completed", 0)
    assert {flip["workspace_id"]: flip["instance_state"] for flip in report["flips"]} == would_flip
    assert report["restarts"]["pending"] == 1


def test_an_applying_cycle_that_may_not_write_is_not_begun(stage: Stage) -> None:
    stage.add_all(2, "running")
    stage.add("stopped")
    let_it_only_read(stage)
    before = everything(stage.database)
    with pytest.raises(RightsMissingError, match=r"UPDATE \(status\) on workspaces.*infra/grants\.sql"):
        stage.cycle()
    assert everything(stage.database) == before
    assert stage.ec2.calls == []


# --- what narrows a cycle ---


def narrowed_to(workspaces: list[str]) -> dict[str, Any]:
    return {**APPLY, "workspace_ids": workspaces}


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_a_cycle_narrowed_to_some_workspaces_looks_at_nobody_else(stage: Stage, probe: str) -> None:
    stage.add_all(3, "stopped")
    asked_for = [stage.add("stopped"), stage.add("running")]
    paused = stage.add("stopped", status="paused")
    stranger = ID
    before = cursor(stage.database)
    outcome = stage.cycle(narrowed_to([*(one.upper() for one in asked_for), paused, stranger]), **stage.settings(probe))
    outcome.assert_only_flipped({asked_for[0]: "stopped"})
    assert (outcome.report["candidates"], outcome.report["completed_pass"]) == (2, False)
    assert (cursor(stage.database), outcome.metrics()) == (before, [])


def test_a_limit_looks_at_so_many_and_leaves_the_others_to_the_full_cycles(stage: Stage) -> None:
    stage.add_all(5, "running")
    before = cursor(stage.database)
    outcome = stage.cycle(APPLY | {"limit": 2})
    assert (outcome.report["candidates"], outcome.report["running"], outcome.report["completed_pass"]) == (2, 2, False)
    assert (cursor(stage.database), outcome.metrics()) == (before, [])


def with_an_owed_restart(stage: Stage) -> tuple[str, str]:
    """Return a workspace whose restart is owed, and one whose instance is dead."""
    stage.add_all(6, "running")
    owed = stage.add("stopped")
    stage.cycle(PLATFORM_BASE_URL=None).assert_only_owed(owed)
    return owed, stage.add("stopped")


def test_a_cycle_over_named_workspaces_asks_for_their_restarts_and_leaves_the_others_to_the_full_cycles(
    stage: Stage,
) -> None:
    owed, own = with_an_owed_restart(stage)
    outcome = stage.cycle(narrowed_to([own]))
    outcome.assert_only_flipped({own: "stopped"})
    assert outcome.report["restarts"] == dict.fromkeys(outcome.report["restarts"], 0) | {"accepted": 1, "pending": 1}
    stage.platform_is_at_work()
    full = stage.cycle()
    assert [call.workspace_id for call in full.calls] == [owed]
    assert full.report["restarts"]["pending"] == 0


def test_a_cycle_with_a_limit_asks_for_no_restart_and_leaves_its_own_to_the_full_cycles(stage: Stage) -> None:
    owed, own = with_an_owed_restart(stage)
    outcome = stage.cycle(APPLY | {"limit": 100})
    assert (outcome.flipped, outcome.calls) == ({own}, [])
    assert outcome.report["restarts"] == dict.fromkeys(outcome.report["restarts"], 0) | {"pending": 2}
    assert {call.workspace_id for call in stage.cycle().calls} == {owed, own}


# --- what is answered ---

ZERO: dict[str, Any] = {
    "mode": "apply",
    "probe": "ec2",
    "outcome": "completed",
    **dict.fromkeys(("candidates", "checked", "running", "transition", "dead", "absent", "unknown", "impaired"), 0),
    **dict.fromkeys(("flipped", "adopted"), 0),
    "completed_pass": True,
    "skipped": dict.fromkeys(
        (
            *("row_gone", "status_moved", "instance_cleared", "instance_changed", "row_locked", "on_hold"),
            *("fresh_heartbeat", "reconfirm_error", "not_confirmed", "breaker_open", "out_of_time"),
        ),
        0,
    ),
    "deferred": 0,
    "deadline_hit": False,
    "breaker_open": False,
    "restarts": dict.fromkeys(
        (
            *("accepted", "cancelled", "refused", "uncertain", "blocked", "pending"),
            *("backing_off", "unrecovered"),
        ),
        0,
    ),
    **dict.fromkeys(("on_hold", "oldest_doubt_seconds", "unrecorded", "offline_unowed"), 0),
    "targets_failed": [],
    "targets_empty": [],
    "flips": [],
}


def test_the_report_of_an_empty_fleet_has_every_field_and_nothing_in_it(stage: Stage) -> None:
    report = stage.cycle().report
    assert isinstance(report.pop("duration_ms"), int)
    assert report == ZERO


def test_the_report_of_a_busy_fleet_has_the_same_fields_and_is_json(stage: Stage) -> None:
    flipped = a_busy_fleet(stage)
    report = stage.cycle().report
    assert json.loads(json.dumps(report)) == report
    assert report.keys() == ZERO.keys() | {"duration_ms"}
    for name in "skipped", "restarts":
        assert report[name].keys() == ZERO[name].keys()
    assert sorted(report["flips"], key=str) == sorted(
        (
            {"workspace_id": one, "instance_id": stage.instance_of(one), "instance_state": state}
            for one, state in flipped.items()
        ),
        key=str,
    )


@pytest.mark.parametrize("mode", ["dry-run", "apply"])
def test_the_report_names_a_hundred_flips_and_counts_them_all(stage: Stage, mode: str) -> None:
    stage.add_all(120, "terminated")
    outcome = stage.cycle({"mode": mode, "override_breaker": True}, PLATFORM_BASE_URL=None)
    assert len(outcome.report["flips"]) == 100
    assert outcome.report["flipped"] == len(outcome.flipped) == (120 if mode == "apply" else 0)


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_no_secret_is_logged_by_a_cycle_in_which_everything_goes_wrong(stage: Stage, probe: str) -> None:
    stage.add_all(4, "running")
    dead, locked = stage.add_all(2, "stopped")
    stage.control_plane.script.reply(Answer(500, b"sandbox-shared-secret"), nth=1)
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(500, b"sandbox-platform-token"))
    with stage.fleet.locked(locked):
        outcome = stage.cycle(**stage.settings(probe))
    assert outcome.report["flipped"] + outcome.report["unknown"] >= 1
    password = stage.database.url.split(":")[2].split("@")[0]
    for secret in (password, "sandbox-platform-token", "sandbox-shared-secret", "sandbox-admin-token"):
        assert secret not in outcome.output
    assert dead in outcome.output
