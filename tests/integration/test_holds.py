"""Nobody flips or restarts a workspace on hold until the hold ends, whenever it was placed.

Cycles look at it as ever. test_hold_in_time.py has the locks, and the hold on everything.
"""

import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handler.errors import RequestError, RightsMissingError
from handler.store import flip
from sandbox.postgres import Database
from tests.integration.test_entry_point import everything, let_it_only_read
from tests.support.events import DRY_RUN
from tests.support.marks import both_status_types
from tests.support.stage import Outcome, Stage

# How far a moment that is reckoned from the test's clock may lie from the one that was reckoned by the database.
SLACK_S = 10.0
A_WHILE_S = 600.0
NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
NO_PLATFORM: dict[str, str | None] = {"PLATFORM_BASE_URL": None}
NOBODY = "00000000-0000-4000-8000-000000000001"
# Whatever has not happened by then never will.
TIMEOUT_S = 30.0

both_probes = pytest.mark.parametrize("probe", ["ec2", "control_plane"])


def order(*workspaces: str, seconds: int = 3600, reason: str = "maintenance", mode: str = "apply") -> dict[str, Any]:
    return {"mode": mode, "hold": {"workspace_ids": list(workspaces), "reason": reason, "seconds": seconds}}


def hold(stage: Stage, *workspaces: str, **how: Any) -> Outcome:
    return stage.glance(order(*workspaces, **how))


def release(stage: Stage, *workspaces: str, mode: str = "apply") -> Outcome:
    return stage.glance({"mode": mode, "release": list(workspaces)})


def on_hold(stage: Stage) -> dict[str, str]:
    """Return which workspaces are on hold, and why."""
    rows = stage.database.query("SELECT workspace_id::text AS id, reason FROM reconciler.holds WHERE ends_at > now()")
    return {row["id"]: row["reason"] for row in rows}


def hold_meanwhile(stage: Stage, *workspaces: str) -> dict[str, Any]:
    """Send the event to a separate process, because this one may be in the middle of a cycle; return the answer."""
    with stage.invoke.in_process(order(*workspaces)) as invocation:
        return invocation.wait(TIMEOUT_S)


# --- exempt ---


@both_probes
def test_a_workspace_on_hold_is_looked_at_and_neither_flipped_nor_restarted(stage: Stage, probe: str) -> None:
    workspace, other = stage.add_all(2, "terminated")
    hold(stage, workspace)
    for event in ({"mode": "apply"}, {"mode": "apply", "workspace_ids": [workspace, other]}):
        outcome = stage.cycle(event, **stage.settings(probe), **NO_BREAKER)
        outcome.assert_untouched(workspace)
        assert (outcome.report["candidates"], outcome.report["on_hold"]) == (1 + (outcome.flipped == {other}), 1)
        assert outcome.skips == {"on_hold": 1}
    assert other in {call.workspace_id for call in stage.platform.calls}


@both_status_types
def test_a_dry_run_would_not_flip_a_workspace_on_hold(stage: Stage) -> None:
    workspace, other = stage.add_all(2, "terminated")
    hold(stage, workspace)
    report = stage.cycle(DRY_RUN, **NO_BREAKER).report
    assert (report["candidates"], [flip["workspace_id"] for flip in report["flips"]]) == (2, [other])


def test_a_hold_ends_by_itself_after_the_seconds_given(stage: Stage) -> None:
    workspace = stage.add("terminated")
    hold(stage, workspace, seconds=600)
    stage.fleet.age_everything(600 - SLACK_S)
    assert stage.cycle(**NO_BREAKER).skips == {"on_hold": 1}
    stage.fleet.age_everything(SLACK_S)
    outcome = stage.cycle(**NO_BREAKER)
    outcome.assert_only_flipped({workspace: "terminated"})
    assert outcome.report["on_hold"] == 0


def expires(stage: Stage, _: str) -> None:
    stage.fleet.age_everything(A_WHILE_S)


ENDINGS: dict[str, Callable[[Stage, str], object]] = {"expires": expires, "is released": release}


@pytest.mark.parametrize("ends", ENDINGS.values(), ids=ENDINGS.keys())
def test_the_restart_of_a_workspace_on_hold_waits_until_the_hold_ends_and_is_asked_for_then(
    stage: Stage, ends: Callable[[Stage, str], object]
) -> None:
    workspace = stage.add("terminated")
    stage.cycle(**NO_PLATFORM, **NO_BREAKER).assert_only_owed(workspace)
    hold(stage, workspace, seconds=int(A_WHILE_S))
    stage.fleet.age_everything(A_WHILE_S - SLACK_S)
    waiting = stage.cycle()
    assert (waiting.calls, waiting.report["restarts"]["pending"]) == ([], 1)
    assert waiting.metrics()[0]["OldestRestartAge"] == [0], "nobody waits for it"
    ends(stage, workspace)
    afterwards = stage.cycle()
    assert [call.workspace_id for call in afterwards.calls] == [workspace]
    assert (afterwards.report["restarts"]["accepted"], afterwards.report["restarts"]["pending"]) == (1, 0)


def test_the_restart_of_a_workspace_on_hold_that_moves_on_is_cancelled(stage: Stage) -> None:
    workspace = stage.add("terminated")
    stage.cycle(**NO_PLATFORM, **NO_BREAKER).assert_only_owed(workspace)
    hold(stage, workspace)
    stage.fleet.update(workspace, status="removed")
    assert stage.cycle().report["restarts"]["cancelled"] == 1


def test_others_are_flipped_and_restarted_as_ever(stage: Stage) -> None:
    stage.add_all(3, "running")
    exempt, dead = stage.add_all(2, "stopped")
    hold(stage, exempt)
    stage.cycle().assert_only_flipped({dead: "stopped"})


def test_workspaces_on_hold_do_not_count_for_the_breaker(stage: Stage) -> None:
    stage.add_all(2, "running")
    *dead, last = stage.add_all(4, "terminated")
    assert stage.cycle(DRY_RUN).report["breaker_open"]
    hold(stage, *dead)
    outcome = stage.cycle()
    assert not outcome.report["breaker_open"]
    outcome.assert_only_flipped({last: "terminated"})


def test_a_hold_takes_nobodys_turn(stage: Stage) -> None:
    ids = sorted(stage.add_all(5, "running"))
    hold(stage, ids[1])
    seen: list[str] = []
    for _ in range(3):
        stage.control_plane.requests.clear()
        stage.cycle(**stage.settings("control_plane"), CANDIDATE_LIMIT="2")
        seen += [request.workspace_id for request in stage.control_plane.requests]
    assert set(seen) == set(ids)


def test_a_fleet_that_is_on_hold_as_a_whole_is_a_completed_pass(stage: Stage) -> None:
    hold(stage, *stage.add_all(2, "terminated"))
    report = stage.cycle().report
    assert (report["candidates"], report["completed_pass"], report["on_hold"]) == (2, True, 2)


# --- placed while a cycle is under way ---


@both_probes
@pytest.mark.parametrize("mode", ["apply", "dry-run"])
@pytest.mark.parametrize("look", [1, 2], ids=["at the first look", "at the second look"])
def test_a_hold_that_is_placed_before_the_flip_prevents_it(stage: Stage, probe: str, mode: str, look: int) -> None:
    stage.add_all(2, "running")
    workspace = stage.add("terminated")
    if probe == "ec2":
        stage.ec2.script.before(lambda _: hold_meanwhile(stage, workspace), action="DescribeInstances", nth=look)
    else:
        stage.control_plane.script.before(lambda _: hold_meanwhile(stage, workspace), nth=look, workspace_id=workspace)
    outcome = stage.cycle({"mode": mode}, **stage.settings(probe))
    outcome.assert_untouched(workspace)
    assert outcome.reasons == {workspace: "on_hold"}
    assert outcome.skips == {"on_hold": 1}
    assert outcome.report["flips"] == []


def test_a_hold_that_is_placed_while_old_instances_are_looked_at_prevents_the_restart(stage: Stage) -> None:
    workspace = stage.add("terminated")
    stage.cycle(**NO_PLATFORM, **NO_BREAKER).assert_only_owed(workspace)
    stage.ec2.script.before(lambda _: hold_meanwhile(stage, workspace), action="DescribeInstances", nth=1)
    outcome = stage.cycle()
    assert (outcome.calls, outcome.report["restarts"]["pending"]) == ([], 1)
    assert stage.fleet.restarts(workspace)[0]["attempts"] == 0


def wait_for_a_lock(database: Database, kind: str) -> None:
    """Return once a session waits for this kind of lock. For a locked row, that is `transactionid`."""
    for _ in range(int(TIMEOUT_S / 0.05)):
        if database.query("SELECT FROM pg_locks WHERE locktype = :kind AND NOT granted", kind=kind):
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"nobody waits for a lock on a {kind}")


# A view in the table's place runs this for each row that a session reads: after the statement's snapshot, before the
# row's lock.
STOP = """
    CREATE FUNCTION stop() RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF pg_backend_pid() IN ({sessions}) THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
        RETURN true;
    END $$;
    ALTER TABLE {schema}.{table} RENAME TO behind_the_view;
    CREATE VIEW {schema}.{table} AS SELECT xmin, * FROM {schema}.behind_the_view WHERE stop();
    GRANT ALL ON {schema}.{table} TO reconciler
"""
GO_ON = """
    DROP VIEW {schema}.{table};
    ALTER TABLE {schema}.behind_the_view RENAME TO {table};
    DROP FUNCTION stop
"""
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'reconciler'"


def cycle_stopped_at_a_lock(stage: Stage, look: int, schema: str, table: str, workspace: str) -> Outcome:
    """Run a cycle. Place a hold when its first statement after a probe has its snapshot, but no lock yet."""

    def place(owner: Any) -> None:
        wait_for_a_lock(stage.database, "advisory")
        hold_meanwhile(stage, workspace)
        owner.run("SELECT pg_advisory_unlock_all()")

    def stop(_: object) -> None:
        sessions = ", ".join(str(row["pid"]) for row in stage.database.query(SESSIONS))
        owner.run("SELECT pg_advisory_lock(1)")
        owner.run(STOP.format(schema=schema, table=table, sessions=sessions))
        placed.append(hands.submit(place, owner))

    placed: list[Future[None]] = []
    stage.ec2.script.before(stop, action="DescribeInstances", nth=look)
    with ThreadPoolExecutor() as hands, contextlib.closing(stage.database.connect()) as owner:
        try:
            outcome = stage.cycle(RECONFIRM_TIMEOUT_SECONDS=str(TIMEOUT_S))
            placed[0].result(TIMEOUT_S)
        finally:
            owner.run(GO_ON.format(schema=schema, table=table))
    return outcome


def test_no_flip_begins_after_a_hold_was_placed_however_close(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flip, "LOCK_WAIT_SECONDS", TIMEOUT_S)  # the hold is placed by a process that has to start
    stage.add_all(2, "running")
    workspace = stage.add("terminated")
    outcome = cycle_stopped_at_a_lock(stage, 2, "public", "workspaces", workspace)
    outcome.assert_untouched(workspace)
    assert outcome.reasons == {workspace: "on_hold"}


def test_no_restart_is_claimed_after_a_hold_was_placed_however_close(stage: Stage) -> None:
    workspace = stage.add("terminated")
    stage.cycle(**NO_PLATFORM, **NO_BREAKER).assert_only_owed(workspace)
    outcome = cycle_stopped_at_a_lock(stage, 1, "reconciler", "restarts", workspace)
    assert (outcome.calls, outcome.report["restarts"]["pending"]) == ([], 1)
    assert stage.fleet.restarts(workspace)[0]["attempts"] == 0


# --- what is answered and told ---


def test_a_hold_is_answered_with_all_that_are_on_hold_why_and_until_when(stage: Stage) -> None:
    first, second = stage.add_all(2, "running")
    hold(stage, second, seconds=7200, reason="an upgrade of the disk")
    outcome = hold(stage, first, seconds=600)
    answer = outcome.report
    assert json.loads(json.dumps(answer)) == answer
    ends_at = [datetime.fromisoformat(one.pop("ends_at")) for one in answer["holds"]]
    assert answer == {
        "mode": "apply",
        "outcome": "held",
        "on_hold": 2,
        "in_flight": [],
        "holds": [
            {"workspace_id": first, "reason": "maintenance"},
            {"workspace_id": second, "reason": "an upgrade of the disk"},
        ],
    }
    for moment, seconds in zip(ends_at, (600, 7200), strict=True):
        assert abs(moment - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(seconds=SLACK_S)
    (line,) = outcome.lines("workspace on hold")
    assert (line["workspace_id"], line["reason"], line["mode"]) == (first, "for 600 s: maintenance", "apply")


def test_a_release_is_answered_with_those_that_are_still_on_hold(stage: Stage) -> None:
    first, second = stage.add_all(2, "running")
    hold(stage, first, second)
    outcome = release(stage, first, NOBODY)
    assert (outcome.report["outcome"], outcome.report["on_hold"]) == ("released", 1)
    assert [one["workspace_id"] for one in outcome.report["holds"]] == [second]
    assert [line["workspace_id"] for line in outcome.lines("workspace released")] == [first, NOBODY]


def test_the_answer_lists_a_hundred_and_counts_all(stage: Stage) -> None:
    answer = hold(stage, *stage.add_all(101, "running")).report
    assert (len(answer["holds"]), answer["on_hold"]) == (100, 101)


def test_the_number_on_hold_is_in_the_report_and_the_metrics_of_each_cycle(stage: Stage) -> None:
    hold(stage, *stage.add_all(2, "running"))
    outcome = stage.cycle()
    assert (outcome.report["on_hold"], outcome.metrics()[0]["OnHold"]) == (2, [2])
    assert outcome.lines("cycle finished")[0]["on_hold"] == 2


def test_a_hold_or_release_is_no_cycle(stage: Stage) -> None:
    workspace = stage.add("terminated")
    stage.cycle(**NO_PLATFORM, **NO_BREAKER)
    stage.ec2.calls.clear()
    for outcome in (hold(stage, workspace), release(stage, workspace)):
        assert (outcome.calls, outcome.metrics(), outcome.lines("cycle finished")) == ([], [], [])
    assert stage.ec2.calls == []


def test_an_engineer_need_not_wait_for_the_cycle_under_way(stage: Stage) -> None:
    workspace = stage.add("running")
    stage.control_plane.script.before(lambda _: hold_meanwhile(stage, workspace), nth=1)
    assert stage.cycle(**stage.settings("control_plane")).report["on_hold"] == 1


def test_a_hold_of_a_workspace_that_is_on_hold_replaces_it(stage: Stage) -> None:
    workspace = stage.add("terminated")
    hold(stage, workspace, seconds=7200, reason="first")
    answer = hold(stage, workspace, seconds=60, reason="second").report
    assert (answer["on_hold"], on_hold(stage)) == (1, {workspace: "second"})
    stage.fleet.age_everything(61)
    assert stage.cycle(**NO_BREAKER).flipped == {workspace}
    assert hold(stage, workspace).report["on_hold"] == 1, "one that has ended is placed anew"


def test_a_workspace_that_does_not_exist_is_refused_by_name_and_nothing_is_put_on_hold(stage: Stage) -> None:
    workspace = stage.add("running")
    with pytest.raises(RequestError, match=rf"^event field hold\.workspace_ids: .*{NOBODY}"):
        hold(stage, workspace, NOBODY)
    assert on_hold(stage) == {}


def test_ids_may_be_written_in_capitals(stage: Stage) -> None:
    workspace = stage.add("running")
    hold(stage, workspace.upper())
    assert on_hold(stage).keys() == {workspace}
    release(stage, workspace.upper())
    assert on_hold(stage) == {}


def test_a_reason_is_kept_and_told_as_it_was_written(stage: Stage) -> None:
    reason = 'Ärger\'; DROP TABLE workspaces; -- "größer" 日本'
    workspace = stage.add("running")
    outcome = hold(stage, workspace, reason=reason)
    assert outcome.report["holds"][0]["reason"] == on_hold(stage)[workspace] == reason


# --- dry runs ---


@pytest.mark.parametrize(("mode", "settings"), [("dry-run", {}), ("apply", {"MODE": "dry-run"})], ids=["event", "MODE"])
def test_a_dry_run_says_who_is_on_hold_and_writes_nothing_and_needs_no_right_to(
    stage: Stage, mode: str, settings: dict[str, str]
) -> None:
    exempt, other = stage.add_all(2, "running")
    hold(stage, exempt)
    before = everything(stage.database)
    for event in (order(other, mode=mode), {"mode": mode, "release": [exempt]}):
        let_it_only_read(stage)
        outcome = stage.glance(event, **settings)
        assert everything(stage.database) == before
        answer = outcome.report
        assert (answer["mode"], answer["outcome"], answer["on_hold"]) == ("dry-run", "unchanged", 1)
        assert [one["workspace_id"] for one in answer["holds"]] == [exempt]
        assert outcome.lines("workspace on hold") == outcome.lines("workspace released") == []


@pytest.mark.parametrize("event", [order(NOBODY), {"mode": "apply", "release": [NOBODY]}], ids=["hold", "release"])
def test_a_hold_or_release_without_the_right_to_write_is_refused(stage: Stage, event: dict[str, Any]) -> None:
    let_it_only_read(stage)
    with pytest.raises(RightsMissingError, match=r"infra/grants\.sql"):
        stage.glance(event)


def test_a_release_by_an_event_without_a_mode_is_a_dry_run(stage: Stage) -> None:
    workspace = stage.add("running")
    hold(stage, workspace)
    assert stage.glance({"release": [workspace]}).report["outcome"] == "unchanged"
    assert on_hold(stage).keys() == {workspace}
