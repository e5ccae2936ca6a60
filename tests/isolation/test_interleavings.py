"""A set of flips or claims beside any other writer: every interleaving ends as if one side had gone first.

Whatever becomes of one workspace in a set, the other is flipped or claimed. Two connections to a real PostgreSQL at
READ COMMITTED. The reconciler's side is the handler's own code, stopped before each statement. The expected outcomes
are not written down here: both sides run one after the other, in both orders, and every interleaving has to end like
one of the two, in all tables and in the answers that each side gets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from handler.domain.model import SkipReason
from handler.domain.restarts import Step
from handler.store import Flipped
from sandbox.postgres import StatusType
from tests.guards.__main__ import PAGE
from tests.isolation.arena import (
    ACCEPTED,
    BEFORE,
    BOTH_DOUBTED,
    BOTH_OWED,
    DOUBTED,
    MATE,
    OURS,
    OWED,
    THEIRS,
    WORKSPACE,
    Arena,
    adopt,
    cancel_moved_on,
    claim,
    flip,
    flip_after_events,
    hold,
    owe_again,
    place_hold,
    put_off,
    tend_doubts,
)
from tests.support.interleaving import Side, all_interleavings, in_order

LEFT_ALONE = "left alone"
STATUS_TYPES: tuple[StatusType, ...] = ("enum", "text")


def told(answer: object) -> object:
    """Return what an answer says. What a lock or the row prevented counts as left alone.

    Raises the errors that nobody expects.
    """
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, Mapping):  # a flip's
        return {one: _flipped(outcome) for one, outcome in answer.items()}
    if isinstance(answer, list):  # a claim's
        found = {one.restart.workspace_id: str(one.step) for one in answer if one.step is not Step.WAIT}
        return {one: found.get(one, LEFT_ALONE) for one in (WORKSPACE, MATE)}
    return answer


def flip_alone(arena: Arena, cycle: str) -> object:
    return flip(arena, cycle, of=(WORKSPACE,))


def event_flip_alone(arena: Arena, cycle: str) -> object:
    return flip_after_events(arena, cycle, of=(WORKSPACE,))


def _flipped(outcome: Flipped | SkipReason) -> object:
    if isinstance(outcome, SkipReason):
        return LEFT_ALONE
    return "flipped", None if outcome.superseded is None else outcome.superseded.id


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
REVIVES = "UPDATE workspaces SET status = 'online', last_heartbeat_at = now(), updated_at = now() WHERE name = 'one'"
SETTLING_WRITES = ("it is paused", "its row is deleted", "it is reprovisioned", "its instance is cleared")
HARMLESS_WRITES: Mapping[str, str] = {
    "it degrades": "UPDATE workspaces SET status = 'degraded' WHERE name = 'one' AND status = 'online'",
    "it is renamed": "UPDATE workspaces SET name = 'another' WHERE name = 'one'",
    "somebody only looks at it": "SELECT FROM workspaces WHERE name = 'one' FOR UPDATE",
}


@dataclass(frozen=True, slots=True)
class Encounter:
    """Two sides that use the first row, which has this status; the second row's; and what else there is before."""

    ours: Callable[[Arena, str], object]
    theirs: Callable[[Arena, str], object] | str
    status: str
    mates_status: str
    besides: str
    interleavings: int

    def sides(self, arena: Arena) -> tuple[Side, Side]:
        theirs = self.theirs
        other = arena.platform(theirs) if isinstance(theirs, str) else arena.handler(THEIRS, theirs)
        return arena.handler(OURS, self.ours), other

    @property
    def before(self) -> str:
        return BEFORE.format(status=self.status, mates_status=self.mates_status) + self.besides


def flips(theirs: Callable[[Arena, str], object] | str, interleavings: int, besides: str = "") -> Encounter:
    return Encounter(flip, theirs, "online", "online", besides, interleavings)


def adoptions(theirs: Callable[[Arena, str], object] | str, interleavings: int, besides: str = "") -> Encounter:
    return Encounter(adopt, theirs, "offline", "offline", BOTH_DOUBTED + besides, interleavings)


def again(theirs: Callable[[Arena, str], object] | str, interleavings: int) -> Encounter:
    return Encounter(owe_again, theirs, "offline", "offline", ACCEPTED, interleavings)


def claims(
    theirs: Callable[[Arena, str], object] | str, interleavings: int, status: str = "offline", besides: str = BOTH_OWED
) -> Encounter:
    return Encounter(claim, theirs, status, "offline", besides, interleavings)


FLIPS = {name: flips(write, 44) for name, write in WRITES.items()}
FLIPS_BESIDE_US = {
    "another cycle flips both": flips(flip, 532),
    "another cycle flips it alone": flips(flip_alone, 728),
    "an event cycle flips it": flips(event_flip_alone, 728),
    "it is put on hold": flips(place_hold, 210),
    "its doubts are tended": flips(tend_doubts, 210, DOUBTED),
}
EVENT_FLIPS = {
    "a heartbeat comes": Encounter(event_flip_alone, WRITES["a heartbeat comes"], "online", "online", "", 41),
    "it is paused": Encounter(event_flip_alone, WRITES["it is paused"], "online", "online", "", 41),
}
# They lock something for a while, and leave behind a candidate whose instance is dead.
HARMLESS = {
    **{name: flips(write, 44) for name, write in HARMLESS_WRITES.items()},
    "an older restart of its is claimed": flips(claim, 743, OWED),
    "restarts that moved on are cancelled": flips(cancel_moved_on, 210, OWED),
}
CLAIMS = {
    **{name: claims(WRITES[name], 84) for name in SETTLING_WRITES},
    "another cycle claims both": claims(claim, 562),
    "another cycle finds that the row has moved on": claims(claim, 1092, "paused"),
    "another cycle puts it off": claims(put_off, 462),
    "restarts that moved on are cancelled": claims(cancel_moved_on, 210),
    "restarts that moved on are cancelled, this one as well": claims(cancel_moved_on, 320, "paused"),
}
CLAIM_AND_HOLD = claims(hold, 1716)
CANCELLED = {
    name: Encounter(cancel_moved_on, WRITES[name], "offline", "offline", BOTH_OWED, 35) for name in SETTLING_WRITES
}
ADOPTIONS = {
    **{name: adoptions(WRITES[name], 44) for name in SETTLING_WRITES},
    "a heartbeat sets it online": adoptions(REVIVES, 44),
    "another cycle adopts both": adoptions(adopt, 532),
    "it is put on hold": adoptions(place_hold, 210),
}
ADOPTION_AND_WATCH = adoptions(owe_again, 84, ACCEPTED)
OWED_AGAIN = {
    **{name: again(WRITES[name], 20) for name in SETTLING_WRITES},
    "another cycle does the same": again(owe_again, 20),
    "it is put on hold": again(place_hold, 35),
}
ALL = (
    *[FLIPS] * len(STATUS_TYPES),
    *(FLIPS_BESIDE_US, EVENT_FLIPS, HARMLESS, CLAIMS, CANCELLED, ADOPTIONS, OWED_AGAIN),
    {"a claim and a hold": CLAIM_AND_HOLD, "an adoption and a watch": ADOPTION_AND_WATCH},
)


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
    assert count == encounter.interleavings, count


@pytest.mark.parametrize("status_type", STATUS_TYPES)
@pytest.mark.parametrize("name", FLIPS)
def test_a_flip_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str, status_type: StatusType
) -> None:
    assert_serial(arenas(status_type), FLIPS[name])


@pytest.mark.parametrize("name", FLIPS_BESIDE_US)
def test_a_flip_beside_another_cycle_or_a_hold_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), FLIPS_BESIDE_US[name])


@pytest.mark.parametrize("name", EVENT_FLIPS)
def test_an_event_cycles_flip_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), EVENT_FLIPS[name])


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), CLAIMS[name])


def test_a_claim_beside_a_hold_is_prevented_or_told_of(arenas: Callable[[StatusType], Arena]) -> None:
    """A restart that the claim has locked, and then leaves alone because of the hold, may also be told of."""
    arena = arenas("enum")
    _, (answers, state) = serial_outcomes(arena, CLAIM_AND_HOLD)
    assert answers == {"ours": {WORKSPACE: LEFT_ALONE, MATE: "ask"}, "theirs": (1, [])}
    assert_serial(arena, CLAIM_AND_HOLD, (answers | {"theirs": (1, [WORKSPACE])}, state))


@pytest.mark.parametrize("name", ADOPTIONS)
def test_an_adoption_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), ADOPTIONS[name])


def test_what_a_watch_may_owe_again_is_never_adopted(arenas: Callable[[StatusType], Arena]) -> None:
    """While the adoption looks at the watched restart, nothing is owed again: the next cycle does it."""
    arena = arenas("enum")
    arena.reset(ADOPTION_AND_WATCH.before)
    answers, state = outcome(arena, in_order([arena.handler(OURS, adopt)]))
    assert answers["ours"][WORKSPACE] == LEFT_ALONE
    assert_serial(arena, ADOPTION_AND_WATCH, (answers | {"theirs": 0}, state))


@pytest.mark.parametrize("name", OWED_AGAIN)
def test_owing_a_restart_again_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), OWED_AGAIN[name])


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
    mate_alone = arena.handler(OURS, lambda arena, cycle: flip(arena, cycle, of=(MATE,)))
    answers, state = outcome(arena, in_order([other, mate_alone]))
    answers["ours"] |= {WORKSPACE: LEFT_ALONE}
    assert_serial(arena, encounter, (answers, state))


def test_the_page_on_safety_says_how_many_interleavings_there_are() -> None:
    total = sum(encounter.interleavings for table in ALL for encounter in table.values())
    assert f" {total:,} interleavings" in " ".join(PAGE.read_text().split())
