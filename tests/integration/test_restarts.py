"""What becomes of an owed restart (accepted, refused, blocked, uncertain, cancelled), and when it is asked for."""

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from handler.errors import LeaseLostError
from sandbox.control_plane import state_answer
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.http_server import Answer, Hang, HttpStandIn, Raw, Reply, Request, Reset, drip_headers
from sandbox.limited_ec2 import ApiError, TokenBucket
from sandbox.platform import Platform, RestartCall
from sandbox.postgres import PostgresServer
from sandbox.script import Script
from tests.support.events import DRY_RUN
from tests.support.invoke import Invoke
from tests.support.stage import Outcome, Stage, opened

A_MINUTE_S, A_DAY_S = 61.0, 86_400.0
# How far a moment that is reckoned from the test's clock may lie from the one that was reckoned within a cycle.
CLOCK_SLACK_S = 10.0
CALLS_AT_ONCE = 8
MANY = 20
MORE_THAN_AT_ONCE = CALLS_AT_ONCE + 2
# More than a cycle probes that may ask for one restart.
MORE_THAN_LOOKED_AT = 102
# So long that other calls are refused meanwhile.
SLOW_SECRET_S = 0.3
# Most of some fleets is dead here, and the probe is right about it.
NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
NO_PLATFORM: dict[str, str | None] = {"PLATFORM_BASE_URL": None}

ACCEPTED = Answer(202)
REFUSED = Answer(503)

both_probes = pytest.mark.parametrize("probe", ["ec2", "control_plane"])


@pytest.fixture(scope="module")
def used_stage(postgres: PostgresServer) -> Iterator[Stage]:
    with opened(postgres) as stage:
        stage.ec2.bucket = TokenBucket(capacity=1_000_000, refill_per_s=0)  # it serves all the tests here
        yield stage


@pytest.fixture
def stage(used_stage: Stage) -> Iterator[Stage]:
    """An empty stage whose platform answers as the test says."""
    platform = used_stage.platform
    token = platform.token
    platform.instead.clear()
    yield used_stage
    platform.calls.clear()
    platform.token, platform.org_id, platform.peak_in_flight = token, None, 0
    used_stage.ec2.script.clear()
    used_stage.control_plane.script.clear()
    used_stage.database.query(
        "TRUNCATE workspaces, structure_events, reconciler.doubts, reconciler.source_doubts, reconciler.restarts, "
        "reconciler.restart_stops, reconciler.lease"
    )


def order(stage: Stage, *replies: Reply) -> None:
    """Make the platform give these replies in turn, and expect no further call."""
    for nth, reply in enumerate(replies, start=1):
        stage.platform.instead.reply(reply, nth=nth)


def always(stage: Stage, reply: Reply) -> None:
    stage.platform.instead.reply(reply)


def restarts(outcome: Outcome) -> dict[str, int]:
    """Return the report's figures about restarts, without the zeros."""
    return {name: count for name, count in outcome.report["restarts"].items() if count}


def newest_restart(stage: Stage, workspace: str) -> dict[str, Any]:
    """Return the newest restart that is or was owed to a workspace."""
    return stage.fleet.restarts(workspace)[-1]


def due_in_s(stage: Stage, workspace: str) -> float:
    restart = newest_restart(stage, workspace)
    assert restart["closed_at"] is None
    due_at: datetime = restart["due_at"]
    return (due_at - datetime.now(UTC)).total_seconds()


def about(seconds: float) -> Any:
    return pytest.approx(seconds, abs=CLOCK_SLACK_S)


def script_of(stage: Stage, probe: str) -> Script[Any]:
    """Return the script for hooks and faults of a source of truth."""
    return stage.control_plane.script if probe == "control_plane" else stage.ec2.script


class Recorder(HttpStandIn):
    """A server that records every request, and gives all of them the same answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self._reply = reply

    def handle(self, request: Request) -> Reply:
        self.requests.append(request)
        return self._reply


# --- what is asked ---

# What a client adds by itself.
CLIENTS_OWN = {"host", "content-length", "connection", "accept-encoding", "user-agent"}


@pytest.mark.parametrize("org_id", ["org-17", None], ids=["of an organisation", "of none"])
def test_the_platform_gets_its_token_the_organisation_and_the_instance_that_is_meant(
    stage: Stage, org_id: str | None
) -> None:
    workspace = stage.add("terminated")
    with Recorder(ACCEPTED) as platform:
        outcome = stage.cycle(PLATFORM_BASE_URL=platform.url, PLATFORM_TOKEN="a-token", PLATFORM_ORG_ID=org_id)
    (request,) = platform.requests
    assert (request.method, request.path, request.query) == ("POST", f"/workspaces/{workspace}/restart", {})
    assert json.loads(request.body) == {"expected_instance_id": stage.instance_of(workspace)}
    assert {name: value for name, value in request.headers.items() if name not in CLIENTS_OWN} == {
        "authorization": "Bearer a-token",
        "content-type": "application/json",
    } | ({"x-molecule-org-id": org_id} if org_id else {})
    assert restarts(outcome) == {"accepted": 1}


def test_a_dead_workspace_is_online_again_on_a_new_instance(
    invoke: Invoke, fleet: Fleet, ec2: MotoEc2, platform: Platform, probe: dict[str, str]
) -> None:
    dead, running = ec2.launch(2)
    workspace, other = fleet.add_all([dead, running])
    ec2.terminate([dead])
    report = invoke(**probe, RESTART_GRACE_SECONDS="0")
    platform.settle()
    (restart,) = platform.restarts
    row = fleet.row(workspace)
    assert (row["status"], row["instance_id"]) == ("online", restart.new_instance_id)
    assert (restart.workspace_id, restart.old_instance_id) == (workspace, dead)
    assert fleet.row(other)["instance_id"] == running
    assert report["restarts"] == dict.fromkeys(report["restarts"], 0) | {"accepted": 1}


# --- accepted ---


@pytest.mark.parametrize(
    "reply",
    [
        *(Answer(status) for status in (200, 201, 202, 204)),
        Raw(b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\nhalf of a bo"),
    ],
    ids=["200", "201", "202", "204", "202 with a body cut off"],
)
def test_a_restart_that_the_platform_is_at_is_never_asked_for_again(stage: Stage, reply: Reply) -> None:
    workspace = stage.add("terminated")
    order(stage, reply)
    assert restarts(stage.cycle()) == {"accepted": 1}
    assert newest_restart(stage, workspace)["outcome"] == "accepted"
    stage.platform_is_at_work()
    stage.fleet.age_everything(A_DAY_S)
    later = stage.cycle()
    assert later.calls == []
    assert restarts(later) == {"unrecovered": 1}, "the workspace is still being provisioned"


@both_probes
def test_a_restart_that_did_nothing_is_owed_again_and_asked_for_a_quarter_of_an_hour_after_its_call(
    stage: Stage, probe: str
) -> None:
    settings = stage.settings(probe)
    workspace = stage.add("terminated")
    order(stage, ACCEPTED, ACCEPTED)
    assert restarts(stage.cycle(**settings)) == {"accepted": 1}
    stage.fleet.age_everything(A_MINUTE_S)
    again = stage.cycle(**settings)
    assert restarts(again) == {"pending": 1}
    assert [line["workspace_id"] for line in again.lines("restart owed again")] == [workspace]
    assert due_in_s(stage, workspace) == about(900 - A_MINUTE_S)
    stage.fleet.age_everything(900 - A_MINUTE_S - CLOCK_SLACK_S)
    assert stage.cycle(**settings).calls == []
    stage.fleet.age_everything(CLOCK_SLACK_S)
    assert restarts(stage.cycle(**settings)) == {"accepted": 1, "unrecovered": 1}
    assert [one["streak"] for one in stage.fleet.restarts(workspace)] == [0, 1]
    assert len(stage.fleet.events(workspace)) == 1


def test_a_few_restarts_are_asked_for_at_once_and_not_all(stage: Stage) -> None:
    stage.add_all(MANY, "terminated")
    always(stage, Answer(202, delay_s=0.2))
    assert restarts(stage.cycle(**NO_BREAKER)) == {"accepted": MANY}
    assert 1 < stage.platform.peak_in_flight <= CALLS_AT_ONCE


def test_one_cycle_asks_for_as_many_restarts_as_it_may_and_the_next_ones_for_the_rest(stage: Stage) -> None:
    stage.add_all(5, "terminated")
    always(stage, ACCEPTED)
    cycles = []
    for _ in range(4):
        cycles.append(stage.cycle(**NO_BREAKER, RESTARTS_PER_CYCLE="2"))
        stage.platform_is_at_work()
    assert [len(cycle.calls) for cycle in cycles] == [2, 2, 1, 0]
    assert [cycle.report["restarts"]["pending"] for cycle in cycles] == [3, 1, 0, 0]
    assert len({call.workspace_id for call in stage.platform.calls}) == 5


# --- refused ---


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_a_refused_restart_stays_owed_and_is_asked_for_again_a_minute_later(stage: Stage, status: int) -> None:
    workspace = stage.add("terminated")
    order(stage, Answer(status), ACCEPTED)
    assert restarts(stage.cycle()) == {"refused": 1, "pending": 1}
    assert due_in_s(stage, workspace) == about(60)
    at_once = stage.cycle()
    assert at_once.calls == []
    assert restarts(at_once) == {"pending": 1}
    stage.fleet.age_everything(A_MINUTE_S)
    assert restarts(stage.cycle()) == {"accepted": 1}


@pytest.mark.parametrize(
    ("settings", "waits_s"),
    [({}, [60, 120, 240, 480, 900, 900]), ({"RESTART_RETRY_SECONDS": "400"}, [400, 800, 900, 900])],
    ids=["as set by default", "from 400 seconds on"],
)
def test_the_wait_between_refusals_doubles_up_to_fifteen_minutes(
    stage: Stage, settings: dict[str, str], waits_s: list[float]
) -> None:
    workspace = stage.add("terminated")
    always(stage, REFUSED)
    for wait_s in waits_s:
        assert restarts(stage.cycle(**settings)) == {"refused": 1, "pending": 1}
        assert due_in_s(stage, workspace) == about(wait_s)
        stage.fleet.age_everything(wait_s)


def test_a_platform_that_is_down_is_asked_again_when_it_is_up(stage: Stage) -> None:
    workspace = stage.add("terminated")
    with socket.socket() as nobody:  # who holds the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        down = stage.cycle(PLATFORM_BASE_URL=f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert restarts(down) == {"refused": 1, "pending": 1}
    assert due_in_s(stage, workspace) == about(60)
    stage.fleet.age_everything(A_MINUTE_S)
    order(stage, ACCEPTED)
    assert restarts(stage.cycle()) == {"accepted": 1}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_refusal_and_is_not_followed(stage: Stage, status: int) -> None:
    stage.add("terminated")
    with Recorder(ACCEPTED) as elsewhere:
        order(stage, Answer(status, headers={"Location": f"{elsewhere.url}/restart"}))
        assert restarts(stage.cycle()) == {"refused": 1, "pending": 1}
    assert elsewhere.requests == []


def test_a_platform_that_does_not_know_the_organisation_restarts_nothing_until_the_right_one_is_set(
    stage: Stage,
) -> None:
    stage.platform.org_id = "org-1"
    stage.add("terminated")
    order(stage, ACCEPTED)
    assert restarts(stage.cycle(PLATFORM_ORG_ID="org-2")) == {"refused": 1, "pending": 1}
    stage.fleet.age_everything(A_MINUTE_S)
    assert restarts(stage.cycle(PLATFORM_ORG_ID="org-1")) == {"accepted": 1}


def test_one_refusal_keeps_no_other_restart_waiting(stage: Stage) -> None:
    refused, *_ = stage.add_all(MANY, "terminated")
    stage.platform.instead.reply(REFUSED, workspace_id=refused)
    always(stage, ACCEPTED)
    assert restarts(stage.cycle(**NO_BREAKER)) == {"accepted": MANY - 1, "refused": 1, "pending": 1}


# --- asked to wait ---


def seconds(count: int) -> str:
    return str(count)


def a_date(count: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=count), usegmt=True)


def too_many(retry_after: str) -> Answer:
    return Answer(429, headers={"Retry-After": retry_after})


@pytest.mark.parametrize("said", [seconds, a_date])
def test_the_platform_is_left_alone_for_as_long_as_it_asks_to_be(stage: Stage, said: Callable[[int], str]) -> None:
    stage.add("terminated")
    order(stage, too_many(said(600)), ACCEPTED)
    assert restarts(stage.cycle()) == {"refused": 1, "pending": 1}
    stage.fleet.age_everything(600 - 2 * CLOCK_SLACK_S)
    assert stage.cycle().calls == []
    stage.fleet.age_everything(3 * CLOCK_SLACK_S)
    assert restarts(stage.cycle()) == {"accepted": 1}


def test_once_the_platform_asks_to_wait_a_cycle_begins_no_further_call(stage: Stage) -> None:
    stage.add_all(MANY, "terminated")
    always(stage, too_many(seconds(600)))
    outcome = stage.cycle(**NO_BREAKER)
    asked = {call.workspace_id for call in outcome.calls}
    assert 1 <= len(outcome.calls) <= CALLS_AT_ONCE
    assert restarts(outcome) == {"refused": len(asked), "pending": MANY}
    assert {one["workspace_id"] for one in stage.fleet.restarts() if one["attempts"]} == asked


# --- blocked ---


def test_a_restart_below_a_paused_ancestor_is_counted_as_blocked_until_the_ancestor_goes_on(stage: Stage) -> None:
    ancestor = stage.fleet.add(None, status="paused")
    parent = stage.fleet.add(None, status="offline", parent_id=ancestor)
    workspace = stage.add("terminated", parent_id=parent)
    for _ in range(3):
        asked = stage.cycle()
        assert len(asked.calls) == 1
        assert restarts(asked) == {"blocked": 1, "pending": 1}
        not_asked = stage.cycle()
        assert not_asked.calls == []
        assert restarts(not_asked) == {"blocked": 1, "pending": 1}
        stage.fleet.age_everything(A_DAY_S)
    stage.fleet.update(ancestor, status="offline")
    order(stage, ACCEPTED)
    assert restarts(stage.cycle()) == {"accepted": 1}
    assert newest_restart(stage, workspace)["outcome"] == "accepted"


def test_a_blocked_restart_that_gets_old_alarms_nobody(stage: Stage) -> None:
    blocked = stage.add("terminated")
    stage.platform.instead.reply(Answer(409), workspace_id=blocked)
    always(stage, REFUSED)
    stage.cycle()
    stage.fleet.age_everything(A_DAY_S)
    (alone,) = stage.cycle().metrics()
    assert (alone["RestartsBlocked"], alone["RestartsPending"], alone["OldestRestartAge"]) == ([1], [1], [0])
    stage.add("terminated")
    stage.cycle()
    stage.fleet.age_everything(600)
    (with_another,) = stage.cycle().metrics()
    assert (with_another["RestartsBlocked"], with_another["RestartsPending"]) == ([1], [2])
    assert with_another["OldestRestartAge"] == [about(600)]


# --- no answer ---

UNANSWERED = {
    "a reset": Reset(),
    "an end without a byte": Raw(b""),
    "half of a status line": Raw(b"HTTP/1.1 20"),
    "garbage": Raw(b"\x00\xff\x16\x03 no HTTP at all\r\n\r\n"),
    "silence": Hang(),
    "dripping headers": drip_headers(),
}


@pytest.mark.parametrize(
    ("settings", "uncertain_s"),
    [({}, 300), ({"RESTART_UNCERTAIN_SECONDS": "100"}, 100)],
    ids=["as set by default", "as set to 100 seconds"],
)
def test_an_uncertain_restart_is_left_alone_for_the_configured_time(
    stage: Stage, settings: dict[str, str], uncertain_s: float
) -> None:
    workspace = stage.add("terminated")
    order(stage, Reset(), ACCEPTED)
    assert restarts(stage.cycle(**settings)) == {"uncertain": 1, "pending": 1}
    assert due_in_s(stage, workspace) == about(uncertain_s)
    stage.fleet.age_everything(uncertain_s - 2 * CLOCK_SLACK_S)
    too_soon = stage.cycle(**settings)
    assert too_soon.calls == []
    assert restarts(too_soon) == {"pending": 1}
    stage.fleet.age_everything(2 * CLOCK_SLACK_S)
    assert restarts(stage.cycle(**settings)) == {"accepted": 1}


@pytest.mark.parametrize("reply", UNANSWERED.values(), ids=UNANSWERED.keys())
def test_a_request_without_an_answer_is_uncertain_and_not_a_refusal(stage: Stage, reply: Reply) -> None:
    workspace = stage.add("terminated")
    order(stage, reply)
    assert restarts(stage.cycle(CYCLE_DEADLINE_SECONDS="2")) == {"uncertain": 1, "pending": 1}
    assert due_in_s(stage, workspace) == about(300)


def test_a_platform_that_takes_half_a_minute_to_answer_is_not_asked_twice(stage: Stage) -> None:
    workspace = stage.add("terminated")
    stopped = threading.Event()

    def take_time(call: RestartCall) -> None:
        stopped.wait()
        stage.fleet.update(call.workspace_id, status="provisioning")

    stage.platform.instead.before(take_time, nth=1)
    order(stage, ACCEPTED)
    try:
        assert restarts(stage.cycle(CYCLE_DEADLINE_SECONDS="2")) == {"uncertain": 1, "pending": 1}
        for _ in range(4):
            stage.fleet.age_everything(A_MINUTE_S)
            assert restarts(stage.cycle()) == {"pending": 1}
        assert stage.fleet.row(workspace)["status"] == "offline"
    finally:
        stopped.set()
    stage.platform.drain()
    stage.fleet.age_everything(A_MINUTE_S)
    assert restarts(stage.cycle()) == {"cancelled": 1}
    assert len(stage.platform.calls) == 1


def test_a_platform_that_hangs_or_drips_does_not_hold_the_cycle_past_its_deadline(stage: Stage) -> None:
    stage.add_all(MORE_THAN_AT_ONCE, "terminated")
    replies: Iterator[Reply] = itertools.cycle([Hang(), drip_headers()])
    stage.platform.instead.reply(lambda _: next(replies))
    hanging = stage.cycle(**NO_BREAKER, CYCLE_DEADLINE_SECONDS="3")
    assert hanging.report["duration_ms"] <= 4_000
    assert hanging.report["outcome"] == "completed"
    assert hanging.report["flipped"] == MORE_THAN_AT_ONCE
    assert restarts(hanging) == {"uncertain": len(hanging.calls), "pending": MORE_THAN_AT_ONCE}
    stage.platform.instead.clear()
    always(stage, ACCEPTED)
    recovered = stage.cycle(**NO_BREAKER)
    assert restarts(recovered) == {"accepted": len(recovered.calls), "pending": len(hanging.calls)}
    assert len({call.workspace_id for call in stage.platform.calls}) == len(stage.platform.calls) == MORE_THAN_AT_ONCE


# --- no longer owed ---


def new_instance(stage: Stage, workspace: str) -> None:
    stage.fleet.update(workspace, status="online", instance_id=stage.instances(1, "running")[0])


def updates(**columns: Any) -> Callable[[Stage, str], None]:
    return lambda stage, workspace: stage.fleet.update(workspace, **columns)


MOVES: dict[str, Callable[[Stage, str], None]] = {
    "gone": lambda stage, workspace: stage.fleet.delete(workspace),
    "removed": updates(status="removed"),
    "being provisioned": updates(status="provisioning"),
    "online on another instance": new_instance,
    "paused": updates(status="paused"),
    "hibernated": updates(status="hibernated"),
    "offline with another instance": updates(instance_id="i-0aaaaaaaaaaaaaaaa"),
    "offline without an instance": updates(instance_id=None),
    "offline with an empty instance": updates(instance_id=""),
}
AT_THE_LAST_MOMENT = ("gone", "online on another instance", "offline with another instance")


def refused_a_while_ago(stage: Stage, **settings: str) -> str:
    """Let a workspace be flipped and refused its restart, long enough ago; return its id."""
    workspace = stage.add("terminated")
    order(stage, REFUSED)
    assert restarts(stage.cycle(**settings)) == {"refused": 1, "pending": 1}
    stage.platform.instead.clear()
    stage.fleet.age_everything(A_MINUTE_S)
    return workspace


def assert_cancelled(stage: Stage, outcome: Outcome, workspace: str) -> None:
    assert outcome.calls == []
    assert restarts(outcome) == {"cancelled": 1}
    assert newest_restart(stage, workspace)["outcome"] == "cancelled"


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_a_workspace_that_moved_on_is_not_restarted(stage: Stage, move: Callable[[Stage, str], None]) -> None:
    workspace = refused_a_while_ago(stage)
    move(stage, workspace)
    assert_cancelled(stage, stage.cycle(), workspace)


def test_a_workspace_that_moved_on_is_owed_nothing_even_without_a_platform(stage: Stage) -> None:
    workspace = refused_a_while_ago(stage)
    stage.fleet.update(workspace, status="removed")
    assert_cancelled(stage, stage.cycle(**NO_PLATFORM), workspace)


@both_probes
@pytest.mark.parametrize("move", [MOVES[one] for one in AT_THE_LAST_MOMENT], ids=AT_THE_LAST_MOMENT)
def test_a_workspace_that_moves_on_while_its_old_instance_is_looked_at_is_not_restarted(
    stage: Stage, move: Callable[[Stage, str], None], probe: str
) -> None:
    settings = stage.settings(probe)
    workspace = refused_a_while_ago(stage, **settings)
    script_of(stage, probe).before(lambda _: move(stage, workspace), nth=1)
    assert_cancelled(stage, stage.cycle(**settings), workspace)


@both_probes
def test_a_workspace_whose_instance_runs_again_is_not_restarted(stage: Stage, probe: str) -> None:
    settings = stage.settings(probe)
    workspace = refused_a_while_ago(stage, **settings)
    stage.ec2.set_state(stage.instance_of(workspace), "running")
    assert_cancelled(stage, stage.cycle(**settings), workspace)


def test_a_workspace_whose_instance_runs_again_before_the_first_request_is_not_restarted(stage: Stage) -> None:
    workspace = stage.add("stopped")
    assert restarts(stage.cycle(**NO_PLATFORM)) == {"pending": 1}
    stage.ec2.set_state(stage.instance_of(workspace), "running")
    assert_cancelled(stage, stage.cycle(), workspace)


@both_probes
@pytest.mark.parametrize("state", ["pending", "stopping", "shutting-down", "no answer"])
def test_a_restart_waits_while_nobody_knows_that_the_instance_is_still_dead(
    stage: Stage, state: str, probe: str
) -> None:
    settings = stage.settings(probe)
    workspace = refused_a_while_ago(stage, **settings)
    if state == "no answer":
        script_of(stage, probe).reply(ApiError("UnauthorizedOperation", "You may not.", 403).as_answer())
    else:
        stage.ec2.set_state(stage.instance_of(workspace), state)
    waiting = stage.cycle(**settings)
    assert waiting.calls == []
    assert restarts(waiting) == {"pending": 1}
    assert newest_restart(stage, workspace)["attempts"] == 1
    script_of(stage, probe).clear()
    stage.ec2.set_state(stage.instance_of(workspace), "terminated")
    stage.fleet.age_everything(A_MINUTE_S)
    order(stage, ACCEPTED)
    assert restarts(stage.cycle(**settings)) == {"accepted": 1}


@both_probes
@pytest.mark.parametrize("state", ["stopped", "terminated"])
def test_a_restart_is_asked_for_again_when_the_instance_is_still_dead(stage: Stage, state: str, probe: str) -> None:
    settings = stage.settings(probe)
    workspace = refused_a_while_ago(stage, **settings)
    stage.ec2.set_state(stage.instance_of(workspace), state)
    order(stage, ACCEPTED)
    outcome = stage.cycle(**settings)
    assert restarts(outcome) == {"accepted": 1}
    assert [call.workspace_id for call in outcome.calls] == [workspace]


@both_probes
def test_a_restart_of_an_instance_that_is_not_found_any_more_waits_for_three_sightings_over_two_minutes(
    stage: Stage, probe: str
) -> None:
    settings = stage.settings(probe)
    stage.add("running")
    workspace = refused_a_while_ago(stage, **settings)
    stage.ec2.forget(stage.instance_of(workspace))
    order(stage, ACCEPTED)
    for _ in range(2):
        waiting = stage.cycle(**settings)
        assert (waiting.calls, restarts(waiting)) == ([], {"pending": 1})
        assert waiting.lines("restart put off")[0]["reason"].startswith("not found: sighting ")
        stage.fleet.age_everything(A_MINUTE_S)
    outcome = stage.cycle(**settings)
    assert restarts(outcome) == {"accepted": 1}
    assert [call.workspace_id for call in outcome.calls] == [workspace]


@pytest.mark.parametrize("found", ["pending", "stopping", "shutting-down"])
def test_an_instance_that_is_found_meanwhile_begins_its_sightings_of_absence_anew(stage: Stage, found: str) -> None:
    settings = stage.settings("control_plane")
    stage.add("running")
    workspace = refused_a_while_ago(stage, **settings)
    always(stage, ACCEPTED)
    asked = []
    for state in ("not_found", "not_found", found, "not_found", "not_found", "not_found"):
        stage.control_plane.script.clear()
        stage.control_plane.script.reply(state_answer(state), workspace_id=workspace)
        asked.append(len(stage.cycle(**settings).calls))
        stage.fleet.age_everything(A_MINUTE_S)
    assert asked == [0, 0, 0, 0, 0, 1]


# --- flipped again ---


def flipped_again(stage: Stage, **columns: Any) -> tuple[str, Outcome]:
    """Make a restart uncertain; let the workspace come online a minute later, and a next cycle find it dead."""
    workspace = stage.add("terminated")
    order(stage, Reset(), ACCEPTED)
    assert restarts(stage.cycle()) == {"uncertain": 1, "pending": 1}
    stage.fleet.age_everything(A_MINUTE_S)
    stage.fleet.update(workspace, status="online", **columns)
    outcome = stage.cycle()
    assert outcome.report["flipped"] == 1
    assert [one["outcome"] for one in stage.fleet.restarts(workspace)][:-1] == ["cancelled"]
    assert len(stage.fleet.events(workspace)) == 2
    return workspace, outcome


def test_when_nothing_at_all_is_found_an_old_restart_waits(stage: Stage) -> None:
    stage.add("running")
    stage.add("stopped")
    settings = stage.settings("control_plane")
    order(stage, REFUSED, ACCEPTED)
    assert restarts(stage.cycle(**settings)) == {"refused": 1, "pending": 1}
    stage.fleet.age_everything(A_MINUTE_S + CLOCK_SLACK_S)
    stage.control_plane.script.reply(state_answer("not_found"))
    assert stage.cycle(**settings).calls == []
    stage.control_plane.script.clear()
    stage.fleet.age_everything(A_MINUTE_S + CLOCK_SLACK_S)
    assert restarts(stage.cycle(**settings)) == {"accepted": 1}


def test_without_other_candidates_the_restart_of_an_absent_instance_waits(stage: Stage) -> None:
    """Its machine may run again, and the credentials lead to another account."""
    workspace = stage.add("terminated")
    order(stage, REFUSED, ACCEPTED)
    stage.cycle(**NO_BREAKER)
    stage.ec2.forget(stage.instance_of(workspace))
    for _ in range(5):
        stage.fleet.age_everything(A_MINUTE_S)
        assert restarts(stage.cycle(**NO_BREAKER)) == {"pending": 1}
    stage.add("running")
    asked = []
    for _ in range(3):
        stage.fleet.age_everything(A_MINUTE_S)
        asked.append(len(stage.cycle(**NO_BREAKER).calls))
    assert asked == [0, 0, 1]


def test_a_workspace_that_sends_heartbeats_after_its_flip_is_not_restarted_until_they_stop(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add("stopped")
    order(stage, REFUSED, ACCEPTED)
    stage.cycle()
    stage.fleet.age_everything(10 * A_MINUTE_S)
    stage.fleet.heartbeat(workspace, age_s=A_MINUTE_S - CLOCK_SLACK_S)
    outcome = stage.cycle()
    assert (outcome.calls, restarts(outcome)) == ([], {"pending": 1})
    assert [line["reason"] for line in outcome.lines("restart put off")] == ["a heartbeat came after the flip"]
    stage.fleet.age_everything(A_MINUTE_S)
    stage.fleet.heartbeat(workspace, age_s=A_MINUTE_S + CLOCK_SLACK_S)
    assert restarts(stage.cycle()) == {"accepted": 1}


def test_a_workspace_that_is_flipped_again_is_not_restarted_while_an_earlier_request_may_be_under_way(
    stage: Stage,
) -> None:
    workspace, outcome = flipped_again(stage)
    assert outcome.calls == []
    assert restarts(outcome) == {"cancelled": 1, "pending": 1}
    assert [line["reason"] for line in outcome.lines("restart cancelled")] == ["the workspace was online again"]
    assert due_in_s(stage, workspace) == about(300 - A_MINUTE_S)
    stage.fleet.age_everything(300 - A_MINUTE_S - 2 * CLOCK_SLACK_S)
    assert stage.cycle().calls == []
    stage.fleet.age_everything(3 * CLOCK_SLACK_S)
    assert restarts(stage.cycle()) == {"accepted": 1}


def test_a_workspace_that_is_flipped_with_another_instance_is_restarted_at_once(stage: Stage) -> None:
    (instance,) = stage.instances(1, "terminated")
    workspace, outcome = flipped_again(stage, instance_id=instance)
    assert [(call.workspace_id, call.expected_instance_id) for call in outcome.calls] == [(workspace, instance)]
    assert restarts(outcome) == {"cancelled": 1, "accepted": 1}


# --- whose restarts a cycle asks for ---


def test_restarts_stay_owed_without_a_platform_and_are_asked_for_once_there_is_one(stage: Stage) -> None:
    first, second = stage.add_all(2, "terminated")
    assert restarts(stage.cycle(**NO_PLATFORM)) == {"pending": 2}
    assert [one["attempts"] for one in stage.fleet.restarts()] == [0, 0]
    stage.fleet.age_everything(A_DAY_S)
    assert restarts(stage.cycle(**NO_PLATFORM)) == {"pending": 2}
    always(stage, ACCEPTED)
    with_platform = stage.cycle()
    assert {call.workspace_id for call in with_platform.calls} == {first, second}
    assert restarts(with_platform) == {"accepted": 2}


def test_a_narrowed_cycle_asks_for_the_restarts_of_the_workspaces_that_it_names(stage: Stage) -> None:
    earlier, other = stage.add_all(2, "terminated")
    stage.cycle(**NO_PLATFORM)
    own = stage.add("terminated")
    always(stage, ACCEPTED)
    narrowed = stage.cycle({"mode": "apply", "workspace_ids": [earlier, own]}, **NO_BREAKER)
    assert {call.workspace_id for call in narrowed.calls} == {earlier, own}
    assert restarts(narrowed) == {"accepted": 2, "pending": 1}
    stage.platform_is_at_work()
    full = stage.cycle(**NO_BREAKER)
    assert [call.workspace_id for call in full.calls] == [other]
    assert restarts(full) == {"accepted": 1}


def test_a_dry_run_asks_for_no_restart_and_reports_those_that_are_owed(stage: Stage) -> None:
    refused_a_while_ago(stage)
    before = stage.fleet.restarts()
    rehearsal = stage.cycle(DRY_RUN)
    assert rehearsal.calls == []
    assert restarts(rehearsal) == {"pending": 1}
    assert stage.fleet.restarts() == before


def test_a_cycle_whose_lease_ran_out_while_it_looked_asks_for_no_restart(stage: Stage) -> None:
    workspace = refused_a_while_ago(stage)
    stage.ec2.script.before(
        lambda _: stage.database.query("UPDATE reconciler.lease SET expires_at = now()"),
        action="DescribeInstances",
        nth=1,
    )
    with contextlib.suppress(LeaseLostError):
        stage.cycle()
    assert newest_restart(stage, workspace)["attempts"] == 1
    assert newest_restart(stage, workspace)["closed_at"] is None
    order(stage, ACCEPTED)
    assert restarts(stage.cycle()) == {"accepted": 1}


@pytest.mark.parametrize("state", ["running", "stopping"])
def test_a_cycle_whose_lease_ran_out_while_it_looked_leaves_every_owed_restart_as_it_is(
    stage: Stage, state: str
) -> None:
    workspace = refused_a_while_ago(stage)
    stage.ec2.set_state(stage.instance_of(workspace), state)
    stage.ec2.script.before(
        lambda _: stage.database.query("UPDATE reconciler.lease SET expires_at = now()"),
        action="DescribeInstances",
        nth=1,
    )
    before = newest_restart(stage, workspace)
    with pytest.raises(LeaseLostError):
        stage.cycle()
    assert newest_restart(stage, workspace) == before


def test_however_many_restarts_have_to_wait_the_others_have_their_turn(stage: Stage) -> None:
    settings = {**NO_BREAKER, "RESTARTS_PER_CYCLE": "1"}
    waiting = stage.add_all(MORE_THAN_LOOKED_AT, "terminated")
    assert restarts(stage.cycle(**settings, **NO_PLATFORM)) == {"pending": MORE_THAN_LOOKED_AT}
    for workspace in waiting:
        stage.ec2.set_state(stage.instance_of(workspace), "stopping")
    dead = stage.add("terminated")
    always(stage, ACCEPTED)
    assert [stage.cycle(**settings).report["restarts"]["accepted"] for _ in range(3)] == [0, 1, 0]
    assert [call.workspace_id for call in stage.platform.calls] == [dead]


# --- the database in between ---


def test_a_database_that_cuts_its_sessions_while_the_platform_is_asked_costs_no_restart(stage: Stage) -> None:
    workspace = stage.add("terminated")
    stage.platform.instead.before(lambda _: stage.database.terminate_sessions())
    order(stage, ACCEPTED)
    assert restarts(stage.cycle()) == {"accepted": 1}
    assert newest_restart(stage, workspace)["outcome"] == "accepted"


def test_answers_count_though_the_table_is_locked_before_every_restart_was_asked_for(stage: Stage) -> None:
    stage.add_all(MANY, "terminated")
    migration = stage.database.connect()

    def lock(_: RestartCall) -> None:
        migration.run("BEGIN")
        migration.run("LOCK TABLE workspaces IN ACCESS EXCLUSIVE MODE")

    stage.platform.instead.before(lock, nth=1)
    always(stage, ACCEPTED)
    stage.meanwhile.callback(migration.close)
    outcome = stage.cycle(**NO_BREAKER, CYCLE_DEADLINE_SECONDS="2")
    assert len(outcome.calls) < MANY
    assert restarts(outcome) == {"accepted": len(outcome.calls), "pending": MANY - len(outcome.calls)}


@pytest.mark.parametrize("kept_days", [29, 31])
def test_settled_restarts_are_kept_for_thirty_days_and_watched_ones_for_ever(stage: Stage, kept_days: int) -> None:
    accepted, watched, cancelled, owed = stage.add_all(4, "terminated")
    for one in (accepted, watched):
        stage.platform.instead.reply(ACCEPTED, workspace_id=one)
    always(stage, REFUSED)
    stage.cycle(**NO_BREAKER)
    stage.fleet.update(accepted, status="hibernated")
    stage.fleet.update(cancelled, status="removed")
    stage.fleet.age_everything(A_MINUTE_S)
    stage.cycle(**NO_BREAKER)
    stage.fleet.age_everything(kept_days * A_DAY_S)
    stage.cycle(**NO_BREAKER)
    kept = {one["workspace_id"] for one in stage.fleet.restarts()}
    assert kept == ({accepted, watched, cancelled, owed} if kept_days < 30 else {watched, owed})


# --- the platform's token ---


@pytest.fixture
def secret(stage: Stage, ec2: MotoEc2) -> dict[str, str | None]:
    """The settings that take the platform's token from Secrets Manager, which holds the right one."""
    return {
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": ec2.url,
        "PLATFORM_SECRET_ARN": ec2.put_secret("platform", {"token": stage.platform.token}),
        "PLATFORM_TOKEN": None,
    }


def fetches(ec2: MotoEc2) -> int:
    """Return how often a secret was fetched."""
    return sum(call.action == "GetSecretValue" for call in ec2.calls)


@pytest.mark.parametrize("count", [1, MANY], ids=["one restart", "many restarts"])
def test_a_warm_process_goes_on_in_the_cycle_that_finds_the_token_rotated(
    stage: Stage, ec2: MotoEc2, secret: dict[str, str | None], count: int
) -> None:
    always(stage, ACCEPTED)
    stage.add("terminated")
    assert restarts(stage.cycle(**secret, **NO_BREAKER)) == {"accepted": 1}
    stage.platform_is_at_work()
    stage.platform.token = "rotated"
    ec2.put_secret("platform", {"token": "rotated"})
    ec2.calls.clear()
    ec2.script.before(lambda _: threading.Event().wait(SLOW_SECRET_S), action="GetSecretValue")
    stage.add_all(count, "terminated")
    assert restarts(stage.cycle(**secret, **NO_BREAKER)) == {"accepted": count}
    assert fetches(ec2) == 1


def test_a_wrong_token_is_fetched_anew_once_and_not_for_every_restart(
    stage: Stage, ec2: MotoEc2, secret: dict[str, str | None]
) -> None:
    stage.platform.token = "another"
    stage.add_all(MANY, "terminated")
    assert restarts(stage.cycle(**secret, **NO_BREAKER)) == {"refused": MANY, "pending": MANY}
    assert fetches(ec2) == 2


def test_without_the_platforms_secret_workspaces_are_flipped_and_their_restarts_stay_owed(
    stage: Stage, ec2: MotoEc2, secret: dict[str, str | None]
) -> None:
    ec2.secrets.delete_secret(SecretId="platform", ForceDeleteWithoutRecovery=True)
    workspace = stage.add("terminated")
    outcome = stage.cycle(**secret)
    assert outcome.report["flipped"] == 1
    assert restarts(outcome) == {"pending": 1}
    assert newest_restart(stage, workspace)["attempts"] == 0
    assert [line for line in outcome.log if "PLATFORM_SECRET_ARN" in line.get("error", "")]
    always(stage, ACCEPTED)
    restored = secret | {"PLATFORM_SECRET_ARN": ec2.put_secret("platform", {"token": stage.platform.token})}
    assert restarts(stage.cycle(**restored)) == {"accepted": 1}
