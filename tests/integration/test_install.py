"""The installer against a real PostgreSQL."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from handler.errors import (
    ReconcilerError,
    RequestError,
    RightsMissingError,
    SchemaMissingError,
    SettingsError,
    StoreError,
)
from handler.install import lambda_handler, requested_role
from sandbox.lambda_context import LambdaContext
from sandbox.postgres import OWNER_ROLE, RECONCILER_ROLE, Database, PostgresServer

ROOT = Path(__file__).parents[2]
OTHER_ROLE = "other"
STRANGE_ROLE = 'it"s; DROP TABLE workspaces; --'

EVENT = json.loads((ROOT / "events" / "install.json").read_text())


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server, with two more roles."""
    quoted = [role.replace('"', '""') for role in (OTHER_ROLE, STRANGE_ROLE)]
    for role in quoted:
        postgres.execute(f'CREATE ROLE "{role}"')
    yield postgres
    for role in quoted:
        postgres.execute(f'DROP ROLE "{role}"')


@pytest.fixture
def bare(server: PostgresServer) -> Iterator[Database]:
    """A database without any table."""
    database = server.create_bare_database()
    yield database
    database.drop()


@pytest.fixture(params=["enum", "text"])
def empty(request: pytest.FixtureRequest, server: PostgresServer, bare: Database) -> Database:
    """A database with the platform's tables alone."""
    server.psql(bare.owner_url, ROOT / "sandbox" / "platform.sql", status_type=request.param)
    return bare


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("DATABASE_SECRET_ARN", "DATABASE_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_ROLE", RECONCILER_ROLE)
    return monkeypatch


def installed(environment: pytest.MonkeyPatch, url: str, event: object = EVENT) -> dict[str, Any]:
    environment.setenv("DATABASE_URL", url)
    return lambda_handler(event, LambdaContext())


def rights(database: Database, role: str) -> set[tuple[str, ...]]:
    """Return the role's rights on columns, as the catalogue tells them."""
    rows = database.query(
        "SELECT table_schema, table_name, column_name, privilege_type FROM information_schema.column_privileges"
        " WHERE grantee = :role",
        role=role,
    )
    return {tuple(map(str, row.values())) for row in rows}


def schemas(database: Database) -> set[str]:
    return {str(row["nspname"]) for row in database.query("SELECT nspname::text FROM pg_namespace")}


def test_the_first_time_it_creates_everything_and_says_so(environment: pytest.MonkeyPatch, empty: Database) -> None:
    report = installed(environment, empty.owner_url)
    assert report["role"] == RECONCILER_ROLE
    assert report["applied"] == ["infra/schema.sql", "infra/grants.sql"]
    tables = {f"reconciler.{table}" for table in ("doubts", "coverage", "lease", "restarts", "schema_version")}
    assert tables <= set(report["created"])
    assert "UPDATE (status) on workspaces" in report["granted"]
    json.dumps(report)


def test_the_second_time_it_changes_nothing_and_says_so(environment: pytest.MonkeyPatch, empty: Database) -> None:
    installed(environment, empty.owner_url)
    empty.query("UPDATE reconciler.coverage SET cursor = '00000000-0000-0000-0000-0000000000aa'")
    report = installed(environment, empty.owner_url)
    assert (report["created"], report["granted"]) == ([], [])
    (row,) = empty.query("SELECT cursor::text FROM reconciler.coverage")
    assert row["cursor"].endswith("aa"), "its state is kept"


def test_what_an_upgrade_adds_is_named(
    environment: pytest.MonkeyPatch, empty: Database, server: PostgresServer
) -> None:
    server.psql(empty.owner_url, ROOT / "tests" / "support" / "schema_0.sql")
    report = installed(environment, empty.owner_url)
    assert {"reconciler.schema_version", "reconciler.restarts_watched"} <= set(report["created"])
    assert "reconciler.restarts" not in report["created"]
    assert "SELECT on reconciler.schema_version" in report["granted"]


def test_it_gives_the_same_rights_as_psql_does(
    environment: pytest.MonkeyPatch, empty: Database, server: PostgresServer
) -> None:
    installed(environment, empty.owner_url)
    by_installer = rights(empty, RECONCILER_ROLE)
    other = server.create_database()
    assert by_installer == rights(other, RECONCILER_ROLE)
    other.drop()


def test_the_event_names_another_role_whatever_characters_it_has(
    environment: pytest.MonkeyPatch, empty: Database
) -> None:
    report = installed(environment, empty.owner_url, EVENT | {"role": STRANGE_ROLE})
    assert report["role"] == STRANGE_ROLE
    assert ("public", "workspaces", "status", "UPDATE") in rights(empty, STRANGE_ROLE)
    assert not rights(empty, RECONCILER_ROLE)


def refused(environment: pytest.MonkeyPatch, url: str, kind: type[ReconcilerError], event: object = EVENT) -> str:
    with pytest.raises(kind) as refusal:
        installed(environment, url, event)
    return str(refusal.value)


def test_a_role_that_is_not_there_is_named(environment: pytest.MonkeyPatch, empty: Database) -> None:
    said = refused(environment, empty.owner_url, StoreError, EVENT | {"role": "nobody"})
    assert said == "the database has no role nobody: create it, with LOGIN"
    assert "reconciler" not in schemas(empty)


def test_a_database_that_is_not_the_platform_s_is_left_as_it_was(
    environment: pytest.MonkeyPatch, bare: Database
) -> None:
    said = refused(environment, bare.owner_url, SchemaMissingError)
    assert said == 'infra/grants.sql: relation "workspaces" does not exist: is this the platform\'s database?'
    assert "reconciler" not in schemas(bare), "the schema was rolled back with the grants"


def test_a_login_that_may_not_create_is_told_which_right_it_lacks(
    environment: pytest.MonkeyPatch, empty: Database
) -> None:
    said = refused(environment, empty.url, RightsMissingError)
    assert said.startswith(f"infra/schema.sql: permission denied for database {empty.name}: ")


def test_a_login_that_may_create_but_does_not_own_the_tables_is_told_so(
    environment: pytest.MonkeyPatch, empty: Database
) -> None:
    empty.query(f"GRANT CREATE ON DATABASE {empty.name} TO {RECONCILER_ROLE}")
    said = refused(environment, empty.url, RightsMissingError)
    assert said.startswith("infra/grants.sql: permission denied for ")
    assert "reconciler" not in schemas(empty)


def test_grants_that_postgresql_only_warns_about_are_an_error(environment: pytest.MonkeyPatch, empty: Database) -> None:
    """A login with rights on the tables, but not to pass on: its GRANT succeeds, and grants nothing."""
    empty.query(f"GRANT CREATE ON DATABASE {empty.name} TO {RECONCILER_ROLE}")
    empty.query(f"GRANT SELECT, UPDATE, INSERT ON workspaces, structure_events TO {RECONCILER_ROLE}")
    said = refused(environment, empty.url, RightsMissingError, EVENT | {"role": OTHER_ROLE})
    assert said.startswith("the installer's login may not grant SELECT (id) on workspaces, ")
    assert "reconciler" not in schemas(empty)


def test_a_wrong_password_is_an_error_that_does_not_show_it(
    environment: pytest.MonkeyPatch, empty: Database, server: PostgresServer
) -> None:
    said = refused(environment, server.url(empty.name, user=OWNER_ROLE, password="hunter2"), StoreError)
    assert "password authentication failed" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ([], "event: found a list; expected a JSON object"),
        ({}, "event field install: found nothing; expected true"),
        ({"install": False}, "event field install: found False; expected true"),
        ({"install": "true"}, "event field install: found 'true'; expected true"),
        ({"install": True, "mode": "apply"}, "event field 'mode': unknown; expected install and, if need be, role"),
        ({"install": True, "role": ""}, "event field role: found ''; expected the name of a database role"),
        ({"install": True, "role": 7}, "event field role: found 7; expected the name of a database role"),
        ({"install": True, "role": None}, "event field role: found nothing; expected the name of a database role"),
        ({"install": True, "role": "a\0b"}, "event field role: found 'a\\x00b'; expected the name of a database role"),
        ({"install": True, "role": "ä" * 32}, "event field role: found '"),
        ({"install": True, "role": "public"}, "event field role: found 'public'; expected the name of a database role"),
        ({"install": True, "role": "none"}, "event field role: found 'none'; expected the name of a database role"),
    ],
)
def test_an_event_that_asks_for_something_else_is_refused(event: object, said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        requested_role(event, {"DATABASE_ROLE": "reconciler"})
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize("name", ["scheduled.json", "apply.json", "dry-run.json"])
def test_the_reconciler_s_events_are_refused(name: str) -> None:
    event = json.loads((ROOT / "events" / name).read_text())
    with pytest.raises(RequestError):
        requested_role(event, {"DATABASE_ROLE": "reconciler"})


@pytest.mark.parametrize("environment", [{}, {"DATABASE_ROLE": ""}, {"DATABASE_ROLE": "public"}])
def test_without_a_role_anywhere_the_variable_is_named(environment: Mapping[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_ROLE: found "):
        requested_role(EVENT, environment)


def test_the_sql_has_no_command_of_psql_but_the_role() -> None:
    for file in ("schema.sql", "grants.sql"):
        statements = [
            line for line in (ROOT / "infra" / file).read_text().splitlines() if not line.lstrip().startswith("--")
        ]
        assert not [line for line in statements if line.lstrip().startswith("\\")]
        assert not [line for line in statements if ":'" in line or ':"' in line.replace(':"role"', "")]


def test_a_role_that_may_not_use_the_platform_s_schema_is_named_and_nothing_is_installed(
    environment: pytest.MonkeyPatch, empty: Database, server: PostgresServer
) -> None:
    """Its cycles would find no tables, as if this were another database."""
    empty.query("CREATE SCHEMA plat")
    for table in ("workspaces", "structure_events"):
        empty.query(f"ALTER TABLE {table} SET SCHEMA plat")
    server.execute(f'ALTER ROLE {OWNER_ROLE} IN DATABASE "{empty.name}" SET search_path = plat')
    with pytest.raises(RightsMissingError, match=f"the role {RECONCILER_ROLE} lacks USAGE on schema plat, "):
        installed(environment, empty.owner_url)
    assert "reconciler" not in schemas(empty)
    empty.query(f"GRANT USAGE ON SCHEMA plat TO {RECONCILER_ROLE}")
    assert "UPDATE (status) on workspaces" in installed(environment, empty.owner_url)["granted"]
