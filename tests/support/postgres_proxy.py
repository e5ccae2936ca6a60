"""A network between a client and PostgreSQL that can go silent, drip, or stop at a statement."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from sandbox.postgres import Database

_CHUNK = 65536


@dataclass(slots=True)
class _Order:
    words: bytes
    nth: int
    hook: Callable[[], object]
    seen: int = 0

    def see(self, data: bytes) -> None:
        if self.words in data:
            self.seen += 1
            if self.seen == self.nth:
                self.hook()


class PostgresProxy:
    """Listens on 127.0.0.1 within its `with` block, and passes everything on to a database server.

    While it is frozen, it accepts connections and bytes but passes nothing on, like a network that loses every packet.
    Leaving the block cuts every connection. `connections` counts them all.
    """

    def __init__(self, database: Database) -> None:
        address = urlsplit(database.url)
        self._behind = ("127.0.0.1", address.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = database.url.replace(f":{address.port}/", f":{self._listener.getsockname()[1]}/")
        self._flowing = threading.Event()
        self._flowing.set()
        self._interval_s = 0.0
        self.connections = 0
        self._orders: list[_Order] = []
        self._live: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in list(self._live):
            _cut(connection)
        self.thaw()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    @property
    def frozen(self) -> bool:
        """Whether nothing is passed on."""
        return not self._flowing.is_set()

    def freeze(self) -> None:
        """Stop passing bytes on, in both directions, on every connection."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass on what came meanwhile, and go on."""
        self._flowing.set()

    def lead_to(self, database: Database) -> None:
        """Lead new connections to another server, as a changed DNS name does."""
        self._behind = ("127.0.0.1", urlsplit(database.url).port or 0)

    def cut(self) -> None:
        """Cut every open connection."""
        for connection in list(self._live):
            _cut(connection)

    def drip(self, interval_s: float) -> None:
        """Pass the server's bytes on one by one, this many seconds apart (0: as they come)."""
        self._interval_s = interval_s

    def before(self, words: bytes, hook: Callable[[], object], *, nth: int = 1) -> None:
        """Run `hook` before the nth piece of the clients' data that contains these words is passed on."""
        self._orders.append(_Order(words, nth, hook))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self._live.append(client)
                self.connections += 1
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._behind) as server:
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answering = threading.Thread(target=self._answer, args=(server, client), daemon=True)
            answering.start()
            self._ask(client, server)
            answering.join()

    def _start(self, target: Callable[..., None], *sockets: socket.socket) -> None:
        thread = threading.Thread(target=target, args=sockets, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                for order in self._orders:
                    order.see(data)
                self._flowing.wait()
                server.sendall(data)
        self._flowing.wait()
        _cut(server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK):
                self._flowing.wait()
                if not self._interval_s:
                    client.sendall(data)
                    continue
                for byte in data:
                    time.sleep(self._interval_s)
                    client.sendall(bytes((byte,)))
        self._flowing.wait()
        _cut(client)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
