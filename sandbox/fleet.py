"""Writes, changes and reads rows of the platform's tables and the reconciler's own."""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sandbox.postgres import Database

# So old that this heartbeat vetoes no flip.
_HEARTBEAT_AGE_S = 300.0

_DEFAULTS: Mapping[str, Any] = {
    "name": "workspace",
    "status": "online",
    "runtime": "langgraph",
    "instance_id": None,
    "parent_id": None,
    "heartbeat_age_s": _HEARTBEAT_AGE_S,
    "updated_age_s": 0.0,
}

_INSERT = """
    INSERT INTO workspaces (id, name, status, runtime, instance_id, parent_id, last_heartbeat_at, updated_at)
    SELECT id, name, status, runtime, instance_id, parent_id,
           now() - make_interval(secs => heartbeat_age_s), now() - make_interval(secs => updated_age_s)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS new (
        id uuid, name text, status {status_type}, runtime text, instance_id text, parent_id uuid,
        heartbeat_age_s float, updated_age_s float
    )
"""

_AGE = """
    DO $age$ DECLARE aged record; BEGIN
        FOR aged IN
            SELECT attrelid::regclass AS name, string_agg(
                       format('%1$I = %1$I - make_interval(secs => %2$s)', attname, {seconds}), ', ') AS assignments
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            WHERE relkind = 'r' AND atttypid = 'timestamptz'::regtype AND NOT attisdropped
              AND (relnamespace = 'reconciler'::regnamespace OR {rows} AND attrelid = 'workspaces'::regclass)
            GROUP BY attrelid
        LOOP
            EXECUTE format('UPDATE %s SET %s', aged.name, aged.assignments);
        END LOOP;
    END $age$
"""


class Fleet:
    """The workspaces of one database, as the database's owner sees them. Ids are strings.

    A new workspace is a candidate unless its columns say otherwise. Two columns are ages in seconds: `heartbeat_age_s`
    (None: no heartbeat yet) and `updated_age_s`.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._status_type = self._type_of_status()

    def add(self, instance_id: str | None, **columns: Any) -> str:
        """Add one workspace; return its id."""
        return self.insert([{"instance_id": instance_id, **columns}])[0]

    def add_all(self, instance_ids: Iterable[str | None], **columns: Any) -> list[str]:
        """Add a workspace for each instance, all with the same columns; return their ids in that order."""
        return self.insert({"instance_id": instance_id, **columns} for instance_id in instance_ids)

    def insert(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Add a workspace for each set of columns, in one statement; return their ids in that order."""
        complete = [{"id": str(uuid.uuid4()), **_DEFAULTS, **row} for row in rows]
        self.database.query(_INSERT.format(status_type=self._status_type), rows=json.dumps(complete))
        return [row["id"] for row in complete]

    def row(self, workspace_id: str) -> dict[str, Any]:
        """Return a workspace's row. Raises KeyError if there is none."""
        rows = self.database.query("SELECT * FROM workspaces WHERE id = CAST(:id AS uuid)", id=workspace_id)
        if not rows:
            raise KeyError(workspace_id)
        return {name: _plain(value) for name, value in rows[0].items()}

    def statuses(self) -> dict[str, str]:
        """Return every workspace's status by its id."""
        rows = self.database.query("SELECT id::text AS id, status::text AS status FROM workspaces")
        return {row["id"]: row["status"] for row in rows}

    def update(self, workspace_id: str, **columns: Any) -> None:
        """Set columns of one row, such as `status`, and its `updated_at`, as the platform does."""
        types = {"status": self._status_type, "parent_id": "uuid", "last_heartbeat_at": "timestamptz"}
        assignments = [f"{name} = CAST(:{name} AS {types.get(name, 'text')})" for name in columns]
        self.database.query(
            f"UPDATE workspaces SET {', '.join([*assignments, 'updated_at = now()'])} WHERE id = CAST(:id AS uuid)",  # noqa: S608 - column names
            id=workspace_id,
            **columns,
        )

    def heartbeat(self, workspace_id: str, *, age_s: float = 0.0) -> None:
        """Record a heartbeat from `age_s` seconds ago."""
        self.database.query(
            "UPDATE workspaces SET last_heartbeat_at = now() - make_interval(secs => CAST(:age_s AS float)), "
            "updated_at = now() WHERE id = CAST(:id AS uuid)",
            id=workspace_id,
            age_s=age_s,
        )

    def delete(self, workspace_id: str) -> None:
        """Delete a workspace's row."""
        self.database.query("DELETE FROM workspaces WHERE id = CAST(:id AS uuid)", id=workspace_id)

    @contextmanager
    def locked(self, *workspace_ids: str) -> Iterator[None]:
        """Lock these rows, as one of the platform's transactions would."""
        connection = self.database.connect()
        try:
            connection.run("BEGIN")
            for workspace_id in workspace_ids:
                connection.run("SELECT 1 FROM workspaces WHERE id = CAST(:id AS uuid) FOR UPDATE", id=workspace_id)
            yield
            connection.run("ROLLBACK")
        finally:
            connection.close()

    def events(self, workspace_id: str | None = None) -> list[dict[str, Any]]:
        """Return the platform's events for one workspace or all, oldest first."""
        return self._of("structure_events", "created_at", workspace_id)

    def restarts(self, workspace_id: str | None = None) -> list[dict[str, Any]]:
        """Return the restarts, open and closed, of one workspace or all, oldest first."""
        return self._of("reconciler.restarts", "id", workspace_id)

    def doubts(self, workspace_id: str | None = None) -> list[dict[str, Any]]:
        """Return what is remembered of one workspace or all."""
        return self._of("reconciler.doubts", "workspace_id, kind", workspace_id)

    def age_everything(self, seconds: float, *, rows: bool = False) -> None:
        """Move the reconciler's own times into the past, so that a test need not wait; with `rows`, the platform's."""
        self.database.query(_AGE.format(seconds=float(seconds), rows=rows))

    def _of(self, table: str, order: str, workspace_id: str | None) -> list[dict[str, Any]]:
        rows = self.database.query(
            f"SELECT * FROM {table} WHERE workspace_id = COALESCE(CAST(:id AS uuid), workspace_id) ORDER BY {order}",  # noqa: S608 - names from above
            id=workspace_id,
        )
        return [{name: _plain(value) for name, value in row.items()} for row in rows]

    def _type_of_status(self) -> str:
        rows = self.database.query(
            "SELECT format_type(atttypid, NULL) AS type FROM pg_attribute "
            "WHERE attrelid = 'workspaces'::regclass AND attname = 'status'"
        )
        return str(rows[0]["type"])


def _plain(value: Any) -> Any:
    """Return UUIDs as strings, and anything else as it is."""
    return str(value) if isinstance(value, uuid.UUID) else value
