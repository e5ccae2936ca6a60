"""Log lines and metrics, and their names."""

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import handler
from handler.domain.backoff import CrashLoop
from handler.domain.report import Flip, Gauges, Outcome, Report, RestartCounts, no_skips
from handler.errors import StoreError
from handler.telemetry import LOG_KEYS, METRIC_NAMES, CycleLog, cycle_finished, emit_metrics, hold_changed, logger
from tests.unit.builders import Log, instance, lambda_context, restart, saw, uuid

POWERTOOLS_KEYS = {"level", "location", "message", "timestamp", "service"}
GAUGES = Gauges(
    restarts_pending=7,
    restarts_blocked=2,
    restarts_backing_off=3,
    restarts_unrecovered=1,
    oldest_restart_age_s=81.5,
    coverage_age_s=60.25,
    on_hold=4,
    oldest_doubt_s=90.5,
)
NO_ANSWER = "a word that EC2 does not have"


def without_powertools(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in POWERTOOLS_KEYS}


# --- lines ---


def test_a_decision_is_one_line_with_the_keys_that_queries_use(log: Log) -> None:
    CycleLog().sighting("workspace flipped", saw("terminated", 5), "terminated, confirmed by a second probe")
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
        "count": 1,
    }


def test_a_restart_is_one_line_with_the_number_of_its_attempt(log: Log) -> None:
    CycleLog().restart("restart accepted", restart(5), "http_202", attempt=3)
    (line,) = log.lines()
    expected = {"workspace_id": uuid(5), "instance_id": instance(5), "attempt": 3, "reason": "http_202"}
    assert without_powertools(line) == expected


def test_a_failure_is_a_warning_and_an_open_breaker_an_error(log: Log) -> None:
    cycle_log = CycleLog()
    cycle_log.failure("re-read or flip failed", StoreError("the database refused"))
    cycle_log.breaker_open(6, 10)
    warning, error = log.lines()
    assert (warning["level"], warning["error"]) == ("WARNING", "the database refused")
    assert (error["level"], error["message"], error["dead"], error["counted"]) == ("ERROR", "breaker open", 6, 10)


def test_a_long_instance_id_is_cut_and_breaks_no_line(log: Log) -> None:
    cycle_log = CycleLog()
    cycle_log.sighting("flip skipped", saw("stopped", 1, 'x"\n' * 10_000), "not_confirmed")
    (line,) = log.lines()
    assert line["instance_id"] == ('x"\n' * 10_000)[:64]


def test_a_back_off_is_a_warning_with_its_restart_and_its_wait(log: Log) -> None:
    CycleLog().backing_off(saw("terminated", 5), CrashLoop(streak=3, backoff_s=300))
    (line,) = log.lines("restart backing off")
    assert line["level"] == "WARNING"
    assert without_powertools(line) == {
        "workspace_id": uuid(5),
        "instance_id": instance(5),
        "attempt": 4,
        "reason": "crash loop: restart 4 in a row waits 300 s",
    }


def test_a_hold_is_one_line_for_each_workspace(log: Log) -> None:
    hold_changed("on hold", [uuid(1), uuid(2)], "for 60 s: maintenance")
    reason = "for 60 s: maintenance"
    assert [without_powertools(line) for line in log.lines("workspace on hold")] == [
        {"workspace_id": uuid(1), "reason": reason},
        {"workspace_id": uuid(2), "reason": reason},
    ]


def test_a_hold_on_everything_is_one_line(log: Log) -> None:
    hold_changed("on hold", None, "for 60 s: it looks wrong")
    (line,) = log.lines()
    assert (line["message"], line["level"]) == ("everything on hold", "WARNING")
    assert without_powertools(line) == {"reason": "for 60 s: it looks wrong"}


# --- a hundred lines of a kind ---


def test_a_hold_of_more_than_a_hundred_workspaces_counts_the_rest(log: Log) -> None:
    hold_changed("released", [uuid(number) for number in range(250)], "by hand")
    *lines, rest = log.lines()
    assert [line["message"] for line in lines] == ["workspace released"] * 100
    assert (rest["message"], rest["what"], rest["count"]) == ("more of the same", "workspace released", 150)


def test_lines_after_the_hundredth_are_counted_by_reason(log: Log) -> None:
    cycle_log = CycleLog()
    for number in range(250):
        cycle_log.sighting_capped("instance unknown", saw(NO_ANSWER, number), "timeout" if number % 2 else "http_500")
    lines = log.lines()
    assert len(lines) == 100
    assert {line["message"] for line in lines} == {"instance unknown"}
    cycle_log.the_rest()
    rest = log.lines()
    assert {line["message"] for line in rest} == {"more of the same"}
    assert {(line["what"], line["reason"]): line["count"] for line in rest} == {
        ("instance unknown", "http_500"): 75,
        ("instance unknown", "timeout"): 75,
    }


def test_each_message_has_a_hundred_lines_of_its_own(log: Log) -> None:
    cycle_log = CycleLog()
    for number in range(100):
        cycle_log.sighting_capped("instance unknown", saw(NO_ANSWER, number), "timeout")
        cycle_log.sighting_capped("instance absent", saw("not_found", number), "not found: sighting 1 of 3")
    assert len(log.lines()) == 200
    cycle_log.the_rest()
    assert log.lines() == []


def test_the_rest_is_logged_once(log: Log) -> None:
    cycle_log = CycleLog()
    for number in range(101):
        cycle_log.sighting_capped("instance unknown", saw(NO_ANSWER, number), "timeout")
    cycle_log.the_rest()
    log.lines()
    cycle_log.the_rest()
    assert log.lines() == []


def test_every_cycle_counts_its_lines_anew(log: Log) -> None:
    for _ in range(2):
        cycle_log = CycleLog()
        for number in range(100):
            cycle_log.sighting_capped("instance unknown", saw(NO_ANSWER, number), "timeout")
    assert len(log.lines()) == 200


# --- keys ---


def logged_keywords() -> Iterator[tuple[str, str]]:
    """Yield each keyword that the code passes to the logger, and where."""
    for path in sorted(Path(handler.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _logs(node.func):
                yield from ((word.arg, f"{path.name}:{node.lineno}") for word in node.keywords if word.arg)


def _logs(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id == "log"  # a method of the logger's, chosen before
    if not isinstance(called, ast.Attribute) or called.attr == "inject_lambda_context":  # what this adds is on a line
        return False
    return called.attr == "append_keys" or (isinstance(called.value, ast.Name) and called.value.id == "logger")


def test_every_logged_key_is_listed() -> None:
    unlisted = {key: where for key, where in logged_keywords() if key not in LOG_KEYS}
    assert not unlisted


def test_every_listed_key_is_logged(log: Log) -> None:
    @logger.inject_lambda_context(clear_state=True)
    def finish(_: object, __: object) -> None:
        cycle_finished(asdict(Report("apply", "ec2")))

    finish({}, lambda_context())
    logger.clear_state()
    (line,) = log.lines()
    assert set(LOG_KEYS) <= {key for key, _ in logged_keywords()} | line.keys()
    assert line.keys() <= {*LOG_KEYS, *POWERTOOLS_KEYS}


def test_the_summary_has_the_reports_figures_without_the_flips(log: Log) -> None:
    report = Report("apply", "ec2", flips=(Flip(uuid(1), instance(1), "stopped"),), flipped=1, duration_ms=214)
    cycle_finished(asdict(report))
    (line,) = log.lines()
    figures = without_powertools(line)
    assert line["message"] == "cycle finished"
    expected = json.loads(json.dumps(asdict(report)))
    assert figures == {key: value for key, value in expected.items() if key != "flips"}
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
    impaired=3,
    flipped=25,
    adopted=2,
    deferred=10,
    deadline_hit=True,
    duration_ms=1234,
    skipped=no_skips() | {"row_locked": 3, "not_confirmed": 2, "reconfirm_error": 1},
    restarts=RestartCounts(accepted=4, pending=7, blocked=2),
    oldest_doubt_seconds=90,
    unrecorded=5,
    offline_unowed=6,
)


def test_every_metric_has_its_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert values(measured(FULL, capsys)) == {
        "CycleCompleted": 1,
        "AlreadyRunning": 0,
        "Candidates": 100,
        "Checked": 90,
        "Dead": 30,
        "Unknown": 20,
        "Impaired": 3,
        "Flipped": 25,
        "Adopted": 2,
        "SkippedFlips": 6,
        "FlipErrors": 1,
        "Deferred": 10,
        "BreakerOpen": 0,
        "DeadlineHit": 1,
        "CycleDuration": 1234,
        "CoverageAge": 60.25,
        "OldestDoubtAge": 90,
        "Unrecorded": 5,
        "OfflineUnowed": 6,
        "RestartsAccepted": 4,
        "RestartsPending": 7,
        "RestartsBlocked": 2,
        "OldestRestartAge": 81.5,
        "RestartsBackingOff": 3,
        "RestartsUnrecovered": 1,
        "OnHold": 4,
    }


def test_a_quiet_cycle_emits_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    emitted = values(measured(Report("apply", "ec2"), capsys))
    assert emitted.keys() == set(METRIC_NAMES)
    assert emitted["Flipped"] == emitted["Dead"] == emitted["BreakerOpen"] == 0


def test_a_cycle_beside_another_one_does_not_count_as_completed(capsys: pytest.CaptureFixture[str]) -> None:
    emitted = values(measured(Report("apply", "ec2", outcome=Outcome.ALREADY_RUNNING), capsys))
    assert (emitted["CycleCompleted"], emitted["AlreadyRunning"]) == (0, 1)


def test_an_open_breaker_is_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert values(measured(Report("apply", "ec2", breaker_open=True), capsys))["BreakerOpen"] == 1


def test_every_metric_has_a_unit_and_only_the_service_as_dimension(capsys: pytest.CaptureFixture[str]) -> None:
    (directive,) = measured(FULL, capsys)["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "InstanceStateReconciler"
    assert directive["Dimensions"] == [["service"]]
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert units.keys() == set(METRIC_NAMES)
    assert {name for name, unit in units.items() if unit == "Seconds"} == {
        *("CoverageAge", "OldestDoubtAge", "OldestRestartAge")
    }
    assert {name for name, unit in units.items() if unit == "Milliseconds"} == {"CycleDuration"}
    assert set(units.values()) == {"Seconds", "Milliseconds", "Count"}


def test_powertools_variables_set_service_and_namespace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "mine")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Mine")
    metrics = measured(FULL, capsys)
    assert metrics["service"] == "mine"
    assert metrics["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Mine"


def test_the_metrics_of_two_cycles_do_not_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    measured(FULL, capsys)
    assert len(measured(FULL, capsys)["Flipped"]) == 1
