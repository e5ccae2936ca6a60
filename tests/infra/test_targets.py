"""Several Regions and accounts: what the stack may ask and whom it lets in, and what a target account gets."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from handler.settings import Settings
from handler.targets import targets_from
from tests.infra.conftest import COMBINATIONS, OTHER_ACCOUNT, TARGET_ROLES, TARGETS
from tests.infra.test_template import DESCRIBES, allowed, as_list, statements
from tests.support.cloudformation import ACCOUNT, REGION, STACK, Stack
from tests.support.events import event
from tests.support.tools import ROOT, run, tool

FUNCTIONS = ("Reconciler", "StateChanges")
BUS = f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/reconciler"
HOME = {
    "HomeRoleArns": ",".join(f"arn:aws:iam::{ACCOUNT}:role/reconciler-{one}Role-*" for one in FUNCTIONS),
    "HomeEventBusArn": BUS,
    "ExternalId": "words/of:our-own",
}


# ── The home account ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_both_functions_ask_the_listed_targets(name: str, function: str, stacks: dict[str, Stack]) -> None:
    stack = stacks[name]
    if function in stack.resources:
        listed = COMBINATIONS[name].get("Ec2Targets", "")
        environment = {**stack.environment(function), "DATABASE_CA_FILE": "", "HTTPS_CA_FILE": ""}
        assert Settings.from_env(environment).ec2_targets == (targets_from(listed) if listed else ())


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_functions_may_assume_exactly_the_listed_roles_and_only_to_ask_ec2(
    name: str, stacks: dict[str, Stack]
) -> None:
    listed = COMBINATIONS[name].get("Ec2TargetRoleArns") and COMBINATIONS[name].get("Probe", "ec2") == "ec2"
    for role in stacks[name].of_type("AWS::IAM::Role"):
        may = {one for one, actions in allowed(stacks[name], role).items() if "sts:AssumeRole" in actions}
        asks = role in ("ReconcilerRole", "StateChangesRole")
        assert may == (set(TARGET_ROLES) if listed and asks else set())


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("the first deploy", {"StringEquals": {"aws:RequestedRegion": REGION}}),
        ("targets in other Regions", None),
        ("targets", None),
    ],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_describes_are_limited_to_one_region_until_targets_are_listed(
    function: str, name: str, condition: Any, stacks: dict[str, Stack]
) -> None:
    (describes,) = (one for one in statements(stacks[name], f"{function}Role") if one["Sid"] == "Instances")
    assert describes.get("Condition") == condition


def test_the_bus_admits_the_listed_accounts_alone_and_only_state_changes(stacks: dict[str, Stack]) -> None:
    stack, sample = stacks["targets"], event("ec2-state-change")
    policy = stack.properties("StateChangesBusPolicy")
    assert policy["EventBusName"] == "<StateChangesBus.Name>"
    assert policy["Statement"] == {
        "Effect": "Allow",
        "Principal": {"AWS": [OTHER_ACCOUNT, "210987654322"]},
        "Action": "events:PutEvents",
        "Resource": "<StateChangesBus.Arn>",
        "Condition": {
            "ForAllValues:StringEquals": {"events:source": sample["source"]},
            "StringEquals": {"events:detail-type": sample["detail-type"]},
        },
    }


@pytest.mark.parametrize(
    ("name", "bus", "policy"),
    [
        ("applying", False, False),
        ("targets without events", False, False),
        ("targets in other Regions", True, False),
        ("targets", True, True),
    ],
)
def test_the_bus_exists_only_if_somebody_may_forward_to_it(
    name: str, *, bus: bool, policy: bool, stacks: dict[str, Stack]
) -> None:
    resources = stacks[name].resources
    assert ("StateChangesBus" in resources) == ("StateChangesForwardedRule" in resources) == bus
    assert ("StateChangesBusPolicy" in resources) == policy
    assert ("StateChangesBusArn" in stacks[name].outputs) == bus


def test_forwarded_events_go_the_way_of_our_own(stacks: dict[str, Stack]) -> None:
    own, forwarded = (stacks["targets"].properties(f"StateChanges{one}Rule") for one in ("", "Forwarded"))
    assert forwarded.pop("EventBusName") == "<StateChangesBus.Name>"
    assert "EventBusName" not in own
    assert own.pop("Description") != forwarded.pop("Description")
    assert own == forwarded


def test_no_other_rule_of_the_account_sees_forwarded_events(stacks: dict[str, Stack]) -> None:
    (bus,) = stacks["targets"].of_type("AWS::Events::EventBus").values()
    assert bus["Name"] == STACK


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (
            "Ec2Targets",
            [
                "",
                '[{"region":"eu-west-1"}]',
                '[ { "region": "us-gov-east-1" } , {"region": "ap-southeast-2", "may_be_empty": false} ]',
                TARGETS["Ec2Targets"],
            ],
            [
                "[]",
                "eu-west-1",
                "{}",
                '["eu-west-1"]',
                '{"region": "eu-west-1"}',
                '[{"region": "EU"}]',
                '[{"region": "eu-west-1"},]',
                '[{"region": "eu-west-1", "may_be_empty": "true"}]',
                '[{"region": "eu-west-1", "role": "x"}]',
                '[{"region": "eu-west-1", "role_arn": "instance-state-reconciler"}]',
                '[{"region": "eu-west-1", "role_arn": "arn:aws:iam::210987654321:user/x"}]',
                '[{"region": "eu-west-1", "external_id": "a b"}]',
            ],
        ),
        (
            "Ec2TargetRoleArns",
            ["", *TARGET_ROLES, TARGETS["Ec2TargetRoleArns"], "arn:aws-cn:iam::210987654321:role/a/b/c"],
            ["*", f"{TARGET_ROLES[0]},", ", ".join(TARGET_ROLES), f"{TARGET_ROLES[0]}*", "arn:aws:iam::1:role/x"],
        ),
        ("Ec2TargetAccounts", ["", OTHER_ACCOUNT, TARGETS["Ec2TargetAccounts"]], ["*", "2109", f"{OTHER_ACCOUNT},"]),
    ],
)
def test_patterns_accept_good_lists_and_refuse_bad_ones(
    parameter: str, good: list[str], bad: list[str], template: Any
) -> None:
    pattern = re.compile(template["Parameters"][parameter]["AllowedPattern"])
    assert [value for value in good if not pattern.search(value)] == []
    assert [value for value in bad if pattern.search(value)] == []
    for value in good:
        if value and parameter == "Ec2Targets":
            targets_from(value)  # the handler accepts what the template accepts


def test_the_longest_list_leaves_room_for_a_function_s_other_variables(template: Any) -> None:
    """Lambda gives all variables of a function 4 KB."""
    parameters = {**COMBINATIONS["everything"], "Ec2Targets": ""}
    environment = Stack(template, parameters).environment("Reconciler")
    others = len(json.dumps(environment).encode())
    assert others + template["Parameters"]["Ec2Targets"]["MaxLength"] < 4096 - 256


def test_sam_keeps_the_list_as_it_was_typed() -> None:
    """Its quotes would end the value in samconfig.toml."""
    listed = TARGETS["Ec2Targets"]
    script = (
        "import sys; from samcli.cli.types import CfnParameterOverridesType;"
        "from samcli.commands.deploy.guided_config import GuidedConfig;"
        "quoted = GuidedConfig.quote_parameter_values(sys.stdin.read());"
        "saved = 'Mode=\"apply\" Ec2Targets=' + quoted + ' Probe=\"ec2\"';"
        "print(CfnParameterOverridesType().convert((saved,), None, None)['Ec2Targets'], end='')"
    )
    assert run([tool("deploy", "python"), "-c", script], stdin=listed) == listed


# ── The target's account ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def target_template() -> Any:
    return json.loads(run([tool("deploy", "python"), "tests/infra/tools/read.py", "infra/target.yaml"]))


class Target(Stack):
    """The stack of infra/target.yaml in an account and Region."""

    def __init__(self, template: Mapping[str, Any], account: str, region: str, **more: str) -> None:
        super().__init__(template, {**HOME, **more}, region=region, account=account)


@pytest.fixture
def target(target_template: Any) -> Stack:
    return Target(target_template, OTHER_ACCOUNT, "eu-west-1")


def test_the_role_trusts_the_home_account_s_functions_by_name_and_only_with_the_external_id(target: Stack) -> None:
    """By name, so that it trusts a role that is made anew, too: as a principal, IAM would keep the old one's id."""
    (trust,) = target.properties("Role")["AssumeRolePolicyDocument"]["Statement"]
    assert trust == {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
        "Action": "sts:AssumeRole",
        "Condition": {
            "ArnLike": {"aws:PrincipalArn": HOME["HomeRoleArns"].split(",")},
            "StringEquals": {"sts:ExternalId": HOME["ExternalId"]},
        },
    }


def test_the_role_has_the_reconciler_s_own_describes_in_its_region_and_nothing_else(target: Stack) -> None:
    (statement,) = statements(target, "Role")
    assert set(statement["Action"]) == DESCRIBES
    assert statement["Condition"] == {"StringEquals": {"aws:RequestedRegion": "eu-west-1"}}


def test_the_rule_forwards_what_the_reconciler_s_own_rule_takes(target: Stack, stacks: dict[str, Stack]) -> None:
    own, forwarding = stacks["targets"].properties("StateChangesRule"), target.properties("ForwardingRule")
    assert forwarding["EventPattern"] == own["EventPattern"]
    (there,), (here,) = own["Targets"], forwarding["Targets"]
    assert (here["Arn"], here["RoleArn"]) == (BUS, "<ForwardingRole.Arn>")
    assert here["RetryPolicy"] == there["RetryPolicy"]


def test_the_rule_s_role_may_put_events_on_the_home_bus_and_is_this_account_s_events_alone(target: Stack) -> None:
    assert allowed(target, "ForwardingRole") == {BUS: {"events:PutEvents"}}
    (trust,) = target.properties("ForwardingRole")["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "events.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": OTHER_ACCOUNT}}


@pytest.mark.parametrize(
    ("account", "bus", "expected"),
    [
        (OTHER_ACCOUNT, BUS, {"Role", "ForwardingRule", "ForwardingRole"}),
        (OTHER_ACCOUNT, "", {"Role"}),
        (ACCOUNT, BUS, {"ForwardingRule", "ForwardingRole"}),
    ],
)
def test_the_home_account_s_other_regions_need_no_role_and_without_a_bus_nothing_is_forwarded(
    account: str, bus: str, expected: set[str], target_template: Any
) -> None:
    assert Target(target_template, account, "eu-west-1", HomeEventBusArn=bus).resources.keys() == expected


def test_every_role_has_the_permissions_boundary_if_the_account_asks_for_one(target_template: Any) -> None:
    boundary = f"arn:aws:iam::{OTHER_ACCOUNT}:policy/boundary"
    for given, expected in (({}, None), ({"PermissionsBoundaryArn": boundary}, boundary)):
        roles = Target(target_template, OTHER_ACCOUNT, "eu-west-1", **given).of_type("AWS::IAM::Role").values()
        assert [role.get("PermissionsBoundary") for role in roles] == [expected, expected]


def test_a_stack_in_each_of_two_regions_of_one_account_gives_the_roles_that_the_list_names(
    target_template: Any,
) -> None:
    """Names of roles are the account's, so a StackSet over two Regions could not create the same one twice."""
    regions = [one.rpartition("reconciler-")[2] for one in TARGET_ROLES]
    home = HOME | {"HomeRoleArns": HOME["HomeRoleArns"].replace(ACCOUNT, OTHER_ACCOUNT)}  # moto's account is ACCOUNT
    request = json.dumps({"regions": regions, "parameters": home})
    created = json.loads(run([tool("deploy", "python"), "tests/infra/tools/create_targets.py"], stdin=request))
    found = [created[region]["outputs"]["RoleArn"].rpartition("/")[2] for region in regions]
    assert found == [one.rpartition("/")[2] for one in TARGET_ROLES]
    for region in regions:
        (target,) = created[region]["targets"]
        assert target["Arn"] == BUS
        assert ":role/target-ForwardingRole-" in target["RoleArn"]
    longest = 64 - len("-ap-northeast-1")
    pattern = re.compile(target_template["Parameters"]["RoleName"]["AllowedPattern"])
    assert not pattern.search("x" * (longest + 1))


def test_the_stack_s_outputs_fit_the_target_s_parameters(target_template: Any, stacks: dict[str, Stack]) -> None:
    outputs = {name: one["Value"] for name, one in stacks["targets"].outputs.items()}
    assert outputs["StateChangesBusArn"] == "<StateChangesBus.Arn>"
    roles = outputs["FunctionRoleArns"]
    for one in FUNCTIONS:
        roles = roles.replace(f"<{one}Role.Arn>", f"arn:aws:iam::{ACCOUNT}:role/reconciler")
    assert roles == HOME["HomeRoleArns"]
    assert re.search(target_template["Parameters"]["HomeRoleArns"]["AllowedPattern"], roles)
    assert "StateChanges" not in stacks["targets without events"].outputs["FunctionRoleArns"]["Value"]


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (
            "HomeRoleArns",
            [HOME["HomeRoleArns"], f"arn:aws-us-gov:iam::{ACCOUNT}:role/reconciler-ReconcilerRole-1A2B3C"],
            [
                "",
                "*",
                f"arn:aws:iam::{ACCOUNT}:root",
                f"arn:aws:iam::{ACCOUNT}:role/*",
                f"arn:aws:iam::{ACCOUNT}:role/rec*",
                f"arn:aws:iam::{ACCOUNT}:role/*-ReconcilerRole-*",
                f"{HOME['HomeRoleArns']},arn:aws:iam::{OTHER_ACCOUNT}:role/reconciler-ReconcilerRole-*",
            ],
        ),
        ("HomeEventBusArn", ["", BUS], ["default", f"arn:aws:events:{REGION}:{ACCOUNT}:rule/x", f"{BUS} "]),
        ("ExternalId", ["a1", "words/of:our-own"], ["", "two words", "ümlaut"]),
        ("RoleName", ["instance-state-reconciler"], ["", "a/b", "a,b", "a*"]),
        ("PermissionsBoundaryArn", ["", f"arn:aws:iam::{ACCOUNT}:policy/a/b"], ["boundary"]),
    ],
)
def test_the_target_s_patterns_accept_good_values_and_refuse_bad_ones(
    parameter: str, good: list[str], bad: list[str], target_template: Any
) -> None:
    pattern = re.compile(target_template["Parameters"][parameter]["AllowedPattern"])
    assert [value for value in good if not pattern.search(value)] == []
    assert [value for value in bad if pattern.search(value)] == []


def test_every_parameter_of_a_target_has_a_description_and_one_group(target_template: Any) -> None:
    groups = target_template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(one for group in groups for one in group["Parameters"]) == sorted(target_template["Parameters"])
    assert all(one["Description"] for one in target_template["Parameters"].values())


def test_a_stackset_can_have_it(target_template: Any) -> None:
    """StackSets that AWS manages take no template with a macro."""
    assert "Transform" not in target_template
    assert "AWS::Include" not in json.dumps(target_template)


def test_no_right_of_a_target_has_a_wildcard(target: Stack) -> None:
    for role in ("Role", "ForwardingRole"):
        for statement in statements(target, role):
            assert not [action for action in as_list(statement["Action"]) if "*" in action]
            assert statement["Resource"] in ("*", BUS)


def test_the_docs_show_a_list_that_both_the_template_and_the_handler_take(template: Any) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    examples = re.findall(r"'(\[\{\"region\".*\])'", text)
    assert len(examples) == 2, "one with roles, and one without"
    for one in examples:
        assert re.search(template["Parameters"]["Ec2Targets"]["AllowedPattern"], one)
        assert targets_from(one)
