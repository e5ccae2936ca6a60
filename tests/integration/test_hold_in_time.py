"""A hold is in force and answered within two seconds, whoever has locked what, and makes nobody wait."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from handler import holds, process, request
from handler.deadline import Deadline
from handler.errors import RequestError, RowLockedError
from tests.support.postgres_proxy import PostgresProxy
from tests.support.stage import Stage

PROMISED_S = 2.0
NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
NOBODY = "00000000-0000-4000-8000-000000000001"
CYCLE = "00000000-0000-4000-8000-00000000000c"
OPEN_RESTART = f"""
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, due_at, last_answer, streak, backoff_until)
    VALUES (CAST(:id AS uuid), 'i-00000000000000001', '{CYCLE}', now(), :answer, :streak, now() + interval '1 hour')
"""  # noqa: S608 - put together from constants
RECORD = "UPDATE reconciler.restarts SET last_answer = 'refused' WHERE workspace_id = CAST(:id AS uuid)"
# Parts of what the reconciler sends.
WRITE, CLAIM, COMMIT = b"WITH asked AS MATERIALIZED", b"SET attempts = LEAST(attempts + 1", b"COMMIT\0"
BY_ID = "WHERE workspace_id = CAST(:id AS uuid)"


def hold(*workspaces: str, seconds: int = 3600) -> dict[str, Any]:
    return {"mode": "apply", "hold": {"workspace_ids": list(workspaces), "reason": "maintenance", "seconds": seconds}}


HOLD_ALL: dict[str, Any] = {"mode": "apply", "hold": {"all": True, "reason": "it looks wrong", "seconds": 3600}}
RELEASE_ALL: dict[str, Any] = {"mode": "apply", "release": "all"}


def release(*workspaces: str) -> dict[str, Any]:
    return {"mode": "apply", "release": list(workspaces)}


def in_time(stage: Stage, event: dict[str, Any], **settings: str) -> dict[str, Any]:
    """Send the event to a cold function; return the answer, which has to come in time."""
    stage.invoke.cold()
    began_at = time.monotonic()
    answer = stage.invoke(event, **settings)
    assert time.monotonic() - began_at < PROMISED_S
    return answer


def beside(stage: Stage, event: dict[str, Any]) -> dict[str, Any]:
    """Carry the event out with a session of its own, in this process: to start another takes longer than a lock."""
    other = process.Process(stage.invoke.environment)
    try:
        whole = Deadline(45.0)
        return holds.carry_out(request.parse(event), other.parts().store, whole, whole.within(PROMISED_S))
    finally:
        other.close()


def refused_in_time(stage: Stage, event: dict[str, Any]) -> str:
    stage.invoke.cold()
    began_at = time.monotonic()
    with pytest.raises(RowLockedError) as error:
        stage.invoke(event)
    assert time.monotonic() - began_at < PROMISED_S
    return str(error.value)


@contextmanager
def somebody(stage: Stage, *statements: str, **parameters: Any) -> Iterator[None]:
    """Have somebody run these statements in a transaction, and go for lunch before the COMMIT."""
    with contextlib.closing(stage.database.connect()) as session:
        session.run("BEGIN")
        for one in statements:
            session.run(one, **parameters)
        yield
        session.run("ROLLBACK")


def owe(stage: Stage, workspace: str, answer: str | None = None, *, streak: int = 0) -> None:
    stage.database.query(OPEN_RESTART, id=workspace, answer=answer, streak=streak)


def on_hold(stage: Stage) -> set[str | None]:
    """Return whatever is on hold; None is everything."""
    rows = stage.database.query("SELECT workspace_id::text AS id FROM reconciler.holds WHERE ends_at > now()")
    return {row["id"] for row in rows}


# --- the platform's locks ---

HARDEST_LOCK = "LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE"
POLICIES = """
    ALTER TABLE workspaces {0} ROW LEVEL SECURITY; ALTER TABLE reconciler.holds {0} ROW LEVEL SECURITY;
    DROP POLICY IF EXISTS ours ON workspaces; DROP POLICY IF EXISTS ours ON reconciler.holds
"""
OURS = """
    CREATE POLICY ours ON workspaces TO reconciler USING (true) WITH CHECK (true);
    CREATE POLICY ours ON reconciler.holds TO reconciler USING (true) WITH CHECK (true)
"""


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "with row-level security"])
def test_a_locked_table_of_workspaces_delays_no_hold_and_no_release(stage: Stage, *, secured: bool) -> None:
    workspace = stage.add("terminated")
    with contextlib.ExitStack() as policies:
        if secured:
            stage.database.query(POLICIES.format("ENABLE") + ";" + OURS)
            policies.callback(stage.database.query, POLICIES.format("DISABLE"))
        with somebody(stage, HARDEST_LOCK):
            answer = in_time(stage, hold(workspace))
            assert (answer["outcome"], answer["unchecked"], answer["on_hold"]) == ("held", True, 1)
            assert on_hold(stage) == {workspace}
            answer = in_time(stage, HOLD_ALL)
            assert [one["workspace_id"] for one in answer["holds"]] == [workspace, None]
            assert (answer["on_hold"], "unchecked" in answer) == (1, False), "the others cannot be counted"
            assert in_time(stage, release(workspace))["outcome"] == "released"
            assert in_time(stage, RELEASE_ALL)["holds"] == []


def test_a_hold_that_could_not_be_checked_may_name_anybody(stage: Stage) -> None:
    with somebody(stage, HARDEST_LOCK):
        assert in_time(stage, hold(NOBODY))["unchecked"]
    with pytest.raises(RequestError, match=NOBODY):
        stage.invoke(hold(NOBODY))


def test_a_flip_in_mid_write_delays_no_hold_and_its_restart_waits_for_the_hold(stage: Stage) -> None:
    stage.add_all(2, "running")
    workspace = stage.add("terminated")
    answers: list[dict[str, Any]] = []

    def place() -> None:
        answers.append(beside(stage, hold(workspace)))
        assert on_hold(stage) == {workspace}

    with PostgresProxy(stage.database) as proxy:
        proxy.before(WRITE, lambda: proxy.before(COMMIT, place))
        outcome = stage.cycle(DATABASE_URL=proxy.url, **NO_BREAKER)
    assert answers[0]["in_flight"] == []
    assert outcome.flipped == {workspace}
    assert (outcome.calls, outcome.report["restarts"]["pending"]) == ([], 1)


def test_fifty_workspaces_are_put_on_hold_and_nobody_waits(stage: Stage) -> None:
    locked, *others = stage.add_all(50, "running")

    def heartbeats() -> None:
        with contextlib.closing(stage.database.connect()) as platform:
            platform.run("SET lock_timeout = '100ms'")
            platform.run("UPDATE workspaces SET last_heartbeat_at = now() WHERE id <> CAST(:id AS uuid)", id=locked)
        beaten.append(len(others))

    beaten: list[int] = []
    with stage.fleet.locked(locked), PostgresProxy(stage.database) as proxy:
        for words in (b"workspaces.id = asked.id", b"WITH earlier", b"WITH free"):
            proxy.before(words, heartbeats)
        for commit in range(1, 4):
            proxy.before(COMMIT, heartbeats, nth=commit)
        answer = in_time(stage, hold(locked, *others), DATABASE_URL=proxy.url)
    assert (answer["on_hold"], "unchecked" in answer, len(beaten)) == (50, False, 6)


# --- locks on our own rows ---


def test_restarts_that_the_hold_may_be_too_late_for_are_named(stage: Stage) -> None:
    asked, claiming, waiting, other = stage.add_all(4, "terminated", status="offline")
    owe(stage, asked, "claimed")
    owe(stage, other, "claimed")
    for one, last in ((claiming, None), (waiting, "refused")):
        owe(stage, one, last)
    with somebody(stage, f"SELECT FROM reconciler.restarts {BY_ID} FOR UPDATE", id=claiming):
        answer = in_time(stage, hold(asked, claiming, waiting))
        assert answer["in_flight"] == sorted([asked, claiming])
        assert in_time(stage, HOLD_ALL)["in_flight"] == sorted([asked, claiming, other])
    assert in_time(stage, release(asked, claiming, waiting))["in_flight"] == [asked]


@pytest.mark.parametrize(("before", "asked"), [(CLAIM, False), (COMMIT, True)], ids=["the claim", "its commit"])
def test_a_claim_in_mid_write_is_in_flight(stage: Stage, before: bytes, *, asked: bool) -> None:
    stage.add("running")
    workspace = stage.add("terminated")
    stage.cycle(PLATFORM_BASE_URL=None, **NO_BREAKER).assert_only_owed(workspace)
    answers: list[dict[str, Any]] = []

    def place() -> None:
        answers.append(beside(stage, hold(workspace)))

    with PostgresProxy(stage.database) as proxy:
        proxy.before(CLAIM, place if before is CLAIM else lambda: proxy.before(COMMIT, place))
        outcome = stage.cycle(DATABASE_URL=proxy.url)
    assert answers[0]["in_flight"] == [workspace]
    assert [call.workspace_id for call in outcome.calls] == [workspace] * asked


def test_nobody_waits_to_record_an_answer_while_a_hold_looks_for_restarts_in_flight(stage: Stage) -> None:
    workspace = stage.add("terminated", status="offline")
    owe(stage, workspace, "claimed")

    def record() -> None:
        with contextlib.closing(stage.database.connect()) as cycle:
            cycle.run("SET lock_timeout = '100ms'")
            cycle.run(RECORD, id=workspace)
        recorded.append(workspace)

    recorded: list[str] = []
    with PostgresProxy(stage.database) as proxy:
        proxy.before(COMMIT, record, nth=3)
        assert in_time(stage, hold(workspace), DATABASE_URL=proxy.url)["in_flight"] == [workspace]
    assert recorded == [workspace]


@pytest.mark.parametrize(
    "lock",
    [
        f"SELECT FROM reconciler.holds {BY_ID} FOR UPDATE",
        "INSERT INTO reconciler.holds (workspace_id, reason, ends_at) VALUES (CAST(:id AS uuid), 'mine', now())",
    ],
    ids=["an earlier hold is locked", "somebody is placing another"],
)
def test_a_hold_waits_for_no_other_hold(stage: Stage, lock: str) -> None:
    workspace = stage.add("running")
    stage.invoke(hold(workspace, seconds=60))
    with somebody(stage, lock, id=workspace):
        answer = in_time(stage, hold(workspace))
        assert [one["reason"] for one in answer["holds"]] == ["maintenance"]
        assert answer["on_hold"] == 1
    rows = stage.database.query("SELECT FROM reconciler.holds WHERE ends_at > now() + interval '30 minutes'")
    assert len(rows) == 1


def test_a_locked_table_of_restarts_delays_no_hold(stage: Stage) -> None:
    workspace = stage.add("running")
    with somebody(stage, "LOCK TABLE reconciler.restarts IN ACCESS EXCLUSIVE MODE"):
        assert in_time(stage, hold(workspace))["in_flight"] is None
        assert in_time(stage, HOLD_ALL)["in_flight"] is None
    assert on_hold(stage) == {workspace, None}


def test_a_hold_that_cannot_be_placed_says_so_in_time(stage: Stage) -> None:
    with somebody(stage, "LOCK TABLE reconciler.holds IN ACCESS EXCLUSIVE MODE"):
        assert refused_in_time(stage, HOLD_ALL).startswith("no hold was placed, ")


# --- releases ---


@pytest.mark.parametrize("table", ["holds", "restarts"])
def test_a_release_that_comes_upon_a_lock_names_it_and_releases_nobody(stage: Stage, table: str) -> None:
    locked, other = stage.add_all(2, "terminated", status="offline")
    for one in (locked, other):
        owe(stage, one, streak=4)
    stage.invoke(hold(locked, other))
    with somebody(stage, f"SELECT FROM reconciler.{table} {BY_ID} FOR UPDATE", id=locked):
        said = refused_in_time(stage, release(locked, other))
        assert (said.startswith("nothing was released, "), locked in said, other in said) == (True, True, False)
        assert on_hold(stage) == {locked, other}
        assert {one["streak"] for one in stage.fleet.restarts()} == {4}
    assert in_time(stage, release(locked, other))["holds"] == []
    assert {(one["streak"], one["backoff_until"]) for one in stage.fleet.restarts()} == {(0, None)}


def test_a_release_outlasts_a_lock_of_a_moment(stage: Stage) -> None:
    workspace = stage.add("running")
    stage.invoke(hold(workspace))
    with contextlib.ExitStack() as lock:
        lock.enter_context(somebody(stage, f"SELECT FROM reconciler.holds {BY_ID} FOR UPDATE", id=workspace))
        threading.Timer(0.15, lock.pop_all().close).start()
        assert in_time(stage, release(workspace))["holds"] == []


def test_a_release_keeps_the_hold_and_its_end(stage: Stage) -> None:
    workspace = stage.add("running")
    stage.invoke(hold(workspace))
    stage.invoke(release(workspace))
    rows = stage.database.query("SELECT ends_at <= now() AS ended FROM reconciler.holds")
    assert [row["ended"] for row in rows] == [True]


STOP = "INSERT INTO reconciler.restart_stops (ends_at) VALUES (now() + interval '1 hour')"


def test_a_release_of_everything_ends_its_hold_and_the_stops_and_no_single_hold_or_back_off(stage: Stage) -> None:
    workspace = stage.add("terminated", status="offline")
    owe(stage, workspace, streak=4)
    for event in (hold(workspace), HOLD_ALL):
        stage.invoke(event)
    stage.database.query(STOP)
    with somebody(stage, "SELECT FROM reconciler.restart_stops FOR UPDATE"):
        assert "Retry-After" in refused_in_time(stage, RELEASE_ALL)
        assert on_hold(stage) == {workspace, None}
    with somebody(stage, "SELECT FROM reconciler.holds WHERE workspace_id IS NULL FOR UPDATE"):
        assert "the hold on everything" in refused_in_time(stage, RELEASE_ALL)
    answer = in_time(stage, RELEASE_ALL)
    assert ([one["workspace_id"] for one in answer["holds"]], answer["on_hold"]) == ([workspace], 1)
    assert stage.database.query("SELECT FROM reconciler.restart_stops") == []
    assert stage.fleet.restarts(workspace)[0]["streak"] == 4


# --- the kill switch ---


def test_under_a_hold_on_everything_cycles_look_and_do_nothing(stage: Stage) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    owed = stage.add("terminated", status="offline")
    stage.add("running", runtime="external")
    stage.database.query(
        OPEN_RESTART.replace("'i-00000000000000001'", ":instance").replace("+ interval", "- interval"),
        id=owed,
        answer=None,
        streak=0,
        instance=stage.instance_of(owed),
    )
    answer = in_time(stage, HOLD_ALL)
    assert (answer["on_hold"], answer["holds"][0]["workspace_id"], answer["in_flight"]) == (3, None, [])
    outcome = stage.cycle(**NO_BREAKER)
    outcome.assert_untouched(dead, owed)
    assert (outcome.report["checked"], outcome.skips, outcome.calls) == (3, {"on_hold": 1}, [])
    in_time(stage, hold(owed))
    assert in_time(stage, HOLD_ALL)["on_hold"] == 4, "the one that is on hold singly is no candidate"
    in_time(stage, RELEASE_ALL)
    assert stage.cycle(**NO_BREAKER).flipped == {dead}


def test_a_dry_run_says_what_a_hold_on_everything_would_find_and_changes_nothing(stage: Stage) -> None:
    workspace = stage.add("terminated", status="offline")
    owe(stage, workspace, "claimed")
    answer = in_time(stage, HOLD_ALL | {"mode": "dry-run"})
    assert answer == {
        "mode": "dry-run",
        "outcome": "unchanged",
        "holds": [],
        "on_hold": 0,
        "in_flight": [workspace],
    }
    assert on_hold(stage) == set()
