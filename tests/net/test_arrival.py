"""An answer is as old as its first bytes: what it says was true before the rest of it was sent, and read."""

import contextlib
import time

from handler.deadline import Deadline
from handler.net.http import HttpClient
from tests.net.conftest import NO_ZONES, Ec2, Serve
from tests.net.server import Script, head

LATER_S = 0.1


def in_two_parts(rest_sent_at: list[float]) -> Script:
    """The head of an answer, and later its body."""
    return (
        head(f"Content-Length: {len(NO_ZONES)}"),
        lambda: time.sleep(LATER_S),
        lambda: rest_sent_at.append(time.monotonic()),
        NO_ZONES,
    )


def test_an_answer_to_a_get_is_as_old_as_its_head(serve: Serve) -> None:
    rest_sent_at: list[float] = []
    server, asked_at = serve(in_two_parts(rest_sent_at)), time.monotonic()
    with contextlib.closing(HttpClient(connections=1)) as client:
        answer = client.get(server.url, params={}, headers={}, deadline=Deadline(20), body_limit=1024)
    assert asked_at < answer.began_at < rest_sent_at[0]


def test_an_answer_of_aws_is_as_old_as_its_head(serve: Serve, ec2: Ec2) -> None:
    rest_sent_at: list[float] = []
    server, asked_at = serve(in_two_parts(rest_sent_at)), time.monotonic()
    with contextlib.closing(ec2.aws), ec2.aws.within(Deadline(20)) as call:
        ec2.direct(server.url)
        ec2.aws.ec2().describe_availability_zones()
    assert asked_at < call.answered_at < rest_sent_at[0]
