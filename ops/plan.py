"""What a deploy would do, step by step, for a person to say yes to."""

from pathlib import Path

from ops import authorities, parameters, vault
from ops.answers import Answers
from ops.questions import Asked
from ops.stack import Deployed

SCHEDULE = "ScheduleState"
ENABLED, DISABLED = "ENABLED", "DISABLED"
APPLY, DRY_RUN = "apply", "dry-run"
_ROLE = "reconciler"  # the template's default


def plan(asked: Asked, before: Deployed | None, root: Path, *, has_password: bool) -> list[str]:
    """Return the steps for the stack as it is before; None if there is none. Each says so if it changes nothing."""
    answers = asked.answers
    steps = [f"store {vault.name_of(answers.stack, part)} in Secrets Manager" for part in asked.secrets]
    if generates_password(answers, before):
        name = vault.name_of(answers.stack, "database")
        steps.append(
            f"the secret {name}: nothing to do, it is there"
            if has_password
            else f"make the secret {name}, with a generated password"
        )
    if answers.get("DatabaseCaFile") == authorities.BUNDLE:
        steps.append(
            f"RDS's certificate authorities: nothing to do, they are in {authorities.BUNDLE}"
            if (root / authorities.BUNDLE).exists()
            else f"fetch RDS's certificate authorities into {authorities.BUNDLE}"
        )
    steps.append("build the artifact (`make build`), and upload it, unless it is there")
    then = ""
    if before is None or before.was_never_created:
        steps += _creation(answers, before)
    else:
        changed = changes(answers, before)
        if changed:
            steps.append("disable the schedule, and update the stack:")
            steps += [f"  {name}: {before.parameters.get(name) or '-'} → {value or '-'}" for name, value in changed]
        else:
            steps.append("the stack's parameters: nothing to do")
            steps.append("if code or template are new: disable the schedule, and update the stack")
            if before.parameters.get(SCHEDULE) == wanted(answers) == ENABLED:
                then = "only then, "
    steps.append(f"{then}the installer: the database role {role(answers)}, our schema, and its rights")
    steps.append(f"{then}a dry run, and the checklist before switching on")
    steps.append(f"{then}the schedule: {wanted(answers)}")
    return steps


def _creation(answers: Answers, before: Deployed | None) -> list[str]:
    steps = []
    if before is not None:
        steps.append(f"delete the stack first: it is in {before.status}, so it was never in use")
    steps.append(f"create the stack in mode {answers.get('Mode', DRY_RUN)}, with the schedule disabled")
    if answers.get("DatabaseSecurityGroupId"):
        steps.append(f"one rule lets the stack's own security group in at {answers.get('DatabaseSecurityGroupId')}")
    return steps


def begins_to_apply(answers: Answers, before: Deployed | None) -> bool:
    """Tell whether cycles would flip and restart that did not before."""
    return answers.get("Mode") == APPLY and (before is None or before.parameters.get("Mode") != APPLY)


def changes(answers: Answers, before: Deployed) -> list[tuple[str, str]]:
    """Return the parameters that the stack has otherwise, with their new values.

    SAM leaves out what the template does not declare: what another version needed stays in the file.
    """
    return [
        (name, value)
        for name, value in answers.parameters.items()
        if name in parameters.declared() and before.parameters.get(name) != value
    ]


def generates_password(answers: Answers, before: Deployed | None) -> bool:
    """Tell whether the role logs in with a password that nobody has made yet."""
    given = in_force(answers, before)
    return (given.get("DatabaseAuth") or "password") == "password" and not given.get("DatabaseSecretArn")


def in_force(answers: Answers, before: Deployed | None) -> dict[str, str]:
    """Return the parameters as they will be: what is not answered stays as it is in the stack."""
    return {**({} if before is None else before.parameters), **answers.parameters}


def role(answers: Answers) -> str:
    """Return the name of the reconciler's role."""
    return answers.get("DatabaseRole", _ROLE)


def wanted(answers: Answers) -> str:
    """Return the state that the schedule shall have in the end."""
    return answers.get(SCHEDULE, ENABLED)
