"""The deployer's policy: what the template and `ops` need, and nothing else."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ops.terminal import Played, play
from tests.ops.test_deploy import ANSWERS, GO
from tests.support.tools import ROOT

POLICY = json.loads((ROOT / "ops" / "deployer-policy.json").read_text())

# What CloudFormation calls, in the name of whoever deploys, to create, read, change and delete a resource of each type:
# `aws cloudformation describe-type --type RESOURCE --type-name …`, "handlers". Without what no property here needs.
_ROLE = (
    "AttachRolePolicy CreateRole DeleteRole DeleteRolePermissionsBoundary DeleteRolePolicy DetachRolePolicy GetRole"
    " GetRolePolicy ListAttachedRolePolicies ListRolePolicies PassRole PutRolePermissionsBoundary PutRolePolicy TagRole"
    " UntagRole UpdateAssumeRolePolicy UpdateRole UpdateRoleDescription"
)
_FUNCTION = (
    "CreateFunction DeleteFunction DeleteFunctionConcurrency GetFunction GetFunctionCodeSigningConfig"
    " GetFunctionConfiguration GetFunctionRecursionConfig GetRuntimeManagementConfig ListTags PutFunctionConcurrency"
    " TagResource UntagResource UpdateFunctionCode UpdateFunctionConfiguration"
)
_MAPPING = (
    "CreateEventSourceMapping DeleteEventSourceMapping GetEventSourceMapping ListTags TagResource UntagResource"
    " UpdateEventSourceMapping"
)
NEEDED: dict[str, tuple[str, str]] = {
    "AWS::CloudWatch::Alarm": (
        "cloudwatch",
        "DeleteAlarms DescribeAlarms ListTagsForResource PutMetricAlarm TagResource UntagResource",
    ),
    "AWS::CloudWatch::Dashboard": ("cloudwatch", "DeleteDashboards GetDashboard PutDashboard"),
    "AWS::EC2::SecurityGroup": (
        "ec2",
        "CreateSecurityGroup CreateTags DeleteSecurityGroup DeleteTags DescribeSecurityGroups DescribeVpcs",
    ),
    "AWS::EC2::SecurityGroupIngress": (
        "ec2",
        "AuthorizeSecurityGroupIngress DescribeSecurityGroupRules RevokeSecurityGroupIngress",
    ),
    "AWS::Events::EventBus": (
        "events",
        "CreateEventBus DeleteEventBus DescribeEventBus TagResource UntagResource UpdateEventBus",
    ),
    "AWS::Events::EventBusPolicy": ("events", "DescribeEventBus PutPermission RemovePermission"),
    "AWS::Events::Rule": (
        "events",
        "DeleteRule DescribeRule ListTargetsByRule PutRule PutTargets RemoveTargets TagResource UntagResource",
    ),
    "AWS::IAM::ManagedPolicy": (
        "iam",
        (
            "CreatePolicy CreatePolicyVersion DeletePolicy DeletePolicyVersion GetPolicy GetPolicyVersion"
            " ListEntitiesForPolicy ListPolicyVersions"
        ),
    ),
    "AWS::IAM::Role": ("iam", _ROLE),
    "AWS::Lambda::EventInvokeConfig": (
        "lambda",
        (
            "DeleteFunctionEventInvokeConfig GetFunctionEventInvokeConfig PutFunctionEventInvokeConfig"
            " UpdateFunctionEventInvokeConfig"
        ),
    ),
    "AWS::Lambda::EventSourceMapping": ("lambda", _MAPPING),
    "AWS::Lambda::Function": ("lambda", _FUNCTION),
    "AWS::Logs::LogGroup": (
        "logs",
        (
            "AssociateKmsKey CreateLogGroup DeleteLogGroup DeleteRetentionPolicy DescribeLogGroups DisassociateKmsKey"
            " ListTagsForResource PutRetentionPolicy TagResource UntagResource"
        ),
    ),
    "AWS::Logs::QueryDefinition": ("logs", "DeleteQueryDefinition DescribeQueryDefinitions PutQueryDefinition"),
    "AWS::SNS::Topic": (
        "sns",
        (
            "CreateTopic DeleteTopic GetSubscriptionAttributes GetTopicAttributes ListSubscriptionsByTopic"
            " ListTagsForResource SetTopicAttributes Subscribe TagResource Unsubscribe UntagResource"
        ),
    ),
    "AWS::SQS::Queue": (
        "sqs",
        "CreateQueue DeleteQueue GetQueueAttributes GetQueueUrl ListQueueTags SetQueueAttributes TagQueue UntagQueue",
    ),
    "AWS::SQS::QueuePolicy": ("sqs", "SetQueueAttributes"),
    "AWS::Scheduler::Schedule": ("scheduler", "CreateSchedule DeleteSchedule GetSchedule UpdateSchedule"),
    "AWS::Scheduler::ScheduleGroup": (
        "scheduler",
        "CreateScheduleGroup DeleteScheduleGroup GetScheduleGroup ListTagsForResource TagResource UntagResource",
    ),
    "AWS::StepFunctions::StateMachine": (
        "states",
        (
            "CreateStateMachine DeleteStateMachine DescribeStateMachine ListTagsForResource TagResource UntagResource"
            " UpdateStateMachine"
        ),
    ),
}
# What `sam package` and `sam deploy` call, and CloudFormation for SAM's bucket.
BY_SAM = {
    *(f"cloudformation:{name}" for name in ("CreateChangeSet", "DeleteChangeSet", "DescribeChangeSet", "CreateStack")),
    *(f"cloudformation:{name}" for name in ("DescribeStackEvents", "ExecuteChangeSet", "GetTemplateSummary")),
    *(f"s3:{name}" for name in ("CreateBucket", "GetBucketLocation", "GetBucketPolicy", "GetObject", "ListBucket")),
    *(f"s3:{name}" for name in ("PutBucketPolicy", "PutBucketPublicAccessBlock", "PutBucketTagging", "PutObject")),
    *(f"s3:{name}" for name in ("PutBucketVersioning", "PutEncryptionConfiguration")),
}
# What the commands call only in accounts that moto has not: with a key of one's own, or a restored secret.
BY_CHANCE = {"kms:DescribeKey", "secretsmanager:TagResource", "secretsmanager:PutSecretValue"}
IAM_NAMES = {"lambda:Invoke": "lambda:InvokeFunction"}


def statements() -> Iterator[tuple[str, list[str], list[str], dict[str, Any]]]:
    for one in POLICY["Statement"]:
        assert one["Effect"] == "Allow"
        yield one["Sid"], one["Action"], one["Resource"], one.get("Condition", {})


def granted() -> set[str]:
    return {action for _, actions, _, _ in statements() for action in actions}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Every command, on a terminal and without changes, too."""
    runs = [["deploy"], ["new version"], ["deploy"], ["mode", "apply"], ["verify"], ["undeploy", "--yes"], ["deploy"]]
    answers = [*ANSWERS, GO, GO, ("all the same", "y"), *ANSWERS, GO]
    flips = {"flips": [{"instance_id": "i-0123456789abcdef0"}]}
    return play(tmp_path_factory.mktemp("played"), runs, answers, report=flips, alarms={"Fine": "OK"})


@pytest.fixture(scope="module")
def called(played: Played) -> set[str]:
    """What they call."""
    return {IAM_NAMES.get(one, one) for one in played["called"]}


def test_everything_that_the_commands_call_is_allowed(called: set[str]) -> None:
    assert called - granted() == set()
    assert {"lambda:InvokeFunction", "rds:DescribeDBInstances", "cloudformation:UpdateStack"} <= called


def test_everything_that_the_template_s_resources_need_is_allowed(played: Played) -> None:
    assert set(played["types"]) == NEEDED.keys()
    needed = {f"{service}:{name}" for service, names in NEEDED.values() for name in names.split()}
    assert needed - granted() == set()


def test_nothing_else_is_allowed(called: set[str]) -> None:
    needed = {f"{service}:{name}" for service, names in NEEDED.values() for name in names.split()}
    assert granted() - needed - called - BY_SAM - BY_CHANCE == set()


def test_what_changes_something_is_allowed_on_the_stack_s_own_resources_alone() -> None:
    looks = ("Describe", "Get", "List")
    for sid, actions, resources, condition in statements():
        if resources == ["*"] and not condition:
            changing = {action for action in actions if not action.partition(":")[2].startswith(looks)}
            # Saved queries have no resources to narrow this to.
            assert changing <= {"logs:DeleteQueryDefinition", "logs:PutQueryDefinition"}, sid
        assert not [action for action in actions if "*" in action]


def test_roles_are_passed_only_to_the_services_that_take_them_on() -> None:
    ((_, _, resources, condition),) = [one for one in statements() if "iam:PassRole" in one[1]]
    assert resources == ["arn:aws:iam::ACCOUNT:role/STACK-*"]
    services = [f"{one}.amazonaws.com" for one in ("lambda", "scheduler", "states")]
    assert condition == {"StringEquals": {"iam:PassedToService": services}}


def test_the_policy_fits_into_a_role_with_the_names_filled_in() -> None:
    text = json.dumps(POLICY, separators=(",", ":"))  # IAM counts no white space
    for word, name in (
        ("ACCOUNT", "123456789012"),
        ("REGION", "ap-southeast-2"),
        ("STACK", "instance-state-reconciler"),
    ):
        assert word in text
        text = text.replace(word, name)
    assert len(text) < 10_240
