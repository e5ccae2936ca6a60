"""The translated template, for every combination of parameters that matters."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from handler.process import MODELS
from handler.request import Request, parse
from handler.settings import Settings
from sandbox.certificates import Authority
from tests.infra.conftest import COMBINATIONS, DATABASE, KEYS, OTHER_ACCOUNT, TARGET_ROLES, secret
from tests.support.cloudformation import ACCOUNT, REGION, STACK, Stack
from tests.support.events import event

TRACES = {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}
DESCRIBES = {"ec2:DescribeAvailabilityZones", "ec2:DescribeInstances", "ec2:DescribeInstanceStatus"}
NETWORK_INTERFACES = {
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
}

# https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html
LOG_DELIVERY = {
    *("logs:CreateLogDelivery", "logs:DeleteLogDelivery", "logs:GetLogDelivery", "logs:ListLogDeliveries"),
    *("logs:UpdateLogDelivery", "logs:DescribeLogGroups", "logs:DescribeResourcePolicies", "logs:PutResourcePolicy"),
}

# Variables that the handler reads besides its own settings.
POWERTOOLS = {"POWERTOOLS_SERVICE_NAME", "POWERTOOLS_METRICS_NAMESPACE", "POWERTOOLS_LOG_LEVEL"}

every_combination = pytest.mark.parametrize("name", COMBINATIONS)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(stack: Stack, role: str) -> Iterator[dict[str, Any]]:
    """Yield the statements of a role's own and attached policies."""
    properties = stack.properties(role)
    documents = [policy["PolicyDocument"] for policy in properties["Policies"]]
    attached = [policy.strip("<>") for policy in properties.get("ManagedPolicyArns", [])]
    documents += [stack.properties(policy)["PolicyDocument"] for policy in attached]
    for document in documents:
        yield from document["Statement"]


def allowed(stack: Stack, role: str) -> dict[str, set[str]]:
    """Return the actions that a role allows, by resource."""
    found: dict[str, set[str]] = {}
    for statement in statements(stack, role):
        if statement["Effect"] == "Allow":
            for resource in as_list(statement["Resource"]):
                found.setdefault(resource, set()).update(as_list(statement["Action"]))
    return found


@every_combination
def test_the_rules_accept_the_parameters(name: str, stacks: dict[str, Stack]) -> None:
    assert stacks[name].refusals() == []


@pytest.mark.parametrize(
    ("parameters", "refusal"),
    [
        ({"Probe": "control_plane"}, "Probe=control_plane needs CpBaseUrl."),
        (
            {"Shards": "2"},
            (
                "Several Shards need Probe=control_plane. With Probe=ec2 each shard would list the whole account, and"
                " EC2's limit on calls, which all of them share, is the bottleneck, not the function."
            ),
        ),
        ({"DatabaseAuth": "iam"}, "DatabaseAuth=iam needs DatabaseResourceId."),
        (
            {"DatabaseAuth": "iam", "DatabaseResourceId": "db-A", "DatabaseSslMode": "prefer"},
            "DatabaseAuth=iam needs a DatabaseSslMode of require or stronger.",
        ),
        ({"DatabaseSecretArn": ""}, "Without DatabaseSecretArn, DatabaseAuth has to be iam."),
        ({"VpcSubnetIds": "subnet-01234567"}, "VpcSubnetIds needs VpcSecurityGroupIds or VpcId."),
        ({"VpcId": "vpc-01234567"}, "VpcId needs VpcSubnetIds."),
        ({"DatabaseSecurityGroupId": "sg-01234567"}, "DatabaseSecurityGroupId needs VpcId."),
        ({"VpcSecurityGroupIds": "sg-01234567"}, "VpcSecurityGroupIds needs VpcSubnetIds."),
        ({"Ec2TargetRoleArns": TARGET_ROLES[0]}, "Ec2TargetRoleArns needs Ec2Targets."),
        ({"Ec2TargetAccounts": OTHER_ACCOUNT}, "Ec2TargetAccounts needs Ec2Targets."),
        (
            {"AlarmEmail": "ops@example.com", "AlarmTopicArn": "arn:aws:sns:eu-central-1:123456789012:ops"},
            "Set AlarmEmail or AlarmTopicArn, not both.",
        ),
    ],
)
def test_the_rules_refuse_incomplete_parameters(parameters: dict[str, str], refusal: str, template: Any) -> None:
    server = {"DatabaseHost": "db.example", "DatabaseName": "workspaces"}
    assert Stack(template, DATABASE | server | parameters).refusals() == [refusal]


@pytest.mark.parametrize("missing", ["DatabaseHost", "DatabaseName"])
def test_without_a_secret_the_parameters_say_where_the_database_is(missing: str, template: Any) -> None:
    parameters = COMBINATIONS["IAM authentication without a secret"] | {missing: ""}
    refusal = "Without DatabaseSecretArn, DatabaseHost and DatabaseName have to be set."
    assert Stack(template, parameters).refusals() == [refusal]


# ── Rights ────────────────────────────────────────────────────────────────────────────────────────────────────────


@every_combination
def test_only_describes_network_interfaces_and_traces_are_allowed_on_all_resources(
    name: str, stacks: dict[str, Stack]
) -> None:
    stack = stacks[name]
    expected = set(TRACES)
    if stack.parameters["Probe"] == "ec2":
        expected |= DESCRIBES
    if stack.parameters["VpcSubnetIds"]:
        expected |= NETWORK_INTERFACES
    assert allowed(stack, "ReconcilerRole")["*"] == expected
    if "StateChangesRole" in stack.resources:
        assert allowed(stack, "StateChangesRole")["*"] == expected
    assert "*" not in allowed(stack, "ScheduleRole")
    if "ShardsRole" in stack.resources:
        assert allowed(stack, "ShardsRole")["*"] == LOG_DELIVERY
    if "InstallerRole" in stack.resources:
        assert allowed(stack, "InstallerRole")["*"] == expected - DESCRIBES


@every_combination
def test_no_right_has_a_wildcard_and_no_policy_is_managed_by_aws(name: str, stacks: dict[str, Stack]) -> None:
    stack = stacks[name]
    for role in stack.of_type("AWS::IAM::Role"):
        for statement in statements(stack, role):
            # No NotAction, no NotResource.
            assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
            assert not [action for action in as_list(statement["Action"]) if "*" in action]
            assert not [resource for resource in as_list(statement["Resource"]) if "*" in resource and resource != "*"]
    for role in stack.of_type("AWS::IAM::Role").values():
        assert set(role.get("ManagedPolicyArns", [])) <= {"<NetworkPolicy>"}


@every_combination
def test_sam_adds_no_role_of_its_own(name: str, stacks: dict[str, Stack]) -> None:
    roles = {"ScheduleRole", "ShardsRole", "ReconcilerRole", "StateChangesRole", "InstallerRole"}
    assert stacks[name].of_type("AWS::IAM::Role").keys() <= roles
    for function in stacks[name].of_type("AWS::Lambda::Function").values():
        assert function["Role"].removesuffix(".Arn>").removeprefix("<") in roles


def test_the_role_allows_exactly_the_describes_that_the_handler_can_call() -> None:
    (model,) = MODELS.glob("ec2/*/service-2.json")
    assert {f"ec2:{operation}" for operation in json.loads(model.read_text())["operations"]} == DESCRIBES


@pytest.mark.parametrize("role", ["ReconcilerRole", "StateChangesRole"])
def test_describes_are_limited_to_the_stack_s_region(role: str, stacks: dict[str, Stack]) -> None:
    (describes,) = (
        statement
        for statement in statements(stacks["the first deploy"], role)
        if "ec2:DescribeInstances" in statement["Action"]
    )
    assert describes["Condition"] == {"StringEquals": {"aws:RequestedRegion": REGION}}


@pytest.mark.parametrize(
    ("name", "secrets"),
    [
        ("the first deploy", {"database"}),
        ("control plane", {"database", "cp"}),
        ("control plane without a secret", {"database"}),
        ("platform", {"database", "platform"}),
        ("everything", {"database", "cp", "platform"}),
    ],
)
def test_the_reconciler_may_read_only_its_own_secrets(name: str, secrets: set[str], stacks: dict[str, Stack]) -> None:
    rights = allowed(stacks[name], "ReconcilerRole")
    readable = {resource for resource, actions in rights.items() if "secretsmanager:GetSecretValue" in actions}
    assert readable == {secret(one) for one in secrets}
    assert {resource for resource in rights if ":secretsmanager:" in resource} == readable


def test_only_who_asks_for_restarts_may_read_the_platform_s_secret(stacks: dict[str, Stack]) -> None:
    stack = stacks["everything"]
    readers = {role for role in stack.of_type("AWS::IAM::Role") if secret("platform") in allowed(stack, role)}
    assert readers == {"ReconcilerRole"}


def test_only_the_installer_may_read_the_owner_s_secret(stacks: dict[str, Stack]) -> None:
    stack = stacks["everything"]
    assert allowed(stack, "InstallerRole")[secret("owner")] == {"secretsmanager:GetSecretValue"}
    assert secret("database") not in allowed(stack, "InstallerRole"), "with IAM authentication"
    assert secret("owner") not in allowed(stack, "ReconcilerRole")


def test_the_installer_reads_the_secret_of_a_role_that_it_gives_a_password(stacks: dict[str, Stack]) -> None:
    stack = stacks["a role with a password"]
    assert allowed(stack, "InstallerRole")[secret("database")] == {"secretsmanager:GetSecretValue"}
    assert stack.environment("Installer")["DATABASE_ROLE_SECRET_ARN"] == secret("database")
    (decrypt,) = (one for one in statements(stack, "InstallerRole") if one["Action"] == "kms:Decrypt")
    assert decrypt["Condition"]["StringEquals"]["kms:EncryptionContext:SecretARN"] == [
        secret("owner"),
        secret("database"),
    ]


def test_iam_authentication_needs_no_secret_anywhere(stacks: dict[str, Stack]) -> None:
    stack = stacks["IAM authentication without a secret"]
    for function in ("Reconciler", "StateChanges"):
        assert stack.environment(function)["DATABASE_SECRET_ARN"] == ""
        assert stack.environment(function)["DATABASE_USER"] == "reconciler"
        actions = set().union(*allowed(stack, f"{function}Role").values())
        assert "secretsmanager:GetSecretValue" not in actions
        assert "rds-db:connect" in actions
    assert stack.environment("Installer")["DATABASE_ROLE_AUTH"] == "iam"
    assert stack.environment("Installer")["DATABASE_ROLE_SECRET_ARN"] == ""


def test_the_stack_s_own_security_group_is_the_only_one_and_may_reach_the_database(stacks: dict[str, Stack]) -> None:
    stack = stacks["a security group of its own"]
    for function in stack.of_type("AWS::Lambda::Function").values():
        assert function["VpcConfig"]["SecurityGroupIds"] == ["<SecurityGroup.GroupId>"]
    assert stack.properties("SecurityGroup")["VpcId"] == "vpc-01234567"
    (rule,) = stack.of_type("AWS::EC2::SecurityGroupIngress").values()
    assert (rule["GroupId"], rule["SourceSecurityGroupId"]) == ("sg-0a", "<SecurityGroup.GroupId>")
    assert (rule["FromPort"], rule["ToPort"]) == ("5432", "5432")
    assert "SecurityGroup" not in stacks["VPC"].resources


@pytest.mark.parametrize(
    ("role", "secrets"),
    [
        ("ReconcilerRole", ["database", "cp", "platform"]),
        ("StateChangesRole", ["database", "cp"]),
        ("InstallerRole", ["owner"]),
    ],
)
def test_keys_decrypt_only_the_role_s_own_secrets(role: str, secrets: list[str], stacks: dict[str, Stack]) -> None:
    (decrypt,) = (one for one in statements(stacks["everything"], role) if one["Action"] == "kms:Decrypt")
    assert decrypt["Resource"] == KEYS
    conditions = decrypt["Condition"]["StringEquals"]
    assert conditions["kms:ViaService"] == f"secretsmanager.{REGION}.amazonaws.com"
    assert as_list(conditions["kms:EncryptionContext:SecretARN"]) == [secret(one) for one in secrets]


@pytest.mark.parametrize("role", ["ReconcilerRole", "StateChangesRole"])
def test_without_key_parameters_no_role_may_decrypt(role: str, stacks: dict[str, Stack]) -> None:
    actions = set().union(*allowed(stacks["platform"], role).values())
    assert "kms:Decrypt" not in actions


@pytest.mark.parametrize("role", ["ReconcilerRole", "StateChangesRole"])
def test_only_iam_authentication_allows_a_database_login_and_only_as_the_named_role(
    role: str, stacks: dict[str, Stack]
) -> None:
    login = f"arn:aws:rds-db:{REGION}:{ACCOUNT}:dbuser:cluster-ABC/rec"
    assert allowed(stacks["IAM authentication"], role)[login] == {"rds-db:connect"}
    for name in ("the first deploy", "VPC"):
        assert "rds-db:connect" not in set().union(*allowed(stacks[name], role).values())


@pytest.mark.parametrize("role", ["ReconcilerRole", "StateChangesRole"])
def test_the_functions_code_may_not_touch_network_interfaces(role: str, stacks: dict[str, Stack]) -> None:
    (denied,) = (one for one in statements(stacks["VPC"], role) if one["Effect"] == "Deny")
    assert set(denied["Action"]) == NETWORK_INTERFACES
    assert denied["Condition"] == {
        "ArnLike": {"lambda:SourceFunctionArn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:*"}
    }


def test_logs_go_only_to_the_stack_s_own_groups(stacks: dict[str, Stack]) -> None:
    stack = stacks["everything"]
    for function, role, group in (
        ("Reconciler", "ReconcilerRole", "LogGroup"),
        ("StateChanges", "StateChangesRole", "StateChangesLogGroup"),
        ("Installer", "InstallerRole", "InstallerLogGroup"),
    ):
        assert stack.properties(function)["LoggingConfig"]["LogGroup"] == f"<{group}>"
        rights = {resource: actions for resource, actions in allowed(stack, role).items() if "log" in resource.lower()}
        assert rights == {f"<{group}.Arn>": {"logs:CreateLogStream", "logs:PutLogEvents"}}


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("the first deploy", {"<Reconciler.Arn>": {"lambda:InvokeFunction"}}),
        ("everything", {"<ShardsWorkflow>": {"states:StartExecution"}}),
    ],
)
def test_the_schedule_may_only_start_cycles_and_fill_its_queue(
    name: str, starts: dict[str, set[str]], stacks: dict[str, Stack]
) -> None:
    assert allowed(stacks[name], "ScheduleRole") == starts | {"<UndeliveredQueue.Arn>": {"sqs:SendMessage"}}


@pytest.mark.parametrize(
    ("name", "boundary"),
    [("the first deploy", None), ("everything", f"arn:aws:iam::{ACCOUNT}:policy/boundary")],
)
def test_every_role_has_the_permissions_boundary_if_there_is_one(
    name: str, boundary: str | None, stacks: dict[str, Stack]
) -> None:
    for role in stacks[name].of_type("AWS::IAM::Role").values():
        assert role.get("PermissionsBoundary") == boundary


# ── Functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@every_combination
def test_the_functions_run_the_deployed_python_on_arm64_with_json_logs_and_traces(
    name: str, stacks: dict[str, Stack]
) -> None:
    for function in stacks[name].of_type("AWS::Lambda::Function").values():
        assert function["Runtime"] == "python3.13"
        assert function["Architectures"] == ["arm64"]
        assert function["TracingConfig"] == {"Mode": "Active"}
        assert function["LoggingConfig"]["LogFormat"] == "JSON"


@pytest.mark.parametrize(
    ("level", "lambda_s"), [("DEBUG", "DEBUG"), ("INFO", "INFO"), ("WARNING", "INFO"), ("ERROR", "INFO")]
)
def test_the_log_level_reaches_the_code_and_never_keeps_lambda_from_passing_metrics_on(
    level: str, lambda_s: str, template: Any
) -> None:
    """Lambda takes metrics for lines of level INFO. tests/e2e/test_log_levels.py has the code's half."""
    assert level in template["Parameters"]["LogLevel"]["AllowedValues"]
    stack = Stack(template, DATABASE | {"LogLevel": level, "InstallerSecretArn": secret("owner")})
    for name, function in stack.of_type("AWS::Lambda::Function").items():
        assert stack.environment(name)["POWERTOOLS_LOG_LEVEL"] == level
        assert function["LoggingConfig"]["ApplicationLogLevel"] == lambda_s
        assert function["LoggingConfig"]["SystemLogLevel"] == "INFO"  # platform.report has it


@pytest.mark.parametrize(
    ("name", "expected"),
    [("the first deploy", set()), ("everything", {"Installer", "InstallerRole", "InstallerLogGroup"})],
)
def test_the_installer_exists_only_with_its_secret(name: str, expected: set[str], stacks: dict[str, Stack]) -> None:
    assert {one for one in stacks[name].resources if one.startswith("Installer")} == expected


def test_all_functions_run_the_same_artifact(stacks: dict[str, Stack]) -> None:
    functions = stacks["everything"].of_type("AWS::Lambda::Function")
    assert functions.keys() == {"Reconciler", "StateChanges", "Installer"}
    assert all(one["Code"] == functions["Reconciler"]["Code"] for one in functions.values())


def test_only_people_can_invoke_the_installer(stacks: dict[str, Stack]) -> None:
    stack = stacks["everything"]
    assert stack.of_type("AWS::Lambda::Permission") == {}
    (schedule,) = stack.of_type("AWS::Scheduler::Schedule").values()
    assert schedule["Target"]["Arn"] == "<ShardsWorkflow>"  # tests/infra/test_shards.py
    (mapping,) = stack.of_type("AWS::Lambda::EventSourceMapping").values()
    assert mapping["FunctionName"] == "<StateChanges>"


@every_combination
def test_a_failed_event_is_not_retried_and_is_kept_with_its_error(name: str, stacks: dict[str, Stack]) -> None:
    (config,) = stacks[name].of_type("AWS::Lambda::EventInvokeConfig").values()
    assert config["FunctionName"] == "<Reconciler>"
    assert config["MaximumRetryAttempts"] == 0
    assert config["MaximumEventAgeInSeconds"] == 60
    assert config["DestinationConfig"] == {"OnFailure": {"Destination": "<FailedQueue.Arn>"}}
    assert allowed(stacks[name], "ReconcilerRole")["<FailedQueue.Arn>"] == {"sqs:SendMessage"}


@every_combination
def test_the_queues_are_encrypted_and_keep_what_failed_for_two_weeks(name: str, stacks: dict[str, Stack]) -> None:
    queues = stacks[name].of_type("AWS::SQS::Queue")
    assert all(queue["SqsManagedSseEnabled"] for queue in queues.values())
    queues.pop("StateChangesQueue", None)  # tests/infra/test_state_changes.py
    assert queues.keys() - {"DeadLetterQueue"} == {"FailedQueue", "UndeliveredQueue"}
    for queue in queues.values():
        assert queue == {"SqsManagedSseEnabled": True, "MessageRetentionPeriod": 14 * 24 * 3600}


@pytest.mark.parametrize(("name", "state"), [("the first deploy", "ENABLED"), ("applying by hand", "DISABLED")])
def test_the_schedule_fires_every_minute_and_keeps_what_it_cannot_deliver(
    name: str, state: str, stacks: dict[str, Stack]
) -> None:
    (schedule,) = stacks[name].of_type("AWS::Scheduler::Schedule").values()
    assert schedule["ScheduleExpression"] == "rate(1 minute)"
    assert schedule["State"] == state
    assert schedule["FlexibleTimeWindow"] == {"Mode": "OFF"}
    assert "Name" not in schedule  # two stacks would collide on it
    target = schedule["Target"]
    assert target["RoleArn"] == "<ScheduleRole.Arn>"
    assert target["RetryPolicy"] == {"MaximumRetryAttempts": 2, "MaximumEventAgeInSeconds": 60}
    assert target["DeadLetterConfig"] == {"Arn": "<UndeliveredQueue.Arn>"}


def test_the_schedule_sends_the_event_that_the_handler_takes_for_a_full_cycle(template: Any) -> None:
    (schedule,) = Stack(template, DATABASE).of_type("AWS::Scheduler::Schedule").values()
    sent = schedule["Target"]["Input"]
    words = set(re.findall(r"<aws\.scheduler\.[a-z-]+>", sent))
    assert words == {f"<aws.scheduler.{one}>" for one in ("execution-id", "scheduled-time", "schedule-arn")}
    sample = event("scheduled")
    own = {"id": "<aws.scheduler.execution-id>", "time": "<aws.scheduler.scheduled-time>"}
    assert json.loads(sent) == sample | own | {"resources": ["<aws.scheduler.schedule-arn>"]}
    assert parse(json.loads(sent)) == parse(sample) == Request("apply", scheduled=True)


def test_the_deadline_comes_before_the_timeout_and_the_timeout_before_the_next_minute(
    stacks: dict[str, Stack], template: Any
) -> None:
    timeout = stacks["the first deploy"].properties("Reconciler")["Timeout"]
    deadline = template["Parameters"]["CycleDeadlineSeconds"]
    assert deadline["Default"] < deadline["MaxValue"] < timeout < 60


@pytest.mark.parametrize(("name", "reserved"), [("the first deploy", None), ("shards", None), ("everything", "10")])
def test_concurrency_is_reserved_only_on_request(name: str, reserved: str | None, stacks: dict[str, Stack]) -> None:
    assert stacks[name].properties("Reconciler").get("ReservedConcurrentExecutions") == reserved
    assert "ReservedConcurrentExecutions" not in stacks[name].properties("StateChanges")


@every_combination
def test_the_functions_are_in_the_vpc_if_there_is_one(name: str, stacks: dict[str, Stack]) -> None:
    stack, own = stacks[name], "<SecurityGroup.GroupId>"
    expected = None
    if stack.parameters["VpcSubnetIds"]:
        expected = {
            "SubnetIds": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"],
            "SecurityGroupIds": ["sg-01234567" if stack.parameters["VpcSecurityGroupIds"] else own],
        }
    for function in stack.of_type("AWS::Lambda::Function").values():
        assert function.get("VpcConfig") == expected


@pytest.mark.parametrize(("name", "key"), [("the first deploy", None), ("everything", KEYS[0])])
def test_logs_are_kept_for_a_year_and_encrypted_with_the_given_key(
    name: str, key: str | None, stacks: dict[str, Stack]
) -> None:
    for group in stacks[name].of_type("AWS::Logs::LogGroup").values():
        assert group["RetentionInDays"] in (365, "365")
        assert group.get("KmsKeyId") == key


def test_the_logs_of_flips_outlive_the_stack_but_not_a_stack_that_could_not_be_created(
    stacks: dict[str, Stack],
) -> None:
    for name in ("LogGroup", "StateChangesLogGroup", "InstallerLogGroup"):
        group = stacks["everything"].resources[name]
        assert (group["DeletionPolicy"], group["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


@every_combination
def test_every_name_contains_the_stack_s_name(name: str, stacks: dict[str, Stack]) -> None:
    names = {
        f"{logical_id}.{key}": value
        for logical_id, resource in stacks[name].resources.items()
        for key, value in resource.get("Properties", {}).items()
        if key.endswith("Name")
        and key not in ("MetricName", "FunctionName", "GroupName", "EventBusName")  # they refer to others
    }
    assert names
    assert [key for key, value in names.items() if STACK not in value] == []


# ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Recorder(dict[str, str]):
    """An environment that records which variables are read."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self.names_read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names_read.add(name)
        return super().get(name, default)


def known_variables() -> set[str]:
    recorder = Recorder({"DATABASE_SECRET_ARN": secret("database")})
    Settings.from_env(recorder)
    return recorder.names_read | POWERTOOLS


@every_combination
def test_every_setting_is_in_the_environment_or_has_a_reason_to_be_left_out(
    name: str, stacks: dict[str, Stack], template: Any
) -> None:
    given = stacks[name].environment("Reconciler").keys()
    left_out = template["Metadata"]["SettingsNotSet"].keys()
    assert given | left_out == known_variables()
    assert not given & left_out


@every_combination
def test_the_handler_accepts_the_environment(
    name: str, stacks: dict[str, Stack], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "infra" / "ca").mkdir(parents=True)
    for bundle in ("global-bundle.pem", "company.pem"):
        (tmp_path / "infra" / "ca" / bundle).write_bytes(Authority().certificate)
    for function in stacks[name].of_type("AWS::Lambda::Function").keys() - {"Installer"}:
        settings = Settings.from_env(stacks[name].environment(function))
        assert settings.mode == COMBINATIONS[name].get("Mode", "dry-run")
        assert settings.probe == COMBINATIONS[name].get("Probe", "ec2")
        assert settings.database.sslmode == "verify-full"


def test_the_template_s_defaults_equal_the_handler_s_except_for_the_mode(stacks: dict[str, Stack]) -> None:
    of_template = Settings.from_env(stacks["the first deploy"].environment("Reconciler"))
    of_handler = Settings.from_env({"DATABASE_SECRET_ARN": secret("database"), "MODE": "dry-run"})
    assert of_template == of_handler


@pytest.mark.parametrize("point", ["", ".0"])
@pytest.mark.parametrize("bound", ["MinValue", "MaxValue"])
def test_the_handler_accepts_every_number_that_the_template_accepts(bound: str, point: str, template: Any) -> None:
    """Both as CloudFormation passes them on: a Number stays as it was typed."""
    bounds = {
        name: f"{parameter[bound]}{point}"
        for name, parameter in template["Parameters"].items()
        if parameter["Type"] == "Number" and bound in parameter
    }
    for function in ("Reconciler", "StateChanges"):
        Settings.from_env(Stack(template, DATABASE | bounds).environment(function))


def test_the_installer_s_environment_has_only_the_owner_s_secret_and_the_database(stacks: dict[str, Stack]) -> None:
    environment = stacks["everything"].environment("Installer")
    assert environment["DATABASE_SECRET_ARN"] == secret("owner")
    assert environment["DATABASE_ROLE"] == "rec"
    assert environment.keys() - POWERTOOLS == {
        *("DATABASE_SECRET_ARN", "DATABASE_ROLE", "DATABASE_HOST", "DATABASE_PORT", "DATABASE_NAME"),
        *("DATABASE_SSLMODE", "DATABASE_CA_FILE", "DATABASE_ROLE_AUTH", "DATABASE_ROLE_SECRET_ARN"),
    }


# ── Parameters ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_parameter_has_a_description_a_default_and_one_group(template: Any) -> None:
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [parameter for group in groups for parameter in group["Parameters"]]
    assert sorted(grouped) == sorted(template["Parameters"])
    for name, parameter in template["Parameters"].items():
        assert parameter["Description"], name
        assert "Default" in parameter, name


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("DatabaseSecretArn", ["", secret("a/b"), secret("rds!db-1")], ["name", secret("a")[:-7], secret("a") + " "]),
        ("InstallerSecretArn", ["", secret("a")], ["password"]),
        ("VpcSubnetIds", ["", "subnet-01234567", "subnet-01234567,subnet-0a"], ["vpc-1", "subnet-1, subnet-2", ","]),
        ("VpcSecurityGroupIds", ["", "sg-01234567,sg-0a"], ["default", "sg-1,"]),
        ("VpcId", ["", "vpc-01234567"], ["vpc", "subnet-1"]),
        ("DatabaseSecurityGroupId", ["", "sg-01234567"], ["sg-0,sg-1", "default"]),
        ("SecretsKmsKeyArns", ["", ",".join(KEYS)], ["alias/aws/secretsmanager", f"{KEYS[0]},"]),
        ("DatabaseResourceId", ["", "db-ABC", "cluster-ABC", "prx-0a1b"], ["database-1"]),
        ("DatabaseCaFile", ["", "infra/ca/global-bundle.pem"], ["/etc/ssl/cert.pem", "infra/ca/../../x.pem"]),
        ("HttpsCaFile", ["", "infra/ca/company.pem"], ["/etc/ssl/cert.pem", "infra/ca/../../x.pem"]),
        ("CpBaseUrl", ["", "https://cp.example/base"], ["cp.example", "https://user@cp.example", "https://cp/?a=b"]),
        ("DatabaseRole", ["reconciler", "Rec-1"], ["", "rec oncil", 'a"b', "1st"]),
        ("ReservedConcurrency", ["", "2", "9", "10", "100"], ["-1", "0", "1", "01", "two"]),
        ("Shards", ["1", "2", "9", "10", "39", "40"], ["", "0", "01", "1.0", "+2", "41", "100", "-1", "eight", "2\n3"]),
        ("AlarmEmail", ["", "ops@example.com"], ["ops"]),
        ("RunbookUrl", ["", "https://wiki.example/book"], ["docs/runbook.md", "https://wiki.example/#breaker"]),
        ("PermissionsBoundaryArn", ["", f"arn:aws:iam::{ACCOUNT}:policy/a/b"], ["boundary"]),
    ],
)
def test_patterns_accept_good_values_and_refuse_bad_ones(
    parameter: str, good: list[str], bad: list[str], template: Any
) -> None:
    pattern = re.compile(template["Parameters"][parameter]["AllowedPattern"])
    assert [value for value in good if not pattern.search(value)] == []
    assert [value for value in bad if pattern.search(value)] == []
