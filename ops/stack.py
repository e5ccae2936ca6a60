"""The deployed stack: what state it is in, how it is changed, and its functions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import botocore.exceptions

from ops.account import Account, code_of
from ops.answers import Answers
from ops.console import OpsError
from ops.templates import plain

# Nothing of such a stack was ever usable. CloudFormation lets it only be deleted.
_NEVER_CREATED = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED")
# A name that a change set has taken: there is nothing in the stack yet.
_EMPTY = "REVIEW_IN_PROGRESS"
_STUCK = {
    "UPDATE_ROLLBACK_FAILED": "its last change failed, and could not be undone. `aws cloudformation"
    " describe-stack-events` says why; put that right, then `aws cloudformation continue-update-rollback"
    " --stack-name {name} --region {region}`, and run the same command again",
    "DELETE_FAILED": "it could not be deleted as a whole; run `make undeploy`, which goes on with that",
}
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

    @property
    def is_empty(self) -> bool:
        """Tell whether there is only the name yet."""
        return self.status == _EMPTY


class FunctionFailedError(OpsError):
    """An invocation ended with FunctionError; the message is the function's own."""


class Stack:
    """A stack by its name, whether it is there or not."""

    def __init__(self, account: Account, name: str) -> None:
        self.name = name
        self.account = account
        self._cloudformation = account.client("cloudformation")

    def read(self) -> Deployed | None:
        """Return the stack as it is, or None."""
        try:
            (found,) = self._cloudformation.describe_stacks(StackName=self.name)["Stacks"]
        except botocore.exceptions.ClientError as error:
            if code_of(error) == "ValidationError" and "does not exist" in str(error):
                return None
            raise
        return Deployed(
            found["StackStatus"],
            {one["ParameterKey"]: one.get("ParameterValue", "") for one in found.get("Parameters", [])},
            {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", [])},
        )

    def changeable(self) -> Deployed | None:
        """Return the stack, or None if it has to be created. Raises OpsError if it cannot be changed now."""
        deployed = self.read()
        if deployed is None or deployed.is_empty:
            return None
        if deployed.status in _STUCK:
            how = _STUCK[deployed.status].format(name=self.name, region=self.account.region)
            raise OpsError(f"the stack {self.name} is in {deployed.status}: {how}")
        if deployed.status.endswith("_IN_PROGRESS"):
            raise OpsError(self._is_changing(deployed.status))
        return deployed

    def require(self) -> Deployed:
        """Return the stack as it is. Raises OpsError if it is not there, or cannot be changed now."""
        deployed = self.changeable()
        if deployed is None:
            raise OpsError(f"there is no stack {self.name} in {self.account.region}: run `make deploy` first")
        if deployed.was_never_created:
            raise OpsError(
                f"the stack {self.name} was never created ({deployed.status}): `make deploy` deletes what is left of"
                " it, and creates it"
            )
        return deployed

    def _is_changing(self, status: str) -> str:
        return (
            f"the stack {self.name} is changing just now ({status}): somebody else deploys, or a run that was broken"
            " off goes on there. Wait until that is over, then run the same command again"
        )

    def has_template(self, packaged: str) -> bool:
        """Tell whether this is the template that was deployed. The code is in it, by the hash of its content."""
        answer = self._cloudformation.get_template(StackName=self.name, TemplateStage="Original")["TemplateBody"]
        return bool(plain(answer) == plain(packaged))

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
        try:
            self._cloudformation.update_stack(
                StackName=self.name, UsePreviousTemplate=True, Parameters=given, Capabilities=_CAPABILITIES
            )
        except botocore.exceptions.ClientError as error:
            if code_of(error) == "ValidationError" and "_IN_PROGRESS state" in str(error):
                raise OpsError(self._is_changing("since a moment ago")) from error
            raise
        self._wait("stack_update_complete")
        return True

    def delete(self) -> None:
        """Delete the stack, and wait."""
        found = self.read()
        if found is not None and found.status.endswith("_IN_PROGRESS") and not found.is_empty:
            raise OpsError(self._is_changing(found.status))
        self._cloudformation.delete_stack(StackName=self.name)
        self._wait("stack_delete_complete")

    def resources(self, kind: str) -> dict[str, str]:
        """Return the physical ids of the stack's resources of a type, by their logical ids."""
        listed = self.account.pages(
            "cloudformation", "list_stack_resources", "StackResourceSummaries", StackName=self.name
        )
        return {
            one["LogicalResourceId"]: one["PhysicalResourceId"]
            for one in listed
            if one["ResourceType"] == kind and one.get("PhysicalResourceId")
        }

    def alarms(self) -> dict[str, dict[str, Any] | None]:
        """Return the stack's alarms as CloudWatch describes them, by their names; None for one that is not there."""
        names = sorted(self.resources("AWS::CloudWatch::Alarm").values())
        if not names:  # without a name, CloudWatch would list everybody's
            return {}
        listed = self.account.pages("cloudwatch", "describe_alarms", "MetricAlarms", AlarmNames=names)
        found = {one["AlarmName"]: one for one in listed}
        return {name: found.get(name) for name in names}

    def invoke(self, function: str, event: Mapping[str, Any]) -> dict[str, Any]:
        """Invoke a function and return its answer. Raises FunctionFailedError."""
        answer = self.account.client("lambda").invoke(FunctionName=function, Payload=json.dumps(event).encode())
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


def stack_of(answers: Answers) -> Stack:
    """Return the stack of an environment."""
    return Stack(Account(answers.region), answers.stack)
