"""Every failure is a CallError with its cause, which tells whether the request may have been sent."""

import contextlib
import errno
import socket
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.net.bounded import BoundedPools
from handler.net.http import HttpClient
from tests.net.conftest import BODY_LIMIT, NO_ZONES, Call, Serve, failure, get, post
from tests.net.server import End, Flood, Script, answer, head

CHUNKED = head("Transfer-Encoding: chunked")

UNANSWERED: dict[str, Script] = {
    "an end": (End.CLOSE,),
    "a reset": (End.RESET,),
    "an end in the status line": (b"HTTP/1.1 200 O", End.CLOSE),
    "an end after the status line": (b"HTTP/1.1 200 OK\r\n", End.CLOSE),
    "an end between headers": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", End.CLOSE),
    "a reset in the headers": (b"HTTP/1.1 200 OK\r\nContent-Le", End.RESET),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2p1\r\n", End.CLOSE),
    "HTTP/0.9": (b'{"state": "terminated"}', End.CLOSE),
    "a status line without end": (b"HTTP/1.1 200 ", Flood(b"very " * 1000)),
    "a header without end": (b"HTTP/1.1 200 OK\r\nX: ", Flood(b"very " * 1000)),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", Flood(b"X: y\r\n" * 1000)),
    "interim answers only": (head(status="100 Continue"), head(status="103 Early Hints"), End.CLOSE),
}

CUT_SHORT: dict[str, Script] = {
    "an end": (head("Content-Length: 10") + b"short", End.CLOSE),
    "an end in a chunk": (CHUNKED + b"a\r\nshort", End.CLOSE),
    "an end between chunks": (CHUNKED + b"5\r\nshort\r\n", End.CLOSE),
    "no chunk": (CHUNKED + b"short\r\n", End.CLOSE),
    "a chunk size without end": (CHUNKED, Flood(b"0" * 1000)),
    "a chunk of negative size": (CHUNKED + b"-1\r\n", Flood(b"x" * 1000)),
}

TOO_LONG: dict[str, Script] = {
    "one byte too long": (answer(b"x" * (BODY_LIMIT + 1)),),
    "a length beyond any memory": (head(f"Content-Length: {10**18}"), Flood(b"x" * 1000)),
    "without end": (head(), Flood(b"x" * 1000)),
    "chunks without end": (CHUNKED, Flood(b"400\r\n" + b"x" * 1024 + b"\r\n")),
    "a chunk without end": (CHUNKED + b"f" * 15 + b"\r\n", Flood(b"x" * 1000)),
}

AMBIGUOUS = [
    ("Content-Length: 1", "Content-Length: 2"),
    ("Content-Length: 1, 2",),
    ("Content-Length: 2", "Transfer-Encoding: chunked"),
    *[(f"Content-Length: {length}",) for length in ("", "-1", "+2", "2.0", "0x2", "2 2", "\u00b2", "many")],
    ("Transfer-Encoding: gzip",),
    ("Transfer-Encoding: gzip, chunked",),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Content-Length : 2",),
    ("no colon",),
]


def soon() -> Deadline:
    """A deadline that is never reached here: everything fails at once."""
    return Deadline(20)


# --- before there is a connection ---


def test_a_port_on_which_nobody_listens_has_refused(scheme: str, call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for host in ("127.0.0.1", "[::1]"):
        error = failure(call, f"{scheme}://{host}:{port}", soon())
        assert (error.cause, error.sent, error.stale) == (Cause.CONNECTION_REFUSED, False, False)


@pytest.mark.parametrize(
    ("patched", "name", "trouble", "cause"),
    [
        (socket, "getaddrinfo", socket.gaierror(socket.EAI_NONAME, "unknown"), Cause.NAME_LOOKUP_FAILED),
        (socket, "getaddrinfo", socket.gaierror(socket.EAI_AGAIN, "try again"), Cause.NAME_LOOKUP_FAILED),
        (socket.socket, "connect", OSError(errno.EHOSTUNREACH, "no route"), Cause.CONNECTION_REFUSED),
        (socket.socket, "connect", OSError(errno.ETIMEDOUT, "the kernel gave up"), Cause.TIMEOUT),
    ],
)
def test_a_connection_that_does_not_come_about_has_sent_nothing(
    scheme: str,
    call: Call,
    patched: Any,
    name: str,
    trouble: OSError,
    cause: Cause,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(patched, name, fail)
    error = failure(call, f"{scheme}://127.0.0.1:9", soon())
    assert (error.cause, error.sent, error.stale) == (cause, False, False)


def test_the_next_address_of_a_name_is_tried_when_one_refuses(
    serve: Serve, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve((answer(NO_ZONES),))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()[1]
    look_up = socket.getaddrinfo

    def both(host: str, port: int, *more: Any, **options: Any) -> Any:
        return look_up(host, nobody, *more, **options) + look_up(host, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert call(server.url, soon()) == 200


@pytest.mark.parametrize("url", ["http://", "ftp://cp.example/", "http://[::1", f"http://{'a' * 64}.example/"])
def test_a_malformed_address_is_a_failed_call(url: str) -> None:
    def by_the_pools(url: str, deadline: Deadline) -> int:
        with BoundedPools(connections=1) as pools:
            return pools.call("GET", url, headers={}, deadline=deadline, body_limit=0).status

    for call in (get, post, by_the_pools):
        error = failure(call, url, soon())
        assert (error.cause, error.sent) == (Cause.BROKEN_CONNECTION, False)


# --- before there is an answer ---


@pytest.mark.parametrize("script", UNANSWERED)
def test_a_request_that_is_not_answered_may_have_had_its_effect(serve: Serve, call: Call, script: str) -> None:
    server = serve(UNANSWERED[script])
    error = failure(call, server.url, soon())
    assert (error.cause, error.sent, error.stale) == (Cause.BROKEN_CONNECTION, True, False)
    assert len(server.requests) == 1


@pytest.mark.parametrize("headers", AMBIGUOUS, ids=repr)
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_an_answer_of_unclear_length_is_a_broken_connection(serve: Serve, call: Call, headers: tuple[str, ...]) -> None:
    server = serve((head(*headers) + b"{}", End.CLOSE))
    error = failure(call, server.url, soon())
    assert (error.cause, error.sent) == (Cause.BROKEN_CONNECTION, True)


@pytest.mark.parametrize("headers", [["Content-Length: 2"] * 2, ["transfer-encoding: Chunked"]], ids=repr)
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_a_repeated_or_capitalised_header_is_accepted(serve: Serve, headers: list[str]) -> None:
    body = b"{}" if len(headers) == 2 else b"2\r\n{}\r\n0\r\n\r\n"
    server = serve((head(*headers) + body,))
    with contextlib.closing(HttpClient(connections=1)) as client:
        assert client.get(server.url, params={}, headers={}, deadline=soon(), body_limit=2).body == b"{}"


def test_interim_answers_are_passed_over(serve: Serve, call: Call) -> None:
    hints = head("Link: </style.css>", "Content-Length: 5", status="103 Early Hints")
    interim = [head(status="100 Continue"), head(status="102 Processing"), hints, hints]
    assert call(serve((*interim, answer(NO_ZONES))).url, soon()) == 200


# --- in the body ---


@pytest.mark.parametrize("call", ["get", "aws"], indirect=True)
@pytest.mark.parametrize("script", CUT_SHORT)
def test_a_body_that_is_cut_short_is_no_answer(serve: Serve, call: Call, script: str) -> None:
    error = failure(call, serve(CUT_SHORT[script]).url, soon())
    assert (error.cause, error.sent, error.stale) == (Cause.BROKEN_CONNECTION, True, False)


@pytest.mark.parametrize("call", ["get", "aws"], indirect=True)
def test_a_body_that_is_reset_is_no_answer(serve: Serve, call: Call) -> None:
    error = failure(call, serve((head("Content-Length: 10") + b"short", End.RESET)).url, soon())
    assert (error.cause, error.sent, error.stale) == (Cause.BROKEN_CONNECTION, True, False)


@pytest.mark.parametrize("call", ["get", "aws"], indirect=True)
@pytest.mark.parametrize("script", TOO_LONG)
def test_a_body_beyond_the_limit_is_not_read_on(serve: Serve, call: Call, script: str) -> None:
    error = failure(call, serve(TOO_LONG[script]).url, soon())
    assert (error.cause, error.sent) == (Cause.OVERSIZE, True)


def test_a_body_as_long_as_the_limit_is_read(serve: Serve) -> None:
    server = serve((answer(b"x" * BODY_LIMIT),))
    with contextlib.closing(HttpClient(connections=1)) as client:
        whole = client.get(server.url, params={}, headers={}, deadline=soon(), body_limit=BODY_LIMIT)
    assert whole.body == b"x" * BODY_LIMIT


@pytest.mark.parametrize("script", CUT_SHORT | TOO_LONG)
def test_no_body_keeps_a_post_from_having_its_answer(serve: Serve, script: str) -> None:
    assert post(serve((CUT_SHORT | TOO_LONG)[script]).url, soon()) == 200
