"""Lambda's entry point for batches of state-change events: which messages are read, dropped and returned."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

import pytest

from handler import cycle, events, invocation
from handler.domain.report import Gauges, Report
from handler.errors import (
    ConnectionLostError,
    LeaseLostError,
    ReconcilerError,
    RequestError,
    RightsMissingError,
    SecretError,
    SettingsError,
)
from handler.request import Request
from handler.state_changes import EventResults
from sandbox.state_changes import state_change
from tests.support.state_changes import batch, message, returned
from tests.unit.builders import Log, instance, lambda_context

GOOD = state_change(instance(1))
LONG = "x" * 10_000

pytestmark = pytest.mark.usefixtures("cold_process")


@dataclass
class Cycles:
    """Stands in for the cycle."""

    results: EventResults = field(default_factory=EventResults)
    failure: Exception | None = None
    requests: list[Request] = field(default_factory=list)

    def run(self, request: Request, *_: object) -> cycle.Result:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        return cycle.Result(Report(request.mode, "ec2"), Gauges(0, 0, 0, 0, 0.0, 0.0, 0, 0.0), self.results)

    @property
    def asked(self) -> list[str]:
        """The instances that the only cycle looked at."""
        (request,) = self.requests
        return list(request.state_changes or ())


@pytest.fixture
def cycles(monkeypatch: pytest.MonkeyPatch) -> Cycles:
    cycles = Cycles()
    monkeypatch.setattr(cycle, "run", cycles.run)
    return cycles


def handle(event: Any) -> list[str]:
    return returned(events.lambda_handler(event, lambda_context()))


# --- what is no batch ---


@pytest.mark.parametrize(
    ("event", "refused"),
    [
        (None, "event"),
        ([], "event"),
        ({}, "Records"),
        (GOOD, "Records"),
        ({"mode": "apply"}, "Records"),
        ({"Records": {}}, "Records"),
        ({"Records": LONG}, "Records"),
        ({"Records": [None]}, r"Records\[0\]"),
        ({"Records": [message(GOOD), LONG]}, r"Records\[1\]"),
        ({"Records": [{}]}, r"Records\[0\]\.eventSource"),
        ({"Records": [message(GOOD) | {"eventSource": "aws:kinesis"}]}, r"Records\[0\]\.eventSource"),
        ({"Records": [message(GOOD), message(GOOD) | {"eventSource": ["aws:sqs"]}]}, r"Records\[1\]\.eventSource"),
    ],
    ids=lambda one: str(one)[:20],  # what follows in an event is random
)
def test_what_is_no_batch_of_sqs_messages_is_refused_by_its_field(cycles: Cycles, event: Any, refused: str) -> None:
    with pytest.raises(RequestError, match=rf"^event field {refused}: found .*; expected .*SQS|aws:sqs") as refusal:
        handle(event)
    assert len(str(refusal.value)) < 300
    assert cycles.requests == []


# --- what is dropped ---

DROPPED = {
    "an empty body": "",
    "no JSON": "{",
    "not a number": "NaN}",
    "a long body": LONG,
    "a deep body": "[" * 100_000,
    "a deep body that is closed": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "a huge number": "1" * 10_000,
    "null": "null",
    "a list": json.dumps([GOOD]),
    "text in JSON": json.dumps(json.dumps(GOOD)),
    "another source": json.dumps(GOOD | {"source": "aws.s3"}),
    "another kind": json.dumps(GOOD | {"detail-type": "EC2 Spot Instance Interruption Warning"}),
    "no detail": json.dumps(GOOD | {"detail": None}),
    "an id that is none": json.dumps(state_change("i-*")),
    "a long id": json.dumps(state_change(LONG)),
    "a long state in a list": json.dumps(
        state_change(instance(1)) | {"detail": {"instance-id": instance(1), "state": [LONG]}}
    ),
    "a mode": json.dumps(GOOD | {"mode": "dry-run"}),
    "a scheduled event": json.dumps({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}),
    "an event by hand": json.dumps({"mode": "apply"}),
}


@pytest.mark.parametrize("what", DROPPED)
def test_a_message_that_is_no_state_change_is_dropped_with_one_line_and_blocks_no_other(
    cycles: Cycles, log: Log, what: str
) -> None:
    assert handle({"Records": [message(DROPPED[what], "bad"), message(GOOD, "good")]}) == []
    assert cycles.asked == [instance(1)]
    (line,) = log.lines("message dropped")
    assert line["reason"].startswith("event field ")
    assert "; expected " in line["reason"]
    assert len(line["reason"]) < 300
    assert "x" * 61 not in json.dumps(line)


@pytest.mark.parametrize("body", [None, 5, ["x"], GOOD, {}], ids=["null", "number", "list", "event", "empty"])
def test_a_body_that_is_no_text_is_dropped(cycles: Cycles, log: Log, body: Any) -> None:
    assert handle({"Records": [message("") | {"body": body}, message(GOOD)]}) == []
    assert cycles.asked == [instance(1)]
    assert len(log.lines("message dropped")) == 1


def test_a_message_without_a_body_is_dropped(cycles: Cycles, log: Log) -> None:
    assert handle({"Records": [{"eventSource": "aws:sqs", "messageId": "m-1"}]}) == []
    assert (cycles.requests, len(log.lines("message dropped"))) == ([], 1)


def test_of_very_many_dropped_messages_the_first_hundred_have_a_line(cycles: Cycles, log: Log) -> None:
    assert handle(batch(*["{"] * 250)) == []
    lines = log.lines()
    assert [line["message"] for line in lines] == ["message dropped"] * 100 + ["more of the same"]
    assert (lines[-1]["what"], lines[-1]["count"], cycles.requests) == ("message dropped", 150, [])


@pytest.mark.parametrize("event", [{"Records": []}, batch("{", "null")], ids=["none", "all dropped"])
def test_without_a_good_message_there_is_no_cycle(cycles: Cycles, event: Any) -> None:
    assert handle(event) == []
    assert cycles.requests == []


# --- what is looked at ---


def test_a_batch_is_one_cycle_over_all_its_instances(cycles: Cycles) -> None:
    many = [state_change(instance(number % 50)) for number in range(100)]
    assert handle(batch(*many)) == []
    assert cycles.asked == [instance(number) for number in range(50)]


def test_the_setting_makes_it_a_dry_run(cycles: Cycles, monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: list[object] = []
    monkeypatch.setattr(invocation, "emit_event_metrics", lambda *of: emitted.append(of))
    os.environ["MODE"] = "dry-run"
    handle(batch(GOOD))
    assert ([one.mode for one in cycles.requests], emitted) == (["dry-run"], [])


def test_an_applied_cycle_emits_its_own_metrics_and_no_others(
    cycles: Cycles, capsys: pytest.CaptureFixture[str]
) -> None:
    cycles.results = EventResults(latencies_s=(1.5, 2.25))
    handle(batch(GOOD))
    (line,) = [json.loads(one) for one in capsys.readouterr().out.splitlines() if "_aws" in one]
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert {one["Name"]: one["Unit"] for one in directive["Metrics"]} == {
        "EventFlips": "Count",
        "DetectionLatency": "Milliseconds",
    }
    assert (line["EventFlips"], line["DetectionLatency"]) == ([0.0], [1500.0, 2250.0])


@pytest.mark.parametrize(("flips", "records"), [(0, [0]), (1, [1]), (99, [99]), (100, [99, 1]), (500, [99] * 5 + [5])])
def test_no_record_has_more_latencies_than_cloudwatch_takes(
    cycles: Cycles, capsys: pytest.CaptureFixture[str], flips: int, records: list[int]
) -> None:
    cycles.results = EventResults(latencies_s=(1.0,) * flips)
    handle(batch(GOOD))
    lines = [json.loads(one) for one in capsys.readouterr().out.splitlines() if "_aws" in one]
    assert [len(line.get("DetectionLatency", ())) for line in lines] == records
    assert ["EventFlips" in line for line in lines] == [True] + [False] * (len(records) - 1)


# --- what is returned ---


def test_the_messages_about_an_instance_that_was_not_judged_are_returned(cycles: Cycles) -> None:
    cycles.results = EventResults(unjudged=frozenset({instance(2)}))
    events_of = [state_change(instance(number)) for number in (1, 2, 3, 2)]
    assert handle(batch(*events_of)) == ["m-2", "m-4"]


FAILURES = [ConnectionLostError("gone"), SecretError("gone"), LeaseLostError("over"), RightsMissingError("UPDATE")]


@pytest.mark.parametrize("error", FAILURES, ids=lambda one: type(one).__name__)
def test_a_cycle_that_cannot_be_run_returns_every_good_message_and_logs_once(
    cycles: Cycles, log: Log, error: ReconcilerError
) -> None:
    cycles.failure = error
    assert handle(batch(GOOD, "{", state_change(instance(2)))) == ["m-1", "m-3"]
    (line,) = log.lines("messages returned")
    assert (line["reason"], line["error"], line["count"]) == (type(error).__name__, str(error), 2)


def test_a_wrong_setting_raises(cycles: Cycles) -> None:
    os.environ["PROBE"] = "x"
    with pytest.raises(SettingsError, match=r"^PROBE"):
        handle(batch(GOOD))
    del os.environ["PROBE"]
    cycles.failure = SettingsError("DATABASE_CA_FILE: not a file")
    with pytest.raises(SettingsError, match=r"^DATABASE_CA_FILE"):
        handle(batch(GOOD))


def test_a_defect_raises(cycles: Cycles) -> None:
    cycles.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        handle(batch(GOOD))


@pytest.mark.parametrize("message_id", [None, "", 5, ["m"], {}], ids=str)
def test_a_good_message_without_an_id_is_used_though_it_cannot_be_returned(cycles: Cycles, message_id: Any) -> None:
    cycles.failure = ConnectionLostError("gone")
    nameless = {**message(GOOD), "messageId": message_id}
    assert handle({"Records": [nameless, message(state_change(instance(2)), "m-2")]}) == ["m-2"]
    assert cycles.asked == [instance(1), instance(2)]


def test_an_id_is_returned_once(cycles: Cycles) -> None:
    cycles.failure = ConnectionLostError("gone")
    assert handle({"Records": [message(GOOD, "m"), message(GOOD, "m")]}) == ["m"]
