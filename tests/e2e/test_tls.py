"""TLS from the deployed artifact to PostgreSQL: a server that the settings do not trust is refused."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.certificates import Authority
from sandbox.ec2 import MotoEc2
from sandbox.postgres import RECONCILER_ROLE, Database, PostgresServer
from tests.e2e.conftest import Start
from tests.support.events import DRY_RUN
from tests.support.runtime_api import Outcome
from tests.support.tls_front import TlsFront

UNKNOWN_AUTHORITY = "unable to get local issuer certificate"  # OpenSSL's words


@dataclass(frozen=True, slots=True)
class Secured:
    """Where a server with TLS listens, and the authority that signed its certificate."""

    port: int
    bundle: Path


def secured(postgres: PostgresServer, directory: Path, name: str, *, plain: bool = False) -> Iterator[Secured]:
    authority = Authority(plain=plain)
    bundle = directory / "authority.pem"
    bundle.write_bytes(authority.certificate)
    with TlsFront(authority.issue([name]), postgres.port) as front:
        yield Secured(front.port, bundle)


@pytest.fixture
def here(postgres: PostgresServer, tmp_path: Path) -> Iterator[Secured]:
    """Its certificate is for the address that it has."""
    yield from secured(postgres, tmp_path, "127.0.0.1")


@pytest.fixture
def plain(postgres: PostgresServer, tmp_path: Path) -> Iterator[Secured]:
    """Its certificate has no more extensions than a chain needs."""
    yield from secured(postgres, tmp_path, "127.0.0.1", plain=True)


@pytest.fixture
def elsewhere(postgres: PostgresServer, tmp_path: Path) -> Iterator[Secured]:
    """Its certificate is for another name."""
    yield from secured(postgres, tmp_path, "database.elsewhere.example")


@pytest.fixture
def other_bundle(tmp_path: Path) -> Path:
    """Another authority, of the same name."""
    path = tmp_path / "other.pem"
    path.write_bytes(Authority().certificate)
    return path


Connect = Callable[..., Outcome]


@pytest.fixture
def connect(ec2: MotoEc2, postgres: PostgresServer, database: Database, start: Start) -> Connect:
    """Return a function that runs a dry run against the server on a port, with settings for TLS."""

    def connected(port: int, **tls: object) -> Outcome:
        login = {"username": RECONCILER_ROLE, "password": postgres.password(RECONCILER_ROLE)}
        secret = login | {"host": "127.0.0.1", "port": port, "dbname": database.name}
        settings = {name: str(value) for name, value in tls.items()}
        settings["DATABASE_SECRET_ARN"] = ec2.put_secret("database", secret)
        return start(ec2.environment | settings).invoke(DRY_RUN)

    return connected


def assert_refused(outcome: Outcome, reason: str) -> None:
    assert outcome.failed
    assert outcome.value["errorType"] == "ConnectionLostError"
    assert reason in outcome.value["errorMessage"]


def test_the_right_bundle_and_name_are_accepted(here: Secured, connect: Connect) -> None:
    outcome = connect(here.port, DATABASE_CA_FILE=here.bundle)
    assert (outcome.failed, outcome.value.get("outcome")) == (False, "completed"), outcome.value


def test_a_certificate_without_key_identifiers_is_accepted(plain: Secured, connect: Connect) -> None:
    """The deployed Python refuses it by default, where libpq does not."""
    outcome = connect(plain.port, DATABASE_CA_FILE=plain.bundle)
    assert (outcome.failed, outcome.value.get("outcome")) == (False, "completed"), outcome.value


def test_without_the_bundle_the_authority_is_refused(here: Secured, connect: Connect) -> None:
    assert_refused(connect(here.port), UNKNOWN_AUTHORITY)


def test_a_certificate_of_another_authority_is_refused(here: Secured, other_bundle: Path, connect: Connect) -> None:
    assert_refused(connect(here.port, DATABASE_CA_FILE=other_bundle), UNKNOWN_AUTHORITY)


def test_a_certificate_for_another_name_is_refused(elsewhere: Secured, connect: Connect) -> None:
    assert_refused(connect(elsewhere.port, DATABASE_CA_FILE=elsewhere.bundle), "IP address mismatch")


def test_another_name_is_accepted_only_when_asked_for(elsewhere: Secured, other_bundle: Path, connect: Connect) -> None:
    assert not connect(elsewhere.port, DATABASE_CA_FILE=elsewhere.bundle, DATABASE_SSLMODE="verify-ca").failed
    assert_refused(
        connect(elsewhere.port, DATABASE_CA_FILE=other_bundle, DATABASE_SSLMODE="verify-ca"),
        UNKNOWN_AUTHORITY,
    )


def test_no_verification_at_all_has_to_be_asked_for(elsewhere: Secured, connect: Connect) -> None:
    assert not connect(elsewhere.port, DATABASE_SSLMODE="require").failed


@pytest.mark.parametrize("sslmode", ["", "verify-full", "verify-ca", "require"])
def test_a_server_without_tls_is_refused_unless_that_is_asked_for(
    sslmode: str, postgres: PostgresServer, connect: Connect
) -> None:
    outcome = connect(postgres.port, DATABASE_SSLMODE=sslmode)
    assert (outcome.failed, outcome.value["errorType"]) == (True, "ConnectionLostError")
    assert not connect(postgres.port, DATABASE_SSLMODE="prefer").failed


def test_a_bundle_without_certificates_is_refused_by_the_variable_s_name(
    here: Secured, connect: Connect, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    outcome = connect(here.port, DATABASE_CA_FILE=garbage)
    assert (outcome.failed, outcome.value["errorType"]) == (True, "SettingsError")
    assert outcome.value["errorMessage"].startswith("DATABASE_CA_FILE: ")
