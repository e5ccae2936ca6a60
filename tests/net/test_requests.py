"""Exactly the requested call goes out, once, to that host; requests and the environment add nothing."""

import contextlib
import json
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.net.bounded import CallError
from handler.net.http import HttpClient
from tests.net.conftest import AN_ERROR, NO_ZONES, Call, Ec2, Serve, post
from tests.net.server import Drip, Server, answer, head

ELSEWHERE = "http://elsewhere.example/"
REDIRECTS = ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
RECORDED = [
    "i-0a&state=stopped&admin=1",
    "i-0a?instance_id=i-0b#top",
    "a=b;c=d",
    "../../../admin/terminate/",
    "http://user:secret@169.254.169.254:80/latest",
    "100%41%0d%0a%",
    "  blanks + pluses\tand tabs ",
    "i-0a\r\nX-Molecule-Admin-Token: stolen\r\n\r\n",
    "i-0a\x00\x7f",
    "\u00e9\u202e\u2028\U0001f480",
    '"quoted\\"',
    "",
]


def soon() -> Deadline:
    return Deadline(20)


def target(request: bytes) -> str:
    return request.split(b" ", 2)[1].decode("ascii")


def headers(request: bytes) -> dict[str, str]:
    """Return a request's headers, each of which stands there once, by their names as they were sent."""
    lines = request.partition(b"\r\n\r\n")[0].decode("ascii").split("\r\n")[1:]
    pairs = [line.partition(": ")[::2] for line in lines]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Hide the developer's own proxies and exceptions from them."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


# --- what is sent ---


def test_a_get_is_sent_with_these_headers_and_no_others(serve: Serve) -> None:
    server = serve((answer(),))
    with contextlib.closing(HttpClient(connections=1)) as client:
        client.get(
            f"{server.url}/cp/workspaces/1/status",
            params={"instance_id": "i-0a"},
            headers={"Accept": "application/json", "Authorization": "Bearer secret"},
            deadline=soon(),
            body_limit=0,
        )
    (request,) = server.requests
    assert request.startswith(b"GET /cp/workspaces/1/status?instance_id=i-0a HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n")
    assert headers(request) == {
        "Host": f"127.0.0.1:{server.port}",
        "User-Agent": "instance-state-reconciler",
        "Accept-Encoding": "identity",
        "Accept": "application/json",
        "Authorization": "Bearer secret",
    }


def test_a_post_is_sent_with_these_headers_and_no_others(serve: Serve) -> None:
    server = serve((answer(),))
    with contextlib.closing(HttpClient(connections=1)) as client:
        client.post(
            f"{server.url}/workspaces/1/restart",
            json={"expected_instance_id": "i-0a"},
            headers={"Connection": "close", "Authorization": "Bearer secret", "X-Molecule-Org-Id": "1"},
            deadline=soon(),
        )
    (request,) = server.requests
    assert request.startswith(b"POST /workspaces/1/restart HTTP/1.1\r\n")
    assert request.endswith(b'\r\n\r\n{"expected_instance_id": "i-0a"}')
    assert headers(request) == {
        "Host": f"127.0.0.1:{server.port}",
        "User-Agent": "instance-state-reconciler",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Authorization": "Bearer secret",
        "X-Molecule-Org-Id": "1",
        "Content-Type": "application/json",
        "Content-Length": "32",
    }


def test_a_call_to_aws_is_sent_with_these_headers_and_no_others(serve: Serve, ec2: Ec2) -> None:
    server = serve((answer(NO_ZONES),))
    ec2.call(server.url, soon())
    (request,) = server.requests
    sent = headers(request)
    assert sent.keys() == {
        *("Host", "User-Agent", "Accept-Encoding", "Content-Type", "Content-Length"),
        *("X-Amz-Date", "X-Amz-Security-Token", "Authorization", "amz-sdk-invocation-id", "amz-sdk-request"),
    }
    assert (sent["Host"], sent["Accept-Encoding"]) == (f"127.0.0.1:{server.port}", "identity")
    assert request.endswith(b"\r\n\r\nAction=DescribeAvailabilityZones&Version=2016-11-15")


@pytest.mark.parametrize("recorded", RECORDED)
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_whatever_is_recorded_for_an_instance_arrives_as_one_value(serve: Serve, recorded: str) -> None:
    server = serve((answer(),))
    with contextlib.closing(HttpClient(connections=1)) as client:
        asked = {"params": {"instance_id": recorded}, "headers": {}, "deadline": soon()}
        client.get(f"{server.url}/status", **asked, body_limit=0)  # type: ignore[arg-type]
        client.post(f"{server.url}/restart", json={"instance_id": recorded}, headers={}, deadline=soon())
    asking, restarting = server.requests
    parts = urlsplit(target(asking))
    assert (parts.path, parse_qsl(parts.query, keep_blank_values=True)) == ("/status", [("instance_id", recorded)])
    assert target(restarting) == "/restart"
    assert json.loads(restarting.partition(b"\r\n\r\n")[2]) == {"instance_id": recorded}
    assert len(headers(asking)) == 3


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nX-Other: b", "a\r\n folded", "a\n", "a\r", "\r\n\r\nGET /"])
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_a_header_cannot_bring_another_one(serve: Serve, value: str) -> None:
    """Settings and secrets already refuse such values; this is the second line of defence."""
    server = serve((answer(),))
    with contextlib.closing(HttpClient(connections=1)) as client:
        with pytest.raises(CallError) as got:
            client.get(server.url, params={}, headers={"X-One": value}, deadline=soon(), body_limit=0)
        with pytest.raises(CallError) as posted:
            client.post(server.url, json={}, headers={"X-One": value}, deadline=soon())
    assert (got.value.cause, got.value.sent) == (Cause.BROKEN_CONNECTION, False)
    assert (posted.value.cause, posted.value.sent) == (Cause.BROKEN_CONNECTION, False)
    assert server.requests == []


# --- what is not ---


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_a_redirect_is_an_answer_like_any_other(serve: Serve, call: Call, status: str) -> None:
    other = serve((answer(),))
    for location in (f"{other.url}/", "/again", ELSEWHERE, "//"):
        server = serve((answer(AN_ERROR, f"Location: {location}", status=status),))
        assert call(server.url, soon()) == int(status[:3])
        assert len(server.requests) == 1
    assert other.connections == 0


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_the_body_of_a_redirect_is_not_waited_for_after_a_post(serve: Serve, status: str) -> None:
    """Session.send of requests reads it to its end, even when it follows no redirect."""
    server = serve((head(f"Location: {ELSEWHERE}", status=status), Drip(b"x")))
    assert post(server.url, soon()) == int(status[:3])


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable", "413 Content Too Large"])
@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_no_answer_is_asked_for_again(serve: Serve, call: Call, status: str) -> None:
    server = serve((answer(AN_ERROR, "Retry-After: 0", status=status),))
    assert call(server.url, soon()) == int(status[:3])
    assert len(server.requests) == 1


def test_no_proxy_of_the_environment_is_used(serve: Serve, call: Call, clean_environment: pytest.MonkeyPatch) -> None:
    server = serve((answer(NO_ZONES),))
    with Server((answer(),)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            clean_environment.setenv(name, proxy.url)
            clean_environment.setenv(name.lower(), proxy.url)
        clean_environment.setenv("NO_PROXY", "elsewhere.example")
        assert call(server.url, soon()) == 200
        assert proxy.connections == 0


@pytest.mark.parametrize("place", ["HOME", "NETRC"])
@pytest.mark.parametrize("call", ["get", "post"], indirect=True)
def test_no_login_of_a_netrc_is_used(
    serve: Serve, call: Call, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\ndefault login anybody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv(place, str(tmp_path if place == "HOME" else netrc))
    server = serve((answer(),))
    assert call(server.url, soon()) == 200
    assert "Authorization" not in headers(server.requests[0])


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_no_cookie_is_sent_back(serve: Serve) -> None:
    cookies = ["Set-Cookie: one=1", "Set-Cookie: two=2; Path=/; Domain=127.0.0.1; Max-Age=9999", "Set-Cookie2: three=3"]
    server = serve((answer(b"", *cookies),))
    with contextlib.closing(HttpClient(connections=1)) as client:
        for _ in range(2):
            client.get(server.url, params={}, headers={}, deadline=soon(), body_limit=0)
            client.post(server.url, json={}, headers={}, deadline=soon())
    assert len(server.requests) == 4
    assert not re.search(rb"(?i)cookie", b"".join(server.requests))


@pytest.mark.parametrize("scheme", ["http"], indirect=True)
def test_an_encoded_body_stays_as_it_came(serve: Serve) -> None:
    """A small body may decode to one without end."""
    server = serve((answer(b"\x1f\x8b no gzip", "Content-Encoding: gzip"),))
    with contextlib.closing(HttpClient(connections=1)) as client:
        got = client.get(server.url, params={}, headers={}, deadline=soon(), body_limit=100)
    assert (got.body, got.headers["Content-Encoding"]) == (b"\x1f\x8b no gzip", "gzip")
