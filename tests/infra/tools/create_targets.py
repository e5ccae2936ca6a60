"""Create infra/target.yaml's stack in moto's CloudFormation, in several Regions of one account. Runs in .venv-deploy.

stdin: the Regions and the parameters. stdout: each Region's outputs, and its rules' targets.
"""

import json
import sys
from pathlib import Path
from typing import Any

import boto3
from moto import mock_aws

TEMPLATE = Path(__file__).parents[3] / "infra" / "target.yaml"


@mock_aws
def created(regions: list[str], parameters: dict[str, str]) -> dict[str, Any]:
    """Create a stack in each Region; raise if one cannot be created."""
    found = {}
    for region in regions:
        cloudformation = boto3.client("cloudformation", region_name=region)
        cloudformation.create_stack(
            StackName="target",
            TemplateBody=TEMPLATE.read_text(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        (stack,) = cloudformation.describe_stacks(StackName="target")["Stacks"]
        events = boto3.client("events", region_name=region)
        (rule,) = events.list_rules()["Rules"]
        found[region] = {
            "outputs": {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]},
            "targets": events.list_targets_by_rule(Rule=rule["Name"])["Targets"],
        }
    return found


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps(created(request["regions"], request["parameters"])))
