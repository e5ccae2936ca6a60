"""Nothing here opens a socket, and no run differs from the last one."""

import socket
from collections.abc import Iterator

import hypothesis
import pytest

# The same examples in every run: a red build is red again when somebody looks at it.
hypothesis.settings.register_profile("project", derandomize=True, deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def no_sockets() -> Iterator[None]:
    """Fail whoever opens a socket."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test opens a socket")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield
