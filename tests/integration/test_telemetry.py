"""What a cycle logs: a line for each decision that matters, every metric every time, and no secret."""

import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from handler.errors import ReconcilerError
from handler.telemetry import LOG_KEYS
from sandbox.control_plane import state_answer
from sandbox.http_server import Answer, Drip, HttpStandIn, Raw, Reply, Request, Reset
from sandbox.limited_ec2 import ApiError
from sandbox.postgres import PostgresServer
from tests.support.events import APPLY, DRY_RUN, SCHEDULED
from tests.support.stage import Outcome, Stage, opened

ROOT = Path(__file__).parents[2]
MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
EVERY_LINE_S_KEYS = {
    *("level", "location", "message", "timestamp", "service", "cycle_id", "mode"),
    *("cold_start", "function_name", "function_memory_size", "function_arn", "function_request_id"),
}

COUNT, MILLISECONDS, SECONDS = "Count", "Milliseconds", "Seconds"
METRICS = {
    **dict.fromkeys(("CycleCompleted", "AlreadyRunning", "Candidates", "Checked", "Dead", "Unknown"), COUNT),
    **dict.fromkeys(
        (
            "Impaired",
            "Flipped",
            "Adopted",
            "Unrecorded",
            "OfflineUnowed",
            "SkippedFlips",
            "FlipErrors",
            "Deferred",
            "BreakerOpen",
            "DeadlineHit",
        ),
        COUNT,
    ),
    **dict.fromkeys(("RestartsAccepted", "RestartsPending", "RestartsBlocked", "RestartsBackingOff"), COUNT),
    **dict.fromkeys(("RestartsUnrecovered", "OnHold"), COUNT),
    "CycleDuration": MILLISECONDS,
    "CoverageAge": SECONDS,
    "OldestDoubtAge": SECONDS,
    "OldestRestartAge": SECONDS,
}


# --- lines ---


def eventful_cycles(stage: Stage) -> Iterator[Outcome]:
    """Run cycles in which everything happens that a cycle may log."""
    script, platform = stage.control_plane.script, stage.platform.instead
    stage.add_all(5, "running")
    _, refused, blocked, uncertain = stage.add_all(4, "terminated")
    stage.add(None)
    moved, locked, beating = stage.add_all(3, "terminated")
    alive_again = stage.add("terminated")
    stage.fleet.heartbeat(beating)
    script.reply(state_answer("running"), nth=2, workspace_id=alive_again)
    script.before(lambda _: stage.fleet.update(moved, status="paused"), nth=1, workspace_id=moved)
    script.reply(Answer(404), workspace_id=stage.add("running"))
    platform.clear()
    for workspace, answer in ((refused, Answer(503)), (blocked, Answer(409)), (uncertain, Reset())):
        platform.reply(answer, workspace_id=workspace)
    platform.reply(Answer(body=b"{}"))
    settings = stage.settings("control_plane") | MOSTLY_DEAD
    yield stage.cycle(DRY_RUN, **settings)
    with stage.fleet.locked(locked):
        yield stage.cycle(**settings)
    stage.fleet.age_everything(400)
    stage.fleet.update(refused, status="online")
    yield stage.cycle(**settings | {"BREAKER_MAX_DEAD_FRACTION": "0", "BREAKER_MIN_DEAD": "1"})
    stage.database.query(
        "INSERT INTO reconciler.lease (scope, holder, expires_at)"
        " VALUES ('fleet', gen_random_uuid(), now() + interval '10 minutes')"
    )
    yield stage.cycle(**settings)


def test_every_line_is_json_with_the_same_keys_and_no_others_than_those_that_queries_rest_on(stage: Stage) -> None:
    keys_of: dict[str, set[frozenset[str]]] = {}
    for outcome in eventful_cycles(stage):
        for line in outcome.log:
            if "_aws" not in line:
                assert line.keys() >= EVERY_LINE_S_KEYS
                assert line.keys() - EVERY_LINE_S_KEYS <= set(LOG_KEYS)
                keys_of.setdefault(line["message"], set()).add(frozenset(line))
    assert {message: len(keys) for message, keys in keys_of.items()} == dict.fromkeys(keys_of, 1)
    told = {
        *("workspace flipped", "would flip", "flip skipped", "instance unknown", "instance absent", "breaker open"),
        *("restart accepted", "restart refused", "restart blocked", "restart uncertain", "restart cancelled"),
        "cycle finished",
    }
    assert told <= keys_of.keys()


def test_each_decision_names_the_workspace_the_instance_and_the_reason(stage: Stage) -> None:
    decisions = [
        line
        for outcome in eventful_cycles(stage)
        for line in outcome.log
        if line.get("message", "").startswith(("workspace flipped", "would flip", "flip skipped", "restart "))
    ]
    instance_of = {one: stage.instance_of(one) for one in stage.fleet.statuses()}
    assert len(decisions) > 10
    for line in decisions:
        assert line["instance_id"] == instance_of[line["workspace_id"]]
        assert line["reason"]


def test_the_lines_of_a_cycle_can_be_found_by_its_id_and_say_which_invocation_it_was(stage: Stage) -> None:
    stage.add("terminated")
    first, second = stage.cycle(**MOSTLY_DEAD), stage.cycle(**MOSTLY_DEAD)
    ids = [
        {(line["cycle_id"], line["function_request_id"]) for line in one.log if "_aws" not in line}
        for one in (first, second)
    ]
    assert [len(one) for one in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert first.after.events[0]["payload"]["cycle_id"] == first.lines("workspace flipped")[0]["cycle_id"]


def test_a_dead_control_plane_gets_a_hundred_log_lines_and_then_one_for_each_cause(stage: Stage) -> None:
    causes = {"http_404": Answer(404), "not_json": Answer(body=b"<html>")}
    expected: Counter[str] = Counter()
    for number, one in enumerate(stage.add_all(300, "running")):
        cause = "http_404" if number % 3 else "not_json"
        expected[cause] += 1
        stage.control_plane.script.reply(causes[cause], workspace_id=one)
    outcome = stage.cycle(**stage.settings("control_plane"))
    lines, more = outcome.lines("instance unknown"), outcome.lines("more of the same")
    assert outcome.report["unknown"] == 300
    assert len(lines) == 100
    told = Counter(line["reason"] for line in lines)
    assert told + Counter({line["reason"]: line["count"] for line in more}) == expected
    assert {line["what"] for line in more} == {"instance unknown"}
    assert len(more) == len({line["reason"] for line in more})
    assert len(outcome.log) < 110


# --- metrics ---


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """Return the values of the only line of metrics, after checking its format."""
    (line,) = outcome.metrics()
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["service"]]
    assert line["service"] == "instance-state-reconciler"
    assert {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]} == METRICS
    assert line.keys() == {"_aws", "service", *METRICS}
    return {name: value for name in METRICS for value in line[name]}


def test_a_cycle_without_anything_to_do_emits_every_metric_all_the_same(stage: Stage) -> None:
    outcome = stage.cycle(SCHEDULED)
    metrics = metrics_of(outcome)
    assert metrics.pop("CycleCompleted") == 1
    assert metrics.pop("CycleDuration") == outcome.report["duration_ms"]
    assert metrics.pop("CoverageAge") < 1
    assert set(metrics.values()) == {0}


def test_the_metrics_say_what_the_report_says(stage: Stage) -> None:
    _, outcome, breaker_open, already_running = eventful_cycles(stage)
    report, metrics = outcome.report, metrics_of(outcome)
    assert report["flipped"] > 0
    expected = {
        "Candidates": report["candidates"],
        "Checked": report["checked"],
        "Dead": report["dead"],
        "Unknown": report["unknown"],
        "Impaired": report["impaired"],
        "Flipped": report["flipped"],
        "Adopted": report["adopted"],
        "OldestDoubtAge": report["oldest_doubt_seconds"],
        "Unrecorded": report["unrecorded"],
        "OfflineUnowed": report["offline_unowed"],
        "SkippedFlips": sum(report["skipped"].values()),
        "Deferred": 0,
        "BreakerOpen": 0,
        "DeadlineHit": 0,
        "CycleCompleted": 1,
        "AlreadyRunning": 0,
        "RestartsAccepted": report["restarts"]["accepted"],
        "RestartsPending": report["restarts"]["pending"],
        "RestartsBlocked": 1,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics_of(breaker_open)["BreakerOpen"] == 1
    overlapped = metrics_of(already_running)
    assert (overlapped["CycleCompleted"], overlapped["AlreadyRunning"], overlapped["Candidates"]) == (0, 1, 0)
    assert overlapped["RestartsPending"] == already_running.report["restarts"]["pending"] > 0


QUIET: Mapping[str, Any] = {
    "a dry run": DRY_RUN,
    "a cycle with a limit": {"mode": "apply", "limit": 5},
    "a cycle over some workspaces": {"mode": "apply", "workspace_ids": ["00000000-0000-4000-8000-000000000001"]},
}


@pytest.mark.parametrize("event", QUIET.values(), ids=QUIET.keys())
def test_alarms_judge_full_applied_cycles_only(stage: Stage, event: Any) -> None:
    stage.add("running")
    assert stage.cycle(event).metrics() == []
    assert stage.cycle(APPLY, MODE="dry-run").metrics() == []


def test_restarts_that_wait_for_a_paused_ancestor_do_not_make_the_oldest_one_older(stage: Stage) -> None:
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(409), workspace_id=stage.add("terminated"))
    stage.cycle(**MOSTLY_DEAD)
    stage.fleet.age_everything(1_000)
    stage.platform.instead.reply(Answer(503), workspace_id=stage.add("terminated"))
    young = metrics_of(stage.cycle(**MOSTLY_DEAD))
    assert (young["RestartsPending"], young["RestartsBlocked"]) == (2, 1)
    assert young["OldestRestartAge"] < 100
    stage.fleet.age_everything(500)
    old = metrics_of(stage.cycle(**MOSTLY_DEAD))
    assert 500 <= old["OldestRestartAge"] < 600


# --- nothing secret ---

CANARY = "canary"
SECRETS = {
    "CP_SHARED_SECRET": "canary-cp-shared-secret",
    "CP_ADMIN_TOKEN": "canary-cp-admin-token",
    "PLATFORM_TOKEN": "canary-platform-token",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-secret-key",
    "AWS_SESSION_TOKEN": "canary-aws-session-token",
}
BODY = b'{"error": "canary-body", "state": 7, "token": "canary-token"}'
HEADERS = {"X-Canary": "canary-header", "Set-Cookie": "session=canary-cookie", "Retry-After": "canary-time"}
ANSWERS: list[Reply] = [
    Answer(body=BODY, headers=HEADERS),
    Answer(body=b'{"state": "canary-state"}', headers=HEADERS),
    Answer(body=b'{"state": "running", "canary-key": ' + b'"canary-long"' * 10_000 + b"}"),
    *(Answer(status, BODY, HEADERS) for status in (400, 401, 403, 404, 409, 429, 500, 503)),
    Answer(302, BODY, HEADERS | {"Location": "http://127.0.0.1:1/canary-redirect"}),
    Answer(body=b"\xff canary-bytes", headers={"Content-Encoding": "canary-encoding"}),
    Raw(b"HTTP/1.1 200 canary-phrase\r\ncanary-broken-header\r\nContent-Length: 9\r\n\r\ncanary-9"),
    Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ncanary-chunk\r\n"),
    Raw(b"HTTP/1.1 200 OK\r\nContent-Length: canary-length\r\n\r\n{}"),
    Raw(b"HTTP/1.1 canary-status OK\r\n\r\n"),
    Raw(b"canary-no-http\r\n\r\n"),
    Drip(b"HTTP/1.1 200 OK\r\nX-Canary: canary\r\nContent-Length: 99\r\n\r\ncanary-unfinished", b""),
]


# Lambda's runtime prints what libraries log, too, down to the level that the stack asks for.
LIKE_LAMBDA = """
import logging, os, sys
from sandbox.invoke import main
logging.basicConfig(stream=sys.stderr, level=os.environ["AWS_LAMBDA_LOG_LEVEL"])
logging.getLogger("witness").debug("libraries log at DEBUG")
sys.exit(main(sys.argv[1:]))
"""
DEBUG = {"POWERTOOLS_LOG_LEVEL": "DEBUG", "AWS_LAMBDA_LOG_LEVEL": "DEBUG"}


def printed(event: Any, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run an invocation at DEBUG in a process of its own; return its exit code and all that it wrote anywhere."""
    done = subprocess.run(
        [sys.executable, "-c", LIKE_LAMBDA, "-", "--report", "/dev/stdout"],
        input=json.dumps(event),
        env={"PATH": os.environ["PATH"], **environment, **DEBUG},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "libraries log at DEBUG" in done.stderr
    return done.returncode, done.stdout + done.stderr


def assert_secret_free(text: str) -> None:
    """Fail if a canary is in the text; show what is around it."""
    found = [text[max(0, at - 200) : at + 60] for at in range(len(text)) if text.lower().startswith(CANARY, at)]
    assert found == []


@pytest.fixture
def secretive(postgres: PostgresServer) -> Iterator[Stage]:
    """A separate stage. Its systems use the secrets above, and its database's errors contain data."""
    with opened(postgres) as stage:
        stage.control_plane.shared_secret = SECRETS["CP_SHARED_SECRET"]
        stage.control_plane.admin_token = SECRETS["CP_ADMIN_TOKEN"]
        stage.platform.token = SECRETS["PLATFORM_TOKEN"]
        stage.platform.instead.clear()
        stage.invoke.environment |= MOSTLY_DEAD | SECRETS
        yield stage


def refuse_events(stage: Stage) -> None:
    """Make the database refuse every event, with a detail and a hint that must not be logged."""
    stage.database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'no events today' USING DETAIL = 'canary-detail', HINT = 'canary-hint'; END $$"
    )
    stage.database.query("CREATE TRIGGER refuse BEFORE INSERT ON structure_events EXECUTE FUNCTION refuse()")


def test_no_secret_and_nothing_that_a_control_plane_or_a_platform_says_is_printed(secretive: Stage) -> None:
    for answer in ANSWERS:
        secretive.control_plane.script.reply(answer, workspace_id=secretive.add("running"))
        secretive.platform.instead.reply(answer, workspace_id=secretive.add("terminated"))
    environment = secretive.invoke.environment | secretive.settings("control_plane")
    code, text = printed(APPLY, environment)
    assert (code, text.count('"instance unknown"'), text.count('"workspace flipped"')) == (0, *[len(ANSWERS)] * 2)
    assert_secret_free(text)


def test_no_secret_and_nothing_that_aws_or_the_database_says_in_detail_is_printed(secretive: Stage) -> None:
    secretive.add("terminated")
    refuse_events(secretive)
    errors = iter([ApiError("Canary.Code1", "canary-message", status).as_answer() for status in (400, 403, 500)])
    bodies = [Answer(body=body, headers=HEADERS) for body in (b"canary-no-xml", b"<canary>")]
    secretive.ec2.script.reply(lambda _: next(errors, None), action="DescribeAvailabilityZones")
    for number, answer in enumerate(bodies, start=1):
        secretive.ec2.script.reply(answer, nth=number, action="DescribeInstances")
    code, text = printed(APPLY, secretive.invoke.environment)
    assert code == 0
    assert_secret_free(text)
    secretive.ec2.script.clear()
    code, text = printed(APPLY, secretive.invoke.environment)
    assert (code, text.count("reconfirm_error") > 0, "no events today" in text) == (0, True, True)
    assert_secret_free(text)


class SecretsManager(HttpStandIn):
    """Answers every request for a secret with the same body."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        super().__init__()
        self._answer = Answer(status, body, {"Content-Type": "application/x-amz-json-1.1"})

    def handle(self, _: Request) -> Reply:
        return self._answer


def with_secret(text: str) -> bytes:
    return json.dumps({"ARN": "arn", "SecretString": text}).encode()


BAD_SECRETS: Mapping[str, tuple[bytes, int]] = {
    "refused": (b'{"__type": "AccessDeniedException", "message": "canary-message"}', 400),
    "an error with an odd code": (b'{"__type": "canary code", "Message": "canary-message"}', 400),
    "no answer of AWS's": (b"canary-garbage", 200),
    "not JSON": (with_secret("canary-password"), 200),
    "a list": (with_secret('["canary-password"]'), 200),
    "fields of the wrong kind": (with_secret('{"shared_secret": {"canary": 1}, "username": ["canary"]}'), 200),
    "a token that cannot be sent": (with_secret('{"shared_secret": "canary\\nX: 1", "username": "canary-user"}'), 200),
}


@pytest.mark.parametrize("variable", ["CP_SECRET_ARN", "DATABASE_SECRET_ARN"])
@pytest.mark.parametrize("answer", BAD_SECRETS.values(), ids=BAD_SECRETS.keys())
def test_an_error_about_a_secret_names_the_variable_and_nothing_of_the_secret(
    stage: Stage, caplog: pytest.LogCaptureFixture, variable: str, answer: tuple[bytes, int]
) -> None:
    without = {"CP_SHARED_SECRET": None, "CP_ADMIN_TOKEN": None}
    if variable == "DATABASE_SECRET_ARN":
        without = {"DATABASE_URL": None}
    settings = stage.settings("control_plane") | {variable: "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x"}
    with SecretsManager(*answer) as service, pytest.raises(ReconcilerError) as raised:
        stage.invoke(**settings | {"AWS_ENDPOINT_URL_SECRETS_MANAGER": service.url} | without)
    assert variable in str(raised.value)
    assert_secret_free("".join(traceback.format_exception(raised.value)) + caplog.text)
