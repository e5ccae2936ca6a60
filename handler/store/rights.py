"""What has to be there, and what the role has to be allowed, before a cycle begins."""

from collections.abc import Sequence

from handler.deadline import Deadline
from handler.errors import RightsMissingError, SchemaMissingError
from handler.store.session import Session, Transaction

# Table, column (None for the whole table) and right.
Rights = Sequence[tuple[str, str | None, str]]

# The schema's version that this code needs; infra/schema.sql installs it. Any newer one will do.
SCHEMA_VERSION = 1

_SCHEMA_FILE = "infra/schema.sql"
_OWN_TABLES = ("schema_version", "lease", "coverage", "absences", "restarts", "restart_stops", "holds")

_RIGHTS_TO_READ = (
    *(("workspaces", one, "SELECT") for one in ("id", "status", "runtime", "instance_id", "last_heartbeat_at")),
    *((f"reconciler.{table}", None, "SELECT") for table in _OWN_TABLES),
)
RIGHTS_TO_APPLY = (
    *_RIGHTS_TO_READ,
    *(("workspaces", one, "UPDATE") for one in ("status", "updated_at")),
    *(("structure_events", one, "INSERT") for one in ("event_type", "workspace_id", "payload")),
    ("reconciler.coverage", None, "UPDATE"),
    *(
        (f"reconciler.{table}", None, right)
        for table in ("lease", "absences", "restarts", "restart_stops", "holds")
        for right in ("INSERT", "UPDATE", "DELETE")
    ),
)


def check_rights(session: Session, deadline: Deadline, *, to_apply: bool) -> None:
    """Raise SchemaMissingError or RightsMissingError if a cycle would stumble half-way."""
    with session.transaction(deadline, read_only=True) as transaction:
        rights = RIGHTS_TO_APPLY if to_apply else _RIGHTS_TO_READ
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
    missing = [
        name
        for name, known in transaction.run(
            "SELECT name, to_regclass(name) IS NOT NULL FROM unnest(CAST(:names AS text[])) AS names (name)",
            names=list(tables),
        )
        if not known
    ]
    if missing:
        own = all(name.startswith("reconciler.") for name in missing)
        remedy = f"run {_SCHEMA_FILE}" if own else "is this the platform's database?"
        raise SchemaMissingError(f"the database has no table {', '.join(missing)}: {remedy}")


def lacking_rights(transaction: Transaction, rights: Rights, *, role: str | None = None) -> list[str]:
    """Return, in words, which of the rights the role (the session's own by default) does not have.

    On a table that does not exist nobody has any.
    """
    rows = transaction.run(
        """
        SELECT needed, field, name FROM unnest(CAST(:tables AS text[]), CAST(:fields AS text[]),
                                               CAST(:rights AS text[])) AS asked (name, field, needed),
                                        COALESCE(CAST(:role AS name), current_user) AS grantee
        WHERE CASE WHEN to_regclass(name) IS NULL THEN true
                   WHEN field IS NULL THEN NOT has_table_privilege(grantee, to_regclass(name), needed)
                   ELSE NOT has_column_privilege(grantee, to_regclass(name), field, needed) END
        """,
        role=role,
        tables=[table for table, _, _ in rights],
        fields=[field for _, field, _ in rights],
        rights=[right for _, _, right in rights],
    )
    return [f"{right} ({field}) on {table}" if field else f"{right} on {table}" for right, field, table in rows]
