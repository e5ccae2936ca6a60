"""Every call ends by its deadline, however slow the other side is."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.net.bounded import BoundedPools, BoundedReader, CallError
from handler.net.http import HttpClient
from sandbox.certificates import Authority
from tests.net.conftest import NO_ZONES, Call, Ec2, Serve, failure, get, post
from tests.net.server import Drip, Script, Server, answer, head, server_context
from tests.support.addresses import resolve, unreachable_port

SHORT_S = 0.2
LONG_S = 10.0
# A smaller overrun is the machine's fault. A call that nothing bounds takes far longer.
SLACK_S = 1.0

HEADS: dict[str, Script] = {
    "silence": (b"HTTP",),
    "status line": (Drip(b"HTTP/1.1 200 all is well and "),),
    "headers": (b"HTTP/1.1 200 OK\r\n", Drip(b"X-Padding: 0123456789\r\n")),
    "interim answers": (Drip(head(status="103 Early Hints")),),
}
BODIES: dict[str, Script] = {
    "body": (head("Content-Length: 1000"), Drip(b"x")),
    "body of any length": (head(), Drip(b"x")),
    "chunks": (head("Transfer-Encoding: chunked"), Drip(b"1\r\nx\r\n")),
    "chunk size": (head("Transfer-Encoding: chunked"), Drip(b"0")),
    "trailer": (head("Transfer-Encoding: chunked"), b"0\r\n", Drip(b"X-Padding: 0123456789\r\n")),
}
TRICKLES = HEADS | BODIES
# More than the buffers of both ends of a connection can take.
LARGE = b"x" * 16_000_000

# A ServerHello that says it is 16 kB long.
HANDSHAKE = (Drip(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb" + bytes(16_000)),)

# Makes something happen while a name is looked up; for example, time passes.
LookupTakes = Callable[[Callable[[], None]], None]


@contextlib.contextmanager
def ending_in_time() -> Iterator[None]:
    began_at = time.monotonic()
    yield
    assert time.monotonic() - began_at < SHORT_S + SLACK_S


@pytest.fixture
def lookup_takes(monkeypatch: pytest.MonkeyPatch) -> Iterator[LookupTakes]:
    """A lookup may outlast its call, as in production; the next test begins after its end."""
    look_up, looking = socket.getaddrinfo, set[threading.Thread]()

    def takes(happening: Callable[[], None]) -> None:
        def looked_up(*query: Any, **options: Any) -> Any:
            looking.add(threading.current_thread())
            happening()
            return look_up(*query, **options)

        monkeypatch.setattr(socket, "getaddrinfo", looked_up)

    yield takes
    for one in looking - {threading.current_thread()}:
        one.join(LONG_S)


@pytest.fixture
def unreachable() -> Iterator[int]:
    with unreachable_port() as port:
        yield port


@pytest.mark.parametrize(
    ("scheme", "call", "trickle"),
    [
        *product(["http"], ["get"], TRICKLES),
        *product(["https"], ["get"], ["headers", "body", "chunks"]),
        *product(["http", "https"], ["post"], ["headers"]),
        *product(["http", "https"], ["aws"], ["headers", "body"]),
    ],
    indirect=["scheme", "call"],
)
def test_an_answer_that_drips_in_ends_the_call(serve: Serve, call: Call, trickle: str) -> None:
    deadline = Deadline(LONG_S)
    server = serve((lambda: deadline.shorten(SHORT_S), *TRICKLES[trickle]))  # counted from when it is sent
    with ending_in_time():
        error = failure(call, server.url, deadline)
    assert (error.cause, error.sent, len(server.requests)) == (Cause.TIMEOUT, True, 1)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_an_answer_that_does_not_begin_ends_the_call(serve: Serve, call: Call) -> None:
    with ending_in_time():
        assert failure(call, serve(()).url, Deadline(SHORT_S)).cause is Cause.TIMEOUT


@pytest.mark.parametrize("body", BODIES)
def test_the_body_of_an_answer_to_a_post_is_not_waited_for(serve: Serve, body: str) -> None:
    assert post(serve(BODIES[body]).url, Deadline(LONG_S)) == 200


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
def test_a_handshake_that_drips_in_ends_the_call(serve: Serve, call: Call) -> None:
    server = serve(greeting=HANDSHAKE)
    with ending_in_time():
        error = failure(call, server.url, Deadline(SHORT_S))
    assert (error.cause, error.sent) == (Cause.TIMEOUT, False)


@pytest.mark.parametrize("scheme", ["https"], indirect=True)
def test_a_handshake_gets_only_the_time_that_the_lookup_left(serve: Serve, lookup_takes: LookupTakes) -> None:
    deadline = Deadline(LONG_S)
    lookup_takes(lambda: deadline.shorten(SHORT_S))
    with ending_in_time():
        error = failure(get, serve(greeting=HANDSHAKE).url, deadline)
    assert (error.cause, error.sent) == (Cause.TIMEOUT, False)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_a_request_that_is_not_read_ends_the_call(serve: Serve, lookup_takes: LookupTakes) -> None:
    """It counts as sent: the server may have read enough of it."""
    over = threading.Event()
    deadline = Deadline(LONG_S)
    lookup_takes(lambda: deadline.shorten(SHORT_S))
    server = serve(greeting=(lambda: over.wait(LONG_S),))
    with BoundedPools(connections=1) as pools, ending_in_time(), pytest.raises(CallError) as error:
        pools.call("POST", server.url, headers={}, deadline=deadline, body_limit=0, body=LARGE)
    over.set()
    assert (error.value.cause, error.value.sent) == (Cause.TIMEOUT, True)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_a_request_that_is_not_read_ends_the_call_on_a_kept_connection_too(serve: Serve) -> None:
    """Its socket still has the timeout of the last call."""
    over = threading.Event()
    server = serve((answer(), lambda: over.wait(LONG_S)))
    with BoundedPools(connections=1) as pools:
        pools.call("GET", server.url, headers={}, deadline=Deadline(LONG_S), body_limit=0)
        with ending_in_time(), pytest.raises(CallError) as error:
            pools.call("POST", server.url, headers={}, deadline=Deadline(SHORT_S), body_limit=0, body=LARGE)
    over.set()
    assert (error.value.cause, error.value.sent) == (Cause.TIMEOUT, True)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_an_address_that_does_not_answer_ends_the_call(scheme: str, call: Call, unreachable: int) -> None:
    with ending_in_time():
        error = failure(call, f"{scheme}://127.0.0.1:{unreachable}", Deadline(SHORT_S))
    assert (error.cause, error.sent) == (Cause.TIMEOUT, False)


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_all_addresses_of_a_name_share_one_deadline(
    scheme: str, unreachable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = socket.getaddrinfo("127.0.0.1", unreachable, type=socket.SOCK_STREAM) * 10
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    with ending_in_time():
        error = failure(get, f"{scheme}://many.example", Deadline(SHORT_S))
    assert (error.cause, error.sent) == (Cause.TIMEOUT, False)


@pytest.mark.parametrize(("call", "dead"), [("get", 1), ("post", 1), ("aws", 1), ("get", 2)], indirect=["call"])
def test_dead_addresses_leave_time_for_one_that_lives(
    call: Call, dead: int, authority: Authority, unreachable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to connect is shared among them. The certificate is for the name, whatever the address."""
    resolve(monkeypatch, "several.example", [unreachable] * dead)
    with Server((answer(NO_ZONES),), tls=server_context(authority.issue(["several.example"]))) as server:
        assert call(f"https://several.example:{server.port}", Deadline(1.2)) == 200


def test_a_call_whose_time_is_over_does_not_begin(serve: Serve, call: Call, lookup_takes: LookupTakes) -> None:
    server = serve((answer(),))
    lookups: list[str] = []
    lookup_takes(lambda: lookups.append(server.url))
    error = failure(call, server.url, Deadline(0))
    assert (error.cause, error.sent, error.stale) == (Cause.TIMEOUT, False, False)
    assert (lookups, server.connections, server.requests) == ([], 0, [])


def test_a_call_whose_name_lookup_took_too_long_does_not_go_on(
    serve: Serve, call: Call, lookup_takes: LookupTakes
) -> None:
    """Nothing can cut a lookup short: it may end long after the cycle, in a process that was frozen meanwhile."""
    server = serve((answer(),))
    deadline = Deadline(LONG_S)
    lookup_takes(deadline.close)
    error = failure(call, server.url, deadline)
    assert (error.cause, error.sent, error.stale) == (Cause.TIMEOUT, False, False)
    assert (server.connections, server.requests) == (0, [])


def test_a_kept_connection_is_not_used_when_the_time_is_over(serve: Serve) -> None:
    server = serve((answer(),))
    with contextlib.closing(HttpClient(connections=1)) as client:

        def get(url: str, deadline: Deadline) -> int:
            return client.get(url, params={}, headers={}, deadline=deadline, body_limit=0).status

        assert get(server.url, Deadline(LONG_S)) == 200
        error = failure(get, server.url, Deadline(0))
    assert (error.cause, error.sent, error.stale) == (Cause.TIMEOUT, False, False)
    assert len(server.requests) == 1


def test_a_read_that_begins_as_the_time_runs_out_is_a_timeout() -> None:
    """The deadline may pass between two looks at the clock. A timeout of 0 would make the socket non-blocking."""
    looks = itertools.count()
    deadline = Deadline(0.2, clock=lambda: next(looks) * 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(BoundedReader(ours.makefile("rb", 0), ours, deadline)) as reader:
        with pytest.raises(TimeoutError):
            reader.readinto(bytearray(1))
        with pytest.raises(TimeoutError):
            reader.readinto(bytearray(1))


# --- several threads ---


@pytest.mark.parametrize("call", ["get", "aws"], indirect=True)
def test_calls_at_the_same_time_have_deadlines_of_their_own(serve: Serve, call: Call) -> None:
    asked, enough = threading.Event(), threading.Event()
    patient = serve((asked.set, lambda: enough.wait(LONG_S), answer(NO_ZONES)))
    slow = serve(())
    with ThreadPoolExecutor() as threads:
        answered = threads.submit(call, patient.url, Deadline(LONG_S))
        asked.wait(LONG_S)
        with ending_in_time():
            assert failure(call, slow.url, Deadline(SHORT_S)).cause is Cause.TIMEOUT
        enough.set()
        assert answered.result() == 200


@pytest.mark.parametrize("call", ["get", "post", "aws"], indirect=True)
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_a_slow_lookup_on_one_thread_does_not_affect_another(
    serve: Serve, call: Call, lookup_takes: LookupTakes
) -> None:
    """A call ends, in time or not, while another one still looks up a name."""
    server = serve((answer(NO_ZONES),))
    nested = threading.Lock()
    outcomes: list[object] = []

    def meanwhile() -> None:
        if nested.acquire(blocking=False):
            with ThreadPoolExecutor() as threads:
                outcomes.append(threads.submit(call, server.url, Deadline(LONG_S)).result())
                outcomes.append(threads.submit(failure, call, server.url, Deadline(0)).result().cause)

    lookup_takes(meanwhile)
    assert call(server.url, Deadline(LONG_S)) == 200
    assert outcomes == [200, Cause.TIMEOUT]


# --- AWS ---


def test_a_call_to_aws_without_a_deadline_is_refused(ec2: Ec2) -> None:
    with pytest.raises(RuntimeError, match="outside `within`"):
        ec2.aws.ec2().describe_availability_zones()


def test_a_deadline_is_for_the_calls_of_its_own_thread(ec2: Ec2) -> None:
    with (
        ec2.aws.within(Deadline(0)),
        ThreadPoolExecutor() as threads,
        pytest.raises(RuntimeError, match="outside `within`"),
    ):
        threads.submit(ec2.aws.ec2().describe_availability_zones).result()


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_a_deadline_within_another_ends_with_its_block(serve: Serve, ec2: Ec2) -> None:
    server = serve((answer(NO_ZONES),))
    with ec2.aws.within(Deadline(0)):
        assert ec2.call(server.url, Deadline(LONG_S)) == 200
        with pytest.raises(CallError):
            ec2.aws.ec2().describe_availability_zones()
