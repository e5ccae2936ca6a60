"""What the last look at a row or a debt refuses, though everything before it went well."""

from collections.abc import Callable

import pytest

from handler.model import SkipReason
from handler.registry import Flipped
from sandbox.postgres import StatusType
from tests.isolation.arena import BEFORE, OURS, OWED, THEIRS, Arena, claim, flip, hold


@pytest.fixture
def arena(arenas: Callable[[StatusType], Arena]) -> Arena:
    return arenas("enum")


def test_a_hold_that_was_placed_after_the_candidates_were_selected_prevents_the_flip(arena: Arena) -> None:
    arena.reset(BEFORE.format(status="online"))
    hold(arena, THEIRS)
    held = arena.state()
    assert flip(arena, OURS) is SkipReason.STATUS_MOVED
    assert arena.state() == held


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
    "another payer has claimed it": "UPDATE reconciler.restarts SET next_attempt_at = now() + interval '5 minutes'",
    "another payer has settled it": "UPDATE reconciler.restarts SET closed_at = now(), outcome = 'paid'",
    "its workspace is in a crash loop": "UPDATE reconciler.restarts SET paused_until = now() + interval '5 minutes'",
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_restart_that_is_not_to_be_asked_for_any_more_is_not_claimed(arena: Arena, name: str) -> None:
    arena.reset(BEFORE.format(status="offline") + OWED)
    arena.reset(OBSTACLES[name])
    left = arena.state()
    assert claim(arena, OURS) == "taken"
    assert arena.state() == left


def test_a_restart_is_claimed_once(arena: Arena) -> None:
    arena.reset(BEFORE.format(status="offline") + OWED)
    assert [claim(arena, OURS), claim(arena, THEIRS)] == ["claimed", "taken"]


def test_a_hold_that_was_placed_after_the_due_restarts_were_listed_prevents_the_claim(arena: Arena) -> None:
    arena.reset(BEFORE.format(status="offline") + OWED)
    hold(arena, THEIRS)
    assert claim(arena, OURS) == "taken"
