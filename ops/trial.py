"""A dry run of a deployed stack, judged by the checklist."""

from collections.abc import Sequence

from ops import checklist
from ops.account import Account
from ops.console import Console, OpsError
from ops.stack import Deployed, FunctionFailedError, Stack

_DRY_RUN = {"mode": "dry-run"}
_MOST_INSTANCES_PER_CALL = 200


def dry_run(stack: Stack, deployed: Deployed) -> list[checklist.Result]:
    """Invoke a dry run, and judge its report. Raises OpsError if it fails."""
    try:
        report = stack.invoke(deployed.outputs["ReconcilerName"], _DRY_RUN)
    except FunctionFailedError as error:
        raise OpsError(f"the dry run failed: {error}") from error
    states = None
    if deployed.parameters.get("Probe", "ec2") == "ec2" and not deployed.parameters.get("Ec2Targets"):
        states = _states(stack.account, [one["instance_id"] for one in report["flips"]])
    return checklist.checked(report, states)


def run_checklist(console: Console, stack: Stack, deployed: Deployed) -> list[checklist.Result]:
    """Run dry before the stack may flip and restart, and show how the checklist comes out. Raises OpsError."""
    console.headline("A dry run, and the checklist before switching on")
    results = dry_run(stack, deployed)
    show(console, results)
    return results


def show(console: Console, results: Sequence[checklist.Result]) -> None:
    """Print results."""
    for result in results:
        console.result(result.name, result.reason, passed=result.passed)


def require_passed(console: Console, results: Sequence[checklist.Result], consequence: str) -> None:
    """Raise OpsError, which names the consequence, unless all passed or a person wants to apply all the same."""
    if checklist.passed(results):
        return
    question = "The checklist did not pass. Flip and restart workspaces all the same"
    if not console.interactive or not console.confirm(question, default=False):
        raise OpsError(f"the checklist did not pass: {consequence}")


def _states(account: Account, instance_ids: Sequence[str]) -> dict[str, str]:
    """Return what EC2 says of these instances; those that it does not know are left out."""
    states: dict[str, str] = {}
    for start in range(0, len(instance_ids), _MOST_INSTANCES_PER_CALL):
        some = list(instance_ids[start : start + _MOST_INSTANCES_PER_CALL])
        # A filter, not ids: one unknown id would fail the whole call.
        filters = [{"Name": "instance-id", "Values": some}]
        for reservation in account.pages("ec2", "describe_instances", "Reservations", Filters=filters):
            states |= {one["InstanceId"]: one["State"]["Name"] for one in reservation["Instances"]}
    return states
