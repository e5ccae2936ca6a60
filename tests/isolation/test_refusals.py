"""What the last check of a row or a restart refuses, although everything before it went well."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handler.domain.model import SkipReason
from handler.domain.restarts import Step
from handler.errors import LeaseLostError
from handler.store import Flipped
from sandbox.postgres import StatusType
from tests.isolation.arena import (
    ACCEPTED,
    BEFORE,
    BOTH_OWED,
    DOUBTED,
    MATE,
    OURS,
    STALE,
    THEIRS,
    WORKSPACE,
    Arena,
    cancel_moved_on,
    claim,
    flip,
    forget_doubts,
    hold,
    owe_again,
    put_off,
    save_coverage,
    save_doubts,
    tend_doubts,
)

ONLINE = BEFORE.format(status="online", mates_status="online")
OFFLINE = BEFORE.format(status="offline", mates_status="offline")


def statuses(arena: Arena) -> dict[str, str]:
    return {row[0]: row[2] for row in arena.state()["rows"]}


def steps(arena: Arena, cycle: str, **options: Any) -> dict[str, Step]:
    """Claim both restarts; return what was decided."""
    return {one.restart.workspace_id: one.step for one in claim(arena, cycle, **options)}


@pytest.fixture
def arena(arenas: Callable[[StatusType], Arena]) -> Arena:
    return arenas("enum")


def test_a_hold_that_was_placed_after_the_candidates_were_selected_prevents_the_flip(arena: Arena) -> None:
    arena.reset(ONLINE)
    hold(arena, THEIRS)
    outcomes = flip(arena, OURS)
    assert outcomes[WORKSPACE] is SkipReason.ON_HOLD
    assert isinstance(outcomes[MATE], Flipped)
    assert statuses(arena) == {WORKSPACE: "online", MATE: "offline"}
    assert [event[1] for event in arena.state()["events"]] == [MATE]


def test_a_hold_that_has_ended_prevents_nothing(arena: Arena) -> None:
    arena.reset(ONLINE)
    hold(arena, THEIRS)
    arena.reset("UPDATE reconciler.holds SET ends_at = now()")
    assert isinstance(flip(arena, OURS)[WORKSPACE], Flipped)


def test_a_heartbeat_later_than_the_select_prevents_the_flip_though_the_select_saw_it(arena: Arena) -> None:
    """The platform's clock may be ahead of the database's."""
    arena.reset(ONLINE)
    outcomes = flip(arena, OURS, selected_at="2025-12-31 23:59:59+00")
    assert outcomes == dict.fromkeys((WORKSPACE, MATE), SkipReason.FRESH_HEARTBEAT)


def test_evidence_that_the_database_s_clock_calls_too_old_flips_nothing(arena: Arena) -> None:
    arena.reset(ONLINE)
    before = arena.state()
    assert flip(arena, OURS, clock=STALE) == dict.fromkeys((WORKSPACE, MATE), SkipReason.OUT_OF_TIME)
    assert arena.state() == before


def test_evidence_that_the_database_s_clock_calls_too_old_claims_nothing(arena: Arena) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    before = arena.state()
    assert steps(arena, OURS, clock=STALE) == {WORKSPACE: Step.WAIT, MATE: Step.WAIT}
    assert arena.state() == before


OBSTACLES = {
    "another cycle has claimed it": "UPDATE reconciler.restarts SET due_at = now() + interval '5 minutes' WHERE id = 1",
    "another cycle has settled it": (
        "UPDATE reconciler.restarts SET closed_at = now(), outcome = 'accepted' WHERE id = 1"
    ),
    "its workspace is in a crash loop": (
        "UPDATE reconciler.restarts SET backoff_until = now() + interval '5 minutes' WHERE id = 1"
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_restart_that_may_not_be_asked_for_is_not_claimed(arena: Arena, name: str) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    arena.reset(OBSTACLES[name])
    (left, _) = arena.state()["restarts"]
    decided = steps(arena, OURS)
    assert decided.pop(MATE) is Step.ASK
    assert set(decided.values()) <= {Step.WAIT}
    (now, _) = arena.state()["restarts"]
    assert now == left


def test_a_restart_is_claimed_once(arena: Arena) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    asked, waiting = dict.fromkeys((WORKSPACE, MATE), Step.ASK), dict.fromkeys((WORKSPACE, MATE), Step.WAIT)
    assert [steps(arena, OURS), steps(arena, THEIRS)] == [asked, waiting]


def test_a_hold_that_was_placed_after_the_due_restarts_were_listed_prevents_the_claim(arena: Arena) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    hold(arena, THEIRS)
    assert steps(arena, OURS) == {WORKSPACE: Step.WAIT, MATE: Step.ASK}


# --- without the lease ---


@pytest.fixture
def too_late(arena: Arena) -> Iterator[Arena]:
    """The lease of the cycle has just expired."""
    arena.reset("UPDATE reconciler.lease SET expires_at = clock_timestamp() WHERE scope = 'ours'")
    yield arena
    arena.reset("UPDATE reconciler.lease SET expires_at = now() + interval '1 day'")


@pytest.mark.parametrize(
    ("status", "besides", "act"),
    [
        pytest.param("offline", BOTH_OWED, claim, id="claim"),
        pytest.param("paused", BOTH_OWED, cancel_moved_on, id="cancel what moved on"),
        pytest.param("offline", BOTH_OWED, put_off, id="put off"),
        pytest.param("online", DOUBTED, save_doubts, id="save doubts"),
        pytest.param("online", DOUBTED, forget_doubts, id="forget doubts"),
        pytest.param("paused", DOUBTED, tend_doubts, id="tend doubts"),
        pytest.param("online", "", save_coverage, id="move the cursor"),
    ],
)
def test_a_cycle_whose_lease_has_expired_writes_nothing(
    too_late: Arena, status: str, besides: str, act: Callable[[Arena, str], object]
) -> None:
    too_late.reset(BEFORE.format(status=status, mates_status=status) + besides)
    left = too_late.state()
    with pytest.raises(LeaseLostError):
        act(too_late, OURS)
    assert too_late.state() == left


def test_a_cycle_whose_lease_has_expired_flips_nothing(too_late: Arena) -> None:
    too_late.reset(ONLINE)
    left = too_late.state()
    assert flip(too_late, OURS) == dict.fromkeys((WORKSPACE, MATE), SkipReason.OUT_OF_TIME)
    assert too_late.state() == left


def test_a_cycle_whose_lease_has_expired_owes_nothing_again(too_late: Arena) -> None:
    too_late.reset(OFFLINE + ACCEPTED)
    left = too_late.state()
    assert owe_again(too_late, OURS) == 0
    assert too_late.state() == left
