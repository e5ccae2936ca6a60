"""PgBouncer itself, as its Debian package has it: transaction pooling before a PostgreSQL server."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pg8000.native

from sandbox.postgres import RECONCILER_ROLE, Database, PostgresServer

PROGRAM = Path("/usr/sbin/pgbouncer")
_START_TIMEOUT_S = 10.0


class PgBouncer:
    """Listens on 127.0.0.1 within its `with` block, and needs no password.

    Transactions alternate between two sessions. `url` leads to the database through the pooler.
    """

    def __init__(self, server: PostgresServer, database: Database) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._directory = Path(tempfile.mkdtemp(prefix="reconciler-pgbouncer-"))
        self._server, self._database = server, database
        self.url = database.url.replace(f":{urlsplit(database.url).port}/", f":{self._port}/")

    def __enter__(self) -> Self:
        account: dict[str, Any] = {}
        if os.geteuid() == 0:  # PgBouncer refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self._directory, nobody.pw_uid, nobody.pw_gid)
            account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        settings = self._directory / "pgbouncer.ini"
        settings.write_text(self._settings())
        log = self._directory / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(PROGRAM), str(settings)], stdout=output, stderr=output, cwd="/", **account
            )
        try:
            self._wait_until_it_accepts(log)
            self._open_both_sessions()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory)

    def connect(self) -> Any:
        """Return a client of the pooler (pg8000.native)."""
        return pg8000.native.Connection(
            RECONCILER_ROLE, host="127.0.0.1", port=self._port, database=self._database.name, ssl_context=False
        )

    def _open_both_sessions(self) -> None:
        """Run two transactions at once, because it opens a session only when none is idle."""
        with contextlib.closing(self.connect()) as one, contextlib.closing(self.connect()) as other:
            for statement in ("BEGIN", "COMMIT"):
                for client in (one, other):
                    client.run(statement)

    def _settings(self) -> str:
        login = f"user={RECONCILER_ROLE} password={self._server.password()}"
        return textwrap.dedent(f"""\
            [databases]
            {self._database.name} = host=127.0.0.1 port={self._server.port} {login}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self._port}
            unix_socket_dir =
            auth_type = any
            pool_mode = transaction
            default_pool_size = 2
            server_round_robin = 1
        """)

    def _wait_until_it_accepts(self, log: Path) -> None:
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise OSError(f"PgBouncer did not start:\n{log.read_text()}")
            time.sleep(0.01)

    def _accepts(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0
