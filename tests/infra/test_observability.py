"""Alarms, dashboard and queries use only metrics, keys and messages that the code writes."""

import ast
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from handler.restarts import Answer
from handler.telemetry import DETECTION_LATENCY, EVENT_FLIPS, LOG_KEYS, METRIC_NAMES
from tests.infra.conftest import COMBINATIONS, DATABASE
from tests.support import runbook
from tests.support.cloudformation import REGION, STACK, Stack
from tests.support.cloudwatch import Metric, lines, metrics_of, widgets
from tests.support.tools import ROOT

NAMESPACE = "InstanceStateReconciler"
TOPIC = "arn:aws:sns:eu-central-1:123456789012:ops"

EVENT_METRICS = (EVENT_FLIPS, DETECTION_LATENCY)
# Keys that Powertools and CloudWatch Logs add to the code's own.
POWERTOOLS_KEYS = {"level", "location", "message", "timestamp", "service"}
INSIGHTS_KEYS = {"@timestamp", "@message"}
# Lambda's own keys: for an error that the function raised, and for an invocation that Lambda ended.
LAMBDA_KEYS = {"errorType", "errorMessage", "type", "record.status", "record.errorType"}
INSIGHTS_WORDS = {
    *("SOURCE", "fields", "filter", "stats", "sort", "limit", "by", "as", "in", "or", "and", "asc", "desc"),
    *("latest", "max", "sum", "ispresent"),
}

RUNBOOK = "docs/runbook.md"
# Its lines are wrapped anywhere.
TEXT = " ".join(runbook.PAGE.split())

# Each alarm, and the section of the runbook that it points to. These are there in every stack, dry runs or not …
ALARMS = {
    "ErrorsAlarm": "cycles-fail",
    "FailedQueueAlarm": "messages-wait-in-a-queue",
    "UndeliveredQueueAlarm": "messages-wait-in-a-queue",
}
# … these if state-change events are taken, dry runs or not …
ALARMS_WITH_EVENTS = {
    "StateChangesErrorsAlarm": "state-change-events-fail",
    "StateChangesAgeAlarm": "state-change-events-wait",
    "DeadLetterQueueAlarm": "state-change-events-are-given-up",
}
# … this one if there is a workflow, dry runs or not …
ALARMS_WITH_SHARDS = {"ShardsAlarm": "shards-are-not-invoked"}
# … these while cycles are applied …
ALARMS_WHILE_APPLYING = {
    "BreakerOpenAlarm": "the-breaker-is-open",
    "DeadlineAlarm": "cycles-hit-the-deadline",
    "CoverageAgeAlarm": "candidates-wait-too-long",
    "UnknownAlarm": "too-much-is-unknown",
    "FlipErrorsAlarm": "flips-fail",
    "FlipsAlarm": "many-workspaces-are-flipped",
    "DoubtAgeAlarm": "a-workspace-stays-in-doubt",
    "OfflineUnowedAlarm": "workspaces-stay-offline",
    "HoldOnEverythingAlarm": "everything-is-on-hold",
}
# … this one if EC2 is asked as well, because only EC2 knows status checks …
ALARMS_WITH_EC2 = {"ImpairedAlarm": "an-instance-is-impaired"}
# … this one while the schedule applies them …
ALARMS_ON_SCHEDULE = {"NoCycleAlarm": "no-cycle-completes"}
# … and these while there is a platform, too: without one, restarts stay owed on purpose.
ALARMS_WITH_A_PLATFORM = {
    "RestartAgeAlarm": "a-restart-is-overdue",
    "RestartsUnrecoveredAlarm": "a-restart-did-not-work",
    "RestartsBackingOffAlarm": "a-workspace-restarts-again-and-again",
}
EVERY_ALARM = {
    **(ALARMS | ALARMS_WITH_EVENTS | ALARMS_WITH_SHARDS | ALARMS_WHILE_APPLYING),
    **(ALARMS_WITH_EC2 | ALARMS_ON_SCHEDULE | ALARMS_WITH_A_PLATFORM),
}


@pytest.fixture(scope="module")
def applying(stacks: dict[str, Stack]) -> Stack:
    return stacks["applying"]


def alarm(stack: Stack, name: str) -> dict[str, Any]:
    properties: dict[str, Any] = stack.of_type("AWS::CloudWatch::Alarm")[name]
    return properties


def own_metrics(stack: Stack) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield each use of our own metrics: the alarm's or widget's name, the metric's name and its dimensions."""
    for name, metric in [*alarm_metrics(stack), *shown_metrics(stack)]:
        if metric.namespace == NAMESPACE:
            yield name, metric.name, dict(metric.dimensions)


def alarm_metrics(stack: Stack) -> Iterator[tuple[str, Metric]]:
    """Yield the metrics that each alarm looks at."""
    for name, properties in stack.of_type("AWS::CloudWatch::Alarm").items():
        for one in metrics_of(properties):
            yield name, one


def shown_metrics(stack: Stack) -> Iterator[tuple[str, Metric]]:
    """Yield the metrics that each widget shows."""
    for widget in widgets(stack):
        for line in lines(widget):
            if line.metric is not None:
                yield widget["properties"]["title"], line.metric


def queries(stack: Stack) -> dict[str, str]:
    """Return the saved queries and the dashboard's own, by title."""
    saved = {one["Name"]: one["QueryString"] for one in stack.of_type("AWS::Logs::QueryDefinition").values()}
    shown = [widget["properties"] for widget in widgets(stack)]
    return saved | {widget["title"]: widget["query"] for widget in shown if "query" in widget}


def properties_of_widgets(stack: Stack) -> list[dict[str, Any]]:
    return [widget["properties"] for widget in widgets(stack)]


def strings_in_the_code() -> set[str]:
    return {
        node.value
        for path in (ROOT / "handler").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["applying", "applying with a platform", "everything"])
def test_alarms_and_dashboard_use_metrics_that_the_code_emits_for_this_stack(
    name: str, stacks: dict[str, Stack]
) -> None:
    used = list(own_metrics(stacks[name]))
    assert len(used) > 20
    for where, metric_name, dimensions in used:
        assert metric_name in {*METRIC_NAMES, *EVENT_METRICS}, where
        assert dimensions == {"service": STACK}, where  # this keeps two stacks apart
    for function in ("Reconciler", "StateChanges"):
        environment = stacks[name].environment(function)
        assert environment["POWERTOOLS_METRICS_NAMESPACE"] == NAMESPACE
        assert environment["POWERTOOLS_SERVICE_NAME"] == STACK


def test_the_dashboard_shows_every_metric(applying: Stack) -> None:
    shown = {metric_name for where, metric_name, _ in own_metrics(applying) if not where.endswith("Alarm")}
    assert shown == {*METRIC_NAMES, *EVENT_METRICS}


def test_queries_use_keys_that_the_code_logs(applying: Stack) -> None:
    known = {*LOG_KEYS, *POWERTOOLS_KEYS, *INSIGHTS_KEYS, *LAMBDA_KEYS, *INSIGHTS_WORDS}
    for title, query in queries(applying).items():
        bare = re.sub(r"""(["']).*?\1""", "", query)
        made = set(re.findall(r"\bas (\w+)", bare))
        unknown = set(re.findall(r"@?[A-Za-z_][\w.]*", bare)) - known - made
        assert not unknown, title


def test_queries_look_for_messages_that_the_code_logs(applying: Stack) -> None:
    logged = strings_in_the_code() | {f"restart {answer}" for answer in Answer}
    for title, query in queries(applying).items():
        conditions = [part for part in query.split("|") if re.match(r"\s*filter\b", part) and "message" in part]
        messages = {text for part in conditions for _, text in re.findall(r"""(["'])(.*?)\1""", part)}
        assert messages <= logged, title


@pytest.mark.parametrize("name", ["applying", "applying without events"])
def test_the_saved_queries_read_the_stack_s_own_log_groups(name: str, stacks: dict[str, Stack]) -> None:
    definitions = stacks[name].of_type("AWS::Logs::QueryDefinition").values()
    groups = {one["Name"].removeprefix(f"{STACK}/"): one["LogGroupNames"] for one in definitions}
    if name == "applying":
        assert groups.pop("What became of state changes") == ["<StateChangesLogGroup>"]
    assert sorted(groups) == [
        "Slowest cycles",
        "What dies again and again",
        "What happened to one workspace",
        "What was absent",
        "What was unknown and why",
        "What went wrong",
        "Why flips were skipped",
        "Why restarts wait",
    ]
    both = ["<LogGroup>", "<StateChangesLogGroup>"] if name == "applying" else ["<LogGroup>"]
    assert groups == dict.fromkeys(groups, both) | {"Why restarts wait": ["<LogGroup>"]}


# ── The runbook ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_runbook_s_table_has_every_alarm_with_its_section() -> None:
    assert runbook.ALARMS == EVERY_ALARM


def test_the_runbook_names_every_saved_query_and_none_that_is_not_saved(applying: Stack) -> None:
    saved = {one["Name"].split("/", 1)[1] for one in applying.of_type("AWS::Logs::QueryDefinition").values()}
    assert {title for title in saved if f"*{title}*" not in runbook.PAGE} == set()
    named = {
        title
        for titles in re.findall(r"quer(?:y|ies) (\*.+?\*)(?=[^*]*)", TEXT)
        for title in titles.strip("*").split("*")
    }
    assert named <= saved


def test_the_runbook_finds_everything_where_the_dashboard_shows_it(applying: Stack) -> None:
    """It says `Metric` in *Widget*, the widget *Widget*, or opens one."""
    shown = {widget["properties"]["title"]: {line.label for line in lines(widget)} for widget in widgets(applying)}
    assert set(re.findall(r"widget \*(.+?)\*", TEXT)) <= shown.keys()
    places = re.findall(r"`(\w+)` in \*(.+?)\*", TEXT)
    assert len(places) > 10
    for label, title in places:
        assert label in shown[title], (label, title)


def test_the_runbook_s_links_lead_somewhere() -> None:
    headings = {runbook.anchor(heading) for heading in re.findall(r"^#+ (.+)$", runbook.PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(.+?)\)", runbook.PAGE)) <= headings


def test_the_dashboard_shows_what_every_alarm_looks_at(applying: Stack) -> None:
    shown = {metric for _, metric in shown_metrics(applying)}
    assert {(name, metric) for name, metric in alarm_metrics(applying) if metric not in shown} == set()


# ── Alarms ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", COMBINATIONS)
def test_an_alarm_exists_only_while_it_can_tell_something(name: str, stacks: dict[str, Stack]) -> None:
    """An alarm on missing cycles that exists in a dry run is in ALARM when cycles begin, and then notifies nobody."""
    given = stacks[name].parameters
    expected = ALARMS.keys() | (ALARMS_WITH_EVENTS.keys() if given["StateChangeEvents"] == "true" else set())
    expected |= ALARMS_WITH_SHARDS.keys() if given["Shards"] != "1" else set()
    if given["Mode"] == "apply":
        expected |= ALARMS_WHILE_APPLYING.keys()
        expected |= ALARMS_WITH_EC2.keys() if given["Probe"] == "ec2" else set()
        expected |= ALARMS_ON_SCHEDULE.keys() if given["ScheduleState"] == "ENABLED" else set()
        expected |= ALARMS_WITH_A_PLATFORM.keys() if given["PlatformBaseUrl"] else set()
    assert stacks[name].of_type("AWS::CloudWatch::Alarm").keys() == expected


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("the first deploy", RUNBOOK),
        ("applying with a platform", RUNBOOK),
        ("everything", "https://wiki.example/runbook"),
    ],
)
def test_every_alarm_points_to_its_section_of_the_runbook(name: str, page: str, stacks: dict[str, Stack]) -> None:
    for alarm_name, properties in stacks[name].of_type("AWS::CloudWatch::Alarm").items():
        section = EVERY_ALARM[alarm_name]
        assert section in runbook.SECTIONS, alarm_name
        assert properties["AlarmDescription"].endswith(f". Runbook: {page}#{section}")


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_alarm_that_exists_acts(name: str, stacks: dict[str, Stack]) -> None:
    """CloudWatch acts only on a change of state: what changes while the actions are off never notifies anybody."""
    for properties in stacks[name].of_type("AWS::CloudWatch::Alarm").values():
        assert properties.get("ActionsEnabled", True) is True


@pytest.mark.parametrize(
    ("name", "notified"),
    [
        ("applying", None),
        ("dry runs with alarms", ["<AlarmTopic>"]),
        ("alarms by mail", ["<AlarmTopic>"]),
        ("alarms to a topic", [TOPIC]),
    ],
)
def test_alarms_notify_the_given_topic(name: str, notified: list[str] | None, stacks: dict[str, Stack]) -> None:
    for properties in stacks[name].of_type("AWS::CloudWatch::Alarm").values():
        assert properties.get("AlarmActions") == properties.get("OKActions") == notified


def test_the_stack_s_own_topic_mails_the_address(stacks: dict[str, Stack]) -> None:
    topics = stacks["alarms by mail"].of_type("AWS::SNS::Topic")
    assert topics == {"AlarmTopic": {"Subscription": [{"Protocol": "email", "Endpoint": "ops@example.com"}]}}
    assert not stacks["alarms to a topic"].of_type("AWS::SNS::Topic")


def test_three_minutes_without_a_completed_cycle_or_any_metrics_raise_the_alarm(applying: Stack) -> None:
    properties = alarm(applying, "NoCycleAlarm")
    assert properties["MetricName"] == "CycleCompleted"
    assert (properties["Statistic"], properties["ComparisonOperator"]) == ("Sum", "LessThanThreshold")
    assert properties["Threshold"] == "1"
    assert properties["Period"] * int(properties["EvaluationPeriods"]) == 180
    assert properties["TreatMissingData"] == "breaching"


def test_missing_data_raises_only_the_no_cycle_alarm(stacks: dict[str, Stack]) -> None:
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
        ("DoubtAgeAlarm", "OldestDoubtAge", 1800, 3),
        ("OfflineUnowedAlarm", "OfflineUnowed", 0, 15),
        ("ImpairedAlarm", "Impaired", 0, 15),
        ("RestartAgeAlarm", "OldestRestartAge", 1800, 3),
        ("RestartsUnrecoveredAlarm", "RestartsUnrecovered", 0, 5),
        ("RestartsBackingOffAlarm", "RestartsBackingOff", 0, 1),
        ("FlipErrorsAlarm", "FlipErrors", 0, 5),
    ],
)
def test_a_metric_above_its_threshold_for_some_minutes_raises_the_alarm(
    name: str, metric_name: str, threshold: int, minutes: int, stacks: dict[str, Stack]
) -> None:
    properties = alarm(stacks["applying with a platform"], name)
    assert properties["MetricName"] == metric_name
    assert properties["Statistic"] == "Maximum"
    assert int(properties["Threshold"]) == threshold
    assert properties["ComparisonOperator"].startswith("GreaterThan")
    datapoints = properties.get("DatapointsToAlarm", properties["EvaluationPeriods"])
    assert properties["Period"] * datapoints == minutes * 60


def test_more_than_half_unknown_for_five_minutes_raises_the_alarm(applying: Stack) -> None:
    properties = alarm(applying, "UnknownAlarm")
    assert (properties["ComparisonOperator"], properties["Threshold"]) == ("GreaterThanThreshold", 0.5)
    assert properties["DatapointsToAlarm"] == 5
    names = {one["Id"]: one["MetricStat"]["Metric"]["MetricName"] for one in properties["Metrics"][1:]}
    assert names == {"unknown": "Unknown", "checked": "Checked"}
    assert properties["Metrics"][0]["Expression"] == "IF(checked > 0, unknown / checked, 0)"
    assert [one.get("ReturnData", True) for one in properties["Metrics"]] == [True, False, False]


@pytest.mark.parametrize(("given", "threshold"), [({}, 20), ({"FlipsAlarmCount": "5"}, 5)])
def test_more_flips_and_adoptions_in_ten_minutes_than_the_parameter_says_raise_the_alarm(
    given: dict[str, str], threshold: int, template: Any
) -> None:
    properties = alarm(Stack(template, DATABASE | {"Mode": "apply"} | given), "FlipsAlarm")
    assert inputs(properties) == {
        "flipped": ("Flipped", "Sum", 600),
        "adopted": ("Adopted", "Sum", 600),
        "event_flips": ("EventFlips", "Sum", 600),
    }
    assert properties["Metrics"][0]["Expression"] == "SUM([flipped, adopted, event_flips])"
    assert properties["EvaluationPeriods"] == 1
    assert (properties["ComparisonOperator"], int(properties["Threshold"])) == ("GreaterThanThreshold", threshold)


def test_a_day_on_which_every_candidate_was_on_hold_raises_the_alarm(applying: Stack) -> None:
    properties = alarm(applying, "HoldOnEverythingAlarm")
    assert inputs(properties) == {
        "on_hold": ("OnHold", "Maximum", 3600),
        "candidates": ("Candidates", "Sum", 3600),
        "cycles": ("CycleCompleted", "Sum", 3600),
    }
    expression = "IF(candidates > 0 AND on_hold * cycles >= candidates * 1, 1, 0)"
    assert properties["Metrics"][0]["Expression"] == expression
    assert (properties["ComparisonOperator"], properties["Threshold"]) == ("GreaterThanOrEqualToThreshold", 1)
    assert properties["EvaluationPeriods"] * 3600 == 24 * 3600
    assert "DatapointsToAlarm" not in properties


def inputs(properties: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    """Return what an alarm computes its value from: the metric, its statistic and its period, by the input's id."""
    value, *metrics = properties["Metrics"]
    assert value.get("ReturnData", True)
    assert not any(one["ReturnData"] for one in metrics)
    stats = {one["Id"]: one["MetricStat"] for one in metrics}
    return {one: (stat["Metric"]["MetricName"], stat["Stat"], stat["Period"]) for one, stat in stats.items()}


@pytest.mark.parametrize("name", ["the first deploy", "applying"])
def test_function_errors_and_queued_messages_raise_alarms(name: str, stacks: dict[str, Stack]) -> None:
    applying = stacks[name]
    for which, function in (("ErrorsAlarm", "Reconciler"), ("StateChangesErrorsAlarm", "StateChanges")):
        errors = alarm(applying, which)
        assert (errors["Namespace"], errors["MetricName"]) == ("AWS/Lambda", "Errors")
        assert errors["Dimensions"] == [{"Name": "FunctionName", "Value": f"<{function}>"}]
    for queue in ("FailedQueue", "UndeliveredQueue", "DeadLetterQueue"):
        messages = alarm(applying, f"{queue}Alarm")
        assert (messages["Namespace"], messages["MetricName"]) == ("AWS/SQS", "ApproximateNumberOfMessagesVisible")
        assert messages["Dimensions"] == [{"Name": "QueueName", "Value": f"<{queue}.QueueName>"}]
        assert messages["Threshold"] == 1


# ── Dashboard ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_dashboard_shows_every_alarm_of_the_stack(name: str, stacks: dict[str, Stack]) -> None:
    (shown,) = (one["alarms"] for one in properties_of_widgets(stacks[name]) if "alarms" in one)
    assert sorted(shown) == sorted(f"<{one}.Arn>" for one in stacks[name].of_type("AWS::CloudWatch::Alarm"))


@pytest.mark.parametrize("name", ["applying", "applying without events", "shards"])
def test_the_dashboard_fits_on_one_screen_without_gaps_or_overlaps(name: str, stacks: dict[str, Stack]) -> None:
    cells = [
        (x, y)
        for widget in widgets(stacks[name])
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]
    height = max(y for _, y in cells) + 1
    assert height <= 24
    assert len(cells) == len(set(cells)) == 24 * height


def test_the_picture_of_the_dashboard_shows_every_widget_with_a_value_on_every_line(stacks: dict[str, Stack]) -> None:
    """`make dashboard` draws it anew."""
    stack = stacks["applying with a platform"]
    expected = {one["properties"]["title"]: [line.label for line in lines(one)] for one in widgets(stack)}
    assert json.loads(text_in((ROOT / "docs" / "dashboard.png").read_bytes(), "Widgets")) == expected


def text_in(png: bytes, keyword: str) -> str:
    """Return a text that a PNG file carries beside the picture."""
    at = len(b"\x89PNG\r\n\x1a\n")
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        name, _, text = png[at + 8 : at + 8 + length].partition(b"\0")
        if (kind, name) == (b"tEXt", keyword.encode()):
            return text.decode("latin-1")
        at += 12 + length
    raise KeyError(keyword)


@pytest.mark.parametrize(
    "parameter", ["CycleDeadlineSeconds", "CoverageAgeAlarmSeconds", "DoubtAgeAlarmSeconds", "RestartAgeAlarmSeconds"]
)
@pytest.mark.parametrize("seconds", ["59", "7.5", "045", "4.5e1", "+9", "9."])
def test_whatever_counts_as_a_number_does_not_break_the_dashboard(parameter: str, seconds: str, template: Any) -> None:
    """CloudFormation hands a number on as it was written, and JSON knows neither 045 nor +9."""
    stack = Stack(template, DATABASE | {parameter: seconds})
    factor = {"CycleDeadlineSeconds": 1000}.get(parameter, 1)
    lines = [
        one["expression"]
        for widget in properties_of_widgets(stack)
        for metric in widget.get("metrics", [])
        for one in metric
        if isinstance(one, dict) and "expression" in one and seconds in one["expression"]
    ]
    (value, *times) = re.fullmatch(r"TIME_SERIES\((.+)\)", lines[0])[1].split(" * ")  # type: ignore[index]
    assert len(lines) == 1
    assert float(value) * float(*times or "1") == float(seconds) * factor


@pytest.mark.parametrize(
    ("partition", "region", "console"),
    [
        ("aws", "eu-central-1", "console.aws.amazon.com"),
        ("aws-cn", "cn-north-1", "console.amazonaws.cn"),
        ("aws-us-gov", "us-gov-west-1", "console.amazonaws-us-gov.com"),
        ("aws-eusc", "eusc-de-east-1", "console.amazonaws-eusc.eu"),
    ],
)
def test_the_dashboard_s_address_is_that_of_the_partition_s_own_console(
    partition: str, region: str, console: str, template: Any
) -> None:
    address = Stack(template, DATABASE, partition=partition, region=region).outputs["DashboardUrl"]["Value"]
    assert address == f"https://{region}.{console}/cloudwatch/home?region={region}#dashboards/dashboard/<Dashboard>"


def test_the_dashboard_s_widgets_show_the_stack_s_region(applying: Stack) -> None:
    for widget in properties_of_widgets(applying):
        assert widget.get("region", REGION) == REGION
