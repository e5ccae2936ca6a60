"""Run in .venv-deploy: create two stacks of the translated template in moto's CloudFormation, side by side.

stdin: templates with their parameters. stdout: for each of them, and each of its two stacks, what CloudFormation and
the services say they hold.
"""

import io
import json
import sys
import warnings
import zipfile
from typing import Any

import boto3
from moto import mock_aws


def main() -> None:
    """Print what was created."""
    print(json.dumps([two_stacks(order) for order in json.load(sys.stdin)]))


@mock_aws(config={"lambda": {"use_docker": False}})
def two_stacks(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Create two stacks in an empty account."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("handler/app.py", "")
    bucket = boto3.client("s3")
    bucket.create_bucket(Bucket="artifacts", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    bucket.put_object(Bucket="artifacts", Key="reconciler.zip", Body=package.getvalue())
    return [created(name, order) for name in ("blue", "green")]


def created(name: str, order: dict[str, Any]) -> dict[str, Any]:
    """Create one stack; return its status, resources and outputs, and the function as Lambda tells of it."""
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=json.dumps(order["template"]),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in order["parameters"].items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    resources = cloudformation.list_stack_resources(StackName=name)["StackResourceSummaries"]
    function = boto3.client("lambda").get_function_configuration(FunctionName=outputs["ReconcilerName"])
    dashboards = boto3.client("cloudwatch").list_dashboards(DashboardNamePrefix=name)["DashboardEntries"]
    return {
        "status": stack["StackStatus"],
        "resources": {
            one["LogicalResourceId"]: one["PhysicalResourceId"] for one in resources if one["PhysicalResourceId"]
        },
        "outputs": outputs,
        "function": {key: function[key] for key in ("Runtime", "Handler", "Timeout", "MemorySize", "Environment")},
        "dashboards": [entry["DashboardName"] for entry in dashboards],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # moto tells of the types that it skips
    main()
