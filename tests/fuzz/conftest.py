"""What fuzzing needs: nobody to talk to, or stand-ins that say whatever a test makes up."""

import socket
from collections.abc import Iterator

import pytest

from tests.fuzz.anything import Nobody


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """A machine whose network refuses every connection, and tells how many were tried."""
    nobody = Nobody()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", nobody.refuse)
        patch.setattr(socket, "getaddrinfo", nobody.refuse)
        yield nobody
