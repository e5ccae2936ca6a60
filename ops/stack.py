"""The deployed stack: what state it is in, how it is changed, and its functions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
import yaml

from ops.account import Account, code_of
from ops.console import OpsError

# Nothing of such a stack was ever usable. CloudFormation lets it only be deleted.
_NEVER_CREATED = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "REVIEW_IN_PROGRESS")
_NEEDS_A_PERSON = ("UPDATE_ROLLBACK_FAILED", "DELETE_FAILED")
_CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]  # the second for SAM's transform
_WAIT = {"Delay": 5, "MaxAttempts": 360}


@dataclass(frozen=True, slots=True)
class Deployed:
    """A stack as CloudFormation describes it."""

    status: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def was_never_created(self) -> bool:
        """Tell whether the first deploy failed or was broken off, so that nothing of it is in use."""
        return self.status in _NEVER_CREATED


class FunctionFailedError(OpsError):
    """An invocation ended with FunctionError; the message is the function's own."""


class Stack:
    """A stack by its name, whether it is there or not."""

    def __init__(self, account: Account, name: str) -> None:
        self.name = name
        self._account = account
        self._cloudformation = account.client("cloudformation")

    def read(self) -> Deployed | None:
        """Return the stack as it is, or None. Raises OpsError if it is in nobody's hands but a person's."""
        try:
            (found,) = self._cloudformation.describe_stacks(StackName=self.name)["Stacks"]
        except botocore.exceptions.ClientError as error:
            if code_of(error) == "ValidationError" and "does not exist" in str(error):
                return None
            raise
        status = found["StackStatus"]
        if status in _NEEDS_A_PERSON:
            raise OpsError(f"the stack {self.name} is in {status}: CloudFormation's console says why and how to go on")
        if status.endswith("_IN_PROGRESS") and status not in _NEVER_CREATED:
            raise OpsError(f"the stack {self.name} is changing just now ({status}): wait until that is over")
        return Deployed(
            status,
            {one["ParameterKey"]: one.get("ParameterValue", "") for one in found.get("Parameters", [])},
            {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", [])},
        )

    def require(self) -> Deployed:
        """Return the stack as it is. Raises OpsError if it is not there."""
        deployed = self.read()
        if deployed is None or deployed.was_never_created:
            raise OpsError(f"there is no stack {self.name} in {self._account.region}: run `make deploy` first")
        return deployed

    def has_template(self, packaged: str) -> bool:
        """Tell whether this is the template that was deployed. The code is in it, by the hash of its content."""
        answer = self._cloudformation.get_template(StackName=self.name, TemplateStage="Original")["TemplateBody"]
        return bool(_plain(answer) == _plain(packaged))

    def change(self, **parameters: str) -> bool:
        """Change parameters and nothing else, and wait. Returns False if they had these values."""
        deployed = self.require()
        if all(deployed.parameters.get(name) == value for name, value in parameters.items()):
            return False
        given = [
            {"ParameterKey": name, "ParameterValue": parameters[name]}
            if name in parameters
            else {"ParameterKey": name, "UsePreviousValue": True}
            for name in deployed.parameters
        ]
        self._cloudformation.update_stack(
            StackName=self.name, UsePreviousTemplate=True, Parameters=given, Capabilities=_CAPABILITIES
        )
        self._wait("stack_update_complete")
        return True

    def delete(self) -> None:
        """Delete the stack, and wait."""
        self._cloudformation.delete_stack(StackName=self.name)
        self._wait("stack_delete_complete")

    def resources(self, kind: str) -> dict[str, str]:
        """Return the physical ids of the stack's resources of a type, by their logical ids."""
        listed = self._account.pages(
            "cloudformation", "list_stack_resources", "StackResourceSummaries", StackName=self.name
        )
        return {
            one["LogicalResourceId"]: one["PhysicalResourceId"]
            for one in listed
            if one["ResourceType"] == kind and one.get("PhysicalResourceId")
        }

    def invoke(self, function: str, event: Mapping[str, Any]) -> dict[str, Any]:
        """Invoke a function and return its answer. Raises FunctionFailedError."""
        answer = self._account.client("lambda").invoke(FunctionName=function, Payload=json.dumps(event).encode())
        value = json.loads(answer["Payload"].read() or b"null")
        if answer.get("FunctionError"):
            said = value.get("errorMessage") if isinstance(value, dict) else None
            raise FunctionFailedError(str(said or value))
        if not isinstance(value, dict):
            raise FunctionFailedError(f"the function {function} answered {value!r}")
        return value

    def _wait(self, waiter: str) -> None:
        try:
            self._cloudformation.get_waiter(waiter).wait(StackName=self.name, WaiterConfig=_WAIT)
        except botocore.exceptions.WaiterError as error:
            raise OpsError(f"the stack {self.name} could not be changed: {self._first_failure() or error}") from error

    def _first_failure(self) -> str:
        events = self._cloudformation.describe_stack_events(StackName=self.name)["StackEvents"]
        failed = [one for one in events if one.get("ResourceStatus", "").endswith("_FAILED")]
        if not failed:
            return ""
        return f"{failed[-1]['LogicalResourceId']}: {failed[-1].get('ResourceStatusReason', 'no reason given')}"


class _AnyTag(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML is in .venv-deploy
    """Reads CloudFormation's short tags, too: two templates are equal if tags and values are."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return [suffix, loader.construct_scalar(node)]
    if isinstance(node, yaml.SequenceNode):
        return [suffix, loader.construct_sequence(node, deep=True)]
    if isinstance(node, yaml.MappingNode):
        return [suffix, loader.construct_mapping(node, deep=True)]
    raise OpsError("the template is not YAML that CloudFormation reads")


_AnyTag.add_multi_constructor("!", _tagged)


def _plain(template: Any) -> Any:
    """Return a template as plain values. boto3 gives JSON parsed and YAML as text."""
    if not isinstance(template, str):
        return json.loads(json.dumps(template))
    if template.lstrip().startswith("{"):
        return json.loads(template)
    return yaml.load(template, _AnyTag)  # noqa: S506 - it is a safe loader
