"""`make deploy`: from a clone to the first dry run, and every upgrade after it.

It moves one environment (a section of samconfig.toml, and the stack of that section) through these states. Each state
is read from where it is, never remembered here, so a run that was broken off anywhere is taken up by the next one.

    state          how it is recognised                      the step that leads on
    -----          --------------------                      ----------------------
    unanswered     samconfig.toml has no section for this    ask: the database (found in RDS), the login, the platform,
                   environment                               the alarm address. Without a terminal: an error that names
                                                             what is missing
    answered       the answers are known                     show the plan, and go on after a yes. Then the secrets; the
                                                             answers go into samconfig.toml; the authorities of RDS
    prepared       they are in samconfig.toml, but the stack build; deploy with the schedule disabled
                   lacks something (template or parameters)
    deployed       the stack has template and parameters,    installer (role, schema, rights); dry run; the checklist
                   but the schedule is disabled
    switched on    the same, and the schedule is as          nothing: a run without changes ends here, and succeeds
                   answered

Rules that keep a broken-off run harmless:

  * Nothing is made before the plan was shown and answered with yes. Answers alone change nothing, and are not kept.
  * samconfig.toml keeps a secret's ARN, never its content. So the secrets come first: a run that was broken off in
    between asks again, and gives the same secrets their content.
  * The schedule is off from before new code runs until the installer and a dry run have succeeded. The file says what
    the schedule shall be in the end; the disabled state is an override for one deploy and is written nowhere.
  * A failed check leaves the schedule disabled, and says which one, why, and that the same command goes on.
  * A password or token that is typed goes to Secrets Manager, and nowhere else: no file, no argument of a process.

`--plan` prints the steps that a run would take, and makes nothing. ENV=staging is another environment: another section,
another stack, other secrets.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ops import answers as answering
from ops import authorities, parameters, vault
from ops.account import Account
from ops.answers import Answers
from ops.command import ROOT, kept_answers, parser, run
from ops.console import Abandoned, Console, OpsError
from ops.network import unreached
from ops.plan import (
    APPLY,
    DISABLED,
    DRY_RUN,
    ENABLED,
    SCHEDULE,
    begins_to_apply,
    changes,
    generates_password,
    in_force,
    plan,
    role,
    wanted,
)
from ops.questions import Asked, ask, ask_region
from ops.sam import Sam
from ops.stack import Deployed, FunctionFailedError, Stack, stack_of
from ops.trial import require_passed, run_checklist

_INSTALL = {"install": True}
_GOES_ON = "What was done stays, and the same command goes on from there."
_CHANGED_NOTHING = "A plan changes nothing."


@dataclass(frozen=True, slots=True)
class Operation:
    """What every step uses: who is asked, the stack in its account, SAM, and the project's directory."""

    console: Console
    stack: Stack
    sam: Sam
    root: Path


def deploy(console: Console, arguments: argparse.Namespace, *, root: Path, sam: Sam) -> None:
    """Lead an environment to the state *switched on*. Raises OpsError, Abandoned."""
    asked = _asked(console, root, arguments)
    operation = Operation(console, stack_of(asked.answers), sam, root)
    account = operation.stack.account
    before = operation.stack.changeable()
    warnings = [*asked.warnings, *_warnings(operation, asked, before)]

    number, _, _ = account.identity()
    console.headline(f"The plan for the stack {asked.answers.stack} in {account.region}, account {number}")
    has_password = (
        generates_password(asked.answers, before) and vault.find(account, asked.answers.stack, "database") is not None
    )
    for step in plan(asked, before, root, has_password=has_password):
        console.say(f"  - {step}")
    for warning in warnings:
        console.warn(warning)
    if arguments.plan:
        return
    if console.interactive and not arguments.yes and not console.confirm("Go on", default=False):
        raise Abandoned("Nothing was made.")

    answers = _prepare(operation, asked, before)
    if _bring_up_to_date(operation, answers, before):
        deployed = operation.stack.require()
        _install(operation, deployed)
        _try(operation, answers, deployed, before)
        _switch_on(operation, answers)
    else:
        console.headline("Everything is deployed as answered, and the schedule runs. There is nothing to do.")
    _say_what_is_next(console, answers)


def _warnings(operation: Operation, asked: Asked, before: Deployed | None) -> list[str]:
    """Return what somebody should know of the answers. Raises OpsError if they cannot be deployed."""
    answers = asked.answers
    lacking = parameters.missing(in_force(answers, before), owner_follows="owner" in asked.secrets)
    if lacking:
        raise _missing(answers, lacking)
    known = [name for name in answers.parameters if name in parameters.declared()]
    refused = [why for name in known if (why := parameters.refusal(name, answers.parameters[name]))]
    if refused:
        raise OpsError(
            f"the template refuses values: correct {answering.FILE}, or run `make deploy ARGS=--ask`", refused
        )
    warnings = [
        f"{answering.FILE} has {name}, which this version's template does not know: it stays there, and is not used"
        for name in answers.parameters
        if name not in known
    ]
    if begins_to_apply(answers, before):
        warnings.append("Mode is apply: from the first cycle on, workspaces are flipped and restarted")
    if before is None or dict(changes(answers, before)).get("VpcSubnetIds"):
        warnings += unreached(operation.stack.account, answers)
    return warnings


def _missing(answers: Answers, lacking: Sequence[str]) -> OpsError:
    return OpsError(
        f"the environment {answers.environment} lacks answers. Run `make deploy` on a terminal, which asks for them, or"
        f' write them into {answering.FILE}, or give ARGS="--parameter DatabaseHost=… --parameter …"',
        lacking,
    )


# ── unanswered → answered ─────────────────────────────────────────────────────────────────────────────────────────


def _asked(console: Console, root: Path, arguments: argparse.Namespace) -> Asked:
    """Return the answers of the file and the command line; those of a person where there are none yet."""
    answers, are_kept = kept_answers(root, arguments)
    given = dict(map(_parameter, arguments.parameter))
    answers = answers.but(**given)
    if not answers.region and not console.interactive:
        lacking = parameters.missing(answers.parameters, owner_follows=False)
        raise _missing(answers, ['the Region: ARGS="--region …", or AWS_REGION', *lacking])
    if are_kept and not arguments.ask:
        return Asked(answers)
    if console.interactive:
        console.headline("The answers anew" if are_kept else f"A new environment: {answers.environment}")
        console.say("Ctrl-C leaves everything as it is. Enter takes what is in brackets; a hyphen takes nothing.")
        answers = replace(answers, region=ask_region(console, answers.region))
        account = Account(answers.region)
        number, _, who = account.identity()
        console.say(f"Account {number}, as {who}")
        return ask(console, account, answers, root)
    if not given:
        raise _missing(answers, parameters.missing({}, owner_follows=False))
    return Asked(answers)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise OpsError(f"--parameter {text}: expected Name=value")
    if name not in parameters.declared():
        raise OpsError(parameters.refusal(name, value))
    return name, value


# ── answered → prepared ───────────────────────────────────────────────────────────────────────────────────────────


def _prepare(operation: Operation, asked: Asked, before: Deployed | None) -> Answers:
    """Make the secrets, keep the answers, fetch the authorities. Returns the answers with the secrets' ARNs."""
    answers, account = asked.answers, operation.stack.account
    named = {"owner": "InstallerSecretArn", "platform": "PlatformSecretArn"}
    for part, content in asked.secrets.items():
        answers = answers.but(**{named[part]: vault.put(account, answers.stack, part, content)})
    if generates_password(answers, before):
        answers = answers.but(DatabaseSecretArn=vault.generate(account, answers.stack, role(answers)))
    answering.write(operation.root / answering.FILE, answers)
    if answers.get("DatabaseCaFile") == authorities.BUNDLE:
        bundle = operation.root / authorities.BUNDLE
        if bundle.exists():
            found, how = authorities.described(bundle), "are in"
        else:
            _, partition, _ = account.identity()
            found, how = authorities.fetch(bundle, partition), f"fetched from {authorities.address(partition)} into"
        operation.console.say(f"RDS's {found.count} authorities {how} {authorities.BUNDLE}, SHA-256 {found.sha256}")
    return answers


# ── prepared → deployed ───────────────────────────────────────────────────────────────────────────────────────────


def _bring_up_to_date(operation: Operation, answers: Answers, before: Deployed | None) -> bool:
    """Deploy what the stack lacks, with the schedule disabled. Returns False if nothing is left to do at all."""
    console, stack = operation.console, operation.stack
    console.headline("Build and upload")
    operation.sam.build()
    packaged = operation.sam.package(answers)
    if before is not None and before.was_never_created:
        console.headline("Delete what was left of the stack")
        stack.delete()
        before = None
    changed = before is None or {name for name, _ in changes(answers, before)} - {SCHEDULE}
    if before is not None and not changed and stack.has_template(packaged):
        # An enabled schedule says that the installer and a dry run succeeded.
        return before.parameters.get(SCHEDULE) != ENABLED or wanted(answers) != ENABLED
    if before is not None:
        console.headline("Disable the schedule")
        stack.change(**{SCHEDULE: DISABLED})
    console.headline("Deploy, with the schedule disabled")
    operation.sam.deploy(answers, {**answers.parameters, SCHEDULE: DISABLED})
    return True


# ── deployed → switched on ────────────────────────────────────────────────────────────────────────────────────────


def _install(operation: Operation, deployed: Deployed) -> None:
    operation.console.headline("Install: the database role, our schema, its rights")
    if "InstallerName" not in deployed.outputs:
        operation.console.warn("without InstallerSecretArn there is no installer: apply the SQL with psql")
        return
    try:
        report = operation.stack.invoke(deployed.outputs["InstallerName"], _INSTALL)
    except FunctionFailedError as error:
        raise OpsError(
            f"the installer failed, and changed nothing: {error}. The schedule stays disabled, so no cycle runs:"
            " put it right (docs/deploy.md, What can go wrong), then run the same command again"
        ) from error
    operation.console.say(
        f"  role {report['role']}: login {report['login']}; {len(report['created'])} relations created,"
        f" {len(report['granted'])} rights granted"
    )
    for warning in report["warnings"]:
        operation.console.warn(f"{warning}: docs/deploy.md, What the role should not have")


def _try(operation: Operation, answers: Answers, deployed: Deployed, before: Deployed | None) -> None:
    """Run dry, and go through the checklist. It has to pass before a stack applies for the first time."""
    results = run_checklist(operation.console, operation.stack, deployed)
    was = {} if before is None else before.parameters
    applied = was.get("Mode") == APPLY and was.get(SCHEDULE) == ENABLED
    if answers.get("Mode") == APPLY and not applied:
        require_passed(operation.console, results, "the schedule stays disabled")


def _switch_on(operation: Operation, answers: Answers) -> None:
    operation.console.headline(f"The schedule: {wanted(answers)}")
    operation.stack.change(**{SCHEDULE: wanted(answers)})


def _say_what_is_next(console: Console, answers: Answers) -> None:
    environment = "" if answers.environment == answering.DEFAULT else f" ENV={answers.environment}"
    console.say()
    console.say(f"Check it at any time: make verify{environment}")
    if answers.get("Mode", DRY_RUN) != APPLY:
        console.say(f"Once dry runs have convinced you: make mode{environment} MODE=apply")
    if answers.get("AlarmEmail"):
        console.say(f"Alarms reach {answers.get('AlarmEmail')} only after the link in AWS's mail was clicked.")


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT, sam: Sam | None = None) -> int:
    """Deploy, as the command line says."""
    commands = parser("Deploy the stack, or bring it up to date.")
    commands.add_argument("--plan", action="store_true", help="print what a run would do, and do nothing")
    commands.add_argument("--ask", action="store_true", help="ask again, with the present answers as defaults")
    commands.add_argument("--parameter", action="append", default=[], help="a parameter of the template: Name=value")
    parsed = commands.parse_args(arguments)
    on_failure = _CHANGED_NOTHING if parsed.plan else _GOES_ON
    return run(lambda console: deploy(console, parsed, root=root, sam=sam or Sam(root)), on_failure=on_failure)


if __name__ == "__main__":
    sys.exit(main())
