"""The HTTP client of the platform: its requests, and what the answers mean for a restart."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
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
from tests.unit.builders import Clock, instance, uuid

SOON = Deadline(10, clock=Clock())


def http(status: int) -> Failure:
    return Failure(Cause.HTTP_STATUS, str(status))


@dataclass
class Response:
    """An answer without its body, which nobody may read."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    takes: Callable[[], object] = lambda: None  # what happens meanwhile


@dataclass
class Wire:
    """Stands in for the HTTP client: gives the answers in turn, the last one for ever, and records what is sent."""

    answers: list[Response | CallError]
    refusals: list[CallError | None] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    closed: int = 0

    def client(self, *, connections: int, ca_file: str | None = None) -> "Wire":
        assert ca_file is None
        self.connections.append(connections)
        return self

    def connect(self, url: str, deadline: Deadline) -> None:
        if deadline.over():
            raise CallError(Cause.TIMEOUT, sent=False)
        self.connected.append(url)
        if self.refusals and (refusal := self.refusals.pop(0)) is not None:
            raise refusal

    def post(
        self, url: str, *, json: Mapping[str, Any], headers: Mapping[str, str], deadline: Deadline, connected: bool
    ) -> HttpAnswer:
        assert connected
        assert len(self.connected) == len(self.sent) + 1, "it was not connected before"
        if deadline.over():
            raise CallError(Cause.TIMEOUT, sent=False)
        prepared = requests.Request("POST", url, json=json, headers=dict(headers)).prepare()
        self.sent.append(
            {"url": prepared.url, "headers": prepared.headers, "body": prepared.body, "deadline": deadline}
        )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, CallError):
            raise answer
        answer.takes()
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
        monkeypatch.setattr(restarts_platform, "HttpClient", wire.client)
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


def ask(asked: HttpPlatform, number: int = 1, deadline: Deadline = SOON, not_after: float = math.inf) -> Reply:
    """Connect, and ask for a restart."""
    connection = asked.connect(deadline)
    if isinstance(connection, Reply):
        return connection
    with closing(connection):
        return connection.restart(uuid(number), instance(number), deadline, not_after=not_after)


# --- the request ---


def test_a_request_names_workspace_and_instance(connect: Connect) -> None:
    wire = connect(Response(200))
    ask(platform(org_id="org-1"), 7)
    (sent,) = wire.sent
    assert sent["url"] == f"https://platform.example/workspaces/{uuid(7)}/restart"
    assert json.loads(sent["body"]) == {"expected_instance_id": instance(7)}
    assert sent["headers"]["Authorization"] == "Bearer t"
    assert sent["headers"]["X-Molecule-Org-Id"] == "org-1"
    assert sent["headers"]["Content-Type"] == "application/json"
    assert sent["deadline"] is SOON


def test_an_empty_value_sends_no_header(connect: Connect) -> None:
    wire = connect(Response(200))
    ask(platform(token=None))
    assert not {"Authorization", "X-Molecule-Org-Id"} & wire.sent[0]["headers"].keys()


def test_each_restart_has_a_connection_of_its_own(connect: Connect) -> None:
    wire = connect(Response(200))
    asked = platform()
    for number in (1, 2):
        ask(asked, number)
    assert wire.connections == [1, 1]
    assert [one["headers"]["Connection"] for one in wire.sent] == ["close", "close"]
    assert wire.closed == 2


def test_the_connection_is_closed_if_no_answer_comes(connect: Connect) -> None:
    wire = connect(CallError(Cause.TIMEOUT, sent=True))
    ask(platform())
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
    assert ask(platform()) == Reply(answer, http(status))


@pytest.mark.parametrize("cause", [Cause.CONNECTION_REFUSED, Cause.NAME_LOOKUP_FAILED, Cause.TLS_FAILED, Cause.TIMEOUT])
def test_a_request_that_never_left_is_refused(connect: Connect, cause: Cause) -> None:
    connect(CallError(cause, sent=False))
    assert ask(platform()) == Reply(Answer.REFUSED, Failure(cause))


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.BROKEN_CONNECTION])
def test_a_request_without_an_answer_is_uncertain(connect: Connect, cause: Cause) -> None:
    connect(CallError(cause, sent=True))
    assert ask(platform()) == Reply(Answer.UNCERTAIN, Failure(cause))


# --- the connection ---


def test_the_connection_is_there_before_anything_is_asked_for(connect: Connect) -> None:
    wire = connect(Response(200))
    connection = platform().connect(SOON)
    assert not isinstance(connection, Reply)
    assert (wire.connected, wire.sent) == (["https://platform.example"], [])
    connection.close()
    assert (wire.sent, wire.closed) == ([], 1)


@pytest.mark.parametrize("cause", [Cause.CONNECTION_REFUSED, Cause.NAME_LOOKUP_FAILED, Cause.TLS_FAILED, Cause.TIMEOUT])
def test_a_failure_to_connect_is_a_refusal_and_leaves_nothing_open(connect: Connect, cause: Cause) -> None:
    wire = connect(Response(200))
    wire.refusals = [CallError(cause, sent=False)]
    assert platform().connect(SOON) == Reply(Answer.REFUSED, Failure(cause))
    assert (wire.sent, wire.closed) == ([], 1)


def test_nothing_is_sent_on_expired_evidence(connect: Connect) -> None:
    wire = connect(Response(200))
    assert ask(platform(), not_after=999.0) == Reply(Answer.REFUSED, Failure(Cause.OUT_OF_TIME))
    assert wire.sent == []


# --- a rotated token ---

OLD, NEW = '{"token": "old"}', '{"token": "new"}'


def test_a_refused_token_is_fetched_anew_once(connect: Connect) -> None:
    wire = connect(Response(401), Response(202))
    renewed = platform(OLD, NEW)
    assert ask(renewed, 1).answer is Answer.ACCEPTED
    assert ask(renewed, 2).answer is Answer.ACCEPTED
    assert wire.tokens == ["Bearer old", "Bearer new", "Bearer new"]


def test_a_new_token_is_tried_on_a_connection_of_its_own(connect: Connect) -> None:
    wire = connect(Response(401), Response(202))
    ask(platform(OLD, NEW))
    assert (wire.connections, len(wire.connected), wire.closed) == ([1, 1], 2, 2)


def test_a_new_token_without_a_connection_is_a_refusal(connect: Connect) -> None:
    wire = connect(Response(401), Response(202))
    wire.refusals = [None, CallError(Cause.CONNECTION_REFUSED, sent=False)]
    assert ask(platform(OLD, NEW)) == Reply(Answer.REFUSED, Failure(Cause.CONNECTION_REFUSED))
    assert (wire.tokens, wire.closed) == (["Bearer old"], 2)


def test_a_new_token_is_not_tried_on_expired_evidence(connect: Connect) -> None:
    """The platform took its time to refuse the old one, and the instance may be up again. The next call uses it."""
    clock = Clock()
    wire = connect(Response(401, takes=lambda: clock.sleep(6.0)), Response(202))
    renewed, deadline = platform(OLD, NEW), Deadline(10, clock=clock)
    assert ask(renewed, deadline=deadline, not_after=1005.0) == Reply(Answer.REFUSED, http(401))
    assert ask(renewed, deadline=deadline).answer is Answer.ACCEPTED
    assert wire.tokens == ["Bearer old", "Bearer new"]


def test_an_unchanged_token_is_not_tried_again(connect: Connect) -> None:
    wire = connect(Response(401))
    assert ask(platform(OLD)) == Reply(Answer.REFUSED, http(401))
    assert wire.tokens == ["Bearer old"]


def test_a_new_token_that_is_refused_too_is_a_refusal(connect: Connect) -> None:
    wire = connect(Response(401))
    assert ask(platform(OLD, NEW)) == Reply(Answer.REFUSED, http(401))
    assert wire.tokens == ["Bearer old", "Bearer new"]


def test_a_failed_fetch_of_the_token_leaves_the_refusal(connect: Connect) -> None:
    connect(Response(401))
    failure = CallError(Cause.TIMEOUT, sent=True)
    assert ask(platform(OLD, failure)) == Reply(Answer.REFUSED, http(401))


def test_nothing_is_sent_again_after_the_deadline(connect: Connect) -> None:
    deadline = Deadline(10, clock=Clock())
    wire = connect(Response(401, takes=deadline.close), Response(202))
    assert ask(platform(OLD, NEW), deadline=deadline) == Reply(Answer.REFUSED, http(401))
    assert wire.tokens == ["Bearer old"]


def test_a_broken_secret_is_an_error_before_any_request(connect: Connect) -> None:
    wire = connect(Response(202))
    with pytest.raises(SecretError, match="PLATFORM_SECRET_ARN"):
        platform("no object")
    assert wire.sent == []


# --- Retry-After ---


def asked_to_wait(connect: Connect, value: str, status: int = 429) -> float | None:
    connect(Response(status, {"Retry-After": value}))
    return ask(platform()).retry_after_s


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
        patch.setattr(restarts_platform, "HttpClient", Wire([Response(429, {"Retry-After": value})]).client)
        reply = ask(platform())
    assert reply.answer is Answer.REFUSED
    assert reply.retry_after_s is None or 0 <= reply.retry_after_s <= 86_400
