"""What most integration tests begin with."""

from collections.abc import Iterator

import pytest

from sandbox.postgres import PostgresServer, StatusType
from tests.support.stage import Stage, opened


@pytest.fixture
def stage(postgres: PostgresServer, status_type: StatusType) -> Iterator[Stage]:
    """A database with its fleet, and everything around it that a cycle meets."""
    with opened(postgres, status_type) as stage:
        yield stage
