"""After years of restarts: a cycle reads a few rows, and what is of no use any more goes away in small steps."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.store.session import Session
from sandbox.control_plane import state_answer
from sandbox.http_server import Answer
from sandbox.postgres import PostgresServer
from tests.support.events import DRY_RUN
from tests.support.stage import Stage, opened

NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
CLOSED, OLD, WORKSPACES = 200_000, 2_500, 2_000
# What a cycle deletes of either kind, at most; and what it may read besides, whatever there is.
MOST_PURGED, FEW = 1000, 1000

# Closed over the last 30 days, and some of them earlier; each workspace has had a hundred.
_CLOSED = f"""
INSERT INTO reconciler.restarts
    (workspace_id, instance_id, cycle_id, flipped_at, attempts, asked_at, due_at, closed_at, outcome, watch_ended_at)
SELECT CAST(md5((number % {WORKSPACES})::text) AS uuid), 'i-' || number, gen_random_uuid(), at, 1, at, at, at,
       'accepted', at
FROM generate_series(1, {CLOSED + OLD}) AS number,
     LATERAL (SELECT now() - interval '30 days' + (number - {OLD} - 0.5) * interval '30 days' / {CLOSED} AS at) AS times
"""  # noqa: S608 - put together from constants
_READ = """
SELECT COALESCE(sum(seq_tup_read), 0)::int AS in_sequence, COALESCE(sum(idx_tup_fetch), 0)::int AS by_index
FROM pg_stat_user_tables WHERE schemaname = 'reconciler' AND relname = 'restarts'
"""
_SESSIONS = (
    "SELECT count(*) AS open FROM pg_stat_activity WHERE datname = current_database() AND usename = 'reconciler'"
)


@pytest.fixture(scope="module")
def old_stage(postgres: PostgresServer) -> Iterator[Stage]:
    with opened(postgres) as stage:
        stage.database.query(_CLOSED)
        with contextlib.closing(stage.database.connect()) as owner:
            owner.run("ANALYZE reconciler.restarts")
        yield stage


def read_rows(stage: Stage) -> tuple[int, int]:
    """Return how many restarts the function has read so far, in sequence and by an index."""
    stage.invoke.cold()
    give_up_at = time.monotonic() + 10
    while stage.database.query(_SESSIONS)[0]["open"]:  # a session tells when it ends
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    (row,) = stage.database.query(_READ)
    return row["in_sequence"], row["by_index"]


def owe(stage: Stage, count: int) -> list[str]:
    """Add workspaces whose restart is owed and due."""
    ids = stage.add_all(count, "terminated", status="offline")
    for one in ids:
        stage.database.query(
            "INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, due_at)"
            " VALUES (CAST(:id AS uuid), :instance, gen_random_uuid(), now() - interval '1 minute')",
            id=one,
            instance=stage.instance_of(one),
        )
    return ids


def closed_long_ago(stage: Stage) -> set[int]:
    rows = stage.database.query("SELECT id FROM reconciler.restarts WHERE closed_at < now() - interval '30 days'")
    return {row["id"] for row in rows}


def test_a_cycle_reads_few_of_many_closed_restarts(old_stage: Stage) -> None:
    stage = old_stage
    stage.add_all(3, "running")
    never_restarted = stage.add_all(3, "terminated")
    (often_restarted,) = stage.fleet.insert(
        [{"id": "c4ca4238-a0b9-2382-0dcc-509a6f75849b", "instance_id": stage.instances(1, "terminated")[0]}]
    )
    owed, moved_on, accepted = owe(stage, 3)
    stage.fleet.update(moved_on, status="paused")
    absent = stage.add(None)
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(202))
    before = read_rows(stage)
    stage.glance(DRY_RUN, **stage.settings("control_plane"), **NO_BREAKER)
    outcome = stage.glance(**stage.settings("control_plane"), **NO_BREAKER)
    assert {flip["workspace_id"] for flip in outcome.report["flips"]} == {*never_restarted, often_restarted}
    assert {call.workspace_id for call in outcome.calls} >= {owed, accepted}
    assert {one["workspace_id"] for one in stage.fleet.doubts()} == {absent}
    in_sequence, by_index = (after - earlier for after, earlier in zip(read_rows(stage), before, strict=True))
    assert in_sequence == 0
    assert by_index <= 2 * MOST_PURGED + FEW


def test_old_restarts_are_purged_in_small_steps_but_those_that_are_watched_or_locked(old_stage: Stage) -> None:
    stage = old_stage
    (watched, workspace), (locked, _) = (
        (row["id"], row["workspace"])
        for row in stage.database.query(
            "SELECT id, workspace_id::text AS workspace FROM reconciler.restarts ORDER BY closed_at LIMIT 2"
        )
    )
    stage.fleet.add("i-00000000000000001", id=workspace, status="offline")
    stage.database.query(
        "UPDATE reconciler.restarts SET watched_since = closed_at, watch_ended_at = NULL WHERE id = :id", id=watched
    )
    with contextlib.closing(stage.database.connect()) as somebody:
        somebody.run("BEGIN")
        somebody.run("SELECT FROM reconciler.restarts WHERE id = :id FOR UPDATE", id=locked)
        left = closed_long_ago(stage)
        while len(left) > 2:
            stage.glance()
            now_left = closed_long_ago(stage)
            assert len(left) - MOST_PURGED <= len(now_left) < len(left)
            left = now_left
        assert left == {watched, locked}
        somebody.run("ROLLBACK")
    stage.fleet.update(workspace, status="removed")
    stage.glance()
    assert closed_long_ago(stage) == set()


# --- plans ---

PLANNED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")
GROWN = ("restarts", "doubts", "holds")
# What is small whatever happens, and what is the platform's, may be read in sequence.
_DOUBTS = """
INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, since, last_seen_at, offline_since)
SELECT id, (ARRAY['unknown', 'transition', 'dead'])[1 + row_number() OVER () % 3], instance_id, at, at, at
FROM workspaces, (SELECT now() - interval '25 hours' AS at) AS times WHERE name = 'doubted'
"""
_DOUBTED = """
INSERT INTO workspaces (name, status, instance_id)
SELECT 'doubted', 'offline', 'i-' || number FROM generate_series(1, 20000) AS number
"""
_HOLDS = """
INSERT INTO reconciler.holds (workspace_id, reason, ends_at)
SELECT gen_random_uuid(), 'maintenance', now() + (number - 9500) * interval '4 minutes'
FROM generate_series(1, 10000) AS number
"""


def reads_in_sequence(plan: dict[str, Any]) -> Iterator[str]:
    """Yield those of our growing tables that a plan would read as a whole."""
    if plan["Node Type"] == "Seq Scan" and plan["Relation Name"] in GROWN:
        yield plan["Relation Name"]
    for inner in plan.get("Plans", ()):
        yield from reads_in_sequence(inner)


def test_every_query_of_a_cycle_reads_our_own_tables_by_an_index(
    old_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cycle flips, saves doubts, asks for restarts and purges, beside years of restarts, doubts and holds."""
    stage = old_stage
    for statement in (_DOUBTED, _DOUBTS, _HOLDS, "ANALYZE"):
        stage.database.query(statement)
    stage.add_all(3, "running")
    stage.add_all(3, "terminated")
    stage.add(None)
    owe(stage, 3)
    run = Session._run  # noqa: SLF001 - there is no other place where all statements pass
    explained, in_sequence = [], {}

    def explain(session: Session, deadline: Deadline, sql: str, **parameters: Any) -> Any:
        if ";" not in sql and sql.split(maxsplit=1)[0] in PLANNED:
            ((plans,),) = run(session, deadline, f"EXPLAIN (FORMAT JSON) {sql}", **parameters)
            explained.append(sql)
            if tables := list(reads_in_sequence(plans[0]["Plan"])):
                in_sequence[sql] = tables
        return run(session, deadline, sql, **parameters)

    monkeypatch.setattr(Session, "_run", explain)
    outcome = stage.glance(**stage.settings("control_plane"), **NO_BREAKER)
    assert (len(outcome.report["flips"]), outcome.report["restarts"]["accepted"]) == (3, 6)
    assert len(explained) > 20
    assert in_sequence == {}


def test_of_very_many_doubts_each_cycle_looks_at_some_and_at_all_that_look_dead(stage: Stage) -> None:
    """Of rows that are gone. What is remembered dead counts for the breaker, so it must not linger."""
    stage.add_all(1, "running")
    stage.database.query(
        "INSERT INTO reconciler.doubts (workspace_id, kind, instance_id)"
        " SELECT gen_random_uuid(), CASE WHEN number > 2000 THEN 'dead' ELSE 'unknown' END, 'i-' || number"
        " FROM generate_series(1, 4000) AS number"
    )
    stage.glance(**NO_BREAKER)
    left = [len(stage.fleet.doubts())]
    assert 1000 <= left[0] < 2000
    while left[-1] and len(left) < 100:
        stage.glance(**NO_BREAKER)
        left.append(len(stage.fleet.doubts()))
    assert left[-1] == 0


# --- holds and the lease ---


def test_a_hold_is_deleted_a_month_after_its_end(stage: Stage) -> None:
    """Until then, ages count from it."""
    old, recent, lasting = stage.add_all(3, "running")
    hold = {"workspace_ids": [old, recent, lasting], "reason": "maintenance", "seconds": 3600}
    stage.invoke({"mode": "apply", "hold": hold})
    for one, days in ((old, 31), (recent, 29)):
        stage.database.query(
            "UPDATE reconciler.holds SET ends_at = now() - make_interval(days => :days)"
            " WHERE workspace_id = CAST(:id AS uuid)",
            id=one,
            days=days,
        )
    stage.glance()
    rows = stage.database.query("SELECT workspace_id::text AS id FROM reconciler.holds")
    assert {row["id"] for row in rows} == {recent, lasting}


@pytest.mark.parametrize(("ahead", "outcome"), [("15 minutes", "already_running"), ("3 days", "completed")])
def test_a_lease_that_lies_far_ahead_is_taken_for_free(stage: Stage, ahead: str, outcome: str) -> None:
    """The database's clock jumped, or was wrong when the lease was taken: no cycle lasts as long."""
    stage.database.query(
        "INSERT INTO reconciler.lease (scope, holder, expires_at)"
        " VALUES ('fleet', gen_random_uuid(), now() + CAST(:ahead AS interval))",
        ahead=ahead,
    )
    assert stage.glance().report["outcome"] == outcome


# --- what cannot be decoded ---


@pytest.fixture
def ascii_stage(postgres: PostgresServer) -> Iterator[Stage]:
    """A database that takes any bytes for text."""
    with opened(postgres, options="ENCODING 'SQL_ASCII'") as stage:
        yield stage


def test_an_instance_id_that_becomes_undecodable_before_the_claim_costs_its_own_restart_alone(
    ascii_stage: Stage,
) -> None:
    stage = ascii_stage
    stage.add("running")
    broken, *others = owe(stage, 3)

    def write_garbage(_: object) -> None:
        with contextlib.closing(stage.database.connect()) as platform:
            platform.run("SET client_encoding = 'SQL_ASCII'")
            platform.run(f"UPDATE workspaces SET instance_id = E'i-\\xff' WHERE id = '{broken}'")  # noqa: S608

    stage.control_plane.script.before(write_garbage, nth=1, workspace_id=broken)
    stage.control_plane.script.reply(state_answer("terminated"), workspace_id=broken)
    outcome = stage.glance(**stage.settings("control_plane"), **NO_BREAKER)
    assert {call.workspace_id for call in outcome.calls} == set(others)
    assert outcome.report["restarts"]["cancelled"] == 1
