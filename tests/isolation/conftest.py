"""The arenas that these tests use."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from sandbox.postgres import PostgresServer, StatusType
from tests.isolation.arena import Arena


@pytest.fixture(scope="session")
def arenas(postgres: PostgresServer) -> Iterator[Callable[[StatusType], Arena]]:
    """Arenas by the type of the status column, each made once."""
    made: dict[StatusType, Arena] = {}
    with contextlib.ExitStack() as parts:

        def arena(status_type: StatusType) -> Arena:
            if status_type not in made:
                database = postgres.create_database(status_type)
                parts.callback(database.drop)
                made[status_type] = Arena(database)
                parts.callback(made[status_type].close)
            return made[status_type]

        yield arena
