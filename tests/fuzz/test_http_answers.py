"""Any bytes as the control plane's or the platform's answer."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.cycle import Parts
from handler.deadline import Deadline
from handler.domain.model import VERDICT_OF_STATE, Verdict, Workspace
from handler.process import Process
from handler.restarts import Answer
from handler.restarts import Reply as RestartReply
from handler.restarts.platform import LONGEST_RETRY_AFTER_SECONDS
from sandbox.http_server import HttpStandIn, Raw, Reply, Request
from tests.fuzz.anything import CANARY, any_json, broken, examples, nearly
from tests.support.stage import recorded

pytestmark = pytest.mark.no_cover  # many times the same lines; the other tests measure coverage

ID = "00000000-0000-4000-8000-000000000001"
INSTANCE = "i-0123456789abcdef0"
# The project's own words. None may be `unexpected_…`, which stands for an error that nobody foresaw.
REASON = re.compile(r"(?!unexpected)[a-z_]+|http_\d{3}")

# Who gave up, while the platform may be at work.
GATEWAYS = {408, *range(501, 600)} - {503}


class Liar(HttpStandIn):
    """Answers everything with the bytes `lie`, and hangs up."""

    lie = b""

    def handle(self, _: Request) -> Reply:
        return Raw(self.lie)


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    with Liar() as liar:
        yield liar


@pytest.fixture(scope="module")
def parts(liar: Liar) -> Iterator[Parts]:
    environment = {
        "PROBE": "control_plane",
        "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z",
        "CP_BASE_URL": liar.url,
        "PLATFORM_BASE_URL": liar.url,
        "AWS_REGION": "eu-central-1",
    }
    with ExitStack() as stack:
        stack.enter_context(patch.dict("os.environ", environment))
        process = Process(environment)
        stack.callback(process.close)
        yield process.parts()


# --- what a server may say ---

states = st.sampled_from([*VERDICT_OF_STATE, "hibernated", "Terminated", ""])
right_bodies = states.map(lambda state: json.dumps({"state": state}).encode())
bodies = st.one_of(
    right_bodies,
    right_bodies,
    right_bodies,
    nearly([{"state": "terminated", "more": {"state": "running"}}], any_json | states).map(
        lambda body: json.dumps(body).encode("utf-8", "surrogatepass")
    ),
    right_bodies.flatmap(lambda body: broken(body, st.binary(max_size=8))),
    st.binary(max_size=200),
    st.sampled_from(
        [b"[" * 30_000, b" " * 70_000 + b'{"state": "terminated"}', b'{"state":"terminated","state":"running"}']
    ),
)
STATUSES = (201, 204, 206, 226, 300, 301, 302, 304, 307, 400, 401, 403, 404, 409, 429, 500, 503)
status_lines = st.one_of(
    st.just(b"HTTP/1.1 200 OK"),
    st.just(b"HTTP/1.1 200 OK"),
    (st.sampled_from(STATUSES) | st.integers(0, 1100)).map(lambda status: f"HTTP/1.1 {status} {CANARY}".encode()),
    st.sampled_from(
        [b"HTTP/1.0 200", b"HTTP/1.1  200", b"HTTP/2 200 OK", b"HTTP/0.9 200 OK", b"200 OK", b"ICY 200 OK"]
    ),
)
headers = st.one_of(
    st.sampled_from(
        [
            b"Content-Encoding: gzip",
            b"Content-Encoding: identity",
            b"Content-Type: text/html; charset=" + CANARY.encode(),
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Content-Length: 3",
            b"Content-Length: -1",
            b"Content-Length: 99999999999999999999",
            b"Connection: upgrade",
            b"Location: http://127.0.0.1:1/" + CANARY.encode(),
            b"Set-Cookie: " + CANARY.encode(),
            b"Retry-After: 86400",
            b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT",
            b"Retry-After: -1",
            b"X: " + b"y" * 70_000,
            b" folded",
            b"no colon",
            b": no name",
            b"",
        ]
    ),
    st.binary(max_size=40).map(lambda value: b"X-Any: " + value),
    st.binary(max_size=20).map(lambda value: b"Retry-After: " + value),
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Return an HTTP answer that is right in most of its parts, and then perhaps broken."""
    body = draw(bodies)
    fields = draw(st.just([]) | st.lists(headers, max_size=2)) + draw(
        st.sampled_from([[], [b"Content-Length: %d" % len(body)]])
    )
    if b"Transfer-Encoding: chunked" in fields and draw(st.booleans()):
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    before = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nX: y\r\n\r\n"]))
    whole = before + b"\r\n".join([draw(status_lines), *fields, b"", b""]) + body
    return draw(broken(whole, st.binary(max_size=8))) if draw(st.integers(0, 3)) == 0 else whole


def status_of(answer: bytes) -> int | None:
    """Return the status at an answer's beginning, after any interim ones."""
    # As http.client reads it: ISO 8859-1, and blanks before it are passed over.
    status = re.match(
        r"(\s*HTTP/\S+\s+1\d\d.*?\r?\n\r?\n)*\s*HTTP/\S+\s+(\d{3})\b", answer.decode("latin-1"), re.DOTALL
    )
    return int(status[2]) if status else None


def states_in(answer: bytes) -> set[str]:
    """Return every state that some reading of an answer may find in a whole JSON object."""
    found = set()
    ends = [match.end() for match in re.finditer(rb"\r?\n", answer)]
    for begin in (0, *ends):
        for end in (len(answer), *(end - 2 for end in ends), *lengths(answer, begin)):
            try:
                body = json.loads(answer[begin:end].decode())
            except (ValueError, RecursionError):
                continue
            if isinstance(body, dict) and isinstance(body.get("state"), str):
                found.add(body["state"])
    return found


def lengths(answer: bytes, begin: int) -> list[int]:
    return [begin + int(length) for length in re.findall(rb"(?i)\nContent-Length:\s*(\d{1,9})", answer)]


@given(answers())
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n" + b'{"state": "terminated"}')
@examples(3)
def test_only_a_clean_answer_is_believed(liar: Liar, parts: Parts, answer: bytes) -> None:
    liar.lie = answer
    workspace = Workspace(ID, INSTANCE, None)
    with recorded() as output:
        (sighting,) = parts.probe(Deadline(10)).sightings([workspace], Deadline(10))
    if sighting.verdict is Verdict.UNKNOWN:
        assert REASON.fullmatch(sighting.reason)
        assert sighting.state == ""
    else:
        assert status_of(answer) in {*range(200, 206), *range(207, 300)}
        assert sighting.state in states_in(answer) & VERDICT_OF_STATE.keys()
    assert CANARY not in sighting.reason + output.getvalue()


@given(states)
def test_a_clean_answer_is_believed(liar: Liar, parts: Parts, state: str) -> None:
    body = json.dumps({"state": state}).encode()
    liar.lie = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    (sighting,) = parts.probe(Deadline(10)).sightings([Workspace(ID, INSTANCE, None)], Deadline(10))
    assert sighting.verdict is VERDICT_OF_STATE.get(state, Verdict.UNKNOWN)


@given(answers())
@example(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
@example(b"HTTP/1.1 103 Early Hints\r\n\r\n")
@example(b"HTTP/1.1 429 x\r\nRetry-After: " + b"9" * 400 + b"\r\n\r\n")
@example(b"HTTP/1.1 429 x\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 -9999999\r\n\r\n")
@examples(3)
def test_only_an_accepted_restart_is_accepted(liar: Liar, parts: Parts, answer: bytes) -> None:
    liar.lie = answer
    assert parts.platform is not None
    with recorded() as output:
        connection = parts.platform(Deadline(10)).connect(Deadline(10))
        assert not isinstance(connection, RestartReply)
        with closing(connection):
            reply = connection.restart(ID, INSTANCE, Deadline(10))
    reason = str(reply.reason)
    assert REASON.fullmatch(reason)
    status = status_of(answer)
    if reply.answer is Answer.ACCEPTED:
        assert status in range(200, 300)
    elif reply.answer is Answer.UNCERTAIN:
        assert not reason.startswith("http_") or (reason == f"http_{status}" and status in GATEWAYS)
    else:
        assert reason == f"http_{status}"
        assert status not in GATEWAYS
        assert (reply.answer is Answer.BLOCKED) == (status == 409)
    if reply.retry_after_s is not None:
        assert status in (429, 503)
        assert 0 <= reply.retry_after_s <= LONGEST_RETRY_AFTER_SECONDS
    assert CANARY not in reason + output.getvalue()
