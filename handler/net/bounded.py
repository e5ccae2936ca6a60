"""HTTP connections that obey a deadline: the core under requests (`net.http`) and boto3 (`net.aws`).

The timeouts of urllib3 and requests start again with each packet, so a server that drips one byte a second blocks a
call for ever. Here the connection itself limits every wait to what is left of its call's deadline. It also notes
whether anything was sent: a request that never left is refused; one that left is uncertain until it is answered.
"""

import contextlib
import http.client
import io
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.net.connect import connected
from handler.net.tls import https_context

# Everything that urllib3 and the layers below it raise. requests' exceptions are OSErrors.
FAILURES = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
# RFC 9110, 15.3
SUCCESS = range(200, 300)
_INTERIM = range(100, 200)
# These have no body, whatever their headers say (RFC 9112, 6.3).
_WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
# Status line and headers together. AWS sends 1 KiB; what proxies pass on by default is 4 to 16 KiB.
HEAD_LIMIT = 64 * 1024
# Only what every parser reads alike: each line ends in CRLF and holds no other control character, and no header goes on
# in a second line. http.client and e-mail's parser read much else, each line break in its own way.
_HEAD = re.compile(
    rb"HTTP/1\.[0-9] (?P<status>[1-9][0-9]{2})(?: [\t -~\x80-\xff]*+)?\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~\x80-\xff]*+\r\n)*+\r\n"
)
# Of more digits than a 64-bit number, or of thousands, which int() refuses, http.client makes "until the end".
_LENGTH = re.compile(r"[0-9]{1,19}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[\t ]*+(?:;[\t -~\x80-\xff]*+)?\r\n")
_HTTP_1_0 = 10  # as http.client notes it
# The socket module takes 0 for "do not block".
_SHORTEST_S = 0.001


class CallError(Exception):
    """A call got no usable answer.

    `sent` tells whether the request may have reached the remote. `stale` tells whether it went out on a kept-alive
    connection that the remote may have closed before.
    """

    def __init__(self, cause: Cause, *, sent: bool, stale: bool = False) -> None:
        """Take the cause, whether the request may have been sent, and whether the connection may have been stale."""
        super().__init__(cause)
        self.cause = cause
        self.sent = sent
        self.stale = stale


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. Its headers and body are never logged.

    `began_at` is when its head had arrived, by the deadline's clock: what it says was true before that.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    began_at: float = 0.0


class OversizeError(ValueError):
    """A body is longer than the limit."""


class _Call(threading.local):
    """The call that is running on this thread."""

    deadline = Deadline(0)
    sent = False
    reused = True  # until it has to connect
    may_connect = True


_call = _Call()


def _seconds_left() -> float:
    """Return how many seconds this thread's call has left.

    Raises urllib3's TimeoutError: urllib3 takes any other kind for a broken connection.
    """
    left_s = _call.deadline.remaining()
    if left_s <= 0.0:
        raise urllib3.exceptions.TimeoutError
    return left_s


@contextlib.contextmanager
def call_within(
    deadline: Deadline, cause_of: Callable[[Exception], Cause], *, may_connect: bool = True
) -> Iterator[urllib3.Timeout]:
    """Make the one call in the `with` block obey the deadline; yield the timeout to pass to it.

    Unless it `may_connect`, it needs a connection that is open. Without one, nothing is sent.
    Raises CallError instead of the client's exceptions; `cause_of` returns the cause for one of them.
    """
    _call.deadline, _call.sent, _call.reused, _call.may_connect = deadline, False, True, may_connect
    try:
        yield urllib3.Timeout(total=max(deadline.remaining(), _SHORTEST_S))
    except FAILURES as error:
        cause = cause_of(error)
        stale = _call.reused and cause is Cause.BROKEN_CONNECTION
        raise CallError(cause, sent=_call.sent, stale=stale) from error


def cause_of(error: Exception) -> Cause:
    """Return the cause for an exception from urllib3."""
    match error:
        case urllib3.exceptions.NameResolutionError():
            return Cause.NAME_LOOKUP_FAILED
        case urllib3.exceptions.NewConnectionError():  # a subclass of urllib3's timeout
            return Cause.CONNECTION_REFUSED
        case urllib3.exceptions.TimeoutError() | TimeoutError():
            return Cause.TIMEOUT
        case urllib3.exceptions.SSLError() | ssl.SSLError():
            return Cause.TLS_FAILED
        case OversizeError():
            return Cause.OVERSIZE
        case _:
            return Cause.BROKEN_CONNECTION


def read_body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, without decoding it. Raises CallError."""
    try:
        content = b""
        while len(content) <= limit:
            part = response.read(limit + 1 - len(content), decode_content=False)
            if not part:
                return content
            content += part
        response.close()
        raise OversizeError
    except FAILURES as error:
        raise CallError(cause_of(error), sent=True) from error


class BoundedPools(urllib3.PoolManager):
    """Pools of kept-alive connections. A call obeys its deadline when it is made inside `call_within`."""

    def __init__(self, *, connections: int, hosts: int = 10, ca_file: str | None = None) -> None:
        """Keep up to `connections` idle connections to each of `hosts`. Trust the authorities in `ca_file`, too."""
        super().__init__(num_pools=hosts, maxsize=connections, retries=False)
        https_pool: Any = partial(_HttpsPool, ca_file=ca_file)  # urllib3 wants a class, and only calls it
        self.pool_classes_by_scheme = {"http": _HttpPool, "https": https_pool}

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
        """Send a request and read its whole answer by the deadline. Raises CallError."""
        with call_within(deadline, cause_of) as timeout:
            response = self.urlopen(
                method,
                url,
                body=body,
                headers=dict(headers),
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=timeout,
            )
        began_at = deadline.now()
        return Answer(response.status, response.headers, read_body(response, body_limit), began_at)

    def clear(self) -> None:
        """Close the idle connections now: urllib3 would leave that to the garbage collector."""
        for pool in [self.pools.get(key) for key in self.pools.keys()]:  # noqa: SIM118 - it cannot be iterated over
            if pool is not None:
                pool.close()
        super().clear()


class _Bounded(HTTPConnection):
    """A connection that sends nothing, and waits for nothing, past its call's deadline."""

    def connect(self) -> None:
        _call.reused = False
        if not _call.may_connect:
            raise ConnectionAbortedError("the connection has ended before the call")
        super().connect()

    @property
    def is_connected(self) -> bool:
        """Tell whether the other side has neither hung up nor sent what nobody asked for.

        urllib3 looks whether anything can be read. After a handshake that is so: TLS 1.3 sends session tickets.
        """
        if self.sock is None:
            return False
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def _new_conn(self) -> socket.socket:
        """Connect in the time that the call has left, and leave the rest of it for the TLS handshake.

        urllib3 would give its whole timeout to each address, and again to the handshake.
        """
        try:
            sock = connected(self._dns_host.strip("[]"), self.port, _call.deadline)
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(self, str(error)) from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, str(error)) from error
        sock.settimeout(max(_call.deadline.remaining(), _SHORTEST_S))
        return sock

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        left_s = _seconds_left()
        _call.sent = True
        self.sock.settimeout(left_s)
        try:
            super().send(data)
        except TimeoutError as error:
            raise urllib3.exceptions.TimeoutError from error

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # urllib3 overrides it likewise
        self.response_class = partial(_BoundedResponse, deadline=_call.deadline)  # type: ignore[assignment]
        return super().getresponse()


class _BoundedHttps(_Bounded, HTTPSConnection):
    pass


class _ConnectsAhead(HTTPConnectionPool):
    def connect(self) -> None:
        """Open a connection for the pool's next call, TLS included. Belongs inside `call_within`."""
        connection = self._get_conn()
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        self._put_conn(connection)


class _HttpPool(_ConnectsAhead):
    ConnectionCls = _Bounded


class _HttpsPool(_ConnectsAhead, HTTPSConnectionPool):
    ConnectionCls = _BoundedHttps

    def __init__(self, *arguments: Any, ca_file: str | None, **options: Any) -> None:
        super().__init__(*arguments, **{"ssl_context": https_context(ca_file)} | options)


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: Deadline, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(BoundedReader(self.fp.detach(), sock, deadline))

    def begin(self) -> None:
        """Read status and headers. Refuse what is not plain, or leaves the body's length open (RFC 9112, 6.3).

        Skip every interim answer, because it settles nothing. http.client skips only 100 (RFC 9110, 15.2).
        """
        head = self._head()
        while int(head["status"]) in _INTERIM:
            head = self._head()
        connection, self.fp = self.fp, io.BufferedReader(io.BytesIO(head[0]))
        try:
            super().begin()
        finally:
            self.fp = connection
        lengths = set(self.headers.get_all("Content-Length", []))
        codings = self.headers.get_all("Transfer-Encoding", [])
        if (
            self.headers.defects
            or self.headers.get_payload()
            or len(lengths) > 1
            or not all(_LENGTH.fullmatch(one) for one in lengths)
            or (codings and (lengths or len(codings) > 1 or not self.chunked))
            or (codings and (self.version == _HTTP_1_0 or self.status in _WITHOUT_BODY))
        ):
            raise http.client.HTTPException("broken headers")

    def _head(self) -> re.Match[bytes]:
        """Read one whole head: the status line and all headers. Raises HTTPException."""
        head, line = b"", b""
        while line not in (b"\r\n", b"\n") and len(head) < HEAD_LIMIT:
            line = self.fp.readline(HEAD_LIMIT - len(head))
            if not line:
                break
            head += line
        if not head:
            raise http.client.RemoteDisconnected("no answer")
        plain = _HEAD.fullmatch(head)
        if plain is None:
            raise http.client.HTTPException("broken head")
        return plain

    # typeshed leaves the next two out.

    def _get_chunk_left(self) -> int | None:
        """Refuse a chunk that does not end where it says, which http.client would overlook."""
        if self.chunk_left == 0:
            if self.fp.read(2) != b"\r\n":
                raise http.client.IncompleteRead(b"")
            self.chunk_left = None
        left: int | None = super()._get_chunk_left()  # type: ignore[misc]
        return left

    def _read_next_chunk_size(self) -> int:
        """Read only digits: http.client would also take a sign, blanks, underscores or `0x`."""
        size = _CHUNK_SIZE.fullmatch(self.fp.readline(HEAD_LIMIT))
        if size is None:
            raise ValueError
        return int(size[1], 16)


class BoundedReader(io.RawIOBase):
    """Reads from a socket until `deadline`, which may be replaced for the next answer."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: Deadline) -> None:
        """Read through `raw`, which reads from `sock`."""
        self._raw, self._sock, self.deadline = raw, sock, deadline

    def readable(self) -> bool:
        """See IOBase."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """See RawIOBase. Raises TimeoutError."""
        left_s = self.deadline.remaining()
        if left_s <= 0.0:
            raise TimeoutError
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """See IOBase."""
        self._raw.close()
        super().close()
