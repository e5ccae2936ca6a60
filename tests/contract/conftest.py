"""Databases: in memory, and real ones."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from sandbox.postgres import Database, PostgresServer, StatusType
from tests.contract.subjects import InMemory, InPostgres, Subject
from tests.support.kept_connections import kept_connections


@pytest.fixture(scope="package")
def enum_database(postgres: PostgresServer) -> Iterator[Database]:
    """One database for all tests here, whose `status` is an enum."""
    yield from _database(postgres, "enum")


@pytest.fixture(scope="package")
def text_database(postgres: PostgresServer) -> Iterator[Database]:
    """Another one, whose `status` is text."""
    yield from _database(postgres, "text")


def _database(postgres: PostgresServer, status_type: StatusType) -> Iterator[Database]:
    database = postgres.create_database(status_type)
    with kept_connections(database) as kept:
        yield kept
    database.drop()


@pytest.fixture(params=["memory", "enum", "text"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """An empty database of either kind."""
    if request.param == "memory":
        yield InMemory()
        return
    with closing(InPostgres(request.getfixturevalue(f"{request.param}_database"))) as subject:
        yield subject
