"""Alarms, dashboard and queries rest on metrics, keys and messages that the code really writes."""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from handler.telemetry import LOG_KEYS, METRIC_NAMES
from tests.infra.conftest import COMBINATIONS
from tests.support.cloudformation import REGION, STACK, Stack
from tests.support.tools import ROOT

NAMESPACE = "InstanceStateReconciler"
TOPIC = "arn:aws:sns:eu-central-1:123456789012:ops"

# What Powertools and CloudWatch Logs add to the code's own keys.
POWERTOOLS_KEYS = {"level", "location", "message", "timestamp", "service"}
INSIGHTS_KEYS = {"@timestamp", "@message", "errorType", "errorMessage"}  # the last two are Lambda's own
INSIGHTS_WORDS = {
    *("SOURCE", "fields", "filter", "stats", "sort", "limit", "by", "as", "in", "or", "and", "asc", "desc"),
    *("latest", "max", "sum", "coalesce", "ispresent"),
}

ALARMS = {
    "NoCycleAlarm": "Alarm: no cycle completes",
    "ErrorsAlarm": "Alarm: cycles fail",
    "BreakerOpenAlarm": "Alarm: the breaker is open",
    "DeadlineAlarm": "Alarm: cycles hit the deadline",
    "CoverageAgeAlarm": "Alarm: candidates wait too long",
    "UnknownAlarm": "Alarm: too much is unknown",
    "FailedQueueAlarm": "Alarm: messages in a queue",
    "UndeliveredQueueAlarm": "Alarm: messages in a queue",
}

# Without a platform restarts stay owed by intention.
ALARMS_WITH_A_PLATFORM = {
    "RestartAgeAlarm": "Alarm: a restart is overdue",
    "RestartsUnrecoveredAlarm": "Alarm: a restart did not work",
}


@pytest.fixture(scope="module")
def applying(stacks: dict[str, Stack]) -> Stack:
    return stacks["applying"]


def alarm(stack: Stack, name: str) -> dict[str, Any]:
    properties: dict[str, Any] = stack.of_type("AWS::CloudWatch::Alarm")[name]
    return properties


def own_metrics(stack: Stack) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield who names which of our metrics, with which dimensions: every alarm, every widget of the dashboard."""
    for name, properties in stack.of_type("AWS::CloudWatch::Alarm").items():
        metrics = [part["MetricStat"]["Metric"] for part in properties.get("Metrics", []) if "MetricStat" in part]
        for metric in metrics or [properties]:
            if metric["Namespace"] == NAMESPACE:
                yield name, metric["MetricName"], {one["Name"]: one["Value"] for one in metric["Dimensions"]}
    for widget in widgets(stack):
        for namespace, metric_name, *dimensions in widget_metrics(widget):
            if namespace == NAMESPACE:
                yield widget["title"], metric_name, dict(zip(dimensions[::2], dimensions[1::2], strict=True))


def widgets(stack: Stack) -> list[dict[str, Any]]:
    body = json.loads(stack.properties("Dashboard")["DashboardBody"])
    return [widget["properties"] for widget in body["widgets"]]


def widget_metrics(widget: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a widget's metrics with the dashboard's shorthand written out: `.` is the same as above, `...` all but."""
    above: list[str] = []
    for line in widget.get("metrics", []):
        words = [word for word in line if isinstance(word, str)]
        if words[0] == "...":
            words = above[: len(above) - len(words) + 1] + words[1:]
        above = [old if new == "." else new for new, old in zip(words, above or words, strict=True)]
        yield above


def queries(stack: Stack) -> dict[str, str]:
    """Return the saved queries, and the dashboard's own, by title."""
    saved = {one["Name"]: one["QueryString"] for one in stack.of_type("AWS::Logs::QueryDefinition").values()}
    return saved | {widget["title"]: widget["query"] for widget in widgets(stack) if "query" in widget}


def strings_in_the_code() -> set[str]:
    return {
        node.value
        for path in (ROOT / "handler").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


# ── What they rest on ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["applying", "platform", "everything"])
def test_alarms_and_dashboard_name_metrics_that_the_code_emits_for_this_stack(
    name: str, stacks: dict[str, Stack]
) -> None:
    named = list(own_metrics(stacks[name]))
    assert len(named) > 20
    for where, metric_name, dimensions in named:
        assert metric_name in METRIC_NAMES, where
        assert dimensions == {"service": STACK}, where  # which keeps two stacks apart
    environment = stacks[name].environment("Reconciler")
    assert environment["POWERTOOLS_METRICS_NAMESPACE"] == NAMESPACE
    assert environment["POWERTOOLS_SERVICE_NAME"] == STACK


def test_every_metric_is_somewhere_on_the_dashboard(applying: Stack) -> None:
    shown = {metric_name for where, metric_name, _ in own_metrics(applying) if not where.endswith("Alarm")}
    assert shown == set(METRIC_NAMES)


def test_queries_name_keys_that_the_code_logs(applying: Stack) -> None:
    known = {*LOG_KEYS, *POWERTOOLS_KEYS, *INSIGHTS_KEYS, *INSIGHTS_WORDS}
    for title, query in queries(applying).items():
        bare = re.sub(r"""(["']).*?\1""", "", query)
        made = set(re.findall(r"\bas (\w+)", bare))
        unknown = set(re.findall(r"@?[A-Za-z_]\w*", bare)) - known - made
        assert not unknown, title


def test_queries_look_for_messages_that_the_code_logs(applying: Stack) -> None:
    logged = strings_in_the_code()
    for title, query in queries(applying).items():
        conditions = [part for part in query.split("|") if re.match(r"\s*filter\b", part) and "message" in part]
        messages = {text for part in conditions for _, text in re.findall(r"""(["'])(.*?)\1""", part)}
        assert messages <= logged, title


def test_the_queries_answer_the_questions_on_the_stack_s_own_log_group(applying: Stack) -> None:
    definitions = applying.of_type("AWS::Logs::QueryDefinition").values()
    assert sorted(one["Name"] for one in definitions) == [
        f"{STACK}/Slowest cycles",
        f"{STACK}/What dies again and again",
        f"{STACK}/What happened to one workspace",
        f"{STACK}/What was unknown and why",
        f"{STACK}/What went wrong",
        f"{STACK}/Why flips were skipped",
    ]
    assert all(one["LogGroupNames"] == ["<LogGroup>"] for one in definitions)


# ── Alarms ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", COMBINATIONS)
def test_there_are_these_alarms(name: str, stacks: dict[str, Stack]) -> None:
    expected = set(ALARMS)
    if stacks[name].parameters["PlatformBaseUrl"]:
        expected |= ALARMS_WITH_A_PLATFORM.keys()
    assert stacks[name].of_type("AWS::CloudWatch::Alarm").keys() == expected


def test_each_alarm_names_the_section_of_the_readme_that_helps(stacks: dict[str, Stack]) -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    for name, properties in stacks["everything"].of_type("AWS::CloudWatch::Alarm").items():
        (section,) = re.findall(r'README: "(.+)"\.$', properties["AlarmDescription"])
        assert section in headings, name
        assert section == (ALARMS | ALARMS_WITH_A_PLATFORM)[name]


@pytest.mark.parametrize(
    ("name", "act"),
    [("the first deploy", False), ("applying", True), ("applying by hand", False), ("everything", True)],
)
def test_alarms_act_only_while_the_schedule_applies(name: str, act: Any, stacks: dict[str, Stack]) -> None:
    for properties in stacks[name].of_type("AWS::CloudWatch::Alarm").values():
        assert properties["ActionsEnabled"] is act


@pytest.mark.parametrize(
    ("name", "told"),
    [("applying", None), ("alarms by mail", ["<AlarmTopic>"]), ("alarms to a topic", [TOPIC])],
)
def test_alarms_tell_the_topic_that_is_given(name: str, told: list[str] | None, stacks: dict[str, Stack]) -> None:
    for properties in stacks[name].of_type("AWS::CloudWatch::Alarm").values():
        assert properties.get("AlarmActions") == properties.get("OKActions") == told


def test_the_stack_s_own_topic_writes_to_the_address(stacks: dict[str, Stack]) -> None:
    topics = stacks["alarms by mail"].of_type("AWS::SNS::Topic")
    assert topics == {"AlarmTopic": {"Subscription": [{"Protocol": "email", "Endpoint": "ops@example.com"}]}}
    assert not stacks["alarms to a topic"].of_type("AWS::SNS::Topic")


def test_three_minutes_without_a_completed_cycle_raise_the_alarm_and_so_does_silence(applying: Stack) -> None:
    properties = alarm(applying, "NoCycleAlarm")
    assert properties["MetricName"] == "CycleCompleted"
    assert (properties["Statistic"], properties["ComparisonOperator"], properties["Threshold"]) == (
        "Sum",
        "LessThanThreshold",
        1,
    )
    assert properties["Period"] * int(properties["EvaluationPeriods"]) == 180
    assert properties["TreatMissingData"] == "breaching"


def test_only_silence_of_completed_cycles_is_an_alarm(stacks: dict[str, Stack]) -> None:
    missing = {
        name: properties["TreatMissingData"]
        for name, properties in stacks["everything"].of_type("AWS::CloudWatch::Alarm").items()
    }
    assert missing.pop("NoCycleAlarm") == "breaching"
    assert set(missing.values()) == {"notBreaching"}


@pytest.mark.parametrize(
    ("name", "metric_name", "threshold", "minutes"),
    [
        ("BreakerOpenAlarm", "BreakerOpen", 1, 1),
        ("DeadlineAlarm", "DeadlineHit", 1, 5),
        ("CoverageAgeAlarm", "CoverageAge", 600, 3),
        ("RestartAgeAlarm", "OldestRestartAge", 1800, 3),
        ("RestartsUnrecoveredAlarm", "RestartsUnrecovered", 0, 5),
    ],
)
def test_a_metric_over_its_threshold_for_some_minutes_raises_the_alarm(
    name: str, metric_name: str, threshold: int, minutes: int, stacks: dict[str, Stack]
) -> None:
    properties = alarm(stacks["platform"], name)
    assert properties["MetricName"] == metric_name
    assert properties["Statistic"] == "Maximum"
    assert int(properties["Threshold"]) == threshold
    assert properties["ComparisonOperator"].startswith("GreaterThan")
    assert properties["Period"] == 60
    assert properties.get("DatapointsToAlarm", properties["EvaluationPeriods"]) == minutes


def test_more_unknown_than_half_of_what_was_checked_for_five_minutes_raises_the_alarm(applying: Stack) -> None:
    properties = alarm(applying, "UnknownAlarm")
    assert (properties["ComparisonOperator"], properties["Threshold"]) == ("GreaterThanThreshold", 0.5)
    assert properties["DatapointsToAlarm"] == 5
    names = {one["Id"]: one["MetricStat"]["Metric"]["MetricName"] for one in properties["Metrics"][1:]}
    assert names == {"unknown": "Unknown", "checked": "Checked"}
    assert properties["Metrics"][0]["Expression"] == "IF(checked > 0, unknown / checked, 0)"
    assert [one.get("ReturnData", True) for one in properties["Metrics"]] == [True, False, False]


def test_errors_of_the_function_and_messages_in_the_queues_raise_alarms(applying: Stack) -> None:
    errors = alarm(applying, "ErrorsAlarm")
    assert (errors["Namespace"], errors["MetricName"]) == ("AWS/Lambda", "Errors")
    assert errors["Dimensions"] == [{"Name": "FunctionName", "Value": "<Reconciler>"}]
    for queue in ("FailedQueue", "UndeliveredQueue"):
        messages = alarm(applying, f"{queue}Alarm")
        assert (messages["Namespace"], messages["MetricName"]) == ("AWS/SQS", "ApproximateNumberOfMessagesVisible")
        assert messages["Dimensions"] == [{"Name": "QueueName", "Value": f"<{queue}.QueueName>"}]
        assert messages["Threshold"] == 1


# ── Dashboard ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_dashboard_shows_every_alarm_of_the_stack(name: str, stacks: dict[str, Stack]) -> None:
    (shown,) = (widget["alarms"] for widget in widgets(stacks[name]) if "alarms" in widget)
    assert sorted(shown) == sorted(f"<{one}.Arn>" for one in stacks[name].of_type("AWS::CloudWatch::Alarm"))


def test_the_dashboard_fits_on_one_screen_without_gaps_or_overlaps(applying: Stack) -> None:
    body = json.loads(applying.properties("Dashboard")["DashboardBody"])
    cells = [
        (x, y)
        for widget in body["widgets"]
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]
    height = max(y for _, y in cells) + 1
    assert height <= 24
    assert len(cells) == len(set(cells)) == 24 * height


def test_the_dashboard_s_widgets_look_at_the_stack_s_region(applying: Stack) -> None:
    for widget in widgets(applying):
        assert widget.get("region", REGION) == REGION
