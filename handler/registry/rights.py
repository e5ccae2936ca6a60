"""What has to be there, and what the role has to be allowed, before a cycle begins."""

from collections.abc import Sequence

from handler.database import Session, Transaction
from handler.deadline import Deadline
from handler.errors import RightsMissingError, SchemaMissingError

_RIGHTS_TO_READ = (
    *(("workspaces", one, "SELECT") for one in ("id", "status", "runtime", "instance_id", "last_heartbeat_at")),
    *((f"reconciler.{one}", None, "SELECT") for one in ("lease", "sweep", "absences", "restarts")),
)
RIGHTS_TO_APPLY = (
    *_RIGHTS_TO_READ,
    *(("workspaces", one, "UPDATE") for one in ("status", "updated_at")),
    *(("structure_events", one, "INSERT") for one in ("event_type", "workspace_id", "payload")),
    ("reconciler.sweep", None, "UPDATE"),
    *(
        (f"reconciler.{table}", None, right)
        for table in ("lease", "absences", "restarts")
        for right in ("INSERT", "UPDATE", "DELETE")
    ),
)


def check_rights(session: Session, deadline: Deadline, *, to_apply: bool) -> None:
    """Raise SchemaMissingError or RightsMissingError if a cycle would stumble half-way."""
    with session.transaction(deadline, read_only=True) as transaction:
        rights = RIGHTS_TO_APPLY if to_apply else _RIGHTS_TO_READ
        _require_tables(transaction, sorted({table for table, _, _ in rights}))
        _require_rights(transaction, rights)


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
        remedy = "run infra/schema.sql" if own else "is this the platform's database?"
        raise SchemaMissingError(f"the database has no table {', '.join(missing)}: {remedy}")


def _require_rights(transaction: Transaction, rights: Sequence[tuple[str, str | None, str]]) -> None:
    missing = transaction.run(
        """
        SELECT name, field, needed FROM unnest(CAST(:tables AS text[]), CAST(:fields AS text[]),
                                               CAST(:rights AS text[])) AS asked (name, field, needed)
        WHERE NOT CASE WHEN field IS NULL THEN has_table_privilege(name, needed)
                       ELSE has_column_privilege(name, field, needed) END
        """,
        tables=[table for table, _, _ in rights],
        fields=[field for _, field, _ in rights],
        rights=[right for _, _, right in rights],
    )
    if missing:
        named = ", ".join(f"{right}{f' ({field})' if field else ''} on {table}" for table, field, right in missing)
        raise RightsMissingError(f"the database's role lacks {named}: run infra/grants.sql")
