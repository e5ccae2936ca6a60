"""The built artifact under AWS's runtime client, in the sandbox's world."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.platform import Platform
from sandbox.postgres import OWNER_ROLE, RECONCILER_ROLE, Database, PostgresServer
from tests.support.runtime_api import LambdaFunction
from tests.support.tools import ROOT, tool

RECONCILER = "handler.app.lambda_handler"
STATE_CHANGES = "handler.events.lambda_handler"
INSTALLER = "handler.install.lambda_handler"


class World:
    """AWS, the platform and its database around a function, and the settings that point to them."""

    def __init__(self, postgres: PostgresServer, ec2: MotoEc2, database: Database, platform: Platform) -> None:
        self.postgres = postgres
        self.ec2 = ec2
        self.database = database
        self.platform = platform
        self.fleet = Fleet(database)

    def secret_for(self, user: str, **fields: object) -> str:
        """Store a login in Secrets Manager as RDS does; return the secret's ARN."""
        login = {"username": user, "password": self.postgres.password(user)}
        return self.ec2.put_secret(f"database/{user}", login | fields)

    def settings(self, **changes: str) -> dict[str, str]:
        """Return the environment that the template would give the reconciler here; every secret by its ARN."""
        return self.ec2.environment | {
            "DATABASE_SECRET_ARN": self.secret_for(RECONCILER_ROLE),
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.postgres.port),
            "DATABASE_NAME": self.database.name,
            "DATABASE_SSLMODE": "disable",
            "PLATFORM_BASE_URL": self.platform.url,
            "PLATFORM_SECRET_ARN": self.ec2.put_secret("platform", {"token": self.platform.token}),
            "CP_BASE_URL": "",  # as the template leaves what is not given
            "MODE": "apply",
            "RESTART_GRACE_SECONDS": "0",  # so that one cycle shows everything
            "POWERTOOLS_SERVICE_NAME": "blue",
            "POWERTOOLS_METRICS_NAMESPACE": "InstanceStateReconciler",
            "POWERTOOLS_LOG_LEVEL": "INFO",
            **changes,
        }

    def state_change_settings(self, **changes: str) -> dict[str, str]:
        """Return the environment that the template would give the function for state changes here."""
        given = self.settings()
        return {name: value for name, value in given.items() if not name.startswith("PLATFORM_")} | changes

    def installer_settings(self, **changes: str) -> dict[str, str]:
        """Return the environment that the template would give the installer here."""
        given = self.settings(DATABASE_SECRET_ARN=self.secret_for(OWNER_ROLE), DATABASE_ROLE=RECONCILER_ROLE)
        left_out = ("PLATFORM_BASE_URL", "PLATFORM_SECRET_ARN", "CP_BASE_URL", "MODE")
        return {name: value for name, value in given.items() if name not in left_out} | changes


@pytest.fixture
def world(postgres: PostgresServer, ec2: MotoEc2, database: Database, platform: Platform) -> World:
    return World(postgres, ec2, database, platform)


@pytest.fixture(scope="session")
def artifact() -> Path:
    path = ROOT / ".aws-sam" / "build" / "Reconciler"
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there: run `make test`, or `make build`")
    return path


@pytest.fixture(scope="session")
def python() -> str:
    """The Python of the runtime client: 3.13 where the machine has it."""
    if sys.platform != "linux":
        pytest.skip("AWS's runtime client has wheels for Linux only")
    return tool("lambda", "python")


Start = Callable[..., LambdaFunction]


@pytest.fixture
def start(artifact: Path, python: str, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a process of a Lambda function, which ends with the test."""
    with ExitStack() as stack:

        def started(environment: dict[str, str], handler: str = RECONCILER, **options: Any) -> LambdaFunction:
            log = tmp_path / f"{len(list(tmp_path.iterdir()))}.log"
            options = {"artifact": artifact} | options
            return stack.enter_context(
                LambdaFunction(python, handler=handler, environment=environment, log=log, **options)
            )

        yield started
