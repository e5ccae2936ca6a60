"""What `explain` says of a workspace is true, for every story that an on-call engineer meets; and it only reads.

test_explain_is_true.py holds what it says a cycle would do to what a cycle then does.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from handler import next_cycle
from handler.domain.decide import Memory, decide
from handler.errors import RequestError, RightsMissingError, RowSecurityError, SchemaMissingError
from sandbox.ec2 import REGION
from sandbox.http_server import Answer, Hang
from sandbox.postgres import PostgresServer
from tests.integration.test_entry_point import let_it_only_read
from tests.integration.test_targets import NAMES, World, world  # noqa: F401 - a fixture
from tests.support.events import APPLY, event
from tests.support.marks import both_status_types
from tests.support.stage import Stage, opened
from tests.support.story import MINUTE_S, Story

NOBODY = "00000000-0000-4000-8000-000000000001"
FIELDS = {"workspace_id", "row", "candidate", "instance", "doubts", "restarts", "hold", "breaker", "would"}
GRACE = {"RESTART_GRACE_SECONDS": "180"}
HOSTILE = "\x1b[31m\u202e<script>\"' \\ \x07" + "x" * 500

# As docs/reference.md has it.
MAY_READ_MORE = "GRANT SELECT (name, tier, created_at) ON workspaces TO reconciler"

both_probes = pytest.mark.parametrize("probe", ["ec2", "control_plane"])


def explained(stage: Stage, workspace: str, **settings: str | None) -> dict[str, Any]:
    return stage.glance({"mode": "explain", "workspace_id": workspace}, **settings).report


def would(answer: dict[str, Any]) -> tuple[str, str]:
    """Return action and reason. How many seconds something lasts is up to the machine."""
    return answer["would"]["action"], re.sub(r"over \d+ of", "over n of", answer["would"]["reason"])


def company(stage: Stage, count: int = 3) -> list[str]:
    """Add living workspaces, so that neither the breaker opens nor an absence proves nothing."""
    return stage.add_all(count, "running")


@pytest.fixture
def story(stage: Stage) -> Story:
    story = Story(stage)
    story.workspaces(6)
    return story


def order(workspace: str | None, reason: str = "maintenance") -> dict[str, Any]:
    whose = {"all": True} if workspace is None else {"workspace_ids": [workspace]}
    return {"mode": "apply", "hold": {**whose, "reason": reason, "seconds": 3600}}


# --- candidates ---


@both_probes
@both_status_types
def test_running(stage: Stage, probe: str) -> None:
    one = stage.add("running", status="degraded")
    answer = explained(stage, one, **stage.settings(probe))
    assert answer.keys() == FIELDS
    assert answer["workspace_id"] == one
    row = answer["row"]
    assert (row["status"], row["runtime"]) == ("degraded", "langgraph")
    assert row["instance_id"] == stage.instance_of(one)
    assert (row["name"], row["tier"], row["created_at"]) == (None, None, None), "no cycle needs the right to read them"
    for at in ("last_heartbeat_at", "updated_at"):
        assert len(row[at]) == len("2026-01-01T00:00:00Z")
        assert row[at].endswith("Z")
    assert answer["candidate"] == {"is": True, "why": "its status is degraded, and it records an instance"}
    (instance,) = answer["instance"]
    assert instance.pop("took_ms") >= 0
    target = REGION if probe == "ec2" else "control_plane"
    assert instance == {"target": target, "state": "running", "verdict": "running", "reason": None}
    assert (answer["doubts"], answer["restarts"], answer["hold"]) == ([], [], None)
    assert answer["breaker"]["open"] is False
    assert would(answer) == ("nothing", "its instance is running")


@both_probes
@pytest.mark.parametrize("state", ["stopped", "terminated"])
def test_dead_now(stage: Stage, probe: str, state: str) -> None:
    one, _ = stage.add(state), company(stage)
    answer = explained(stage, one, **stage.settings(probe))
    assert answer["instance"][0]["verdict"] == "dead"
    assert would(answer) == ("flip", f"its instance is {state}, confirmed by a second probe")


def test_dead_but_with_a_fresh_heartbeat(stage: Stage) -> None:
    one, _ = stage.add("terminated", heartbeat_age_s=5.0), company(stage)
    assert would(explained(stage, one)) == ("skip", "fresh_heartbeat: its instance is terminated")


@pytest.mark.parametrize("everything", [False, True], ids=["own", "all"])
def test_on_hold(stage: Stage, everything: bool) -> None:
    one, _ = stage.add("terminated"), company(stage)
    stage.glance(order(None if everything else one, "kernel update"))
    answer = explained(stage, one)
    ends_at = answer["hold"].pop("ends_at")
    assert ends_at.endswith("Z")
    assert answer["hold"] == {"all": everything, "reason": "kernel update"}
    assert would(answer) == ("skip", "on_hold: its instance is terminated")


def test_the_breaker_is_open(stage: Stage) -> None:
    one, *_ = stage.add_all(4, "terminated")
    company(stage)
    answer = explained(stage, one)
    assert would(answer)[0] == "skip"
    assert would(answer)[1].startswith("breaker_open: the breaker is open: 4 of 7 look dead")
    breaker = answer["breaker"]
    assert (breaker["open"], breaker["dead"], breaker["of"]) == (True, 4, 7)
    assert (
        "by a look at the whole fleet now; it opens if that many are 3 or more, and above 50% of all" in breaker["why"]
    )


def test_in_a_large_fleet_the_breaker_is_what_the_last_cycles_remembered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = stage.add_all(4, "terminated")
    company(stage)
    monkeypatch.setattr(next_cycle, "COMPANY", 2)
    answer = explained(stage, dead[0])
    assert "without a look at the whole fleet now" in answer["breaker"]["why"]
    assert not answer["breaker"]["open"], "nobody has seen the others yet"
    stage.glance()
    answer = explained(stage, dead[0])
    assert (answer["breaker"]["open"], answer["breaker"]["dead"], answer["breaker"]["of"]) == (True, 4, 7)
    assert answer["doubts"][0]["reason"] == "breaker_open"


def test_it_recalls_nobody_elses_doubts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 60,000 dead in a fleet of 100,000, reading everybody's doubts left no time to speak of the breaker."""
    one, *others = stage.add_all(3, "terminated")
    stage.cycle(BREAKER_MAX_DEAD_FRACTION="0.1")
    recalled = []

    def recording(sightings: Any, memory: Memory, *arguments: Any, **options: Any) -> Any:
        recalled.append(memory)
        return decide(sightings, memory, *arguments, **options)

    monkeypatch.setattr(next_cycle, "decide", recording)
    assert explained(stage, one, BREAKER_MAX_DEAD_FRACTION="0.1")["breaker"]["dead"] == 3
    (memory,) = recalled
    assert {workspace for workspace, _ in memory.doubts} == {one}
    assert memory.fleet.remembered.keys() == {one, *others}


@both_probes
def test_absent_with_one_of_three_sightings(stage: Stage, probe: str) -> None:
    one, _ = stage.add(None), company(stage)
    settings = stage.settings(probe)
    assert would(explained(stage, one, **settings)) == ("wait", "not found: sighting 1 of 3, over n of 120 s")
    stage.glance(**settings)
    answer = explained(stage, one, **settings)
    (doubt,) = answer["doubts"]
    assert (doubt["kind"], doubt["sightings"], doubt["reason"]) == ("absent", 1, "not_found")
    assert (doubt["instance_id"], doubt["is_recorded_instance"]) == (stage.instance_of(one), True)
    assert doubt["since"] == doubt["latest_at"]
    assert would(answer)[1].startswith("not found: sighting 2 of 3, over ")
    assert [one["sightings"] for one in stage.fleet.doubts(one)] == [1], "a look of explain's is no sighting"


def test_absent_often_and_long_enough(story: Story) -> None:
    one = story.workspace(None, alive=False)
    story.minutes(2)
    assert would(explained(story.stage, one)) == ("wait", "not found: sighting 3 of 3, over n of 120 s")
    story.stage.fleet.age_everything(60)
    assert would(explained(story.stage, one)) == (
        "flip",
        "not found: sighting 3 of 3, over n of 120 s, confirmed by a second probe",
    )


def test_nothing_at_all_is_found(stage: Stage) -> None:
    one, *_ = stage.add_all(3, None)
    action, reason = would(explained(stage, one))
    assert (action, reason) == ("wait", "no instance at all was found in this cycle: account, Region or credentials?")


def test_unknown(stage: Stage) -> None:
    one, _ = stage.add("running"), company(stage)
    stage.control_plane.script.reply(Answer(503))
    answer = explained(stage, one, **stage.settings("control_plane"))
    (instance,) = answer["instance"]
    assert (instance["state"], instance["verdict"], instance["reason"]) == (None, "unknown", "http_503")
    assert would(answer) == ("wait", "no usable answer, which proves nothing: http_503")


def test_a_source_that_hangs_costs_its_time_out(stage: Stage) -> None:
    one = stage.add("running")
    stage.control_plane.script.reply(Hang())
    began_at = time.monotonic()
    answer = explained(stage, one, PROBE_TIMEOUT_SECONDS="0.3", **stage.settings("control_plane"))
    assert time.monotonic() - began_at < 5.0
    assert answer["instance"][0]["reason"] == "timeout"


def test_a_doubt_about_the_source_counts_nobody_twice(stage: Stage) -> None:
    """For a quarter of an hour after the number of shards was changed, those of both numbers are there."""
    stage.database.query(
        "INSERT INTO reconciler.source_doubts (cause, workspaces, shards, shard)"
        " VALUES ('timeout', 4000, 1, 0), ('timeout', 2100, 2, 0), ('timeout', 1900, 2, 1), ('429', 1500, 2, 1)"
    )
    first, second = explained(stage, stage.add("running"))["notes"]
    assert first.startswith("1500 workspaces are unknown alike since 20")
    assert second.startswith("4000 workspaces are unknown alike since 20")


def test_in_transition(stage: Stage) -> None:
    one = stage.add("stopping")
    assert would(explained(stage, one)) == (
        "wait",
        "its instance is stopping: it is looked at again in the next cycle",
    )


def test_a_row_that_somebody_has_locked_is_read_and_its_owner_waits_for_nobody(stage: Stage) -> None:
    one, _ = stage.add("terminated"), company(stage)
    with stage.fleet.locked(one):
        stage.glance()
        answer = explained(stage, one)
    assert would(answer) == (
        "flip",
        "its instance is terminated, confirmed by a second probe; the last cycle could not: row_locked",
    )


# --- rows that are no candidates ---


def test_there_is_no_such_workspace(stage: Stage) -> None:
    answer = explained(stage, NOBODY)
    assert answer["row"] is None
    assert answer["candidate"] == {"is": False, "why": "there is no such workspace"}
    assert (answer["instance"], answer["restarts"], answer["doubts"]) == ([], [], [])
    assert would(answer) == ("nothing", "there is no such workspace")


@pytest.mark.parametrize(
    ("columns", "why", "looks"),
    [
        ({"status": "paused"}, "its status is paused", 1),
        ({"status": "provisioning"}, "its status is provisioning", 1),
        ({"runtime": "external"}, "it is external: no EC2 instance of ours is behind it", 0),
        (
            {"status": "offline"},
            "offline, and no cycle saw this instance dead in the last 24 hours while the row was up",
            1,
        ),
    ],
    ids=["paused", "provisioning", "external", "offline"],
)
def test_no_candidate(stage: Stage, columns: dict[str, str], why: str, looks: int) -> None:
    answer = explained(stage, stage.add("terminated", **columns))
    assert answer["candidate"] == {"is": False, "why": why}
    assert len(answer["instance"]) == looks
    assert would(answer) == ("nothing", why)


@pytest.mark.parametrize("instance", [None, ""], ids=["null", "empty"])
def test_no_instance_is_recorded(stage: Stage, instance: str | None) -> None:
    answer = explained(stage, stage.fleet.add(instance))
    assert answer["candidate"] == {"is": False, "why": "its row records no instance"}
    assert answer["instance"] == []
    assert would(answer) == ("nothing", "its row records no instance")


def test_a_row_that_the_platform_took_offline_first_waits_to_be_adopted(story: Story) -> None:
    stage = story.stage
    one = story.workspace()
    story.dies(one, heartbeat_age_s=5.0)
    story.minute(lasts_s=1.0)
    assert stage.fleet.doubts(one)[0]["reason"] == "fresh_heartbeat"
    story.becomes(one, status="offline")
    stage.fleet.heartbeat(one, age_s=300.0)
    answer = explained(stage, one)
    assert answer["candidate"]["why"] == (
        "offline, and a cycle saw this instance dead while the row was up: it may be adopted"
    )
    assert would(answer)[0] == "adopt"
    off = explained(stage, one, ADOPT_OFFLINE="false")
    assert would(off) == ("nothing", "offline, and ADOPT_OFFLINE is false")


# --- restarts ---


@pytest.fixture
def flipped(story: Story) -> str:
    """Return a workspace that was flipped, and whose restart waits for its grace."""
    one = story.workspace()
    story.dies(one)
    story.minute()
    assert story.status(one) == "offline"
    return one


def test_waiting_for_its_grace_and_then_due(story: Story, flipped: str) -> None:
    answer = explained(story.stage, flipped, **GRACE)
    (restart,) = answer["restarts"]
    assert restart["state"] == f"not due yet: waiting for its grace until {restart['due_at']}"
    assert would(answer) == ("wait", restart["state"])
    assert answer["candidate"] == {"is": False, "why": "offline, and its restart is owed"}
    story.stage.fleet.age_everything(180)
    answer = explained(story.stage, flipped, **GRACE)
    assert answer["restarts"][0]["state"] == "due"
    assert would(answer) == ("ask_for_restart", "its restart is due, and its instance still dead: terminated")
    nobody = explained(story.stage, flipped, PLATFORM_BASE_URL=None, **GRACE)
    assert would(nobody)[1].startswith("nobody is asked: PLATFORM_BASE_URL is not set")


def test_a_cycle_asks_for_no_more_than_its_share_and_looks_at_none_behind_them(story: Story) -> None:
    """The one that runs again stays owed until its turn comes, too."""
    workspaces = [story.workspace() for _ in range(4)]
    for one in workspaces:
        story.dies(one)
        story.minute(PLATFORM_BASE_URL=None)
    story.stage.fleet.age_everything(180)
    story.stage.ec2.set_state(story.stage.instance_of(workspaces[3]), "running")
    settings = GRACE | {"RESTARTS_PER_CYCLE": "2"}
    said = [would(explained(story.stage, one, **settings)) for one in workspaces]
    assert [action for action, _ in said] == ["ask_for_restart", "ask_for_restart", "wait", "wait"]
    assert said[2][1] == "it is due, but 2 come before it, and a cycle asks for 2 at most; terminated"
    assert said[3][1] == "it is due, but 3 come before it, and a cycle asks for 2 at most; the instance is running"
    outcome = story.stage.cycle(**settings)
    assert {call.workspace_id for call in outcome.calls} == {*workspaces[:2]}
    assert outcome.report["restarts"]["cancelled"] == 0


def test_one_that_has_moved_on_takes_nobodys_turn(story: Story) -> None:
    """Those never refused and those refused take turns, and the cycle cancels first what has moved on."""
    refused, moved_on, due_now = (story.workspace() for _ in range(3))
    story.dies(refused)
    story.answers(Answer(400))
    story.minutes(5)
    for one in (moved_on, due_now):
        story.dies(one)
        story.minute(PLATFORM_BASE_URL=None)
    story.stage.fleet.age_everything(1000)
    story.becomes(moved_on, status="paused")
    settings = GRACE | {"RESTARTS_PER_CYCLE": "1"}
    said = {one: would(explained(story.stage, one, **settings))[0] for one in (refused, due_now)}
    assert said == {refused: "wait", due_now: "ask_for_restart"}
    assert [call.workspace_id for call in story.stage.cycle(**settings).calls] == [due_now]


def test_without_a_platform_nobody_looks_at_a_due_restart(story: Story, flipped: str) -> None:
    story.stage.fleet.age_everything(180)
    story.comes_back(flipped, on_new_instance=False)
    nobody = GRACE | {"PLATFORM_BASE_URL": None}
    action, reason = would(explained(story.stage, flipped, **nobody))
    assert (action, reason.split(":")[0]) == ("wait", "nobody is asked")
    assert story.stage.cycle(**nobody).report["restarts"]["cancelled"] == 0


def due(story: Story, workspace: str) -> dict[str, Any]:
    """Let the restart become due, and the platform be asked; return what is explained then."""
    story.minutes(3)
    return explained(story.stage, workspace, **GRACE)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "not due yet: refused, and tried again at "),
        (409, "not due yet: blocked by a paused ancestor, and tried again at "),
        (504, "not due yet: uncertain, so not asked for again until "),
    ],
)
def test_the_platform_did_not_accept(story: Story, flipped: str, status: int, words: str) -> None:
    story.answers(Answer(status))
    answer = due(story, flipped)
    (restart,) = answer["restarts"]
    assert restart["state"] == words + restart["due_at"]
    assert (restart["attempts"], restart["outcome"]) == (1, None)
    assert would(answer) == ("wait", restart["state"])


def test_the_platform_wants_to_be_left_alone(story: Story, flipped: str) -> None:
    story.answers(Answer(429, headers={"Retry-After": "3600"}))
    assert would(due(story, flipped))[1].startswith("the platform asked to be left alone: until 20")


def test_a_restart_on_hold(story: Story, flipped: str) -> None:
    story.stage.glance(order(flipped))
    answer = explained(story.stage, flipped, **GRACE)
    assert would(answer) == ("wait", f"on hold: until {answer['hold']['ends_at']}")


def test_a_crash_loop_backs_off(story: Story, flipped: str) -> None:
    story.stage.database.query(
        "UPDATE reconciler.restarts SET streak = 3, due_at = now(), backoff_until = now() + interval '5 minutes'"
    )
    (restart,) = explained(story.stage, flipped, **GRACE)["restarts"]
    assert restart["state"].startswith("not due yet: backing off until 20")
    assert restart["state"].endswith(": it is restart 4 in a row")


@both_probes
def test_a_restart_that_the_breaker_keeps_back(story: Story, flipped: str, probe: str) -> None:
    stage = story.stage
    settings = {**GRACE, **stage.settings(probe)}
    stage.fleet.age_everything(180)
    dead = story.workspaces(8)
    story.dies(*dead)
    answer = explained(stage, flipped, **settings)
    kept_back = "the breaker is open: it is kept back until the breaker closes, or an event with override_breaker "
    assert answer["restarts"][0]["state"].startswith(kept_back)
    assert would(answer) == ("wait", kept_back + "releases it")
    story.minute(lasts_s=MINUTE_S, **settings)
    stage.ec2.set_state(stage.instance_of(flipped), "running")
    assert would(explained(stage, flipped, **settings)) == ("cancel_restart", "the instance is running")
    outcome = stage.cycle(**settings)
    assert (outcome.report["breaker_open"], story.restarts(flipped)) == (True, ["cancelled"])


def test_a_heartbeat_after_the_flip_puts_the_restart_off(story: Story, flipped: str) -> None:
    story.stage.fleet.age_everything(180)
    story.stage.fleet.heartbeat(flipped)
    assert would(explained(story.stage, flipped, **GRACE)) == ("wait", "a heartbeat came after the flip")


def test_an_instance_that_runs_again_cancels_the_restart(story: Story, flipped: str) -> None:
    story.stage.fleet.age_everything(180)
    story.stage.ec2.set_state(story.stage.instance_of(flipped), "running")
    assert would(explained(story.stage, flipped, **GRACE)) == ("cancel_restart", "the instance is running")


def test_a_row_that_has_moved_on_cancels_the_restart(story: Story, flipped: str) -> None:
    story.comes_back(flipped)
    story.becomes(flipped, status="online")
    answer = explained(story.stage, flipped, **GRACE)
    assert would(answer) == ("cancel_restart", "the row has moved on; its instance is running")
    assert answer["restarts"][0]["state"] == "the row has moved on"
    story.stage.fleet.delete(flipped)
    assert would(explained(story.stage, flipped, **GRACE)) == ("cancel_restart", "the row has moved on")


def test_watched_unrecovered_and_up_again(story: Story, flipped: str) -> None:
    stage = story.stage
    story.answers()
    answer = due(story, flipped)
    assert answer["restarts"][0]["state"] == "watched: accepted, and the workspace is not up yet"
    assert would(answer) == (
        "watch",
        "the workspace is offline, its instance still dead: its restart is owed again",
    )
    story.becomes(flipped, status="provisioning")
    assert would(explained(stage, flipped, **GRACE))[1].endswith("its status is provisioning")
    stage.fleet.age_everything(1000)
    answer = explained(stage, flipped, **GRACE)
    assert answer["restarts"][0]["state"].startswith("unrecovered: accepted, and the workspace is not up since 20")
    story.comes_back(flipped)
    story.minute()
    answer = explained(stage, flipped, **GRACE)
    assert answer["restarts"][0]["state"].startswith("watched: accepted, and the workspace is up since 20")
    assert would(answer) == (
        "watch",
        "the workspace is up after its restart; the watch ends after five minutes of that",
    )
    story.minutes(6)
    answer = explained(stage, flipped, **GRACE)
    assert answer["restarts"][0]["state"] == "over: accepted"
    assert would(answer) == ("nothing", "its instance is running")


def test_the_newest_twenty_restarts_are_shown(stage: Stage) -> None:
    one = stage.add("running")
    stage.database.query(
        """
        INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, attempts, closed_at, outcome)
        SELECT CAST(:id AS uuid), 'i-0', gen_random_uuid(), number, now(), 'cancelled'
        FROM generate_series(1, 25) AS number
        """,
        id=one,
    )
    answer = explained(stage, one)
    assert [restart["attempts"] for restart in answer["restarts"]] == list(range(25, 5, -1))


# --- several targets ---


def test_each_target_is_asked_and_the_cycle_decides(world: World) -> None:  # noqa: F811 - the fixture
    world.add(world.here, "running", 2)
    world.add(world.there, "running", 2)
    (dead,), (gone,) = world.add(world.there, "terminated"), world.add(world.here, None)
    answer = world.cycle({"mode": "explain", "workspace_id": dead}).report
    assert [(one["target"], one["state"], one["verdict"]) for one in answer["instance"]] == [
        (NAMES[0], "not_found", "absent"),
        (NAMES[1], "terminated", "dead"),
    ]
    assert would(answer) == ("flip", "its instance is terminated, confirmed by a second probe")
    answer = world.cycle({"mode": "explain", "workspace_id": gone}).report
    assert {one["verdict"] for one in answer["instance"]} == {"absent"}
    assert would(answer) == ("wait", "not found: sighting 1 of 3, over n of 120 s")


def test_an_absence_proves_nothing_while_a_target_is_empty(world: World) -> None:  # noqa: F811 - the fixture
    world.add(world.here, "running", 2)
    (gone,) = world.add(world.here, None)
    answer = world.cycle({"mode": "explain", "workspace_id": gone}).report
    assert would(answer) == ("wait", f"no usable answer, which proves nothing: empty_target in {NAMES[1]}")


# --- it only reads ---


def everything_stored(stage: Stage) -> list[Any]:
    tables = stage.database.query(
        """
        SELECT format('%I.%I', nspname, relname) AS name
        FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
        WHERE relkind = 'r' AND nspname IN ('reconciler', 'public') ORDER BY 1
        """
    )
    return [
        stage.database.query(f"SELECT xmin::text, xmax::text, * FROM {table['name']} ORDER BY ctid")  # noqa: S608
        for table in tables
    ]


@both_probes
@pytest.mark.parametrize("mode", ["apply", "dry-run"])
def test_it_writes_nothing_anywhere(story: Story, flipped: str, probe: str, mode: str) -> None:
    stage = story.stage
    stage.fleet.age_everything(180)
    dead, gone, idle = stage.add("terminated"), stage.add(None), stage.add("running")
    before = everything_stored(stage)
    for one in (flipped, dead, gone, idle, NOBODY):
        answer = explained(stage, one, MODE=mode, **GRACE, **stage.settings(probe))
        notes = ["the setting MODE is dry-run: no cycle does anything until it is apply"]
        assert answer.get("notes", []) == (notes if mode == "dry-run" else [])
    assert everything_stored(stage) == before
    assert not stage.platform.calls


def test_it_needs_no_right_but_to_read(cloud: Stage) -> None:
    let_it_only_read(cloud)
    one, _ = cloud.add("terminated"), company(cloud)
    assert would(explained(cloud, one))[0] == "flip"


def test_it_works_while_a_cycle_has_the_lease(stage: Stage) -> None:
    one, _ = stage.add("terminated"), company(stage)
    stage.database.query(
        "INSERT INTO reconciler.lease (scope, holder, expires_at)"
        " VALUES ('fleet', gen_random_uuid(), now() + interval '1 minute')"
    )
    assert stage.glance().report["outcome"] == "already_running"
    assert would(explained(stage, one))[0] == "flip"


@contextlib.contextmanager
def locked(stage: Stage, table: str) -> Iterator[None]:
    connection = stage.database.connect()
    try:
        connection.run(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("table", "unknown"),
    [
        ("workspaces", {"row", "candidate", "breaker", "would"}),
        ("reconciler.restart_stops", {"candidate", "would"}),
        ("reconciler.source_doubts", set()),
        ("reconciler.lease", set()),
    ],
)
def test_what_somebody_has_locked_is_unknown_and_the_rest_is_answered(
    stage: Stage, table: str, unknown: set[str]
) -> None:
    one = stage.add("running")
    with locked(stage, table):
        answer = explained(stage, one)
    assert {name for name in FIELDS - {"hold"} if answer[name] is None} == unknown
    if table == "reconciler.lease":
        assert "notes" not in answer
    else:
        assert all(" unknown: " in note for note in answer["notes"])
    assert answer["workspace_id"] == one


def test_a_role_that_may_read_the_name_is_told_it(cloud: Stage) -> None:
    one = cloud.add("running", name="Ada's")
    cloud.database.query(MAY_READ_MORE)
    row = explained(cloud, one)["row"]
    assert (row["name"], row["tier"], row["created_at"][-1]) == ("Ada's", 1, "Z")


def test_what_makes_a_cycle_impossible_is_raised(cloud: Stage) -> None:
    one = cloud.add("running")
    cloud.database.query("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
    with pytest.raises(RowSecurityError):
        explained(cloud, one)
    cloud.database.query("ALTER TABLE workspaces DISABLE ROW LEVEL SECURITY")
    cloud.database.query("REVOKE SELECT ON reconciler.doubts FROM reconciler")
    with pytest.raises(RightsMissingError, match=r"SELECT on reconciler\.doubts"):
        explained(cloud, one)
    cloud.database.query("DROP SCHEMA reconciler CASCADE")
    with pytest.raises(SchemaMissingError, match=r"infra/schema\.sql"):
        explained(cloud, one)


# --- whatever is in the rows ---


@both_probes
def test_hostile_texts_are_answered_as_text_and_cut(stage: Stage, probe: str) -> None:
    one, _ = stage.add("running"), company(stage)
    stage.database.query(MAY_READ_MORE)
    stage.fleet.update(one, name=HOSTILE, runtime=HOSTILE, instance_id=HOSTILE)
    stage.database.query(
        """
        INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, reason)
        VALUES (CAST(:id AS uuid), 'dead', left(:text, 65), left(:text, 200))
        """,
        id=one,
        text=HOSTILE,
    )
    stage.database.query(
        """
        INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, last_answer)
        VALUES (CAST(:id AS uuid), left(:text, 65), gen_random_uuid(), left(:text, 20))
        """,
        id=one,
        text=HOSTILE,
    )
    stage.database.query(
        "INSERT INTO reconciler.holds (workspace_id, reason, ends_at)"
        " VALUES (CAST(:id AS uuid), left(:text, 200), 'infinity')",
        id=one,
        text=HOSTILE,
    )
    answer = explained(stage, one, **stage.settings(probe))
    stage.database.query(MAY_READ_MORE.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
    assert "notes" not in answer
    assert answer["row"]["name"] == HOSTILE[:200]
    assert answer["row"]["instance_id"] == HOSTILE[:65]
    assert answer["hold"] == {"all": False, "reason": HOSTILE[:200], "ends_at": "infinity"}
    assert answer["instance"][0]["reason"] == "malformed_instance_id"
    assert len(json.dumps(answer)) < 10_000


def test_bytes_that_are_no_text_are_replaced(postgres: PostgresServer) -> None:
    with opened(postgres, options="ENCODING 'SQL_ASCII' LOCALE 'C'") as stage:
        one = stage.add("running")
        stage.database.query(MAY_READ_MORE)
        stage.database.query("UPDATE workspaces SET name = convert_from('\\xff41', 'SQL_ASCII')")
        answer = explained(stage, one)
        json.dumps(answer, ensure_ascii=False).encode()
        assert "notes" not in answer
        assert answer["row"]["name"].endswith("A")


def test_times_that_no_calendar_has_are_answered(stage: Stage) -> None:
    one = stage.add("running")
    stage.database.query("UPDATE workspaces SET last_heartbeat_at = '-infinity', updated_at = 'infinity'")
    row = explained(stage, one)["row"]
    assert (row["last_heartbeat_at"], row["updated_at"]) == ("-infinity", "infinity")


# --- the event ---


def test_the_event_of_the_directory(stage: Stage) -> None:
    one = stage.fleet.add(stage.instances(1, "running")[0], id=NOBODY)
    assert stage.glance(event("explain")).report["workspace_id"] == one


@pytest.mark.parametrize("mode", ["apply", "dry-run"])
def test_a_cycle_takes_no_workspace_id(stage: Stage, mode: str) -> None:
    with pytest.raises(RequestError, match="'workspace_id': unknown"):
        stage.glance({"mode": mode, "workspace_id": NOBODY})
    assert APPLY == {"mode": "apply"}
