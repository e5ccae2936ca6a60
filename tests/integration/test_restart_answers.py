"""What an answer that is neither yes nor no makes of a restart: a gateway's, and one that asks to be left alone."""

import contextlib
from collections.abc import Iterator

import pytest

from sandbox.http_server import Answer
from sandbox.limited_ec2 import TokenBucket
from sandbox.postgres import PostgresServer
from tests.support.stage import Outcome, Stage, opened

A_MINUTE_S = 61.0
CALLS_AT_ONCE = 8
NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
BUSY = {"Retry-After": "600"}

ACCEPTED = Answer(202)


@pytest.fixture(scope="module")
def used_stage(postgres: PostgresServer) -> Iterator[Stage]:
    with opened(postgres) as stage:
        stage.ec2.bucket = TokenBucket(capacity=1_000_000, refill_per_s=0)  # it serves all the tests here
        yield stage


@pytest.fixture
def stage(used_stage: Stage) -> Iterator[Stage]:
    """An empty stage whose platform answers as the test orders."""
    used_stage.platform.instead.clear()
    yield used_stage
    used_stage.platform.calls.clear()
    used_stage.database.query(
        "TRUNCATE workspaces, structure_events, reconciler.restarts, reconciler.restart_stops, reconciler.lease"
    )


def order(stage: Stage, reply: Answer) -> None:
    """Have the platform answer everything so from now on."""
    stage.platform.instead.clear()
    stage.platform.instead.reply(reply)


def restarts(outcome: Outcome) -> dict[str, int]:
    """Return the report's figures about restarts, without the zeros."""
    return {name: count for name, count in outcome.report["restarts"].items() if count}


# --- gateways ---


@pytest.mark.parametrize("status", [408, 501, 502, 504, 520, 524, 599])
def test_a_gateway_that_gave_up_leaves_the_restart_uncertain(stage: Stage, status: int) -> None:
    """The platform goes on with it. Asked again a minute later, it would destroy the machine that it has just made."""
    stage.add("terminated")
    order(stage, Answer(status))
    assert restarts(stage.cycle()) == {"uncertain": 1, "pending": 1}
    order(stage, ACCEPTED)
    stage.fleet.age_everything(A_MINUTE_S)
    assert stage.cycle().calls == []
    stage.fleet.age_everything(300 - A_MINUTE_S)
    assert restarts(stage.cycle()) == {"accepted": 1}


# --- Retry-After ---


@pytest.mark.parametrize("status", [429, 503])
def test_a_platform_that_asks_to_be_left_alone_is_left_alone_by_every_cycle(stage: Stage, status: int) -> None:
    stage.add_all(40, "terminated")
    order(stage, Answer(status, headers=BUSY))
    first = stage.cycle(**NO_BREAKER)
    assert 1 <= len(first.calls) <= CALLS_AT_ONCE
    assert restarts(first) == {"refused": len(first.calls), "pending": 40}
    assert len(first.lines("restarts stopped")) == 1

    late = stage.add("terminated")  # nobody was told anything about this one
    order(stage, ACCEPTED)
    for event in ({"mode": "apply"}, {"mode": "apply", "workspace_ids": [late]}, {"mode": "apply"}):
        stage.fleet.age_everything(A_MINUTE_S)
        assert stage.cycle(event, **NO_BREAKER).calls == []
    stage.fleet.age_everything(600 - 3 * A_MINUTE_S)
    assert restarts(stage.cycle(**NO_BREAKER)) == {"accepted": 41}


def test_the_longer_one_of_a_wait_and_the_back_off_counts(stage: Stage) -> None:
    first = stage.add("terminated")
    order(stage, Answer(503, headers={"Retry-After": "10"}))
    stage.cycle()
    second = stage.add("terminated")
    order(stage, ACCEPTED)
    assert stage.cycle().calls == []
    stage.fleet.age_everything(11)
    assert [call.workspace_id for call in stage.cycle().calls] == [second]
    stage.fleet.age_everything(A_MINUTE_S)
    assert [call.workspace_id for call in stage.cycle().calls] == [first]


def test_a_shorter_wait_does_not_end_a_longer_one(stage: Stage) -> None:
    first, second = stage.add_all(2, "terminated")
    stage.platform.instead.reply(Answer(503, headers=BUSY), workspace_id=first)
    stage.platform.instead.reply(Answer(503, headers={"Retry-After": "1"}), workspace_id=second)
    stage.cycle(**NO_BREAKER)
    order(stage, ACCEPTED)
    stage.fleet.age_everything(A_MINUTE_S)
    assert stage.cycle(**NO_BREAKER).calls == []


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}, {"Retry-After": "soon"}])
def test_a_refusal_without_a_wait_stops_nobody_else(stage: Stage, headers: dict[str, str]) -> None:
    first, *_ = stage.add_all(20, "terminated")
    stage.platform.instead.reply(Answer(503, headers=headers), workspace_id=first)
    stage.platform.instead.reply(ACCEPTED)
    assert restarts(stage.cycle(**NO_BREAKER)) == {"accepted": 19, "refused": 1, "pending": 1}


def test_somebody_who_locks_the_stops_delays_nobody(stage: Stage) -> None:
    stage.add_all(2, "terminated")
    order(stage, Answer(503, headers={"Retry-After": "1"}))
    stage.cycle(**NO_BREAKER)
    stage.fleet.age_everything(2 * A_MINUTE_S)
    order(stage, Answer(503, headers=BUSY))
    with contextlib.closing(stage.database.connect()) as somebody:
        somebody.run("BEGIN")
        assert somebody.run("SELECT id FROM reconciler.restart_stops FOR UPDATE") != []
        outcome = stage.cycle(**NO_BREAKER)
        somebody.run("ROLLBACK")
    assert restarts(outcome) == {"refused": len(outcome.calls), "pending": 2}
    assert outcome.report["duration_ms"] < 2000
    stage.fleet.age_everything(400)
    assert stage.cycle(**NO_BREAKER).calls == []
