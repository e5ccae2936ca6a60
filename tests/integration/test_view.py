"""`reconciler.workspace_restarts`, the platform's view: why a workspace is not back, and nothing else."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pg8000.exceptions
import pytest

from sandbox.http_server import Answer
from sandbox.postgres import PostgresServer
from tests.support.stage import Stage
from tests.support.story import Story

VIEW = "reconciler.workspace_restarts"
COLUMNS = ["workspace_id", "on_hold_until", "owed_since", "next_attempt_at", "backing_off_until", "reason"]
# As docs/reference.md has it.
GRANTS = "GRANT USAGE ON SCHEMA reconciler TO {role}; GRANT SELECT ON reconciler.workspace_restarts TO {role}"
ROLE = "customer_support"
SLACK = timedelta(seconds=50)
MANY = 2000
_FULL = (
    """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, due_at)
    SELECT gen_random_uuid(), 'i-1', gen_random_uuid(), now() + interval '1 hour'
    FROM generate_series(1, CAST(:many AS integer))
    """,
    """
    INSERT INTO reconciler.holds (workspace_id, reason, ends_at)
    SELECT workspace_id, 'maintenance', now() + interval '1 day' FROM reconciler.restarts
    """,
    "ANALYZE reconciler.restarts, reconciler.holds",
)


def rows(stage: Stage) -> dict[str | None, dict[str, Any]]:
    found = stage.database.query(f"SELECT workspace_id::text AS id, * FROM {VIEW}")  # noqa: S608 - a constant
    assert all([*row] == ["id", *COLUMNS] for row in found)
    return {row["id"]: row for row in found}


@pytest.fixture
def story(stage: Stage) -> Story:
    story = Story(stage)
    story.workspaces(6)
    return story


@pytest.fixture
def flipped(story: Story) -> str:
    one = story.workspace()
    story.dies(one)
    story.minute()
    return one


def test_nobody_is_in_it_while_all_is_well(story: Story) -> None:
    story.minute()
    assert rows(story.stage) == {}


def test_a_restart_from_its_grace_to_its_end(story: Story, flipped: str) -> None:
    story.answers()
    row = rows(story.stage)[flipped]
    assert row["reason"] == "waiting for its grace"
    assert row["next_attempt_at"] - row["owed_since"] == timedelta(seconds=180)
    assert (row["on_hold_until"], row["backing_off_until"]) == (None, None)
    story.stage.fleet.age_everything(180)
    row = rows(story.stage)[flipped]
    assert row["reason"] == "due"
    assert row["next_attempt_at"] > row["owed_since"] + timedelta(seconds=180), "in the next cycle: now"
    story.minute()
    row = rows(story.stage)[flipped]
    assert row["reason"] == "watched: it should be up soon"
    assert (row["owed_since"], row["next_attempt_at"]) == (None, None)
    story.stage.fleet.age_everything(1000)
    assert rows(story.stage)[flipped]["reason"] == "unrecovered: it should be up by now"
    story.comes_back(flipped)
    story.minute()
    assert rows(story.stage)[flipped]["reason"] == "up again, and watched"
    story.minutes(6)
    assert rows(story.stage) == {}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "refused by the platform, and tried again"),
        (409, "blocked by a paused ancestor, and tried again"),
        (504, "asked for, and uncertain whether it has begun"),
    ],
)
def test_the_platform_did_not_accept(story: Story, flipped: str, status: int, reason: str) -> None:
    story.answers(Answer(status))
    story.minutes(3)
    assert rows(story.stage)[flipped]["reason"] == reason


def test_the_platform_asked_to_be_left_alone(story: Story, flipped: str) -> None:
    story.answers(Answer(429, headers={"Retry-After": "3600"}))
    story.minutes(3)
    row = rows(story.stage)[flipped]
    assert row["reason"] == "the platform asked to be left alone"
    assert row["next_attempt_at"] > datetime.now(UTC) + timedelta(minutes=55)


def test_the_breaker_keeps_it_back(story: Story, flipped: str) -> None:
    story.stage.fleet.age_everything(180)
    story.dies(*story.workspaces(8))
    assert story.minute().report["breaker_open"]
    assert rows(story.stage)[flipped]["reason"] == "kept back by the breaker"


def test_once_the_breaker_has_closed_the_answer_counts(story: Story, flipped: str) -> None:
    """One that waits for a paused ancestor for weeks was called kept back all the time."""
    story.stage.fleet.age_everything(180)
    others = story.workspaces(8)
    story.dies(*others)
    assert story.minute().report["breaker_open"]
    for one in others:
        story.comes_back(one)
    story.answers(Answer(409))
    assert story.minute().report["restarts"]["blocked"] == 1
    assert rows(story.stage)[flipped]["reason"] == "blocked by a paused ancestor, and tried again"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("streak = 3, backoff_until = now() + interval '5 minutes'", "backing off: restart 4 in a row"),
        ("last_answer = 'claimed'", "asked for, without an answer yet"),
        ("watched_since = now()", "owed again: an earlier restart did nothing"),
        ("adopted = true", "adopted: somebody else may be at it"),
    ],
)
def test_why_it_waits(story: Story, flipped: str, change: str, reason: str) -> None:
    story.stage.database.query(f"UPDATE reconciler.restarts SET {change}")  # noqa: S608 - from above
    row = rows(story.stage)[flipped]
    assert row["reason"] == reason
    if "backing" in reason:
        assert row["next_attempt_at"] == row["backing_off_until"]


def test_a_hold_on_one_and_on_everything(story: Story, flipped: str) -> None:
    stage = story.stage
    healthy = story.workspace()
    for who, seconds in (({"workspace_ids": [flipped, healthy]}, 600), ({"all": True}, 60)):
        stage.glance({"mode": "apply", "hold": {**who, "reason": "secret", "seconds": seconds}})
    found = rows(stage)
    assert {one: row["reason"] for one, row in found.items()} == dict.fromkeys([flipped, healthy, None], "on hold")
    ends = {one: row["on_hold_until"] - datetime.now(UTC) for one, row in found.items()}
    assert ends[flipped] > timedelta(seconds=600) - SLACK
    assert ends[None] < timedelta(seconds=61)
    assert found[flipped]["next_attempt_at"] == found[flipped]["on_hold_until"]
    assert (found[healthy]["owed_since"], found[healthy]["next_attempt_at"]) == (None, None)


@pytest.mark.parametrize(
    ("whose", "most_rows"), [("WHERE workspace_id = :one", 50), ("", 50 * MANY)], ids=["one", "all"]
)
def test_the_work_grows_with_what_is_asked_for(stage: Stage, whose: str, most_rows: int) -> None:
    """With a hold for each restart, the platform's question about one customer once read everybody's of both."""
    insert_restarts, insert_holds, analyze = _FULL
    stage.database.query(insert_restarts, many=MANY)
    stage.database.query(insert_holds)
    stage.database.query(analyze)
    (found,) = stage.database.query("SELECT workspace_id::text AS one FROM reconciler.holds LIMIT 1")
    statement = f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM {VIEW} {whose}"  # noqa: S608 - constants
    (plan,) = stage.database.query(statement, **(found if whose else {}))
    assert rows_read(plan["QUERY PLAN"][0]["Plan"]) < most_rows


def rows_read(node: dict[str, Any]) -> float:
    """Return how many rows all steps of a plan together looked at."""
    looked_at = node["Actual Rows"] + sum(count for name, count in node.items() if name.startswith("Rows Removed"))
    return float(looked_at * node["Actual Loops"]) + sum(map(rows_read, node.get("Plans", ())))


@pytest.fixture
def reader(stage: Stage, postgres: PostgresServer) -> Iterator[Any]:
    """A session as a role of the platform's that may read the view."""
    connection = postgres.connect(stage.database.name, user="postgres")
    connection.run(f"CREATE ROLE {ROLE}; {GRANTS.format(role=ROLE)}; SET ROLE {ROLE}")
    try:
        yield connection
    finally:
        connection.run(f"RESET ROLE; DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")
        connection.close()


def test_whoever_may_read_the_view_may_read_nothing_else(stage: Stage, flipped: str, reader: Any) -> None:
    stage.glance({"mode": "apply", "hold": {"all": True, "reason": "secret", "seconds": 60}})
    shown = reader.run(f"SELECT * FROM {VIEW}")  # noqa: S608 - a constant
    assert len(shown) == 2
    assert "secret" not in str(shown)
    assert stage.instance_of(flipped) not in str(shown)
    tables = stage.database.query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'reconciler'::regnamespace AND relkind = 'r'"
    )
    for table in [*(f"reconciler.{row['relname']}" for row in tables), "workspaces"]:
        with pytest.raises(pg8000.exceptions.DatabaseError, match="42501"):
            reader.run(f"SELECT FROM {table}")
    with pytest.raises(pg8000.exceptions.DatabaseError, match="55000"):
        reader.run(f"DELETE FROM {VIEW}")  # noqa: S608 - a constant


def test_a_function_in_a_query_on_it_sees_no_other_rows(stage: Stage, flipped: str, reader: Any) -> None:
    """Closed restarts belong to others as much as open ones; a cheap function would be called on them first."""
    stage.database.query(
        "INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, closed_at, outcome)"
        " VALUES (gen_random_uuid(), 'i-0', gen_random_uuid(), now(), 'accepted')"
    )
    reader.run(
        """
        CREATE FUNCTION pg_temp.overhear(uuid) RETURNS boolean LANGUAGE plpgsql COST 0.0000001
        AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END'
        """
    )
    seen = reader.run(f"SELECT workspace_id::text FROM {VIEW} WHERE pg_temp.overhear(workspace_id)")  # noqa: S608
    assert seen == [[flipped]]
    assert len(reader.notices) == 1
