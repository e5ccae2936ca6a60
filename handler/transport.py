"""HTTP calls, each bounded as a whole: its time from first to last byte, and its body.

urllib3's timeouts (like every client's that is built on sockets) start anew with each packet, so a
server that drips a byte a second holds a call for ever. Here the connection itself cuts every wait
from the deadline of the call that is under way on its thread. It also notes whether anything was
sent: a request that never left is a refusal, one that left is uncertain until it is answered.
"""

import http.client
import io
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from handler.deadline import Deadline

_FAILURES = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
_BROKEN = "broken_connection"
_LENGTH = re.compile(r"[0-9]+")
# RFC 9110, 15.3
SUCCESS = range(200, 300)
_INTERIM = range(100, 200)


class TransportError(Exception):
    """No answer, or none that may be used.

    `cause` is a word of ours; `sent` tells whether the request may have reached the remote, `stale`
    that it went out on a kept-alive connection which the remote may have given up before it came.
    """

    def __init__(self, cause: str, *, sent: bool, stale: bool = False) -> None:
        """Take the cause, whether the request may have left, and whether on a stale connection."""
        super().__init__(cause)
        self.cause = cause
        self.sent = sent
        self.stale = stale


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. Its headers and body are never logged."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """A pool of kept-alive connections. Follows no redirect, retries nothing, uses no proxy."""

    def __init__(self, *, connections: int) -> None:
        """Keep up to `connections` idle connections to each host."""
        self._pools = urllib3.PoolManager(maxsize=connections, retries=False)
        self._pools.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        deadline: Deadline,
        body_limit: int,
        body: bytes | None = None,
    ) -> Answer:
        """Send a request and read its whole answer, of at most `body_limit` bytes, by the deadline.

        A GET that met a stale connection is sent once more (RFC 9110, 9.2.2). Raises TransportError.
        """
        try:
            response = self.open(method, url, headers=headers, deadline=deadline, body=body)
        except TransportError as error:
            if method != "GET" or not error.stale:
                raise
            response = self.open(method, url, headers=headers, deadline=deadline, body=body)
        try:
            content = _read(response, body_limit)
        except _FAILURES as error:
            raise TransportError(_cause(error), sent=True) from error
        return Answer(response.status, response.headers, content)

    def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        deadline: Deadline,
        body: bytes | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return its answer unread, whose body is bounded by the deadline too.

        Raises TransportError.
        """
        _call.deadline, _call.sent, _call.reused = deadline, False, True
        try:
            return self._pools.urlopen(
                method,
                url,
                body=body,
                headers=dict(headers),
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(total=max(deadline.remaining(), 0.001)),
            )
        except _FAILURES as error:
            cause = _cause(error)
            raise TransportError(cause, sent=_call.sent, stale=_call.reused and cause == _BROKEN) from error

    def close(self) -> None:
        """Close the idle connections, now: urllib3 alone would leave it to the garbage collector."""
        pools = self._pools.pools
        for pool in [pools.get(key) for key in pools.keys()]:  # noqa: SIM118 - it cannot be iterated over
            if pool is not None:
                pool.close()
        self._pools.clear()


class _Call(threading.local):
    """The call that is under way on this thread."""

    deadline = Deadline(0)
    sent = False
    reused = True  # until it has to connect


_call = _Call()


class _Bounded(HTTPConnection):
    """A connection that sends nothing, and waits for nothing, past its call's deadline."""

    def connect(self) -> None:
        _call.reused = False
        super().connect()

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        if _call.deadline.over():  # a name lookup obeys no timeout
            raise TimeoutError
        _call.sent = True
        super().send(data)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # urllib3 overrides it likewise
        self.response_class = partial(_BoundedResponse, deadline=_call.deadline)  # type: ignore[assignment]
        return super().getresponse()


class _BoundedHttps(_Bounded, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Bounded


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedHttps


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: Deadline, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(BoundedReader(self.fp.detach(), sock, deadline))

    def begin(self) -> None:
        """Read status and headers; where http.client makes the best of broken ones, refuse (RFC 9112, 6.3).

        Pass over interim answers, of which http.client knows 100 only (RFC 9110, 15.2): they settle nothing.
        """
        super().begin()
        while self.status in _INTERIM:
            self.headers = self.msg = None  # type: ignore[assignment]  # as they are before it begins
            super().begin()
        lengths = set(self.headers.get_all("Content-Length", []))
        codings = self.headers.get_all("Transfer-Encoding", [])
        if (
            self.headers.defects
            or len(lengths) > 1
            or not all(_LENGTH.fullmatch(one) for one in lengths)
            or (codings and (lengths or len(codings) > 1 or not self.chunked))
        ):
            raise http.client.HTTPException("broken headers")


class BoundedReader(io.RawIOBase):
    """Reads from a socket until `deadline`, which may be set anew for the next answer."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: Deadline) -> None:
        """Read by `raw`, which reads from `sock`."""
        self._raw, self._sock, self.deadline = raw, sock, deadline

    def readable(self) -> bool:
        """See IOBase."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """See RawIOBase. Raises TimeoutError."""
        if self.deadline.over():
            raise TimeoutError
        self._sock.settimeout(self.deadline.remaining())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """See IOBase."""
        self._raw.close()
        super().close()


def _read(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    content = b""
    while len(content) <= limit:
        part = response.read(limit + 1 - len(content), decode_content=False)
        if not part:
            return content
        content += part
    response.close()
    raise ValueError("oversize")


def _cause(error: Exception) -> str:
    match error:
        case urllib3.exceptions.NameResolutionError():
            return "name_lookup_failed"
        case urllib3.exceptions.NewConnectionError():  # to urllib3 a kind of timeout
            return "connection_refused"
        case urllib3.exceptions.TimeoutError() | TimeoutError():
            return "timeout"
        case urllib3.exceptions.SSLError():
            return "tls_failed"
        case ValueError(args=("oversize",)):
            return "oversize"
        case _:
            return _BROKEN
