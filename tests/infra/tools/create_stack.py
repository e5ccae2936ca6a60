"""Create two stacks of each translated template in moto's CloudFormation, side by side. Runs in .venv-deploy.

stdin: templates with their parameters. stdout: for each template, what CloudFormation and the services report about its
two stacks.
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
    print(json.dumps([two_stacks(request) for request in json.load(sys.stdin)]))


@mock_aws(config={"lambda": {"use_docker": False}})
def two_stacks(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Create two stacks in an empty account."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("handler/app.py", "")
    bucket = boto3.client("s3")
    bucket.create_bucket(Bucket="artifacts", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    bucket.put_object(Bucket="artifacts", Key="reconciler.zip", Body=package.getvalue())
    return [created(name, request) for name in ("blue", "green")]


def created(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Create one stack; return its status, its resources and outputs, and the function as Lambda reports it."""
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=json.dumps(request["template"]),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in request["parameters"].items()],
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
    warnings.simplefilter("ignore")  # moto warns about the types that it skips
    main()
