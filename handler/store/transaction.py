"""How every transaction begins, and the interface to an open one.

Behind a pooler, somebody else may have used the session before. Whatever they set or planted there has no effect here.
A database whose rows may be history, or that must not be written, is refused.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.errors import ReadOnlyError, SchemaMissingError, StandbyError
from handler.store.tables import OWN_TABLES, PLATFORM_TABLES

Rows = list[Any]

STANDBY = "the server is a standby, so its rows may be history: the database's host name has to lead to the writer"
_READ_ONLY = (
    "default_transaction_read_only is on for the server, the database or the role. Somebody configured it, for example"
    " because this is the old primary after a switch: nothing is written here until it is off"
)
# In SQL, `platform.workspaces` stands for that table in the schema in which the platform keeps it.
_PLATFORM = "platform."


def _schema_of(table: str) -> str:
    """Return the SQL expression for the schema in which the search_path finds a table, quoted if necessary."""
    return f"""(
        SELECT relnamespace::pg_catalog.regnamespace::pg_catalog.text FROM pg_catalog.pg_class
        WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('{table}')
          AND relpersistence OPERATOR(pg_catalog.<>) 't'
    )"""  # noqa: S608 - a constant's name


_PLATFORM_OIDS = ", ".join(f"pg_catalog.to_regclass('{table}')::pg_catalog.oid" for table in PLATFORM_TABLES)
# to_regclass raises if the role may not enter the schema.
_OWN_NAMES = ", ".join(f"'{table.removeprefix('reconciler.')}'" for table in OWN_TABLES)

# `TO DEFAULT` restores what server, database and role configure (pg_settings.reset_val).
_SETTINGS = """
SET LOCAL role TO DEFAULT;
SET LOCAL default_transaction_read_only TO DEFAULT;
SET LOCAL synchronous_commit TO DEFAULT;
SET LOCAL row_security = off;
SET LOCAL array_nulls = on;
SET LOCAL TimeZone = 'UTC';
SET LOCAL DateStyle = 'ISO';
SET LOCAL extra_float_digits = 1;
SET LOCAL client_encoding = 'UTF8';
"""
# The role's own search_path finds the platform's tables, with temporary tables last. That path may lead anywhere, so
# while it is in force, every name has its schema.
_OWN_PATH = """
SET LOCAL search_path TO DEFAULT;
SELECT pg_catalog.set_config('search_path', pg_catalog.concat(
    pg_catalog.regexp_replace(pg_catalog.current_setting('search_path'), '^$', '""'), ', pg_temp'), true);
"""
_STATE = f"""
SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only'),
       (SELECT pg_catalog.bool_or(pg_catalog.row_security_active(oid)) FROM pg_catalog.pg_class
        WHERE oid OPERATOR(pg_catalog.=) ANY (ARRAY[{_PLATFORM_OIDS}])
           OR relname OPERATOR(pg_catalog.=) ANY (ARRAY[{_OWN_NAMES}]::pg_catalog.name[])
              AND relnamespace OPERATOR(pg_catalog.=) pg_catalog.to_regnamespace('reconciler')::pg_catalog.oid),
       CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL
            THEN pg_catalog.set_config('transaction_timeout', '0', true) END,
       {", ".join(map(_schema_of, PLATFORM_TABLES))};
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Begun:
    """What the server says as a transaction begins: each platform table's schema, and whether rows may be hidden."""

    schemas: Mapping[str, str | None]
    row_security: bool


class Transaction:
    """An open transaction."""

    def __init__(self, run: Callable[..., Rows], schemas: Mapping[str, str | None]) -> None:
        """Run statements through `run(sql, **parameters)`. `schemas` has the schema of each platform table."""
        self._run = run
        self.schemas = schemas

    def run(self, sql: str, **parameters: Any) -> Rows:
        """Run one statement and return its rows. Raises StoreError."""
        return self._run(self._located(sql), **parameters)

    def located(self, table: str) -> str | None:
        """Return a table's name with its schema, or None if the role's search_path finds no such table."""
        if table not in self.schemas:
            return table
        schema = self.schemas[table]
        return None if schema is None else f"{schema}.{table}"

    def _located(self, sql: str) -> str:
        for table in self.schemas:
            if _PLATFORM + table in sql:
                located = self.located(table)
                if located is None:
                    raise missing_tables([table])
                sql = sql.replace(_PLATFORM + table, located)
        return sql


def ids_or_null(workspace_ids: Sequence[str] | None) -> list[str] | None:
    """Return workspace ids, or None for everybody, as the driver takes them."""
    return None if workspace_ids is None else list(workspace_ids)


def begin(*, read_only: bool, timeout_s: float, lock_wait_s: float = math.inf) -> str:
    """Return the statements that begin a transaction.

    Each of its statements may take `timeout_s` seconds, and wait `lock_wait_s` seconds for a lock.

    They are one batch, so they cost one round trip. The statement timeout comes last, so that it cannot cancel the
    beginning itself.
    """
    milliseconds = max(1, int(timeout_s * 1000))
    lock_milliseconds = max(1, int(min(timeout_s, lock_wait_s) * 1000))
    return f"""
        BEGIN ISOLATION LEVEL READ COMMITTED, READ {"ONLY" if read_only else "WRITE"};
        SET LOCAL statement_timeout = 0;
        SET LOCAL lock_timeout = {lock_milliseconds};
        SET LOCAL idle_in_transaction_session_timeout = {milliseconds + 1000};
        {_SETTINGS} {_OWN_PATH} {_STATE}
        SET LOCAL search_path = pg_catalog, pg_temp;
        SET LOCAL statement_timeout = {milliseconds}
    """


def begun(rows: Sequence[Sequence[Any]], *, read_only: bool) -> Begun:
    """Read the answer to `begin`. Raises StandbyError, ReadOnlyError."""
    in_recovery, default_read_only, row_security, _, *schemas = rows[-1]
    if in_recovery:
        raise StandbyError(STANDBY)
    if default_read_only == "on" and not read_only:
        raise ReadOnlyError(_READ_ONLY)
    return Begun(dict(zip(PLATFORM_TABLES, schemas, strict=True)), bool(row_security))


def missing_tables(tables: Sequence[str]) -> SchemaMissingError:
    """Return the error for platform tables that are missing."""
    return SchemaMissingError(
        f"the database has no table {', '.join(tables)}: is this the platform's database, does the role's own"
        " search_path lead to its tables, and has the role USAGE on their schema?"
    )
