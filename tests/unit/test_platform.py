"""What is asked of the platform, and what its answers mean for a debt."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.deadline import Deadline
from handler.domain.backoff import retry_backoff
from handler.errors import SecretError
from handler.net.bounded import CallError
from handler.net.secrets import Secrets, Tokens
from handler.restarts import Answer, Reply, platform
from handler.restarts.platform import HttpPlatform
from handler.settings import Remote
from tests.unit.builders import Clock, debt, instance, uuid

SOON = Deadline(10, clock=Clock())


@dataclass
class Response:
    """An answer of which nobody may read the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    ends: Deadline | None = None  # the time that is over with this answer
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class Wire:
    """Stands in for the network: gives the answers in turn, the last one for ever, and notes what was sent."""

    answers: list[Response | CallError]
    sent: list[dict[str, Any]] = field(default_factory=list)
    closed: int = 0

    def open(self, method: str, url: str, *, deadline: Deadline, **rest: Any) -> Response:
        if deadline.over():
            raise CallError("timeout", sent=False)
        self.sent.append({"method": method, "url": url, "deadline": deadline, **rest})
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, CallError):
            raise answer
        if answer.ends is not None:
            answer.ends.close()
        return answer

    def close(self) -> None:
        self.closed += 1

    @property
    def tokens(self) -> list[str | None]:
        return [one["headers"].get("Authorization") for one in self.sent]


Connect = Callable[..., Wire]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Put a wire with these answers between the client and the platform."""

    def between(*answers: Response | CallError) -> Wire:
        wire = Wire(list(answers))
        monkeypatch.setattr(platform, "Transport", lambda **_: wire)
        return wire

    return between


class Vault:
    """A secret that is rotated once after it was first read."""

    def __init__(self, *texts: str | Exception) -> None:
        self.texts = list(texts)

    def fetch(self, arn: str, deadline: Deadline) -> str:
        del arn, deadline
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        if isinstance(text, Exception):
            raise text
        return text


def platform(*texts: str | Exception, token: str | None = "t", org_id: str | None = None) -> HttpPlatform:
    """Return a platform whose token stands in a variable, or in a secret that says `texts` in turn."""
    remote = Remote("https://platform.example", "arn" if texts else None, ("token",), {"token": token} if token else {})
    tokens = Tokens(remote, "PLATFORM_SECRET_ARN", Secrets(Vault(*texts or ("{}",)).fetch, Clock()))
    return HttpPlatform(remote.base_url, org_id, tokens, SOON)


# --- what is asked ---


def test_a_restart_is_asked_for_by_the_workspaces_id_and_says_which_instance_is_meant(connect: Connect) -> None:
    wire = connect(Response(200))
    platform(org_id="org-1").restart(debt(7), SOON)
    (sent,) = wire.sent
    assert (sent["method"], sent["url"]) == ("POST", f"https://platform.example/workspaces/{uuid(7)}/restart")
    assert json.loads(sent["body"]) == {"expected_instance_id": instance(7)}
    assert sent["headers"]["Authorization"] == "Bearer t"
    assert sent["headers"]["X-Molecule-Org-Id"] == "org-1"
    assert sent["headers"]["Content-Type"] == "application/json"
    assert sent["deadline"] is SOON


def test_a_header_whose_value_is_empty_is_left_out(connect: Connect) -> None:
    wire = connect(Response(200))
    platform(token=None).restart(debt(), SOON)
    assert not {"Authorization", "X-Molecule-Org-Id"} & wire.sent[0]["headers"].keys()


def test_the_answer_is_closed_unread_and_so_is_the_connection(connect: Connect) -> None:
    response = Response(200)
    wire = connect(response)
    platform().restart(debt(), SOON)
    assert response.closed
    assert wire.closed == 1


def test_the_connection_is_closed_though_no_answer_came(connect: Connect) -> None:
    wire = connect(CallError("timeout", sent=True))
    platform().restart(debt(), SOON)
    assert wire.closed == 1


# --- what the answers mean ---


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        *((status, Answer.ACCEPTED) for status in (200, 201, 202, 204, 299)),
        *((status, Answer.REFUSED) for status in (101, 300, 301, 302, 303, 304, 307, 308)),
        *((status, Answer.REFUSED) for status in (400, 401, 403, 404, 408, 410, 422, 429, 500, 502, 503, 504, 599)),
        (409, Answer.BLOCKED),
    ],
)
def test_a_status_settles_a_debt_blocks_it_or_refuses(connect: Connect, status: int, answer: Answer) -> None:
    connect(Response(status))
    assert platform().restart(debt(), SOON) == Reply(answer, f"http_{status}")


@pytest.mark.parametrize("cause", ["connection_refused", "name_lookup_failed", "tls_failed", "timeout"])
def test_a_request_that_never_left_is_a_refusal(connect: Connect, cause: str) -> None:
    connect(CallError(cause, sent=False))
    assert platform().restart(debt(), SOON) == Reply(Answer.REFUSED, cause)


@pytest.mark.parametrize("cause", ["timeout", "broken_connection"])
def test_a_request_that_left_and_got_no_answer_is_uncertain(connect: Connect, cause: str) -> None:
    connect(CallError(cause, sent=True))
    assert platform().restart(debt(), SOON) == Reply(Answer.UNCERTAIN, cause)


# --- a token that was rotated ---

OLD, NEW = '{"token": "old"}', '{"token": "new"}'


def test_a_token_that_is_refused_is_fetched_anew_once_and_kept(connect: Connect) -> None:
    wire = connect(Response(401), Response(202))
    renewed = platform(OLD, NEW)
    assert renewed.restart(debt(1), SOON).answer is Answer.ACCEPTED
    assert renewed.restart(debt(2), SOON).answer is Answer.ACCEPTED
    assert wire.tokens == ["Bearer old", "Bearer new", "Bearer new"]


def test_a_token_that_is_still_the_same_is_not_tried_again(connect: Connect) -> None:
    wire = connect(Response(401))
    assert platform(OLD).restart(debt(), SOON) == Reply(Answer.REFUSED, "http_401")
    assert wire.tokens == ["Bearer old"]


def test_a_new_token_that_is_refused_too_is_a_refusal(connect: Connect) -> None:
    wire = connect(Response(401))
    assert platform(OLD, NEW).restart(debt(), SOON) == Reply(Answer.REFUSED, "http_401")
    assert wire.tokens == ["Bearer old", "Bearer new"]


def test_a_refused_token_that_cannot_be_fetched_anew_is_a_refusal(connect: Connect) -> None:
    connect(Response(401))
    trouble = CallError("timeout", sent=True)
    assert platform(OLD, trouble).restart(debt(), SOON) == Reply(Answer.REFUSED, "http_401")


def test_nothing_is_asked_a_second_time_when_the_time_is_over(connect: Connect) -> None:
    deadline = Deadline(10, clock=Clock())
    wire = connect(Response(401, ends=deadline), Response(202))
    assert platform(OLD, NEW).restart(debt(), deadline) == Reply(Answer.REFUSED, "timeout")
    assert wire.tokens == ["Bearer old"]


def test_no_token_to_begin_with_is_an_error_before_anything_is_asked(connect: Connect) -> None:
    wire = connect(Response(202))
    with pytest.raises(SecretError, match="PLATFORM_SECRET_ARN"):
        platform("no object")
    assert wire.sent == []


# --- how long to wait ---


def asked_to_wait(connect: Connect, value: str, status: int = 429) -> float | None:
    connect(Response(status, {"Retry-After": value}))
    return platform().restart(debt(), SOON).retry_after_s


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
def test_the_platform_may_ask_to_wait_for_a_day_at_most(connect: Connect, value: str, seconds: float | None) -> None:
    assert asked_to_wait(connect, value) == seconds


def test_the_platform_may_name_the_moment_to_wait_for(connect: Connect) -> None:
    in_five_minutes = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    assert asked_to_wait(connect, in_five_minutes) == pytest.approx(300, abs=5)


@pytest.mark.parametrize("status", [200, 409, 500, 503])
def test_only_who_says_that_it_is_asked_too_often_is_listened_to(connect: Connect, status: int) -> None:
    assert asked_to_wait(connect, "120", status) is None


header_values = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=40)
dates = st.builds(
    "{}, {} Oct {} {}:{}:{} {}".format,
    *[st.sampled_from(["Wed", "", "x"]), st.integers(-1, 40), st.integers(-1, 10**12)],
    *[st.integers(-1, 100), st.integers(-1, 100), st.integers(-1, 10**9)],
    st.sampled_from(["GMT", "", "+0100", "-9999", f"+{'9' * 20}"]),
)


@given(header_values | dates)
def test_whatever_else_the_platform_says_about_waiting_is_survived(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "Transport", lambda **_: Wire([Response(429, {"Retry-After": value})]))
        reply = platform().restart(debt(), SOON)
    assert reply.answer is Answer.REFUSED
    assert reply.retry_after_s is None or 0 <= reply.retry_after_s <= 86_400


@pytest.mark.parametrize(
    ("refusals", "retry_s", "expected_s"),
    [
        *[(0, 60, 60), (1, 60, 120), (2, 60, 240), (3, 60, 480), (4, 60, 900), (5, 60, 900), (10_000, 60, 900)],
        *[(0, 0, 0), (9, 0, 0), (0, 900, 900), (0, 3600, 3600), (5, 3600, 3600)],
    ],
)
def test_the_pause_doubles_with_each_refusal_up_to_fifteen_minutes_or_the_setting(
    refusals: int, retry_s: float, expected_s: float
) -> None:
    assert retry_backoff(refusals, retry_s) == expected_s
