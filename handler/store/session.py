"""The connection to PostgreSQL: made, verified, kept warm, and bounded in time.

Nothing here outlives a transaction on the server (`SET LOCAL` only), so it works behind RDS Proxy and PgBouncer's
transaction pooling. transaction.py says how a transaction begins.
"""

import contextlib
import io
import math
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.exceptions
import pg8000.core
import pg8000.exceptions
import pg8000.native

from handler.deadline import Deadline
from handler.errors import (
    ConnectionLostError,
    LoginRefusedError,
    SecretError,
    SettingsError,
    StandbyError,
    StoreError,
    shown,
)
from handler.net.bounded import BoundedReader
from handler.net.connect import connected
from handler.net.secrets import Secrets, text_field
from handler.net.tls import postgres_context
from handler.settings import IAM, Database
from handler.store.row_security import require_every_row
from handler.store.sqlstate import FEATURE_NOT_SUPPORTED, QUERY_CANCELED, explained
from handler.store.tables import RIGHTS_TO_APPLY, RIGHTS_TO_READ, Rights
from handler.store.transaction import STANDBY, Begun, Rows, Transaction, begin, begun

__all__ = ["LOCK_WAIT_SECONDS", "Session", "Transaction"]

# How long somebody else's lock on a row of our own tables is waited for, where it cannot be passed over. Other cycles
# and orders take milliseconds; whoever has one for longer has it for minutes.
LOCK_WAIT_SECONDS = 0.5

_VARIABLE = "DATABASE_SECRET_ARN"
_CONNECT_SECONDS = 10.0
# The client waits this much longer than the server, so that it hears that the server gave up.
_GRACE_SECONDS = 0.3
# A warm connection may be dead. Finding out must leave time to make another.
_WARM_SECONDS = 3.0
_READ_BYTES = 64 * 1024
_PORT = re.compile(r"[0-9]{1,5}")
_LENGTH = struct.Struct("!i")


class _Connection(pg8000.native.Connection):  # type: ignore[misc]  # pg8000 has no types
    """A connection that obeys a deadline once it is made, and leaves nothing open behind it.

    pg8000 has no public way to change a connection's timeout, and a timeout per packet would not bound an answer that
    drips in. So this uses private parts of pg8000: its version is pinned, and tests let a server drip.

    Each transaction asks for UTF-8. A database without an encoding (SQL_ASCII) sends whatever bytes it has. Bytes
    that are not UTF-8 become lone surrogates, which no instance id contains, so they affect only their own row.
    """

    _sock: Any
    _usock: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reader = BoundedReader(self._usock.makefile("rb", buffering=0), self._usock, Deadline(0))
        self._sock.close()
        self._sock = io.BufferedRWPair(self._reader, self._usock.makefile("wb", buffering=0), _READ_BYTES)

    def handle_PARAMETER_STATUS(self, data: bytes, context: Any) -> None:  # noqa: N802 - pg8000's name
        """Note a setting that the server reports. The encoding stays UTF-8, whatever the session had."""
        super().handle_PARAMETER_STATUS(data, context)
        self._client_encoding = "utf8"

    def handle_DATA_ROW(self, data: bytes, context: Any) -> None:  # noqa: N802 - pg8000's name
        """Read one row as pg8000 does, but accept bytes that are not UTF-8."""
        row: list[Any] = []
        index = 2
        for convert in context.input_funcs:
            (length,) = _LENGTH.unpack_from(data, index)
            index += _LENGTH.size
            if length < 0:
                row.append(None)
                continue
            row.append(convert(str(data[index : index + length], "utf-8", "surrogateescape")))
            index += length
        context.rows.append(row)

    def execute_unnamed(
        self, statement: str, vals: Sequence[Any] = (), oids: Sequence[int] = (), stream: Any = None
    ) -> Any:
        """Run a statement with parameters in one round trip. pg8000 would wait for the server three times."""
        context = pg8000.core.Context(statement, stream=stream)
        unnamed = pg8000.core.NULL_BYTE
        self.send_PARSE(unnamed, statement, oids)
        self.send_DESCRIBE_STATEMENT(unnamed)
        self.send_BIND(unnamed, pg8000.core.make_params(self.py_types, vals))
        self.send_EXECUTE()
        self._sock.write(pg8000.core.SYNC_MSG)
        self._sock.flush()
        self.handle_messages(context)
        return context

    def obey(self, deadline: Deadline) -> None:
        """Make the next statement end by the deadline, or raise TimeoutError."""
        self._reader.deadline = deadline
        self._usock.settimeout(deadline.remaining())

    def close(self) -> None:
        """Say goodbye and close everything: pg8000, which also calls this, would leave its stream open."""
        stream = self._sock
        try:
            super().close()
        finally:
            with contextlib.suppress(OSError, ValueError):
                stream.close()

    def hang_up(self) -> None:
        """Close, whatever state the connection is in."""
        with contextlib.suppress(pg8000.exceptions.Error, OSError):
            self.obey(Deadline(_GRACE_SECONDS))
            self.close()


class Session:
    """One connection, kept from one invocation to the next, and replaced when it breaks."""

    def __init__(self, database: Database, secrets: Secrets, token: Callable[[str, int, str], str]) -> None:
        """Log in as `database` says; `token(host, port, user)` makes an IAM token."""
        self._database = database
        self._secrets = secrets
        self._token = token
        self._connection: _Connection | None = None

    @contextlib.contextmanager
    def transaction(
        self,
        deadline: Deadline,
        *,
        read_only: bool = False,
        every_row: bool = True,
        rights: Rights | None = None,
        lock_wait_s: float = math.inf,
    ) -> Iterator[Transaction]:
        """Open a transaction that ends by the deadline, committed as a whole or not at all.

        A statement that waits for a lock for longer than `lock_wait_s` seconds raises RowLockedError.
        With `every_row`, it is refused if row-level security could hide any row of its tables: those of `rights`, or
        all that a cycle uses. Raises StoreError, SecretError, SettingsError.
        """
        beginning = self._begin(deadline, read_only=read_only, lock_wait_s=lock_wait_s)
        transaction = Transaction(lambda sql, **parameters: self._run(deadline, sql, **parameters), beginning.schemas)
        used = rights or (RIGHTS_TO_READ if read_only else RIGHTS_TO_APPLY)
        try:
            if beginning.row_security and every_row:
                require_every_row(transaction, used)
                transaction.run("SET LOCAL row_security = on")
            yield transaction
            if beginning.row_security and every_row:
                # Nobody can change the policies of the tables that the transaction has used until it ends.
                require_every_row(transaction, used)
            self._run(deadline, "COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def close(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.hang_up()

    def _begin(self, deadline: Deadline, *, read_only: bool, lock_wait_s: float) -> Begun:
        """Begin a transaction. Use a new connection if this one is dead or leads to a standby.

        Likewise, once, if the beginning is cancelled: a pooled session may have a timeout so short that it is over
        before `SET LOCAL` ends it.
        """
        standbys = cancelled = 0
        while True:
            if deadline.over():
                raise StoreError("no time is left for the transaction")
            warm = self._connection is not None
            if not warm:
                self._connection = self._connect(deadline)
            part = deadline.within(min(_WARM_SECONDS, deadline.remaining() / 2)) if warm else deadline
            try:
                statements = begin(read_only=read_only, timeout_s=deadline.remaining(), lock_wait_s=lock_wait_s)
                return self._begun(part, statements, read_only=read_only)
            except ConnectionLostError:
                if not warm:
                    raise
            except StandbyError:
                standbys += 1
                if standbys > 1:
                    raise
            except StoreError as error:
                cancelled += 1
                if error.sqlstate != QUERY_CANCELED or cancelled > 1:
                    raise

    def _begun(self, deadline: Deadline, statements: str, *, read_only: bool) -> Begun:
        """Begin on this connection. If that fails, a transaction may be half open on it, so it is closed."""
        try:
            return begun(self._run(deadline, statements), read_only=read_only)
        except BaseException as error:
            self.close()
            if isinstance(error, StoreError) and error.sqlstate == FEATURE_NOT_SUPPORTED:
                raise StandbyError(STANDBY) from error
            raise

    def _run(self, deadline: Deadline, sql: str, **parameters: Any) -> Rows:
        if self._connection is None:
            raise ConnectionLostError("the connection broke earlier in this transaction")
        if deadline.over():
            raise StoreError("no time is left for the statement")
        try:
            self._connection.obey(Deadline(deadline.remaining() + _GRACE_SECONDS))
            return self._connection.run(sql, **parameters) or []
        except pg8000.exceptions.DatabaseError as error:
            failure = explained(error)
            if isinstance(failure, ConnectionLostError | StandbyError):
                self.close()
            raise failure from error
        except (pg8000.exceptions.Error, OSError) as error:
            self.close()
            raise ConnectionLostError(f"the database hung up or did not answer ({type(error).__name__})") from error
        except UnicodeError as error:
            self.close()
            raise StoreError("a value that is no text can be neither sent to the database nor read from it") from error
        except Exception as error:
            self.close()
            # Only its type: pg8000's own words contain what the server sent.
            raise StoreError(f"the database's answer makes no sense ({type(error).__name__})") from error
        except BaseException:
            self.close()  # the next statement would read the rest of this answer
            raise

    def _roll_back(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.obey(Deadline(_GRACE_SECONDS))
            self._connection.run("ROLLBACK")
        except Exception:  # noqa: BLE001 - whatever it is, the transaction ends with the connection
            self.close()

    def _connect(self, deadline: Deadline) -> _Connection:
        try:
            return self._log_in(deadline, fresh=False)
        except LoginRefusedError:
            if self._database.secret_arn is None:
                raise
            return self._log_in(deadline, fresh=True)  # the password was rotated

    def _log_in(self, deadline: Deadline, *, fresh: bool) -> _Connection:
        login = self._login(deadline, fresh=fresh)
        time_left = deadline.within(_CONNECT_SECONDS)
        try:
            return _in_time(lambda: _made(login, time_left), time_left)
        except pg8000.exceptions.DatabaseError as error:
            raise explained(error) from error
        except Exception as error:  # whatever answered, it was not PostgreSQL
            why = getattr(error, "verify_message", "") or type(error).__name__
            raise ConnectionLostError(f"no connection to the database at {shown(login['host'])}: {why}") from error

    def _login(self, deadline: Deadline, *, fresh: bool) -> dict[str, Any]:
        database, server = self._database, self._database.server
        user, password, host, port, name = database.user, database.password, server.host, server.port, server.name
        if database.secret_arn is not None:
            secret = self._secrets.read(database.secret_arn, _VARIABLE, deadline, fresh=fresh)
            user, password = (text_field(secret, field, _VARIABLE) for field in ("username", "password"))
            host = text_field(secret, "host", _VARIABLE) or host
            name = text_field(secret, "dbname", _VARIABLE) or name
            port = _port(text_field(secret, "port", _VARIABLE)) or port
        for value, what in ((host, "host (or DATABASE_HOST)"), (name, "dbname (or DATABASE_NAME)"), (user, "username")):
            if not value:
                raise SecretError(f"{_VARIABLE}: the secret has no {what}")
        if database.auth == IAM:
            try:
                password = self._token(str(host), port, str(user))
            except botocore.exceptions.BotoCoreError as error:
                raise SecretError(f"DATABASE_AUTH: no IAM token can be made ({type(error).__name__})") from error
        elif password is None and database.secret_arn is not None:
            raise SecretError(f"{_VARIABLE}: the secret has no password, and DATABASE_AUTH is not iam")
        return {
            "user": user,
            "password": password,
            "host": host,
            "port": port,
            "database": name,
            "ssl_context": _ssl_context(database),
            "application_name": "instance-state-reconciler",
        }


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not _PORT.fullmatch(text) or not 0 < int(text) <= 65535:  # noqa: PLR2004 - TCP's range
        raise SecretError(f"{_VARIABLE}: the field port of the secret is not a port number")
    return int(text)


def _ssl_context(database: Database) -> ssl.SSLContext | bool | None:
    """Return what pg8000 takes instead of libpq's sslmode. None falls back to plaintext, as `prefer` does."""
    if database.sslmode == "disable":
        return False
    if database.sslmode in ("allow", "prefer"):
        return None
    try:
        return postgres_context(database.sslmode, database.ca_file)
    except OSError as error:  # SSLError is one
        raise SettingsError(f"DATABASE_CA_FILE: not a file of certificates (PEM): {error}") from error


def _made(login: Mapping[str, Any], deadline: Deadline) -> _Connection:
    """Connect and log in. pg8000 would give all the time to the first address of the name."""
    sock = connected(login["host"], login["port"], deadline)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.settimeout(deadline.remaining() + _GRACE_SECONDS)
        return _Connection(sock=sock, **login)
    except BaseException:
        sock.close()
        raise


def _in_time(make: Callable[[], _Connection], deadline: Deadline) -> _Connection:
    """Return the connection that `make` makes, unless the deadline comes first: pg8000 waits anew for each packet.

    A connection that comes too late is closed. Raises TimeoutError, or what `make` raises.
    """
    pool = ThreadPoolExecutor(1)
    making = pool.submit(make)
    pool.shutdown(wait=False)
    try:
        return making.result(deadline.remaining() + _GRACE_SECONDS)
    except TimeoutError:
        making.add_done_callback(lambda late: None if late.exception() else late.result().hang_up())
        raise
