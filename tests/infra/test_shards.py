"""Several shards: the schedule starts a workflow, and this invokes the reconciler once for each.

tests/e2e/test_shards.py has the real handler behind it.
"""

import json
from collections import Counter
from typing import Any

import pytest

from sandbox.lambda_api import Invoked, LambdaApi
from tests.infra.conftest import COMBINATIONS
from tests.infra.test_observability import alarm, inputs
from tests.infra.test_template import allowed
from tests.support.cloudformation import Stack
from tests.support.cloudwatch import lines, widgets
from tests.support.workflow import FUNCTION, definition, execute

SHARDS = 8
EVERY_SHARD = [{"mode": "apply", "shard": number, "shards": SHARDS} for number in range(SHARDS)]


@pytest.fixture(scope="module")
def sharded(stacks: dict[str, Stack]) -> Stack:
    return stacks["shards"]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_there_is_a_workflow_only_with_several_shards(name: str, stacks: dict[str, Stack]) -> None:
    parts = {one for one in stacks[name].resources if one.startswith("Shards")}
    several = stacks[name].parameters["Shards"] != "1"
    assert parts == ({"ShardsAlarm", "ShardsLogGroup", "ShardsRole", "ShardsWorkflow"} if several else set())
    (schedule,) = stacks[name].of_type("AWS::Scheduler::Schedule").values()
    assert schedule["Target"]["Arn"] == ("<ShardsWorkflow>" if several else "<Reconciler.Arn>")


def test_the_workflow_is_an_express_one_and_logs_what_fails(sharded: Stack) -> None:
    machine = sharded.properties("ShardsWorkflow")
    assert machine["StateMachineType"] == "EXPRESS"
    logging = machine["LoggingConfiguration"]
    assert logging["Level"] == "ERROR"
    (destination,) = logging["Destinations"]
    assert destination == {"CloudWatchLogsLogGroup": {"LogGroupArn": "<ShardsLogGroup.Arn>"}}
    assert machine["RoleArn"] == "<ShardsRole.Arn>"


def test_the_workflow_may_invoke_the_reconciler_and_nothing_else(sharded: Stack) -> None:
    rights = allowed(sharded, "ShardsRole")
    del rights["*"]  # the delivery of its log: tests/infra/test_template.py
    assert rights == {"<Reconciler.Arn>": {"lambda:InvokeFunction"}}


def test_all_attempts_end_within_the_minute(sharded: Stack) -> None:
    workflow = json.loads(definition(sharded))
    invoke = workflow["States"]["Shards"]["ItemProcessor"]["States"]["Invoke"]
    (retry,) = invoke["Retry"]
    longest_s = sum(retry["IntervalSeconds"] * retry["BackoffRate"] ** n for n in range(retry["MaxAttempts"]))
    assert longest_s < 10
    assert workflow["TimeoutSeconds"] < 60
    assert "Lambda.TooManyRequestsException" in retry["ErrorEquals"]


def played(stack: Stack, refused: frozenset[int] = frozenset()) -> tuple[dict[str, Any], list[Invoked], list[Any]]:
    """Execute the workflow; return how it ended, what it asked Lambda for, and the events that were taken."""
    taken: list[Any] = []
    with LambdaApi(taken.append, refuse=lambda event: event["shard"] in refused) as api:
        return execute(definition(stack), api), api.invocations, taken


def test_every_shard_is_invoked_once_asynchronously_with_its_number(sharded: Stack) -> None:
    ended, invocations, taken = played(sharded)
    assert ended == {"status": "SUCCEEDED", "error": None}
    assert sorted(taken, key=lambda event: event["shard"]) == EVERY_SHARD
    assert [(one.function, one.kind) for one in invocations] == [(FUNCTION, "Event")] * SHARDS


def test_a_shard_that_cannot_be_invoked_costs_only_itself_and_the_execution_fails(sharded: Stack) -> None:
    ended, invocations, taken = played(sharded, frozenset({3}))
    assert ended == {"status": "FAILED", "error": "NotAllInvoked"}
    assert sorted(taken, key=lambda event: event["shard"]) == [one for one in EVERY_SHARD if one["shard"] != 3]
    assert Counter(one.event["shard"] for one in invocations) == {n: 4 if n == 3 else 1 for n in range(SHARDS)}


# ── Alarms and dashboard ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_shard_that_never_completes_raises_the_alarm_although_the_others_do(sharded: Stack) -> None:
    properties = alarm(sharded, "NoCycleAlarm")
    assert (properties["MetricName"], properties["Statistic"]) == ("CycleCompleted", "Sum")
    assert (properties["ComparisonOperator"], properties["Threshold"]) == ("LessThanThreshold", str(SHARDS))
    assert "Fewer cycles than 8 a minute" in properties["AlarmDescription"]
    assert alarm(sharded, "CoverageAgeAlarm")["Statistic"] == "Maximum", "whoever reports, it is of the oldest shard"


def test_executions_that_fail_time_out_or_are_throttled_raise_the_alarm(sharded: Stack) -> None:
    properties = alarm(sharded, "ShardsAlarm")
    assert inputs(properties) == {
        "failed": ("ExecutionsFailed", "Sum", 60),
        "timed_out": ("ExecutionsTimedOut", "Sum", 60),
        "throttled": ("ExecutionThrottled", "Sum", 60),
    }
    assert properties["Metrics"][0]["Expression"] == "SUM([failed, timed_out, throttled])"
    for one in properties["Metrics"][1:]:
        metric = one["MetricStat"]["Metric"]
        assert metric["Namespace"] == "AWS/States"
        assert metric["Dimensions"] == [{"Name": "StateMachineArn", "Value": "<ShardsWorkflow>"}]
    assert (properties["EvaluationPeriods"], properties["DatapointsToAlarm"]) == (5, 2)


def test_a_hold_on_everything_is_told_from_one_on_as_many_as_a_shard_has(sharded: Stack) -> None:
    """OnHold is of the whole fleet, Candidates of one shard."""
    expression = alarm(sharded, "HoldOnEverythingAlarm")["Metrics"][0]["Expression"]
    assert expression == "IF(candidates > 0 AND on_hold * cycles >= candidates * 8, 1, 0)"


@pytest.mark.parametrize(("name", "statistic"), [("applying", "Maximum"), ("shards", "Sum")])
def test_the_dashboard_adds_up_what_each_shard_counts_of_its_own_part(
    name: str, statistic: str, stacks: dict[str, Stack]
) -> None:
    drawn = [line for widget in widgets(stacks[name]) for line in lines(widget)]
    shown = {line.metric.name: line.stat for line in drawn if line.metric is not None}
    own = ("Candidates", "Checked", "Dead", "Unknown", "Impaired", "Deferred")
    assert {shown[one] for one in own} == {statistic}
    whole = ("OnHold", "OfflineUnowed", "Unrecorded", "RestartsPending", "OldestDoubtAge", "CoverageAge", "BreakerOpen")
    assert {shown[one] for one in whole} == {"Maximum"}
    assert ("ExecutionsFailed" in shown) == (name == "shards")
