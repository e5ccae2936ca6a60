"""Unit tests open no socket, and every run is the same."""

import os
import socket
from collections.abc import Iterator
from unittest.mock import patch

import hypothesis
import pytest

from handler import process
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


# What an invocation cannot do without.
_ENVIRONMENT = {
    "DATABASE_URL": "postgresql://u:s3cret@db.example/n",
    "AWS_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "example",
}


@pytest.fixture
def cold_process() -> Iterator[None]:
    """Set only the variables that have to be set, and begin with a cold process."""
    with patch.dict(os.environ, _ENVIRONMENT, clear=True):
        process.forget()
        yield
        process.forget()
    logger.clear_state()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Record what is logged from here on."""
    log = Log()
    logger.clear_state()  # the keys of a cycle that another test ran
    monkeypatch.setattr(logger.registered_handler, "stream", log.stream)
    return log
