"""What fuzzing needs."""

import socket
from collections.abc import Iterator

import pytest

from tests.fuzz.anything import Nobody


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """Refuse every connection, and count the attempts."""
    nobody = Nobody()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", nobody.refuse)
        patch.setattr(socket, "getaddrinfo", nobody.refuse)
        yield nobody
