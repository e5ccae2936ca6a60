"""The template's workflow, translated and executed by moto. Its calls reach a Lambda API on this machine."""

import json
from typing import Any

from sandbox.lambda_api import LambdaApi
from tests.support.cloudformation import ACCOUNT, REGION, Stack
from tests.support.events import SCHEDULED
from tests.support.tools import run, tool

FUNCTION = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:reconciler"
_PARAMETERS = {
    "DatabaseSecretArn": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:database-AbCdEf",
    "Mode": "apply",
    "Probe": "control_plane",
    "CpBaseUrl": "https://cp.example",
}


def workflow(shards: int) -> str:
    """Return the definition that CloudFormation receives for so many shards. Takes some seconds."""
    command = [tool("deploy", "python"), "tests/infra/tools/translate.py"]
    parameters = _PARAMETERS | {"Shards": str(shards)}
    (template,) = json.loads(run(command, stdin=json.dumps([parameters])))
    return definition(Stack(template, parameters))


def definition(stack: Stack) -> str:
    """Return a stack's definition, with its function's ARN filled in."""
    text: str = stack.properties("ShardsWorkflow")["DefinitionString"]
    return text.replace("<Reconciler.Arn>", FUNCTION)


def execute(text: str, api: LambdaApi) -> dict[str, Any]:
    """Execute a definition as the schedule does; return the execution's status and error."""
    command = [tool("deploy", "python"), "tests/infra/tools/run_workflow.py"]
    request = json.dumps({"definition": text, "input": json.dumps(SCHEDULED)})
    found: dict[str, Any] = json.loads(run(command, stdin=request, environment=api.environment))
    return found
