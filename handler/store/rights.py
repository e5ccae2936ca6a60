"""What has to be there, and what the role has to be allowed, before a cycle begins."""

from collections.abc import Sequence

from handler.deadline import Deadline
from handler.errors import RightsMissingError, SchemaMissingError
from handler.store.session import Session, Transaction

# Table, column (None for the whole table) and right.
Rights = Sequence[tuple[str, str | None, str]]

# So that a schema older than the code is noticed.
_OWN_COLUMNS = {
    "lease": ("scope", "holder", "acquired_at", "expires_at"),
    "sweep": ("cursor", "pass_began_at", "first", "began_at", "pass_completed_at"),
    "absences": ("workspace_id", "instance_id", "sightings", "first_seen_at", "last_seen_at"),
    "restarts": (
        *("id", "workspace_id", "instance_id", "cycle_id", "flipped_at", "attempts", "refusals", "claimed_by"),
        *("asked_at", "next_attempt_at", "last_answer", "closed_at", "outcome"),
        *("streak", "paused_until", "watched_until"),
    ),
    "holds": ("workspace_id", "reason", "began_at", "ends_at"),
}

_RIGHTS_TO_READ = (
    *(("workspaces", one, "SELECT") for one in ("id", "status", "runtime", "instance_id", "last_heartbeat_at")),
    *((f"reconciler.{table}", None, "SELECT") for table in _OWN_COLUMNS),
)
RIGHTS_TO_APPLY = (
    *_RIGHTS_TO_READ,
    *(("workspaces", one, "UPDATE") for one in ("status", "updated_at")),
    *(("structure_events", one, "INSERT") for one in ("event_type", "workspace_id", "payload")),
    ("reconciler.sweep", None, "UPDATE"),
    *(
        (f"reconciler.{table}", None, right)
        for table in ("lease", "absences", "restarts", "holds")
        for right in ("INSERT", "UPDATE", "DELETE")
    ),
)


def check_rights(session: Session, deadline: Deadline, *, to_apply: bool) -> None:
    """Raise SchemaMissingError or RightsMissingError if a cycle would stumble half-way."""
    with session.transaction(deadline, read_only=True) as transaction:
        rights = RIGHTS_TO_APPLY if to_apply else _RIGHTS_TO_READ
        _require_tables(transaction, sorted({table for table, _, _ in rights}))
        _require_own_columns(transaction)
        lacking = lacking_rights(transaction, rights)
        if lacking:
            raise RightsMissingError(f"the database's role lacks {', '.join(lacking)}: run infra/grants.sql")


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


def _require_own_columns(transaction: Transaction) -> None:
    columns = [(f"reconciler.{table}", column) for table, names in _OWN_COLUMNS.items() for column in names]
    missing = transaction.run(
        """
        SELECT table_name || '.' || column_name
        FROM unnest(CAST(:tables AS text[]), CAST(:columns AS text[])) AS needed (table_name, column_name)
        WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(table_name)
                          AND attname = column_name AND NOT attisdropped)
        """,
        tables=[table for table, _ in columns],
        columns=[column for _, column in columns],
    )
    if missing:
        raise SchemaMissingError(f"the database has no {', '.join(name for (name,) in missing)}: run infra/schema.sql")


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
