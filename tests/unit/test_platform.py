"""The HTTP client of the platform: its requests, and what the answers mean for a restart."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from handler.deadline import Deadline
from handler.domain.model import Cause, Failure
from handler.errors import SecretError
from handler.net.bounded import Answer as HttpAnswer
from handler.net.bounded import CallError
from handler.net.secrets import Secrets, Tokens
from handler.restarts import Answer, Reply
from handler.restarts import platform as restarts_platform
from handler.restarts.platform import HttpPlatform
from handler.settings import Remote
from tests.unit.builders import Clock, instance, restart, uuid

SOON = Deadline(10, clock=Clock())


def http(status: int) -> Failure:
    return Failure(Cause.HTTP_STATUS, str(status))


@dataclass
class Response:
    """An answer without its body, which nobody may read."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    ends: Deadline | None = None  # the deadline that is over with this answer


@dataclass
class Wire:
    """Stands in for the HTTP client: gives the answers in turn, the last one for ever, and records what is sent."""

    answers: list[Response | CallError]
    sent: list[dict[str, Any]] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    closed: int = 0

    def connect(self, *, connections: int, ca_file: str | None = None) -> "Wire":
        assert ca_file is None
        self.connections.append(connections)
        return self

    def post(self, url: str, *, json: Mapping[str, Any], headers: Mapping[str, str], deadline: Deadline) -> HttpAnswer:
        if deadline.over():
            raise CallError(Cause.TIMEOUT, sent=False)
        prepared = requests.Request("POST", url, json=json, headers=dict(headers)).prepare()
        self.sent.append(
            {"url": prepared.url, "headers": prepared.headers, "body": prepared.body, "deadline": deadline}
        )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, CallError):
            raise answer
        if answer.ends is not None:
            answer.ends.close()
        return HttpAnswer(answer.status, answer.headers, b"")

    def close(self) -> None:
        self.closed += 1

    @property
    def tokens(self) -> list[str | None]:
        return [one["headers"].get("Authorization") for one in self.sent]


Connect = Callable[..., Wire]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Return a function that puts a wire with these answers between the client and the platform."""

    def between(*answers: Response | CallError) -> Wire:
        wire = Wire(list(answers))
        monkeypatch.setattr(restarts_platform, "HttpClient", wire.connect)
        return wire

    return between


class Vault:
    """A secret that holds these texts in turn, the last one for ever."""

    def __init__(self, *texts: str | Exception) -> None:
        self.texts = list(texts)

    def fetch(self, arn: str, deadline: Deadline) -> str:
        del arn, deadline
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        if isinstance(text, Exception):
            raise text
        return text


def platform(*texts: str | Exception, token: str | None = "t", org_id: str | None = None) -> HttpPlatform:
    """Return a platform whose token is in a variable, or in a secret that holds `texts` in turn."""
    remote = Remote("https://platform.example", "arn" if texts else None, ("token",), {"token": token} if token else {})
    tokens = Tokens(remote, "PLATFORM_SECRET_ARN", Secrets(Vault(*texts or ("{}",)).fetch, Clock()))
    return HttpPlatform(remote.base_url, org_id, tokens, SOON)


# --- the request ---


def test_a_request_names_workspace_and_instance(connect: Connect) -> None:
    wire = connect(Response(200))
    platform(org_id="org-1").restart(restart(7), SOON)
    (sent,) = wire.sent
    assert sent["url"] == f"https://platform.example/workspaces/{uuid(7)}/restart"
    assert json.loads(sent["body"]) == {"expected_instance_id": instance(7)}
    assert sent["headers"]["Authorization"] == "Bearer t"
    assert sent["headers"]["X-Molecule-Org-Id"] == "org-1"
    assert sent["headers"]["Content-Type"] == "application/json"
    assert sent["deadline"] is SOON


def test_an_empty_value_sends_no_header(connect: Connect) -> None:
    wire = connect(Response(200))
    platform(token=None).restart(restart(), SOON)
    assert not {"Authorization", "X-Molecule-Org-Id"} & wire.sent[0]["headers"].keys()


def test_each_restart_has_a_connection_of_its_own(connect: Connect) -> None:
    wire = connect(Response(200))
    asked = platform()
    for number in (1, 2):
        asked.restart(restart(number), SOON)
    assert wire.connections == [1, 1]
    assert [one["headers"]["Connection"] for one in wire.sent] == ["close", "close"]
    assert wire.closed == 2


def test_the_connection_is_closed_if_no_answer_comes(connect: Connect) -> None:
    wire = connect(CallError(Cause.TIMEOUT, sent=True))
    platform().restart(restart(), SOON)
    assert wire.closed == 1


# --- what the answers mean ---


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        *((status, Answer.ACCEPTED) for status in (200, 201, 202, 204, 299)),
        *((status, Answer.REFUSED) for status in (101, 300, 301, 302, 303, 304, 307, 308)),
        *((status, Answer.REFUSED) for status in (400, 401, 403, 404, 410, 422, 429, 499, 500, 503, 600)),
        *((status, Answer.UNCERTAIN) for status in (408, 501, 502, 504, 520, 524, 599)),
        (409, Answer.BLOCKED),
    ],
)
def test_a_status_decides_what_becomes_of_a_restart(connect: Connect, status: int, answer: Answer) -> None:
    connect(Response(status))
    assert platform().restart(restart(), SOON) == Reply(answer, http(status))


@pytest.mark.parametrize("cause", [Cause.CONNECTION_REFUSED, Cause.NAME_LOOKUP_FAILED, Cause.TLS_FAILED, Cause.TIMEOUT])
def test_a_request_that_never_left_is_refused(connect: Connect, cause: Cause) -> None:
    connect(CallError(cause, sent=False))
    assert platform().restart(restart(), SOON) == Reply(Answer.REFUSED, Failure(cause))


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.BROKEN_CONNECTION])
def test_a_request_without_an_answer_is_uncertain(connect: Connect, cause: Cause) -> None:
    connect(CallError(cause, sent=True))
    assert platform().restart(restart(), SOON) == Reply(Answer.UNCERTAIN, Failure(cause))


# --- a rotated token ---

OLD, NEW = '{"token": "old"}', '{"token": "new"}'


def test_a_refused_token_is_fetched_anew_once(connect: Connect) -> None:
    wire = connect(Response(401), Response(202))
    renewed = platform(OLD, NEW)
    assert renewed.restart(restart(1), SOON).answer is Answer.ACCEPTED
    assert renewed.restart(restart(2), SOON).answer is Answer.ACCEPTED
    assert wire.tokens == ["Bearer old", "Bearer new", "Bearer new"]


def test_an_unchanged_token_is_not_tried_again(connect: Connect) -> None:
    wire = connect(Response(401))
    assert platform(OLD).restart(restart(), SOON) == Reply(Answer.REFUSED, http(401))
    assert wire.tokens == ["Bearer old"]


def test_a_new_token_that_is_refused_too_is_a_refusal(connect: Connect) -> None:
    wire = connect(Response(401))
    assert platform(OLD, NEW).restart(restart(), SOON) == Reply(Answer.REFUSED, http(401))
    assert wire.tokens == ["Bearer old", "Bearer new"]


def test_a_failed_fetch_of_the_token_leaves_the_refusal(connect: Connect) -> None:
    connect(Response(401))
    failure = CallError(Cause.TIMEOUT, sent=True)
    assert platform(OLD, failure).restart(restart(), SOON) == Reply(Answer.REFUSED, http(401))


def test_nothing_is_sent_again_after_the_deadline(connect: Connect) -> None:
    deadline = Deadline(10, clock=Clock())
    wire = connect(Response(401, ends=deadline), Response(202))
    assert platform(OLD, NEW).restart(restart(), deadline) == Reply(Answer.REFUSED, Failure(Cause.TIMEOUT))
    assert wire.tokens == ["Bearer old"]


def test_a_broken_secret_is_an_error_before_any_request(connect: Connect) -> None:
    wire = connect(Response(202))
    with pytest.raises(SecretError, match="PLATFORM_SECRET_ARN"):
        platform("no object")
    assert wire.sent == []


# --- Retry-After ---


def asked_to_wait(connect: Connect, value: str, status: int = 429) -> float | None:
    connect(Response(status, {"Retry-After": value}))
    return platform().restart(restart(), SOON).retry_after_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("0", 0), ("1", 1), ("120", 120), ("86400", 86_400), ("86401", 86_400), ("9" * 400, 86_400)],
        *[("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400)],
        *[("", None), ("soon", None), ("-5", None), ("1.5", None), ("5, 5", None), ("٣", None), ("²", None)],
        *[("Wed, 21 Oct 2015 07:28:00 -0000", None), ("Wed, 99 Oct 2015 07:28:00 GMT", None)],
        *[("Wed, 21 Oct 2015 07:28:00 +99999999999999", None), ("Wed, 21 Oct 9999999999 07:28:00 GMT", None)],
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_the_platform_may_ask_for_a_wait_of_a_day_at_most(connect: Connect, value: str, seconds: float | None) -> None:
    assert asked_to_wait(connect, value) == seconds


def test_the_platform_may_name_the_moment_to_wait_for(connect: Connect) -> None:
    in_five_minutes = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    assert asked_to_wait(connect, in_five_minutes) == pytest.approx(300, abs=5)


@pytest.mark.parametrize(
    ("status", "wait_s"), [(429, 120), (503, 120), (200, None), (409, None), (500, None), (502, None)]
)
def test_a_platform_that_is_overloaded_may_ask_for_a_wait(connect: Connect, status: int, wait_s: float | None) -> None:
    assert asked_to_wait(connect, "120", status) == wait_s


header_values = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=40)
dates = st.builds(
    "{}, {} Oct {} {}:{}:{} {}".format,
    *[st.sampled_from(["Wed", "", "x"]), st.integers(-1, 40), st.integers(-1, 10**12)],
    *[st.integers(-1, 100), st.integers(-1, 100), st.integers(-1, 10**9)],
    st.sampled_from(["GMT", "", "+0100", "-9999", f"+{'9' * 20}"]),
)


@given(header_values | dates)
def test_any_retry_after_header_is_understood_or_ignored(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restarts_platform, "HttpClient", Wire([Response(429, {"Retry-After": value})]).connect)
        reply = platform().restart(restart(), SOON)
    assert reply.answer is Answer.REFUSED
    assert reply.retry_after_s is None or 0 <= reply.retry_after_s <= 86_400
