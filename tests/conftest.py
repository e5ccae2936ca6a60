"""The real parts, started once, and a fresh world on them for each test.

Nothing here starts unless a test asks for it, so that tests/unit stays free of sockets.
"""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from sandbox.control_plane import ControlPlane
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.limited_ec2 import LimitedEc2
from sandbox.platform import Platform
from sandbox.postgres import Database, PostgresServer, StatusType
from tests.support.invoke import Invoke
from tests.support.once import worked_out_once
from tests.support.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 - pytest's hooks

# The same examples in every run: a red build is red again when somebody looks at it. A long search takes others each
# time: make test ARGS="tests/fuzz --hypothesis-profile=long --timeout=0 --show-capture=no"
settings.register_profile("project", derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=5000, database=None, deadline=None, print_blob=True)
settings.load_profile("project")

_DIRECTORIES = ("unit", "net", "fuzz", "simulation", "contract", "integration", "isolation", "infra", "ops", "e2e")
# Not traced, which takes half as long again: every line that they run is run by the other suites, too.
_NOT_TRACED = ("simulation", "contract", "isolation", "infra", "ops", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the directory that it is in."""
    for item in items:
        for directory in _DIRECTORIES:
            if directory in item.path.parts:
                item.add_marker(directory)
                if directory in _NOT_TRACED:
                    item.add_marker("no_cover")


@pytest.fixture(scope="session", autouse=True)
def libraries_work_things_out_once() -> Iterator[None]:
    """Share between sessions what botocore and pg8000 work out for each."""
    with worked_out_once():
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests; a test that stops or breaks it starts one of its own."""
    with PostgresServer.start() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoEc2]:
    """One moto for all tests: see `ec2`."""
    with MotoEc2() as server:
        yield server


@pytest.fixture
def ec2(moto: MotoEc2) -> Iterator[MotoEc2]:
    """An account without instances, secrets or rules."""
    yield moto
    moto.reset()


@pytest.fixture
def limited_ec2() -> Iterator[LimitedEc2]:
    """An account behind EC2's limits: `invoke(..., **limited_ec2.environment)`."""
    with LimitedEc2() as server:
        yield server


@pytest.fixture
def status_type() -> StatusType:
    """The type of `workspaces.status`; the mark `both_status_types` runs a test with either."""
    return "enum"


@pytest.fixture
def database(postgres: PostgresServer, status_type: StatusType) -> Iterator[Database]:
    """An empty database, as deployed."""
    database = postgres.create_database(status_type)
    yield database
    database.drop()


@pytest.fixture
def fleet(database: Database) -> Fleet:
    """The workspaces, to be filled in."""
    return Fleet(database)


@pytest.fixture
def control_plane(ec2: MotoEc2) -> Iterator[ControlPlane]:
    """A control plane that answers from `ec2`: `invoke(..., **control_plane.environment)`."""
    with ControlPlane(ec2.state_of) as server:
        yield server


@pytest.fixture
def platform(database: Database, ec2: MotoEc2) -> Iterator[Platform]:
    """A platform that terminates and launches in `ec2`, at once."""
    with Platform(database, terminate=lambda old: ec2.terminate([old]), launch=lambda: ec2.launch()[0]) as server:
        yield server


@pytest.fixture(params=["ec2", "control_plane"])
def probe(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings for either source of truth, one after the other: `invoke(..., **probe)`."""
    if request.param == "ec2":
        return {}
    environment: dict[str, str] = request.getfixturevalue("control_plane").environment
    return environment


@pytest.fixture
def invoke(ec2: MotoEc2, database: Database, platform: Platform) -> Iterator[Invoke]:
    """Call the handler with EC2 as its probe, this database and this platform, unless the call says otherwise."""
    invoke = Invoke({**ec2.environment, **platform.environment, "DATABASE_URL": database.url})
    yield invoke
    invoke.cold()
