"""An answer that two readers may read differently is none."""

import contextlib

import pytest

from handler.domain.model import Cause
from handler.net.http import HttpClient
from tests.net.conftest import Call, Serve, failure
from tests.net.server import End, Script, answer
from tests.net.test_failures import soon

BODY = b"{}"
OK = b"HTTP/1.1 200 OK\r\n"
END = b"\r\n" + BODY
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ONE_CHUNK = b"2\r\n{}\r\n0\r\n\r\n"

# Python's parsers make two lines of one here, or the other way round, or take what follows for no header.
LINES = {
    "CR CR LF before a length": OK + b"X: 1\r\r\nContent-Length: 2\r\n" + END,
    "CR CR LF before two lengths": OK + b"X: 1\r\r\nContent-Length: 2\r\nContent-Length: 1\r\n" + END,
    "CR CR LF before chunks": OK + b"X: 1\r\r\n" + CHUNKED + b"\r\n" + ONE_CHUNK,
    "CR CR LF before a length and chunks": OK + b"X: 1\r\r\nContent-Length: 2\r\n" + CHUNKED + END,
    "CR CR LF at the end": OK + b"Content-Length: 2\r\r\n" + END,
    "CR CR LF in an interim answer": b"HTTP/1.1 103 Hints\r\nX: 1\r\r\nY: 2\r\n\r\n" + answer(BODY),
    "a lone CR before a length": OK + b"X: 1\rContent-Length: 2\r\n" + END,
    "a lone CR before an age": OK + b"Age: 0\rAge: 500\r\nContent-Length: 2\r\n" + END,
    "a lone LF before a length": OK + b"X: 1\nContent-Length: 2\r\n" + END,
    "LF only": OK.replace(b"\r", b"") + b"Content-Length: 2\n\n" + BODY,
    "a folded length": OK + b"Content-Length:\r\n 2\r\n" + END,
    "a length in a second line": OK + b"X: 1\r\n Content-Length: 1\r\nContent-Length: 2\r\n" + END,
    "a mailbox's line first": OK + b"From here\r\nContent-Length: 2\r\n" + END,
    "a mailbox's line last": OK + b"Content-Length: 2\r\nFrom here\r\n" + END,
    "a NUL": OK + b"X: \0\r\nContent-Length: 2\r\n" + END,
    "a NUL in a name": OK + b"Content-Length\0: 1\r\nContent-Length: 2\r\n" + END,
    "a name with a blank": OK + b"Content Length: 2\r\n" + END,
    "a name of other letters": OK + b"Content-Len\xe7th: 2\r\n" + END,
    "no name": OK + b": 2\r\nContent-Length: 2\r\n" + END,
    "parts of several kinds": OK + b"Content-Type: multipart/mixed\r\nContent-Length: 2\r\n" + END,
    "a status with an underscore": b"HTTP/1.1 2_00 OK\r\nContent-Length: 2\r\n" + END,
    "a status with a sign": b"HTTP/1.1 +200 OK\r\nContent-Length: 2\r\n" + END,
    "a status after two blanks": b"HTTP/1.1  200 OK\r\nContent-Length: 2\r\n" + END,
    "a status in other digits": b"HTTP/1.1 0200 OK\r\nContent-Length: 2\r\n" + END,
    "a blank line first": b"\r\n" + answer(BODY),
    "more than any head needs": OK + b"X: 1\r\n" * (11_000) + b"Content-Length: 2\r\n" + END,
}
LENGTHS = {
    "5,000 digits": OK + b"Content-Length: " + b"2" * 5_000 + b"\r\n" + END,
    "5,000 zeros before it": OK + b"Content-Length: " + b"0" * 5_000 + b"2\r\n" + END,
    "20 digits": OK + b"Content-Length: " + b"2" * 20 + b"\r\n" + END,
    "an underscore": OK + b"Content-Length: 0_2\r\n" + END,
    "a blank after it": OK + b"Content-Length: 2 \r\n" + END,
    "chunks in HTTP/1.0": OK.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + ONE_CHUNK,
    "chunks without content": b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"\r\n" + ONE_CHUNK,
}
CHUNKS = {
    "a size with a sign": b"+2\r\n{}\r\n0\r\n\r\n",
    "a size with 0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "a size with an underscore": b"0_2\r\n{}\r\n0\r\n\r\n",
    "a size after a blank": b" 2\r\n{}\r\n0\r\n\r\n",
    "a size of 20 digits": b"0" * 19 + b"2\r\n{}\r\n0\r\n\r\n",
    "a size before LF": b"2\n{}\r\n0\r\n\r\n",
    "a size before CR CR LF": b"2\r\r\n{}\r\n0\r\n\r\n",
    "a size and more": b"2 3\r\n{}\r\n0\r\n\r\n",
    "no end where it says": b"1\r\n{}\n0\r\n\r\n",
    "an end later than it says": b"2\r\n{} 0\r\n\r\n",
}
PLAIN: dict[str, Script] = {
    "no blank after the colon": (OK + b"Content-Length:2\r\n" + END,),
    "odd names and values": (OK + b"!#$%&'*+.^_`|~: \t\xe9\xff\r\nX:\r\nContent-Length: 2\r\n" + END,),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n" + END,),
    "a later version": (b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n" + END,),
    "long headers": (OK + b"X: " + b"x" * 60_000 + b"\r\nContent-Length: 2\r\n" + END,),
    "chunks with extensions and trailers": (
        OK + CHUNKED + b'\r\n1;a="b"\r\n{\r\n001 ; c\r\n}\r\n0\r\nX-After: 1\r\n\r\n',
    ),
}


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
@pytest.mark.parametrize("name", LINES | LENGTHS)
def test_an_answer_that_is_not_plain_is_none(serve: Serve, call: Call, name: str) -> None:
    server = serve(((LINES | LENGTHS)[name], End.CLOSE))
    error = failure(call, server.url, soon())
    assert (error.cause, error.sent) == (Cause.BROKEN_CONNECTION, True)


@pytest.mark.parametrize("call", ["get", "aws"], indirect=True)
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_that_are_not_plain_are_none(serve: Serve, call: Call, name: str) -> None:
    server = serve((OK + CHUNKED + b"\r\n" + CHUNKS[name], End.CLOSE))
    error = failure(call, server.url, soon())
    assert (error.cause, error.sent) == (Cause.BROKEN_CONNECTION, True)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
@pytest.mark.parametrize("name", PLAIN)
def test_an_unusual_answer_is_read(serve: Serve, name: str) -> None:
    server = serve(PLAIN[name])
    with contextlib.closing(HttpClient(connections=1)) as client:
        for _ in range(2):  # on the same connection
            got = client.get(server.url, params={}, headers={}, deadline=soon(), body_limit=2)
            assert (got.status, got.body) == (200, BODY)
    assert server.connections == 1
