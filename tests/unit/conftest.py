"""Unit tests open no socket, and every run is the same."""

import socket
from collections.abc import Iterator

import hypothesis
import pytest

from handler.telemetry import logger
from tests.unit.builders import Log

# The same examples in every run, so that a failure can be repeated.
hypothesis.settings.register_profile("project", derandomize=True, deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="package", autouse=True)
def no_sockets() -> Iterator[None]:
    """Fail a test that opens a socket."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test opens a socket")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Record what is logged from here on."""
    log = Log()
    logger.clear_state()  # the keys of a cycle that another test ran
    monkeypatch.setattr(logger.registered_handler, "stream", log.stream)
    return log
