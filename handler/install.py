"""The installer's entry point: creates the reconciler's role, and applies the project's SQL as the database's owner.

Invoked by `make deploy`, or by hand, at every upgrade. It is a separate function with its own secret, because the
reconciler must not own the tables that it works on. It applies the same files as psql would. All of it happens in one
transaction, or none.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from handler import process
from handler.deadline import Deadline
from handler.errors import (
    LoginRefusedError,
    RequestError,
    RightsMissingError,
    RowLockedError,
    SchemaMissingError,
    SecretError,
    SettingsError,
    shown,
)
from handler.net.aws import Aws
from handler.net.secrets import Secrets, text_field
from handler.settings import A_ROLE, IAM, PASSWORD, Database, database_from, is_role, role_login_from
from handler.store.rights import lacking_rights
from handler.store.roles import UNCHANGED, RoleLogin, act_as_owner, quoted, require_role, settle_login
from handler.store.session import Session, Transaction
from handler.store.tables import RIGHTS_TO_APPLY
from handler.telemetry import logger

SCHEMA, GRANTS = "infra/schema.sql", "infra/grants.sql"
FILES = (SCHEMA, GRANTS)
_ROOT = Path(__file__).parent.parent

_SECONDS = 50.0

_ROLE, _ROLE_SECRET = "DATABASE_ROLE", "DATABASE_ROLE_SECRET_ARN"


@logger.inject_lambda_context(clear_state=True)
def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Create the role, apply schema and grants, and return what that changed.

    The event is `{"install": true}` and, optionally, `"role"`: an existing role that gets the rights, instead of the
    one in DATABASE_ROLE. Raises ReconcilerError.
    """
    role = requested_role(event, os.environ)
    auth, role_secret_arn = role_login_from(os.environ)
    database = database_from(os.environ)
    deadline = Deadline(process.seconds_for(_SECONDS, context))
    aws = process.aws()
    session = Session(database, Secrets(aws.secret_text), aws.database_token)
    try:
        login = None
        if auth == IAM and role == os.environ.get(_ROLE):
            login = RoleLogin(None, works=lambda: True)
        elif role_secret_arn is not None and role == os.environ.get(_ROLE):
            login = _password_login(role, role_secret_arn, database, aws, deadline)
        report = install(session, role, deadline, login)
    finally:
        session.close()
        aws.close()
    log = logger.warning if report["warnings"] else logger.info
    log("installed", report=report)
    return report


def requested_role(event: object, environment: Mapping[str, str]) -> str:
    """Return the role that the event asks for, or the environment's. Raises RequestError, SettingsError."""
    if not isinstance(event, Mapping):
        raise RequestError(f"event: found {shown(event)}; expected a JSON object")
    for name in event:
        if name not in ("install", "role"):
            raise RequestError(f"event field {shown(name)}: unknown; expected install and, if need be, role")
    if event.get("install") is not True:
        raise RequestError(f"event field install: found {shown(event.get('install'))}; expected true")
    if "role" in event:
        if not is_role(event["role"]):
            raise RequestError(f"event field role: found {shown(event['role'])}; expected {A_ROLE}")
        return str(event["role"])
    role = environment.get(_ROLE)
    if not is_role(role):
        raise SettingsError(f"{_ROLE}: found {shown(role)}; expected {A_ROLE} (or the event field role)")
    return str(role)


def _password_login(role: str, arn: str, database: Database, aws: Aws, deadline: Deadline) -> RoleLogin:
    """Return the login in the role's secret, the one that the reconciler uses. Raises SecretError, StoreError."""
    secrets = Secrets(aws.secret_text)
    secret = secrets.read(arn, _ROLE_SECRET, deadline)
    username, password = (text_field(secret, field, _ROLE_SECRET) for field in ("username", "password"))
    if username != role:
        raise SecretError(f"{_ROLE_SECRET}: its username is not the role {role} of {_ROLE}")
    if password is None:
        raise SecretError(f"{_ROLE_SECRET}: the secret has no password")

    def works() -> bool:
        own = replace(database, user=None, password=None, secret_arn=arn, auth=PASSWORD)
        session = Session(own, secrets, aws.database_token)
        try:
            with session.transaction(deadline, read_only=True, every_row=False):
                return True
        except LoginRefusedError:
            return False
        finally:
            session.close()

    return RoleLogin(password, works)


def install(session: Session, role: str, deadline: Deadline, login: RoleLogin | None = None) -> dict[str, Any]:
    """Give the role its `login`, unless it is None, and apply the files, in one transaction.

    Returns what was created, granted and warned about. Raises StoreError, SecretError.
    """
    with session.transaction(deadline, every_row=False) as transaction:
        outcome = UNCHANGED
        if login is None:
            require_role(transaction, role)
        else:
            outcome = settle_login(transaction, role, login)
        owner = act_as_owner(transaction)
        hint = "" if owner is None else f" (they are {owner}'s, of which it has to be a member)"
        relations = _own_relations(transaction)
        with _naming(SCHEMA, hint):
            transaction.run((_ROOT / SCHEMA).read_text())
        # Before this point, the schema and the functions in it may be anybody's.
        lacking = lacking_rights(transaction, RIGHTS_TO_APPLY, role=role)
        with _naming(GRANTS, hint):
            # Like psql, the file finds the platform's tables by the login's own path. It leaves that path at once.
            transaction.run("SET LOCAL search_path TO DEFAULT")
            transaction.run((_ROOT / GRANTS).read_text().replace(':"role"', quoted(role)))
            transaction.run("SET LOCAL search_path = pg_catalog, pg_temp")
        closed = _closed_schemas(transaction, role)
        if closed:
            raise RightsMissingError(
                f"the role {role} lacks USAGE on schema {', '.join(closed)}, where the platform's tables are: grant it,"
                " then run the installer again"
            )
        still_lacking = lacking_rights(transaction, RIGHTS_TO_APPLY, role=role)
        if still_lacking:
            # PostgreSQL only warns about a GRANT of rights that the login may not pass on.
            raise RightsMissingError(
                f"the installer's login may not grant {', '.join(still_lacking)}: it has to be the tables' owner{hint}"
            )
        return {
            "role": role,
            "login": outcome,
            "applied": list(FILES),
            "created": sorted(_own_relations(transaction) - relations),
            "granted": lacking,
            "warnings": _warnings(transaction),
        }


@contextmanager
def _naming(file: str, hint: str) -> Iterator[None]:
    """Add to an error which file failed, and what to do about it."""
    try:
        yield
    except RightsMissingError as error:
        raise RightsMissingError(
            f"{file}: {error.server_message}: the installer's login has to own the platform's tables{hint}"
            " and may need CREATE on the database"
        ) from error
    except RowLockedError as error:
        raise RowLockedError(f"{file}: {error.server_message}: nothing was changed, run the installer again") from error
    except SchemaMissingError as error:
        raise SchemaMissingError(f"{file}: {error.server_message}: is this the platform's database?") from error


def _closed_schemas(transaction: Transaction, role: str) -> list[str]:
    """Return the platform's schemas, as they are found here, that the role may not use."""
    rows = transaction.run(
        """
        SELECT DISTINCT relnamespace::regnamespace::text FROM pg_class
        WHERE oid = ANY (ARRAY(SELECT to_regclass(name)::oid FROM unnest(CAST(:tables AS text[])) AS located (name)))
          AND NOT has_schema_privilege(CAST(:role AS name), relnamespace, 'USAGE')
        """,
        role=role,
        tables=[transaction.located(table) for table in transaction.schemas],
    )
    return [name for (name,) in rows]


def _warnings(transaction: Transaction) -> list[str]:
    """Return what infra/grants.sql warned about: what the role may do besides."""
    ((text,),) = transaction.run("SELECT current_setting('reconciler.warnings')")
    return list(json.loads(text))


def _own_relations(transaction: Transaction) -> set[str]:
    """Return the names of the tables and indexes in the reconciler's schema."""
    rows = transaction.run(
        """
        SELECT concat('reconciler.', relname) FROM pg_class
        WHERE relnamespace = to_regnamespace('reconciler') AND relkind IN ('r', 'i')
        """
    )
    return {name for (name,) in rows}
