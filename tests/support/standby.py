"""A real standby beside a real primary, and the changes between the two roles."""

import tempfile
from pathlib import Path
from typing import Self

from sandbox.postgres import Database, PostgresServer

# The wheel's PostgreSQL comes without pg_basebackup; Debian's has it.
BINARIES = Path("/usr/lib/postgresql/15/bin")


class Standby(PostgresServer):
    """A hot standby that streams from its primary. The primary also has to run `BINARIES`."""

    @classmethod
    def of(cls, primary: PostgresServer) -> Self:
        """Return a new standby that accepts connections; its `with` block removes it."""
        directory = Path(tempfile.mkdtemp(prefix="reconciler-standby-", dir="/tmp"))
        directory.chmod(0o755)
        standby = cls(directory, directory / "data", BINARIES, primary._account)  # noqa: SLF001 - of the same class
        try:
            standby._passwords = primary._passwords  # noqa: SLF001
            standby._hold_leash()
            standby._copy(primary)
            standby.start_again()
        except BaseException:
            standby.close()
            raise
        return standby

    def database(self, original: Database) -> Database:
        """Return the standby's copy of a database on the primary."""
        name = original.name
        return Database(name, self.url(name), self.url(name, user="platform"), self)

    def _copy(self, primary: PostgresServer) -> None:
        self._data.mkdir(mode=0o700)
        self._give(self._data)
        login = f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password('postgres')}"
        self._run(
            "pg_basebackup",
            *("--pgdata", str(self._data), "--dbname", login, "--write-recovery-conf"),
            *("--checkpoint", "fast", "--wal-method", "stream", "--no-sync"),
            account=self._account,
        )


def promote(server: PostgresServer) -> None:
    """Promote a standby to an independent server that accepts writes. It keeps its sessions."""
    ((promoted,),) = server.execute("SELECT pg_promote()")
    assert promoted


def demote(server: PostgresServer) -> None:
    """Start a primary again as a standby, on the same port."""
    server.stop()
    signal = server._data / "standby.signal"  # noqa: SLF001 - the way to tell PostgreSQL
    signal.touch()
    server._give(signal)  # noqa: SLF001
    server.start_again()
