"""What the last check of a row or a restart refuses, although everything before it went well."""

from collections.abc import Callable, Iterator

import pytest

from handler.domain.model import SkipReason
from handler.errors import LeaseLostError
from handler.store import Claim, Flipped
from sandbox.postgres import StatusType
from tests.isolation.arena import (
    BEFORE,
    FORGOTTEN,
    OLD,
    OURS,
    OWED,
    THEIRS,
    Arena,
    cancel,
    cancel_moved_on,
    claim,
    flip,
    hold,
    put_off,
    remember_absences,
    save_coverage,
)


@pytest.fixture
def arena(arenas: Callable[[StatusType], Arena]) -> Arena:
    return arenas("enum")


def test_a_hold_that_was_placed_after_the_candidates_were_selected_prevents_the_flip(arena: Arena) -> None:
    arena.reset(BEFORE.format(status="online"))
    hold(arena, THEIRS)
    before = arena.state()
    assert flip(arena, OURS) is SkipReason.ON_HOLD
    assert arena.state() == before


def test_a_hold_that_has_ended_prevents_nothing(arena: Arena) -> None:
    arena.reset(BEFORE.format(status="online"))
    hold(arena, THEIRS)
    arena.reset("UPDATE reconciler.holds SET ends_at = now()")
    assert isinstance(flip(arena, OURS), Flipped)


def test_a_heartbeat_later_than_the_select_prevents_the_flip_though_the_select_saw_it(arena: Arena) -> None:
    """The platform's clock may be ahead of the database's."""
    arena.reset(BEFORE.format(status="online"))
    assert flip(arena, OURS, selected_at="2025-12-31 23:59:59+00") is SkipReason.FRESH_HEARTBEAT


OBSTACLES = {
    "another cycle has claimed it": "UPDATE reconciler.restarts SET due_at = now() + interval '5 minutes'",
    "another cycle has settled it": "UPDATE reconciler.restarts SET closed_at = now(), outcome = 'accepted'",
    "its workspace is in a crash loop": "UPDATE reconciler.restarts SET backoff_until = now() + interval '5 minutes'",
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_restart_that_may_not_be_asked_for_is_not_claimed(arena: Arena, name: str) -> None:
    arena.reset(BEFORE.format(status="offline") + OWED)
    arena.reset(OBSTACLES[name])
    left = arena.state()
    assert claim(arena, OURS) is Claim.TAKEN
    assert arena.state() == left


def test_a_restart_is_claimed_once(arena: Arena) -> None:
    arena.reset(BEFORE.format(status="offline") + OWED)
    assert [claim(arena, OURS), claim(arena, THEIRS)] == [Claim.CLAIMED, Claim.TAKEN]


def test_a_hold_that_was_placed_after_the_due_restarts_were_listed_prevents_the_claim(arena: Arena) -> None:
    arena.reset(BEFORE.format(status="offline") + OWED)
    hold(arena, THEIRS)
    assert claim(arena, OURS) is Claim.TAKEN


# --- without the lease ---


@pytest.fixture
def too_late(arena: Arena) -> Iterator[Arena]:
    """The lease of the cycle has just expired."""
    arena.reset("UPDATE reconciler.lease SET expires_at = clock_timestamp() WHERE scope = 'ours'")
    arena.reset(f"INSERT INTO reconciler.absences VALUES ('{FORGOTTEN}', '{OLD}', 1)")  # noqa: S608 - our own words
    yield arena
    arena.reset("DELETE FROM reconciler.absences")
    arena.reset("UPDATE reconciler.lease SET expires_at = now() + interval '1 day'")


@pytest.mark.parametrize(
    ("status", "act"),
    [
        pytest.param("online", flip, id="flip"),
        pytest.param("offline", claim, id="claim"),
        pytest.param("paused", cancel_moved_on, id="cancel what moved on"),
        pytest.param("offline", put_off, id="put off"),
        pytest.param("offline", cancel, id="cancel"),
        pytest.param("online", remember_absences, id="remember absences"),
        pytest.param("online", save_coverage, id="move the cursor"),
    ],
)
def test_a_cycle_whose_lease_has_expired_writes_nothing(
    too_late: Arena, status: str, act: Callable[[Arena, str], object]
) -> None:
    too_late.reset(BEFORE.format(status=status) + OWED)
    left = too_late.state()
    with pytest.raises(LeaseLostError):
        act(too_late, OURS)
    assert too_late.state() == left
