"""A flip or a claim beside any other writer: every interleaving ends as if one side had gone first.

Two connections to a real PostgreSQL at READ COMMITTED. The reconciler's side is the handler's own code, stopped before
each statement. The expected outcomes are not written down here: both sides run one after the other, in both orders, and
every interleaving has to end like one of the two, in all tables and in the answers that each side gets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from handler.domain.model import SkipReason
from handler.errors import RowLockedError
from handler.store import Flipped
from sandbox.postgres import StatusType
from tests.guards.__main__ import PAGE
from tests.isolation.arena import BEFORE, OURS, OWED, THEIRS, Arena, cancel_moved_on, claim, flip, hold, put_off
from tests.support.interleaving import Side, all_interleavings, in_order

LEFT_ALONE = "left alone"
STATUS_TYPES: tuple[StatusType, ...] = ("enum", "text")


def told(answer: object) -> object:
    """Return what an answer says. A flip that a lock or the row prevented counts as left alone.

    Raises the errors that nobody expects.
    """
    if isinstance(answer, SkipReason | RowLockedError):
        return LEFT_ALONE
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, Flipped):
        return ("flipped", [restart.id for restart in answer.superseded])
    return answer


# --- what others do: one transaction each ---

WRITES: Mapping[str, str] = {
    "it is paused": "UPDATE workspaces SET status = 'paused', updated_at = now() WHERE name = 'one'",
    "its row is deleted": "DELETE FROM workspaces WHERE name = 'one'",
    "it is reprovisioned": (
        "UPDATE workspaces SET status = 'online', instance_id = 'i-00000000000000002', updated_at = now()"
        " WHERE name = 'one'"
    ),
    "its instance is cleared": "UPDATE workspaces SET instance_id = NULL, updated_at = now() WHERE name = 'one'",
    "a heartbeat comes": "UPDATE workspaces SET last_heartbeat_at = now(), updated_at = now() WHERE name = 'one'",
    "it is made external": "UPDATE workspaces SET runtime = 'external' WHERE name = 'one'",
}
SETTLING_WRITES = ("it is paused", "its row is deleted", "it is reprovisioned", "its instance is cleared")
# They lock the row for a while, and leave behind a candidate whose instance is dead.
HARMLESS_WRITES: Mapping[str, str] = {
    "it degrades": "UPDATE workspaces SET status = 'degraded' WHERE name = 'one' AND status = 'online'",
    "it is renamed": "UPDATE workspaces SET name = 'another' WHERE name = 'one'",
    "somebody only looks at it": "SELECT FROM workspaces WHERE name = 'one' FOR UPDATE",
}


@dataclass(frozen=True, slots=True)
class Encounter:
    """Two sides that use the same row, which has this status, and an owed restart or none."""

    ours: Callable[[Arena, str], object]
    theirs: Callable[[Arena, str], object] | str
    status: str
    owed: bool
    interleavings: int

    def sides(self, arena: Arena) -> tuple[Side, Side]:
        theirs = self.theirs
        other = arena.platform(theirs) if isinstance(theirs, str) else arena.handler(THEIRS, theirs)
        return arena.handler(OURS, self.ours), other

    @property
    def before(self) -> str:
        return BEFORE.format(status=self.status) + (OWED if self.owed else "")


FLIPS = {
    **{name: Encounter(flip, write, "online", owed=False, interleavings=22) for name, write in WRITES.items()},
    "another cycle flips it": Encounter(flip, flip, "online", owed=False, interleavings=44),
    "it is put on hold": Encounter(flip, hold, "online", owed=False, interleavings=77),
    "an older restart of its is claimed": Encounter(flip, claim, "online", owed=True, interleavings=109),
    "restarts that moved on are cancelled": Encounter(flip, cancel_moved_on, "online", owed=True, interleavings=111),
}
HARMLESS = {
    name: Encounter(flip, write, "online", owed=False, interleavings=22) for name, write in HARMLESS_WRITES.items()
}
CLAIMS = {
    **{name: Encounter(claim, WRITES[name], "offline", owed=True, interleavings=84) for name in SETTLING_WRITES},
    "another cycle claims it": Encounter(claim, claim, "offline", owed=True, interleavings=310),
    "another cycle finds that the row has moved on": Encounter(claim, claim, "paused", owed=True, interleavings=310),
    "another cycle puts it off": Encounter(claim, put_off, "offline", owed=True, interleavings=190),
    "the workspace is put on hold": Encounter(claim, hold, "offline", owed=True, interleavings=229),
    "restarts that moved on are cancelled": Encounter(claim, cancel_moved_on, "offline", owed=True, interleavings=462),
    "restarts that moved on are cancelled, this one as well": Encounter(
        claim, cancel_moved_on, "paused", owed=True, interleavings=432
    ),
}
CANCELLED = {
    name: Encounter(cancel_moved_on, WRITES[name], "offline", owed=True, interleavings=56) for name in SETTLING_WRITES
}


def outcome(arena: Arena, answers: Mapping[str, Any]) -> Any:
    return {name: told(answer) for name, answer in answers.items()}, arena.state()


def serial_outcomes(arena: Arena, encounter: Encounter) -> list[Any]:
    """Return the outcomes when our side goes first, and when the other side does."""
    outcomes = []
    for order in (1, -1):
        arena.reset(encounter.before)
        outcomes.append(outcome(arena, in_order(encounter.sides(arena)[::order])))
    return outcomes


def assert_serial(arena: Arena, encounter: Encounter, *besides: Any) -> None:
    """Fail unless every interleaving ends like one of the two orders, and their number is the expected one.

    `besides` are outcomes that are allowed, too.
    """
    allowed = [*serial_outcomes(arena, encounter), *besides]
    count = 0
    for interleaving in all_interleavings(encounter.sides(arena), arena.blocked, lambda: arena.reset(encounter.before)):
        assert outcome(arena, interleaving.answers) in allowed, " ".join(interleaving.steps)
        count += 1
    assert count == encounter.interleavings


@pytest.mark.parametrize("status_type", STATUS_TYPES)
@pytest.mark.parametrize("name", FLIPS)
def test_a_flip_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str, status_type: StatusType
) -> None:
    assert_serial(arenas(status_type), FLIPS[name])


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), CLAIMS[name])


@pytest.mark.parametrize("name", CANCELLED)
def test_cancelling_what_moved_on_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), CANCELLED[name])


@pytest.mark.parametrize("name", HARMLESS)
def test_a_flip_beside_a_writer_who_changes_nothing_that_matters_is_done_or_left_to_the_next_cycle(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    arena, encounter = arenas("enum"), HARMLESS[name]
    arena.reset(encounter.before)
    _, other = encounter.sides(arena)
    answers, state = outcome(arena, in_order([other]))
    assert_serial(arena, encounter, ({"ours": LEFT_ALONE, **answers}, state))


def test_the_page_on_safety_says_how_many_interleavings_there_are() -> None:
    tables = (*[FLIPS] * len(STATUS_TYPES), HARMLESS, CLAIMS, CANCELLED)
    total = sum(encounter.interleavings for table in tables for encounter in table.values())
    assert f" {total:,} interleavings" in " ".join(PAGE.read_text().split())
