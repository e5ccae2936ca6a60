"""What somebody with the function's database role can do: much, but no running instance is flipped or restarted.

The cases come from the catalog: every column that the role may write, with values at the edge of its type.
docs/safety.md says what is left to the thief.
"""

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pg8000.exceptions
import pytest

from handler.deadline import Deadline
from handler.domain.restarts import Owed
from handler.store import Restarts
from sandbox.postgres import RECONCILER_ROLE, PostgresServer
from tests.support.events import APPLY
from tests.support.stage import Outcome, Stage

SILENT_S = 300.0
RUNNING, MANY = 20, 30_000
ROOT = Path(__file__).parents[2]
SCHEMA, PLATFORM = ROOT / "infra" / "schema.sql", ROOT / "sandbox" / "platform.sql"
SCHEMA_0 = ROOT / "tests" / "support" / "schema_0.sql"
MOST_BYTES = 1_000_000  # Lambda's limit is 6 MB
LONGEST_MS = 10_000
ANY_SHARE = {"BREAKER_MAX_DEAD_FRACTION": "1"}

TIMES = (
    "NULL",
    "'infinity'",
    "'-infinity'",
    "'294276-12-31'",
    "'4713-01-01 BC'",
    "now() + interval '1 day'",
    "'2001-01-01'",
)
NUMBERS = ("NULL", "-9223372036854775808", "9223372036854775807", "-2147483648", "2147483647", "-1", "0", "1000000")
TEXTS = ("NULL", "''", "repeat('x', 50000000)", "repeat('x', 65)", "E'\\u0001\\n\\u202e\\U0001f480'", "'claimed'")
STATUSES = tuple(f"'{one}'" for one in ("offline", "online", "removed", "paused", "provisioning"))
VALUES = {
    "timestamp with time zone": TIMES,
    "integer": NUMBERS,
    "bigint": NUMBERS,
    "text": TEXTS,
    "uuid": ("NULL", "'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"),
    "uuid[]": (
        "NULL",
        "array_fill(gen_random_uuid(), ARRAY[3000000])",
        "array_fill(gen_random_uuid(), ARRAY[30, 30])",
        "array_fill(CAST(NULL AS uuid), ARRAY[100])",
        "array_fill(gen_random_uuid(), ARRAY[10], ARRAY[-5])",
    ),
    "boolean": ("NULL", "true", "false"),
    "workspace_status": ("NULL",),
}
TABLES = (
    *("reconciler.coverage", "reconciler.doubts", "reconciler.holds", "reconciler.lease", "reconciler.restart_stops"),
    *("reconciler.restarts", "reconciler.shard_coverage", "reconciler.source_doubts", "workspaces"),
)
# Data exceptions, constraints, an index row that is too large, GENERATED ALWAYS, another type.
REFUSALS = ("22", "23", "54000", "428C9", "42804")

_MAY_WRITE = """(has_column_privilege(:role, attrelid, attnum, 'UPDATE')
    OR has_column_privilege(:role, attrelid, attnum, 'INSERT'))"""
_COLUMNS = f"""
SELECT attname AS name, format_type(atttypid, NULL) AS type FROM pg_attribute
WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped AND {_MAY_WRITE}
"""  # noqa: S608 - put together from constants
_WRITABLE = f"""
SELECT array_agg(DISTINCT attrelid::regclass::text ORDER BY attrelid::regclass::text) AS tables
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped AND {_MAY_WRITE}
"""  # noqa: S608 - put together from constants
# Whatever leads to a flip, an adoption or a restart of each workspace; half of the rows stay up.
_FORGED = (
    "UPDATE workspaces SET status = CASE WHEN id::text > '8' THEN 'offline' ELSE 'online' END::text::{}",
    """
    INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, sightings, since, offline_since, by_hand)
    SELECT id, kind, instance_id, 1000, now() - interval '1 day', now() - interval '1 day', true
    FROM workspaces, unnest(ARRAY['absent', 'dead']) AS kind ORDER BY md5(id::text)
    """,
    """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, flipped_at, due_at, first_due_at, attempts,
                                     claimed_by, asked_at, last_answer, watched_since, absent_sightings, absent_since,
                                     released, kept_back_at, streak)
    SELECT id, instance_id, holder, now(), now() - interval '1 hour', now() - interval '1 hour', 1, holder,
           now() - interval '1 hour', 'claimed', now() - interval '1 hour', 1000, now() - interval '1 day', true,
           now(), 1
    FROM workspaces,
         (SELECT COALESCE((SELECT holder FROM reconciler.lease LIMIT 1), gen_random_uuid()) AS holder) AS cycle
    ORDER BY md5(id::text)
    """,
    """
    INSERT INTO reconciler.holds (workspace_id, reason, ends_at)
    SELECT id, 'x', now() - interval '2 days' FROM workspaces
    """,
    "INSERT INTO reconciler.source_doubts (cause, workspaces) VALUES ('timeout', 2000)",
    "INSERT INTO reconciler.restart_stops (ends_at) VALUES (now())",
    "INSERT INTO reconciler.lease (scope, holder, expires_at) VALUES ('fleet', gen_random_uuid(), now())",
    """
    INSERT INTO reconciler.shard_coverage (shards, shard, cursor, pass_start, used_at)
    VALUES (1, 0, gen_random_uuid(), gen_random_uuid(), now()), (8, 3, gen_random_uuid(), gen_random_uuid(), now())
    ON CONFLICT DO NOTHING
    """,
)
_FLOOD = (
    """
    INSERT INTO reconciler.doubts (workspace_id, kind, instance_id)
    SELECT gen_random_uuid(), 'dead', 'i-1' FROM generate_series(1, CAST(:many AS integer))
    """,
    """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id)
    SELECT gen_random_uuid(), 'i-1', gen_random_uuid() FROM generate_series(1, CAST(:many AS integer))
    """,
    """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, watched_since, closed_at)
    SELECT gen_random_uuid(), 'i-1', gen_random_uuid(), now(), now() FROM generate_series(1, CAST(:many AS integer))
    """,
    """
    INSERT INTO reconciler.holds (workspace_id, reason, ends_at)
    SELECT gen_random_uuid(), repeat(chr(128128), 200), now() + interval '1 day'
    FROM generate_series(1, CAST(:many AS integer))
    """,
    """
    INSERT INTO reconciler.source_doubts (cause, workspaces)
    SELECT number, 1 FROM generate_series(1, CAST(:many AS integer)) AS number
    """,
    """
    INSERT INTO reconciler.restart_stops (ends_at) SELECT now() FROM generate_series(1, CAST(:many AS integer))
    """,
    """
    INSERT INTO reconciler.lease (scope, holder, expires_at)
    SELECT number, gen_random_uuid(), now() FROM generate_series(1, CAST(:many AS integer)) AS number
    """,
)
_ODD = (
    "UPDATE reconciler.sweep SET first = array_fill(gen_random_uuid(), ARRAY[2000]), began_at = 'infinity'",
    "INSERT INTO reconciler.lease (scope, holder, expires_at) VALUES ('fleet', gen_random_uuid(), 'infinity')",
    """
    INSERT INTO reconciler.holds (workspace_id, reason, ends_at)
    VALUES (gen_random_uuid(), repeat('x', 1000), 'infinity'), (gen_random_uuid(), repeat('x', 1000), '4000-01-01')
    """,
    """
    INSERT INTO reconciler.absences (workspace_id, instance_id, sightings, first_seen_at)
    VALUES (gen_random_uuid(), 'i-1', -5, now()), (gen_random_uuid(), repeat('x', 1000), 1, '-infinity')
    """,
    """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, next_attempt_at, attempts)
    VALUES (gen_random_uuid(), 'i-1', gen_random_uuid(), now(), 1),
           (gen_random_uuid(), 'i-1', gen_random_uuid(), 'infinity', 1),
           (gen_random_uuid(), 'i-1', gen_random_uuid(), now(), 2000000000),
           (gen_random_uuid(), repeat('x', 1000), gen_random_uuid(), now(), 1)
    """,
)
_EMPTY = """
TRUNCATE reconciler.lease, reconciler.coverage, reconciler.shard_coverage, reconciler.doubts,
         reconciler.source_doubts, reconciler.restarts, reconciler.restart_stops, reconciler.holds;
INSERT INTO reconciler.coverage DEFAULT VALUES
"""


def empty(stage: Stage) -> None:
    """Make the reconciler forget everything."""
    stage.database.query(_EMPTY)


@contextlib.contextmanager
def thief(stage: Stage) -> Iterator[Any]:
    """A connection as the function's role."""
    server = stage.database._server  # noqa: SLF001 - only it knows the password
    with contextlib.closing(server.connect(stage.database.name, user=RECONCILER_ROLE)) as connection:
        yield connection


def written(connection: Any, statement: str) -> bool:
    """Tell whether the database lets the thief write that. Any other refusal than one of the values is an error."""
    try:
        connection.run(statement)
    except pg8000.exceptions.DatabaseError as error:
        if not error.args[0]["C"].startswith(REFUSALS):
            raise
        return False
    return True


def columns(stage: Stage, table: str) -> dict[str, str]:
    """Return the types of the columns that the role may write, by their names."""
    rows = stage.database.query(_COLUMNS, role=RECONCILER_ROLE, table=table)
    return {row["name"]: row["type"] for row in rows}


def damages(stage: Stage, table: str) -> Iterator[list[str]]:
    """Yield the statements that write odd values into one column at a time, as many at once as there are rows for."""
    (rows,) = stage.database.query(f"SELECT count(*)::int AS count FROM {table}")  # noqa: S608 - a table from above
    row = "id" if table == "workspaces" else "ctid"  # which the role may read
    for column, kind in columns(stage, table).items():
        values = VALUES[kind] + (STATUSES if column == "status" else ())
        each = rows["count"] // len(values)
        statements = [
            f"UPDATE {table} SET {column} = {value} WHERE {row} IN "  # noqa: S608 - values from above
            f"(SELECT {row} FROM {table} ORDER BY {row} LIMIT {max(1, each)} OFFSET {number * each})"
            for number, value in enumerate(values)
        ]
        yield from [statements] if each else ([one] for one in statements)


def forge(stage: Stage, connection: Any) -> None:
    """Write whatever leads to a flip, an adoption or a restart of each workspace."""
    up_or_offline, *others = _FORGED
    connection.run(up_or_offline.format(columns(stage, "workspaces")["status"]))
    for statement in others:
        connection.run(statement)


def assert_harmless(outcome: Outcome, running: Collection[str], *, errors: bool = False) -> None:
    """Fail if a running instance was flipped or restarted, or if the cycle was hurt."""
    assert [call for call in outcome.calls if call.workspace_id in running] == []
    assert [flip for flip in outcome.report["flips"] if flip["workspace_id"] in running] == []
    assert errors or [line for line in outcome.log if "error" in line] == []
    assert len(json.dumps(outcome.report)) < MOST_BYTES
    assert outcome.report["duration_ms"] < LONGEST_MS


@pytest.mark.parametrize(("table", "status_type"), [*((table, "enum") for table in TABLES), ("workspaces", "text")])
def test_no_value_that_the_role_can_write_harms_the_living_or_fails_a_cycle(stage: Stage, table: str) -> None:
    """Each column that it may write, with each odd value of its type, on top of forged rows."""
    running = stage.add_all(RUNNING, "running", heartbeat_age_s=SILENT_S)
    dead, *_ = (stage.add_all(10, one, heartbeat_age_s=SILENT_S) for one in ("terminated", None, "stopping"))
    with thief(stage) as connection:
        forge(stage, connection)
        for damage in list(damages(stage, table)):
            empty(stage)
            forge(stage, connection)
            if sum(written(connection, statement) for statement in damage):
                for _ in range(2):  # the second cycle meets what the first one left
                    assert_harmless(stage.glance(**ANY_SHARE), running)
    empty(stage)
    stage.fleet.update(dead[0], status="online")
    assert dead[0] in stage.cycle(**ANY_SHARE).flipped


@pytest.mark.parametrize("heartbeat_age_s", [5.0, SILENT_S])
@pytest.mark.parametrize("flipped_at", ["'infinity'", "now()", "'2001-01-01'"])
def test_restarts_forged_in_the_running_cycles_name_restart_nobody(
    stage: Stage, flipped_at: str, heartbeat_age_s: float
) -> None:
    """All rows are set offline and all restarts forged, while the cycle probes: 20 of 20 machines went that way."""
    running = stage.add_all(RUNNING, "running", heartbeat_age_s=heartbeat_age_s)
    with thief(stage) as connection:
        restarts = _FORGED[2].replace("holder, now(), now()", f"holder, {flipped_at}, now()")

        def forge_now(_: object) -> None:
            connection.run("UPDATE workspaces SET status = 'offline'")
            written(connection, restarts)

        stage.control_plane.script.before(forge_now, nth=1)
        for _ in range(3):
            assert_harmless(stage.glance(**stage.settings("control_plane"), **ANY_SHARE), running)
    assert stage.platform.calls == []


@pytest.mark.parametrize("exchanged", ["instance", "workspace"])
def test_a_restart_that_is_exchanged_after_its_probe_restarts_nobody(stage: Stage, exchanged: str) -> None:
    """Its instance was seen dead; when it is claimed, it is another workspace's, or about another instance."""
    living = stage.add("running", status="offline", heartbeat_age_s=SILENT_S)
    dead = stage.add("terminated", status="offline", heartbeat_age_s=SILENT_S)
    owner = living if exchanged == "instance" else dead
    with thief(stage) as connection:
        connection.run(
            "INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, due_at)"
            " VALUES (CAST(:id AS uuid), :instance, gen_random_uuid(), now() - interval '1 hour')",
            id=owner,
            instance=stage.instance_of(dead),
        )

        def exchange(_: object) -> None:
            connection.run(
                "UPDATE reconciler.restarts SET workspace_id = CAST(:id AS uuid), instance_id = :instance",
                id=living,
                instance=stage.instance_of(living),
            )

        stage.control_plane.script.before(exchange, instance_id=stage.instance_of(dead))
        outcome = stage.glance(APPLY | {"workspace_ids": [owner]}, **stage.settings("control_plane"), **ANY_SHARE)
    assert stage.control_plane.requests[-1].instance_id == stage.instance_of(dead)
    assert outcome.calls == []


def test_a_restart_that_is_listed_twice_is_asked_for_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes one that was refused after those that were not have been listed, and before the others are."""
    stage.add("running")
    dead = stage.add("terminated", heartbeat_age_s=SILENT_S)
    list_due = Restarts.due
    with thief(stage) as connection:

        def due(store: Restarts, deadline: Deadline, *, refused: bool, **options: Any) -> list[Owed]:
            found = list_due(store, deadline, refused=refused, **options)
            connection.run("UPDATE reconciler.restarts SET refusals = 1")
            return found

        monkeypatch.setattr(Restarts, "due", due)
        outcome = stage.cycle(**ANY_SHARE)
    assert [call.workspace_id for call in outcome.calls] == [dead]


def test_an_absence_is_no_older_than_the_role_has_known_the_instance(stage: Stage) -> None:
    """A new instance that EC2 does not list yet: neither a forged absence nor a forged restart makes it gone."""
    stage.add("running")
    new = stage.add_all(4, None, heartbeat_age_s=SILENT_S)
    with thief(stage) as connection:
        forge(stage, connection)
        connection.run("UPDATE reconciler.doubts SET since = '2001-01-01'")
        connection.run("UPDATE reconciler.restarts SET absent_since = '2001-01-01', absent_sightings = 1000")
        connection.run("UPDATE reconciler.restarts SET absent_since = NULL")
        connection.run("UPDATE reconciler.restarts SET absent_since = '2001-01-01'")
    for _ in range(2):
        assert_harmless(stage.glance(**ANY_SHARE), new)
    stage.fleet.age_everything(120)
    outcome = stage.cycle(**ANY_SHARE)
    assert {call.workspace_id for call in outcome.calls} | outcome.flipped <= {*new}


def test_a_transaction_that_began_long_ago_makes_no_old_absence(stage: Stage) -> None:
    with thief(stage) as connection:
        connection.run("BEGIN")
        connection.run("SELECT pg_sleep(0.05)")
        connection.run(
            "INSERT INTO reconciler.doubts (workspace_id, kind, instance_id)"
            " VALUES (gen_random_uuid(), 'absent', 'i-1')"
        )
        ((later,),) = connection.run("SELECT since > now() + interval '50 ms' FROM reconciler.doubts")
        connection.run("ROLLBACK")
    assert later


def test_a_flip_hands_the_age_of_an_absence_to_its_restart(stage: Stage) -> None:
    """The bounds on forged absences must not make a true one younger."""
    stage.add("running")
    dead = stage.add(None, heartbeat_age_s=SILENT_S)
    for _ in range(2):
        stage.glance(PLATFORM_BASE_URL=None)
        stage.fleet.age_everything(100)
    (absent,) = stage.fleet.doubts(dead)
    assert stage.cycle(PLATFORM_BASE_URL=None).flipped == {dead}
    (restart,) = stage.fleet.restarts(dead)
    assert abs(restart["absent_since"] - absent["since"]).total_seconds() < 0.001


def test_rows_without_number_end_no_cycle(stage: Stage) -> None:
    running = stage.add_all(RUNNING, "running", heartbeat_age_s=SILENT_S)
    with thief(stage) as connection:
        for statement in _FLOOD:
            connection.run(statement, many=MANY)
    stage.database.query("ANALYZE reconciler.restarts, reconciler.doubts, reconciler.holds")
    for _ in range(2):
        assert_harmless(stage.glance(**ANY_SHARE), running, errors=True)
    answer = stage.glance({"mode": "dry-run", "release": "all"}).report
    assert len(answer["holds"]) == 100
    assert len(json.dumps(answer)) < MOST_BYTES


def test_a_forged_id_does_not_use_up_the_ids(stage: Stage, postgres: PostgresServer) -> None:
    """The installer goes on behind the highest id, because logical replication does not copy how far they are."""
    stage.add("running")
    dead = stage.add("terminated")
    with thief(stage) as connection:
        connection.run(
            "INSERT INTO reconciler.restarts (id, workspace_id, instance_id, cycle_id) OVERRIDING SYSTEM VALUE"
            " VALUES (9223372036854775807, gen_random_uuid(), 'i-1', gen_random_uuid())"
        )
    postgres.psql(stage.database.owner_url, SCHEMA)
    assert stage.cycle().flipped == {dead}


def test_an_upgrade_brings_odd_old_values_within_the_bounds(postgres: PostgresServer) -> None:
    """What a clock or a person left in an older schema fails no upgrade, and a hold outlives it."""
    database = postgres.create_bare_database()
    try:
        postgres.psql(database.owner_url, PLATFORM, status_type="enum")
        postgres.psql(database.owner_url, SCHEMA_0)
        with contextlib.closing(database.connect()) as owner:
            for statement in _ODD:
                owner.run(statement)
        postgres.psql(database.owner_url, SCHEMA)
        (kept,) = database.query(
            """
            SELECT (SELECT count(*)::int FROM reconciler.restarts) AS restarts,
                   (SELECT count(*)::int FROM reconciler.coverage WHERE brought_forward = '{}') AS coverage,
                   (SELECT count(*)::int FROM reconciler.holds
                    WHERE ends_at = 'infinity' AND length(reason) = 200) AS holds
            """
        )
    finally:
        database.drop()
    assert kept == {"restarts": 1, "coverage": 1, "holds": 2}


def test_every_table_that_the_role_may_write_is_tried(stage: Stage) -> None:
    (row,) = stage.database.query(_WRITABLE, role=RECONCILER_ROLE)
    assert row["tables"] == sorted([*TABLES, "structure_events"])  # which no cycle reads
