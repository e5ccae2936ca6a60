"""The database goes away, comes back, refuses, lacks something, or is set up differently."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from handler.errors import (
    ConnectionLostError,
    LoginRefusedError,
    ReconcilerError,
    RightsMissingError,
    SchemaMissingError,
)
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.http_server import Answer
from sandbox.limited_ec2 import LimitedEc2
from sandbox.postgres import RECONCILER_ROLE, Database, PostgresServer, StatusType
from tests.support.events import APPLY, DRY_RUN
from tests.support.invoke import Invoke
from tests.support.marks import both_status_types
from tests.support.pooler import TransactionPooler
from tests.support.postgres_proxy import PostgresProxy
from tests.support.stage import Snapshot, Stage, opened

ROOT = Path(__file__).parents[2]
SCHEMA, GRANTS = ROOT / "infra" / "schema.sql", ROOT / "infra" / "grants.sql"
PLATFORM = ROOT / "sandbox" / "platform.sql"

OTHER_ROLE = "another_reconciler"
MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
# Long enough for leases to expire, for refusals to be tried again and for what is uncertain to be asked again.
A_WHILE_S = 400.0


@pytest.fixture
def stage(postgres: PostgresServer, status_type: StatusType) -> Iterator[Stage]:
    """A stage of its own, whose database may be left in any state."""
    with opened(postgres, status_type) as stage:
        yield stage


def failure(stage: Stage, kind: type[ReconcilerError], event: Any = APPLY, **settings: str | None) -> str:
    """Run a cycle that cannot be run, and must leave everything as it was; return its error's message."""
    before = Snapshot.of(stage.database)
    with pytest.raises(kind) as raised:
        stage.invoke(event, **settings)
    assert Snapshot.of(stage.database) == before
    return str(raised.value)


# --- it goes, and comes back ---


def test_a_database_that_is_down_is_an_error_and_a_warm_process_goes_on_when_it_is_back() -> None:
    with PostgresServer.start() as server, LimitedEc2() as ec2:
        database = server.create_database()
        fleet = Fleet(database)
        running, dead = fleet.add_all(ec2.add(2))
        ec2.set_state(str(fleet.row(dead)["instance_id"]), "terminated")
        invoke = Invoke({**ec2.environment, "DATABASE_URL": database.url})
        invoke(DRY_RUN)
        server.stop()
        with pytest.raises(ConnectionLostError, match=r"no connection to the database at '127\.0\.0\.1'"):
            invoke()
        server.start_again()
        assert invoke()["flipped"] == 1
        assert fleet.statuses() == {running: "online", dead: "offline"}
        invoke.cold()


def at_the_first_look(stage: Stage, then: Callable[..., object]) -> None:
    stage.control_plane.script.before(then, nth=1)


def at_the_second_look(stage: Stage, then: Callable[..., object]) -> None:
    stage.control_plane.script.before(then, nth=3)


def at_a_restart(stage: Stage, then: Callable[..., object]) -> None:
    stage.platform.instead.clear()
    stage.platform.instead.before(then, nth=1)
    stage.platform.instead.reply(Answer(body=b"{}"))


def at_once(_: Stage, then: Callable[..., object]) -> None:
    then()


@pytest.mark.parametrize("moment", [at_once, at_the_first_look, at_the_second_look, at_a_restart])
def test_sessions_that_are_killed_between_transactions_are_replaced_and_nothing_is_missed(
    stage: Stage, moment: Callable[..., object]
) -> None:
    """There is one dead workspace alone, so that no transaction is under way while somebody is asked something."""
    stage.add("running")
    dead = stage.add("terminated")
    settings = stage.settings("control_plane") | MOSTLY_DEAD
    stage.cycle(DRY_RUN, **settings)
    killed: list[int] = []
    moment(stage, lambda *_: killed.append(stage.database.terminate_sessions()))
    stage.cycle(**settings).assert_only_flipped({dead: "terminated"})
    assert killed == [1]


IN_A_FLIP = {
    "as the rows are locked": b"FOR NO KEY UPDATE",
    "as our own tables are read": b"AS last_restart ON true",
    "as everything is written": b"WITH asked AS MATERIALIZED",
}


@pytest.mark.parametrize("words", IN_A_FLIP.values(), ids=IN_A_FLIP.keys())
def test_a_session_that_is_killed_in_the_middle_of_a_set_of_flips_leaves_nothing_half_done(
    stage: Stage, words: bytes
) -> None:
    """Once: the set is tried again with smaller ones. Twice: that costs the one row in it."""
    with PostgresProxy(stage.database) as proxy:
        settings = {"DATABASE_URL": proxy.url, **MOSTLY_DEAD}
        dead = stage.add_all(3, "terminated")
        proxy.before(words, stage.database.terminate_sessions)
        stage.cycle(**settings).assert_only_flipped(dict.fromkeys(dead, "terminated"))
        stage.platform_is_at_work()
        dead = stage.add_all(3, "terminated")
        for nth in (1, 2):
            proxy.before(words, stage.database.terminate_sessions, nth=nth)
        outcome = stage.cycle(**settings)
        (missed,) = set(dead) - outcome.flipped
        outcome.assert_only_flipped(dict.fromkeys(outcome.flipped, "terminated"))
        assert outcome.reasons == {missed: "reconfirm_error"}
        stage.platform_is_at_work()
        stage.cycle(**settings).assert_only_flipped({missed: "terminated"})


# --- it lacks something ---


@pytest.fixture
def bare(postgres: PostgresServer) -> Iterator[Database]:
    """A database without any table."""
    database = postgres.create_bare_database()
    yield database
    database.drop()


@pytest.mark.parametrize("event", [APPLY, DRY_RUN], ids=["apply", "dry run"])
def test_without_the_schema_the_error_names_the_file_that_makes_it(
    stage: Stage, postgres: PostgresServer, bare: Database, event: Any
) -> None:
    postgres.psql(bare.owner_url, PLATFORM, status_type="enum")
    with pytest.raises(SchemaMissingError, match=r"infra/schema\.sql"):
        stage.invoke(event, DATABASE_URL=bare.url)


def test_a_database_that_is_not_the_platform_s_is_named_as_such(
    stage: Stage, postgres: PostgresServer, bare: Database
) -> None:
    postgres.psql(bare.owner_url, SCHEMA)
    bare.query(f"GRANT USAGE ON SCHEMA reconciler TO {RECONCILER_ROLE}")
    with pytest.raises(SchemaMissingError, match=r"no table structure_events, workspaces: .* the platform's database"):
        stage.invoke(DATABASE_URL=bare.url)


GRANTED = """
    SELECT relation.oid::regclass::text AS relation, '' AS field, privilege_type AS right
    FROM pg_class AS relation, aclexplode(relacl) WHERE grantee = CAST(:role AS regrole)
    UNION ALL
    SELECT attrelid::regclass::text, attname, privilege_type
    FROM pg_attribute, aclexplode(attacl) WHERE grantee = CAST(:role AS regrole)
"""


# Only the previous release needs it, which goes on working after an upgrade.
OF_THE_PREVIOUS_RELEASE = ("UPDATE", "reconciler.coverage")


def rights_of(database: Database, role: str) -> list[tuple[str, str]]:
    """Return all that a role was given on tables and columns, as `("UPDATE (status)", "workspaces")`."""
    rows = database.query(GRANTED, role=role)
    return sorted(
        (f"{row['right']} ({row['field']})" if row["field"] else row["right"], row["relation"]) for row in rows
    )


def test_each_right_is_needed_and_one_that_is_missing_is_named_before_anything_is_written(stage: Stage) -> None:
    stage.add("terminated")
    rights = rights_of(stage.database, RECONCILER_ROLE)
    assert len(rights) > 20
    for right, table in (one for one in rights if one != OF_THE_PREVIOUS_RELEASE):
        stage.database.query(f"REVOKE {right} ON {table} FROM {RECONCILER_ROLE}")
        message = failure(stage, RightsMissingError)
        assert f"{right} on {table}" in message
        assert "infra/grants.sql" in message
        assert stage.database.query("SELECT * FROM reconciler.lease") == []
        stage.database.query(f"GRANT {right} ON {table} TO {RECONCILER_ROLE}")
    assert rights_of(stage.database, RECONCILER_ROLE) == rights


def test_without_the_right_to_enter_the_schema_the_error_names_both(stage: Stage) -> None:
    stage.add("terminated")
    stage.database.query(f"REVOKE USAGE ON SCHEMA reconciler FROM {RECONCILER_ROLE}")
    message = failure(stage, RightsMissingError)
    assert "schema reconciler" in message
    assert "infra/grants.sql" in message


def test_a_dry_run_needs_no_right_to_write(stage: Stage) -> None:
    dead = stage.add("terminated")
    for right, table in rights_of(stage.database, RECONCILER_ROLE):
        if not right.startswith("SELECT"):
            stage.database.query(f"REVOKE {right} ON {table} FROM {RECONCILER_ROLE}")
    report = stage.cycle(DRY_RUN, **MOSTLY_DEAD).report
    assert [flip["workspace_id"] for flip in report["flips"]] == [dead]


@both_status_types
def test_the_least_privileged_role_can_do_everything_that_a_cycle_does(stage: Stage) -> None:
    stage.add("running")
    dead, absent = stage.add("terminated"), stage.add(None)
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(503), times=1)
    stage.platform.instead.reply(Answer(body=b"{}"))
    settings = MOSTLY_DEAD | {"ABSENT_SIGHTINGS": "2", "ABSENT_MIN_AGE_SECONDS": "0"}
    for _ in range(3):
        stage.cycle(**settings)
        stage.platform_is_at_work()
        stage.fleet.age_everything(A_WHILE_S)
    assert {one for one, status in stage.fleet.statuses().items() if status == "provisioning"} == {dead, absent}
    assert [one["outcome"] for one in stage.fleet.restarts()] == ["accepted", "accepted"]


# --- its files ---


def test_both_files_may_be_run_again_at_every_upgrade_and_keep_what_there_is(
    stage: Stage, postgres: PostgresServer
) -> None:
    stage.add_all(2, "running")
    stage.add("terminated")
    stage.add(None)
    stage.cycle(CANDIDATE_LIMIT="4")

    def state() -> list[Any]:
        coverage = stage.database.query("SELECT * FROM reconciler.shard_coverage")
        return [coverage, stage.fleet.doubts(), stage.fleet.restarts(), rights_of(stage.database, RECONCILER_ROLE)]

    before = state()
    assert all(before)
    for _ in range(2):
        postgres.psql(stage.database.owner_url, SCHEMA)
        postgres.psql(stage.database.owner_url, GRANTS, role=RECONCILER_ROLE)
    assert state() == before
    assert stage.cycle().report["outcome"] == "completed"


# --- it refuses the password ---


def test_a_wrong_password_is_an_error_that_does_not_show_it(stage: Stage, postgres: PostgresServer) -> None:
    url = postgres.url(stage.database.name, password="hunter2")
    with pytest.raises(LoginRefusedError, match=f'authentication failed for user "{RECONCILER_ROLE}"') as raised:
        stage.invoke(DATABASE_URL=url)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


class Login:
    """A role whose password is in a secret, and the settings that lead to it."""

    def __init__(self, postgres: PostgresServer, stage: Stage, moto: MotoEc2) -> None:
        self._postgres = postgres
        self._stage = stage
        self._moto = moto
        self._server = {"host": "127.0.0.1", "port": postgres.port, "dbname": stage.database.name}
        postgres.execute(f"CREATE ROLE {OTHER_ROLE} LOGIN")
        postgres.psql(stage.database.owner_url, GRANTS, role=OTHER_ROLE)
        self.change_password("first")
        self.settings = {"DATABASE_SECRET_ARN": self.tell("first"), "DATABASE_URL": None, "DATABASE_SSLMODE": "disable"}

    def change_password(self, password: str) -> None:
        self._postgres.execute(f"ALTER ROLE {OTHER_ROLE} PASSWORD '{password}'")

    def tell(self, password: str) -> str:
        """Put the password into the secret; return the secret's ARN."""
        return self._moto.put_secret("database", {"username": OTHER_ROLE, "password": password, **self._server})

    def kill_sessions(self) -> None:
        assert self._postgres.terminate_sessions(self._stage.database.name, user=OTHER_ROLE) == 1

    def fetched(self) -> int:
        """Return how often the secret was fetched so far."""
        return sum(call.action == "GetSecretValue" for call in self._moto.calls)


@pytest.fixture
def login(postgres: PostgresServer, cloud: Stage, moto: MotoEc2) -> Iterator[Login]:
    """A login by secret, for the database of `cloud`."""
    yield Login(postgres, cloud, moto)
    cloud.invoke.cold()
    cloud.database.drop()
    postgres.execute(f"DROP ROLE {OTHER_ROLE}")


def test_a_warm_process_goes_on_when_the_password_was_rotated(cloud: Stage, login: Login) -> None:
    cloud.add("running")
    dead = cloud.add("terminated")
    cloud.cycle(DRY_RUN, **login.settings)
    login.change_password("second")
    login.tell("second")
    cloud.cycle(DRY_RUN, **login.settings)
    assert login.fetched() == 1, "its session is still good, whatever the password is"
    login.kill_sessions()
    cloud.cycle(**login.settings).assert_only_flipped({dead: "terminated"})
    assert login.fetched() == 2


def test_a_rotation_that_is_not_over_yet_is_an_error_once_and_over_in_the_next_cycle(
    cloud: Stage, login: Login
) -> None:
    cloud.add("running")
    dead = cloud.add("terminated")
    cloud.cycle(DRY_RUN, **login.settings)
    login.change_password("second")
    login.kill_sessions()
    assert "password authentication failed" in failure(cloud, LoginRefusedError, **login.settings)
    assert login.fetched() == 2, "it is fetched anew once, not again and again"
    login.tell("second")
    cloud.cycle(**login.settings).assert_only_flipped({dead: "terminated"})


# --- it is set up in another way ---


def test_a_pooler_that_gives_each_transaction_another_session_finds_nothing_left_on_any(
    stage: Stage, postgres: PostgresServer
) -> None:
    stage.add("running")
    dead, absent = stage.add_all(2, "terminated"), stage.add(None)
    left_over = """
        SELECT name, setting FROM pg_settings WHERE source = 'session'
        UNION ALL SELECT 'prepared statement', name FROM pg_prepared_statements
        UNION ALL SELECT 'cursor', name FROM pg_cursors
        UNION ALL SELECT 'lock', mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
        UNION ALL SELECT 'channel', pg_listening_channels()
        UNION ALL SELECT 'temporary table', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
    """
    with TransactionPooler(postgres, stage.database) as pooler:
        settings = {"DATABASE_URL": pooler.url, **MOSTLY_DEAD}
        outcome = stage.cycle(**settings)
        outcome.assert_only_flipped(dict.fromkeys(dead, "terminated"))
        assert [row["workspace_id"] for row in stage.fleet.doubts()] == [absent]
        assert stage.cycle(**settings).report["completed_pass"]
        assert min(pooler.turns) > 5
        assert [session.run(left_over) for session in pooler.sessions] == [[], []]
        stage.invoke.cold()


ROLE_SETTINGS: Mapping[str, str] = {
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "timezone": "Pacific/Chatham",
    "datestyle": "German",
    "lock_timeout": "1ms",
    "client_encoding": "LATIN1",
}


@pytest.mark.parametrize(("setting", "value"), ROLE_SETTINGS.items(), ids=ROLE_SETTINGS.keys())
def test_what_an_administrator_sets_for_the_role_changes_no_outcome(
    stage: Stage, postgres: PostgresServer, setting: str, value: str
) -> None:
    postgres.execute(f"ALTER ROLE {RECONCILER_ROLE} IN DATABASE {stage.database.name} SET {setting} = '{value}'")
    stage.add("running")
    dead, beating = stage.add("terminated"), stage.add("terminated", heartbeat_age_s=30)
    with contextlib.closing(postgres.connect(stage.database.name, user=RECONCILER_ROLE)) as connection:
        assert connection.run(f"SHOW {setting}")[0][0].startswith(value)
    outcome = stage.cycle(**MOSTLY_DEAD)
    outcome.assert_only_flipped({dead: "terminated"})
    assert outcome.reasons == {beating: "fresh_heartbeat"}
