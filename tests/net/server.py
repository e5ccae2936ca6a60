"""A server that plays scripts on raw sockets: well-framed or broken bytes, dripping, endless, or cut off."""

import contextlib
import enum
import re
import select
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Self

from sandbox.certificates import Certificate

_DRIP_S = 0.02
_CLIENT_ENDS_S = 5.0
_LENGTH = re.compile(rb"(?i)\ncontent-length: *(\d+)")


class End(enum.Enum):
    """How the server ends a connection: with a FIN or a TCP reset."""

    CLOSE = enum.auto()
    RESET = enum.auto()


@dataclass(frozen=True, slots=True)
class Drip:
    """These bytes over and over, one every 20 ms, until the client hangs up."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Flood:
    """These bytes over and over, until the client hangs up."""

    data: bytes


# What the server does in turn: send bytes, once or endlessly, end the connection, or call a function, such as a wait.
Step = bytes | Drip | Flood | End | Callable[[], object]
Script = Iterable[Step]


def answer(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    """Return a well-formed answer."""
    return head(f"Content-Length: {len(body)}", *headers, status=status) + body


def head(*headers: str, status: str = "200 OK") -> bytes:
    """Return the status line and the headers of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """Return what a server with this certificate speaks TLS with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:  # the ssl module reads from files only
        Path(file.name).write_bytes(certificate.certificate + certificate.key)
        context.load_cert_chain(file.name)
    return context


class Server:
    """Listens on 127.0.0.1 within its `with` block. Each request gets the next script; the last one repeats.

    A `greeting` is all that a client gets instead, without TLS, as soon as it sends a byte. In the end every client has
    to have closed its connections.
    """

    def __init__(self, *scripts: Script, greeting: Script = (), tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._scripts = scripts
        self._greeting = greeting
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: dict[threading.Thread, socket.socket] = {}
        self._accepting = threading.Thread(target=self._accept)
        self._closing = False
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._closing = True
        with socket.socket() as last:
            last.connect(("127.0.0.1", self.port))
            self._accepting.join()
        self._listener.close()
        left_open = 0
        for thread, connection in self._threads.items():
            thread.join(0.0 if failed else _CLIENT_ENDS_S)
            if thread.is_alive():
                left_open += 1
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                thread.join()
        assert failed or not left_open, f"{left_open} connections were left open"

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closing:
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads[thread] = connection
            self.connections += 1
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))  # the client hung up
            stack.callback(lambda: connection.close())  # noqa: PLW0108 - TLS will take its place
            if self._greeting:
                connection.recv(65536)
                _play(self._greeting, connection)
                return
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._threads[threading.current_thread()] = connection
            while request := _request(connection):
                self.requests.append(request)
                script = self._scripts[min(len(self.requests), len(self._scripts)) - 1]
                if not _play(script, connection):
                    return


def _play(script: Script, connection: socket.socket) -> bool:
    """Play a script; return whether the connection stays open."""
    for step in script:
        match step:
            case bytes():
                connection.sendall(step)
            case Drip():
                for byte in cycle(step.data):
                    connection.sendall(bytes((byte,)))
                    if select.select([connection], [], [], _DRIP_S)[0]:
                        return False
            case Flood():
                while True:
                    connection.sendall(step.data)
            case End.CLOSE:
                return False
            case End.RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            case _:
                step()
    return True


def _request(connection: socket.socket) -> bytes:
    """Return the next request with its body; nothing if the client hangs up."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += (part := connection.recv(65536))
        if not part:
            return b""
    header, _, body = request.partition(b"\r\n\r\n")
    length = _LENGTH.search(header)
    while length is not None and len(body) < int(length[1]):
        body += (part := connection.recv(65536))
        if not part:
            return b""
    return header + b"\r\n\r\n" + body
