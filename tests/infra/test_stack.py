"""The stack, created in moto's CloudFormation."""

import json
import re
from typing import Any

import pytest

from tests.infra.conftest import COMBINATIONS
from tests.support.cloudformation import Stack
from tests.support.tools import run, tool

# What moto's CloudFormation creates nothing for (it warns, and goes on): these are asserted on the template only.
UNKNOWN_TO_MOTO = {
    "AWS::CloudWatch::Alarm",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Logs::QueryDefinition",
    "AWS::Scheduler::Schedule",
}


CREATED = ("the first deploy", "everything", "alarms by mail")


@pytest.fixture(scope="module")
def created(templates: dict[str, Any]) -> dict[str, list[Any]]:
    """Two stacks for each of some combinations of parameters."""
    orders = json.dumps([{"template": templates[name], "parameters": COMBINATIONS[name]} for name in CREATED])
    orders = re.sub(r"\$\{(\w+Alarm)\.Arn\}", r"\1", orders)  # the dashboard refers to alarms, which moto skips
    answers = run([tool("deploy", "python"), "tests/infra/tools/create_stack.py"], stdin=orders)
    return dict(zip(CREATED, json.loads(answers), strict=True))


@pytest.mark.parametrize("name", CREATED)
def test_two_stacks_live_side_by_side_in_one_account(name: str, created: dict[str, list[Any]]) -> None:
    blue, green = created[name]
    assert blue["status"] == green["status"] == "CREATE_COMPLETE"
    assert not set(blue["resources"].values()) & set(green["resources"].values())


@pytest.mark.parametrize("name", CREATED)
def test_every_resource_that_moto_knows_is_created(
    name: str, created: dict[str, list[Any]], stacks: dict[str, Stack]
) -> None:
    blue, _ = created[name]
    expected = {
        logical_id for logical_id, resource in stacks[name].resources.items() if resource["Type"] not in UNKNOWN_TO_MOTO
    }
    assert blue["resources"].keys() == expected


@pytest.mark.parametrize("name", CREATED)
def test_the_function_is_the_one_that_the_template_describes(
    name: str, created: dict[str, list[Any]], stacks: dict[str, Stack]
) -> None:
    function = created[name][0]["function"]
    assert function["Runtime"] == "python3.13"
    assert function["Handler"] == "handler.app.lambda_handler"
    assert function["Timeout"] == 55
    found = {key: str(value) for key, value in function["Environment"]["Variables"].items()}
    assert found == stacks[name].environment("Reconciler") | {"POWERTOOLS_SERVICE_NAME": "blue"}


@pytest.mark.parametrize("name", CREATED)
def test_the_dashboard_bears_the_stack_s_name(name: str, created: dict[str, list[Any]]) -> None:
    assert [stack["dashboards"] for stack in created[name]] == [["blue-eu-central-1"], ["green-eu-central-1"]]
