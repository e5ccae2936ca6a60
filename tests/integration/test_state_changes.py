"""EC2's state-change events on real parts: they only say where to look, and no guarantee rests on them."""

import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.errors import RequestError, SettingsError
from handler.store.lease import Expiry
from handler.store.session import Session
from sandbox.control_plane import state_answer
from sandbox.http_server import Answer
from sandbox.postgres import PostgresServer
from sandbox.state_changes import state_change
from tests.support.events import APPLY
from tests.support.killing import Invocations
from tests.support.marks import both_status_types
from tests.support.stage import Outcome, Snapshot, Stage, opened, recorded
from tests.support.state_changes import batch, returned
from tests.support.story import Story, calls

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
FRESH_S = 60.0


@dataclass(frozen=True, slots=True)
class Handled:
    """What came of a batch. `outcome` has no report: the answer has none."""

    returned: list[str]
    outcome: Outcome


def now_s(stage: Stage, *, age_s: float = 1.0) -> float:
    """Return the time of an event of that age, in seconds since 1970 by the database's clock."""
    ((at_s,),) = (row.values() for row in stage.database.query("SELECT CAST(extract(epoch FROM now()) AS float)"))
    return float(at_s - age_s)


def event(stage: Stage, workspace: str, state: str = "terminated", *, age_s: float = 1.0) -> Any:
    """Return the event about a workspace's instance."""
    return state_change(stage.instance_of(workspace), state, now_s(stage, age_s=age_s))


def handle(stage: Stage, *bodies: Any, **settings: str | None) -> Handled:
    """Have a batch handled; return what came of it."""
    before, asked = Snapshot.of(stage.database), len(stage.platform.calls)
    with recorded() as output, stage.meanwhile:
        answer = stage.invoke.batch(batch(*bodies), **settings)
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    after, restarts = Snapshot.of(stage.database), stage.platform.calls[asked:]
    return Handled(returned(answer), Outcome({}, before, after, restarts, output.getvalue(), lines))


def figures(handled: Handled) -> dict[str, Any]:
    """Return the report, as the log has it."""
    (line,) = handled.outcome.lines("cycle finished")
    return line


def assert_once(stage: Stage, *workspaces: str) -> None:
    """Fail unless each of these was flipped and restarted once."""
    once = dict.fromkeys(workspaces, 1)
    assert Counter(one["workspace_id"] for one in stage.fleet.events()) == once
    assert Counter(one["workspace_id"] for one in stage.fleet.restarts()) == once
    assert Counter(one.workspace_id for one in stage.platform.calls) == once


def go_on(stage: Stage, **settings: str) -> None:
    """Let full cycles run, a while apart, and the platform do what it was asked for."""
    for _ in range(3):
        stage.platform_is_at_work()
        stage.fleet.age_everything(400)
        stage.glance(APPLY, **settings)


# --- a batch ---


@both_status_types
@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_an_event_flips_within_its_cycle_and_the_next_full_cycle_restarts(stage: Stage, probe: str) -> None:
    stage.add_all(3, "running")
    dead, other = stage.add_all(2, "terminated", heartbeat_age_s=20.0)
    settings = stage.settings(probe)
    handled = handle(stage, event(stage, dead, age_s=5.0), **settings)
    assert (handled.returned, handled.outcome.flipped) == ([], {dead})
    handled.outcome.assert_untouched(other)
    handled.outcome.assert_only_owed(dead)
    (written,) = handled.outcome.after.events
    assert written["payload"]["instance_state"] == "terminated"
    assert figures(handled)["candidates"] == 1
    stage.fleet.age_everything(FRESH_S + 1, rows=True)
    full = stage.cycle(APPLY, **settings)
    assert [one.workspace_id for one in full.calls if one.workspace_id == dead] == [dead]


def test_the_entry_point_of_the_schedule_takes_the_bare_event_and_answers_with_the_report(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead = stage.add("stopped")
    outcome = stage.cycle(event(stage, dead, "stopped"))
    outcome.assert_only_owed(dead)
    report = outcome.report
    assert (report["mode"], report["outcome"], report["candidates"], report["flipped"]) == ("apply", "completed", 1, 1)
    assert report["restarts"]["pending"] == 1
    assert [one["workspace_id"] for one in report["flips"]] == [dead]
    (metrics,) = outcome.metrics()
    assert {one["Name"] for one in metrics["_aws"]["CloudWatchMetrics"][0]["Metrics"]} == {
        "EventFlips",
        "DetectionLatency",
    }


def test_a_batch_of_many_events_costs_a_few_calls_to_ec2(stage: Stage) -> None:
    stage.add_all(150, "running")
    dead = stage.add_all(100, "terminated")
    handled = handle(stage, *(event(stage, one) for one in dead))
    assert handled.outcome.flipped == set(dead)
    assert [call.action for call in stage.ec2.calls] == ["DescribeInstances", "DescribeInstances"]


def test_instances_that_no_row_records_cost_no_call_at_all(stage: Stage) -> None:
    stage.add_all(3, "running")
    foreign = stage.instances(5, "terminated")
    settings = stage.settings("control_plane") | {"CP_SECRET_ARN": "", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    for probe in ({}, settings):
        handled = handle(stage, *(state_change(one, at_s=now_s(stage)) for one in foreign), **probe)
        assert (handled.returned, figures(handled)["candidates"]) == ([], 0)
        handled.outcome.assert_untouched(*handled.outcome.before.rows)
    assert (stage.ec2.calls, stage.control_plane.requests) == ([], [])


def test_a_foreign_instance_among_ours_is_not_asked_about(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead, (foreign,) = stage.add("terminated"), stage.instances(1, "terminated")
    handle(stage, state_change(foreign, at_s=now_s(stage)), event(stage, dead))
    asked = {value for call in stage.ec2.calls for values in call.filters.values() for value in values}
    assert foreign not in asked | {one for call in stage.ec2.calls for one in call.instance_ids}


def test_more_instances_than_one_statement_takes_are_found(stage: Stage) -> None:
    running = stage.add_all(1200, "running")
    dead = stage.add("terminated")
    instances = [row["instance_id"] for row in Snapshot.of(stage.database).rows.values()]
    handled = handle(stage, *(state_change(one, at_s=now_s(stage)) for one in instances))
    assert (figures(handled)["candidates"], handled.outcome.flipped) == (len(running) + 1, {dead})


# --- events that lie, and events that fail to come ---


@pytest.mark.parametrize("state", ["terminated", "stopped"])
def test_a_forged_event_about_a_running_instance_does_nothing(stage: Stage, state: str) -> None:
    running = stage.add_all(3, "running")
    handled = handle(stage, *(event(stage, one, state) for one in running))
    assert (handled.returned, stage.fleet.doubts()) == ([], [])
    handled.outcome.assert_untouched(*running)


@pytest.mark.parametrize("state", ["running", "pending", "hovering", "x" * 10_000])
def test_an_event_that_calls_a_dead_instance_alive_flips_it_by_the_ordinary_rule(stage: Stage, state: str) -> None:
    """What EC2 says when asked counts. The event's time is no time of a death, so the heartbeat has to be old."""
    stage.add_all(3, "running")
    silent, beating = stage.add("terminated"), stage.add("terminated", heartbeat_age_s=20.0)
    handled = handle(stage, event(stage, silent, state), event(stage, beating, state))
    assert handled.outcome.flipped == {silent}
    assert handled.outcome.reasons == {beating: "fresh_heartbeat"}


def test_a_lost_event_costs_only_time(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead = stage.add("terminated")
    assert stage.cycle(APPLY).flipped == {dead}
    go_on(stage)
    assert_once(stage, dead)


@pytest.mark.parametrize("apart", [False, True], ids=["in one batch", "in two"])
def test_a_doubled_event_flips_once(stage: Stage, apart: bool) -> None:
    stage.add_all(3, "running")
    dead = stage.add("terminated")
    doubled = event(stage, dead)
    if apart:
        assert handle(stage, doubled).outcome.flipped == {dead}
        again = handle(stage, doubled)
        assert (figures(again)["candidates"], again.returned, again.outcome.flipped) == (0, [], set())
    else:
        assert handle(stage, doubled, doubled).outcome.flipped == {dead}
    go_on(stage)
    assert_once(stage, dead)


@pytest.mark.parametrize("age_s", [-3600.0, -2.0, 901.0, 86_400.0, 1_000_000_000.0])
def test_the_time_of_an_event_that_is_late_or_of_the_future_counts_for_nothing(stage: Stage, age_s: float) -> None:
    stage.add_all(3, "running")
    silent, beating = stage.add("terminated"), stage.add("terminated", heartbeat_age_s=20.0)
    handled = handle(stage, event(stage, silent, age_s=age_s), event(stage, beating, age_s=age_s))
    assert handled.outcome.flipped == {silent}
    assert handled.outcome.reasons == {beating: "fresh_heartbeat"}
    (metrics,) = handled.outcome.metrics()
    assert (metrics["EventFlips"], "DetectionLatency" in metrics) == ([1.0], False)


def test_a_late_event_about_an_instance_that_was_replaced_finds_nobody(stage: Stage) -> None:
    stage.add_all(3, "running")
    one = stage.add("terminated")
    late = event(stage, one, age_s=300.0)
    (new,) = stage.instances(1, "running")
    stage.fleet.update(one, instance_id=new)
    handled = handle(stage, late)
    assert figures(handled)["candidates"] == 0
    handled.outcome.assert_untouched(one)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_events_out_of_order_end_alike(stage: Stage, order: tuple[int, int]) -> None:
    """Stopped, then started again, and the news the other way round."""
    stage.add_all(3, "running")
    one = stage.add("running")
    news = [event(stage, one, "stopped", age_s=30.0), event(stage, one, "running", age_s=5.0)]
    handled = handle(stage, *(news[number] for number in order))
    handled.outcome.assert_untouched(one)


@pytest.mark.parametrize("time", [None, "", "yesterday", 5, "x" * 10_000], ids=lambda one: str(one)[:20])
def test_an_event_without_a_readable_time_has_the_ordinary_rule(stage: Stage, time: Any) -> None:
    stage.add_all(3, "running")
    silent, beating = stage.add("terminated"), stage.add("terminated", heartbeat_age_s=20.0)
    handled = handle(stage, *(event(stage, one) | {"time": time} for one in (silent, beating)))
    assert handled.outcome.flipped == {silent}
    assert handled.outcome.reasons == {beating: "fresh_heartbeat"}


# --- the heartbeat ---


@pytest.mark.parametrize(
    ("died_s", "beat_s", "flips"),
    [
        pytest.param(10.0, 12.0, True, id="before the death"),
        pytest.param(20.0, 18.0, True, id="sent before, arrived after"),
        pytest.param(30.0, 22.0, False, id="after the death"),
        pytest.param(600.0, 500.0, False, id="after the death, and old"),
        pytest.param(600.0, 700.0, True, id="before the death, and old"),
    ],
)
def test_a_heartbeat_vetoes_only_if_it_came_more_than_five_seconds_after_the_death(
    stage: Stage, died_s: float, beat_s: float, flips: bool
) -> None:
    stage.add_all(3, "running")
    one = stage.add("terminated", heartbeat_age_s=beat_s)
    handled = handle(stage, event(stage, one, age_s=died_s))
    assert handled.outcome.flipped == ({one} if flips else set())
    assert handled.outcome.reasons == ({} if flips else {one: "fresh_heartbeat"})
    assert handled.returned == []


def test_each_workspace_is_judged_by_its_own_event(stage: Stage) -> None:
    stage.add_all(5, "running")
    first, second, third = stage.add_all(3, "terminated", heartbeat_age_s=30.0)
    handled = handle(
        stage,
        event(stage, first, age_s=20.0),
        event(stage, second, age_s=60.0),
        event(stage, third, age_s=20.0) | {"time": "?"},
    )
    assert handled.outcome.flipped == {first}
    assert handled.outcome.reasons == dict.fromkeys((second, third), "fresh_heartbeat")


def test_a_heartbeat_during_the_cycle_vetoes_whatever_its_time(stage: Stage) -> None:
    stage.add_all(3, "running")
    one = stage.add("terminated")
    stage.control_plane.script.before(lambda _: stage.fleet.heartbeat(one, age_s=100.0), nth=1, workspace_id=one)
    handled = handle(stage, event(stage, one), **stage.settings("control_plane"))
    assert handled.outcome.reasons == {one: "fresh_heartbeat"}


def test_a_workspace_that_lives_on_an_unrecorded_machine_is_back_with_its_next_heartbeat_and_is_not_restarted(
    stage: Stage,
) -> None:
    """The recorded instance is dead; the workspace runs elsewhere, and its row was never updated."""
    story = Story(stage, settings={"RESTART_GRACE_SECONDS": "0"})
    story.workspaces(3)
    one = story.workspace()
    stage.ec2.set_state(stage.instance_of(one), "terminated")
    stage.fleet.heartbeat(one, age_s=10.0)
    assert handle(stage, event(stage, one)).outcome.flipped == {one}
    assert story.status(one) == "offline"
    assert calls([stage.glance(APPLY)]) == [[]], "not even without any grace: the restart waits for silence"
    outcomes = story.minutes(10)
    assert (story.status(one), story.restarts(one)) == ("online", ["cancelled"])
    assert calls(outcomes) == [[]] * 10


def test_a_heartbeat_after_the_flip_that_leaves_the_row_offline_puts_the_restart_off(stage: Stage) -> None:
    stage.add_all(3, "running")
    one = stage.add("terminated", heartbeat_age_s=10.0)
    handle(stage, event(stage, one))
    stage.fleet.age_everything(FRESH_S + 1)
    stage.fleet.heartbeat(one, age_s=5.0)
    assert stage.cycle(APPLY).calls == []


def test_the_restart_is_due_after_a_silence_however_short_the_grace(stage: Stage) -> None:
    stage.add_all(3, "running")
    one = stage.add("terminated", heartbeat_age_s=10.0)
    handle(stage, event(stage, one))
    stage.fleet.age_everything(FRESH_S - 5, rows=True)
    assert stage.cycle(APPLY).calls == []
    stage.fleet.age_everything(10, rows=True)
    assert [call.workspace_id for call in stage.cycle(APPLY).calls] == [one]


# --- what is respected as ever ---


def test_holds_locks_and_the_breaker_are_respected_and_bring_no_message_back(stage: Stage) -> None:
    stage.add_all(6, "running")
    held, locked, external = stage.add_all(3, "terminated")
    stage.fleet.update(external, runtime="external")
    stage.invoke({"mode": "apply", "hold": {"workspace_ids": [held], "reason": "why", "seconds": 600}})
    bodies = [event(stage, one) for one in (held, locked, external)]
    with stage.fleet.locked(locked):
        handled = handle(stage, *bodies)
    assert (handled.returned, handled.outcome.flipped) == ([], set())
    assert handled.outcome.reasons == {held: "on_hold", locked: "row_locked"}


def test_the_breakers_second_rule_stops_a_batch_and_its_first_does_not(stage: Stage) -> None:
    dead = stage.add_all(6, "terminated")
    stage.add_all(4, "running")
    bodies = [event(stage, one) for one in dead]
    stopped = handle(stage, *bodies)
    assert (stopped.returned, stopped.outcome.flipped, figures(stopped)["breaker_open"]) == ([], set(), True)
    stage.add_all(4, "running")
    assert handle(stage, *bodies).outcome.flipped == set(dead)


def test_an_offline_row_is_not_adopted(stage: Stage) -> None:
    stage.add_all(3, "running")
    one = stage.add("terminated", heartbeat_age_s=10.0)
    stage.cycle(APPLY)
    assert [doubt["kind"] for doubt in stage.fleet.doubts(one)] == ["dead"]
    stage.fleet.update(one, status="offline")
    handled = handle(stage, event(stage, one))
    assert figures(handled)["candidates"] == 0
    handled.outcome.assert_untouched(one)


def test_an_event_cycle_asks_for_no_restart_and_cancels_none(stage: Stage) -> None:
    stage.add_all(6, "running")
    due, moved_on, dead = stage.add_all(3, "terminated")
    stage.cycle(APPLY, **MOSTLY_DEAD, PLATFORM_BASE_URL=None, PLATFORM_TOKEN=None)
    stage.fleet.update(moved_on, status="online")
    stage.fleet.update(dead, status="online")
    stage.fleet.age_everything(400)
    before = {one["id"]: one["outcome"] for one in stage.fleet.restarts() if one["workspace_id"] != dead}
    handled = handle(stage, event(stage, dead), event(stage, due), **MOSTLY_DEAD)
    assert (handled.outcome.flipped, handled.outcome.calls) == ({dead}, [])
    after = {one["id"]: one["outcome"] for one in stage.fleet.restarts() if one["workspace_id"] != dead}
    assert after == before == dict.fromkeys(before, None)


def test_absences_are_not_counted(stage: Stage) -> None:
    stage.add_all(3, "running")
    one, other = stage.add(None), stage.add("running")
    for _ in range(4):
        handled = handle(stage, event(stage, one), event(stage, other))
        assert (handled.returned, figures(handled)["absent"]) == ([], 1)
        stage.fleet.age_everything(120)
    assert (stage.fleet.doubts(), stage.fleet.statuses()[one]) == ([], "online")


def test_nothing_of_the_full_cycles_is_moved(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead = stage.add("terminated")
    tables = ("shard_coverage", "lease", "source_doubts")

    def of_full_cycles() -> list[Any]:
        return [stage.database.query(f"SELECT * FROM reconciler.{table}") for table in tables]  # noqa: S608 - names

    before = of_full_cycles()
    handled = handle(stage, event(stage, dead))
    assert of_full_cycles() == before
    (metrics,) = handled.outcome.metrics()
    assert "CycleCompleted" not in metrics
    assert metrics["EventFlips"] == [1.0]
    assert 0 <= metrics["DetectionLatency"][0] < 10_000


def test_a_cycle_that_flips_nobody_emits_its_zero(stage: Stage) -> None:
    one = stage.add("running")
    (metrics,) = handle(stage, event(stage, one)).outcome.metrics()
    assert (metrics["EventFlips"], "DetectionLatency" in metrics) == ([0.0], False)


def test_the_setting_of_a_dry_run_writes_and_emits_nothing(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead = stage.add("terminated")
    handled = handle(stage, event(stage, dead), MODE="dry-run")
    assert (handled.returned, handled.outcome.metrics()) == ([], [])
    assert len(handled.outcome.lines("would flip")) == 1
    handled.outcome.assert_untouched(*handled.outcome.before.rows)
    assert stage.fleet.doubts() == []


# --- what is returned, and what raises ---


def test_only_what_could_not_be_judged_is_returned(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead, first, second, alive = stage.add_all(4, "terminated")
    script = stage.control_plane.script
    script.reply(Answer(503), workspace_id=first)
    script.reply(Answer(503), nth=2, workspace_id=second)
    script.reply(state_answer("running"), nth=2, workspace_id=alive)
    bodies = [event(stage, one) for one in (dead, first, second, alive)]
    handled = handle(stage, *bodies, "no event", **stage.settings("control_plane"))
    assert (handled.returned, handled.outcome.flipped) == (["m-2", "m-3"], {dead})
    assert len(handled.outcome.lines("message dropped")) == 1


def test_while_ec2_is_away_every_message_about_our_instances_is_returned(stage: Stage) -> None:
    one, (foreign,) = stage.add("terminated"), stage.instances(1, "terminated")
    stage.ec2.stop()
    handled = handle(stage, event(stage, one), state_change(foreign, at_s=now_s(stage)))
    assert handled.returned == ["m-1"]
    handled.outcome.assert_untouched(one)


def test_while_the_database_is_away_every_good_message_is_returned(stage: Stage) -> None:
    one = stage.add("terminated")
    handled = handle(stage, event(stage, one), "{", DATABASE_URL="postgresql://u:w0rd@127.0.0.1:1/n?sslmode=disable")
    assert handled.returned == ["m-1"]
    (line,) = handled.outcome.lines("messages returned")
    assert (line["reason"], line["count"]) == ("ConnectionLostError", 1)
    assert "w0rd" not in handled.outcome.output


def test_a_wrong_setting_and_a_wrong_event_raise(stage: Stage) -> None:
    body = event(stage, stage.add("terminated"))
    with pytest.raises(SettingsError, match=r"^PROBE"):
        stage.invoke.batch(batch(body), PROBE="x")
    with pytest.raises(RequestError, match=r"^event field Records"):
        stage.invoke.batch(body)


# --- time ---


def test_a_cycle_past_its_expiry_by_the_databases_clock_writes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was frozen, and its own clock stood still."""
    stage.add_all(3, "running")
    one = stage.add("terminated")
    rights: list[Expiry] = []
    acquire = Expiry.acquire

    def note(expiry: Expiry, deadline: Deadline, *, lasts_s: float) -> bool:
        rights.append(expiry)
        return acquire(expiry, deadline, lasts_s=lasts_s)

    def pass_by(_: object) -> None:
        rights[-1].own["expires_at"] -= 60.0

    monkeypatch.setattr(Expiry, "acquire", note)
    for look in (1, 2):
        stage.control_plane.script.clear()
        stage.control_plane.script.before(pass_by, nth=look, workspace_id=one)
        handled = handle(stage, event(stage, one), **stage.settings("control_plane"))
        assert handled.returned == ["m-1"]
        handled.outcome.assert_untouched(one)
    stage.control_plane.script.clear()
    assert handle(stage, event(stage, one), **stage.settings("control_plane")).outcome.flipped == {one}


# --- beside others ---


@pytest.mark.parametrize("first", ["the event cycle", "the full cycle"])
@pytest.mark.parametrize("look", [1, 2])
def test_a_cycle_that_does_all_its_work_in_the_middle_of_another_leaves_one_flip_and_one_restart(
    stage: Stage, first: str, look: int
) -> None:
    """A full cycle and an event cycle, for the same row. Neither waits for the other."""
    stage.add_all(8, "running")
    one = stage.add("terminated")
    settings = stage.settings("control_plane")
    inner, outer = (event(stage, one), APPLY) if first == "the event cycle" else (APPLY, event(stage, one))
    reports: list[dict[str, Any]] = []

    def work(_: object) -> None:
        with stage.invoke.in_process(inner, **settings) as process:
            reports.append(process.wait(30))

    stage.control_plane.script.before(work, nth=look, workspace_id=one)
    reports.append(stage.glance(outer, **settings).report)
    assert [(one["outcome"], one["flipped"]) for one in reports] == [("completed", 1), ("completed", 0)]
    go_on(stage, **settings)
    assert_once(stage, one)


# --- the index ---

GROWN = 30_000


@pytest.fixture(scope="module")
def large_stage(postgres: PostgresServer) -> Iterator[Stage]:
    with opened(postgres) as stage:
        with contextlib.closing(stage.database.connect()) as owner:
            owner.run(
                "INSERT INTO workspaces (name, status, instance_id, last_heartbeat_at)"
                " SELECT 'one', 'online', 'i-' || lpad(to_hex(number), 17, '0'), now() - interval '5 minutes'"
                " FROM generate_series(1, CAST(:grown AS integer)) AS number",
                grown=GROWN,
            )
            owner.run("ANALYZE workspaces")
        yield stage


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.parametrize("count", [1, 100, 600])
def test_the_instances_of_a_batch_are_found_by_their_index(
    large_stage: Stage, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    stage, plans = large_stage, []
    run: Callable[..., Any] = Session._run  # noqa: SLF001 - there is no other place where all statements pass

    def explain(session: Session, deadline: Deadline, sql: str, **parameters: Any) -> Any:
        if "instance_ids" in parameters:
            ((found,),) = run(session, deadline, f"EXPLAIN (FORMAT JSON) {sql}", **parameters)
            plans.append(found[0]["Plan"])
            assert len(parameters["instance_ids"]) <= 500
        return run(session, deadline, sql, **parameters)

    monkeypatch.setattr(Session, "_run", explain)
    bodies = [state_change(f"i-{number:017x}", at_s=now_s(stage)) for number in range(1, count + 1)]
    stage.invoke.batch(batch(*bodies))
    assert len(plans) == -(-count // 500)
    for plan in plans:
        of_workspaces = [one for one in nodes(plan) if one.get("Relation Name") == "workspaces"]
        assert {one["Node Type"] for one in of_workspaces} <= {"Index Scan", "Bitmap Heap Scan"}
        assert "idx_workspaces_instance_id" in {one.get("Index Name") for one in nodes(plan)}


# --- many, and kills ---


def test_five_hundred_events_in_five_batches_flip_each_once_with_few_calls_to_ec2(stage: Stage) -> None:
    stage.add_all(600, "running")
    dead = stage.add_all(500, "terminated", heartbeat_age_s=20.0)
    bodies = [
        event(stage, dead[0]) | {"detail": {"instance-id": one, "state": "terminated"}}
        for one in _instances(stage, dead)
    ]
    began_at = time.monotonic()
    handled = [handle(stage, *bodies[start : start + 100]) for start in range(0, 500, 100)]
    assert time.monotonic() - began_at < 20
    assert [one.returned for one in handled] == [[]] * 5
    assert Counter(one["workspace_id"] for one in stage.fleet.events()) == dict.fromkeys(dead, 1)
    assert len(stage.ec2.calls) <= 12


def _instances(stage: Stage, workspaces: list[str]) -> list[str]:
    rows = Snapshot.of(stage.database).rows
    return [str(rows[one]["instance_id"]) for one in workspaces]


# A state-change cycle takes more steps than this, unless most steps are not counted.
FEWEST_STEPS = 15


def test_a_kill_between_any_two_steps_of_an_event_cycle_neither_loses_nor_doubles_a_flip(stage: Stage) -> None:
    """SQS delivers the message again; and if it does not, there is the full cycle. The restarts come at the end."""
    stage.add_all(3, "running")
    settings = MOSTLY_DEAD | {"PLATFORM_BASE_URL": "", "PLATFORM_TOKEN": ""}
    dead: list[str] = []
    with Invocations() as invocations:
        for step in itertools.count(1):
            dead.append(stage.add("terminated"))
            body = event(stage, dead[-1])
            ending = invocations.run(body, stage.invoke.environment | settings, kill_at_step=step)
            stage.wait_for_the_killed()
            stage.glance(body if step % 2 else APPLY, **settings)
            for written in (stage.fleet.events(dead[-1]), stage.fleet.restarts(dead[-1])):
                assert len(written) == 1, f"killed at step {step}"
            if not ending.killed:
                assert ending.steps > FEWEST_STEPS
                break
    go_on(stage, **MOSTLY_DEAD)
    assert_once(stage, *dead)
