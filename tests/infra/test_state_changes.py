"""The way of a state-change event: rule, queue, mapping, function, dead letters."""

import json
from typing import Any

import pytest

from handler.process import seconds_for
from handler.settings import Settings
from sandbox.lambda_context import LambdaContext
from tests.infra.conftest import COMBINATIONS
from tests.infra.test_template import allowed, known_variables
from tests.support.cloudformation import Stack
from tests.support.events import event


@pytest.fixture
def stack(stacks: dict[str, Stack]) -> Stack:
    return stacks["everything"]


def the_mapping(stack: Stack) -> dict[str, Any]:
    (mapping,) = stack.of_type("AWS::Lambda::EventSourceMapping").values()
    return mapping  # type: ignore[no-any-return]


def test_the_parameter_leaves_out_all_of_it_and_nothing_else(stacks: dict[str, Stack]) -> None:
    whole, without = stacks["applying"].resources, stacks["applying without events"].resources
    left_out = whole.keys() - without.keys()
    assert {one for one in left_out if not one.startswith("StateChanges")} == {
        "DeadLetterQueue",
        "DeadLetterQueueAlarm",
        "UndeliveredQueuePolicy",
    }
    assert not [one for one in without if "StateChange" in one or "DeadLetter" in one]
    assert "StateChange" not in json.dumps(without)


@pytest.mark.parametrize(("name", "state"), [("the first deploy", "ENABLED"), ("applying by hand", "DISABLED")])
def test_the_rule_passes_on_deaths_alone_and_only_while_the_schedule_runs(
    name: str, state: str, stacks: dict[str, Stack]
) -> None:
    rule = stacks[name].properties("StateChangesRule")
    assert rule["State"] == state
    sample = event("ec2-state-change")
    assert rule["EventPattern"] == {
        "source": [sample["source"]],
        "detail-type": [sample["detail-type"]],
        "detail": {"state": ["stopped", "terminated"]},
    }
    assert sample["detail"]["state"] in rule["EventPattern"]["detail"]["state"]
    (target,) = rule["Targets"]
    assert target["Arn"] == "<StateChangesQueue.Arn>"
    assert "InputTransformer" not in target
    assert target["DeadLetterConfig"] == {"Arn": "<UndeliveredQueue.Arn>"}
    assert target["RetryPolicy"]["MaximumEventAgeInSeconds"] == 15 * 60, "from then on an event's time counts no more"


@pytest.mark.parametrize("queue", ["StateChangesQueue", "UndeliveredQueue"])
def test_nobody_but_the_rules_is_let_in_by_a_queue_s_policy(queue: str, stack: Stack) -> None:
    policy = stack.properties(f"{queue}Policy")
    assert policy["Queues"] == [f"<{queue}>"]
    (entry,) = (one for one in policy["PolicyDocument"]["Statement"] if one["Effect"] == "Allow")
    assert entry["Principal"] == {"Service": "events.amazonaws.com"}
    assert (entry["Action"], entry["Resource"]) == ("sqs:SendMessage", f"<{queue}.Arn>")
    rules = [f"<{rule}.Arn>" for rule in stack.of_type("AWS::Events::Rule")]
    assert rules == ["<StateChangesRule.Arn>", "<StateChangesForwardedRule.Arn>"]
    assert entry["Condition"] == {"ArnEquals": {"aws:SourceArn": rules}}


def test_the_queue_refuses_everything_that_is_not_encrypted_on_its_way(stack: Stack) -> None:
    statements = stack.properties("StateChangesQueuePolicy")["PolicyDocument"]["Statement"]
    (denied,) = (one for one in statements if one["Effect"] == "Deny")
    assert (denied["Principal"], denied["Action"]) == ("*", "sqs:*")
    assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_batches_are_small_and_come_two_at_a_time_and_single_messages_may_fail(stack: Stack) -> None:
    mapping = the_mapping(stack)
    assert (mapping["EventSourceArn"], mapping["FunctionName"]) == ("<StateChangesQueue.Arn>", "<StateChanges>")
    assert (mapping["BatchSize"], mapping["MaximumBatchingWindowInSeconds"]) == (100, 2)
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": 2}
    assert stack.properties("StateChanges")["Handler"] == "handler.events.lambda_handler"


def test_the_queue_s_times_fit_the_function_s(stack: Stack) -> None:
    """As https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html asks for."""
    queue, timeout = stack.properties("StateChangesQueue"), stack.properties("StateChanges")["Timeout"]
    hidden = queue["VisibilityTimeout"]
    assert hidden >= 6 * timeout + the_mapping(stack)["MaximumBatchingWindowInSeconds"]
    receives = queue["RedrivePolicy"]["maxReceiveCount"]
    assert receives >= 5
    assert queue["MessageRetentionPeriod"] == 3600
    assert receives * hidden < 3600, "it is given up, with an alarm, before it expires unseen"
    assert hidden < stack.of_type("AWS::CloudWatch::Alarm")["StateChangesAgeAlarm"]["Threshold"] < 2 * hidden
    deadline = int(stack.environment("StateChanges")["CYCLE_DEADLINE_SECONDS"])
    assert seconds_for(deadline, LambdaContext(timeout)) == deadline, "a batch ends by itself"


def test_what_is_given_up_is_kept_longer_than_it_was_tried(stack: Stack) -> None:
    queue = stack.properties("StateChangesQueue")
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == "<DeadLetterQueue.Arn>"
    assert stack.properties("DeadLetterQueue")["MessageRetentionPeriod"] > queue["MessageRetentionPeriod"]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_role_lets_lambda_take_messages_from_the_queue_and_the_code_send_none(
    name: str, stacks: dict[str, Stack]
) -> None:
    for role in stacks[name].of_type("AWS::IAM::Role"):
        rights = {
            resource: actions
            for resource, actions in allowed(stacks[name], role).items()
            if resource.startswith("<StateChangesQueue")
        }
        expected = {"<StateChangesQueue.Arn>": {"sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"}}
        assert rights == (expected if role == "StateChangesRole" else {})
    if "StateChangesRole" in stacks[name].resources:
        assert "sqs:SendMessage" not in set().union(*allowed(stacks[name], "StateChangesRole").values())


def test_the_role_has_no_right_that_the_reconciler_lacks_but_those_to_its_queue_and_log(stack: Stack) -> None:
    own, reconciler = allowed(stack, "StateChangesRole"), allowed(stack, "ReconcilerRole")
    more = {one for one, actions in own.items() if not actions <= reconciler.get(one, set())}
    assert more == {"<StateChangesQueue.Arn>", "<StateChangesLogGroup.Arn>"}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_function_has_the_reconciler_s_settings_but_those_that_it_has_no_use_for(
    name: str, stacks: dict[str, Stack], template: Any
) -> None:
    if "StateChanges" not in stacks[name].resources:
        return
    own, reconciler = (stacks[name].environment(one) for one in ("StateChanges", "Reconciler"))
    left_out = template["Metadata"]["NotForStateChanges"].keys()
    assert own.keys() == reconciler.keys() - left_out
    assert {one for one, value in own.items() if value != reconciler[one]} <= {"CYCLE_DEADLINE_SECONDS"}
    assert left_out <= known_variables()
    assert Settings.from_env({**own, "DATABASE_CA_FILE": "", "HTTPS_CA_FILE": ""}).platform is None


def test_an_event_that_waits_for_more_than_five_minutes_raises_an_alarm(stack: Stack) -> None:
    alarm = stack.of_type("AWS::CloudWatch::Alarm")["StateChangesAgeAlarm"]
    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/SQS", "ApproximateAgeOfOldestMessage")
    assert alarm["Dimensions"] == [{"Name": "QueueName", "Value": "<StateChangesQueue.QueueName>"}]
    assert (alarm["Statistic"], alarm["ComparisonOperator"], alarm["Threshold"]) == (
        "Maximum",
        "GreaterThanThreshold",
        300,
    )


def test_the_dashboard_shows_the_latency_s_median_and_its_99th_percentile(stack: Stack) -> None:
    body = json.loads(stack.properties("Dashboard")["DashboardBody"])
    (latency,) = (
        widget["properties"]["metrics"]
        for widget in body["widgets"]
        if any("DetectionLatency" in line for line in widget["properties"].get("metrics", []))
    )
    assert {line[-1]["stat"] for line in latency} == {"p50", "p99"}


def test_the_table_of_latest_flips_reads_both_functions_logs(stacks: dict[str, Stack]) -> None:
    for name, sources in (
        ("applying", ["<LogGroup>", "<StateChangesLogGroup>"]),
        ("applying without events", ["<LogGroup>"]),
    ):
        body = json.loads(stacks[name].properties("Dashboard")["DashboardBody"])
        (query,) = (one["properties"]["query"] for one in body["widgets"] if one["type"] == "log")
        parts = [part.strip() for part in query.split("|")]
        assert [one for one in parts if one.startswith("SOURCE")] == [f"SOURCE '{source}'" for source in sources]
