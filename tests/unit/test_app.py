"""Lambda's entry point: what happens before and after a cycle."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from handler import app, cycle, invocation, process
from handler.deadline import Deadline
from handler.domain.report import Flip, Gauges, Outcome, Report, RestartCounts
from handler.errors import ConnectionLostError, RequestError, SettingsError
from handler.probes.control_plane.probe import ControlPlaneProbe
from handler.probes.ec2.probe import Ec2Probe
from handler.process import seconds_for
from handler.request import Request
from handler.restarts.platform import HttpPlatform
from handler.settings import Settings
from handler.telemetry import logger
from tests.unit.builders import Log, instance, lambda_context, uuid

SCHEDULED = {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": "{}"}

pytestmark = pytest.mark.usefixtures("cold_process")


@dataclass
class Cycles:
    """Stands in for the cycle, and records what it was run with."""

    report: Report = field(default_factory=lambda: Report("apply", "ec2"))
    failure: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    settings: list[Settings] = field(default_factory=list)
    deadlines: list[Deadline] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parts: list[cycle.Parts] = field(default_factory=list)

    def run(self, request: Request, settings: Settings, parts: cycle.Parts, deadline: Deadline) -> cycle.Result:
        logger.info("the cycle runs")
        self.requests.append(request)
        self.parts.append(parts)
        self.settings.append(settings)
        self.deadlines.append(deadline)
        self.seconds.append(deadline.remaining())
        if self.failure is not None:
            raise self.failure
        return cycle.Result(self.report, Gauges(0, 0, 0, 0, 0.0, 0.0, 0, 0.0))


@pytest.fixture
def cycles(monkeypatch: pytest.MonkeyPatch) -> Cycles:
    cycles = Cycles()
    monkeypatch.setattr(cycle, "run", cycles.run)
    return cycles


# --- the time for a cycle ---


@pytest.mark.parametrize(
    ("setting_s", "left_s", "expected_s"),
    [
        pytest.param(45, 60, 45, id="Lambda leaves more than the setting"),
        pytest.param(45, 48, 45, id="Lambda leaves just enough"),
        pytest.param(45, 30, 27, id="Lambda leaves less, and needs a reserve"),
        pytest.param(45, 3, 0, id="Lambda leaves the reserve only"),
        pytest.param(45, 1, 0, id="Lambda leaves less than the reserve"),
        pytest.param(45, -5, 0, id="Lambda leaves nothing"),
    ],
)
def test_a_cycle_has_the_settings_time_or_what_lambda_leaves(
    setting_s: float, left_s: float, expected_s: float
) -> None:
    assert seconds_for(setting_s, lambda_context(left_s)) == expected_s


@pytest.mark.parametrize("without", [None, SimpleNamespace(aws_request_id="r")], ids=["no context", "no clock in it"])
def test_without_lambdas_clock_a_cycle_has_the_settings_time(without: Any) -> None:
    assert seconds_for(45, without) == 45


def test_the_cycle_gets_that_time(cycles: Cycles) -> None:
    app.lambda_handler({}, lambda_context(30))
    assert cycles.seconds[0] == pytest.approx(27, abs=0.5)


# --- refusals ---


@pytest.mark.parametrize("event", [None, [], {"mode": "x"}, {"shard": 0}, {"source": "aws.ec2"}], ids=str)
def test_a_bad_event_is_refused_before_the_cycle(cycles: Cycles, event: Any) -> None:
    with pytest.raises(RequestError, match=r"^event"):
        app.lambda_handler(event, lambda_context())
    assert cycles.requests == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROBE", "x"),
        ("DATABASE_URL", ""),
        ("CYCLE_DEADLINE_SECONDS", "0"),
        pytest.param("AWS_REGION", "", id="no Region to ask EC2 in"),
    ],
)
def test_a_bad_environment_is_refused_before_the_cycle(cycles: Cycles, name: str, value: str) -> None:
    os.environ[name] = value
    for _ in range(2):  # and no half-made process stays warm
        with pytest.raises(SettingsError, match=rf"^{name}"):
            app.lambda_handler({}, lambda_context())
    assert cycles.requests == []


def test_the_control_plane_needs_no_region(cycles: Cycles) -> None:
    os.environ.update({"AWS_REGION": "", "PROBE": "control_plane", "CP_BASE_URL": "https://cp.example"})
    app.lambda_handler({}, lambda_context())
    assert len(cycles.requests) == 1


def test_under_the_ceiling_a_scheduled_event_is_a_dry_run(cycles: Cycles) -> None:
    os.environ["MODE"] = "dry-run"
    app.lambda_handler(SCHEDULED, lambda_context())
    assert [request.mode for request in cycles.requests] == ["dry-run"]


# --- what a cycle gets ---


@pytest.mark.parametrize(("probe", "kind"), [("ec2", Ec2Probe), ("control_plane", ControlPlaneProbe)])
def test_the_cycle_gets_the_probe_of_the_setting(cycles: Cycles, probe: str, kind: type) -> None:
    os.environ.update({"PROBE": probe, "CP_BASE_URL": "https://cp.example", "CP_SHARED_SECRET": "one"})
    app.lambda_handler({}, lambda_context())
    assert isinstance(cycles.parts[0].probe(Deadline(10)), kind)


def test_the_cycle_gets_the_platform_of_the_setting(cycles: Cycles) -> None:
    os.environ.update({"PLATFORM_BASE_URL": "https://platform.example", "PLATFORM_TOKEN": "one"})
    app.lambda_handler({}, lambda_context())
    platform = cycles.parts[0].platform
    assert platform is not None
    assert isinstance(platform(Deadline(10)), HttpPlatform)


def test_without_an_address_there_is_no_platform(cycles: Cycles) -> None:
    app.lambda_handler({}, lambda_context())
    assert cycles.parts[0].platform is None


# --- the answer ---


def test_the_answer_is_the_report_as_json(cycles: Cycles) -> None:
    cycles.report = Report("apply", "ec2", candidates=6, flips=(Flip(uuid(1), instance(1), "stopped"),))
    answer = json.loads(json.dumps(app.lambda_handler({"mode": "apply"}, lambda_context())))
    assert (answer["mode"], answer["probe"], answer["outcome"], answer["candidates"]) == (
        "apply",
        "ec2",
        "completed",
        6,
    )
    assert answer["flips"] == [{"workspace_id": uuid(1), "instance_id": instance(1), "instance_state": "stopped"}]
    assert answer["restarts"] == asdict(RestartCounts())
    assert answer.keys() == {field.name for field in fields(Report)}
    assert answer["duration_ms"] >= 0


def test_the_answer_lists_the_first_hundred_flips(cycles: Cycles) -> None:
    flips = tuple(Flip(uuid(number), instance(number), "stopped") for number in range(150))
    cycles.report = Report("apply", "ec2", flipped=150, flips=flips)
    answer = app.lambda_handler({"mode": "apply"}, lambda_context())
    assert [one["workspace_id"] for one in answer["flips"]] == [uuid(number) for number in range(100)]
    assert answer["flipped"] == 150


def test_a_flip_is_marked_only_if_it_was_adopted_or_blocked(cycles: Cycles) -> None:
    flips = (
        Flip(uuid(1), instance(1), "stopped"),
        Flip(uuid(2), instance(2), "stopped", adopted=True),
        Flip(uuid(3), instance(3), "stopped", blocked=True),
    )
    cycles.report = Report("apply", "ec2", flips=flips)
    answer = app.lambda_handler({"mode": "apply"}, lambda_context())
    marks = [{key: value for key, value in flip.items() if value is True} for flip in answer["flips"]]
    assert marks == [{}, {"adopted": True}, {"blocked": True}]
    assert all(value is not False for flip in answer["flips"] for value in flip.values())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """Return the reports that metrics are emitted for."""
    reports: list[Report] = []
    monkeypatch.setattr(invocation, "emit_metrics", lambda report, _: reports.append(report))
    return reports


@pytest.mark.parametrize(
    ("event", "emitted"),
    [
        pytest.param(SCHEDULED, True, id="a scheduled event"),
        pytest.param({"mode": "apply"}, True, id="a full cycle by hand"),
        pytest.param({"mode": "apply", "override_breaker": True}, True, id="a full cycle without the breaker"),
        pytest.param({"mode": "apply", "limit": 5}, False, id="a limit"),
        pytest.param({"mode": "apply", "workspace_ids": [uuid(1)]}, False, id="chosen workspaces"),
        pytest.param({}, False, id="a dry run"),
    ],
)
def test_only_full_applied_cycles_emit_metrics(
    cycles: Cycles, measured: list[Report], event: dict[str, Any], emitted: bool
) -> None:
    app.lambda_handler(event, lambda_context())
    assert [replace(report, duration_ms=0) for report in measured] == ([cycles.report] if emitted else [])


@pytest.mark.parametrize(("event", "emitted"), [(SCHEDULED, [2]), ({"mode": "apply"}, []), ({}, [])])
def test_under_the_ceiling_only_the_schedule_says_how_many_it_would_flip(
    cycles: Cycles, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any], emitted: list[int]
) -> None:
    said: list[int] = []
    monkeypatch.setattr(invocation, "emit_would_flip", lambda report: said.append(len(report.flips)))
    monkeypatch.setenv("MODE", "dry-run")
    flips = (Flip(uuid(1), "i-1", "stopped"), Flip(uuid(2), "i-2", "stopped", adopted=True))
    cycles.report = Report("dry-run", "ec2", flips=flips)
    app.lambda_handler(event, lambda_context())
    assert said == emitted


def test_a_cycle_beside_another_one_emits_metrics_too(cycles: Cycles, measured: list[Report]) -> None:
    cycles.report = Report("apply", "ec2", outcome=Outcome.ALREADY_RUNNING)
    assert app.lambda_handler(SCHEDULED, lambda_context())["outcome"] == "already_running"
    assert len(measured) == 1


def test_a_cycle_that_cannot_be_run_is_an_error_without_metrics(cycles: Cycles, measured: list[Report]) -> None:
    cycles.failure = ConnectionLostError("no connection to the database")
    with pytest.raises(ConnectionLostError):
        app.lambda_handler(SCHEDULED, lambda_context())
    assert measured == []


# --- from one invocation to the next ---


@pytest.mark.parametrize("failure", [None, ConnectionLostError("gone")], ids=["it ended well", "it failed"])
def test_nothing_acts_after_its_cycle(cycles: Cycles, failure: Exception | None) -> None:
    cycles.failure = failure
    with contextlib.suppress(ConnectionLostError):
        app.lambda_handler(SCHEDULED, lambda_context())
    (deadline,) = cycles.deadlines
    assert deadline.over()
    assert deadline.within(10).over()


def kept_after(*changes: Callable[[], object]) -> list[process.Process | None]:
    """Return what stays warm after a first invocation, and after one more that follows each change."""
    kept = []
    for change in (lambda: None, *changes):
        change()
        app.lambda_handler({}, lambda_context())
        kept.append(process._process)  # noqa: SLF001 - asking for it would make it
    return kept


@pytest.mark.usefixtures("cycles")
def test_lambdas_trace_id_leaves_the_process_warm() -> None:
    first, second = kept_after(lambda: os.environ.update({"_X_AMZN_TRACE_ID": "Root=1-2"}))
    assert first is second is not None


def test_another_environment_makes_the_process_anew(cycles: Cycles) -> None:
    first, second = kept_after(lambda: os.environ.update({"PROBE_TIMEOUT_SECONDS": "7"}))
    assert first is not second
    assert [one.probe_timeout_seconds for one in cycles.settings] == [10, 7]


def test_each_cycle_logs_an_id_of_its_own(cycles: Cycles, log: Log) -> None:
    app.lambda_handler({}, lambda_context(request_id="r-1"))
    app.lambda_handler({"mode": "apply"}, lambda_context(request_id="r-2"))
    assert len(cycles.requests) == 2
    first, second = log.lines("the cycle runs")
    assert [(one["mode"], one["function_request_id"]) for one in (first, second)] == [
        ("dry-run", "r-1"),
        ("apply", "r-2"),
    ]
    assert first["cycle_id"] != second["cycle_id"]


def test_no_key_of_a_cycle_stays_for_the_next_one(cycles: Cycles, log: Log) -> None:
    app.lambda_handler({}, lambda_context())
    cycles.failure = ConnectionLostError("gone")
    with pytest.raises(ConnectionLostError):
        app.lambda_handler({"mode": "apply"}, lambda_context())
    log.lines()
    with pytest.raises(RequestError):
        app.lambda_handler({"mode": "x"}, lambda_context())
    logger.info("afterwards")
    (line,) = log.lines("afterwards")
    assert not {"cycle_id", "mode"} & line.keys()
