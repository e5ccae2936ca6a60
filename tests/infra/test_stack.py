"""moto's CloudFormation creates the stack."""

import json
import re
from fnmatch import fnmatchcase
from typing import Any

import pytest

from tests.infra.conftest import COMBINATIONS
from tests.support.cloudformation import ACCOUNT, Stack
from tests.support.tools import run, tool

# moto's CloudFormation skips these types with a warning, so other tests check them on the template alone.
UNKNOWN_TO_MOTO = {
    "AWS::CloudWatch::Alarm",
    "AWS::Events::EventBus",  # it creates a bus, but does not list it
    "AWS::Events::EventBusPolicy",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Logs::QueryDefinition",
    "AWS::Scheduler::Schedule",
    "AWS::Scheduler::ScheduleGroup",
    "AWS::SQS::QueuePolicy",
}


CREATED = ("the first deploy", "everything", "alarms by mail", "IAM authentication without a secret")


@pytest.fixture(scope="module")
def created(templates: dict[str, Any]) -> dict[str, list[Any]]:
    """Two stacks for each of these combinations of parameters."""
    requests = json.dumps([{"template": templates[name], "parameters": COMBINATIONS[name]} for name in CREATED])
    requests = re.sub(r"\$\{(\w+Alarm)\.Arn\}", r"\1", requests)  # the dashboard refers to alarms, which moto skips
    group = json.dumps({"Fn::GetAtt": ["ScheduleGroup", "Arn"]})  # the schedule's role refers to it
    requests = requests.replace(group, '"arn:aws:scheduler:eu-central-1:123456789012:schedule-group/reconciler"')
    answers = run([tool("deploy", "python"), "tests/infra/tools/create_stack.py"], stdin=requests)
    return dict(zip(CREATED, json.loads(answers), strict=True))


@pytest.mark.parametrize("name", CREATED)
def test_two_stacks_live_side_by_side_in_one_account(name: str, created: dict[str, list[Any]]) -> None:
    blue, green = created[name]
    assert blue["status"] == green["status"] == "CREATE_COMPLETE"
    assert not set(blue["resources"].values()) & set(green["resources"].values())


@pytest.mark.parametrize("name", CREATED)
def test_moto_creates_every_resource_whose_type_it_knows(
    name: str, created: dict[str, list[Any]], stacks: dict[str, Stack]
) -> None:
    blue, _ = created[name]
    expected = {
        logical_id for logical_id, resource in stacks[name].resources.items() if resource["Type"] not in UNKNOWN_TO_MOTO
    }
    assert blue["resources"].keys() == expected


@pytest.mark.parametrize("name", CREATED)
def test_the_created_function_matches_the_template(
    name: str, created: dict[str, list[Any]], stacks: dict[str, Stack]
) -> None:
    function = created[name][0]["function"]
    assert function["Runtime"] == "python3.13"
    assert function["Handler"] == "handler.app.lambda_handler"
    assert function["Timeout"] == 55
    found = {key: str(value) for key, value in function["Environment"]["Variables"].items()}
    assert found == stacks[name].environment("Reconciler") | {"POWERTOOLS_SERVICE_NAME": "blue"}


@pytest.mark.parametrize("name", CREATED)
def test_the_dashboard_carries_the_stack_s_name(name: str, created: dict[str, list[Any]]) -> None:
    assert [stack["dashboards"] for stack in created[name]] == [["blue-eu-central-1"], ["green-eu-central-1"]]


@pytest.mark.parametrize("name", CREATED)
def test_the_output_for_target_accounts_matches_the_functions_roles_and_no_others(
    name: str, created: dict[str, list[Any]], stacks: dict[str, Stack]
) -> None:
    blue, green = created[name]
    patterns = blue["outputs"]["FunctionRoleArns"].split(",")
    roles = stacks[name].of_type("AWS::IAM::Role")
    matched = [
        one
        for stack in (blue, green)
        for one in roles
        if any(fnmatchcase(f"arn:aws:iam::{ACCOUNT}:role/{stack['resources'][one]}", pattern) for pattern in patterns)
    ]
    assert sorted(matched) == ["ReconcilerRole", "StateChangesRole"], "of this stack, not of the other"
