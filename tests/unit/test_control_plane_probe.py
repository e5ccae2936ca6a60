"""The control plane probe: clean and broken answers, and what they prove."""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from handler.deadline import Deadline
from handler.domain.model import VERDICT_OF_STATE, Cause, Sighting, Verdict, Workspace
from handler.errors import SecretError
from handler.net.bounded import Answer, CallError
from handler.net.secrets import Secrets, Tokens
from handler.probes.control_plane import probe as control_plane_probe
from handler.probes.control_plane.limiter import ConcurrencyLimiter
from handler.probes.control_plane.probe import BODY_LIMIT, ControlPlaneProbe
from handler.settings import Remote
from tests.unit.builders import Clock, instance, uuid, workspace

# Takes the id of the workspace that is asked for, and the headers that were sent.
Behaviour = Callable[[str, Mapping[str, str]], Answer]


def says(body: bytes | str | Mapping[str, Any], status: int = 200) -> Behaviour:
    """Answer every request alike."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return lambda *_: Answer(status, {}, content)


def fails(error: Exception) -> Behaviour:
    def behaviour(*_: Any) -> Answer:
        raise error

    return behaviour


class Wire:
    """Stands in for the HTTP client and the network behind it, for as many connections as are asked for."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls: list[dict[str, Any]] = []
        self.connections: list[int] = []
        self.in_flight = self.most_in_flight = self.closed = 0
        self._lock = threading.Lock()

    def connect(self, *, connections: int, ca_file: str | None = None) -> "Wire":
        assert ca_file is None
        self.connections.append(connections)
        return self

    def get(self, url: str, *, params: Mapping[str, str], headers: Mapping[str, str], **rest: Any) -> Answer:
        sent = requests.Request("GET", url, params=params).prepare().url
        with self._lock:
            self.calls.append({"url": sent, "headers": headers, **rest, "had_s": rest["deadline"].remaining()})
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.behaviour(urlsplit(url).path.split("/")[-2], headers)
            return replace(answer, began_at=rest["deadline"].now())
        finally:
            with self._lock:
                self.in_flight -= 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return a clock that probe and limiter use: nobody really waits."""
    clock = Clock()
    monkeypatch.setattr(control_plane_probe, "time", SimpleNamespace(monotonic=clock))
    limiter = partial(ConcurrencyLimiter, sleep=clock.sleep)
    monkeypatch.setattr(control_plane_probe, "ConcurrencyLimiter", limiter)
    return clock


Connect = Callable[[Behaviour], Wire]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Connect:
    """Return a function that puts a control plane with a behaviour behind the probe."""
    del clock

    def behind(behaviour: Behaviour) -> Wire:
        wire = Wire(behaviour)
        monkeypatch.setattr(control_plane_probe, "HttpClient", wire.connect)
        return wire

    return behind


def tokens_from(*texts: str | Exception, **given_tokens: str) -> Tokens:
    """Return tokens from variables, or from a secret that holds `texts` in turn."""
    to_come = list(texts)

    def fetch(*_: object) -> str:
        text = to_come.pop(0) if len(to_come) > 1 else to_come[0]
        if isinstance(text, Exception):
            raise text
        return text

    fields = ("shared_secret", "admin_token")
    remote = Remote("https://cp.example", "arn" if texts else None, fields, given_tokens)
    return Tokens(remote, "CP_SECRET_ARN", Secrets(fetch, Clock()))


def look(
    clock: Clock,
    workspaces: Sequence[Workspace],
    tokens: Tokens | None = None,
    *,
    concurrency: int = 4,
    timeout_s: float = 10,
    deadline: Deadline | None = None,
) -> list[Sighting]:
    deadline = deadline or Deadline(30, clock=clock)
    tokens = tokens or tokens_from(shared_secret="one")
    asked = ControlPlaneProbe(
        "https://cp.example/api", tokens, deadline, concurrency=concurrency, timeout_s=timeout_s
    ).sightings(workspaces, deadline)
    return sorted(asked, key=lambda one: one.workspace.id)


def some(count: int) -> list[Workspace]:
    return [workspace(number) for number in range(1, count + 1)]


def learnt(sightings: Sequence[Sighting]) -> list[str]:
    return [one.state or one.reason for one in sightings]


# --- what is asked ---


def test_a_check_names_workspace_and_instance(connect: Connect, clock: Clock) -> None:
    wire = connect(says({"state": "running"}))
    look(clock, [workspace(7)], tokens_from(shared_secret="one", admin_token="two"))
    (call,) = wire.calls
    assert call["url"] == f"https://cp.example/api/cp/workspaces/{uuid(7)}/status?instance_id={instance(7)}"
    assert call["headers"]["Authorization"] == "Bearer one"
    assert call["headers"]["X-Molecule-Admin-Token"] == "two"
    assert call["body_limit"] == BODY_LIMIT == 64 * 1024


@pytest.mark.parametrize(
    ("tokens", "sent"),
    [
        pytest.param({}, set(), id="neither"),
        pytest.param({"shared_secret": "one"}, {"Authorization"}, id="the shared secret"),
        pytest.param({"admin_token": "two"}, {"X-Molecule-Admin-Token"}, id="the admin token"),
    ],
)
def test_an_empty_token_sends_no_header(connect: Connect, clock: Clock, tokens: dict[str, str], sent: set[str]) -> None:
    wire = connect(says({"state": "running"}))
    look(clock, some(1), tokens_from(**tokens))
    assert {"Authorization", "X-Molecule-Admin-Token"} & wire.calls[0]["headers"].keys() == sent


@pytest.mark.parametrize("recorded", ["i-1&admin=1", "i-1#x", "../../x", "i 1", "i-é", "i%31"], ids=ascii)
def test_any_recorded_instance_stays_within_its_parameter(connect: Connect, clock: Clock, recorded: str) -> None:
    wire = connect(says({"state": "running"}))
    look(clock, [workspace(1, recorded)])
    parts = urlsplit(wire.calls[0]["url"])
    assert (parts.path, parts.fragment) == (f"/api/cp/workspaces/{uuid(1)}/status", "")
    assert parse_qs(parts.query, strict_parsing=True) == {"instance_id": [recorded]}


def test_a_check_ends_by_its_timeout_and_by_the_deadline(connect: Connect, clock: Clock) -> None:
    wire = connect(says({"state": "running"}))
    look(clock, some(1), timeout_s=10)
    look(clock, some(1), timeout_s=60)
    assert [call["had_s"] for call in wire.calls] == [10, 30]


def test_every_workspace_is_checked_once_a_few_at_a_time(connect: Connect, clock: Clock) -> None:
    wire = connect(says({"state": "running"}))
    sightings = look(clock, some(500), concurrency=4)
    assert [one.workspace.id for one in sightings] == [one.id for one in some(500)]
    assert len(wire.calls) == 500
    assert wire.most_in_flight <= 4
    assert wire.connections == [4]
    assert wire.closed == 1


def test_no_candidates_means_no_calls(connect: Connect, clock: Clock) -> None:
    wire = connect(says({"state": "running"}))
    assert look(clock, []) == []
    assert wire.calls == []


def test_nothing_is_asked_after_the_deadline(connect: Connect, clock: Clock) -> None:
    wire = connect(says({"state": "running"}))
    deadline = Deadline(30, clock=clock)
    deadline.close()
    assert look(clock, some(9), deadline=deadline) == []
    assert wire.calls == []


def test_a_broken_secret_is_an_error_before_any_call(connect: Connect, clock: Clock) -> None:
    wire = connect(says({"state": "running"}))
    with pytest.raises(SecretError, match="CP_SECRET_ARN"):
        look(clock, some(1), tokens_from("no object"))
    assert wire.calls == []


# --- clean answers ---


@pytest.mark.parametrize("status", [200, 201, 299])
@pytest.mark.parametrize("state", VERDICT_OF_STATE)
def test_a_clean_answer_is_believed(connect: Connect, clock: Clock, state: str, status: int) -> None:
    connect(says({"state": state, "more": [1, {"state": "terminated"}]}, status))
    (sighting,) = look(clock, some(1))
    assert (sighting.verdict, sighting.state) == (VERDICT_OF_STATE[state], state)


def test_a_sighting_tells_how_long_it_took(connect: Connect, clock: Clock) -> None:
    def slow(*_: Any) -> Answer:
        clock.sleep(3)
        return Answer(200, {}, b'{"state": "running"}')

    connect(slow)
    assert [one.took_s for one in look(clock, some(1))] == [3]


@pytest.mark.parametrize("age", [None, "0", "00"])
def test_an_answer_of_now_about_the_instance_is_believed(connect: Connect, clock: Clock, age: str | None) -> None:
    body = json.dumps({"state": "terminated", "instance_id": instance(1)}).encode()
    wire = connect(lambda *_: Answer(200, {} if age is None else {"Age": age}, body))
    (sighting,) = look(clock, some(1))
    assert sighting.verdict is Verdict.DEAD
    assert wire.calls[0]["headers"]["Cache-Control"] == "no-cache"


# --- no answer ---


@pytest.mark.parametrize("age", ["1", "540", "0, 540", "-1", "0.5", "", "a day"])
def test_an_answer_from_a_cache_is_none(connect: Connect, clock: Clock, age: str) -> None:
    connect(lambda *_: Answer(200, {"Age": age}, b'{"state": "terminated"}'))
    assert learnt(look(clock, some(1))) == ["cached"]


@pytest.mark.parametrize("status", [100, 199, 300, 301, 302, 304, 307, 400, 403, 404, 429, 500, 502, 503, 599])
def test_any_other_status_is_no_answer(connect: Connect, clock: Clock, status: int) -> None:
    connect(says({"state": "terminated"}, status))
    assert learnt(look(clock, some(1))) == [f"http_{status}"]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        pytest.param("", "not_json", id="nothing"),
        pytest.param("terminated", "not_json", id="a bare word"),
        pytest.param('{"state": "terminated"', "not_json", id="half an object"),
        pytest.param('{"state": "terminated"} x', "not_json", id="more than an object"),
        pytest.param('{"state": "running", "state": "terminated"}', "not_json", id="two states"),
        pytest.param('{"state": "terminated", "a": {"b": 1, "b": 2}}', "not_json", id="another key twice"),
        pytest.param('\ufeff{"state": "terminated"}', "not_json", id="a byte-order mark"),
        pytest.param('{"state": "terminated"}'.encode("utf-16"), "not_json", id="UTF-16"),
        pytest.param(b'{"state": "terminated", "x": "\xff"}', "not_json", id="not UTF-8"),
        pytest.param(b"\x1f\x8b\x08", "not_json", id="compressed"),
        pytest.param("[" * 60_000, "not_json", id="a very deep list"),
        pytest.param('{"state": ' + "1" * 60_000 + "}", "not_json", id="a very long number"),
        pytest.param('{"state": "terminated", "load": NaN}', "not_json", id="a number that is none"),
        pytest.param('{"state": "terminated", "load": -Infinity}', "not_json", id="a number without end"),
        pytest.param("null", "no_state", id="null"),
        pytest.param('"terminated"', "no_state", id="a string"),
        pytest.param('["state", "terminated"]', "no_state", id="a list"),
        pytest.param("{}", "no_state", id="an empty object"),
        pytest.param('{"State": "terminated"}', "no_state", id="another key"),
        pytest.param('{"data": {"state": "terminated"}}', "no_state", id="a state further in"),
        pytest.param('{"state": null}', "no_state", id="a state of null"),
        pytest.param('{"state": 48}', "no_state", id="a state's number"),
        pytest.param('{"state": ["terminated"]}', "no_state", id="a list of states"),
        pytest.param('{"state": {"name": "terminated"}}', "no_state", id="EC2's own form"),
        pytest.param('{"state": ""}', "unrecognised_state", id="an empty state"),
        pytest.param('{"state": "Terminated"}', "unrecognised_state", id="a capital"),
        pytest.param('{"state": "terminated\\n"}', "unrecognised_state", id="a line break"),
        pytest.param('{"state": "\\ud800"}', "unrecognised_state", id="half a character"),
        *(
            pytest.param(f'{{"state": "terminated", "instance_id": {other}}}', "other_instance", id=f"about {other}")
            for other in (f'"{instance(2)}"', '""', "null", "1", "[]")
        ),
    ],
)
def test_a_broken_body_is_no_answer(connect: Connect, clock: Clock, body: str | bytes, cause: str) -> None:
    connect(says(body))
    assert learnt(look(clock, some(1))) == [cause]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(list(VERDICT_OF_STATE)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("state") | st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.binary() | st.text().map(str.encode) | values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"a":' * 20_000)
@example(b'{"state": 1e999999}')
@example(b'{"state": ' + b"9" * 5000 + b"}")
def test_any_body_is_a_word_or_no_answer(body: bytes) -> None:
    # The whole probe would start a thread for each example.
    state: object = None
    with contextlib.suppress(control_plane_probe._NoAnswerError):  # noqa: SLF001
        state = control_plane_probe._parsed(body, instance(1))  # noqa: SLF001
    if state is not None:
        assert isinstance(state, str)
        assert json.loads(body)["state"] == state


@pytest.mark.parametrize(
    "cause",
    [
        *(Cause.CONNECTION_REFUSED, Cause.NAME_LOOKUP_FAILED, Cause.TLS_FAILED),
        *(Cause.OVERSIZE, Cause.BROKEN_CONNECTION),
    ],
)
def test_a_failed_call_is_no_answer(connect: Connect, clock: Clock, cause: Cause) -> None:
    connect(fails(CallError(cause, sent=False)))
    assert learnt(look(clock, some(3))) == [cause] * 3


def test_an_unexpected_error_costs_only_its_own_check(connect: Connect, clock: Clock) -> None:
    def surprise(asked: str, _: object) -> Answer:
        if asked == uuid(2):
            raise RuntimeError("s3cret")
        return Answer(200, {}, b'{"state": "stopped"}')

    connect(surprise)
    assert learnt(look(clock, some(3))) == ["stopped", "unexpected_RuntimeError", "stopped"]


@pytest.mark.parametrize(
    ("took_s", "expected"),
    [
        pytest.param(10, ["timeout"], id="as long as a check may take"),
        pytest.param(9.6, ["timeout"], id="a little less, as clocks differ"),
        pytest.param(9, [], id="less"),
        pytest.param(0, [], id="no time at all"),
    ],
)
def test_a_check_that_was_cut_off_counts_if_it_had_its_time(
    connect: Connect, clock: Clock, took_s: float, expected: list[str]
) -> None:
    def hang(*_: Any) -> Answer:
        clock.sleep(took_s)
        raise CallError(Cause.TIMEOUT, sent=True)

    connect(hang)
    assert learnt(look(clock, some(1), concurrency=1)) == expected


def test_half_of_a_short_deadline_is_enough_time(connect: Connect, clock: Clock) -> None:
    def hang(*_: Any) -> Answer:
        clock.sleep(8)
        raise CallError(Cause.TIMEOUT, sent=True)

    connect(hang)
    assert learnt(look(clock, some(1), deadline=Deadline(16, clock=clock))) == ["timeout"]


# --- rotated tokens ---

OLD, NEW = '{"shared_secret": "old"}', '{"shared_secret": "new"}'


def takes(token: str, status: int = 401) -> Behaviour:
    """Answer requests with this token, and refuse all others."""

    def behaviour(_: str, headers: Mapping[str, str]) -> Answer:
        if headers.get("Authorization") == f"Bearer {token}":
            return Answer(200, {}, b'{"state": "running"}')
        return Answer(status, {}, b'{"state": "terminated"}')

    return behaviour


@pytest.mark.parametrize("status", [401, 403])
def test_refused_tokens_are_fetched_anew(connect: Connect, clock: Clock, status: int) -> None:
    wire = connect(takes("new", status))
    assert learnt(look(clock, some(50), tokens_from(OLD, NEW))) == ["running"] * 50
    refused = sum(call["headers"]["Authorization"] == "Bearer old" for call in wire.calls)
    assert 1 <= refused <= 4


def test_tokens_are_fetched_anew_once_in_a_cycle(connect: Connect, clock: Clock) -> None:
    wire = connect(takes("never"))
    later = '{"shared_secret": "never"}'
    assert learnt(look(clock, some(5), tokens_from(OLD, NEW, later), concurrency=1)) == ["http_401"] * 5
    assert len(wire.calls) == 6


def test_unchanged_tokens_are_not_tried_again(connect: Connect, clock: Clock) -> None:
    wire = connect(takes("never"))
    assert learnt(look(clock, some(3), tokens_from(OLD))) == ["http_401"] * 3
    assert len(wire.calls) == 3


def test_a_failed_fetch_of_tokens_leaves_the_refusal(connect: Connect, clock: Clock) -> None:
    connect(takes("new"))
    failure = CallError(Cause.TIMEOUT, sent=True)
    assert learnt(look(clock, some(3), tokens_from(OLD, failure))) == ["http_401"] * 3


# --- an overloaded control plane ---


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        *[
            pytest.param(says("", status), f"http_{status}", id=f"HTTP {status}")
            for status in (429, 500, 502, 503, 599)
        ],
        pytest.param(fails(CallError(Cause.BROKEN_CONNECTION, sent=True)), "broken_connection", id="hangs up"),
        pytest.param(fails(CallError(Cause.CONNECTION_REFUSED, sent=False)), "connection_refused", id="refuses"),
    ],
)
def test_an_overloaded_control_plane_gets_fewer_checks_at_once(
    connect: Connect, clock: Clock, behaviour: Behaviour, cause: str
) -> None:
    connect(behaviour)
    sightings = look(clock, some(500), concurrency=16)
    assert Counter(learnt(sightings)) == {cause: 500}
    assert {one.verdict for one in sightings} == {Verdict.UNKNOWN}
    assert len(clock.slept) > 400


def test_a_hanging_control_plane_gets_fewer_checks_at_once(connect: Connect, clock: Clock) -> None:
    def hang(*_: Any) -> Answer:
        clock.sleep(10)
        raise CallError(Cause.TIMEOUT, sent=True)

    connect(hang)
    sightings = look(clock, some(100), concurrency=8, deadline=Deadline(10_000, clock=clock))
    assert learnt(sightings) == ["timeout"] * 100
    assert len(clock.slept) > 100 + 60


@pytest.mark.parametrize(
    "behaviour",
    [
        *[pytest.param(says("", status), id=f"HTTP {status}") for status in (301, 400, 401, 404, 410)],
        pytest.param(says("<html>"), id="no JSON"),
        pytest.param(says({}), id="no state"),
        pytest.param(says({"state": "hovering"}), id="a word that EC2 does not have"),
        pytest.param(fails(CallError(Cause.OVERSIZE, sent=True)), id="too much"),
    ],
)
def test_useless_but_prompt_answers_slow_nothing_down(connect: Connect, clock: Clock, behaviour: Behaviour) -> None:
    knows = {uuid(number) for number in range(1, 501, 10)}
    good = says({"state": "running"})
    connect(lambda asked, headers: (good if asked in knows else behaviour)(asked, headers))
    states = Counter(one.verdict for one in look(clock, some(500), concurrency=16))
    assert states == {Verdict.RUNNING: 50, Verdict.UNKNOWN: 450}
    assert clock.slept == []


def test_no_worker_waits_once_everybody_was_asked(connect: Connect, clock: Clock) -> None:
    connect(says("", 503))
    look(clock, some(64 + 32 + 16 + 8 + 4 + 2 + 4), concurrency=64)
    assert len(clock.slept) < 20


def test_a_sighting_is_as_old_as_its_own_answer(connect: Connect, clock: Clock) -> None:
    def slow(*_: Any) -> Answer:
        clock.sleep(2.0)
        return Answer(200, {}, b'{"state": "stopped"}')

    connect(slow)
    seen = look(clock, some(3), concurrency=1)
    assert [one.answered_at for one in seen] == [1002.0, 1004.0, 1006.0]
    assert {one.target for one in seen} == {"control_plane"}
