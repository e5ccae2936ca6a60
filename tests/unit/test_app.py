"""Lambda's door: what happens before and after a cycle."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from handler import app, cycle
from handler.deadline import Deadline
from handler.domain.report import Flip, Gauges, Report
from handler.errors import ConnectionLostError, RequestError, SettingsError
from handler.probes.control_plane.probe import ControlPlaneProbe
from handler.probes.ec2.probe import Ec2Probe
from handler.process import seconds_for
from handler.request import Request
from handler.restarts.platform import HttpPlatform
from handler.settings import Settings
from handler.telemetry import logger
from tests.unit.builders import instance, uuid

SCHEDULED = {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": "{}"}
ENVIRONMENT = {"DATABASE_URL": "postgresql://u:s3cret@db.example/n", "AWS_REGION": "eu-central-1"}


def context(seconds_left: float, request_id: str = "r-1") -> Any:
    return SimpleNamespace(get_remaining_time_in_millis=lambda: seconds_left * 1000, aws_request_id=request_id)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with a cold process in which nothing but the least is set, and leave no key to the log lines of others."""
    monkeypatch.setattr(os, "environ", dict(ENVIRONMENT))
    monkeypatch.setattr(app, "_warm", None)
    yield
    logger.remove_keys(["cycle_id", "mode", "function_request_id"])


@dataclass
class Cycles:
    """Stands in for the cycle, and notes with what it was run."""

    report: Report = field(default_factory=lambda: Report("apply", "ec2"))
    trouble: Exception | None = None
    orders: list[Request] = field(default_factory=list)
    settings: list[Settings] = field(default_factory=list)
    deadlines: list[Deadline] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parts: list[cycle.Parts] = field(default_factory=list)

    def run(self, order: Request, settings: Settings, parts: cycle.Parts, deadline: Deadline) -> tuple[Report, Gauges]:
        self.orders.append(order)
        self.parts.append(parts)
        self.settings.append(settings)
        self.deadlines.append(deadline)
        self.seconds.append(deadline.remaining())
        if self.trouble is not None:
            raise self.trouble
        return self.report, Gauges(0, 0, 0, 0, 0.0, 0.0, 0)


@pytest.fixture
def cycles(monkeypatch: pytest.MonkeyPatch) -> Cycles:
    cycles = Cycles()
    monkeypatch.setattr(cycle, "run", cycles.run)
    return cycles


# --- the time for a cycle ---


def settings(seconds: float) -> Settings:
    return Settings.from_env(ENVIRONMENT | {"CYCLE_DEADLINE_SECONDS": str(seconds)})


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
def test_a_cycle_has_the_time_of_the_setting_or_what_lambda_leaves_less_a_reserve(
    setting_s: float, left_s: float, expected_s: float
) -> None:
    assert seconds_for(setting_s, context(left_s)) == expected_s


@pytest.mark.parametrize("without", [None, SimpleNamespace(aws_request_id="r")], ids=["no context", "no clock in it"])
def test_without_lambdas_clock_a_cycle_has_the_time_of_the_setting(without: Any) -> None:
    assert seconds_for(45, without) == 45


def test_the_cycle_gets_that_time(cycles: Cycles) -> None:
    app.lambda_handler({}, context(30))
    assert cycles.seconds[0] == pytest.approx(27, abs=0.5)


# --- what is refused ---


@pytest.mark.parametrize("event", [None, [], {"mode": "x"}, {"shard": 0}, {"source": "aws.ec2"}], ids=str)
def test_an_event_that_is_not_understood_is_refused_before_the_cycle(cycles: Cycles, event: Any) -> None:
    with pytest.raises(RequestError, match=r"^event"):
        app.lambda_handler(event, context(60))
    assert cycles.orders == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROBE", "x"),
        ("DATABASE_URL", ""),
        ("CYCLE_DEADLINE_SECONDS", "0"),
        pytest.param("AWS_REGION", "", id="no Region to ask EC2 in"),
    ],
)
def test_an_environment_that_is_not_understood_is_refused_before_the_cycle(
    cycles: Cycles, name: str, value: str
) -> None:
    os.environ[name] = value
    for _ in range(2):  # nor is anything half made kept
        with pytest.raises(SettingsError, match=rf"^{name}"):
            app.lambda_handler({}, context(60))
    assert cycles.orders == []


def test_the_control_plane_can_be_asked_without_a_region(cycles: Cycles) -> None:
    os.environ.update({"AWS_REGION": "", "PROBE": "control_plane", "CP_BASE_URL": "https://cp.example"})
    app.lambda_handler({}, context(60))
    assert len(cycles.orders) == 1


def test_with_the_ceiling_a_scheduled_event_is_a_dry_run(cycles: Cycles) -> None:
    os.environ["MODE"] = "dry-run"
    app.lambda_handler(SCHEDULED, context(60))
    assert [order.mode for order in cycles.orders] == ["dry-run"]


# --- what a cycle gets ---


@pytest.mark.parametrize(("probe", "kind"), [("ec2", Ec2Probe), ("control_plane", ControlPlaneProbe)])
def test_the_cycle_gets_the_probe_that_the_setting_names(cycles: Cycles, probe: str, kind: type) -> None:
    os.environ.update({"PROBE": probe, "CP_BASE_URL": "https://cp.example", "CP_SHARED_SECRET": "one"})
    app.lambda_handler({}, context(60))
    assert isinstance(cycles.parts[0].probe(Deadline(10)), kind)


def test_the_cycle_gets_the_platform_that_the_setting_names(cycles: Cycles) -> None:
    os.environ.update({"PLATFORM_BASE_URL": "https://platform.example", "PLATFORM_TOKEN": "one"})
    app.lambda_handler({}, context(60))
    platform = cycles.parts[0].platform
    assert platform is not None
    assert isinstance(platform(Deadline(10)), HttpPlatform)


def test_without_an_address_there_is_no_platform(cycles: Cycles) -> None:
    app.lambda_handler({}, context(60))
    assert cycles.parts[0].platform is None


# --- what is answered ---


def test_the_answer_is_the_report_and_can_be_sent_as_json(cycles: Cycles) -> None:
    cycles.report = Report("apply", "ec2", candidates=6, flips=[Flip(uuid(1), instance(1), "stopped")])
    answer = json.loads(json.dumps(app.lambda_handler({"mode": "apply"}, context(60))))
    assert (answer["mode"], answer["probe"], answer["outcome"], answer["candidates"]) == (
        "apply",
        "ec2",
        "completed",
        6,
    )
    assert answer["flips"] == [{"workspace_id": uuid(1), "instance_id": instance(1), "instance_state": "stopped"}]
    assert answer["restarts"].keys() == {"requested", "void", "failed", "uncertain", "blocked", "pending"}
    assert answer["duration_ms"] >= 0


def test_of_very_many_flips_the_first_hundred_are_listed(cycles: Cycles) -> None:
    flips = [Flip(uuid(number), instance(number), "stopped") for number in range(150)]
    cycles.report = Report("apply", "ec2", flipped=150, flips=flips)
    answer = app.lambda_handler({"mode": "apply"}, context(60))
    assert [one["workspace_id"] for one in answer["flips"]] == [uuid(number) for number in range(100)]
    assert answer["flipped"] == 150


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
    cycles: Cycles,
    monkeypatch: pytest.MonkeyPatch,
    event: dict[str, Any],
    emitted: bool,
) -> None:
    reports: list[Report] = []
    monkeypatch.setattr(app, "emit_metrics", lambda report, _: reports.append(report))
    app.lambda_handler(event, context(60))
    assert reports == ([cycles.report] if emitted else [])


def test_a_cycle_that_found_another_one_running_is_measured_too(
    cycles: Cycles, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Report] = []
    monkeypatch.setattr(app, "emit_metrics", lambda report, _: reports.append(report))
    cycles.report = Report("apply", "ec2", outcome="already_running")
    assert app.lambda_handler(SCHEDULED, context(60))["outcome"] == "already_running"
    assert len(reports) == 1


def test_a_cycle_that_cannot_be_run_is_an_error_and_emits_nothing(
    cycles: Cycles, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Report] = []
    monkeypatch.setattr(app, "emit_metrics", lambda report, _: reports.append(report))
    cycles.trouble = ConnectionLostError("no connection to the database")
    with pytest.raises(ConnectionLostError):
        app.lambda_handler(SCHEDULED, context(60))
    assert reports == []


# --- from one invocation to the next ---


@pytest.mark.parametrize("trouble", [None, ConnectionLostError("gone")], ids=["it ended well", "it failed"])
def test_nothing_that_a_cycle_left_behind_can_act_after_it(cycles: Cycles, trouble: Exception | None) -> None:
    cycles.trouble = trouble
    with contextlib.suppress(ConnectionLostError):
        app.lambda_handler(SCHEDULED, context(60))
    (deadline,) = cycles.deadlines
    assert deadline.over()
    assert deadline.within(10).over()


def warm_after(*changes: Callable[[], object]) -> list[app.Warm | None]:
    kept = []
    for change in (lambda: None, *changes):
        change()
        app.lambda_handler({}, context(60))
        kept.append(app._warm)  # noqa: SLF001 - what is kept is not seen otherwise without a database
    return kept


@pytest.mark.usefixtures("cycles")
def test_what_is_warm_is_kept_though_lambda_traces_each_invocation_anew() -> None:
    first, second = warm_after(lambda: os.environ.update({"_X_AMZN_TRACE_ID": "Root=1-2"}))
    assert first is second is not None


def test_another_environment_makes_everything_anew(cycles: Cycles) -> None:
    first, second = warm_after(lambda: os.environ.update({"PROBE_TIMEOUT_SECONDS": "7"}))
    assert first is not second
    assert [one.probe_timeout_seconds for one in cycles.settings] == [10, 7]


def test_each_cycle_has_an_id_of_its_own_in_its_log_lines(cycles: Cycles, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[dict[str, Any]] = []
    monkeypatch.setattr(logger, "append_keys", lambda **appended: keys.append(appended))
    app.lambda_handler({}, context(60, "r-1"))
    app.lambda_handler({"mode": "apply"}, context(60, "r-2"))
    assert len(cycles.orders) == 2
    assert [(one["mode"], one["function_request_id"]) for one in keys] == [("dry-run", "r-1"), ("apply", "r-2")]
    assert keys[0]["cycle_id"] != keys[1]["cycle_id"]
