"""Connections are kept for the next request, dropped when in doubt, and closed at the end."""

import contextlib

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.net.http import HttpClient
from tests.net.conftest import BODY_LIMIT, NO_ZONES, Ec2, Serve, failure
from tests.net.server import End, Flood, Script, answer, head

STALE: dict[str, Script] = {
    "an end": (End.CLOSE,),
    "a reset": (End.RESET,),
    "an end in the status line": (b"HTTP/1.1 2", End.CLOSE),
}


def soon() -> Deadline:
    return Deadline(20)


class Client:
    """A client that keeps its connections for several requests."""

    def __init__(self) -> None:
        self._http = HttpClient(connections=1)
        self.close = self._http.close

    def get(self, url: str, deadline: Deadline) -> int:
        return self._http.get(url, params={}, headers={}, deadline=deadline, body_limit=BODY_LIMIT).status

    def post(self, url: str, deadline: Deadline) -> int:
        return self._http.post(url, json={}, headers={}, deadline=deadline).status


def test_a_connection_is_kept_for_the_next_request(serve: Serve) -> None:
    server = serve((answer(b"one"),), (answer(),), (head("Transfer-Encoding: chunked") + b"0\r\n\r\n",), (answer(),))
    with contextlib.closing(Client()) as client:
        assert [client.get(server.url, soon()) for _ in range(4)] == [200] * 4
    assert (server.connections, len(server.requests)) == (1, 4)


@pytest.mark.parametrize("stale", STALE)
def test_a_get_that_meets_a_stale_connection_is_sent_once_more(serve: Serve, stale: str) -> None:
    server = serve((answer(),), STALE[stale], (answer(),))
    with contextlib.closing(Client()) as client:
        assert [client.get(server.url, soon()) for _ in range(2)] == [200, 200]
    assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize("stale", STALE)
def test_a_get_is_sent_twice_at_most(serve: Serve, stale: str) -> None:
    server = serve((answer(),), STALE[stale])
    with contextlib.closing(Client()) as client:
        client.get(server.url, soon())
        error = failure(client.get, server.url, soon())
    assert (error.cause, error.sent, error.stale) == (Cause.BROKEN_CONNECTION, True, False)
    assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize("stale", STALE)
def test_a_post_that_meets_a_stale_connection_is_not_sent_again(serve: Serve, stale: str) -> None:
    server = serve((answer(),), STALE[stale])
    with contextlib.closing(Client()) as client:
        client.get(server.url, soon())
        error = failure(client.post, server.url, soon())
    assert (error.cause, error.sent, error.stale) == (Cause.BROKEN_CONNECTION, True, True)
    assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize("stale", STALE)
def test_a_call_to_aws_that_meets_a_stale_connection_is_its_callers_to_repeat(
    serve: Serve, ec2: Ec2, stale: str
) -> None:
    server = serve((answer(NO_ZONES),), STALE[stale])
    with contextlib.closing(ec2.aws):
        assert ec2.ask(server.url, soon()) == 200
        error = failure(ec2.ask, server.url, soon())
    assert (error.cause, error.sent, error.stale) == (Cause.BROKEN_CONNECTION, True, True)
    assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize(
    "script",
    [(answer(), End.CLOSE), (answer(b"", "Connection: close"),), (head() + b"to the end", End.CLOSE)],
    ids=["closed after the answer", "to be closed", "ends with the connection"],
)
def test_a_connection_that_has_ended_is_not_used_again(serve: Serve, script: Script) -> None:
    server = serve(script, (answer(),))
    with contextlib.closing(Client()) as client:
        assert [client.get(server.url, soon()) for _ in range(2)] == [200, 200]
    assert (server.connections, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_the_rest_of_one_answer_is_never_taken_for_the_next_one(serve: Serve) -> None:
    late = answer(b"late", status="410 Gone")
    server = serve(
        (head("Content-Length: 1000000"), Flood(late)),  # too long
        (lambda: deadline.shorten(0.05), head("Content-Length: 10"), b"short"),  # too late
        (head("Content-Length: 1"), late),  # not read
        (answer(b"", status="204 No Content"),),
    )
    with contextlib.closing(Client()) as client:
        assert failure(client.get, server.url, soon()).cause is Cause.OVERSIZE
        deadline = soon()
        assert failure(client.get, server.url, deadline).cause is Cause.TIMEOUT
        assert client.post(server.url, soon()) == 200
        assert client.get(server.url, soon()) == 204
    assert (server.connections, len(server.requests)) == (4, 4)


def test_a_client_that_is_closed_leaves_no_connection_open(serve: Serve, ec2: Ec2) -> None:
    """The server waits for the end of each connection."""
    server = serve((answer(NO_ZONES),))
    with contextlib.closing(Client()) as client, contextlib.closing(ec2.aws):
        client.get(server.url, soon())
        ec2.ask(server.url, soon())
    assert server.connections == 2


def test_aws_can_be_asked_again_after_its_idle_connections_were_closed(serve: Serve, ec2: Ec2) -> None:
    server = serve((answer(NO_ZONES),))
    assert [ec2.call(server.url, soon()) for _ in range(2)] == [200, 200]
    assert server.connections == 2
