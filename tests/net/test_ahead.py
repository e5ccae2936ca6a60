"""A connection may be opened ahead of its one call, so that nothing but sending is left."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Self

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause, Failure
from handler.net.bounded import CallError
from handler.net.http import HttpClient
from handler.net.secrets import Secrets, Tokens
from handler.restarts import Answer, Connection, Reply
from handler.restarts.platform import HttpPlatform
from handler.settings import Remote
from sandbox.certificates import Authority
from tests.net.conftest import Serve
from tests.net.server import Drip, End, Server, answer, server_context

SHORT_S = 0.2
LONG_S = 10.0
ACCEPTED = answer(b"", "Connection: close", status="202 Accepted")


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with contextlib.closing(HttpClient(connections=1)) as client:
        yield client


def post(client: HttpClient, url: str, deadline: Deadline | None = None) -> int:
    """Send a POST on the connection that is there."""
    return client.post(url, json={}, headers={}, deadline=deadline or Deadline(LONG_S), connected=True).status


def failure(client: HttpClient, url: str) -> CallError:
    with pytest.raises(CallError) as error:
        post(client, url)
    return error.value


def until(done: threading.Event) -> None:
    assert done.wait(LONG_S)


def settled() -> None:
    """Give the other side's last packets, a session ticket or an end, the time to come over the loopback."""
    time.sleep(0.05)


class Acceptor:
    """Accepts one connection, shakes hands, and does nothing but what a test tells it to do."""

    def __init__(self, certificate: object | None) -> None:
        self._context = None if certificate is None else server_context(certificate)  # type: ignore[arg-type]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = threading.Event()
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self.connection.close()
        self._listener.close()

    def _accept(self) -> None:
        self.connection, _ = self._listener.accept()
        if self._context is not None:
            self.connection = self._context.wrap_socket(self.connection, server_side=True)
        self.accepted.set()

    def half_close(self) -> None:
        """Send a FIN, without a word of TLS, and go on reading."""
        socket.socket.shutdown(self.connection, socket.SHUT_WR)

    def reset(self) -> None:
        """Send a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def read(self) -> bytes:
        """Return what has been sent until the client hung up."""
        sent = b""
        with contextlib.suppress(OSError):  # it has been reset
            self.connection.settimeout(LONG_S)
            while part := self.connection.recv(65536):
                sent += part
        return sent


@pytest.fixture
def acceptor(scheme: str, authority: Authority) -> Iterator[Acceptor]:
    with Acceptor(authority.issue(["127.0.0.1"]) if scheme == "https" else None) as acceptor:
        yield acceptor


def test_the_handshake_is_over_before_the_call(acceptor: Acceptor, client: HttpClient) -> None:
    client.connect(acceptor.url, Deadline(LONG_S))
    until(acceptor.accepted)
    client.close()
    assert acceptor.read() == b""


def test_the_call_uses_the_connection_that_is_there(serve: Serve, client: HttpClient) -> None:
    """Under TLS 1.3 session tickets have arrived meanwhile: something can be read, and yet nobody has hung up."""
    server = serve((ACCEPTED,))
    client.connect(server.url, Deadline(LONG_S))
    settled()
    assert post(client, f"{server.url}/workspaces/1/restart") == 202
    assert (server.connections, len(server.requests)) == (1, 1)


def test_without_a_connection_nothing_is_sent(serve: Serve, client: HttpClient) -> None:
    server = serve((ACCEPTED,))
    error = failure(client, server.url)
    assert (error.cause, error.sent, error.stale) == (Cause.BROKEN_CONNECTION, False, False)
    assert (server.connections, server.requests) == (0, [])


def test_a_connection_is_used_once(serve: Serve, client: HttpClient) -> None:
    server = serve((ACCEPTED,))
    client.connect(server.url, Deadline(LONG_S))
    post(client, server.url)
    error = failure(client, server.url)
    assert (error.cause, error.sent) == (Cause.BROKEN_CONNECTION, False)
    assert (server.connections, len(server.requests)) == (1, 1)


@pytest.mark.parametrize("end", ["a close", "a reset", "an answer that nobody asked for"])
def test_a_connection_that_has_ended_meanwhile_is_not_sent_on(acceptor: Acceptor, client: HttpClient, end: str) -> None:
    """Nothing is sent, and no other connection opened: it is proven that the other side has not been asked."""
    client.connect(acceptor.url, Deadline(LONG_S))
    until(acceptor.accepted)
    if end == "a reset":
        acceptor.reset()
    elif end == "a close":
        acceptor.half_close()
    else:
        acceptor.connection.sendall(answer(b"", status="408 Request Timeout"))
    settled()
    error = failure(client, acceptor.url)
    assert (error.cause, error.sent) == (Cause.BROKEN_CONNECTION, False)
    assert acceptor.read() == b""


@pytest.mark.parametrize("script", [(End.CLOSE,), (End.RESET,)], ids=["a close", "a reset"])
def test_an_end_after_sending_is_uncertain(serve: Serve, client: HttpClient, script: tuple[End]) -> None:
    server = serve(script)
    client.connect(server.url, Deadline(LONG_S))
    error = failure(client, server.url)
    assert (error.cause, error.sent) == (Cause.BROKEN_CONNECTION, True)
    assert (server.connections, len(server.requests)) == (1, 1)


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
def test_connecting_ends_by_its_deadline(serve: Serve, client: HttpClient) -> None:
    server = serve(greeting=(Drip(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb" + bytes(16_000)),))
    began_at = time.monotonic()
    with pytest.raises(CallError) as error:
        client.connect(server.url, Deadline(SHORT_S))
    assert (error.value.cause, error.value.sent) == (Cause.TIMEOUT, False)
    assert time.monotonic() - began_at < SHORT_S + 1


def test_no_time_means_no_connection(serve: Serve, client: HttpClient) -> None:
    server = serve((ACCEPTED,))
    with pytest.raises(CallError) as error:
        client.connect(server.url, Deadline(0))
    assert (error.value.cause, error.value.sent, server.connections) == (Cause.TIMEOUT, False, 0)


def test_a_connection_does_not_outlast_the_deadline_of_its_call(serve: Serve, client: HttpClient) -> None:
    server = serve((ACCEPTED,))
    client.connect(server.url, Deadline(LONG_S))
    with pytest.raises(CallError) as error:
        post(client, server.url, Deadline(0))
    assert (error.value.cause, error.value.sent, server.requests) == (Cause.TIMEOUT, False, [])


def test_a_server_that_is_not_who_it_should_be_is_not_connected_to(client: HttpClient) -> None:
    with (
        Server((ACCEPTED,), tls=server_context(Authority().issue(["127.0.0.1"]))) as server,
        pytest.raises(CallError) as error,
    ):
        client.connect(server.url, Deadline(LONG_S))
    assert (error.value.cause, error.value.sent) == (Cause.TLS_FAILED, False)


def test_nobody_listens(client: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CallError) as error:
        client.connect(f"http://127.0.0.1:{port}", Deadline(LONG_S))
    assert (error.value.cause, error.value.sent) == (Cause.CONNECTION_REFUSED, False)


# --- the platform ---


def connected(url: str) -> Connection:
    tokens = iter(['{"token": "old"}', '{"token": "new"}'])
    remote = Remote(url, "arn", ("token",), {})
    secrets = Tokens(remote, "PLATFORM_SECRET_ARN", Secrets(lambda *_: next(tokens)))
    connection = HttpPlatform(url, None, secrets, Deadline(LONG_S)).connect(Deadline(LONG_S))
    assert not isinstance(connection, Reply)
    return connection


def ask(connection: Connection) -> Reply:
    return connection.restart("w-1", "i-1", Deadline(LONG_S))


def test_a_restart_is_asked_for_on_the_connection_made_ahead(serve: Serve) -> None:
    server = serve((ACCEPTED,))
    with contextlib.closing(connected(server.url)) as connection:
        settled()
        assert ask(connection).answer is Answer.ACCEPTED
    assert (server.connections, len(server.requests)) == (1, 1)


def test_a_restart_whose_connection_has_ended_was_not_asked_for(acceptor: Acceptor) -> None:
    with contextlib.closing(connected(acceptor.url)) as connection:
        until(acceptor.accepted)
        acceptor.half_close()
        settled()
        assert ask(connection) == Reply(Answer.REFUSED, Failure(Cause.BROKEN_CONNECTION))
    assert acceptor.read() == b""


def test_a_refused_token_is_renewed_and_sent_on_another_connection(serve: Serve) -> None:
    server = serve((answer(b"", "Connection: close", status="401 Unauthorized"),), (ACCEPTED,))
    with contextlib.closing(connected(server.url)) as connection:
        assert ask(connection).answer is Answer.ACCEPTED
    assert server.connections == 2
    assert [one.count(b"Bearer " + token) for one, token in zip(server.requests, (b"old", b"new"), strict=True)] == [
        1,
        1,
    ]
