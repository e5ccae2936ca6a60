"""Names with several addresses, some of which swallow every packet."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest


@contextmanager
def unreachable_port() -> Iterator[int]:
    """Yield a port on which every attempt to connect waits for ever: nobody accepts those that fill its queue."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, dead_ports: list[int]) -> None:
    """Have a name mean 127.0.0.1, but on these ports before the one that is asked for."""
    look_up = socket.getaddrinfo

    def several(host: str, port: int, *more: Any, **options: Any) -> Any:
        if host != name:
            return look_up(host, port, *more, **options)
        return [one for each in (*dead_ports, port) for one in look_up("127.0.0.1", each, *more, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", several)
