"""infra/schema.sql and infra/grants.sql on a real PostgreSQL: they install and upgrade, and block nobody."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from handler.deadline import Deadline
from handler.domain.shards import Shard
from handler.errors import RightsMissingError, RowLockedError, SchemaMissingError
from handler.install import install
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store.candidates import Candidates
from handler.store.lease import Lease
from handler.store.rights import SCHEMA_VERSION, check_rights
from handler.store.session import Session
from sandbox.postgres import RECONCILER_ROLE, Database, PostgresServer, PostgresServerError

ROOT = Path(__file__).parents[2]
SCHEMA, GRANTS, PLATFORM = (
    ROOT / "infra" / "schema.sql",
    ROOT / "infra" / "grants.sql",
    ROOT / "sandbox" / "platform.sql",
)
# The last schema without a version number.
SCHEMA_0 = ROOT / "tests" / "support" / "schema_0.sql"
# An older one: no restart is watched or backs off, and there are no holds.
OLDEST = """
    DROP TABLE reconciler.holds;
    ALTER TABLE reconciler.restarts DROP COLUMN streak, DROP COLUMN paused_until, DROP COLUMN watched_until
"""

# Nothing that the schema file does may take longer. The file itself gives up after 2 seconds.
SECONDS = 10.0
NOTHING_CHANGED = "nothing was changed: for 2 seconds other sessions"
TRY_AGAIN = "Run infra/schema.sql again"

OWN_TABLES = {
    *("coverage", "doubts", "holds", "lease", "restart_stops", "restarts", "schema_version", "shard_coverage"),
    "source_doubts",
}
VIEW = "workspace_restarts"

Apply = Callable[[Database], None]
CYCLE_ID = "00000000-0000-0000-0000-0000000000c1"


def _never(*_: object) -> NoReturn:
    raise AssertionError("a URL needs no secret and no token")


@contextmanager
def session(url: str) -> Iterator[Session]:
    """The handler's own session."""
    opened = Session(database_from({"DATABASE_URL": url}), Secrets(_never), _never)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def connection(database: Database) -> Iterator[Any]:
    """A connection as the owner, closed at the end in whatever state it is."""
    opened = database.connect()
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def bare(postgres: PostgresServer) -> Iterator[Database]:
    """A database without any table."""
    database = postgres.create_bare_database()
    yield database
    database.drop()


@pytest.fixture(params=["enum", "text"])
def empty(request: pytest.FixtureRequest, postgres: PostgresServer, bare: Database) -> Database:
    """A database with the platform's tables alone."""
    postgres.psql(bare.owner_url, PLATFORM, status_type=request.param)
    return bare


@pytest.fixture
def old(postgres: PostgresServer, bare: Database) -> Database:
    """A database with the last schema that has no version number."""
    postgres.psql(bare.owner_url, PLATFORM, status_type="enum")
    postgres.psql(bare.owner_url, SCHEMA_0)
    return bare


@pytest.fixture(params=["psql", "installer"])
def apply(request: pytest.FixtureRequest, postgres: PostgresServer) -> Apply:
    """Apply the files: by psql, and by the installer."""

    def by_psql(database: Database) -> None:
        postgres.psql(database.owner_url, SCHEMA)
        postgres.psql(database.owner_url, GRANTS, role=RECONCILER_ROLE)

    def by_installer(database: Database) -> None:
        with session(database.owner_url) as opened:
            install(opened, RECONCILER_ROLE, Deadline(SECONDS * 3))

    return by_psql if request.param == "psql" else by_installer


def structure(database: Database) -> dict[str, list[Any]]:
    """Return what the schema consists of: columns, constraints, triggers, indexes and comments."""
    queries = {
        "columns": """
            SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity
            FROM information_schema.columns WHERE table_schema = 'reconciler' ORDER BY table_name, ordinal_position
        """,
        # PostgreSQL 18 also names NOT NULL, after the column's first name.
        "constraints": """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'reconciler'::regnamespace AND contype <> 'n' ORDER BY 1, 2
        """,
        "triggers": """
            SELECT tgrelid::regclass::text, pg_get_triggerdef(pg_trigger.oid), pg_get_functiondef(tgfoid)
            FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
            WHERE relnamespace = 'reconciler'::regnamespace AND NOT tgisinternal ORDER BY 1, 2
        """,
        "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'reconciler' ORDER BY indexname",
        "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'reconciler'",
        "comments": """
            SELECT relname, attname, description FROM pg_description
            JOIN pg_class ON pg_class.oid = objoid AND classoid = 'pg_class'::regclass
            LEFT JOIN pg_attribute ON attrelid = objoid AND attnum = objsubid AND objsubid > 0
            WHERE relnamespace = 'reconciler'::regnamespace ORDER BY 1, 2 NULLS FIRST
        """,
    }
    return {name: [tuple(row.values()) for row in database.query(sql)] for name, sql in queries.items()}


def version(database: Database) -> int:
    (row,) = database.query("SELECT version FROM reconciler.schema_version")
    return int(row["version"])


def require(database: Database) -> None:
    """Check, as the reconciler's role, that a cycle could run."""
    with session(database.url) as opened:
        check_rights(opened, Deadline(SECONDS), to_apply=True)


# --- a new schema ---


def test_a_new_schema_has_the_version_that_the_code_needs(empty: Database, apply: Apply) -> None:
    apply(empty)
    assert version(empty) == SCHEMA_VERSION
    assert {row[0] for row in structure(empty)["columns"]} == OWN_TABLES | {VIEW}
    assert len(empty.query("SELECT FROM reconciler.coverage")) == 1
    require(empty)


def test_the_file_may_be_run_again_and_changes_nothing(empty: Database, apply: Apply) -> None:
    def state() -> list[Any]:
        tables = [empty.query(f"SELECT xmin::text, * FROM reconciler.{table}") for table in sorted(OWN_TABLES)]  # noqa: S608
        return [structure(empty), tables]

    apply(empty)
    empty.query("UPDATE reconciler.coverage SET cursor = gen_random_uuid()")
    before = state()
    apply(empty)
    assert state() == before


def test_the_owner_of_the_schema_need_not_be_able_to_create_one(postgres: PostgresServer, bare: Database) -> None:
    """A database administrator may create the schema beforehand."""
    administrator = postgres.connect(bare.name, user="postgres")
    administrator.run(f"CREATE SCHEMA reconciler AUTHORIZATION {RECONCILER_ROLE}")
    administrator.close()
    postgres.psql(bare.url, SCHEMA)
    with session(bare.url) as opened, opened.transaction(Deadline(SECONDS)) as transaction:
        assert transaction.run("SELECT version FROM reconciler.schema_version") == [[SCHEMA_VERSION]]


@pytest.mark.parametrize("lost", ["DROP TABLE reconciler.doubts", "DROP TABLE reconciler.schema_version"])
def test_a_table_that_was_dropped_is_created_again_and_the_others_keep_their_rows(
    database: Database, apply: Apply, lost: str
) -> None:
    before = structure(database)
    database.query("UPDATE reconciler.coverage SET cursor = '00000000-0000-0000-0000-0000000000aa'")
    database.query(lost)
    with pytest.raises(SchemaMissingError, match=r"run infra/schema\.sql"):
        require(database)
    apply(database)
    require(database)
    assert structure(database) == before
    (row,) = database.query("SELECT cursor::text FROM reconciler.coverage")
    assert row["cursor"].endswith("aa")


def test_the_view_that_was_dropped_is_created_again_and_no_cycle_misses_it(database: Database, apply: Apply) -> None:
    before = structure(database)
    database.query(f"DROP VIEW reconciler.{VIEW}")
    require(database)
    apply(database)
    assert structure(database) == before


def test_a_coverage_that_lost_its_row_gets_it_back(database: Database, apply: Apply) -> None:
    database.query("DELETE FROM reconciler.coverage")
    apply(database)
    assert len(database.query("SELECT FROM reconciler.coverage")) == 1


# --- an upgrade from the schemas that had no version number ---


OLD_DATA = """
    UPDATE reconciler.sweep SET cursor = '00000000-0000-0000-0000-00000000000c',
        pass_began_at = '00000000-0000-0000-0000-00000000000b', first = '{00000000-0000-0000-0000-00000000000f}',
        began_at = '2026-01-01', pass_completed_at = '2026-01-02';
    INSERT INTO reconciler.lease VALUES ('fleet', '00000000-0000-0000-0000-000000000001', '2026-01-01', '2026-01-02');
    INSERT INTO reconciler.absences
    VALUES ('00000000-0000-0000-0000-00000000000a', 'i-absent', 2, '2026-01-01', '2026-01-02');
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, flipped_at, attempts, refusals, claimed_by,
                                     asked_at, next_attempt_at, last_answer, closed_at, outcome)
    SELECT gen_random_uuid(), instance_id, gen_random_uuid(), '2026-01-01', 3, 2, gen_random_uuid(),
           '2026-01-02', '2026-01-03', last_answer, CAST(closed_at AS timestamptz), outcome
    FROM (VALUES ('i-owed', NULL, NULL, NULL), ('i-claimed', 'asked', NULL, NULL), ('i-refused', 'refused', NULL, NULL),
                 ('i-blocked', 'blocked', NULL, NULL), ('i-uncertain', 'uncertain', NULL, NULL),
                 ('i-paid', 'asked', '2026-01-04', 'paid'), ('i-void', NULL, '2026-01-04', 'void'))
         AS restart (instance_id, last_answer, closed_at, outcome)
"""
LEASE = "scope, holder, acquired_at, expires_at"
YOUNGER_DATA = """
    INSERT INTO reconciler.holds
    VALUES ('00000000-0000-0000-0000-00000000000d', 'a new disk', '2026-01-01', '2026-01-02');
    UPDATE reconciler.restarts SET streak = 4, paused_until = '2026-01-05' WHERE instance_id = 'i-owed';
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, closed_at, outcome, watched_until)
    VALUES (gen_random_uuid(), 'i-watched', gen_random_uuid(), '2026-01-04', 'paid', '2026-01-06')
"""


def rows(database: Database, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
    """Return a table's rows with times as dates."""
    found = database.query(f"SELECT {columns} FROM reconciler.{table} ORDER BY 1")  # noqa: S608 - names from below
    return [tuple(str(value)[:10] if hasattr(value, "tzinfo") else value for value in row.values()) for row in found]


def restarts(database: Database, columns: str) -> dict[str, tuple[Any, ...]]:
    return {row[0]: row[1:] for row in rows(database, "restarts", f"instance_id, {columns}")}


@pytest.mark.parametrize("oldest", [False, True], ids=["last without a version", "oldest"])
def test_an_old_schema_becomes_the_same_as_a_new_one_and_keeps_its_data(
    empty: Database, database: Database, postgres: PostgresServer, apply: Apply, *, oldest: bool
) -> None:
    postgres.psql(empty.owner_url, SCHEMA_0)
    for statements in (OLD_DATA, OLDEST if oldest else YOUNGER_DATA):
        empty.query(statements)
    kept = "workspace_id, cycle_id, flipped_at, attempts, refusals, claimed_by, asked_at, closed_at"
    absences, lease, before = rows(empty, "absences"), rows(empty, "lease", LEASE), restarts(empty, kept)
    assert len(absences) == 1

    apply(empty)

    assert structure(empty) == structure(database)
    assert version(empty) == SCHEMA_VERSION
    doubts = rows(empty, "doubts", "workspace_id, instance_id, sightings, since, last_seen_at")
    assert (doubts, rows(empty, "lease", LEASE), restarts(empty, kept)) == (absences, lease, before)
    assert rows(empty, "doubts", "kind, by_hand, offline_since") == [("absent", False, None)]
    (coverage,) = rows(
        empty, "coverage", "cursor::text, pass_start::text, brought_forward::text, first_cycle_at, pass_completed_at"
    )
    assert [str(one).strip("{}")[-1] for one in coverage[:3]] == ["c", "b", "f"]
    assert coverage[3:] == ("2026-01-01", "2026-01-02")

    found = restarts(empty, "due_at, last_answer, outcome, watch_ended_at")
    watched = found.pop("i-watched", None)
    assert found == {
        "i-owed": ("2026-01-03", None, None, None),
        "i-claimed": ("2026-01-03", "claimed", None, None),
        "i-refused": ("2026-01-03", "refused", None, None),
        "i-blocked": ("2026-01-03", "blocked", None, None),
        "i-uncertain": ("2026-01-03", "uncertain", None, None),
        # The oldest schemas watched nothing: what they closed stays unwatched.
        "i-paid": ("2026-01-03", "claimed", "accepted", "2026-01-04" if oldest else None),
        "i-void": ("2026-01-03", None, "cancelled", "2026-01-04" if oldest else None),
    }
    open_since = {one: since for one, (since,) in restarts(empty, "watched_since").items() if since is not None}
    assert open_since == dict.fromkeys(("i-claimed", "i-uncertain"), "2026-01-02"), "what was closed stays unwatched"
    assert restarts(empty, "first_due_at")["i-owed"] == ("2026-01-01",)
    if oldest:
        assert restarts(empty, "streak, backoff_until")["i-owed"] == (0, None)
        assert rows(empty, "holds") == []
    else:
        assert watched is not None
        assert watched[1:] == (None, "accepted", "2026-01-06")
        assert restarts(empty, "streak, backoff_until")["i-owed"] == (4, "2026-01-05")
        assert [row[1:] for row in rows(empty, "holds", "workspace_id, reason, began_at, ends_at")] == [
            ("a new disk", "2026-01-01", "2026-01-02")
        ]
    require(empty)


# --- an upgrade from version 2, and the release that needs no more than that ---

VERSION_2 = """
    DROP TABLE reconciler.shard_coverage;
    ALTER TABLE reconciler.lease DROP COLUMN shards, DROP COLUMN shard;
    ALTER TABLE reconciler.source_doubts
        DROP CONSTRAINT source_doubts_pkey, DROP COLUMN shards, DROP COLUMN shard,
        ADD CONSTRAINT source_doubts_pkey PRIMARY KEY (cause);
    UPDATE reconciler.schema_version SET version = 2
"""
DATA_2 = f"""
    INSERT INTO reconciler.lease (scope, holder, expires_at) VALUES ('fleet', '{CYCLE_ID}', '2026-01-02');
    INSERT INTO reconciler.source_doubts (cause, workspaces, since) VALUES ('timeout', 2000, '2026-01-01');
    UPDATE reconciler.coverage SET cursor = '00000000-0000-0000-0000-00000000000c', first_cycle_at = '2026-01-01',
        brought_forward = '{{00000000-0000-0000-0000-00000000000f}}'
"""  # noqa: S608 - put together from constants
# What the previous release does with the tables that have changed.
ACQUIRE_2 = """
    INSERT INTO reconciler.lease AS current (scope, holder, expires_at)
    VALUES ('fleet', gen_random_uuid(), clock_timestamp() + interval '1 minute')
    ON CONFLICT (scope) DO UPDATE
    SET holder = EXCLUDED.holder, acquired_at = now(), expires_at = EXCLUDED.expires_at
    WHERE current.expires_at <= clock_timestamp()
    RETURNING 1
"""
RELEASE_2 = "DELETE FROM reconciler.lease WHERE scope = 'fleet'"
COVERAGE_2 = (
    "UPDATE reconciler.coverage SET cursor = pass_start, first_cycle_at = COALESCE(first_cycle_at, now()),"
    " pass_completed_at = now()"
)
AGE_2 = "SELECT (SELECT COALESCE(pass_completed_at, first_cycle_at) FROM reconciler.coverage) AS age"
SOURCES_2 = """
    WITH ended AS (
        DELETE FROM reconciler.source_doubts
        WHERE cause IN (SELECT cause FROM reconciler.source_doubts
                        WHERE cause <> ALL (CAST(:causes AS text[])) FOR UPDATE SKIP LOCKED)
    ), known AS (
        SELECT cause FROM reconciler.source_doubts WHERE cause = ANY (CAST(:causes AS text[])) FOR UPDATE SKIP LOCKED
    ), updated AS (
        UPDATE reconciler.source_doubts SET last_seen_at = now() FROM known WHERE source_doubts.cause = known.cause
    )
    INSERT INTO reconciler.source_doubts (cause, workspaces)
    SELECT seen, 2000 FROM unnest(CAST(:causes AS text[])) AS seen
    WHERE NOT EXISTS (SELECT FROM reconciler.source_doubts WHERE source_doubts.cause = seen)
    ON CONFLICT DO NOTHING
"""


def test_version_2_becomes_the_same_as_a_new_one_and_keeps_its_data(
    empty: Database, database: Database, postgres: PostgresServer, apply: Apply
) -> None:
    postgres.psql(empty.owner_url, SCHEMA)
    empty.query(VERSION_2)
    empty.query(DATA_2)
    apply(empty)
    assert structure(empty) == structure(database)
    assert rows(empty, "source_doubts", "cause, workspaces, since, shards, shard") == [
        ("timeout", 2000, "2026-01-01", 1, 0)
    ]
    assert rows(empty, "lease", "scope, holder::text, expires_at, shards, shard") == [
        ("fleet", CYCLE_ID, "2026-01-02", 1, 0)
    ]
    with session(empty.url) as opened:
        coverage = Candidates(opened).select(Deadline(SECONDS), limit=1, workspace_ids=None).coverage
    assert (coverage.cursor[-1], coverage.brought_forward[0][-1]) == ("c", "f"), "the first cycle goes on from there"


def test_the_previous_release_goes_on_working_beside_this_one(database: Database) -> None:
    """Its full cycles and ours exclude each other, and so do its full cycle and our shard."""
    ids = (CYCLE_ID, CYCLE_ID[:-1] + "2")
    with session(database.url) as opened:
        ours, shard = Lease(opened, ids[0]), Lease(opened, ids[1], Shard(1, 2))
        assert database.query(ACQUIRE_2) != []
        assert not ours.acquire(Deadline(SECONDS), lasts_s=45)
        assert not shard.acquire(Deadline(SECONDS), lasts_s=45)
        database.query(COVERAGE_2)
        assert len(database.query(AGE_2)) == 1
        for causes in (["timeout"], ["timeout", "throttled"], []):
            database.query(SOURCES_2, causes=causes)
            assert sorted(
                row["cause"] for row in database.query("SELECT cause FROM reconciler.source_doubts")
            ) == sorted(causes)
        database.query(RELEASE_2)
        assert ours.acquire(Deadline(SECONDS), lasts_s=45)
        assert database.query(ACQUIRE_2) == []
        ours.release(Deadline(SECONDS))
        assert shard.acquire(Deadline(SECONDS), lasts_s=45)
        assert database.query(ACQUIRE_2) != [], "it knows no shards; locks and claims keep anything from being doubled"


def test_an_upgraded_table_takes_the_new_words_only(old: Database, apply: Apply) -> None:
    apply(old)
    insert = (
        "INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, closed_at, outcome)"
        " VALUES (gen_random_uuid(), 'i-1', gen_random_uuid(), now(), :outcome)"
    )
    for outcome in ("accepted", "cancelled"):
        old.query(insert, outcome=outcome)
    with pytest.raises(Exception, match="restarts_outcome_check"):
        old.query(insert, outcome="paid")


def test_with_the_schema_alone_the_code_asks_for_the_grants(old: Database, postgres: PostgresServer) -> None:
    """The rights on a renamed table stay; the right on a new one has to be granted."""
    old.query(
        f"GRANT USAGE ON SCHEMA reconciler TO {RECONCILER_ROLE};"
        f" GRANT SELECT, UPDATE ON reconciler.sweep TO {RECONCILER_ROLE}"
    )
    postgres.psql(old.owner_url, SCHEMA)
    with pytest.raises(RightsMissingError) as refusal:
        require(old)
    assert "SELECT on reconciler.schema_version" in str(refusal.value)
    assert "reconciler.coverage" not in str(refusal.value)


# --- a newer schema ---


def test_a_newer_schema_is_left_alone(database: Database, apply: Apply) -> None:
    """Nothing is downgraded, and nothing comes back that a later version dropped."""
    database.query("DROP INDEX reconciler.restarts_flipped_at; UPDATE reconciler.schema_version SET version = 99")
    before = structure(database)
    apply(database)
    assert structure(database) == before
    assert version(database) == 99


def test_a_newer_schema_may_have_dropped_a_table(database: Database, postgres: PostgresServer) -> None:
    database.query("DROP TABLE reconciler.doubts; UPDATE reconciler.schema_version SET version = 99")
    before = structure(database)
    postgres.psql(database.owner_url, SCHEMA)
    assert structure(database) == before


# --- while a backup reads and cycles run ---

OWED = """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id)
    VALUES (gen_random_uuid(), 'i-1', gen_random_uuid())
"""
CYCLE = (
    "SELECT expires_at FROM reconciler.lease",
    """
    INSERT INTO reconciler.lease (scope, holder, expires_at) VALUES ('fleet', gen_random_uuid(), now())
    ON CONFLICT (scope) DO UPDATE SET expires_at = EXCLUDED.expires_at
    """,
    "UPDATE reconciler.restarts SET attempts = attempts + 1",
    OWED,
    "SELECT ends_at FROM reconciler.holds FOR UPDATE",
)
ON_OLD_TABLES = (*CYCLE, "DELETE FROM reconciler.absences", "UPDATE reconciler.sweep SET began_at = now()")
ON_NEW_TABLES = (*CYCLE, "DELETE FROM reconciler.doubts", "UPDATE reconciler.coverage SET first_cycle_at = now()")
ON_THE_PLATFORM_S = (
    "UPDATE workspaces SET updated_at = now()",
    "INSERT INTO structure_events (event_type) VALUES ('WORKSPACE_OFFLINE')",
)


@contextmanager
def backup(database: Database) -> Iterator[Any]:
    """Keep the locks that pg_dump has on every table until it is done."""
    tables = database.query(
        "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') AS names FROM pg_tables"
        " WHERE schemaname IN ('public', 'reconciler')"
    )[0]["names"]
    with connection(database) as opened:
        opened.run(f"BEGIN; LOCK TABLE {tables} IN ACCESS SHARE MODE")
        yield opened


def run_statements(database: Database, statements: tuple[str, ...], *, lock_timeout_ms: int) -> None:
    """Run each statement in a transaction of its own; raise if one has to wait longer for a lock."""
    with connection(database) as opened:
        opened.run(f"SET lock_timeout = {lock_timeout_ms}")
        for statement in statements:
            opened.run(statement)


def locks_of(opened: Any) -> set[tuple[str, str]]:
    """Return a connection's locks on our tables and indexes and on the platform's."""
    return {
        (relation, mode)
        for relation, mode in opened.run(
            "SELECT relation::regclass::text, mode FROM pg_locks JOIN pg_class ON pg_class.oid = relation"
            " WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relkind IN ('r', 'i')"
            " AND relnamespace IN (to_regnamespace('reconciler'), to_regnamespace('public'))"
        )
    }


def wait_until(database: Database, condition: str) -> None:
    """Ask the server until the condition holds."""
    give_up_at = time.monotonic() + SECONDS
    with connection(database) as opened:
        while not opened.run(f"SELECT {condition}")[0][0]:
            assert time.monotonic() < give_up_at, condition


@contextmanager
def begun(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run something on another thread, which has ended when the block ends."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def test_with_nothing_to_change_neither_waits_for_a_backup_nor_keeps_a_cycle_waiting(
    database: Database, apply: Apply
) -> None:
    with backup(database):
        apply(database)
        with connection(database) as installer:
            installer.run("BEGIN")
            installer.run(SCHEMA.read_text())
            assert {mode for _, mode in locks_of(installer)} <= {"AccessShareLock"}
            run_statements(database, ON_NEW_TABLES + ON_THE_PLATFORM_S, lock_timeout_ms=1)


def test_no_cycle_waits_for_a_grant_that_is_not_committed_yet(database: Database) -> None:
    grants = GRANTS.read_text().replace(':"role"', RECONCILER_ROLE)
    with connection(database) as installer:
        installer.run("BEGIN")
        installer.run(grants)
        assert {mode for _, mode in locks_of(installer)} <= {"AccessShareLock"}, "those of a SELECT at most"
        run_statements(database, ON_NEW_TABLES + ON_THE_PLATFORM_S, lock_timeout_ms=1)


def test_an_upgrade_during_a_backup_gives_up_says_so_and_changes_nothing(old: Database, apply: Apply) -> None:
    old.query(OLD_DATA)
    before = structure(old), rows(old, "restarts")
    began = time.monotonic()
    with backup(old), pytest.raises((PostgresServerError, RowLockedError)) as refusal:
        apply(old)
    assert time.monotonic() - began < SECONDS
    assert NOTHING_CHANGED in str(refusal.value)
    assert TRY_AGAIN in str(refusal.value)
    assert (structure(old), rows(old, "restarts")) == before
    apply(old)
    assert version(old) == SCHEMA_VERSION


def test_no_cycle_waits_in_line_behind_an_upgrade_that_waits_for_a_backup(
    old: Database, postgres: PostgresServer
) -> None:
    """An upgrade that queued for a lock would make everybody behind it wait."""
    over = threading.Event()

    def upgrade() -> None:
        try:
            postgres.psql(old.owner_url, SCHEMA)
        finally:
            over.set()

    cycles = 0
    with backup(old), begun(upgrade) as upgraded:
        while not over.is_set():
            run_statements(old, ON_OLD_TABLES, lock_timeout_ms=1000)
            cycles += 1
        assert cycles > 1
        with pytest.raises(PostgresServerError, match=NOTHING_CHANGED):
            upgraded.result()


RETRYING = "EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')"


def test_an_upgrade_gets_through_between_two_transactions_of_a_cycle(old: Database, postgres: PostgresServer) -> None:
    """A cycle goes on to its next table while the upgrade tries: this is no deadlock."""
    with connection(old) as cycle:
        cycle.run("BEGIN; SET LOCAL lock_timeout = 1000")
        cycle.run(OWED)
        with begun(lambda: postgres.psql(old.owner_url, SCHEMA)) as upgraded:
            wait_until(old, RETRYING)
            for statement in ON_OLD_TABLES:
                cycle.run(statement)
            cycle.run("COMMIT")
            upgraded.result(SECONDS)
    assert version(old) == SCHEMA_VERSION
    assert len(rows(old, "restarts")) == 2


WAITING_FOR_THE_OTHER = """
    EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database
            WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted)
"""


@pytest.mark.parametrize("which", ["empty", "old"])
def test_two_installers_at_once_do_not_collide(
    request: pytest.FixtureRequest, bare: Database, postgres: PostgresServer, which: str
) -> None:
    if which == "old":
        request.getfixturevalue("old")
    with connection(bare) as first:
        first.run("BEGIN")
        first.run(SCHEMA.read_text())
        with begun(lambda: postgres.psql(bare.owner_url, SCHEMA)) as second:
            wait_until(bare, WAITING_FOR_THE_OTHER)
            first.run("COMMIT")
            second.result(SECONDS)
    assert version(bare) == SCHEMA_VERSION


def test_an_installer_that_hangs_makes_the_next_one_give_up(bare: Database, postgres: PostgresServer) -> None:
    with connection(bare) as first:
        first.run("BEGIN")
        first.run(SCHEMA.read_text())
        with pytest.raises(PostgresServerError, match=NOTHING_CHANGED):
            postgres.psql(bare.owner_url, SCHEMA)


# --- what the code says to a schema that will not do ---


def refused(database: Database, kind: type[Exception]) -> str:
    with pytest.raises(kind) as refusal:
        require(database)
    return str(refusal.value)


def test_a_missing_schema_is_named_with_the_file_that_creates_it(empty: Database) -> None:
    assert refused(empty, SchemaMissingError) == "the database has no schema reconciler: run infra/schema.sql"


def test_a_schema_without_a_version_is_too_old(old: Database) -> None:
    said = refused(old, SchemaMissingError)
    assert said == (
        f"the schema reconciler has no version number, and this code needs version {SCHEMA_VERSION}:"
        " run infra/schema.sql"
    )


def test_an_older_schema_is_named_with_both_versions(database: Database) -> None:
    database.query("UPDATE reconciler.schema_version SET version = version - 1")
    said = refused(database, SchemaMissingError)
    assert said == (
        f"the schema reconciler has version {SCHEMA_VERSION - 1}, and this code needs version {SCHEMA_VERSION}:"
        " run infra/schema.sql"
    )


def test_a_schema_whose_version_was_deleted_is_too_old_until_the_file_is_run(database: Database, apply: Apply) -> None:
    database.query("DELETE FROM reconciler.schema_version")
    assert "has no version number" in refused(database, SchemaMissingError)
    apply(database)
    require(database)


def test_a_newer_schema_will_do(database: Database) -> None:
    database.query("UPDATE reconciler.schema_version SET version = 99")
    require(database)


@pytest.mark.parametrize(
    ("right", "on"),
    [
        ("SELECT", "reconciler.schema_version"),
        ("SELECT", "reconciler.coverage"),
        ("DELETE", "reconciler.restarts"),
        ("USAGE", "schema reconciler"),
    ],
)
def test_a_missing_right_is_named_with_the_file_that_grants_it(database: Database, right: str, on: str) -> None:
    database.query(f"REVOKE {right} ON {on} FROM {RECONCILER_ROLE}")
    said = refused(database, RightsMissingError)
    assert said == f"the database's role lacks {right} on {on}: run infra/grants.sql"


def test_a_missing_table_is_not_taken_for_a_missing_right(database: Database) -> None:
    database.query("DROP TABLE reconciler.holds CASCADE")
    said = refused(database, SchemaMissingError)
    assert said == "the database has no table reconciler.holds: run infra/schema.sql"
