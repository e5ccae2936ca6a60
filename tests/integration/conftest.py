"""The stages that most integration tests use."""

from collections.abc import Iterator

import pytest

from sandbox.ec2 import MotoEc2
from sandbox.postgres import PostgresServer, StatusType
from tests.support.stage import Stage, Stages, opened


@pytest.fixture(scope="session")
def stages(postgres: PostgresServer) -> Iterator[Stages]:
    """Stages that tests reuse."""
    with Stages(postgres) as stages:
        yield stages


@pytest.fixture
def stage(stages: Stages, status_type: StatusType) -> Iterator[Stage]:
    """A database with its fleet, and everything around it that a cycle meets; empty."""
    with stages.borrowed(status_type) as stage:
        yield stage


@pytest.fixture
def cloud(postgres: PostgresServer, moto: MotoEc2) -> Iterator[Stage]:
    """A stage with an AWS account that has a Secrets Manager."""
    with opened(postgres, moto=moto) as stage:
        yield stage
