"""The control plane as the source of truth: which answers are usable, how it is asked, and how it may fail."""

import gzip
import json
import resource
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest

from handler.errors import SecretError
from handler.settings import MOST_CHECKS_AT_ONCE
from sandbox.control_plane import state_answer
from sandbox.ec2 import MotoEc2
from sandbox.http_server import Answer, Drip, Hang, HttpStandIn, Raw, Reply, Request, Reset, drip_body, drip_headers
from tests.support.events import APPLY
from tests.support.stage import Outcome, Stage, Stages, from_question

STOPPED = b'{"state": "stopped"}'
BODY_LIMIT = 64 * 1024
TIMEOUT_S = 2.0
LATE_S = TIMEOUT_S + 0.5
# What must not get into a log.
FOREIGN = "foreign-words"

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(STOPPED)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def value(state: object) -> Answer:
    return Answer(body=json.dumps({"state": state}).encode())


def padded(size: int) -> bytes:
    return STOPPED + b" " * (size - len(STOPPED))


# Believing one of these would mean that a running instance has stopped.
STATUSES: Mapping[str, Reply] = {
    "100 and then nothing": Raw(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "204": Answer(204, STOPPED),
    "205 without a body": Answer(205),
    "206 with a part of it": Answer(206, STOPPED[:-1], {"Content-Range": "bytes 0-18/20"}),
    "206 with what looks whole": Answer(206, STOPPED, {"Content-Range": "bytes 0-19/40"}),
    "300": Answer(300, STOPPED),
    "302 to nowhere": Answer(302, STOPPED),
    "304": Answer(304, STOPPED),
    "400": Answer(400, STOPPED),
    "401": Answer(401, STOPPED),
    "403": Answer(403, STOPPED),
    "404": Answer(404, STOPPED),
    "429": Answer(429, STOPPED, {"Retry-After": "0"}),
    "500": Answer(500, STOPPED, {"X-Debug": FOREIGN}),
    "502 with a page": Answer(502, f"<html>{FOREIGN}</html>".encode(), {"Content-Type": "text/html"}),
    "503": Answer(503, STOPPED, {"Retry-After": "0"}),
    "504": Answer(504, STOPPED),
    "a status that is no number": Raw(b"HTTP/1.1 OK OK\r\n" + LENGTH + b"\r\n" + STOPPED),
    "a status of four digits": Raw(b"HTTP/1.1 2000 OK\r\n" + LENGTH + b"\r\n" + STOPPED),
    "a status of its own with words": Raw(f"HTTP/1.1 599 {FOREIGN}\r\n\r\n".encode()),
}
BODIES: Mapping[str, Reply] = {
    "nothing": Answer(),
    "blanks": Answer(body=b" \r\n"),
    "a page": Answer(body=b"<html>stopped</html>", headers={"Content-Type": "text/html"}),
    "a bare word": Answer(body=b"stopped"),
    "JSON that ends too soon": Answer(body=STOPPED[:-1]),
    "JSON and more": Answer(body=STOPPED + b"}"),
    "two documents": Answer(body=STOPPED + b"\n" + STOPPED),
    "JSON behind a guard": Answer(body=b")]}',\n" + STOPPED),
    "JSON and a NUL": Answer(body=STOPPED + b"\0"),
    "single quotes": Answer(body=b"{'state': 'stopped'}"),
    "a comma too many": Answer(body=b'{"state": "stopped",}'),
    "a comment": Answer(body=b'{"state": "stopped"} // at last'),
    "a line break in a string": Answer(body=b'{"state": "stopped", "note": "two\nlines"}'),
    "NaN": Answer(body=b'{"state": "stopped", "load": NaN}'),
    "Infinity": Answer(body=b'{"state": "stopped", "load": -Infinity}'),
    "a key twice, both ways": Answer(body=b'{"state": "running", "state": "stopped"}'),
    "a key twice, within": Answer(body=b'{"state": "stopped", "instance": {"id": 1, "id": 2}}'),
    "a byte order mark": Answer(body=b"\xef\xbb\xbf" + STOPPED),
    "UTF-16": Answer(body=STOPPED.decode().encode("utf-16")),
    "UTF-32": Answer(body=STOPPED.decode().encode("utf-32-be")),
    "bytes that are no UTF-8": Answer(body=b'{"state": "stopped", "name": "caf\xe9"}'),
    "gzip": Answer(body=gzip.compress(STOPPED), headers={"Content-Encoding": "gzip"}),
    "gzip that is only declared": Answer(body=STOPPED, headers={"Content-Encoding": "gzip"}),
    "gzip that is not declared": Answer(body=gzip.compress(STOPPED)),
    "a bomb of lists": Answer(body=b"[" * (BODY_LIMIT - 1)),
    "a bomb beside the state": Answer(body=b'{"state": "stopped", "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    "a bomb of objects": Answer(body=b'{"state": ' * 6_000 + b"1" + b"}" * 6_000),
    "a number of too many digits": Answer(body=b'{"state": "stopped", "pid": ' + b"9" * 60_000 + b"}"),
    "null": Answer(body=b"null"),
    "a string": Answer(body=b'"stopped"'),
    "a list of words": Answer(body=b'["stopped"]'),
    "a list of answers": Answer(body=b"[" + STOPPED + b"]"),
    "an object without a state": Answer(body=b"{}"),
    "another key": Answer(body=b'{"status": "stopped"}'),
    "a key in capitals": Answer(body=b'{"State": "stopped"}'),
    "a key with a blank": Answer(body=b'{"state ": "stopped"}'),
    "a state further within": Answer(body=b'{"instance": {"state": "stopped"}}'),
    "the state null": value(None),
    "the state a number": value(80),
    "the state a boolean": value(state=True),
    "the state a list": value(["stopped"]),
    "the state an object": value({"name": "stopped", "code": 80}),
    "the state empty": value(""),
    "the state in capitals": value("STOPPED"),
    "the state with a capital": value("Stopped"),
    "the state after a blank": value(" stopped"),
    "the state before a blank": value("stopped "),
    "the state before a line break": value("stopped\n"),
    "the state before a NUL": value("stopped\0"),
    "the state in other letters": value("st\u043epped"),
    "the state with a lone surrogate": value("stopped\udc00"),
    "a word that is not EC2's": value("dead"),
    "two states in one": value("stopped,terminated"),
    "not found in other words": value("not found"),
    "words of its own": value(FOREIGN),
}
TRANSFERS: Mapping[str, Reply] = {
    "no HTTP": Raw(b"stopped\r\n\r\n"),
    "another protocol": Raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "HTTP/2": Raw(b"HTTP/2 200\r\n" + LENGTH + b"\r\n" + STOPPED),
    "an end before the first byte": Raw(b""),
    "an end in the first line": Raw(b"HTTP/1.1 20"),
    "an end in the headers": Raw(OK + b"Content-Le"),
    "an end after the headers": Raw(OK + LENGTH + b"\r\n"),
    "an end before the promised length": Raw(OK + b"Content-Length: 100\r\n\r\n" + STOPPED),
    "two lengths": Raw(OK + LENGTH + b"Content-Length: 5\r\n\r\n" + STOPPED),
    "two lengths after CR CR LF": Raw(OK + b"X: 1\r\r\n" + LENGTH + b"Content-Length: 5\r\n\r\n" + STOPPED),
    "a length of 5,000 digits": Raw(OK + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n" + STOPPED),
    "a negative length": Raw(OK + b"Content-Length: -1\r\n\r\n" + STOPPED),
    "a length that is no number": Raw(OK + b"Content-Length: all\r\n\r\n" + STOPPED),
    "a header without a colon": Raw(OK + b"this is no header\r\n" + LENGTH + b"\r\n" + STOPPED),
    "too many headers": Raw(OK + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + LENGTH + b"\r\n" + STOPPED),
    "too long a header": Raw(OK + b"X-Long: " + b"x" * 100_000 + b"\r\n" + LENGTH + b"\r\n" + STOPPED),
    "chunks and a length": Raw(OK + LENGTH + CHUNKED + chunk(STOPPED) + chunk(b"")),
    "two transfer codings": Raw(OK + b"Transfer-Encoding: chunked\r\n" + CHUNKED + chunk(STOPPED) + chunk(b"")),
    "an unknown transfer coding": Raw(OK + b"Transfer-Encoding: xchunked\r\n\r\n" + STOPPED),
    "chunks without content": Raw(b"HTTP/1.1 204 No Content\r\n" + CHUNKED + chunk(STOPPED) + chunk(b"")),
    "chunks in HTTP/1.0": Raw(b"HTTP/1.0 200 OK\r\n" + CHUNKED + chunk(STOPPED) + chunk(b"")),
    "a chunk without a size": Raw(OK + CHUNKED + b"stopped\r\n" + STOPPED + b"\r\n0\r\n\r\n"),
    "a chunk of a negative size": Raw(OK + CHUNKED + b"-14\r\n" + STOPPED + b"\r\n0\r\n\r\n"),
    "a chunk that ends too soon": Raw(OK + CHUNKED + b"ff\r\n" + STOPPED),
    "chunks without a last one": Raw(OK + CHUNKED + chunk(STOPPED)),
    "oversize as announced": Answer(body=padded(BODY_LIMIT + 1)),
    "oversize far beyond": Answer(body=padded(50 * BODY_LIMIT)),
    "oversize in chunks": Raw(OK + CHUNKED + chunk(padded(BODY_LIMIT)) + chunk(b" ") + chunk(b"")),
    "oversize without a length": Raw(OK + b"\r\n" + padded(BODY_LIMIT + 1)),
    "a reset before the first byte": Reset(),
    "a reset in the headers": Reset(head=OK),
    "a reset after the headers": Reset(head=OK + LENGTH + b"\r\n"),
    "a reset in the body": Reset(head=OK + LENGTH + b"\r\n" + STOPPED[:-1]),
}
SLOW: Mapping[str, Reply] = {
    "102 and then nothing": Answer(102, STOPPED),
    "100 for ever": Drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0.01),
    "headers that drip": drip_headers(0.05),
    "a body that drips": drip_body(STOPPED, 0.2),
    "chunks that drip": Drip(OK + CHUNKED, chunk(STOPPED) + chunk(b""), 0.2),
    "silence": Hang(),
    "silence after the headers": Drip(OK + LENGTH + b"\r\n", STOPPED, 2 * LATE_S),
    "an answer that comes too late": Answer(body=STOPPED, delay_s=LATE_S),
}
REDIRECTS = {f"{status} to whoever says stopped": status for status in (301, 302, 303, 307, 308)}
QUICK = [*STATUSES, *BODIES, *TRANSFERS, *REDIRECTS]

# Unusual, but answers.
CLEAN: Mapping[str, Reply] = {
    "as usual": Answer(body=STOPPED),
    "200 after a 100": Raw(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + b"\r\n" + STOPPED),
    "200 after a 103": Raw(b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + OK + LENGTH + b"\r\n" + STOPPED),
    "201": Answer(201, STOPPED),
    "without a reason": Raw(b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + STOPPED),
    "HTTP/1.0 that ends with the connection": Raw(b"HTTP/1.0 200 OK\r\n\r\n" + STOPPED),
    "another media type": Answer(body=STOPPED, headers={"Content-Type": "text/plain"}),
    "more than the state": Answer(body=b'{"id": "i-1", "state": "stopped", "tags": [{"state": "running"}, null, 1e3]}'),
    "blanks around it": Answer(body=b"\r\n\t " + STOPPED + b"\n"),
    "escaped": Answer(body=b'{"st\\u0061te": "stopp\\u0065d"}'),
    "as long as may be": Answer(body=padded(BODY_LIMIT)),
    "in chunks": Raw(OK + CHUNKED + chunk(STOPPED[:5]) + chunk(STOPPED[5:]) + chunk(b"")),
    "slowly": Drip(OK + LENGTH + b"\r\n", STOPPED, 0.01),
    "after a while": Answer(body=STOPPED, delay_s=TIMEOUT_S / 4),
}


PROBES = {"first": 1, "second": 2}


class Liar(HttpStandIn):
    """Tells everybody that every instance has stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: list[str] = []

    def handle(self, request: Request) -> Reply:
        self.visits.append(request.path)
        return Answer(body=STOPPED)


@dataclass(frozen=True, slots=True)
class Asked:
    """A cycle over workspaces of which each got an answer of its own, among others that are served as usual."""

    outcome: Outcome
    workspaces: Mapping[str, str]
    running: int
    broken: int


def asked(stage: Stage, broken: Mapping[str, Reply], *, at_probe: int, timeout_s: float) -> Asked:
    """Run a cycle with these answers at the first or, where the first ones say stopped, at the second probe."""
    answers = {**broken, **CLEAN}
    running = stage.add_all(30, "running")
    workspaces = dict(zip(answers, stage.add_all(len(answers), "stopped"), strict=True))
    for name, answer in answers.items():
        begins_at = at_probe if name in broken else 1
        stage.control_plane.script.reply(from_question(begins_at, answer), workspace_id=workspaces[name])
    settings = {**stage.settings("control_plane"), "PROBE_TIMEOUT_SECONDS": str(timeout_s)}
    outcome = stage.cycle(APPLY | {"override_breaker": True}, **settings)
    return Asked(outcome, workspaces, len(running), len(broken))


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    with Liar() as liar:
        yield liar


@pytest.fixture(scope="module", params=["first", "second"])
def quick(request: pytest.FixtureRequest, stages: Stages, liar: Liar) -> Asked:
    redirects: dict[str, Reply] = {
        name: Answer(status, STOPPED, {"Location": f"{liar.url}/{status}"}) for name, status in REDIRECTS.items()
    }
    broken = {**STATUSES, **BODIES, **TRANSFERS, **redirects}
    with stages.borrowed() as stage:
        return asked(stage, broken, at_probe=PROBES[request.param], timeout_s=10)


@pytest.fixture(scope="module", params=["first", "second"])
def slow(request: pytest.FixtureRequest, stages: Stages) -> Asked:
    with stages.borrowed() as stage:
        return asked(stage, SLOW, at_probe=PROBES[request.param], timeout_s=TIMEOUT_S)


def assert_believed_in_nothing(cycle: Asked, name: str) -> None:
    workspace = cycle.workspaces[name]
    cycle.outcome.assert_untouched(workspace)
    assert cycle.outcome.reasons.get(workspace, "not_confirmed") == "not_confirmed"


@pytest.mark.parametrize("name", QUICK)
def test_a_broken_answer_neither_raises_nor_confirms_a_suspicion(quick: Asked, name: str) -> None:
    assert_believed_in_nothing(quick, name)


@pytest.mark.parametrize("name", SLOW)
def test_an_answer_that_does_not_come_in_time_neither_raises_nor_confirms_a_suspicion(slow: Asked, name: str) -> None:
    assert_believed_in_nothing(slow, name)


@pytest.mark.parametrize("name", CLEAN)
def test_an_unusual_answer_counts_like_any_other(quick: Asked, name: str) -> None:
    quick.outcome.assert_flipped(quick.workspaces[name], "stopped")


def assert_served_all_the_others(cycle: Asked) -> None:
    report, skips = cycle.outcome.report, cycle.outcome.skips
    assert (report["running"], report["flipped"], report["deferred"]) == (cycle.running, len(CLEAN), 0)
    assert (report["unknown"], skips) in [(cycle.broken, {}), (0, {"not_confirmed": cycle.broken})]


def test_broken_answers_affect_nobody_else(quick: Asked) -> None:
    assert_served_all_the_others(quick)


def test_slow_answers_affect_nobody_else(slow: Asked) -> None:
    assert_served_all_the_others(slow)


def test_no_redirect_is_followed(quick: Asked, liar: Liar) -> None:
    assert "http_302" in quick.outcome.causes.values() or "not_confirmed" in quick.outcome.skips
    assert liar.visits == []


def test_nothing_that_a_control_plane_answers_gets_into_the_logs(quick: Asked) -> None:
    assert FOREIGN not in quick.outcome.output


# --- how it is asked ---


@pytest.mark.parametrize("shared_secret", ["the-shared-secret", ""], ids=["secret", "no secret"])
@pytest.mark.parametrize("admin_token", ["the-admin-token", ""], ids=["token", "no token"])
def test_each_credential_travels_in_its_header_and_an_empty_one_not_at_all(
    stage: Stage, shared_secret: str, admin_token: str
) -> None:
    stage.control_plane.shared_secret = shared_secret
    stage.control_plane.admin_token = admin_token
    stage.add_all(2, "running")
    assert stage.cycle(**stage.settings("control_plane")).report["running"] == 2
    for request in stage.control_plane.requests:
        sent = {name: request.headers.get(name) for name in ("authorization", "x-molecule-admin-token")}
        bearer = f"Bearer {shared_secret}" if shared_secret else None
        assert sent == {"authorization": bearer, "x-molecule-admin-token": admin_token or None}


def test_an_instance_is_asked_about_by_exactly_the_recorded_id(stage: Stage) -> None:
    names = ["i-0a&instance_id=i-0b", "i-0a?state=stopped#", "../../cp", "i 0+1%2F", "i-\u00fc\u4e2d", "I-0A"]
    workspaces = stage.fleet.add_all(names)
    stage.cycle(**stage.settings("control_plane"))
    questions = [(request.workspace_id, request.instance_id) for request in stage.control_plane.requests]
    assert sorted(questions) == sorted(zip(workspaces, names, strict=True))


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_as_many_are_asked_about_at_once_as_set_over_as_many_connections_and_no_more(
    stage: Stage, concurrency: int
) -> None:
    stage.add_all(3 * concurrency, "running")
    together = threading.Barrier(concurrency)
    stage.control_plane.script.before(lambda _: together.wait(10), times=concurrency)
    outcome = stage.cycle(**stage.settings("control_plane"), PROBE_CONCURRENCY=str(concurrency))
    assert outcome.report["running"] == 3 * concurrency
    assert stage.control_plane.peak_in_flight == concurrency
    assert stage.control_plane.connections == concurrency


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Open so many at most, and have processes that are started inside do so, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_most_checks_at_once_leave_descriptors_for_the_rest(stage: Stage) -> None:
    """Lambda gives a process 1,024. A check that gets none is an unknown workspace."""
    stage.add_all(MOST_CHECKS_AT_ONCE, "running")
    together = threading.Barrier(MOST_CHECKS_AT_ONCE)
    stage.control_plane.script.before(lambda _: together.wait(20))
    settings = stage.settings("control_plane") | {"PROBE_CONCURRENCY": str(MOST_CHECKS_AT_ONCE)}
    with descriptors(4096):  # the control plane is in this process
        with descriptors(1024):
            invocation = stage.invoke.in_process(APPLY, **settings, PROBE_TIMEOUT_SECONDS="30")
        report = invocation.wait(50)
    assert (report["running"], report["unknown"]) == (MOST_CHECKS_AT_ONCE, 0)


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_workspaces(stage: Stage) -> None:
    running = state_answer("running").body
    smuggled = (OK + LENGTH + b"\r\n" + STOPPED) * 3000
    for_the_first = {"Content-Length": str(len(running))}
    stage.control_plane.script.reply(Answer(body=running + smuggled, headers=for_the_first), times=4)
    stage.add_all(8, "running")
    outcome = stage.cycle(**stage.settings("control_plane"), PROBE_CONCURRENCY="1")
    outcome.assert_only_flipped({})
    assert outcome.report["running"] == 8


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_workspaces(stage: Stage) -> None:
    stage.add_all(4, "running")
    stage.control_plane.script.reply(Answer(body=STOPPED, delay_s=1.3), nth=1)
    stage.control_plane.script.reply(Answer(body=state_answer("running").body, delay_s=0.6), nth=2)
    outcome = stage.cycle(**stage.settings("control_plane"), PROBE_CONCURRENCY="1", PROBE_TIMEOUT_SECONDS="1")
    outcome.assert_only_flipped({})
    assert (outcome.report["running"], list(outcome.causes.values())) == (3, ["timeout"])


def test_a_kept_alive_connection_that_the_control_plane_gives_up_costs_nobody_an_answer(stage: Stage) -> None:
    stage.add_all(6, "running")
    stage.control_plane.script.reply(Raw(b""), nth=3)
    stage.control_plane.script.reply(Reset(), nth=6)
    outcome = stage.cycle(**stage.settings("control_plane"), PROBE_CONCURRENCY="1")
    assert (outcome.report["running"], outcome.report["unknown"]) == (6, 0)


# --- its credentials are rotated ---


def with_secret(stage: Stage, ec2: MotoEc2, shared_secret: str) -> dict[str, str]:
    """Store the credentials in Secrets Manager, with that secret; return the settings that fetch them there."""
    token = stage.control_plane.admin_token
    arn = ec2.put_secret("control-plane", {"shared_secret": shared_secret, "admin_token": token})
    here = {"CP_SECRET_ARN": arn, "AWS_ENDPOINT_URL_SECRETS_MANAGER": ec2.url}
    return {"PROBE": "control_plane", "CP_BASE_URL": stage.control_plane.url, "PROBE_CONCURRENCY": "4", **here}


def fetches(ec2: MotoEc2) -> int:
    return sum(call.action == "GetSecretValue" for call in ec2.calls)


@pytest.mark.parametrize("after", [0, 5], ids=["between two cycles", "in the middle of a cycle"])
def test_a_rotated_secret_is_fetched_anew_once_and_every_check_goes_on(stage: Stage, ec2: MotoEc2, after: int) -> None:
    stage.add_all(20, "running")
    settings = with_secret(stage, ec2, stage.control_plane.shared_secret)
    assert stage.cycle(**settings).report["running"] == 20

    def rotate(_: object = None) -> None:
        with_secret(stage, ec2, "rotated")
        stage.control_plane.shared_secret = "rotated"

    if after:
        stage.control_plane.script.before(rotate, nth=after)
    else:
        rotate()
    assert fetches(ec2) == 1
    assert stage.cycle(**settings).report["running"] == 20
    assert stage.cycle(**settings).report["running"] == 20
    assert fetches(ec2) == 2


def test_a_secret_that_stays_wrong_is_fetched_anew_once_and_flips_nobody(stage: Stage, ec2: MotoEc2) -> None:
    stage.add_all(10, "stopped")
    outcome = stage.cycle(**with_secret(stage, ec2, "wrong"))
    outcome.assert_only_flipped({})
    assert set(outcome.causes.values()) == {"http_401"}
    assert (outcome.report["unknown"], fetches(ec2)) == (10, 2)


def test_without_its_secret_the_cycle_is_not_run(stage: Stage, ec2: MotoEc2) -> None:
    stage.add("stopped")
    settings = with_secret(stage, ec2, "right")
    with pytest.raises(SecretError, match="CP_SECRET_ARN"):
        stage.cycle(**{**settings, "CP_SECRET_ARN": settings["CP_SECRET_ARN"].replace("control-plane", "other")})
    assert stage.control_plane.connections == 0


# --- it fails ---

EASED_OFF = "more than half of the checks timed out or were turned away"
RECOVERED = "the checks succeed again, no slower than before"


def changes(outcome: Outcome) -> list[tuple[int, str]]:
    return [(line["count"], line["reason"]) for line in outcome.lines("concurrency changed")]


def test_a_control_plane_that_fails_is_asked_less_and_less_at_once_and_flips_nobody(stage: Stage) -> None:
    stage.add_all(30, "stopped")
    stage.control_plane.script.reply(Answer(500))

    def measure_from_here(_: object) -> None:
        stage.control_plane.peak_in_flight = 0

    stage.control_plane.script.before(measure_from_here, nth=8 + 4 + 2 + 1)
    outcome = stage.cycle(**stage.settings("control_plane"), PROBE_CONCURRENCY="8")
    outcome.assert_only_flipped({})
    assert changes(outcome) == [(4, EASED_OFF)]
    assert stage.control_plane.peak_in_flight <= 2  # the server counts one until it has sent its answer
    assert (outcome.report["unknown"], outcome.report["breaker_open"]) == (30, False)


def test_a_control_plane_that_recovers_is_asked_as_before(stage: Stage) -> None:
    stage.add_all(60, "running")
    stage.control_plane.script.reply(Answer(500), times=15)
    together = threading.Barrier(8)
    for number in range(40, 48):
        stage.control_plane.script.before(lambda _: together.wait(10), nth=number)
    outcome = stage.cycle(**stage.settings("control_plane"), PROBE_CONCURRENCY="8")
    assert changes(outcome) == [(4, EASED_OFF), (2, RECOVERED)]
    assert (outcome.report["running"], outcome.report["unknown"]) == (45, 15)


def test_a_bad_row_here_and_there_slows_nobody_down(stage: Stage) -> None:
    stage.add_all(80, "running")
    numbers = count()
    stage.control_plane.script.reply(lambda _: Answer(500) if next(numbers) % 4 == 0 else None)
    outcome = stage.cycle(**stage.settings("control_plane"), PROBE_CONCURRENCY="8")
    assert changes(outcome) == []
    assert (outcome.report["running"], outcome.report["unknown"]) == (60, 20)


def test_a_dead_control_plane_is_a_hundred_lines_and_a_number_and_flips_nobody(stage: Stage) -> None:
    stage.add_all(150, "stopped")
    settings = {**stage.settings("control_plane"), "PROBE_CONCURRENCY": "1"}
    stage.control_plane.stop()
    outcome = stage.cycle(**settings)
    outcome.assert_only_flipped({})
    assert outcome.report["unknown"] == 150
    assert list(outcome.causes.values()) == ["connection_refused"] * 100
    (rest,) = outcome.lines("more of the same")
    assert (rest["what"], rest["reason"], rest["count"]) == ("instance unknown", "connection_refused", 50)
