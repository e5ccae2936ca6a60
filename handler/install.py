"""The installer's entry point: applies the project's SQL as the database's owner. Invoked by hand, at every upgrade.

It is a separate function with its own secret, because the reconciler must not own the tables that it works on. It
applies the same files as psql would, in one transaction: all of them or none.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handler import process
from handler.deadline import Deadline
from handler.errors import (
    RequestError,
    RightsMissingError,
    RowLockedError,
    SchemaMissingError,
    SettingsError,
    StoreError,
    shown,
)
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store.rights import lacking_rights
from handler.store.session import Session, Transaction
from handler.store.tables import RIGHTS_TO_APPLY
from handler.telemetry import logger

SCHEMA, GRANTS = "infra/schema.sql", "infra/grants.sql"
FILES = (SCHEMA, GRANTS)
_ROOT = Path(__file__).parent.parent

_SECONDS = 50.0

_ROLE_BYTES = 63  # PostgreSQL cuts longer names off
# GRANT treats these as keywords, even in quotes: "public" would be everybody.
_RESERVED_ROLES = ("public", "none")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


@logger.inject_lambda_context(clear_state=True)
def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Apply schema and grants, and return what that changed.

    The event is `{"install": true}` and, optionally, `"role"`: the role that gets the rights, instead of the one in
    DATABASE_ROLE. Raises ReconcilerError.
    """
    role = requested_role(event, os.environ)
    aws = process.aws()
    session = Session(database_from(os.environ), Secrets(aws.secret_text), aws.database_token)
    try:
        report = install(session, role, Deadline(process.seconds_for(_SECONDS, context)))
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
    expected = f"the name of a database role, of 1 to {_ROLE_BYTES} bytes"
    if "role" in event:
        if not _is_role(event["role"]):
            raise RequestError(f"event field role: found {shown(event['role'])}; expected {expected}")
        return str(event["role"])
    role = environment.get("DATABASE_ROLE")
    if not _is_role(role):
        raise SettingsError(f"DATABASE_ROLE: found {shown(role)}; expected {expected} (or the event field role)")
    return str(role)


def _is_role(name: object) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= _ROLE_BYTES
        and not _CONTROL_CHARACTER.search(name)
        and name not in _RESERVED_ROLES
    )


def install(session: Session, role: str, deadline: Deadline) -> dict[str, Any]:
    """Apply the files in one transaction; return what they created, granted and warned about.

    Raises StoreError, SecretError.
    """
    with session.transaction(deadline, every_row=False) as transaction:
        if not transaction.run("SELECT FROM pg_roles WHERE rolname = :role", role=role):
            raise StoreError(f"the database has no role {role}: create it, with LOGIN")
        relations = _own_relations(transaction)
        with _naming(SCHEMA):
            transaction.run((_ROOT / SCHEMA).read_text())
        # Before this point, the schema and the functions in it may be anybody's.
        lacking = lacking_rights(transaction, RIGHTS_TO_APPLY, role=role)
        with _naming(GRANTS):
            # Like psql, the file finds the platform's tables by the login's own path. It leaves that path at once.
            transaction.run("SET LOCAL search_path TO DEFAULT")
            transaction.run((_ROOT / GRANTS).read_text().replace(':"role"', _quoted(role)))
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
                f"the installer's login may not grant {', '.join(still_lacking)}: it has to be the tables' owner"
            )
        return {
            "role": role,
            "applied": list(FILES),
            "created": sorted(_own_relations(transaction) - relations),
            "granted": lacking,
            "warnings": _warnings(transaction),
        }


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Add to an error which file failed, and what to do about it."""
    try:
        yield
    except RightsMissingError as error:
        raise RightsMissingError(
            f"{file}: {error.server_message}: the installer's login has to own the platform's tables and may need"
            " CREATE on the database"
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


def _quoted(name: str) -> str:
    """Quote an identifier, as psql's `:"name"` does."""
    return '"' + name.replace('"', '""') + '"'
