"""Execute a state machine in moto's Step Functions, and wait for its end. Runs in .venv-deploy.

stdin: the definition and the input. stdout: the execution's status and error. AWS_ENDPOINT_URL_LAMBDA says where the
functions are: moto's interpreter calls that API with boto3, and nothing of Lambda is moto's.
"""

import json
import logging
import sys
import time
import warnings
from typing import Any

import boto3
from moto import mock_aws
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import state_task_service_lambda

# moto leaves out the one parameter of this integration that matters here:
# https://docs.aws.amazon.com/step-functions/latest/dg/connect-lambda.html
state_task_service_lambda._SUPPORTED_API_PARAM_BINDINGS["invoke"].add("InvocationType")  # noqa: SLF001
LONGEST_S = 60.0


@mock_aws(config={"stepfunctions": {"execute_state_machine": True}})
def executed(definition: str, given: str) -> dict[str, Any]:
    """Execute the definition once."""
    client = boto3.client("stepfunctions")
    role = "arn:aws:iam::123456789012:role/shards"
    machine = client.create_state_machine(name="shards", definition=definition, roleArn=role, type="EXPRESS")
    execution = client.start_execution(stateMachineArn=machine["stateMachineArn"], input=given)
    ends_at = time.monotonic() + LONGEST_S
    while time.monotonic() < ends_at:
        found = client.describe_execution(executionArn=execution["executionArn"])
        if found["status"] != "RUNNING":
            return {"status": found["status"], "error": found.get("error")}
        time.sleep(0.05)
    return {"status": "RUNNING", "error": None}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()  # moto logs an execution's failure at length
    request = json.load(sys.stdin)
    print(json.dumps(executed(request["definition"], request["input"])))
