"""What a first deploy asks, and what it finds out by itself."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import botocore.exceptions

from ops import parameters
from ops.account import Account, code_of
from ops.answers import Answers
from ops.authorities import BUNDLE
from ops.console import AnswerError, Check, Console
from ops.databases import Found, databases
from ops.network import choose_subnets, look, vpc_of

_SECRET_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@!-]+-[A-Za-z0-9]{6}")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_NONE = "none of these"


@dataclass(frozen=True, slots=True)
class Asked:
    """The answers, and what goes into secrets: by the secret's part and its parameter. It is shown nowhere."""

    answers: Answers
    secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()


def ask_region(console: Console, default: str) -> str:
    """Ask for the Region of database and instances."""

    def region(answer: str) -> str:
        if not _REGION.fullmatch(answer):
            raise AnswerError("That is not a Region, such as eu-central-1.")
        return answer

    return console.ask("AWS Region of the workspaces' instances and of the database", region, default=default)


def ask(console: Console, account: Account, answers: Answers, root: Path) -> Asked:
    """Ask for everything that a first deploy needs. Present answers are the defaults."""
    asked = _database(console, account, answers, root)
    asked = _platform(console, asked)
    console.headline("Alarms")
    email = console.ask("Mail address for alarms (Enter: nobody is told)", _email, default=answers.get("AlarmEmail"))
    topic = {} if email else {"AlarmTopicArn": answers.get("AlarmTopicArn")}
    return replace(asked, answers=asked.answers.but(AlarmEmail=email, **topic))


def _database(console: Console, account: Account, answers: Answers, root: Path) -> Asked:
    console.headline("The platform's database")
    found = databases(account)
    if not found:
        console.say(f"RDS has no PostgreSQL database in {account.region} that this sign-in can see.")
    chosen = console.choose("Which one", [*map(str, found), _NONE]) if found else len(found)
    if chosen == len(found):
        return _by_hand(console, account, answers, root)
    return _found(console, account, answers, found[chosen])


def _found(console: Console, account: Account, answers: Answers, database: Found) -> Asked:
    name = console.ask(
        "Name of the database in it (with the tables workspaces and structure_events)",
        _needed("a database needs a name"),
        default=answers.get("DatabaseName") or database.database,
    )
    iam = database.iam and console.confirm("Log in with IAM, without any password", default=True)
    asked = Asked(
        answers.but(
            DatabaseHost=database.host,
            DatabasePort=str(database.port),
            DatabaseName=name,
            DatabaseCaFile=BUNDLE,
            DatabaseAuth="iam" if iam else "password",
            DatabaseResourceId=database.resource_id if iam else "",
            DatabaseSecretArn="" if iam else answers.get("DatabaseSecretArn"),
        )
    )
    if database.master_secret_arn:
        keys = [key for key in answers.get("SecretsKmsKeyArns").split(",") if key]
        own = _own_key(account, database.master_key_arn)
        if own and own not in keys:
            keys.append(own)
        given = {"SecretsKmsKeyArns": ",".join(keys)} if keys else {}
        asked = replace(asked, answers=asked.answers.but(InstallerSecretArn=database.master_secret_arn, **given))
    else:
        asked = _owner(console, asked)
    return _network(console, account, asked, database)


def _by_hand(console: Console, account: Account, answers: Answers, root: Path) -> Asked:
    """Ask for a database that is not in RDS, or behind a proxy."""
    host = console.ask("Host", _needed("a database needs a host", "DatabaseHost"), default=answers.get("DatabaseHost"))
    port = console.ask("Port", _port, default=answers.get("DatabasePort", "5432"))
    name = console.ask("Name of the database", _needed("a database needs a name"), default=answers.get("DatabaseName"))
    console.say(
        "RDS signs its certificates with authorities of its own. RDS Proxy and others may not need such a file."
    )
    authorities = console.ask(
        "File with its certificate authorities (Enter: none)",
        _authorities(root),
        default=answers.get("DatabaseCaFile") or (BUNDLE if _is_rds(host) else ""),
    )
    resource = console.ask(
        "Its resource id, to log in with IAM (db-…, cluster-…, prx-…; Enter: a password)",
        _parameter("DatabaseResourceId"),
        default=answers.get("DatabaseResourceId"),
    )
    asked = Asked(
        answers.but(
            DatabaseHost=host,
            DatabasePort=port,
            DatabaseName=name,
            DatabaseCaFile=authorities,
            DatabaseAuth="iam" if resource else "password",
            DatabaseResourceId=resource,
            DatabaseSecretArn="" if resource else answers.get("DatabaseSecretArn"),
        )
    )
    asked = _owner(console, asked)
    return _network_by_hand(console, account, asked)


def _network_by_hand(console: Console, account: Account, asked: Asked) -> Asked:
    vpcs: set[str] = set()

    def subnets(answer: str) -> str:
        answer = _parameter("VpcSubnetIds")(answer)
        vpcs.clear()
        if answer:
            try:
                vpcs.update(vpc_of(account, answer.split(",")))
            except botocore.exceptions.ClientError as error:
                if not code_of(error).startswith("InvalidSubnet"):
                    raise
                raise AnswerError(f"EC2 does not know them in {account.region}: {error}") from error
        if len(vpcs) > 1:
            raise AnswerError(f"They are in several VPCs: {', '.join(sorted(vpcs))}.")
        return answer

    answers = asked.answers
    chosen = console.ask(
        "Subnets for the functions, if it is in a VPC (subnet-…,subnet-…; Enter: none)",
        subnets,
        default=answers.get("VpcSubnetIds"),
    )
    answers = answers.but(VpcSubnetIds=chosen, DatabaseSecurityGroupId="")
    if not chosen:
        return replace(asked, answers=answers.but(VpcId="", VpcSecurityGroupIds=""))
    if answers.get("VpcSecurityGroupIds"):
        return replace(asked, answers=answers.but(VpcId=""))
    group = console.ask(
        "The database's security group, for one rule that lets the functions in (sg-…; Enter: none)",
        _parameter("DatabaseSecurityGroupId"),
        default=asked.answers.get("DatabaseSecurityGroupId"),
    )
    return replace(asked, answers=answers.but(VpcId=vpcs.pop(), DatabaseSecurityGroupId=group))


def _owner(console: Console, asked: Asked) -> Asked:
    console.say(
        "The installer logs in as the owner of these tables, or as a member of that role that may create roles."
    )
    arn = console.ask(
        "ARN of the secret with that login (Enter: type the login)",
        _secret_arn,
        default=asked.answers.get("InstallerSecretArn"),
    )
    if arn:
        return replace(asked, answers=asked.answers.but(InstallerSecretArn=arn))
    user = console.ask("User", _needed("a login needs a user"))
    password = console.ask("Password (not shown)", _needed("a login needs a password"), hidden=True)
    return replace(asked, secrets={**asked.secrets, "owner": {"username": user, "password": password}})


def _network(console: Console, account: Account, asked: Asked, database: Found) -> Asked:
    if not database.vpc_id:
        return asked
    vpc = look(account, database.vpc_id)
    answers = asked.answers
    kept = [subnet for subnet in answers.get("VpcSubnetIds").split(",") if subnet in vpc.zones]
    subnet_ids = kept or choose_subnets(vpc, database.subnet_ids)
    groups = answers.get("VpcSecurityGroupIds") if kept else ""
    answers = answers.but(
        VpcId="" if groups else database.vpc_id,
        VpcSubnetIds=",".join(subnet_ids),
        VpcSecurityGroupIds=groups,
        DatabaseSecurityGroupId="",
    )
    asked = replace(asked, answers=answers)
    if groups:
        console.say(f"The functions keep their security groups: {groups}. The database has to let them in.")
        return asked
    if not database.security_group_ids:
        return asked
    group = database.security_group_ids[0]
    if console.confirm(f"Let the functions in at the database's security group {group} (one rule)", default=True):
        return replace(asked, answers=answers.but(DatabaseSecurityGroupId=group))
    warning = f"the functions reach the database only once {group} lets the stack's security group in"
    return replace(asked, warnings=(*asked.warnings, warning))


def _platform(console: Console, asked: Asked) -> Asked:
    console.headline("The platform")
    answers = asked.answers
    url = console.ask(
        "Address of its API (Enter: restarts stay owed)", _address, default=answers.get("PlatformBaseUrl")
    )
    if not url:
        return replace(asked, answers=answers.but(PlatformBaseUrl="", PlatformSecretArn="", PlatformOrgId=""))
    token = console.ask("Its token (not shown; Enter: none, or the one of last time)", _header_value, hidden=True)
    org = console.ask("Organization id (Enter: none)", _header_value, default=answers.get("PlatformOrgId"))
    secrets = {**asked.secrets, "platform": {"token": token}} if token else asked.secrets
    return replace(asked, answers=answers.but(PlatformBaseUrl=url, PlatformOrgId=org), secrets=secrets)


def _own_key(account: Account, key_id: str) -> str:
    """Return a key's ARN, or nothing if it is AWS's own, which needs no right."""
    if not key_id:
        return ""
    key = account.client("kms").describe_key(KeyId=key_id)["KeyMetadata"]
    return str(key["Arn"]) if key.get("KeyManager") == "CUSTOMER" else ""


def _is_rds(host: str) -> bool:
    return ".rds.amazonaws.com" in host and ".proxy-" not in host


def _needed(reason: str, parameter: str = "") -> Check:
    def check(answer: str) -> str:
        if not answer:
            raise AnswerError(f"Please answer: {reason}.")
        return _parameter(parameter)(answer) if parameter else answer

    return check


def _parameter(name: str) -> Check:
    """Accept what the template's parameter takes."""

    def check(answer: str) -> str:
        refused = parameters.refusal(name, answer)
        if refused:
            raise AnswerError(refused)
        return answer

    return check


def _authorities(root: Path) -> Check:
    def check(answer: str) -> str:
        answer = _parameter("DatabaseCaFile")(answer)
        if answer not in ("", BUNDLE) and not (root / answer).exists():
            raise AnswerError(f"There is no file {answer}. Put it there first ({BUNDLE} is fetched).")
        return answer

    return check


def _port(answer: str) -> str:
    if not answer.isdecimal() or not 0 < int(answer) <= 65535:  # noqa: PLR2004 - TCP's range
        raise AnswerError("A port is a number from 1 to 65535.")
    return answer


def _secret_arn(answer: str) -> str:
    if answer and not _SECRET_ARN.fullmatch(answer):
        raise AnswerError("That is not the full ARN of a secret, with the six random characters at its end.")
    return answer


def _address(answer: str) -> str:
    if not answer:
        return answer
    try:
        parts = urlsplit(answer)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(character in answer for character in "@?# "):
        raise AnswerError("That is not an address like https://host/path, without user, query or fragment.")
    return answer.rstrip("/")


def _header_value(answer: str) -> str:
    if not all("!" <= character <= "~" for character in answer):
        raise AnswerError("It has a blank or a character that no HTTP header may hold.")
    return answer


def _email(answer: str) -> str:
    if answer and not re.fullmatch(r"[^@\s]+@[^@\s]+", answer):
        raise AnswerError("That is not a mail address.")
    return answer
