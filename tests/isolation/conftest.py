"""The arenas that these tests use."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from handler.store import flip
from sandbox.postgres import PostgresServer, StatusType
from tests.isolation.arena import Arena
from tests.support.interleaving import TIMEOUT_S


@pytest.fixture(scope="session", autouse=True)
def locks_are_waited_for() -> Iterator[None]:
    """Have a flip wait for an older restart's lock as long as the other side takes, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flip, "LOCK_WAIT_SECONDS", TIMEOUT_S)
        yield


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
