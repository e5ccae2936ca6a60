"""Secrets Manager on a real socket: whatever keeps it from answering, the last secret serves on."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator

import pytest

from handler import process
from handler.deadline import Deadline
from handler.errors import SecretError
from handler.net import secrets
from handler.net.aws import Aws
from handler.net.bounded import BoundedPools
from handler.net.secrets import CACHED_SECONDS, RETRY_SECONDS, Secrets
from tests.net.server import Drip, End, Script, Server, answer, head
from tests.unit.builders import Clock

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:platform-AbCdEf"

GIVEN = (answer(json.dumps({"SecretString": json.dumps({"token": "t"})}).encode()),)


def refusal(kind: str, status: str) -> Script:
    return (answer(json.dumps({"__type": kind, "Message": "no"}).encode(), status=status),)


def with_text(text: str) -> bytes:
    return json.dumps({"SecretString": text}).encode()


AWAY: dict[str, Script] = {
    "throttles": refusal("ThrottlingException", "400 Bad Request"),
    "has too many requests": (answer(b"slow down", status="429 Too Many Requests"),),
    "is broken": refusal("InternalServiceError", "500 Internal Server Error"),
    "is behind a page": (answer(b"<html>sorry</html>", status="503 Service Unavailable"),),
    "is a page": (answer(b"<html>welcome</html>"),),
    "says nothing": (answer(b"{}"),),
    "says something else": (answer(b"[1]"),),
    "fails in other words": (answer(b"[1]", status="400 Bad Request"),),
    "is too deep": (answer(b'{"SecretString": ' + b"[" * 60_000),),
    "is a flood": (answer(b'{"a": [' + b"[]," * 400_000 + b'[]], "SecretString": "{}"}'),),
    "is endless": (answer(b'{"SecretString": "' + b"x" * 5_000_000 + b'"}'),),
    "hangs up": (End.CLOSE,),
    "drips": (head("Content-Length: 1000"), Drip(b" ")),
}
NO_OBJECT = {
    "a number": b'{"SecretString": 1}',
    "an object": b'{"SecretString": {"token": "t"}}',
    "bytes": b'{"SecretBinary": "e30="}',
    "a list": with_text("[]"),
    "something deep": with_text('{"token": ' + "[" * 60_000 + "]" * 60_000 + "}"),
    "a number of too many digits": with_text('{"token": ' + "1" * 60_000 + "}"),
}
DENIED: dict[str, Script] = {
    "denies access": refusal("AccessDeniedException", "400 Bad Request"),
    "has deleted it": refusal("ResourceNotFoundException", "400 Bad Request"),
}


@contextlib.contextmanager
def fetched_once(monkeypatch: pytest.MonkeyPatch, clock: Clock, *then: Script) -> Iterator[Callable[[], object]]:
    """Yield what reads a secret that was fetched once, and that Secrets Manager is asked for again from now on."""
    with Server(GIVEN, *then) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", server.url)
        with contextlib.closing(Aws(BoundedPools(connections=1), models=process.MODELS, handlers={})) as aws:
            kept = Secrets(aws.secret_text, clock)

            def read() -> object:
                return kept.read(ARN, "PLATFORM_SECRET_ARN", Deadline(20))["token"]

            assert read() == "t"
            clock.sleep(CACHED_SECONDS)
            yield read


@pytest.mark.parametrize("away", AWAY)
def test_while_secrets_manager_is_away_the_last_secret_serves_on(monkeypatch: pytest.MonkeyPatch, away: str) -> None:
    monkeypatch.setattr(secrets, "RETRY_TIMEOUT_SECONDS", 0.3)
    clock = Clock()
    with fetched_once(monkeypatch, clock, AWAY[away], refusal("AccessDeniedException", "400 Bad Request")) as read:
        began_at = time.monotonic()
        assert [read(), read()] == ["t", "t"]
        assert time.monotonic() - began_at < 1.3
        clock.sleep(RETRY_SECONDS)
        with pytest.raises(SecretError, match="AccessDenied"):
            read()


@pytest.mark.parametrize("denied", DENIED)
def test_a_secret_that_is_denied_or_deleted_serves_no_longer(monkeypatch: pytest.MonkeyPatch, denied: str) -> None:
    clock = Clock()
    with fetched_once(monkeypatch, clock, DENIED[denied], AWAY["is broken"]) as read:
        for _ in range(2):
            with pytest.raises(SecretError):
                read()


@pytest.mark.parametrize("name", NO_OBJECT)
def test_what_is_no_object_of_text_is_no_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with (
        fetched_once(monkeypatch, Clock(), (answer(NO_OBJECT[name]),)) as read,
        pytest.raises(SecretError, match="PLATFORM_SECRET_ARN: the secret is not text that holds a JSON object"),
    ):
        read()


def test_a_date_that_takes_minutes_to_understand_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    date = json.dumps({"SecretString": '{"token": "u"}', "CreatedDate": "1." * 200_000}).encode()
    with fetched_once(monkeypatch, Clock(), (answer(date),)) as read:
        began_at = time.monotonic()
        assert read() == "u"
        assert time.monotonic() - began_at < 1
