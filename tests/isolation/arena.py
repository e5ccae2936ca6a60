"""One database and its users: two sessions of the handler, the platform, and an observer.

Flips and claims come in sets, so there are two workspaces. What others do concerns the first one; the second one has to
end as if nobody had been there.
"""

import json
from collections.abc import Callable
from typing import Any

from handler.deadline import Deadline
from handler.domain.coverage import Coverage, Progress
from handler.domain.doubts import Doubt, DoubtChanges
from handler.domain.evidence import Confirmed, DatabaseClock
from handler.domain.model import Restart, Sighting, Verdict, Workspace
from handler.domain.policy import AbsencePolicy, CrashLoopPolicy, RestartPolicy
from handler.domain.restarts import Circumstances, Owed, RestartDecision, before_asking
from handler.store import Doubts, FlipOutcomes, FlipPolicy, Flips, Holds, Restarts, Watches
from handler.store.lease import Expiry, Lease
from handler.store.memory import CycleMemory
from handler.store.session import Session
from sandbox.postgres import Database
from tests.support.interleaving import TIMEOUT_S, Side, SteppedSession, SteppedStatements, stepped_session

WORKSPACE, MATE = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
OLD, MATES = "i-00000000000000001", "i-00000000000000002"
OURS, THEIRS = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
EARLIER = "00000000-0000-4000-8000-00000000000c"
# As with shards, so that what is tested is not the lease: "Nothing is doubled without it".
SCOPES = {OURS: "ours", THEIRS: "theirs"}
HEARTBEAT = "2026-01-01 00:00:00+00"
RESTART, MATES_RESTART = Restart(1, WORKSPACE, OLD), Restart(2, MATE, MATES)
# Evidence from this clock does not expire during a test, nor does that from the other one serve.
FAR_AHEAD = 4e9
FRESH, STALE = DatabaseClock(FAR_AHEAD, 0.0), DatabaseClock(1.5e9, 0.0)

# Everything that either side could have changed. Times are compared only where they matter.
_STATE = """
SELECT json_build_object(
    'rows', (SELECT json_agg(json_build_array(
        id, name, status, runtime, instance_id, url, last_heartbeat_at > CAST(:heartbeat AS timestamptz),
        updated_at > CAST(:heartbeat AS timestamptz)) ORDER BY id) FROM workspaces),
    'events', (SELECT json_agg(json_build_array(event_type, workspace_id, payload - 'heartbeat_age_seconds')
        ORDER BY workspace_id, payload->>'cycle_id') FROM structure_events),
    'restarts', (SELECT json_agg(json_build_array(
        workspace_id, instance_id, cycle_id, adopted, released, attempts, refusals, claimed_by, asked_at IS NULL,
        last_answer, outcome, closed_at IS NULL, due_at > now() + interval '1 minute', streak, backoff_until,
        watched_since IS NULL, watch_ended_at IS NULL, absent_sightings, kept_back_at IS NULL)
        ORDER BY workspace_id, id) FROM reconciler.restarts),
    'holds', (SELECT json_agg(json_build_array(workspace_id, reason)) FROM reconciler.holds),
    'doubts', (SELECT json_agg(json_build_array(workspace_id, kind, instance_id, sightings, offline_since IS NULL)
        ORDER BY workspace_id, kind) FROM reconciler.doubts),
    'coverage', (SELECT json_agg(json_build_array(cursor, pass_completed_at)) FROM reconciler.shard_coverage)
)::text
"""

BEFORE = f"""
DELETE FROM workspaces; DELETE FROM structure_events; DELETE FROM reconciler.restarts; DELETE FROM reconciler.holds;
DELETE FROM reconciler.doubts;
INSERT INTO workspaces (id, name, status, instance_id, last_heartbeat_at, updated_at)
VALUES ('{WORKSPACE}', 'one', '{{status}}', '{OLD}', '{HEARTBEAT}', '{HEARTBEAT}'),
       ('{MATE}', 'two', '{{mates_status}}', '{MATES}', '{HEARTBEAT}', '{HEARTBEAT}');
"""  # noqa: S608 - put together from constants
OWED = f"""
INSERT INTO reconciler.restarts (id, workspace_id, instance_id, cycle_id, due_at) OVERRIDING SYSTEM VALUE
VALUES (1, '{WORKSPACE}', '{OLD}', '{EARLIER}', now() - interval '1 hour');
"""  # noqa: S608 - put together from constants
BOTH_OWED = f"""
{OWED}
INSERT INTO reconciler.restarts (id, workspace_id, instance_id, cycle_id, due_at) OVERRIDING SYSTEM VALUE
VALUES (2, '{MATE}', '{MATES}', '{EARLIER}', now() - interval '1 hour');
"""  # noqa: S608 - put together from constants
ACCEPTED = f"""
INSERT INTO reconciler.restarts (id, workspace_id, instance_id, cycle_id, attempts, asked_at, due_at, last_answer,
                                 watched_since, closed_at, outcome) OVERRIDING SYSTEM VALUE
VALUES (1, '{WORKSPACE}', '{OLD}', '{EARLIER}', 1, now() - interval '1 hour', now() - interval '1 hour', 'claimed',
        now() - interval '1 hour', now() - interval '1 hour', 'accepted');
"""  # noqa: S608 - put together from constants
BOTH_DOUBTED = f"""
INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, offline_since)
VALUES ('{WORKSPACE}', 'dead', '{OLD}', now()), ('{MATE}', 'dead', '{MATES}', now());
"""  # noqa: S608 - put together from constants
DOUBTED = f"""
INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, sightings)
VALUES ('{WORKSPACE}', 'absent', '{OLD}', 2);
"""  # noqa: S608 - put together from constants
_ONCE = f"""
ALTER TABLE reconciler.restarts ALTER id RESTART WITH 1000;
INSERT INTO reconciler.lease (scope, holder, expires_at)
VALUES ('ours', '{OURS}', now() + interval '1 day'), ('theirs', '{THEIRS}', now() + interval '1 day')
"""  # noqa: S608 - put together from constants


class Arena:
    """One database, two sessions of the handler's, the platform's connection, and one to look on."""

    def __init__(self, database: Database) -> None:
        self.url = database.url
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

    def expiry(self, cycle: str, *, at: float = FAR_AHEAD) -> Expiry:
        """Return the right to act of a state-change cycle, which ends at that time, in seconds since 1970."""
        expiry = Expiry(self.sessions[cycle], cycle)
        expiry.own["expires_at"] = at
        return expiry

    def blocked(self, pid: int) -> bool:
        return bool(self._onlooker.run("SELECT cardinality(pg_blocking_pids(:pid)) > 0", pid=pid)[0][0])

    def reset(self, statements: str) -> None:
        """Run statements that make the world as a test wants it."""
        self._onlooker.run(statements)

    def look(self, query: str) -> Any:
        """Return what a query finds."""
        return self._onlooker.run(query)

    def state(self) -> Any:
        return json.loads(self._state.run(heartbeat=HEARTBEAT)[0][0])


def _pid_of(session: SteppedSession) -> int:
    with session.transaction(Deadline(TIMEOUT_S), read_only=True) as transaction:
        return int(transaction.run("SELECT pg_backend_pid()")[0][0])


# --- what the reconciler does ---


def dead(workspace_id: str, *, offline: bool = False) -> Sighting:
    """Return the sighting of the dead instance that a workspace records."""
    instance_id = {WORKSPACE: OLD, MATE: MATES}[workspace_id]
    return Sighting(Workspace(workspace_id, instance_id, HEARTBEAT, offline=offline), Verdict.DEAD, "terminated")


def flip(
    arena: Arena,
    cycle: str,
    *,
    of: tuple[str, ...] = (WORKSPACE, MATE),
    selected_at: str = HEARTBEAT,
    clock: DatabaseClock = FRESH,
    session: Session | None = None,
    offline: bool = False,
    right: Lease | None = None,
) -> FlipOutcomes:
    """Flip a set of workspaces, or adopt them if they are offline: both, unless told otherwise.

    The cycle's right to act is its lease, or another one.
    """
    flips = Flips(session or arena.sessions[cycle], cycle, right or arena.lease(cycle))
    policy = FlipPolicy(
        selected_at,
        clock,
        probe="ec2",
        heartbeat_fresh_s=60,
        crash_loop=CrashLoopPolicy(600, 3600),
        restarts=RestartPolicy(100, 180, 60, 300),
        released=False,
    )
    return flips.flip(
        Deadline(TIMEOUT_S), [Confirmed(dead(one, offline=offline), dead(one, offline=offline)) for one in of], policy
    )


def flip_after_events(
    arena: Arena, cycle: str, *, of: tuple[str, ...] = (WORKSPACE, MATE), session: Session | None = None
) -> FlipOutcomes:
    """Flip them as a state-change cycle does, without a lease."""
    return flip(arena, cycle, of=of, session=session, right=arena.expiry(cycle))


def adopt(arena: Arena, cycle: str) -> FlipOutcomes:
    return flip(arena, cycle, offline=True)


def _judge(owed: Owed, sighting: Sighting) -> RestartDecision:
    now = Circumstances(full=True, breaker_open=False, absence_counts=True, absence=AbsencePolicy(3, 120))
    return before_asking(owed, sighting, now)


def claim(
    arena: Arena, cycle: str, *, clock: DatabaseClock = FRESH, session: Session | None = None
) -> list[RestartDecision]:
    """Claim a set of two restarts, whose instances were found dead."""
    restarts = Restarts(session or arena.sessions[cycle], cycle, arena.lease(cycle))
    return restarts.claim(
        Deadline(TIMEOUT_S),
        [(RESTART, dead(WORKSPACE)), (MATES_RESTART, dead(MATE))],
        _judge,
        clock=clock,
        fresh_s=60,
        grace_s=0,
        uncertain_s=300,
        retry_s=60,
    )


def cancel_moved_on(arena: Arena, cycle: str) -> object:
    watches = Watches(arena.sessions[cycle], cycle, arena.lease(cycle))
    return tuple(sorted(one.id for one in watches.cancel_moved_on(Deadline(TIMEOUT_S))))


def put_off(arena: Arena, cycle: str) -> None:
    Restarts(arena.sessions[cycle], cycle, arena.lease(cycle)).put_off(Deadline(TIMEOUT_S), [RESTART], wait_s=300)


def owe_again(arena: Arena, cycle: str) -> object:
    """Find that the accepted restart of the first workspace has done nothing."""
    watches = Watches(arena.sessions[cycle], cycle, arena.lease(cycle))
    return len(watches.owe_again(Deadline(TIMEOUT_S), {RESTART.id: (1, 0.0)}))


def save_doubts(arena: Arena, cycle: str, *, session: Session | None = None) -> None:
    """Count an absence of the first workspace."""
    doubts = Doubts(session or arena.sessions[cycle], arena.lease(cycle))
    absent = Doubt(Workspace(WORKSPACE, OLD, HEARTBEAT), Verdict.ABSENT, "not_found")
    doubts.save(Deadline(TIMEOUT_S), DoubtChanges((), (absent,), (), (), None))


def forget_doubts(arena: Arena, cycle: str) -> None:
    """Find the first workspace alive."""
    doubts = Doubts(arena.sessions[cycle], arena.lease(cycle))
    doubts.save(Deadline(TIMEOUT_S), DoubtChanges((), (), (WORKSPACE,), (), None))


def tend_doubts(arena: Arena, cycle: str) -> None:
    Doubts(arena.sessions[cycle], arena.lease(cycle)).tend(Deadline(TIMEOUT_S))


def save_coverage(arena: Arena, cycle: str) -> None:
    CycleMemory(arena.sessions[cycle], arena.lease(cycle)).save_coverage(
        Deadline(TIMEOUT_S), Progress(Coverage(WORKSPACE, WORKSPACE, ()), completed_pass=True)
    )


def place_hold(arena: Arena, cycle: str) -> object:
    holds = Holds(arena.sessions[cycle])
    return len(holds.place(Deadline(TIMEOUT_S), [WORKSPACE], reason="maintenance", lasts_s=3600, most=1).holds)


def hold(arena: Arena, cycle: str) -> object:
    """Place a hold, and tell what may be in flight."""
    holds = Holds(arena.sessions[cycle])
    return place_hold(arena, cycle), holds.in_flight(Deadline(TIMEOUT_S), [WORKSPACE], locked=True)
