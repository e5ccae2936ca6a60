"""The template, translated and resolved for every combination of parameters that matters."""

import json
from typing import Any

import pytest

from tests.support.cloudformation import ACCOUNT, REGION, Stack
from tests.support.tools import run, tool


def secret(name: str) -> str:
    return f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{name}-AbCdEf"


DATABASE = {"DatabaseSecretArn": secret("database")}
OTHER_ACCOUNT = "210987654321"
TARGET_ROLES = [
    f"arn:aws:iam::{OTHER_ACCOUNT}:role/instance-state-reconciler-{one}" for one in ("eu-west-1", "us-east-1")
]
TARGETS = {
    "Ec2Targets": json.dumps(
        [
            {"region": REGION},
            {"region": "eu-west-1"},
            {"region": "eu-west-1", "role_arn": TARGET_ROLES[0], "external_id": "words/of:our-own"},
            {
                "region": "us-east-1",
                "role_arn": TARGET_ROLES[1],
                "external_id": "words/of:our-own",
                "may_be_empty": True,
            },
        ]
    ),
    "Ec2TargetRoleArns": ",".join(TARGET_ROLES),
    "Ec2TargetAccounts": f"{OTHER_ACCOUNT},210987654322",
}
KEYS = [f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{number:08}" for number in (1, 2)]

COMBINATIONS: dict[str, dict[str, str]] = {
    "the first deploy": DATABASE,
    "applying": DATABASE | {"Mode": "apply"},
    "applying by hand": DATABASE | {"Mode": "apply", "ScheduleState": "DISABLED"},
    "control plane": DATABASE
    | {"Probe": "control_plane", "CpBaseUrl": "https://cp.example", "CpSecretArn": secret("cp")},
    "control plane without a secret": DATABASE | {"Probe": "control_plane", "CpBaseUrl": "https://cp.example"},
    "targets": DATABASE | TARGETS,
    "targets in other Regions": DATABASE | {"Ec2Targets": '[{"region":"eu-west-1"}]'},
    "targets without events": DATABASE | TARGETS | {"StateChangeEvents": "false"},
    "shards": DATABASE | {"Mode": "apply", "Probe": "control_plane", "CpBaseUrl": "https://cp.example", "Shards": "8"},
    "platform": DATABASE
    | {
        "PlatformBaseUrl": "https://platform.example",
        "PlatformSecretArn": secret("platform"),
        "PlatformOrgId": "org-1",
    },
    "VPC": DATABASE
    | {"VpcSubnetIds": "subnet-0123456789abcdef0,subnet-0123456789abcdef1", "VpcSecurityGroupIds": "sg-01234567"},
    "IAM authentication": DATABASE
    | {"DatabaseAuth": "iam", "DatabaseResourceId": "cluster-ABC", "DatabaseRole": "rec"},
    "IAM authentication without a secret": {
        "DatabaseAuth": "iam",
        "DatabaseResourceId": "db-ABC",
        "DatabaseHost": "db.example",
        "DatabaseName": "workspaces",
        "InstallerSecretArn": secret("owner"),
    },
    "a role with a password": DATABASE | {"InstallerSecretArn": secret("owner"), "SecretsKmsKeyArns": KEYS[0]},
    "a security group of its own": DATABASE
    | {
        "VpcSubnetIds": "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
        "VpcId": "vpc-01234567",
        "DatabaseSecurityGroupId": "sg-0a",
    },
    "dry runs with alarms": DATABASE | {"AlarmEmail": "ops@example.com"},
    "applying with a platform": DATABASE | {"Mode": "apply", "PlatformBaseUrl": "https://platform.example"},
    "applying without events": DATABASE | {"Mode": "apply", "StateChangeEvents": "false"},
    "alarms by mail": DATABASE | {"Mode": "apply", "AlarmEmail": "ops@example.com"},
    "alarms to a topic": DATABASE | {"Mode": "apply", "AlarmTopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:ops"},
}
COMBINATIONS["everything"] = {
    name: value
    for combination in COMBINATIONS.values()
    for name, value in combination.items()
    if name not in ("AlarmEmail", "ScheduleState", "StateChangeEvents", "VpcId", "DatabaseSecurityGroupId")
} | {
    "InstallerSecretArn": secret("owner"),
    "SecretsKmsKeyArns": ",".join(KEYS),
    "LogsKmsKeyArn": KEYS[0],
    "PermissionsBoundaryArn": f"arn:aws:iam::{ACCOUNT}:policy/boundary",
    "ReservedConcurrency": "2",
    "DatabaseHost": "db.example",
    "DatabaseName": "workspaces",
    "DatabaseCaFile": "infra/ca/global-bundle.pem",
    "HttpsCaFile": "infra/ca/company.pem",
    "RunbookUrl": "https://wiki.example/runbook",
    "LogLevel": "DEBUG",
}


@pytest.fixture(scope="session")
def templates() -> dict[str, Any]:
    """The template that CloudFormation receives for each combination of parameters, by the combination's name."""
    command = [tool("deploy", "python"), "tests/infra/tools/translate.py"]
    translated = json.loads(run(command, stdin=json.dumps(list(COMBINATIONS.values()))))
    return dict(zip(COMBINATIONS, translated, strict=True))


@pytest.fixture(scope="session")
def template(templates: dict[str, Any]) -> Any:
    """The template itself, for the parts that do not depend on parameters: declarations, metadata, rules."""
    return templates["the first deploy"]


@pytest.fixture(scope="session")
def stacks(templates: dict[str, Any]) -> dict[str, Stack]:
    """The stack that each combination of parameters creates, by the combination's name."""
    return {name: Stack(template, COMBINATIONS[name]) for name, template in templates.items()}
