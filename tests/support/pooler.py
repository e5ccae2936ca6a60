"""A pooler like PgBouncer and RDS Proxy: transactions take turns on a few sessions.

https://www.postgresql.org/docs/current/protocol-flow.html
"""

import contextlib
import itertools
import socket
import struct
import threading
from typing import Any, Self
from urllib.parse import urlsplit

from sandbox.postgres import RECONCILER_ROLE, Database, PostgresServer

_AUTHENTICATED = b"R" + struct.pack("!ii", 8, 0)
_KEY = b"K" + struct.pack("!iii", 12, 1, 1)
_READY, _IDLE = b"Z", b"I"
_ASKS_FOR_READY = (b"Q", b"S")
_TERMINATE = b"X"


class TransactionPooler:
    """Listens on 127.0.0.1 within its `with` block, needs no password, and serves one client at a time.

    `sessions` are the server's (pg8000.native); `turns` counts the transactions of each.
    """

    def __init__(self, server: PostgresServer, database: Database, size: int = 2) -> None:
        self.sessions: list[Any] = [server.connect(database.name, user=RECONCILER_ROLE) for _ in range(size)]
        for one in self.sessions:
            one._usock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # noqa: SLF001 - see `_serve`
        self.turns = [0] * size
        self._order = itertools.cycle(range(size))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        port = urlsplit(database.url).port
        self.url = database.url.replace(f":{port}/", f":{self._listener.getsockname()[1]}/")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for session in self.sessions:
            session.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with client:
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        (length,) = struct.unpack("!i", _exactly(client, 4))
        _exactly(client, length - 4)
        client.sendall(_AUTHENTICATED + _KEY + _message(_READY, _IDLE))
        turn = next(self._order)
        while (kind := client.recv(1)) not in {b"", _TERMINATE}:
            server = self.sessions[turn]._usock  # noqa: SLF001 - there is no public way to a session's socket
            server.sendall(kind + _body(client))
            if kind not in _ASKS_FOR_READY:
                continue
            answer = b""
            while not answer.startswith(_READY):
                answer = _exactly(server, 1) + _body(server)
                client.sendall(answer)
            if answer.endswith(_IDLE):
                self.turns[turn] += 1
                turn = next(self._order)


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!i", len(content) + 4) + content


def _body(connection: socket.socket) -> bytes:
    """Read the rest of a message after its type: its length and content."""
    length = _exactly(connection, 4)
    return length + _exactly(connection, struct.unpack("!i", length)[0] - 4)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = connection.recv(count, socket.MSG_WAITALL)
    if len(data) != count:
        raise OSError("the other side hung up")
    return data
