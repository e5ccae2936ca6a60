"""A flip or a claim beside everybody else who writes: in whatever order the statements come, one of both went first.

Two connections to a real PostgreSQL at READ COMMITTED. The reconciler's side is the handler's own code, stopped before
each statement. What may come out is not written here: both sides do everything one after the other, in either order,
and every interleaving has to end like one of the two, in all tables and in what each side was told.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.decide import CrashLoop
from handler.errors import RowLockedError
from handler.model import Debt, Sighting, SkipReason, Verdict, Workspace
from handler.registry import Debts, Flipped, Holds, Lease, Rows, Terms
from sandbox.postgres import Database, PostgresServer, StatusType
from tests.support.interleaving import (
    TIMEOUT_S,
    Side,
    SteppedSession,
    SteppedStatements,
    in_order,
    interleavings,
    stepped_session,
)

WORKSPACE = "00000000-0000-4000-8000-000000000001"
OLD = "i-00000000000000001"
OURS, THEIRS = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
EARLIER = "00000000-0000-4000-8000-00000000000c"
# As with shards, so that what is tested is not the lease: "Nothing is doubled without it".
SCOPES = {OURS: "ours", THEIRS: "theirs"}
DEBT = Debt(1, WORKSPACE, OLD, 0, 0, of_this_cycle=False)
HEARTBEAT = "2026-01-01 00:00:00+00"
LEFT_ALONE = "left alone"

# Everything that either side could have changed. A time is told only as far as it matters.
_STATE = """
SELECT json_build_object(
    'rows', (SELECT json_agg(json_build_array(
        id, name, status, runtime, instance_id, url, last_heartbeat_at > CAST(:heartbeat AS timestamptz),
        updated_at > CAST(:heartbeat AS timestamptz))) FROM workspaces),
    'events', (SELECT json_agg(json_build_array(event_type, workspace_id, payload)) FROM structure_events),
    'debts', (SELECT json_agg(json_build_array(
        workspace_id, instance_id, cycle_id, attempts, refusals, claimed_by, asked_at IS NULL, last_answer, outcome,
        closed_at IS NULL, next_attempt_at > now() + interval '1 minute', streak, paused_until)
        ORDER BY id) FROM reconciler.restarts),
    'holds', (SELECT json_agg(json_build_array(workspace_id, reason)) FROM reconciler.holds)
)::text
"""

_BEFORE = f"""
DELETE FROM workspaces; DELETE FROM structure_events; DELETE FROM reconciler.restarts; DELETE FROM reconciler.holds;
INSERT INTO workspaces (id, name, status, instance_id, last_heartbeat_at, updated_at)
VALUES ('{WORKSPACE}', 'one', '{{status}}', '{OLD}', '{HEARTBEAT}', '{HEARTBEAT}');
"""  # noqa: S608 - put together from constants
_OWED = f"""
INSERT INTO reconciler.restarts (id, workspace_id, instance_id, cycle_id, next_attempt_at) OVERRIDING SYSTEM VALUE
VALUES (1, '{WORKSPACE}', '{OLD}', '{EARLIER}', now() - interval '1 hour');
"""  # noqa: S608 - put together from constants
_ONCE = f"""
ALTER TABLE reconciler.restarts ALTER id RESTART WITH 1000;
INSERT INTO reconciler.lease (scope, holder, expires_at)
VALUES ('ours', '{OURS}', now() + interval '1 day'), ('theirs', '{THEIRS}', now() + interval '1 day')
"""  # noqa: S608 - put together from constants


class Arena:
    """One database, two sessions of the handler's, the platform's connection, and one to look on."""

    def __init__(self, database: Database) -> None:
        self.sessions = {cycle: stepped_session(database.url) for cycle in SCOPES}
        self._platform = database.connect()
        self._onlooker = database.connect()
        self.statements = SteppedStatements(self._platform)
        self._onlooker.run(_ONCE)
        self._pids = {cycle: _pid_of(session) for cycle, session in self.sessions.items()}
        self._platform_pid = int(self._platform.run("SELECT pg_backend_pid()")[0][0])

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
        self._platform.close()
        self._onlooker.close()

    def handler(self, cycle: str, act: Callable[["Arena", str], Any]) -> Side:
        """Return a side that is the handler's code, in the name of that cycle."""
        return Side(SCOPES[cycle], self.sessions[cycle], self._pids[cycle], lambda: act(self, cycle))

    def platform(self, *statements: str) -> Side:
        """Return a side that is plain SQL: a transaction of the platform's."""
        run = self.statements.run
        return Side("platform", self.statements, self._platform_pid, lambda: run(("BEGIN", *statements, "COMMIT")))

    def lease(self, cycle: str) -> Lease:
        lease = Lease(self.sessions[cycle], cycle)
        lease.own = {"scope": SCOPES[cycle], "cycle_id": cycle}
        return lease

    def blocked(self, pid: int) -> bool:
        return bool(self._onlooker.run("SELECT cardinality(pg_blocking_pids(:pid)) > 0", pid=pid)[0][0])

    def reset(self, before: str) -> None:
        self._onlooker.run(before)

    def state(self) -> Any:
        return json.loads(self._onlooker.run(_STATE, heartbeat=HEARTBEAT)[0][0])


def _pid_of(session: SteppedSession) -> int:
    with session.transaction(Deadline(TIMEOUT_S), read_only=True) as transaction:
        return int(transaction.run("SELECT pg_backend_pid()")[0][0])


@pytest.fixture(scope="module")
def arenas(postgres: PostgresServer) -> Iterator[Callable[[StatusType], Arena]]:
    """Arenas by the type of the status column, each made once."""
    made: dict[StatusType, Arena] = {}
    with contextlib.ExitStack() as parts:

        def arena(status_type: StatusType) -> Arena:
            if status_type not in made:
                database = postgres.create_database(status_type)
                parts.callback(database.drop)
                made[status_type] = Arena(database)
                parts.callback(made[status_type].close)
            return made[status_type]

        yield arena


# --- what the reconciler does ---


def flip(arena: Arena, cycle: str) -> object:
    sighting = Sighting(Workspace(WORKSPACE, OLD, HEARTBEAT), Verdict.DEAD, "terminated")
    rows = Rows(arena.sessions[cycle], cycle, arena.lease(cycle))
    terms = Terms(HEARTBEAT, 60, CrashLoop(600, 3600))
    return rows.flip(Deadline(TIMEOUT_S), sighting, terms)


def claim(arena: Arena, cycle: str) -> object:
    debts = Debts(arena.sessions[cycle], cycle, arena.lease(cycle))
    return debts.claim(Deadline(TIMEOUT_S), DEBT, uncertain_s=300)


def follow_rows(arena: Arena, cycle: str) -> object:
    debts = Debts(arena.sessions[cycle], cycle, arena.lease(cycle))
    return debts.follow_rows(Deadline(TIMEOUT_S), own_only=False)


def leave(arena: Arena, cycle: str) -> None:
    Debts(arena.sessions[cycle], cycle, arena.lease(cycle)).leave(Deadline(TIMEOUT_S), [DEBT], pause_s=300)


def hold(arena: Arena, cycle: str) -> object:
    holds = Holds(arena.sessions[cycle])
    return len(holds.place(Deadline(TIMEOUT_S), [WORKSPACE], reason="maintenance", lasts_s=3600))


def told(answer: object) -> object:
    """Return what an answer says of what was done. That a flip was not, because of a lock or of the row, is one.

    Raises the errors that nobody expects.
    """
    if isinstance(answer, SkipReason | RowLockedError):
        return LEFT_ALONE
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, Flipped):
        return ("flipped", [debt.id for debt in answer.superseded])
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
# They hold the row's lock for a while, and leave a candidate behind whose instance is dead.
HARMLESS_WRITES: Mapping[str, str] = {
    "it degrades": "UPDATE workspaces SET status = 'degraded' WHERE name = 'one' AND status = 'online'",
    "it is renamed": "UPDATE workspaces SET name = 'another' WHERE name = 'one'",
    "somebody only looks at it": "SELECT FROM workspaces WHERE name = 'one' FOR UPDATE",
}


@dataclass(frozen=True, slots=True)
class Encounter:
    """Two sides that meet, in a row with that status, with or without a restart that is owed to it."""

    ours: Callable[[Arena, str], object]
    theirs: Callable[[Arena, str], object] | str
    status: str
    owed: bool
    courses: int

    def sides(self, arena: Arena) -> tuple[Side, Side]:
        theirs = self.theirs
        other = arena.platform(theirs) if isinstance(theirs, str) else arena.handler(THEIRS, theirs)
        return arena.handler(OURS, self.ours), other

    @property
    def before(self) -> str:
        return _BEFORE.format(status=self.status) + (_OWED if self.owed else "")


FLIPS = {
    **{name: Encounter(flip, write, "online", owed=False, courses=22) for name, write in WRITES.items()},
    "another cycle flips it": Encounter(flip, flip, "online", owed=False, courses=44),
    "it is put on hold": Encounter(flip, hold, "online", owed=False, courses=77),
    "an older restart of its is claimed": Encounter(flip, claim, "online", owed=True, courses=109),
    "older restarts are settled by the rows": Encounter(flip, follow_rows, "online", owed=True, courses=91),
}
HARMLESS = {name: Encounter(flip, write, "online", owed=False, courses=22) for name, write in HARMLESS_WRITES.items()}
CLAIMS = {
    **{name: Encounter(claim, WRITES[name], "offline", owed=True, courses=84) for name in SETTLING_WRITES},
    "another payer claims it": Encounter(claim, claim, "offline", owed=True, courses=310),
    "another payer finds that the row has moved on": Encounter(claim, claim, "paused", owed=True, courses=310),
    "another payer leaves it for later": Encounter(claim, leave, "offline", owed=True, courses=109),
    "the workspace is put on hold": Encounter(claim, hold, "offline", owed=True, courses=229),
    "restarts are settled by the rows": Encounter(claim, follow_rows, "offline", owed=True, courses=462),
    "restarts are settled by the rows, this one as well": Encounter(
        claim, follow_rows, "paused", owed=True, courses=246
    ),
}
FOLLOWED = {name: Encounter(follow_rows, WRITES[name], "offline", owed=True, courses=56) for name in SETTLING_WRITES}


def outcome(arena: Arena, answers: Mapping[str, Any]) -> Any:
    return {name: told(answer) for name, answer in answers.items()}, arena.state()


def serial_outcomes(arena: Arena, encounter: Encounter) -> list[Any]:
    """Return what comes out when our side goes first, and when the other does."""
    outcomes = []
    for order in (1, -1):
        arena.reset(encounter.before)
        outcomes.append(outcome(arena, in_order(encounter.sides(arena)[::order])))
    return outcomes


def assert_serial(arena: Arena, encounter: Encounter, *besides: Any) -> None:
    """Fail unless every interleaving ends like one of the two orders, and there are as many as were counted.

    `besides` are outcomes that are allowed, too.
    """
    allowed = [*serial_outcomes(arena, encounter), *besides]
    courses = 0
    for course in interleavings(encounter.sides(arena), arena.blocked, lambda: arena.reset(encounter.before)):
        assert outcome(arena, course.answers) in allowed, " ".join(course.steps)
        courses += 1
    assert courses == encounter.courses


@pytest.mark.parametrize("status_type", ["enum", "text"])
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


@pytest.mark.parametrize("name", FOLLOWED)
def test_settling_by_the_rows_beside_another_writer_ends_as_if_one_of_them_had_gone_first(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    assert_serial(arenas("enum"), FOLLOWED[name])


@pytest.mark.parametrize("name", HARMLESS)
def test_a_flip_beside_a_writer_who_changes_nothing_that_matters_is_done_or_left_to_the_next_cycle(
    arenas: Callable[[StatusType], Arena], name: str
) -> None:
    arena, encounter = arenas("enum"), HARMLESS[name]
    arena.reset(encounter.before)
    _, other = encounter.sides(arena)
    answers, state = outcome(arena, in_order([other]))
    assert_serial(arena, encounter, ({"ours": LEFT_ALONE, **answers}, state))
