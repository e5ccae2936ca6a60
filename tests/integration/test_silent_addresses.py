"""A name with six addresses that swallow every packet, or a lookup that never ends: the invocation ends in time."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from handler.errors import ReconcilerError
from handler.process import LAMBDA_RESERVE_SECONDS
from tests.support.addresses import unreachable_port
from tests.support.stage import Stage

NAME = "silent.example"
BUDGET_S = 1.0
SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:it"
ENDPOINT = f"http://{NAME}"

# What a cycle connects to, and the settings that make it this name.
SYSTEMS: dict[str, dict[str, str | None]] = {
    "database": {"DATABASE_URL": f"postgresql://u:p@{NAME}/d?sslmode=disable"},
    "EC2": {"AWS_ENDPOINT_URL_EC2": ENDPOINT},
    "control plane": {"PROBE": "control_plane", "CP_BASE_URL": ENDPOINT, "PROBE_TIMEOUT_SECONDS": "1"},
    "platform": {"PLATFORM_BASE_URL": ENDPOINT},
    "the database's secret": {
        "DATABASE_URL": None,
        "DATABASE_SECRET_ARN": SECRET,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": ENDPOINT,
    },
    "the control plane's secret": {
        "PROBE": "control_plane",
        "CP_BASE_URL": "http://127.0.0.1:9",
        "CP_SECRET_ARN": SECRET,
        "CP_SHARED_SECRET": None,
        "CP_ADMIN_TOKEN": None,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": ENDPOINT,
    },
    "the platform's secret": {
        "PLATFORM_SECRET_ARN": SECRET,
        "PLATFORM_TOKEN": None,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": ENDPOINT,
    },
}


@pytest.fixture
def six_silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the name mean six addresses that accept no connection and refuse none."""
    look_up = socket.getaddrinfo
    with unreachable_port() as port:
        silent = look_up("127.0.0.1", port, type=socket.SOCK_STREAM) * 6

        def look_up_all(host: str, *more: Any, **options: Any) -> Any:
            return silent if host == NAME else look_up(host, *more, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up_all)
        yield


@pytest.fixture
def endless_lookup(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have nobody answer a question about the name."""
    look_up, over = socket.getaddrinfo, threading.Event()

    def wait(host: str, *more: Any, **options: Any) -> Any:
        if host == NAME:
            over.wait(5)
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return look_up(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield
    over.set()


@pytest.mark.parametrize("trouble", ["six_silent", "endless_lookup"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_an_invocation_ends_by_its_deadline(
    stage: Stage, system: str, trouble: str, request: pytest.FixtureRequest
) -> None:
    stage.add_all(300, "running")
    stage.add_all(20, "terminated")
    settings = SYSTEMS[system]
    invoke = stage.invoke.with_remaining(LAMBDA_RESERVE_SECONDS + BUDGET_S)
    request.getfixturevalue(trouble)
    began_at = time.monotonic()
    with contextlib.suppress(ReconcilerError):
        report = invoke(**settings)
        assert report["restarts"]["accepted"] == 0
    assert time.monotonic() - began_at < BUDGET_S + 3
