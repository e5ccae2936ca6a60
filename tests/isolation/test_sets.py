"""What interrupts a set of flips or claims: each workspace is flipped or claimed once and completely, or not at all.

The set is stopped at every one of its statements, on a real PostgreSQL.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.domain.model import SkipReason
from handler.domain.restarts import Step
from handler.errors import ConnectionLostError, LeaseLostError, RowLockedError, StoreError
from handler.store import Flipped
from handler.store.sqlstate import concerns_a_row
from sandbox.postgres import PostgresServer, StatusType
from tests.isolation.arena import (
    BEFORE,
    BOTH_DOUBTED,
    BOTH_OWED,
    DOUBTED,
    MATE,
    MATES,
    OURS,
    OWED,
    THEIRS,
    WORKSPACE,
    Arena,
    claim,
    flip,
    flip_after_events,
    save_doubts,
)
from tests.support.interleaving import TIMEOUT_S, InterruptedSession, interrupted_session

ONLINE = BEFORE.format(status="online", mates_status="online")
OFFLINE = BEFORE.format(status="offline", mates_status="offline")
BOTH = (WORKSPACE, MATE)
# BEGIN, lock the rows, lock the restarts, read our own tables, write, COMMIT.
FLIP_READS, FLIP_WRITES, FLIP_COMMITS = (1, 2, 3, 4), 5, 6
# BEGIN, the lease, lock the restarts, read their facts, claim, COMMIT.
CLAIM_READS, CLAIM_WRITES, CLAIM_COMMITS = (1, 2, 3, 4), 5, 6


@pytest.fixture
def arena(arenas: Callable[[StatusType], Arena]) -> Arena:
    return arenas("enum")


@pytest.fixture
def session(arena: Arena) -> Iterator[InterruptedSession]:
    session = interrupted_session(arena.url)
    yield session
    session.close()


def flipped(arena: Arena) -> list[str]:
    """Return which workspaces were flipped, each of them completely, and once; fail if one was flipped in part."""
    state = arena.state()
    offline = [row[0] for row in state["rows"] if row[2] == "offline"]
    assert [event[1] for event in state["events"] or ()] == offline
    open_restarts = [one[0] for one in state["restarts"] or () if one[11]]
    assert open_restarts == offline
    return offline


def claimed(arena: Arena) -> list[str]:
    """Return which restarts are claimed."""
    claims = [(one[0], one[5], one[9]) for one in arena.state()["restarts"]]
    assert all((attempts, answer) in ((0, None), (1, "claimed")) for _, attempts, answer in claims)
    return [one for one, attempts, _ in claims if attempts]


def outcomes(answer: Any) -> dict[str, Any]:
    """Return what a flip answered: True for a flip, or why not."""
    return {one: True if isinstance(outcome, Flipped) else outcome for one, outcome in answer.items()}


def steps(answer: Any) -> dict[str, Step]:
    return {one.restart.workspace_id: one.step for one in answer}


def test_the_numbers_of_the_statements_are_right(arena: Arena, session: InterruptedSession) -> None:
    for before, act, statements in ((ONLINE, flip, FLIP_COMMITS), (OFFLINE + BOTH_OWED, claim, CLAIM_COMMITS)):
        arena.reset(before)
        session.interrupt(lambda: None)
        act(arena, OURS, session=session)
        assert session.statements == statements


# --- the session dies ---


def dies(postgres: PostgresServer, session: InterruptedSession) -> Callable[[], object]:
    """Return something that ends the server's process of a session, as a crash does."""
    with session.transaction(Deadline(TIMEOUT_S), read_only=True) as transaction:
        ((pid,),) = transaction.run("SELECT pg_backend_pid()")
    return lambda: postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)")


@pytest.mark.parametrize("step", range(2, FLIP_COMMITS + 1))
def test_a_session_that_dies_before_a_statement_has_flipped_nobody_and_the_next_one_flips_both(
    arena: Arena, session: InterruptedSession, postgres: PostgresServer, step: int
) -> None:
    arena.reset(ONLINE)
    session.interrupt(dies(postgres, session), before=step)
    with pytest.raises(ConnectionLostError):
        flip(arena, OURS, session=session)
    assert flipped(arena) == []
    assert outcomes(flip(arena, OURS)) == dict.fromkeys(BOTH, True)
    assert flipped(arena) == [*BOTH]


@pytest.mark.parametrize("step", range(2, CLAIM_COMMITS + 1))
def test_a_session_that_dies_before_a_statement_has_claimed_nothing_and_the_next_one_claims_both(
    arena: Arena, session: InterruptedSession, postgres: PostgresServer, step: int
) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    session.interrupt(dies(postgres, session), before=step)
    with pytest.raises(ConnectionLostError):
        claim(arena, OURS, session=session)
    assert claimed(arena) == []
    assert steps(claim(arena, OURS)) == dict.fromkeys(BOTH, Step.ASK)


def lose(session: InterruptedSession) -> Callable[[], None]:
    """Return something that loses the connection, so that nobody learns how the statement went."""

    def happen() -> None:
        session.close()
        raise ConnectionLostError("lost")

    return happen


def test_a_set_of_flips_whose_commit_nobody_learnt_of_is_not_flipped_again(
    arena: Arena, session: InterruptedSession
) -> None:
    arena.reset(ONLINE)
    session.interrupt(lose(session), after=FLIP_COMMITS)
    with pytest.raises(ConnectionLostError):
        flip(arena, OURS, session=session)
    left = arena.state()
    assert flipped(arena) == [*BOTH]
    assert outcomes(flip(arena, OURS)) == dict.fromkeys(BOTH, SkipReason.STATUS_MOVED)
    assert arena.state() == left


def test_a_set_of_claims_whose_commit_nobody_learnt_of_is_not_claimed_again(
    arena: Arena, session: InterruptedSession
) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    session.interrupt(lose(session), after=CLAIM_COMMITS)
    with pytest.raises(ConnectionLostError):
        claim(arena, OURS, session=session)
    left = arena.state()
    assert claimed(arena) == [*BOTH]
    assert steps(claim(arena, OURS)) == dict.fromkeys(BOTH, Step.WAIT)
    assert arena.state() == left


# --- the lease is lost ---


@pytest.fixture
def lease(arena: Arena) -> Iterator[Callable[[], None]]:
    """Something that ends our lease; it is ours again after the test."""
    yield lambda: arena.reset("UPDATE reconciler.lease SET expires_at = clock_timestamp() WHERE scope = 'ours'")
    arena.reset("UPDATE reconciler.lease SET expires_at = now() + interval '1 day'")


@pytest.mark.parametrize("step", [*FLIP_READS[1:], FLIP_WRITES])
def test_a_lease_that_is_lost_before_the_write_flips_nobody(
    arena: Arena, session: InterruptedSession, lease: Callable[[], None], step: int
) -> None:
    arena.reset(ONLINE)
    session.interrupt(lease, before=step)
    assert outcomes(flip(arena, OURS, session=session)) == dict.fromkeys(BOTH, SkipReason.OUT_OF_TIME)
    assert flipped(arena) == []


def test_a_lease_that_is_lost_after_the_write_flips_both_for_their_locks_are_ours(
    arena: Arena, session: InterruptedSession, lease: Callable[[], None]
) -> None:
    arena.reset(ONLINE)
    session.interrupt(lease, before=FLIP_COMMITS)
    assert outcomes(flip(arena, OURS, session=session)) == dict.fromkeys(BOTH, True)
    assert flipped(arena) == [*BOTH]


@pytest.mark.parametrize("step", [*CLAIM_READS[2:], CLAIM_WRITES])
def test_a_lease_that_is_lost_before_the_claim_claims_nothing(
    arena: Arena, session: InterruptedSession, lease: Callable[[], None], step: int
) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    session.interrupt(lease, before=step)
    assert steps(claim(arena, OURS, session=session)) == dict.fromkeys(BOTH, Step.WAIT)
    assert claimed(arena) == []


@pytest.mark.parametrize("step", [4, 5])
def test_a_lease_that_is_lost_between_forgetting_doubts_and_saving_some_saves_none(
    arena: Arena, session: InterruptedSession, lease: Callable[[], None], step: int
) -> None:
    """They are two transactions, each of BEGIN, the lease, what there is to write, COMMIT."""
    arena.reset(ONLINE + DOUBTED)
    before = arena.state()
    session.interrupt(lease, before=step)
    with pytest.raises(LeaseLostError):
        save_doubts(arena, OURS, session=session)
    assert arena.state() == before


@pytest.mark.parametrize("step", FLIP_READS[1:])
def test_an_expiry_that_passes_in_mid_transaction_flips_nobody(
    arena: Arena, session: InterruptedSession, step: int
) -> None:
    """A state-change cycle has no lease. It was frozen after its BEGIN, and its time is over when it writes."""
    arena.reset(ONLINE)
    right = arena.expiry(OURS)
    session.interrupt(lambda: right.own.update(expires_at=time.time()), before=step)
    assert outcomes(flip(arena, OURS, session=session, right=right)) == dict.fromkeys(BOTH, SkipReason.OUT_OF_TIME)
    assert flipped(arena) == []


@pytest.mark.parametrize("step", [*FLIP_READS[1:], FLIP_WRITES, FLIP_COMMITS])
@pytest.mark.parametrize("ours", [flip, flip_after_events], ids=["a full cycle", "an event cycle"])
def test_a_full_cycle_and_an_event_cycle_that_meet_at_a_row_flip_it_once(
    arena: Arena, session: InterruptedSession, ours: Callable[..., Any], step: int
) -> None:
    """The other one does everything before a statement of ours. Until we have locked the row, it flips it."""
    arena.reset(ONLINE)
    theirs = flip_after_events if ours is flip else flip
    told: dict[str, Any] = {}
    session.interrupt(lambda: told.update(outcomes(theirs(arena, THEIRS, of=(MATE,)))), before=step)
    ours_told = outcomes(ours(arena, OURS, session=session))
    is_first = step == FLIP_READS[1]
    assert told == {MATE: True if is_first else SkipReason.ROW_LOCKED}
    assert ours_told == {WORKSPACE: True, MATE: SkipReason.STATUS_MOVED if is_first else True}
    assert flipped(arena) == [*BOTH]


# --- a hold is placed ---

HOLD = "INSERT INTO reconciler.holds (workspace_id, reason, ends_at) VALUES ({}, 'now', now() + interval '1 hour')"
HELD = {"one": (f"'{MATE}'", [WORKSPACE]), "everything": ("NULL", [])}


@pytest.mark.parametrize("which", HELD)
@pytest.mark.parametrize("step", [*FLIP_READS[1:], FLIP_WRITES])
def test_a_hold_that_is_placed_before_the_write_exempts_its_own_workspaces_and_no_other(
    arena: Arena, session: InterruptedSession, step: int, which: str
) -> None:
    held, others = HELD[which]
    arena.reset(ONLINE)
    session.interrupt(lambda: arena.reset(HOLD.format(held)), before=step)
    flip(arena, OURS, session=session)
    assert flipped(arena) == others


@pytest.mark.parametrize("which", HELD)
@pytest.mark.parametrize("step", [*FLIP_READS[1:], FLIP_WRITES])
def test_a_hold_that_is_placed_before_the_write_keeps_its_own_workspaces_from_being_adopted(
    arena: Arena, session: InterruptedSession, step: int, which: str
) -> None:
    held, others = HELD[which]
    arena.reset(OFFLINE + BOTH_DOUBTED)
    session.interrupt(lambda: arena.reset(HOLD.format(held)), before=step)
    flip(arena, OURS, session=session, offline=True)
    assert [one[0] for one in arena.state()["restarts"] or ()] == others


@pytest.mark.parametrize("which", HELD)
@pytest.mark.parametrize("step", [*CLAIM_READS[1:], CLAIM_WRITES])
def test_a_hold_that_is_placed_before_the_claim_keeps_its_own_restarts_back_and_no_other(
    arena: Arena, session: InterruptedSession, step: int, which: str
) -> None:
    held, others = HELD[which]
    arena.reset(OFFLINE + BOTH_OWED)
    session.interrupt(lambda: arena.reset(HOLD.format(held)), before=step)
    assert [one for one, step in steps(claim(arena, OURS, session=session)).items() if step is Step.ASK] == others
    assert claimed(arena) == others


# --- somebody has locked something ---


def locked(arena: Arena, statement: str) -> contextlib.ExitStack:
    """Let somebody run a statement, and not commit."""
    stack = contextlib.ExitStack()
    arena.statements.run(("BEGIN", statement))
    stack.callback(arena.statements.run, ("ROLLBACK",))
    return stack


@pytest.mark.parametrize("strength", ["UPDATE", "NO KEY UPDATE", "SHARE"])
def test_a_locked_row_costs_itself_and_is_flipped_by_the_next_cycle(arena: Arena, strength: str) -> None:
    arena.reset(ONLINE)
    with locked(arena, f"SELECT FROM workspaces WHERE id = '{MATE}' FOR {strength}"):
        assert outcomes(flip(arena, OURS)) == {WORKSPACE: True, MATE: SkipReason.ROW_LOCKED}
        assert flipped(arena) == [WORKSPACE]
    assert outcomes(flip(arena, OURS)) == {WORKSPACE: SkipReason.STATUS_MOVED, MATE: True}


def test_a_row_that_a_foreign_key_only_refers_to_is_flipped(arena: Arena) -> None:
    arena.reset(ONLINE)
    with locked(arena, f"SELECT FROM workspaces WHERE id = '{MATE}' FOR KEY SHARE"):
        assert outcomes(flip(arena, OURS)) == dict.fromkeys(BOTH, True)


@pytest.mark.parametrize("step", [3, 4, FLIP_WRITES])
def test_whoever_wants_a_row_in_mid_set_waits_for_its_end_and_finds_it_flipped(
    arena: Arena, session: InterruptedSession, step: int
) -> None:
    arena.reset(ONLINE)

    def want(_: object = None) -> None:
        with pytest.raises(Exception, match="could not obtain lock"):
            arena.statements.run((f"SELECT FROM workspaces WHERE id = '{MATE}' FOR UPDATE NOWAIT",))

    session.interrupt(want, before=step)
    assert outcomes(flip(arena, OURS, session=session)) == dict.fromkeys(BOTH, True)


def test_an_older_restart_that_is_locked_costs_its_own_flip_alone(arena: Arena) -> None:
    arena.reset(ONLINE + OWED)
    with locked(arena, "SELECT FROM reconciler.restarts WHERE id = 1 FOR UPDATE"):
        assert outcomes(flip(arena, OURS)) == {WORKSPACE: SkipReason.ROW_LOCKED, MATE: True}


def test_a_restart_that_is_locked_costs_its_own_claim_alone(arena: Arena) -> None:
    arena.reset(OFFLINE + BOTH_OWED)
    with locked(arena, "SELECT FROM reconciler.restarts WHERE id = 1 FOR UPDATE"):
        assert steps(claim(arena, OURS)) == {MATE: Step.ASK}
        assert claimed(arena) == [MATE]


def test_locked_doubts_outlive_the_flip_and_prevent_nothing(arena: Arena) -> None:
    arena.reset(ONLINE)
    for one, instance in ((WORKSPACE, "i-00000000000000001"), (MATE, MATES)):
        arena.reset(
            f"INSERT INTO reconciler.doubts (workspace_id, kind, instance_id) VALUES ('{one}', 'dead', '{instance}')"  # noqa: S608
        )
    with locked(arena, f"SELECT FROM reconciler.doubts WHERE workspace_id = '{MATE}' FOR UPDATE"):
        assert outcomes(flip(arena, OURS)) == dict.fromkeys(BOTH, True)
    assert [doubt[0] for doubt in arena.state()["doubts"]] == [MATE]


# --- the database refuses one row ---

REFUSALS = {
    "its update": "BEFORE UPDATE ON workspaces FOR EACH ROW WHEN (NEW.name = 'two')",
    "its event": f"BEFORE INSERT ON structure_events FOR EACH ROW WHEN (NEW.workspace_id = '{MATE}')",
    "its restart": f"BEFORE INSERT ON reconciler.restarts FOR EACH ROW WHEN (NEW.workspace_id = '{MATE}')",
}
TROUBLE = {
    "an error": "RAISE EXCEPTION 'no' USING ERRCODE = '23514'",
    "another server's": "RAISE EXCEPTION 'read only' USING ERRCODE = '25006'",
    "no row": "RETURN NULL",
}


@pytest.fixture
def refusing(arena: Arena) -> Iterator[Callable[[str, str], None]]:
    """Make a trigger that refuses the second workspace something."""

    def refuse(what: str, how: str) -> None:
        arena.reset(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {how}; END $$")
        arena.reset(f"CREATE TRIGGER refuse {what} EXECUTE FUNCTION refuse()")

    yield refuse
    arena.reset("DROP FUNCTION IF EXISTS refuse CASCADE")


@pytest.mark.parametrize(
    ("what", "how"),
    # A trigger may well put an event elsewhere, as in a partition of its own.
    [(what, how) for what, how in itertools.product(REFUSALS, TROUBLE) if (what, how) != ("its event", "no row")],
)
def test_a_row_that_the_database_refuses_leaves_no_trace_of_the_set_and_alone_costs_itself(
    arena: Arena, refusing: Callable[[str, str], None], what: str, how: str
) -> None:
    arena.reset(ONLINE)
    refusing(REFUSALS[what], TROUBLE[how])
    before = arena.state()
    with pytest.raises(StoreError) as raised:
        flip(arena, OURS)
    assert concerns_a_row(raised.value)
    assert arena.state() == before
    assert outcomes(flip(arena, OURS, of=(WORKSPACE,))) == {WORKSPACE: True}
    with pytest.raises(StoreError):
        flip(arena, OURS, of=(MATE,))
    assert flipped(arena) == [WORKSPACE]


def test_a_restart_that_somebody_is_inserting_is_one_row_s_trouble(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.store.flip.LOCK_WAIT_SECONDS", 0.05)
    arena.reset(ONLINE)
    with locked(arena, OWED):
        with pytest.raises(RowLockedError) as raised:
            flip(arena, OURS)
        assert concerns_a_row(raised.value)
        assert flipped(arena) == []
        assert outcomes(flip(arena, OURS, of=(MATE,))) == {MATE: True}
