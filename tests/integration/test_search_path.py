"""Whatever somebody set in a pooled session, or planted where a path finds it first, has no effect."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.deadline import Deadline
from handler.errors import SchemaMissingError
from handler.install import install
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store.session import Session
from sandbox.postgres import RECONCILER_ROLE, PostgresServer
from tests.support.events import APPLY, DRY_RUN
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.stage import Stage, opened

INFRA = Path(__file__).parents[2] / "infra"
SCHEMA, GRANTS = INFRA / "schema.sql", INFRA / "grants.sql"
MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}

# What a path may find first, with the very arguments that are passed. Whoever calls one of these is caught.
PLANTED_FUNCTIONS = (
    *("now()", "clock_timestamp()", "pg_is_in_recovery()", "count(text)", "regexp_replace(text, text, text)"),
    *("set_config(text, text, boolean)", "current_setting(text)", "current_setting(text, boolean)"),
    *("to_regclass(text)", "to_regnamespace(text)", "row_security_active(oid)", "concat(text, text)", "hashtext(text)"),
    *("format(text, text, name)", "format(text, text, text)", "length(text)", "extract(text, interval)"),
    *("make_interval(secs double precision)", "max(timestamptz)", "unnest(text[])", "unnest(uuid[])"),
)
PLANTED_OPERATORS = (
    *(("=", one, one) for one in ("uuid", "text", "oid", "name", "timestamptz")),
    *(("<>", one, one) for one in ("text", '"char"')),
    *(("+", "timestamptz", "interval"), ("-", "timestamptz", "interval"), (">", "uuid", "uuid")),
    *(("<=", "timestamptz", "timestamptz"), (">", "timestamptz", "timestamptz"), ("=", "oid", "regclass")),
)


def planted(schema: str) -> Iterator[str]:
    """Yield the statements that put traps into a schema."""
    yield f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO PUBLIC"
    for function in PLANTED_FUNCTIONS:
        yield (
            f"CREATE FUNCTION {schema}.{function} RETURNS text LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION 'caught: {function}'; END $$"
        )
    for number, (operator, left, right) in enumerate(PLANTED_OPERATORS):
        yield (
            f"CREATE FUNCTION {schema}.trap_{number}({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION 'caught: {operator}'; END $$"
        )
        yield (
            f"CREATE OPERATOR {schema}.{operator}"
            f" (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {schema}.trap_{number})"
        )


def decoys(schema: str) -> Iterator[str]:
    """Yield the statements that put other tables of these names into a schema, with a dead workspace."""
    yield f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO PUBLIC"
    for table in ("workspaces", "structure_events"):
        yield f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL)"
        yield f"GRANT ALL ON {schema}.{table} TO PUBLIC"
    row = "('decoy', 'online', 'i-00000000000000dec')"
    yield f"INSERT INTO {schema}.workspaces (name, status, instance_id) VALUES {row}"  # noqa: S608 - our own words


TEMPORARY_TABLES = (
    """CREATE TEMPORARY TABLE workspaces (
        id uuid, status text, runtime text, instance_id text, last_heartbeat_at timestamptz, updated_at timestamptz
    )""",
    "CREATE TEMPORARY TABLE structure_events (event_type text, workspace_id uuid, payload jsonb)",
)
# What somebody leaves in a pooled session.
LEFT: dict[str, tuple[str, ...]] = {
    "an empty path": ("SELECT set_config('search_path', '', false)",),
    "another path": ("SET search_path = decoys, public",),
    "traps on the path": ("SET search_path = traps, pg_catalog, public",),
    "temporary tables": TEMPORARY_TABLES,
    "temporary tables first on the path": (*TEMPORARY_TABLES, "SET search_path = pg_temp, public"),
    "read only": ("SET default_transaction_read_only = on",),
    "another role": ("SET ROLE others",),
    # Not shorter: it holds until the second statement of a transaction.
    "little waiting": ("SET statement_timeout = '100ms'; SET lock_timeout = '1ms'",),
    "other words for times and numbers": ("SET TimeZone = 'Pacific/Chatham'; SET DateStyle = 'German'",),
    "other numbers": ("SET extra_float_digits = -15",),
    "row security off": ("SET row_security = off",),
    "a short transaction": ("SET transaction_timeout = '50ms'",),
}


@pytest.fixture(scope="module")
def others(postgres: PostgresServer) -> Iterator[None]:
    """A role without any rights, which ours may take on."""
    postgres.execute("CREATE ROLE others")
    postgres.execute(f"GRANT others TO {RECONCILER_ROLE}")
    yield
    postgres.execute("DROP ROLE others")


@pytest.fixture(scope="module")
def trapped(postgres: PostgresServer) -> Iterator[Stage]:
    """A stage whose database has traps and decoys in schemas of their own."""
    with opened(postgres) as stage, contextlib.closing(stage.database.connect()) as owner:
        for statement in (*planted("traps"), *decoys("decoys")):
            owner.run(statement)
        yield stage


@pytest.fixture
def stage(trapped: Stage) -> Iterator[Stage]:
    yield trapped
    trapped.clear()


@pytest.fixture(scope="module")
def pooler(postgres: PostgresServer, trapped: Stage) -> Iterator[PgBouncer]:
    if not PROGRAM.exists():
        pytest.skip("PgBouncer is not installed")
    with PgBouncer(postgres, trapped.database) as pooler:
        yield pooler
        trapped.invoke.cold()


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT.keys())
@pytest.mark.usefixtures("others")
def test_what_somebody_left_in_a_pooled_session_counts_for_nothing(
    stage: Stage, pooler: PgBouncer, left: tuple[str, ...]
) -> None:
    stage.add("running")
    dead, beating = stage.add("terminated"), stage.add("terminated", heartbeat_age_s=30)
    with contextlib.closing(pooler.connect()) as client:
        for statement in left:
            for _ in range(2):  # the one session and the other
                client.run(statement)
    try:
        outcome = stage.cycle(DATABASE_URL=pooler.url, **MOSTLY_DEAD)
        outcome.assert_only_flipped({dead: "terminated"})
        assert outcome.reasons == {beating: "fresh_heartbeat"}
        assert stage.database.query("SELECT status::text FROM decoys.workspaces") == [{"status": "online"}]
    finally:
        stage.invoke.cold()
        with contextlib.closing(pooler.connect()) as client:
            for _ in range(2):
                client.run("DISCARD ALL")


SETTINGS = {
    "search_path": ("public", "pg_catalog, pg_temp"),
    "synchronous_commit": ("remote_apply", "off"),  # as the sandbox's servers have it
    "TimeZone": ("Pacific/Chatham", "UTC"),
    "extra_float_digits": ("-15", "1"),
    "transaction_timeout": ("1h", "0"),
    "row_security": ("on", "off"),
    "array_nulls": ("off", "on"),
}


def test_every_setting_that_a_statement_may_rest_on_is_the_same_in_every_transaction(
    pooler: PgBouncer,
) -> None:
    session = Session(database_from({"DATABASE_URL": pooler.url}), Secrets(_nothing), _nothing)
    with contextlib.closing(pooler.connect()) as client:
        for name, (left, _) in SETTINGS.items():
            for _ in range(2):
                client.run(f"SET {name} = '{left}'")
        for _ in range(2):
            with session.transaction(Deadline(30.0)) as transaction:
                found = {name: transaction.run(f"SHOW {name}")[0][0] for name in SETTINGS}
            assert found == {name: setting for name, (_, setting) in SETTINGS.items()}
        session.close()
        for _ in range(2):
            client.run("DISCARD ALL")


# --- the role's own path ---


@contextlib.contextmanager
def own_path(postgres: PostgresServer, stage: Stage, path: str, role: str = RECONCILER_ROLE) -> Iterator[None]:
    """Make new sessions of the role begin with this path."""
    in_database = f"ALTER ROLE {role} IN DATABASE {stage.database.name}"
    postgres.execute(f"{in_database} SET search_path = {path}")
    stage.invoke.cold()
    try:
        yield
    finally:
        postgres.execute(f"{in_database} RESET search_path")
        stage.invoke.cold()


@pytest.mark.parametrize("path", ["traps, pg_catalog, public", "public, traps, pg_temp", "pg_catalog, public"])
def test_no_trap_is_stepped_into_on_a_path_of_the_role_s_own(stage: Stage, postgres: PostgresServer, path: str) -> None:
    dead = stage.add("terminated")
    with own_path(postgres, stage, path):
        stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})


def test_the_platform_s_tables_are_those_that_the_role_s_own_path_finds_first(
    stage: Stage, postgres: PostgresServer
) -> None:
    stage.add("terminated")
    with own_path(postgres, stage, "decoys, public"):
        report = stage.invoke(DRY_RUN, **MOSTLY_DEAD)
        assert (report["candidates"], report["absent"]) == (1, 1)


@pytest.mark.parametrize("path", ["nowhere", "''", "pg_temp"])
def test_a_path_that_leads_to_no_tables_is_named(stage: Stage, postgres: PostgresServer, path: str) -> None:
    with (
        own_path(postgres, stage, path),
        pytest.raises(SchemaMissingError, match=r"no table structure_events, workspaces: .* search_path"),
    ):
        stage.invoke()


@pytest.mark.parametrize("apply", ["psql", "installer"])
def test_tables_in_schemas_with_any_name_are_found_and_granted(postgres: PostgresServer, apply: str) -> None:
    """A cycle, the installer, and psql with the files: each finds them by its own role's path."""
    with opened(postgres) as stage:
        dead = stage.add("terminated")
        path = """"My App: 1's", events"""
        move = (
            """CREATE SCHEMA "My App: 1's"; CREATE SCHEMA events""",
            f"""GRANT USAGE ON SCHEMA "My App: 1's", events TO {RECONCILER_ROLE}""",
            """ALTER TABLE workspaces SET SCHEMA "My App: 1's"; ALTER TABLE structure_events SET SCHEMA events""",
            f"""REVOKE ALL ON events.structure_events FROM {RECONCILER_ROLE}""",
        )
        with own_path(postgres, stage, path), own_path(postgres, stage, path, "platform"):
            for statement in move:
                stage.database.query(statement)
            for connection in stage.database.idle:  # type: ignore[attr-defined]  # they began with another path
                connection.hang_up()
            stage.database.idle.clear()  # type: ignore[attr-defined]
            if apply == "psql":
                postgres.psql(stage.database.owner_url, GRANTS, role=RECONCILER_ROLE)
            else:
                with installing(stage) as session:
                    granted = install(session, RECONCILER_ROLE, Deadline(30.0))["granted"]
                assert "INSERT (payload) on structure_events" in granted
            stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})


@contextlib.contextmanager
def installing(stage: Stage) -> Iterator[Session]:
    session = Session(database_from({"DATABASE_URL": stage.database.owner_url}), Secrets(_nothing), _nothing)
    try:
        yield session
    finally:
        session.close()


def _nothing(*_: object) -> str:
    raise AssertionError("nothing is fetched here")


def test_the_installer_and_psql_step_into_no_trap(stage: Stage, postgres: PostgresServer) -> None:
    """They run as the owner, so a planted function would run as the owner, too."""
    with own_path(postgres, stage, "traps, pg_catalog, public", "platform"):
        stage.database.query("DROP SCHEMA reconciler CASCADE")
        postgres.psql(stage.database.owner_url, SCHEMA)
        with installing(stage) as session:
            assert install(session, RECONCILER_ROLE, Deadline(30.0))["created"] == []


def test_a_trigger_s_function_that_rests_on_a_path_is_named_as_what_it_is(postgres: PostgresServer) -> None:
    with opened(postgres) as stage:
        stage.add("terminated")
        for statement in (
            "CREATE TABLE notes (note text)",
            """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO notes VALUES ('changed'); RETURN NEW; END $$""",
            "CREATE TRIGGER note AFTER UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION note()",
        ):
            stage.database.query(statement)
        outcome = stage.cycle(APPLY, **MOSTLY_DEAD)
        assert outcome.skips == {"reconfirm_error": 1}
        (line,) = outcome.lines("re-read or flip failed")
        assert "a trigger's function has to name what it uses by its schema" in line["error"]
