"""Checks before a cycle: are the tables there, and does the role have its rights?"""

from collections.abc import Sequence

from handler.deadline import Deadline
from handler.errors import RightsMissingError, SchemaMissingError
from handler.store.session import Session, Transaction
from handler.store.tables import RIGHTS_TO_APPLY, RIGHTS_TO_READ, Rights
from handler.store.transaction import missing_tables

# The schema version that this code needs. infra/schema.sql installs it; a newer one will do.
SCHEMA_VERSION = 3

_SCHEMA_FILE = "infra/schema.sql"


def check_rights(session: Session, deadline: Deadline, *, to_apply: bool) -> None:
    """Raise SchemaMissingError or RightsMissingError if a cycle would fail half-way."""
    with session.transaction(deadline, read_only=True) as transaction:
        rights = RIGHTS_TO_APPLY if to_apply else RIGHTS_TO_READ
        _require_own_schema(transaction)
        _require_tables(transaction, sorted({table for table, _, _ in rights}))
        lacking = lacking_rights(transaction, rights)
        if lacking:
            raise _lacking(lacking)


def _require_own_schema(transaction: Transaction) -> None:
    """Raise unless the schema `reconciler` is there, can be entered, and is new enough."""
    schemas = transaction.run(
        """
        SELECT has_schema_privilege(schema.oid, 'USAGE'), version.oid IS NOT NULL,
               COALESCE(has_table_privilege(version.oid, 'SELECT'), false)
        FROM pg_namespace AS schema
        LEFT JOIN pg_class AS version ON version.relnamespace = schema.oid AND version.relname = 'schema_version'
        WHERE schema.nspname = 'reconciler'
        """
    )
    if not schemas:
        raise SchemaMissingError(f"the database has no schema reconciler: run {_SCHEMA_FILE}")
    ((may_enter, has_version, may_read),) = schemas
    if not has_version:
        raise _too_old("no version number")
    if not may_enter:
        raise _lacking(["USAGE on schema reconciler"])
    if not may_read:
        return  # the check of all rights names this one among the others
    found = transaction.run("SELECT version FROM reconciler.schema_version")
    if not found:
        raise _too_old("no version number")
    ((version,),) = found
    if version < SCHEMA_VERSION:
        raise _too_old(f"version {version}")


def _too_old(found: str) -> SchemaMissingError:
    return SchemaMissingError(
        f"the schema reconciler has {found}, and this code needs version {SCHEMA_VERSION}: run {_SCHEMA_FILE}"
    )


def _lacking(rights: Sequence[str]) -> RightsMissingError:
    return RightsMissingError(f"the database's role lacks {', '.join(rights)}: run infra/grants.sql")


def _require_tables(transaction: Transaction, tables: Sequence[str]) -> None:
    rows = transaction.run(
        "SELECT name FROM unnest(CAST(:names AS text[]), CAST(:located AS text[])) AS tables (name, located)"
        " WHERE to_regclass(located) IS NULL",
        names=list(tables),
        located=[transaction.located(table) for table in tables],
    )
    missing = [name for (name,) in rows]
    own = [name for name in missing if name.startswith("reconciler.")]
    if own:
        raise SchemaMissingError(f"the database has no table {', '.join(own)}: run {_SCHEMA_FILE}")
    if missing:
        raise missing_tables(missing)


def lacking_rights(transaction: Transaction, rights: Rights, *, role: str | None = None) -> list[str]:
    """Return in words which of the rights the role lacks (by default, the session's own role).

    On a table that does not exist, it lacks all of them.
    """
    rows = transaction.run(
        """
        SELECT needed, field, name
        FROM unnest(CAST(:tables AS text[]), CAST(:located AS text[]), CAST(:fields AS text[]), CAST(:rights AS text[]))
                 AS asked (name, located, field, needed),
             COALESCE(CAST(:role AS name), current_user) AS grantee
        WHERE CASE WHEN to_regclass(located) IS NULL THEN true
                   WHEN field IS NULL THEN NOT has_table_privilege(grantee, to_regclass(located), needed)
                   ELSE NOT has_column_privilege(grantee, to_regclass(located), field, needed) END
        """,
        role=role,
        tables=[table for table, _, _ in rights],
        located=[transaction.located(table) for table, _, _ in rights],
        fields=[field for _, field, _ in rights],
        rights=[right for _, _, right in rights],
    )
    return [f"{right} ({field}) on {table}" if field else f"{right} on {table}" for right, field, table in rows]
