"""What may happen to a workspace between the SELECT and the flip, and what the re-read does about it."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from handler.errors import LeaseLostError
from handler.store.session import LOCK_WAIT_SECONDS
from sandbox.control_plane import state_answer
from sandbox.http_server import Answer, Hang, Raw, Reply, Reset
from sandbox.limited_ec2 import ApiError
from sandbox.postgres import Database
from tests.support.events import APPLY
from tests.support.postgres_proxy import PostgresProxy
from tests.support.stage import Outcome, Stage, Stages, from_question

OVERRIDE = {"override_breaker": True}
# Only a heartbeat in between prevents a flip.
FIRST_HALF_ONLY = {"HEARTBEAT_FRESH_SECONDS": "0"}
LONG_AGO_S, LESS_LONG_AGO_S = 300.0, 200.0


# --- the row moves on ---


class Bystander:
    """Somebody else who works on the platform's rows during a cycle."""

    def __init__(self, stage: Stage) -> None:
        self.fleet = stage.fleet
        self._stage = stage
        self._late: Any = None

    def new_instance(self) -> str:
        return self._stage.instances(1, "running")[0]

    def lock(self, workspace: str) -> None:
        self._stage.meanwhile.enter_context(self.fleet.locked(workspace))

    def begin_heartbeat(self, workspace: str) -> None:
        """Begin a heartbeat that commits later. Its time is the beginning of its transaction."""
        self._late = self._stage.meanwhile.enter_context(contextlib.closing(self._stage.database.connect()))
        self._late.run("BEGIN")
        self._late.run(
            "UPDATE workspaces SET last_heartbeat_at = now() - make_interval(secs => :age) WHERE id::text = :id",
            id=workspace,
            age=LESS_LONG_AGO_S,
        )

    def commit_heartbeat(self, _: str) -> None:
        self._late.run("COMMIT")


@dataclass(frozen=True, slots=True)
class Race:
    """What somebody does to a workspace, and the reason why it is then not flipped (None: it is flipped)."""

    reason: str | None
    act: Callable[[Bystander, str], object]


def updates(**columns: Any) -> Callable[[Bystander, str], object]:
    return lambda bystander, workspace: bystander.fleet.update(workspace, **columns)


LATE_HEARTBEAT = "a heartbeat that began before commits"
LOCKED = "somebody else holds the row"

RACES: Mapping[str, Race] = {
    "another instance is recorded": Race(
        "instance_changed", lambda who, one: who.fleet.update(one, instance_id=who.new_instance())
    ),
    "it is reprovisioned, and online again": Race(
        "instance_changed",
        lambda who, one: who.fleet.update(one, instance_id=who.new_instance(), status="online", url="http://new"),
    ),
    "the instance is cleared": Race("instance_cleared", updates(instance_id=None)),
    "the instance is emptied": Race("instance_cleared", updates(instance_id="")),
    "it is taken offline": Race("status_moved", updates(status="offline")),
    "it is paused": Race("status_moved", updates(status="paused")),
    "it is removed": Race("status_moved", updates(status="removed")),
    "it is hibernated": Race("status_moved", updates(status="hibernated")),
    "its provisioning begins": Race("status_moved", updates(status="provisioning", instance_id=None)),
    "it is made external": Race("status_moved", updates(runtime="external")),
    "its row is deleted": Race("row_gone", lambda who, one: who.fleet.delete(one)),
    "a heartbeat comes": Race("fresh_heartbeat", lambda who, one: who.fleet.heartbeat(one)),
    LATE_HEARTBEAT: Race("fresh_heartbeat", Bystander.commit_heartbeat),
    "its heartbeat is cleared": Race("fresh_heartbeat", updates(last_heartbeat_at=None)),
    LOCKED: Race("row_locked", Bystander.lock),
    "it degrades": Race(None, updates(status="degraded")),
    "it is renamed": Race(None, updates(name="another name")),
    "its runtime changes": Race(None, updates(runtime="crewai")),
    "nothing happens": Race(None, lambda *_: None),
}
LOST = [name for name, race in RACES.items() if race.reason]
HARMLESS = [name for name, race in RACES.items() if not race.reason]


@dataclass(frozen=True, slots=True)
class Raced:
    """A cycle in which all races happened, each to its own workspace."""

    outcome: Outcome
    workspaces: Mapping[str, str]


def raced(stage: Stage, probe: str, *, at_probe: int, mode: str) -> Raced:
    """Run a cycle with all races, each right before the first or the second answer about the workspace's instance."""
    stage.add("running")
    workspaces = {name: stage.add("terminated", heartbeat_age_s=LONG_AGO_S) for name in RACES}
    bystander = Bystander(stage)
    bystander.begin_heartbeat(workspaces[LATE_HEARTBEAT])

    def happens(*names: str) -> None:
        for name in names:
            RACES[name].act(bystander, workspaces[name])
        stage.mark(*(workspaces[name] for name in names))

    if probe == "ec2":
        stage.ec2.script.before(lambda _: happens(*RACES), nth=at_probe, action="DescribeInstances")
    else:
        for name, workspace in workspaces.items():
            stage.control_plane.script.before(
                lambda _, name=name: happens(name),  # type: ignore[misc]  # the loop's own name for each
                nth=at_probe,
                workspace_id=workspace,
            )
    outcome = stage.cycle(
        {"mode": mode, **OVERRIDE},
        **stage.settings(probe),
        **FIRST_HALF_ONLY,
    )
    return Raced(outcome, workspaces)


@pytest.fixture(
    scope="module",
    params=[("ec2", 1, "enum"), ("ec2", 2, "text"), ("control_plane", 1, "text"), ("control_plane", 2, "enum")],
    ids=["ec2, first probe", "ec2, second probe", "control plane, first probe", "control plane, second probe"],
)
def races(request: pytest.FixtureRequest, stages: Stages) -> Raced:
    probe, at_probe, status_type = request.param
    with stages.borrowed(status_type) as stage:
        return raced(stage, probe, at_probe=at_probe, mode="apply")


@pytest.mark.parametrize("name", LOST)
def test_a_workspace_that_moves_on_before_the_flip_is_left_alone(races: Raced, name: str) -> None:
    races.outcome.assert_untouched(races.workspaces[name])
    assert races.outcome.reasons[races.workspaces[name]] == RACES[name].reason


@pytest.mark.parametrize("name", HARMLESS)
def test_a_change_that_leaves_it_a_candidate_with_a_dead_instance_saves_nobody(races: Raced, name: str) -> None:
    races.outcome.assert_flipped(races.workspaces[name], "terminated")


def test_the_report_counts_each_reason_and_each_flip(races: Raced) -> None:
    assert races.outcome.skips == Counter(race.reason for race in RACES.values() if race.reason)
    assert races.outcome.report["flipped"] == len(races.outcome.report["flips"]) == len(HARMLESS)


def test_a_dry_run_sees_the_same_races_but_for_the_lock_that_it_does_not_take(stage: Stage) -> None:
    rehearsal = raced(stage, "ec2", at_probe=2, mode="dry-run")
    rehearsal.outcome.assert_only_flipped({})
    expected = {rehearsal.workspaces[name]: RACES[name].reason for name in LOST if name != LOCKED}
    assert rehearsal.outcome.reasons == expected
    named = {flip["workspace_id"] for flip in rehearsal.outcome.report["flips"]}
    assert named == {rehearsal.workspaces[name] for name in (*HARMLESS, LOCKED)}


def test_locked_rows_are_passed_over_at_once(stage: Stage) -> None:
    """A transaction of the platform's may hold many. Waiting for each would take the cycle's time."""
    dead = stage.add("stopped")
    locked = [stage.add("stopped") for _ in range(12)]
    with stage.fleet.locked(*locked):
        outcome = stage.cycle({"mode": "apply", **OVERRIDE})
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.skips == {"row_locked": len(locked)}
    assert outcome.report["duration_ms"] < len(locked) * LOCK_WAIT_SECONDS * 1000 / 2


def test_a_row_that_was_locked_is_flipped_by_the_next_cycle(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add("stopped")
    with stage.fleet.locked(workspace):
        stage.cycle().assert_only_flipped({})
    stage.cycle().assert_only_flipped({workspace: "stopped"})


# --- heartbeats ---


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
@pytest.mark.parametrize(
    ("fresh_s", "spared"),
    [
        pytest.param(None, {5.0, -3600.0}, id="60 s unless set"),
        pytest.param("1000", {5.0, -3600.0, LONG_AGO_S}, id="1000 s"),
        pytest.param("0", {-3600.0}, id="0 leaves only a heartbeat later than the look at the row"),
    ],
)
def test_a_young_heartbeat_prevents_a_flip_and_an_old_one_or_none_does_not(
    stage: Stage, probe: str, fresh_s: str | None, spared: set[float]
) -> None:
    stage.add_all(6, "running")
    ages = [5.0, -3600.0, LONG_AGO_S, 7200.0, None]
    workspaces = {age: stage.add("stopped", heartbeat_age_s=age) for age in ages}
    outcome = stage.cycle(**stage.settings(probe), HEARTBEAT_FRESH_SECONDS=fresh_s)
    outcome.assert_only_flipped({one: "stopped" for age, one in workspaces.items() if age not in spared})
    assert outcome.reasons == {workspaces[age]: "fresh_heartbeat" for age in spared}


def test_a_workspace_whose_heartbeats_end_is_flipped_once_the_last_one_has_aged(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add("stopped", heartbeat_age_s=0.0)
    stage.cycle().assert_only_flipped({})
    stage.fleet.heartbeat(workspace, age_s=61.0)
    stage.cycle().assert_only_flipped({workspace: "stopped"})


# --- the database fails at the flip ---

TRIGGER = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()
"""

# What goes wrong once the cycle is under way, and what mends it.
FAILURES = {
    "its role loses the right to update": (
        "REVOKE UPDATE (status, updated_at) ON workspaces FROM reconciler",
        "GRANT UPDATE (status, updated_at) ON workspaces TO reconciler",
    ),
    "its role loses the right to read": (
        "REVOKE SELECT (runtime) ON workspaces FROM reconciler",
        "GRANT SELECT (runtime) ON workspaces TO reconciler",
    ),
    "its role loses the right to write events": (
        "REVOKE INSERT (payload) ON structure_events FROM reconciler",
        "GRANT INSERT (payload) ON structure_events TO reconciler",
    ),
    "its role loses the right to write owed restarts": (
        "REVOKE INSERT ON reconciler.restarts FROM reconciler",
        "GRANT INSERT ON reconciler.restarts TO reconciler",
    ),
    "a column is renamed": (
        "ALTER TABLE workspaces RENAME COLUMN runtime TO kind",
        "ALTER TABLE workspaces RENAME COLUMN kind TO runtime",
    ),
    "the platform refuses the event": (
        TRIGGER.format(table="structure_events"),
        "DROP FUNCTION refuse CASCADE",
    ),
    "the owed restart cannot be written": (
        TRIGGER.format(table="reconciler.restarts"),
        "DROP FUNCTION refuse CASCADE",
    ),
}


def execute(database: Database, statements: str) -> None:
    """Run statements as the owner."""
    with contextlib.closing(database.connect()) as connection:
        connection.run(statements)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_at_the_flip_leaves_no_trace_and_the_next_cycle_does_everything(stage: Stage, name: str) -> None:
    breaks, mends = FAILURES[name]
    stage.add_all(3, "running")
    workspaces = stage.add_all(2, "stopped")
    stage.ec2.script.before(lambda _: execute(stage.database, breaks), nth=2, action="DescribeInstances")
    stage.meanwhile.callback(execute, stage.database, mends)
    outcome = stage.cycle()
    outcome.assert_only_flipped({})
    assert outcome.reasons == dict.fromkeys(workspaces, "reconfirm_error")
    assert outcome.skips == {"reconfirm_error": 2}
    stage.cycle().assert_only_flipped(dict.fromkeys(workspaces, "stopped"))


def test_a_table_that_is_locked_costs_each_flip_its_time_and_nothing_else(stage: Stage) -> None:
    stage.add_all(3, "running")
    workspaces = stage.add_all(2, "stopped")
    connection = stage.meanwhile.enter_context(contextlib.closing(stage.database.connect()))

    def lock(_: object) -> None:
        connection.run("BEGIN")
        connection.run("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")

    stage.ec2.script.before(lock, nth=2, action="DescribeInstances")
    outcome = stage.cycle(RECONFIRM_TIMEOUT_SECONDS="0.2", CYCLE_DEADLINE_SECONDS="3")
    outcome.assert_only_flipped({})
    assert outcome.reasons == dict.fromkeys(workspaces, "reconfirm_error")


def test_a_lease_that_is_lost_between_the_second_look_at_a_row_and_the_flip_leaves_no_trace(stage: Stage) -> None:
    stage.add_all(3, "running")
    workspace = stage.add("stopped")
    with PostgresProxy(stage.database) as proxy:
        lose_it = "UPDATE reconciler.lease SET expires_at = now()"
        proxy.before(b"WITH asked AS MATERIALIZED", lambda: execute(stage.database, lose_it))
        with pytest.raises(LeaseLostError):
            stage.cycle(DATABASE_URL=proxy.url)
    assert stage.fleet.statuses()[workspace] == "online"
    assert (stage.fleet.events(), stage.fleet.restarts(), stage.platform.calls) == ([], [], [])
    stage.cycle().assert_only_flipped({workspace: "stopped"})


# --- the second probe ---

SECOND_ANSWERS: Mapping[str, Reply] = {
    "running": state_answer("running"),
    "pending": state_answer("pending"),
    "stopping": state_answer("stopping"),
    "shutting-down": state_answer("shutting-down"),
    "not found": state_answer("not_found"),
    "a strange word": state_answer("rebooting"),
    "an error": Answer(500),
    "not JSON": Answer(body=b"<html>stopped</html>"),
    "nothing": Raw(b""),
    "a reset": Reset(),
    "silence": Hang(),
}
CONFIRMING: Mapping[str, Reply] = {"stopped": state_answer("stopped"), "terminated": state_answer("terminated")}
ALL_ANSWERS = {**SECOND_ANSWERS, **CONFIRMING}


@pytest.fixture(scope="module")
def seconded(stages: Stages) -> Raced:
    """A cycle in which every instance is stopped at the first probe, and each gets another answer at the second."""
    with stages.borrowed() as stage:
        stage.add("running")
        workspaces = {name: stage.add("stopped") for name in ALL_ANSWERS}
        for name, answer in ALL_ANSWERS.items():
            stage.control_plane.script.reply(from_question(2, answer), workspace_id=workspaces[name])
        outcome = stage.cycle(APPLY | OVERRIDE, **stage.settings("control_plane"), PROBE_TIMEOUT_SECONDS="2")
        return Raced(outcome, workspaces)


@pytest.mark.parametrize("name", SECOND_ANSWERS)
def test_a_control_plane_that_does_not_say_dead_again_saves_the_workspace(seconded: Raced, name: str) -> None:
    workspace = seconded.workspaces[name]
    seconded.outcome.assert_untouched(workspace)
    assert seconded.outcome.reasons[workspace] == "not_confirmed"


@pytest.mark.parametrize("name", CONFIRMING)
def test_a_control_plane_that_says_dead_again_does_not_save_the_workspace(seconded: Raced, name: str) -> None:
    seconded.outcome.assert_flipped(seconded.workspaces[name], name)


def test_an_instance_that_ec2_no_longer_calls_dead_at_the_second_look_saves_the_workspace(stage: Stage) -> None:
    states = ("running", "pending", "stopping", "shutting-down", None)
    stage.add("running")
    workspaces = {state: stage.add("stopped") for state in states}
    instances = {state: stage.instance_of(one) for state, one in workspaces.items()}

    def revive(_: object) -> None:
        for state, instance in instances.items():
            if state is None:
                stage.ec2.forget(instance)
            else:
                stage.ec2.set_state(instance, state)

    stage.ec2.script.before(revive, nth=2, action="DescribeInstances")
    outcome = stage.cycle(APPLY | OVERRIDE)
    outcome.assert_only_flipped({})
    assert outcome.reasons == dict.fromkeys(workspaces.values(), "not_confirmed")


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(ApiError("UnauthorizedOperation", "You may not.", 403).as_answer(), id="a refusal"),
        pytest.param(Answer(body=b"<html>stopped</html>"), id="another document"),
        pytest.param(Hang(), id="silence"),
    ],
)
def test_a_second_call_to_ec2_without_an_answer_saves_all_workspaces_in_it(stage: Stage, reply: Reply) -> None:
    stage.add_all(3, "running")
    workspaces = stage.add_all(2, "stopped")
    stage.ec2.script.reply(reply, nth=2, action="DescribeInstances")
    outcome = stage.cycle(PROBE_TIMEOUT_SECONDS="2")
    outcome.assert_only_flipped({})
    assert outcome.reasons == dict.fromkeys(workspaces, "not_confirmed")
    stage.cycle().assert_only_flipped(dict.fromkeys(workspaces, "stopped"))
