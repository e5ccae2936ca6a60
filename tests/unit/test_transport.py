"""Connections that never come about: what is said of them, and that nothing was sent."""

import errno
import socket

import pytest
import urllib3.util.connection

from handler.deadline import Deadline
from handler.net.bounded import BoundedPools, CallError


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        pytest.param(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "connection_refused", id="refused"),
        pytest.param(OSError(errno.EHOSTUNREACH, "no route"), "connection_refused", id="no route"),
        pytest.param(socket.gaierror(socket.EAI_NONAME, "unknown"), "name_lookup_failed", id="no such name"),
        pytest.param(TimeoutError("timed out"), "timeout", id="a timeout"),
    ],
)
def test_a_connection_that_does_not_come_about_has_its_cause_and_sent_nothing(
    monkeypatch: pytest.MonkeyPatch, trouble: OSError, cause: str
) -> None:
    def create_connection(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(urllib3.util.connection, "create_connection", create_connection)
    transport = BoundedPools(connections=1)
    with pytest.raises(CallError) as failure:
        transport.call("GET", "http://cp.example/", headers={}, deadline=Deadline(5), body_limit=10)
    assert (failure.value.cause, failure.value.sent) == (cause, False)
    transport.close()


@pytest.mark.parametrize("url", ["http://", "ftp://cp.example/", "http://[::1"])
def test_an_address_that_is_none_is_a_failed_call(url: str) -> None:
    transport = BoundedPools(connections=1)
    with pytest.raises(CallError) as failure:
        transport.call("GET", url, headers={}, deadline=Deadline(5), body_limit=10)
    assert not failure.value.sent
