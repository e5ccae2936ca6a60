"""Only a server with a valid certificate for its name, from an authority that the system trusts, is believed."""

import contextlib
import datetime as dt
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.net import tls
from handler.net.http import HttpClient
from sandbox.certificates import Authority, Certificate
from tests.net.conftest import NO_ZONES, Call, Ec2, failure
from tests.net.server import Server, answer, server_context


def soon() -> Deadline:
    return Deadline(20)


def of_another_authority(_: Authority) -> Certificate:
    return Authority().issue(["127.0.0.1"])


def for_another_name(authority: Authority) -> Certificate:
    return authority.issue(["elsewhere.example", "127.0.0.2"])


def expired(authority: Authority) -> Certificate:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandbox.certificates._VALID_FOR", dt.timedelta(minutes=-1))
        return authority.issue(["127.0.0.1"])


def plain_of_another_authority(_: Authority) -> Certificate:
    return Authority(plain=True).issue(["127.0.0.1"])


@pytest.mark.parametrize("certificate", [of_another_authority, for_another_name, expired, plain_of_another_authority])
def test_a_server_that_is_not_who_it_should_be_is_sent_nothing(
    authority: Authority, call: Call, certificate: Callable[[Authority], Certificate]
) -> None:
    with Server((answer(NO_ZONES),), tls=server_context(certificate(authority))) as server:
        error = failure(call, server.url, soon())
    assert (error.cause, error.sent, error.stale) == (Cause.TLS_FAILED, False, False)
    assert server.requests == []


def test_a_certificate_needs_no_more_extensions_than_libpq_wants(plain_authority: Authority, call: Call) -> None:
    """Without key identifiers Python 3.13 would refuse it."""
    with Server((answer(NO_ZONES),), tls=server_context(plain_authority.issue(["127.0.0.1"]))) as server:
        assert call(server.url, soon()) == 200


def test_a_certificate_without_extensions_is_good_for_its_own_name_only(plain_authority: Authority, call: Call) -> None:
    certificate = plain_authority.issue(["elsewhere.example", "127.0.0.2"])
    with Server((answer(NO_ZONES),), tls=server_context(certificate)) as server:
        error = failure(call, server.url, soon())
    assert (error.cause, error.sent, server.requests) == (Cause.TLS_FAILED, False, [])


def test_a_file_adds_an_authority_for_those_clients_that_name_it(
    authority: Authority, ec2: Ec2, tmp_path: Path
) -> None:
    """AWS's does not: nobody but Amazon signs for AWS."""
    company = Authority("Company")
    bundle = tmp_path / "company.pem"
    bundle.write_bytes(company.certificate)

    def get(url: str, ca_file: str | None) -> int:
        with contextlib.closing(HttpClient(connections=1, ca_file=ca_file)) as client:
            return client.get(url, params={}, headers={}, deadline=soon(), body_limit=1024).status

    with Server((answer(NO_ZONES),), tls=server_context(company.issue(["127.0.0.1"]))) as server:
        assert get(server.url, str(bundle)) == 200
        for call in (ec2.call, lambda url, _: get(url, None)):
            assert failure(call, server.url, soon()).cause is Cause.TLS_FAILED
    with Server((answer(NO_ZONES),), tls=server_context(authority.issue(["127.0.0.1"]))) as of_the_systems:
        assert get(of_the_systems.url, str(bundle)) == 200


def test_a_server_without_tls_is_sent_nothing(call: Call) -> None:
    with Server(greeting=(answer(NO_ZONES),)) as server:
        error = failure(call, server.url.replace("http:", "https:"), soon())
    assert (error.cause, error.sent) == (Cause.TLS_FAILED, False)


def test_a_server_that_knows_old_versions_only_is_sent_nothing(authority: Authority, call: Call) -> None:
    context = server_context(authority.issue(["127.0.0.1"]))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with Server((answer(NO_ZONES),), tls=context) as server:
        error = failure(call, server.url, soon())
    assert (error.cause, error.sent) == (Cause.TLS_FAILED, False)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_requests_variables_neither_add_nor_take_away_an_authority(
    authority: Authority, call: Call, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority()
    bundle = tmp_path / "other.pem"
    bundle.write_bytes(other.certificate)
    monkeypatch.setenv(variable, str(bundle))
    with Server((answer(NO_ZONES),), tls=server_context(authority.issue(["127.0.0.1"]))) as server:
        assert call(server.url, soon()) == 200
    with Server((answer(NO_ZONES),), tls=server_context(other.issue(["127.0.0.1"]))) as stranger:
        assert failure(call, stranger.url, soon()).cause is Cause.TLS_FAILED


def test_threads_that_ask_at_once_share_a_context(authority: Authority, tmp_path: Path) -> None:
    bundle = tmp_path / "company.pem"
    bundle.write_bytes(authority.certificate)
    all_here = threading.Barrier(8)

    def context() -> ssl.SSLContext:
        all_here.wait()
        return tls.https_context(str(bundle))

    with ThreadPoolExecutor(8) as threads:
        contexts = [threads.submit(context) for _ in range(8)]
    assert len({one.result() for one in contexts}) == 1


def test_authorities_are_loaded_once_in_a_process(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take 30 ms of CPU, which urllib3 and requests would spend on each connection."""
    server_side = server_context(authority.issue(["127.0.0.1"]))
    loads: list[str] = []

    def counted(name: str) -> None:
        load = getattr(ssl.SSLContext, name)

        def count(context: ssl.SSLContext, *arguments: Any, **options: Any) -> Any:
            loads.append(name)
            return load(context, *arguments, **options)

        monkeypatch.setattr(ssl.SSLContext, name, count)

    for name in ("load_default_certs", "load_verify_locations", "wrap_socket"):
        counted(name)
    tls.forget()
    with Server((answer(b"", "Connection: close"),), tls=server_side) as server:
        for _ in range(2):
            with contextlib.closing(HttpClient(connections=1)) as client:
                for _ in range(2):
                    client.get(server.url, params={}, headers={}, deadline=soon(), body_limit=0)
                client.post(server.url, json={}, headers={}, deadline=soon())
    assert server.connections == 6
    assert loads.count("wrap_socket") == 12  # on both sides
    assert [name for name in loads if name != "wrap_socket"] == ["load_default_certs"]
