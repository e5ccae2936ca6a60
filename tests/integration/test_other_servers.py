"""An older PostgreSQL and PgBouncer, which come from Debian because PyPI does not have them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.postgres import PostgresServer
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.stage import Stage, opened

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}

# What a session keeps beyond a transaction, except the five settings that PgBouncer keeps per client.
LEFT_OVER = """
    SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT IN
        ('application_name', 'client_encoding', 'DateStyle', 'standard_conforming_strings', 'TimeZone')
    UNION ALL SELECT 'prepared statement', name FROM pg_prepared_statements
    UNION ALL SELECT 'lock', mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
    UNION ALL SELECT 'channel', pg_listening_channels()
    UNION ALL SELECT 'temporary table', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
"""


@pytest.fixture
def pooled(postgres: PostgresServer) -> Iterator[Stage]:
    if not PROGRAM.exists():
        pytest.skip("PgBouncer is not installed")
    with opened(postgres) as stage:
        yield stage


@pytest.fixture(scope="module")
def postgres_15() -> Iterator[PostgresServer]:
    if not POSTGRES_15.is_dir():
        pytest.skip("PostgreSQL 15 is not installed")
    with PostgresServer.start(POSTGRES_15) as server:
        yield server


def test_cycles_behind_pgbouncer_flip_and_leave_nothing_on_its_sessions(
    pooled: Stage, postgres: PostgresServer
) -> None:
    pooled.add("running")
    dead = pooled.add_all(2, "terminated")
    with PgBouncer(postgres, pooled.database) as pooler:
        settings = {"DATABASE_URL": pooler.url, **MOSTLY_DEAD}
        pooled.cycle(**settings).assert_only_flipped(dict.fromkeys(dead, "terminated"))
        assert pooled.cycle(**settings).report["completed_pass"]
        pooled.invoke.cold()
        with contextlib.closing(pooler.connect()) as client:
            assert len({client.run("SELECT pg_backend_pid()")[0][0] for _ in range(2)}) == 2, "it takes turns"
            assert [client.run(LEFT_OVER) for _ in range(2)] == [[], []]


def test_postgresql_15_takes_the_schema_and_a_cycle_flips_there(postgres_15: PostgresServer) -> None:
    assert postgres_15.execute("SHOW server_version_num")[0][0].startswith("15")
    with opened(postgres_15) as stage:
        stage.add("running")
        dead = stage.add_all(2, "terminated")
        stage.cycle(**MOSTLY_DEAD).assert_only_flipped(dict.fromkeys(dead, "terminated"))
