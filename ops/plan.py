"""What a deploy would do, step by step, for a person to say yes to."""

from pathlib import Path

from ops import authorities, vault
from ops.answers import Answers
from ops.questions import Asked
from ops.stack import Deployed

SCHEDULE = "ScheduleState"
ENABLED, DISABLED = "ENABLED", "DISABLED"
_ROLE = "reconciler"  # the template's default


def plan(asked: Asked, before: Deployed | None, root: Path) -> list[str]:
    """Return the steps for the stack as it is before; None if there is none."""
    answers = asked.answers
    steps = [f"store {vault.name_of(answers.stack, part)} in Secrets Manager" for part in asked.secrets]
    if generates_password(answers, before):
        name = vault.name_of(answers.stack, "database")
        steps.append(f"use the secret {name}, with a generated password if it is not there yet")
    if answers.get("DatabaseCaFile") == authorities.BUNDLE and not (root / authorities.BUNDLE).exists():
        steps.append(f"fetch RDS's certificate authorities into {authorities.BUNDLE}")
    steps.append("build the artifact (`make build`), and upload it")
    if before is not None and before.was_never_created:
        steps.append(f"delete the stack first: it is in {before.status}, so it was never in use")
    if before is None or before.was_never_created:
        steps.append(f"create the stack in mode {answers.get('Mode', 'dry-run')}, with the schedule disabled")
        if answers.get("DatabaseSecurityGroupId"):
            steps.append(f"one rule lets the stack's own security group in at {answers.get('DatabaseSecurityGroupId')}")
    else:
        steps.append("if anything changed: disable the schedule, and update the stack")
        steps += [
            f"  {name}: {before.parameters.get(name) or '-'} → {value or '-'}"
            for name, value in changes(answers, before)
        ]
    steps.append(f"the installer: the database role {role(answers)}, our schema, and its rights")
    steps.append("a dry run, and the checklist before switching on")
    steps.append(f"the schedule: {wanted(answers)}")
    return steps


def changes(answers: Answers, before: Deployed) -> list[tuple[str, str]]:
    """Return the parameters that the stack has otherwise, with their new values."""
    return [(name, value) for name, value in answers.parameters.items() if before.parameters.get(name) != value]


def generates_password(answers: Answers, before: Deployed | None) -> bool:
    """Tell whether the role logs in with a password that nobody has made yet."""
    parameters = {**({} if before is None else before.parameters), **answers.parameters}
    return (parameters.get("DatabaseAuth") or "password") == "password" and not parameters.get("DatabaseSecretArn")


def role(answers: Answers) -> str:
    """Return the name of the reconciler's role."""
    return answers.get("DatabaseRole", _ROLE)


def wanted(answers: Answers) -> str:
    """Return the state that the schedule shall have in the end."""
    return answers.get(SCHEDULE, ENABLED)
