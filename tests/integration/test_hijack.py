"""Nobody who may create something in the database gets a statement run in the installer's name."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handler.deadline import Deadline
from handler.errors import StoreError
from handler.install import install
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store.session import Session
from sandbox.postgres import OWNER_ROLE, RECONCILER_ROLE, Database, PostgresServer, PostgresServerError

INFRA = Path(__file__).parents[2] / "infra"
SCHEMA, GRANTS = INFRA / "schema.sql", INFRA / "grants.sql"

Apply = Callable[[], None]

# What a better match than the system's own functions looks like: the very types that the statements pass.
PLANTED = (
    *("concat(text, name)", "has_table_privilege(name, regclass, text)", "has_schema_privilege(name, oid, text)"),
    *("has_column_privilege(name, regclass, text, text)", "format(text, text, name)", "format(text, name)"),
    *("pg_has_role(oid, text)", "pg_has_role(name, oid, text)", "pg_describe_object(regclass, oid, integer)"),
    *("to_regclass(text)", "quote_ident(name)", "unnest(name[])", "hashtext(text)", "set_config(text, name, boolean)"),
)
TRAP = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'caught %', current_user; END $$"


def _never(*_: object) -> str:
    raise AssertionError("a URL needs no secret and no token")


@pytest.fixture(scope="module")
def mallory(postgres: PostgresServer) -> Iterator[str]:
    """A role that nobody gave anything."""
    postgres.execute("CREATE ROLE mallory")
    # Tests act as she would by SET ROLE. Whoever creates a role is such a member, too, and has none of its rights.
    postgres.execute(f"GRANT mallory TO {OWNER_ROLE} WITH INHERIT FALSE, SET TRUE")
    yield "mallory"
    postgres.execute("DROP ROLE mallory")


@pytest.fixture
def database(postgres: PostgresServer, mallory: str) -> Iterator[Database]:  # noqa: ARG001 - she outlives it
    """A database as deployed. What she owns goes with it."""
    database = postgres.create_database()
    yield database
    database.drop()


@pytest.fixture(params=["psql", "installer"])
def apply(request: pytest.FixtureRequest, postgres: PostgresServer, database: Database) -> Apply:
    """Apply the files: by psql, and by the installer."""

    def by_psql() -> None:
        postgres.psql(database.owner_url, SCHEMA)
        postgres.psql(database.owner_url, GRANTS, role=RECONCILER_ROLE)

    def by_installer() -> None:
        session = Session(database_from({"DATABASE_URL": database.owner_url}), Secrets(_never), _never)
        with contextlib.closing(session):
            install(session, RECONCILER_ROLE, Deadline(30.0))

    return by_psql if request.param == "psql" else by_installer


def prepare(database: Database, *statements: str) -> None:
    """Run statements as the owner, or after SET ROLE as somebody else, in one session."""
    with contextlib.closing(database.connect()) as connection:
        for statement in statements:
            connection.run(statement)


def refused(apply: Apply) -> str:
    with pytest.raises((PostgresServerError, StoreError)) as refusal:
        apply()
    assert "caught" not in str(refusal.value)
    assert "the schema reconciler is not only ours" in str(refusal.value)
    return str(refusal.value)


def test_a_better_match_in_public_is_not_called(database: Database, apply: Apply) -> None:
    """Up to PostgreSQL 14, everybody may create in `public`, and an upgrade keeps that."""
    prepare(
        database,
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "SET ROLE mallory",
        *(f"CREATE FUNCTION public.{function} RETURNS text {TRAP}" for function in PLANTED),
        f"CREATE FUNCTION public.trap(oid, oid) RETURNS boolean {TRAP}",
        "CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = public.trap)",
        f"CREATE FUNCTION public.trap(name, text) RETURNS boolean {TRAP}",
        "CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.trap)",
    )
    apply()
    prepare(database, "DROP SCHEMA reconciler CASCADE")
    apply()


def test_a_prepared_schema_is_refused(postgres: PostgresServer, database: Database, apply: Apply) -> None:
    """A default of hers would be evaluated by the installer's INSERT."""
    prepare(database, "DROP SCHEMA reconciler CASCADE", f'GRANT CREATE ON DATABASE "{database.name}" TO mallory')
    postgres.execute(f'ALTER ROLE {OWNER_ROLE} IN DATABASE "{database.name}" SET role = mallory')
    postgres.psql(database.owner_url, SCHEMA)  # as mallory
    postgres.execute(f'ALTER ROLE {OWNER_ROLE} IN DATABASE "{database.name}" RESET role')
    prepare(
        database,
        "SET ROLE mallory",
        f"CREATE FUNCTION reconciler.trap() RETURNS text {TRAP}",
        "DELETE FROM reconciler.coverage",
        "ALTER TABLE reconciler.coverage ADD trap text DEFAULT reconciler.trap()",
        "GRANT ALL ON SCHEMA reconciler TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA reconciler TO PUBLIC",
    )
    said = refused(apply)
    assert "schema reconciler (mallory)" in said
    assert "function reconciler.trap() (mallory)" in said


@pytest.mark.parametrize(
    ("preparation", "named"),
    [
        ((), "schema reconciler (mallory)"),
        (("CREATE VIEW reconciler.schema_version AS SELECT 9 AS version",), "view reconciler.schema_version (mallory)"),
    ],
    ids=["empty", "a view for the version"],
)
def test_a_schema_that_stood_there_before_the_first_install_is_refused(
    database: Database, apply: Apply, preparation: tuple[str, ...], named: str
) -> None:
    prepare(
        database,
        "DROP SCHEMA reconciler CASCADE",
        f'GRANT CREATE ON DATABASE "{database.name}" TO mallory',
        "SET ROLE mallory",
        "CREATE SCHEMA reconciler",
        *preparation,
    )
    assert named in refused(apply)


@pytest.mark.parametrize(
    ("right", "plant", "named"),
    [
        ("CREATE ON SCHEMA reconciler", (), "the right CREATE on schema reconciler (mallory)"),
        ("TRIGGER ON reconciler.lease", (), "the right TRIGGER on table reconciler.lease (mallory)"),
        ("ALL ON reconciler.lease", (), "the right TRIGGER on table reconciler.lease (mallory)"),
        ("REFERENCES (scope) ON reconciler.lease", (), "the right REFERENCES on table reconciler.lease (mallory)"),
        (
            "REFERENCES ON reconciler.lease",
            ("CREATE TABLE hers.leases (scope text REFERENCES reconciler.lease ON DELETE CASCADE)",),
            "table hers.leases, which refers to table reconciler.lease (mallory)",
        ),
        (
            "CREATE, USAGE ON SCHEMA reconciler",
            ("CREATE FUNCTION reconciler.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'",),
            "function reconciler.now() (mallory)",
        ),
        (
            "CREATE, USAGE ON SCHEMA reconciler",
            ("CREATE DOMAIN reconciler.uuid AS text",),
            "type reconciler.uuid (mallory)",
        ),
        (
            "TRIGGER ON reconciler.coverage",
            (
                f"CREATE FUNCTION hers.trap() RETURNS trigger {TRAP}",
                "CREATE TRIGGER trap BEFORE INSERT ON reconciler.coverage EXECUTE FUNCTION hers.trap()",
            ),
            "function hers.trap(), which trigger trap on table reconciler.coverage uses (mallory)",
        ),
    ],
)
def test_what_somebody_else_has_or_may_add_in_our_schema_is_refused(
    database: Database, apply: Apply, right: str, plant: tuple[str, ...], named: str
) -> None:
    prepare(
        database,
        "CREATE SCHEMA hers",
        "GRANT ALL ON SCHEMA hers TO mallory",
        "GRANT USAGE ON SCHEMA reconciler TO mallory",
        f"GRANT {right} TO mallory",
        "SET ROLE mallory",
        *plant,
        "RESET ROLE",
        # A trigger stays when the right to create it has gone.
        f"REVOKE {right} {'FROM mallory' if plant else 'FROM PUBLIC'}",
        "DELETE FROM reconciler.coverage",
    )
    assert named in refused(apply)


def test_a_default_that_calls_somebody_else_s_function_is_refused(database: Database, apply: Apply) -> None:
    """Its owner can replace the function at any time."""
    prepare(
        database,
        "CREATE SCHEMA hers",
        "GRANT ALL ON SCHEMA hers TO mallory",
        "SET ROLE mallory",
        "CREATE FUNCTION hers.harmless() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()'",
        "RESET ROLE",
        "ALTER TABLE reconciler.coverage ALTER cursor SET DEFAULT hers.harmless()",
    )
    default = "default value for column cursor of table reconciler.coverage"
    assert f"function hers.harmless(), which {default} uses (mallory)" in refused(apply)


@pytest.mark.parametrize("what", ["better matches", "hers", "the platform's"])
def test_a_superuser_runs_nothing_of_others_either(postgres: PostgresServer, database: Database, what: str) -> None:
    """To a superuser, everything seems to be a superuser's own."""
    if what == "better matches":
        prepare(
            database,
            "DROP SCHEMA reconciler CASCADE",
            "GRANT CREATE ON SCHEMA public TO PUBLIC",
            "SET ROLE mallory",
            *(f"CREATE FUNCTION public.{function} RETURNS text {TRAP}" for function in PLANTED),
        )
    if what == "hers":
        prepare(
            database,
            "DROP SCHEMA reconciler CASCADE",
            f'GRANT CREATE ON DATABASE "{database.name}" TO mallory',
            "SET ROLE mallory; CREATE SCHEMA reconciler",
        )
    superuser = postgres.url(database.name, user="postgres")

    def by_psql() -> None:
        postgres.psql(superuser, SCHEMA)
        postgres.psql(superuser, GRANTS, role=RECONCILER_ROLE)

    def by_installer() -> None:
        with contextlib.closing(
            Session(database_from({"DATABASE_URL": superuser}), Secrets(_never), _never)
        ) as session:
            install(session, RECONCILER_ROLE, Deadline(30.0))

    for apply in (by_psql, by_installer):
        if what == "better matches":
            apply()
        else:
            owner = "mallory" if what == "hers" else OWNER_ROLE
            assert f"schema reconciler ({owner})" in refused(apply)


def test_what_a_role_owns_of_which_the_login_is_a_member_is_ours(
    postgres: PostgresServer, database: Database, apply: Apply
) -> None:
    postgres.execute("CREATE ROLE owners")
    try:
        postgres.execute(f"GRANT owners TO {OWNER_ROLE}")
        prepare(
            database,
            f'GRANT CREATE ON DATABASE "{database.name}" TO owners',
            "ALTER SCHEMA reconciler OWNER TO owners",
            "ALTER TABLE reconciler.lease OWNER TO owners",
        )
        apply()
    finally:
        database.drop()
        postgres.execute("DROP ROLE owners")


def test_a_type_that_a_session_was_left_with_is_not_used(database: Database) -> None:
    """Temporary types are found before the system's own, unless the path says otherwise."""
    prepare(
        database,
        f"CREATE FUNCTION pg_temp.trap() RETURNS boolean {TRAP}",
        "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.trap())",
        "CREATE DOMAIN pg_temp.timestamptz AS pg_catalog.timestamptz CHECK (pg_temp.trap())",
        "CREATE DOMAIN pg_temp.name AS pg_catalog.name CHECK (pg_temp.trap())",
        SCHEMA.read_text(),
        GRANTS.read_text().replace(':"role"', RECONCILER_ROLE),
    )


# --- the platform's tables, as grants.sql finds them ---


def may_read(database: Database, role: str = RECONCILER_ROLE) -> set[str]:
    """Return the relations on whose ids the role has a right."""
    rows = database.query(
        "SELECT attrelid::regclass::text AS relation FROM pg_attribute, aclexplode(attacl)"
        " WHERE attname = 'id' AND grantee = CAST(CAST(:role AS text) AS regrole)",
        role=f'"{role}"',
    )
    return {row["relation"] for row in rows}


def test_a_temporary_table_is_not_taken_for_the_platform_s(database: Database) -> None:
    revoke = f"REVOKE ALL (id) ON workspaces FROM {RECONCILER_ROLE}"
    for path in ("public", "pg_temp, public", "public, pg_temp"):
        prepare(
            database,
            revoke,
            f"SET search_path = {path}",
            "CREATE TEMPORARY TABLE workspaces (LIKE public.workspaces)",
            "CREATE TEMPORARY TABLE structure_events (LIKE public.structure_events)",
            GRANTS.read_text().replace(':"role"', RECONCILER_ROLE),
        )
        assert may_read(database) == {"workspaces"}, path


def test_the_first_schema_of_the_path_counts_whatever_its_name(database: Database) -> None:
    prepare(
        database,
        """CREATE SCHEMA "it's; ""plat"" %I :x" """,
        """CREATE TABLE "it's; ""plat"" %I :x".workspaces (LIKE public.workspaces)""",
        f"REVOKE ALL (id) ON workspaces FROM {RECONCILER_ROLE}",
        """SET search_path = "it's; ""plat"" %I :x", public""",
        GRANTS.read_text().replace(':"role"', RECONCILER_ROLE),
    )
    assert may_read(database) == {'"it\'s; ""plat"" %I :x".workspaces'}


@pytest.mark.parametrize("role", ["public", "none", "nobody"])
def test_psql_grants_nothing_to_everybody_or_nobody(postgres: PostgresServer, database: Database, role: str) -> None:
    with pytest.raises(PostgresServerError, match=f'role "?{role}"? does not exist'):
        postgres.psql(database.owner_url, GRANTS, role=role)


# --- what else the role may do ---


def warnings(database: Database, role: str = "hers") -> list[str]:
    """Return what the installer warns about, which is what the file says to psql, too."""
    session = Session(database_from({"DATABASE_URL": database.owner_url}), Secrets(_never), _never)
    with contextlib.closing(session):
        said = install(session, role, Deadline(30.0))["warnings"]
    with contextlib.closing(database.connect()) as connection:
        connection.run(GRANTS.read_text().replace(':"role"', role))
        assert [notice[b"M"].decode() for notice in connection.notices if notice[b"S"] == b"WARNING"] == said
    return [warning.removeprefix(f"the role {role} ") for warning in said]


@pytest.fixture
def hers(postgres: PostgresServer, database: Database) -> Iterator[Database]:
    """A database with a role `hers`, which has what the reconciler's role has, and a role `group`."""
    postgres.execute("CREATE ROLE hers LOGIN")
    postgres.execute('CREATE ROLE "group"')
    yield database
    database.drop()
    for role in ("hers", '"group"'):
        postgres.execute(f"DROP ROLE {role}")


def test_nothing_is_warned_about_after_a_deployment_by_the_book(hers: Database) -> None:
    assert warnings(hers) == []


@pytest.mark.parametrize(
    ("grant", "warning"),
    [
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", ["may create in schema public"]),
        ("CREATE SCHEMA app; GRANT CREATE ON SCHEMA app TO hers", ["may create in schema app"]),
        (
            'CREATE SCHEMA app; GRANT CREATE ON SCHEMA app TO "group"; GRANT "group" TO hers',
            ["may create in schema app"],
        ),
        ("GRANT TRIGGER ON workspaces TO hers", ["may create triggers on public.workspaces"]),
        ("ALTER ROLE hers SUPERUSER", ["is a superuser"]),
        ("ALTER ROLE hers BYPASSRLS", ["may bypass row-level security"]),
        ("ALTER ROLE hers CREATEROLE CREATEDB", ["may create databases", "may create roles"]),
        (
            'ALTER ROLE "group" BYPASSRLS; GRANT "group" TO hers',
            ["may bypass row-level security as group, of which it is a member"],
        ),
        (
            "GRANT pg_write_all_data TO hers",
            ["is a member of pg_write_all_data"],
        ),
    ],
)
def test_what_the_role_may_do_besides_is_named(
    postgres: PostgresServer, hers: Database, grant: str, warning: list[str]
) -> None:
    for statement in grant.split("; "):
        if " ON " in statement or "SCHEMA" in statement:
            prepare(hers, statement)
        else:  # roles are the server's
            postgres.execute(statement)
    assert warnings(hers) == warning


def test_a_role_that_owns_the_platform_s_tables_is_named(database: Database) -> None:
    said = warnings(database, OWNER_ROLE)
    assert {"owns table public.workspaces", "may create in schema public", "may create in schema reconciler"} <= set(
        said
    )


def test_default_privileges_give_nobody_a_part_of_what_is_installed(database: Database, apply: Apply) -> None:
    """Many platforms give all new tables to their application's role. The next install must not be refused for it."""
    prepare(
        database,
        "DROP SCHEMA reconciler CASCADE",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO mallory, PUBLIC",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO mallory, PUBLIC",
    )
    apply()
    apply()
    (found,) = database.query("SELECT has_table_privilege('mallory', 'reconciler.lease', 'SELECT') AS reads")
    assert found["reads"], "the others of these rights are the platform's business"
