"""A database whose connections are reused: for tests that run thousands of small queries."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pg8000.exceptions

from sandbox.postgres import OWNER_ROLE, Database


class _Kept:
    """A connection that is kept for reuse instead of being closed."""

    def __init__(self, connection: Any, idle: "list[_Kept]") -> None:
        self.run = connection.run
        self._connection = connection
        self._idle = idle

    @property
    def columns(self) -> Any:
        return self._connection.columns

    def hang_up(self) -> None:
        """Close the connection, whatever state it is in."""
        with suppress(pg8000.exceptions.Error, OSError):
            self._connection.close()

    def close(self) -> None:
        try:
            self.run("ROLLBACK")
        except (pg8000.exceptions.Error, OSError):
            self.hang_up()
        else:
            self._idle.append(self)


@dataclass(frozen=True, slots=True)
class KeepingDatabase(Database):
    """See `kept_connections`."""

    idle: list[_Kept] = field(default_factory=list)

    def forget(self) -> None:
        """Hang up the idle connections: the server has been restarted."""
        while self.idle:
            self.idle.pop().hang_up()

    def connect(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return _Kept(self._server.connect(self.name, user=OWNER_ROLE), self.idle)


@contextmanager
def kept_connections(database: Database) -> Iterator[KeepingDatabase]:
    """Yield the same database, whose owner opens no more connections than it uses at once."""
    keeping = KeepingDatabase(database.name, database.url, database.owner_url, database._server)  # noqa: SLF001 - it stays the same
    try:
        yield keeping
    finally:
        keeping.forget()
