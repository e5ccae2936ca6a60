"""Who is connected to: whom an authority vouches for, as libpq verifies it, by whichever address answers."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from handler.errors import ConnectionLostError
from sandbox.certificates import Authority
from tests.support.addresses import resolve, unreachable_port
from tests.support.events import DRY_RUN
from tests.support.stage import Stage
from tests.support.strict_tls import strict_contexts
from tests.support.tls_front import TlsFront

NAME = "several.example"
MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}


@pytest.fixture(autouse=True)
def python_3_13() -> Iterator[None]:
    """Have TLS verified as it is where this is deployed."""
    with strict_contexts():
        yield


@pytest.fixture
def company() -> Authority:
    """An authority whose certificates have no more extensions than a chain needs."""
    return Authority("Company", plain=True)


@pytest.fixture
def bundle(company: Authority, tmp_path: Path) -> str:
    path = tmp_path / "company.pem"
    path.write_bytes(company.certificate)
    return str(path)


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def elsewhere(url: str, host: str, port: int) -> str:
    """Return a database's URL for another host and port, which have to prove who they are."""
    return url.replace(f"127.0.0.1:{port_of(url)}", f"{host}:{port}").replace("=disable", "=verify-full")


# --- certificates ---


def test_a_database_s_certificate_needs_no_more_extensions_than_libpq_wants(
    stage: Stage, company: Authority, bundle: str
) -> None:
    with TlsFront(company.issue(["127.0.0.1"]), port_of(stage.database.url)) as front:
        url = elsewhere(stage.database.url, "127.0.0.1", front.port)
        report = stage.invoke(DRY_RUN, DATABASE_URL=url, DATABASE_CA_FILE=bundle)
        assert report["outcome"] == "completed"
        with pytest.raises(ConnectionLostError, match="certificate"):
            stage.invoke(DRY_RUN, DATABASE_URL=url)  # nobody that is trusted vouches for it


def test_a_database_s_certificate_without_extensions_is_good_for_its_own_name_only(
    stage: Stage, company: Authority, bundle: str
) -> None:
    with TlsFront(company.issue(["127.0.0.2"]), port_of(stage.database.url)) as front:
        url = elsewhere(stage.database.url, "127.0.0.1", front.port)
        with pytest.raises(ConnectionLostError, match="IP address mismatch"):
            stage.invoke(DRY_RUN, DATABASE_URL=url, DATABASE_CA_FILE=bundle)


def test_control_plane_and_platform_may_have_an_authority_of_their_own(
    stage: Stage, company: Authority, bundle: str
) -> None:
    dead = stage.add("terminated")
    certificate = company.issue(["127.0.0.1"])
    with ExitStack() as stack:
        control_plane, platform = (
            stack.enter_context(TlsFront(certificate, port_of(one.url), https=True))
            for one in (stage.control_plane, stage.platform)
        )
        settings = {
            **stage.settings("control_plane"),
            **MOSTLY_DEAD,
            "CP_BASE_URL": f"https://127.0.0.1:{control_plane.port}",
            "PLATFORM_BASE_URL": f"https://127.0.0.1:{platform.port}",
        }
        without = stage.cycle(**settings)
        without.assert_untouched(dead)
        assert without.causes == {dead: "tls_failed"}
        stage.cycle(**settings, HTTPS_CA_FILE=bundle).assert_only_flipped({dead: "terminated"})


# --- addresses ---


def test_a_dead_address_of_the_database_leaves_time_for_the_other_one(
    stage: Stage, company: Authority, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whichever answers has to have a certificate for the name."""
    with unreachable_port() as dead, TlsFront(company.issue([NAME]), port_of(stage.database.url)) as front:
        resolve(monkeypatch, NAME, [dead])
        url = elsewhere(stage.database.url, NAME, front.port)
        settings = {"DATABASE_URL": url, "DATABASE_CA_FILE": bundle, "CYCLE_DEADLINE_SECONDS": "2"}
        assert stage.invoke(DRY_RUN, **settings)["outcome"] == "completed"
