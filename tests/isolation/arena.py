"""One database and its users: two sessions of the handler, the platform, and an observer."""

import json
from collections.abc import Callable
from typing import Any

from handler.deadline import Deadline
from handler.domain.coverage import Coverage, Progress
from handler.domain.model import Restart, Sighting, Verdict, Workspace
from handler.domain.policy import CrashLoopPolicy
from handler.store import FlipPolicy, Flips, Holds, Restarts
from handler.store.lease import Lease
from handler.store.memory import CycleMemory
from sandbox.postgres import Database
from tests.support.interleaving import TIMEOUT_S, Side, SteppedSession, SteppedStatements, stepped_session

WORKSPACE = "00000000-0000-4000-8000-000000000001"
OLD = "i-00000000000000001"
FORGOTTEN = "00000000-0000-4000-8000-000000000002"
OURS, THEIRS = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
EARLIER = "00000000-0000-4000-8000-00000000000c"
# As with shards, so that what is tested is not the lease: "Nothing is doubled without it".
SCOPES = {OURS: "ours", THEIRS: "theirs"}
RESTART = Restart(1, WORKSPACE, OLD, 0, 0, of_this_cycle=False)
HEARTBEAT = "2026-01-01 00:00:00+00"

# Everything that either side could have changed. Times are compared only where they matter.
_STATE = """
SELECT json_build_object(
    'rows', (SELECT json_agg(json_build_array(
        id, name, status, runtime, instance_id, url, last_heartbeat_at > CAST(:heartbeat AS timestamptz),
        updated_at > CAST(:heartbeat AS timestamptz))) FROM workspaces),
    'events', (SELECT json_agg(json_build_array(event_type, workspace_id, payload)) FROM structure_events),
    'restarts', (SELECT json_agg(json_build_array(
        workspace_id, instance_id, cycle_id, attempts, refusals, claimed_by, asked_at IS NULL, last_answer, outcome,
        closed_at IS NULL, due_at > now() + interval '1 minute', streak, backoff_until)
        ORDER BY id) FROM reconciler.restarts),
    'holds', (SELECT json_agg(json_build_array(workspace_id, reason)) FROM reconciler.holds),
    'absences', (SELECT json_agg(json_build_array(workspace_id, instance_id, sightings)) FROM reconciler.absences),
    'coverage', (SELECT json_agg(json_build_array(cursor, pass_completed_at)) FROM reconciler.coverage)
)::text
"""

BEFORE = f"""
DELETE FROM workspaces; DELETE FROM structure_events; DELETE FROM reconciler.restarts; DELETE FROM reconciler.holds;
INSERT INTO workspaces (id, name, status, instance_id, last_heartbeat_at, updated_at)
VALUES ('{WORKSPACE}', 'one', '{{status}}', '{OLD}', '{HEARTBEAT}', '{HEARTBEAT}');
"""  # noqa: S608 - put together from constants
OWED = f"""
INSERT INTO reconciler.restarts (id, workspace_id, instance_id, cycle_id, due_at) OVERRIDING SYSTEM VALUE
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
        self._state = self._onlooker.prepare(_STATE)
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

    def reset(self, statements: str) -> None:
        """Run statements that make the world as a test wants it."""
        self._onlooker.run(statements)

    def state(self) -> Any:
        return json.loads(self._state.run(heartbeat=HEARTBEAT)[0][0])


def _pid_of(session: SteppedSession) -> int:
    with session.transaction(Deadline(TIMEOUT_S), read_only=True) as transaction:
        return int(transaction.run("SELECT pg_backend_pid()")[0][0])


# --- what the reconciler does ---


def flip(arena: Arena, cycle: str, *, selected_at: str = HEARTBEAT) -> object:
    sighting = Sighting(Workspace(WORKSPACE, OLD, HEARTBEAT), Verdict.DEAD, "terminated")
    rows = Flips(arena.sessions[cycle], cycle, arena.lease(cycle))
    terms = FlipPolicy(selected_at, 60, CrashLoopPolicy(600, 3600))
    return rows.flip(Deadline(TIMEOUT_S), sighting, terms)


def claim(arena: Arena, cycle: str) -> object:
    restarts = Restarts(arena.sessions[cycle], cycle, arena.lease(cycle))
    return restarts.claim(Deadline(TIMEOUT_S), RESTART, uncertain_s=300, heartbeat_fresh_s=60)


def cancel_moved_on(arena: Arena, cycle: str) -> object:
    restarts = Restarts(arena.sessions[cycle], cycle, arena.lease(cycle))
    return restarts.cancel_moved_on(Deadline(TIMEOUT_S), own_only=False)


def put_off(arena: Arena, cycle: str) -> None:
    Restarts(arena.sessions[cycle], cycle, arena.lease(cycle)).put_off(Deadline(TIMEOUT_S), [RESTART], wait_s=300)


def cancel(arena: Arena, cycle: str) -> None:
    Restarts(arena.sessions[cycle], cycle, arena.lease(cycle)).cancel(Deadline(TIMEOUT_S), RESTART)


def remember_absences(arena: Arena, cycle: str) -> None:
    """Count the absence of the one workspace, and forget another's."""
    absent = [Workspace(WORKSPACE, OLD, None)]
    CycleMemory(arena.sessions[cycle], arena.lease(cycle)).remember_absences(Deadline(TIMEOUT_S), absent, [FORGOTTEN])


def save_coverage(arena: Arena, cycle: str) -> None:
    CycleMemory(arena.sessions[cycle], arena.lease(cycle)).save_coverage(
        Deadline(TIMEOUT_S), Progress(Coverage(WORKSPACE, WORKSPACE, ()), completed_pass=True)
    )


def hold(arena: Arena, cycle: str) -> object:
    holds = Holds(arena.sessions[cycle])
    active = holds.place(Deadline(TIMEOUT_S), [WORKSPACE], reason="maintenance", lasts_s=3600, most=1)
    return len(active.holds), holds.in_flight(Deadline(TIMEOUT_S), [WORKSPACE], locked=True)
