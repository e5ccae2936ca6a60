"""The database's clock is far ahead for a while, and then right again: nothing waits for the time that it showed."""

from datetime import UTC, datetime, timedelta

import pytest

from sandbox.http_server import Answer
from tests.support.stage import Stage
from tests.support.story import Story, calls

A_YEAR_S = 365 * 86_400.0
LONGEST_WAIT = 15  # minutes
GRACE = 3

# What may lie far ahead: holds that somebody has placed, and stops, which are ignored then. The others are never read.
LEFT_ALONE = {
    *(("holds", "began_at"), ("holds", "ends_at"), ("restart_stops", "began_at"), ("restart_stops", "ends_at")),
    *(("lease", "acquired_at"), ("lease", "expires_at"), ("schema_version", "upgraded_at")),
}
_TIMES = """
SELECT relname, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relkind = 'r' AND relnamespace = 'reconciler'::regnamespace AND atttypid = 'timestamptz'::regtype
  AND NOT attisdropped
"""


_RESTART = """
INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, attempts, asked_at, last_answer, closed_at,
                                 outcome, backoff_until, kept_back_at, absent_sightings, absent_since, watched_since,
                                 up_since, first_due_at)
SELECT id, instance_id, id, 1, now(), 'claimed', CASE WHEN NOT CAST(:open AS boolean) THEN now() END,
       CASE WHEN NOT CAST(:open AS boolean) THEN 'accepted' END, now(), now(), 1, now(), now(), now(), now()
FROM workspaces WHERE instance_id = :instance
"""


@pytest.fixture
def story(stage: Stage) -> Story:
    story = Story(stage)
    story.workspaces(9)
    story.answers()
    return story


def clock_was_ahead(story: Story) -> None:
    """Have the clock show a year too much until now, so that all of our own times are a year ahead."""
    story.stage.fleet.age_everything(-A_YEAR_S)


def test_an_owed_restart_is_asked_for_after_the_longest_wait_and_its_age_shows(story: Story) -> None:
    one = story.workspace()
    story.dies(one)
    story.minute()
    clock_was_ahead(story)
    outcomes = story.minutes(30)
    asked = [minute for minute, some in enumerate(calls(outcomes), 1) if some == [one]]
    assert asked == [LONGEST_WAIT + 1]
    story.answers(Answer(500))
    other = story.workspace()
    story.dies(other)
    story.minutes(1 + GRACE)
    clock_was_ahead(story)
    (metrics,) = story.minutes(40)[-1].metrics()
    assert metrics["OldestRestartAge"][0] > 20 * 60


def test_an_absence_counts_on(story: Story) -> None:
    one = story.workspace(None, alive=False)
    story.minute()
    clock_was_ahead(story)
    assert [out.report["flipped"] for out in story.minutes(3)] == [0, 0, 1]
    assert story.status(one) == "offline"


def test_the_age_of_a_doubt_shows(story: Story) -> None:
    story.dies(story.workspace(), state="stopping")
    story.minute()
    clock_was_ahead(story)
    assert story.minutes(32)[-1].report["oldest_doubt_seconds"] >= 30 * 60


def test_flips_that_lie_ahead_do_not_hold_the_breaker_open(story: Story) -> None:
    dead = [story.workspace() for _ in range(8)]
    story.dies(*dead)
    story.minute()
    clock_was_ahead(story)
    for one in dead:
        story.comes_back(one)
    story.minutes(11)
    more = story.workspaces(2)
    story.dies(*more)
    last = story.minute().report
    assert (last["breaker_open"], last["flipped"]) == (False, 2)


def test_a_watch_ends(story: Story) -> None:
    one = story.workspace()
    story.dies(one)
    story.minutes(1 + GRACE)
    story.comes_back(one)
    story.minutes(2)
    clock_was_ahead(story)
    story.minutes(7)
    (restart,) = story.stage.fleet.restarts(one)
    assert (restart["outcome"], restart["watch_ended_at"] is None) == ("accepted", False)


def test_a_row_that_the_platform_took_offline_is_adopted_and_restarted(story: Story) -> None:
    one = story.workspace()
    story.dies(one, heartbeat_age_s=-90.0)  # so young that it is not adopted at once
    story.minute()
    story.becomes(one, status="offline")
    story.minute()
    clock_was_ahead(story)
    outcomes = story.minutes(10)
    assert [out.report["adopted"] for out in outcomes].count(1) == 1
    assert [one for some in calls(outcomes) for one in some] == [one]


def test_one_cycle_later_none_of_our_times_lies_ahead(stage: Stage) -> None:
    """But for those that may, or that nobody reads."""
    stage.add("running", heartbeat_age_s=0.0)
    for open_ in (True, False):
        instance = stage.instances(1, "stopped")[0]
        stage.fleet.add(instance, status="offline" if open_ else "provisioning")
        stage.database.query(
            _RESTART,
            open=open_,
            instance=instance,
        )
    doubted = stage.add("stopping", status="offline", heartbeat_age_s=0.0)
    stage.database.query(
        "INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, offline_since)"
        " SELECT id, 'dead', instance_id, now() FROM workspaces WHERE id = CAST(:id AS uuid)",
        id=doubted,
    )
    stage.database.query("INSERT INTO reconciler.source_doubts (cause, workspaces) VALUES ('timeout', 1001)")
    stage.database.query(
        "INSERT INTO reconciler.shard_coverage (shards, shard, used_at, pass_completed_at) VALUES (1, 0, now(), now())"
    )
    stage.fleet.age_everything(-A_YEAR_S)
    stage.glance()
    limit = datetime.now(UTC) + timedelta(hours=4, minutes=1)
    ahead = set()
    for column in stage.database.query(_TIMES):
        table, name = column["relname"], column["attname"]
        (found,) = stage.database.query(f"SELECT max({name}) AS latest FROM reconciler.{table}")  # noqa: S608 - names
        if found["latest"] is not None and found["latest"] > limit:
            ahead.add((table, name))
    assert ahead <= LEFT_ALONE
