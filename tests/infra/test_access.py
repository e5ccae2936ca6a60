"""Who may take on the stack's roles, and who may invoke what."""

import json
import re
from typing import Any

import pytest

from tests.infra.conftest import COMBINATIONS
from tests.support.cloudformation import ACCOUNT, Stack
from tests.support.tools import ROOT

DEPLOY = (ROOT / "docs" / "deploy.md").read_text()


def trust(stack: Stack, role: str) -> dict[str, Any]:
    (statement,) = stack.properties(role)["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Action"] == "sts:AssumeRole"
    return statement  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_role_trusts_one_service_on_behalf_of_this_account_alone(name: str, stacks: dict[str, Stack]) -> None:
    expected = dict.fromkeys(("ReconcilerRole", "StateChangesRole", "InstallerRole"), "lambda.amazonaws.com")
    expected |= {"ScheduleRole": "scheduler.amazonaws.com", "ShardsRole": "states.amazonaws.com"}
    for role in stacks[name].of_type("AWS::IAM::Role"):
        statement = trust(stacks[name], role)
        assert statement["Principal"] == {"Service": expected[role]}
        assert statement["Condition"].keys() == {"StringEquals"}
        assert statement["Condition"]["StringEquals"]["aws:SourceAccount"] == ACCOUNT


@pytest.mark.parametrize("name", COMBINATIONS)
def test_only_schedules_of_the_stack_s_own_group_have_the_schedule_s_role(name: str, stacks: dict[str, Stack]) -> None:
    stack = stacks[name]
    assert trust(stack, "ScheduleRole")["Condition"]["StringEquals"]["aws:SourceArn"] == "<ScheduleGroup.Arn>"
    (schedule,) = stack.of_type("AWS::Scheduler::Schedule").values()
    assert schedule["GroupName"] == "<ScheduleGroup>"
    assert stack.of_type("AWS::Scheduler::ScheduleGroup") == {"ScheduleGroup": {}}, "two stacks have two groups"


# --- the policies that docs/deploy.md gives ---


def policy(heading: str) -> list[dict[str, Any]]:
    """Return the statements of the policy that follows a bold heading."""
    found = re.search(rf"\*\*{re.escape(heading)}.*?```json\n(.*?)```", DEPLOY, re.DOTALL)
    assert found, heading
    statements: list[dict[str, Any]] = json.loads(found[1])["Statement"]
    return statements


def actions(statements: list[dict[str, Any]]) -> set[str]:
    return {action for statement in statements for action in statement["Action"]}


def test_who_may_only_look_can_invoke_change_and_read_no_secret_and_no_event() -> None:
    looking = policy("May look")
    assert {statement["Effect"] for statement in looking} == {"Allow"}
    verbs = {action.partition(":")[2] for action in actions(looking)}
    assert all(re.match(r"(Describe|Get|List|Filter|StartQuery|StopQuery)", verb) for verb in verbs)
    services = {action.partition(":")[0] for action in actions(looking)}
    assert services == {"cloudwatch", "logs", "sqs"}
    assert "sqs:ReceiveMessage" not in actions(looking)


def test_who_may_order_can_invoke_the_reconciler_and_nothing_else() -> None:
    (ordering,) = policy("May give orders")
    assert ordering["Effect"] == "Allow"
    assert ordering["Action"] == ["lambda:InvokeFunction"]
    assert ordering["Resource"] == ["arn:aws:lambda:REGION:ACCOUNT:function:RECONCILER"]


def test_the_section_names_every_order_that_needs_the_right() -> None:
    section = DEPLOY.partition("## Who may do what")[2].partition("\n## ")[0]
    orders = ("override_breaker", "release", "adopt", "hold")
    assert not [order for order in orders if f"`{order}`" not in section]
