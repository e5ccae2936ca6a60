"""The base of the HTTP stand-ins: a small server that answers well, badly, slowly or not at all."""

import os
import select
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    import ssl

_STOP_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request. Header names are in lower case; `received_at` is a monotonic time in seconds."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    received_at: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete, well-formed HTTP answer after `delay_s` seconds. The connection stays open."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Raw:
    """Raw bytes after `delay_s` seconds; then the connection closes."""

    data: bytes
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Drip:
    """`head` at once, then `tail` byte by byte, one every `interval_s` seconds; then the connection closes."""

    head: bytes
    tail: bytes
    interval_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Hang:
    """Silence for `seconds` (None: until the client or the server goes away); then the connection closes."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """The bytes of `head`, if any, and a TCP reset `delay_s` seconds later."""

    delay_s: float = 0.0
    head: bytes = b""


Reply = Answer | Raw | Drip | Hang | Reset


def drip_headers(interval_s: float = 0.1) -> Drip:
    """Return an answer whose header lines drip in, almost without end."""
    return Drip(b"", b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 0123456789\r\n" * 1_000, interval_s)


def drip_body(body: bytes, interval_s: float = 0.1) -> Drip:
    """Return an answer with headers at once and a body that drips in byte by byte."""
    return Drip(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body, interval_s)


class HttpStandIn(ABC):
    """A server on 127.0.0.1 and a free port, from `__enter__` or `start` to `__exit__` or `stop`.

    Subclasses answer in `handle`, which runs on one thread per connection. Connections stay open. If `handle` raises,
    the client gets a 500 and `stop` raises the error again. So nobody mistakes a broken stand-in, or a failed assertion
    in a test's hook, for a broken client.
    """

    def __init__(self) -> None:
        self.tls: ssl.SSLContext | None = None  # set before `start`: it speaks HTTPS
        self.peak_in_flight = 0
        self.connections = 0
        self._in_flight = 0
        self._counting = threading.Lock()
        self._errors: list[Exception] = []
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @abstractmethod
    def handle(self, request: Request) -> Reply:
        """Return the reply to one request."""

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash. Raises RuntimeError while the server is not running."""
        if self._server is None:
            raise RuntimeError(f"{type(self).__name__} is not running")
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def running(self) -> bool:
        """Whether the server is between `start` and `stop`."""
        return self._server is not None

    def start(self) -> Self:
        """Listen and answer until `stop`; return the stand-in itself."""
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_STOP_POLL_S,), name=type(self).__name__, daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Cut every connection and end every thread; raise the errors of `handle`, if any."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.cut_connections()
        self._server.server_close()
        self._server = self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the errors of `handle`, if any."""
        errors, self._errors = self._errors, []
        if errors:
            raise ExceptionGroup(f"{type(self).__name__} failed while answering", errors)

    def drain(self, timeout_s: float = 10.0) -> None:
        """Wait until all requests sent so far are handled, even of clients that are gone, and their connections closed.

        Raises TimeoutError if a connection takes longer than `timeout_s`.
        """
        if self._server is None:
            return
        # Connections are accepted in the order in which they were made. So once this one is answered, `_live` contains
        # all earlier ones.
        with socket.create_connection(("127.0.0.1", self._server.server_address[1])) as latest:
            latest.sendall(b"DRAIN / HTTP/1.0\r\n\r\n")
            while latest.recv(1024):
                pass
        self._server.join_connections(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reply_to(self, request: Request) -> Reply:
        """Return the reply of `handle`, or a 500 if it raises. Runs on the connection's thread."""
        try:
            return self.handle(request)
        except Exception as error:  # noqa: BLE001 - `stop` raises it again
            self._errors.append(error)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR)

    def count(self, *, connections: int = 0, in_flight: int = 0) -> None:
        """Add to the counters. Runs on the connections' threads."""
        with self._counting:
            self.connections += connections
            self._in_flight += in_flight
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)


class _Server(ThreadingMixIn, TCPServer):
    """One thread per connection; connections can be cut. Unlike HTTPServer, it does not look up its name in DNS."""

    allow_reuse_address = True
    request_queue_size = 1_024  # hundreds of clients connect at once, and a full queue delays each by a second

    def __init__(self, stand_in: HttpStandIn) -> None:
        self.stand_in = stand_in
        self._live: dict[threading.Thread, socket.socket] = {}
        super().__init__(("127.0.0.1", 0), _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._live[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        thread = threading.current_thread()
        try:
            if self.stand_in.tls is not None:
                request = self.stand_in.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                self._live[thread] = request
                request.do_handshake()
            super().process_request_thread(request, client_address)
        except OSError:  # the client does not like the certificate; everything else is handled below
            request.close()
        finally:
            self._live.pop(thread, None)

    def join_connections(self, timeout_s: float) -> None:
        for thread in list(self._live):
            thread.join(timeout_s)
            if thread.is_alive():
                raise TimeoutError("a connection has not ended")

    def cut_connections(self) -> None:
        for thread, connection in list(self._live.items()):
            with suppress(OSError):  # the client may have closed it already
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


class _Connection(BaseHTTPRequestHandler):
    """One client's connection: reads requests, asks the stand-in, and sends its replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _phrases: ClassVar[dict[int, str]] = {status.value: status.phrase for status in HTTPStatus}

    def handle(self) -> None:
        self._stand_in = cast("_Server", self.server).stand_in
        self._stand_in.count(connections=1)
        with suppress(OSError):  # the client hung up, or `stop` cut the connection
            super().handle()

    def log_message(self, *_: object) -> None:
        """Write nothing: a stand-in keeps its own record of calls."""

    def _serve(self) -> None:
        received_at = time.monotonic()
        target = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=target.path,
            query=dict(parse_qsl(target.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            received_at=received_at,
        )
        self._stand_in.count(in_flight=1)
        try:
            self._send(self._stand_in.reply_to(request))
        finally:
            self._stand_in.count(in_flight=-1)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve  # noqa: N815 - the base class's names

    def _send(self, reply: Reply) -> None:
        match reply:
            case Answer():
                self._wait(reply.delay_s)
                self.connection.sendall(self._rendered(reply))
            case Raw():
                self._wait(reply.delay_s)
                self.connection.sendall(reply.data)
                self.close_connection = True
            case Drip():
                self.connection.sendall(reply.head)
                for byte in reply.tail:
                    self._wait(reply.interval_s)
                    self.connection.sendall(bytes((byte,)))
                self.close_connection = True
            case Hang():
                self._wait(reply.seconds)
                self.close_connection = True
            case Reset():
                self.connection.sendall(reply.head)
                self._wait(reply.delay_s)
                self._reset()

    def _rendered(self, answer: Answer) -> bytes:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status} {self._phrases.get(answer.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body

    def _wait(self, seconds: float | None) -> None:
        """Wait that long (None: forever). Raises ConnectionAbortedError once either end cuts the connection."""
        if seconds == 0:
            return
        # A client that waits for its answer sends nothing, so only a closed connection ends this wait early.
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if poll.poll(None if seconds is None else seconds * 1000):
            raise ConnectionAbortedError

    def _reset(self) -> None:
        """Close the connection at once, with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Without detach, the file objects would keep the socket open, and the base class would close it properly.
        os.close(self.connection.detach())
        self.close_connection = True
