"""What is logged and measured, under which names."""

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import handler
from handler.domain.model import SkipReason
from handler.domain.report import Flip, Gauges, Report, RestartCounts
from handler.errors import StoreError
from handler.telemetry import LOG_KEYS, METRIC_NAMES, CycleLog, cycle_finished, emit_metrics
from tests.unit.builders import Log, debt, instance, saw, uuid

POWERTOOLS_KEYS = {"level", "location", "message", "timestamp", "service"}
GAUGES = Gauges(
    restarts_pending=7,
    restarts_blocked=2,
    restarts_backing_off=3,
    restarts_unrecovered=1,
    oldest_restart_age_s=81.5,
    coverage_age_s=60.25,
    held=4,
)
NO_ANSWER = "a word that EC2 does not have"


def without_powertools(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in POWERTOOLS_KEYS}


# --- lines ---


def test_a_decision_is_one_line_with_the_keys_that_queries_rest_on(log: Log) -> None:
    CycleLog().tell("workspace flipped", saw("terminated", 5), "terminated, confirmed by a second probe")
    (line,) = log.lines()
    assert (line["level"], line["message"], line["service"]) == (
        "INFO",
        "workspace flipped",
        "instance-state-reconciler",
    )
    assert without_powertools(line) == {
        "workspace_id": uuid(5),
        "instance_id": instance(5),
        "instance_state": "terminated",
        "verdict": "dead",
        "reason": "terminated, confirmed by a second probe",
    }


def test_a_restart_is_one_line_with_the_number_of_the_attempt(log: Log) -> None:
    CycleLog().restart("restart accepted", debt(5), "http_202", attempt=3)
    (line,) = log.lines()
    expected = {"workspace_id": uuid(5), "instance_id": instance(5), "attempt": 3, "reason": "http_202"}
    assert without_powertools(line) == expected


def test_trouble_is_a_warning_and_an_open_breaker_an_error(log: Log) -> None:
    story = CycleLog()
    story.trouble("re-read or flip failed", StoreError("the database refused"))
    story.breaker_opened(6, 10)
    warning, error = log.lines()
    assert (warning["level"], warning["error"]) == ("WARNING", "the database refused")
    assert (error["level"], error["message"], error["dead"], error["answered"]) == ("ERROR", "breaker open", 6, 10)


def test_what_the_platform_recorded_for_an_instance_is_cut_short_and_stays_on_its_line(log: Log) -> None:
    story = CycleLog()
    story.tell("flip skipped", saw("stopped", 1, 'x"\n' * 10_000), "not_confirmed")
    (line,) = log.lines()
    assert line["instance_id"] == ('x"\n' * 10_000)[:64]


# --- a hundred lines, then figures ---


def test_a_hundred_lines_of_a_kind_are_told_and_the_rest_is_counted_by_reason(log: Log) -> None:
    story = CycleLog()
    for number in range(250):
        story.tell_some("instance unknown", saw(NO_ANSWER, number), "timeout" if number % 2 else "http_500")
    told = log.lines()
    assert len(told) == 100
    assert {line["message"] for line in told} == {"instance unknown"}
    story.tell_the_rest()
    rest = log.lines()
    assert {line["message"] for line in rest} == {"more of the same"}
    assert {(line["what"], line["reason"]): line["count"] for line in rest} == {
        ("instance unknown", "http_500"): 75,
        ("instance unknown", "timeout"): 75,
    }


def test_each_kind_of_line_has_a_hundred_of_its_own(log: Log) -> None:
    story = CycleLog()
    for number in range(100):
        story.tell_some("instance unknown", saw(NO_ANSWER, number), "timeout")
        story.tell_some("instance absent", saw("not_found", number), "not found: sighting 1 of 3")
    assert len(log.lines()) == 200
    story.tell_the_rest()
    assert log.lines() == []


def test_what_was_counted_is_told_once(log: Log) -> None:
    story = CycleLog()
    for number in range(101):
        story.tell_some("instance unknown", saw(NO_ANSWER, number), "timeout")
    story.tell_the_rest()
    log.lines()
    story.tell_the_rest()
    assert log.lines() == []


def test_every_cycle_has_a_story_of_its_own(log: Log) -> None:
    for _ in range(2):
        story = CycleLog()
        for number in range(100):
            story.tell_some("instance unknown", saw(NO_ANSWER, number), "timeout")
    assert len(log.lines()) == 200


# --- keys ---


def logged_keywords() -> Iterator[tuple[str, str]]:
    """Yield each keyword that the code gives to the logger, and where."""
    for path in sorted(Path(handler.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called, on = node.func.attr, node.func.value
                if (isinstance(on, ast.Name) and on.id == "logger") or called == "append_keys":
                    yield from ((word.arg, f"{path.name}:{node.lineno}") for word in node.keywords if word.arg)


def test_every_key_that_the_code_logs_is_listed() -> None:
    unlisted = {key: where for key, where in logged_keywords() if key not in LOG_KEYS}
    assert not unlisted


def test_every_key_that_is_listed_is_logged(log: Log) -> None:
    cycle_finished(asdict(Report("apply", "ec2")))
    (line,) = log.lines()
    assert set(LOG_KEYS) <= {key for key, _ in logged_keywords()} | line.keys()


def test_the_summary_has_the_reports_figures_under_listed_keys_and_not_the_flips(log: Log) -> None:
    report = Report("apply", "ec2", flips=[Flip(uuid(1), instance(1), "stopped")], flipped=1, duration_ms=214)
    cycle_finished(asdict(report))
    (line,) = log.lines()
    figures = without_powertools(line)
    assert line["message"] == "cycle finished"
    assert figures == {key: value for key, value in asdict(report).items() if key != "flips"}
    assert figures.keys() <= set(LOG_KEYS)


# --- metrics ---


def measured(report: Report, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    emit_metrics(report, GAUGES)
    (line,) = capsys.readouterr().out.splitlines()
    metrics: dict[str, Any] = json.loads(line)
    return metrics


def values(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metrics[name][0] for name in METRIC_NAMES}


FULL = Report(
    "apply",
    "ec2",
    candidates=100,
    checked=90,
    running=40,
    dead=30,
    unknown=20,
    flipped=25,
    deferred=10,
    deadline_hit=True,
    duration_ms=1234,
    skipped=dict.fromkeys(map(str, SkipReason), 0) | {"row_locked": 3, "not_confirmed": 2},
    restarts=RestartCounts(requested=4, pending=7, blocked=2),
)


def test_every_metric_of_a_cycle_has_its_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert values(measured(FULL, capsys)) == {
        "CycleCompleted": 1,
        "AlreadyRunning": 0,
        "Candidates": 100,
        "Checked": 90,
        "Dead": 30,
        "Unknown": 20,
        "Flipped": 25,
        "SkippedFlips": 5,
        "Deferred": 10,
        "BreakerOpen": 0,
        "DeadlineHit": 1,
        "CycleDuration": 1234,
        "CoverageAge": 60.25,
        "RestartsAccepted": 4,
        "RestartsPending": 7,
        "RestartsBlocked": 2,
        "OldestRestartAge": 81.5,
        "RestartsBackingOff": 3,
        "RestartsUnrecovered": 1,
        "Held": 4,
    }


def test_a_cycle_in_which_nothing_happened_emits_its_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    emitted = values(measured(Report("apply", "ec2"), capsys))
    assert emitted.keys() == set(METRIC_NAMES)
    assert emitted["Flipped"] == emitted["Dead"] == emitted["BreakerOpen"] == 0


def test_a_cycle_that_found_another_one_running_did_not_complete(capsys: pytest.CaptureFixture[str]) -> None:
    emitted = values(measured(Report("apply", "ec2", outcome="already_running"), capsys))
    assert (emitted["CycleCompleted"], emitted["AlreadyRunning"]) == (0, 1)


def test_an_open_breaker_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert values(measured(Report("apply", "ec2", breaker_open=True), capsys))["BreakerOpen"] == 1


def test_every_metric_has_a_unit_and_no_dimension_but_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    (directive,) = measured(FULL, capsys)["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "InstanceStateReconciler"
    assert directive["Dimensions"] == [["service"]]
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert units.keys() == set(METRIC_NAMES)
    assert {name for name, unit in units.items() if unit == "Seconds"} == {"CoverageAge", "OldestRestartAge"}
    assert {name for name, unit in units.items() if unit == "Milliseconds"} == {"CycleDuration"}
    assert set(units.values()) == {"Seconds", "Milliseconds", "Count"}


def test_service_and_namespace_follow_powertools_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "mine")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Mine")
    metrics = measured(FULL, capsys)
    assert metrics["service"] == "mine"
    assert metrics["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Mine"


def test_two_cycles_in_one_process_do_not_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    measured(FULL, capsys)
    assert len(measured(FULL, capsys)["Flipped"]) == 1
