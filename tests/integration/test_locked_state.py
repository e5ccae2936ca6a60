"""Somebody's open transaction has one row of our own tables: it costs what that row is about, and nothing else."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox.control_plane import state_answer
from sandbox.http_server import Answer
from tests.support.stage import Outcome, Stage

NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
# A row that is waited for is waited for this long: half a second, and what the rest of a cycle may take here.
SHORT_MS = 2_500
A_MINUTE_S, AN_ABSENCE_S, RECOVERED_S = 61.0, 90.0, 300.0
CYCLE = "00000000-0000-4000-8000-00000000000c"
OPEN_RESTART = f"""
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, due_at)
    VALUES (CAST(:id AS uuid), :instance, '{CYCLE}', now() - interval '1 minute')
"""  # noqa: S608 - put together from constants


@contextmanager
def open_transaction(stage: Stage, statement: str, **parameters: Any) -> Iterator[None]:
    """Have somebody run a statement, and go for lunch before the COMMIT."""
    with contextlib.closing(stage.database.connect()) as somebody:
        somebody.run("BEGIN")
        somebody.run(statement, **parameters)
        yield
        somebody.run("ROLLBACK")


def lock(stage: Stage, table: str, workspace_id: str) -> contextlib.AbstractContextManager[None]:
    """Have somebody lock the rows of one workspace in one of our tables."""
    statement = f"SELECT FROM reconciler.{table} WHERE workspace_id = CAST(:id AS uuid) FOR UPDATE"
    return open_transaction(stage, statement, id=workspace_id)


def cycle(stage: Stage, **settings: str | None) -> Outcome:
    """Run a cycle, which waits for nobody."""
    outcome = stage.cycle(**stage.settings("control_plane"), **NO_BREAKER, CYCLE_DEADLINE_SECONDS="5", **settings)
    assert outcome.report["duration_ms"] < SHORT_MS
    return outcome


def owe(stage: Stage, count: int, state: str | None = "terminated") -> list[str]:
    """Add workspaces whose restart is owed and due, the first one's first."""
    ids = stage.add_all(count, state, status="offline")
    for one in ids:
        stage.database.query(OPEN_RESTART, id=one, instance=stage.instance_of(one))
    return ids


def called(outcome: Outcome) -> set[str]:
    return {call.workspace_id for call in outcome.calls}


def outcomes(stage: Stage) -> dict[str, str | None]:
    """Return what became of each workspace's latest restart."""
    return {one["workspace_id"]: one["outcome"] for one in stage.fleet.restarts()}


# --- restarts ---


def test_one_locked_restart_waits_and_the_others_are_asked_for(stage: Stage) -> None:
    stage.add("running")
    locked, *others = owe(stage, 4)
    with lock(stage, "restarts", locked):
        assert called(cycle(stage)) == set(others)
    assert called(cycle(stage)) == {locked}


NO_LONGER_OWED: dict[str, Callable[[Stage, str], object]] = {
    "its row has moved on": lambda stage, one: stage.fleet.update(one, status="paused"),
    "its instance runs": lambda stage, one: stage.control_plane.script.reply(state_answer("running"), workspace_id=one),
    "its instance is unknown": lambda stage, one: stage.control_plane.script.reply(Answer(500), workspace_id=one),
}


@pytest.mark.parametrize("name", NO_LONGER_OWED)
def test_a_locked_restart_that_is_not_to_be_asked_for_stays_as_it_is(stage: Stage, name: str) -> None:
    stage.add("running")
    locked, other, *dead = owe(stage, 4)
    for one in (locked, other):
        NO_LONGER_OWED[name](stage, one)
    before = stage.fleet.restarts(locked)
    with lock(stage, "restarts", locked):
        assert called(cycle(stage)) == set(dead)
        assert stage.fleet.restarts(locked) == before
    unlocked = stage.fleet.restarts(other)
    stage.fleet.age_everything(A_MINUTE_S)
    assert called(cycle(stage)) == set()
    assert {one["outcome"] for one in stage.fleet.restarts(locked)} == {one["outcome"] for one in unlocked}


def test_a_locked_accepted_restart_stays_watched_and_the_others_watch_ends(stage: Stage) -> None:
    locked, other = owe(stage, 2)
    cycle(stage)
    for one in (locked, other):
        stage.fleet.update(one, status="online", instance_id=stage.instances(1, "running")[0])
    cycle(stage)
    stage.fleet.age_everything(RECOVERED_S)

    def watched() -> dict[str, bool]:
        return {one["workspace_id"]: one["watch_ended_at"] is None for one in stage.fleet.restarts()}

    with lock(stage, "restarts", locked):
        cycle(stage)
        assert watched() == {locked: True, other: False}
    cycle(stage)
    assert watched() == {locked: False, other: False}


@pytest.mark.parametrize("answer", [Answer(202), Answer(503)], ids=["accepted", "refused"])
def test_an_answer_that_a_lock_keeps_from_being_recorded_costs_no_other_and_is_not_asked_for_twice(
    stage: Stage, answer: Answer
) -> None:
    stage.add("running")
    locked, *others = owe(stage, 4)
    stage.platform.instead.clear()
    with contextlib.ExitStack() as held:
        stage.platform.instead.before(
            lambda _: held.enter_context(lock(stage, "restarts", locked)), nth=1, workspace_id=locked
        )
        stage.platform.instead.reply(answer)
        outcome = cycle(stage)
        assert called(outcome) == {locked, *others}
        assert len(outcome.lines("platform's answer not recorded")) == 1
        recorded = {one["workspace_id"] for one in stage.fleet.restarts() if one["last_answer"] != "claimed"}
        closed = {one for one, outcome in outcomes(stage).items() if outcome == "accepted"}
        assert recorded | closed == set(others)
    stage.fleet.age_everything(A_MINUTE_S)
    assert locked not in called(cycle(stage))


def test_an_older_restart_that_is_locked_costs_its_own_flip_alone(stage: Stage) -> None:
    stage.add("running")
    locked, *others = stage.add_all(3, "terminated")
    stage.database.query(OPEN_RESTART.replace("- interval", "+ interval"), id=locked, instance="i-00000000000000001")
    with lock(stage, "restarts", locked):
        outcome = cycle(stage)
        assert outcome.flipped == set(others)
        assert outcome.reasons == {locked: "row_locked"}
    assert cycle(stage).flipped == {locked}


def test_a_restart_that_somebody_is_inserting_costs_its_own_flip_alone(stage: Stage) -> None:
    stage.add("running")
    locked, *others = stage.add_all(3, "terminated")
    with open_transaction(stage, OPEN_RESTART, id=locked, instance="i-00000000000000001"):
        outcome = cycle(stage)
        assert outcome.flipped == set(others)
        assert outcome.reasons == {locked: "row_locked"}


# --- doubts ---


def sightings(stage: Stage) -> dict[str, int]:
    return {one["workspace_id"]: one["sightings"] for one in stage.fleet.doubts() if one["kind"] == "absent"}


def test_locked_absences_cost_their_own_counts_alone(stage: Stage) -> None:
    stage.add("running")
    locked, others = stage.add_all(60, None), stage.add_all(2, None)
    dead = stage.add("terminated")
    cycle(stage)
    stage.fleet.age_everything(AN_ABSENCE_S)
    cycle(stage)
    stage.fleet.age_everything(AN_ABSENCE_S)
    locks = "SELECT FROM reconciler.doubts WHERE workspace_id = ANY (CAST(:ids AS uuid[])) FOR UPDATE"
    with open_transaction(stage, locks, ids=locked):
        assert cycle(stage).flipped == {*locked, *others}
        assert sightings(stage) == dict.fromkeys(locked, 2), "the flip ends the others"
    assert stage.fleet.row(dead)["status"] == "offline"


def test_a_locked_absence_of_an_instance_that_is_back_keeps_no_other_from_being_forgotten(stage: Stage) -> None:
    stage.add("running")
    locked, other, old = stage.add_all(3, None)
    cycle(stage)
    stage.fleet.delete(old)
    for one in (locked, other):
        stage.control_plane.script.reply(state_answer("running"), workspace_id=one)
    with lock(stage, "doubts", locked):
        cycle(stage)
        assert set(sightings(stage)) == {locked}
    cycle(stage)
    assert sightings(stage) == {}


def test_an_absence_that_somebody_is_inserting_costs_its_own_count_alone(stage: Stage) -> None:
    stage.add("running")
    locked, *others = stage.add_all(20, None)
    insert = "INSERT INTO reconciler.doubts (workspace_id, kind, instance_id) VALUES (CAST(:id AS uuid), 'absent', 'i')"
    with open_transaction(stage, insert, id=locked):
        cycle(stage)
        assert sightings(stage) == dict.fromkeys(others, 1)


def test_doubts_that_cannot_be_saved_cost_no_flip_and_no_restart(stage: Stage) -> None:
    stage.add("running")
    absent, dead = stage.add(None), stage.add("terminated")
    stage.database.query("ALTER TABLE reconciler.doubts ADD CONSTRAINT nothing_goes CHECK (sightings < 0) NOT VALID")
    with contextlib.ExitStack() as afterwards:
        afterwards.callback(stage.database.query, "ALTER TABLE reconciler.doubts DROP CONSTRAINT nothing_goes")
        outcome = cycle(stage)
    assert (outcome.flipped, called(outcome)) == ({dead}, {dead})
    assert len(outcome.lines("doubts not saved")) == 1
    outcome.assert_untouched(absent)


# --- coverage, lease and holds ---


def test_a_locked_coverage_costs_the_progress_alone(stage: Stage) -> None:
    stage.add("running")
    cycle(stage)
    dead = stage.add("terminated")
    with open_transaction(stage, "SELECT FROM reconciler.shard_coverage FOR UPDATE"):
        outcome = cycle(stage)
        outcome.assert_flipped(dead, "terminated")
        assert len(outcome.lines("coverage not taken up")) == 1
        assert len(outcome.lines("coverage not saved")) == 2, "before it acts, and at its end"
        assert not outcome.report["completed_pass"]
    assert cycle(stage).report["completed_pass"]


def test_a_lease_that_is_locked_when_a_cycle_begins_is_another_s(stage: Stage) -> None:
    stage.add("running")
    dead = stage.add("terminated")
    stage.database.query(
        f"INSERT INTO reconciler.lease (scope, holder, expires_at) VALUES ('fleet', '{CYCLE}', now())"  # noqa: S608
    )
    with open_transaction(stage, "SELECT FROM reconciler.lease FOR UPDATE"):
        outcome = cycle(stage)
        assert outcome.report["outcome"] == "already_running"
        outcome.assert_untouched(dead)
    assert cycle(stage).flipped == {dead}


def test_a_lease_that_is_locked_in_mid_cycle_costs_nothing_but_its_return(stage: Stage) -> None:
    stage.add("running")
    dead = stage.add("terminated")
    with contextlib.ExitStack() as held:
        statement = "SELECT FROM reconciler.lease FOR UPDATE"
        stage.control_plane.script.before(lambda _: held.enter_context(open_transaction(stage, statement)), nth=1)
        outcome = cycle(stage)
        outcome.assert_flipped(dead, "terminated")
        assert len(outcome.lines("lease not released")) == 1


def test_a_locked_hold_that_has_ended_keeps_no_other_from_being_released(stage: Stage) -> None:
    ended, other = stage.add_all(2, "running")
    hold = {"workspace_ids": [ended, other], "reason": "maintenance", "seconds": 3600}
    stage.invoke({"mode": "apply", "hold": hold})
    stage.database.query("UPDATE reconciler.holds SET ends_at = now() WHERE workspace_id = CAST(:id AS uuid)", id=ended)
    with lock(stage, "holds", ended):
        assert stage.invoke({"mode": "apply", "release": [other]})["holds"] == []
        cycle(stage)
