"""The scenarios of bad days and of long lives: mass death, a slow control plane, years of our own rows; and HTTPS."""

from collections import Counter
from typing import Any

from bench.child import PROJECT
from bench.figures import APPLY, LAMBDA_SHARE, NO_AWS, Scenario, figures
from bench.stand_ins import Cp, Ec2, Platform, hosted
from bench.world import EC2_LATENCY_S, Fleet, Process, Site, ec2_world

FLEET, DEAD = 100_000, 45_000
MASS_CYCLES, MASS_DUE = 2, 20
SLOW_S = 8.0
SLOW_ROWS, SLOW_DEAD_EVERY, SLOW_DUE = 1_000, 20, 12
CHECKS = (64, 300)
HTTPS_RUNS = 3
CLOSED_RESTARTS, DOUBTS, HOLDS = 1_000_000, 100_000, 10_000
QUIET_RUNS = 9

# Without indexes and triggers, which cost a minute for a million rows.
_CLOSED = """
    INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, flipped_at, attempts, asked_at, due_at,
                                     closed_at, outcome, watched_since, watch_ended_at)
    SELECT CAST(md5((number % 10000)::text) AS uuid), 'i-' || number, gen_random_uuid(), at, 1, at, at, at,
           'accepted', at, at
    FROM generate_series(1, CAST(:count AS integer)) AS number, LATERAL (
        SELECT now() - interval '15 minutes' - number * (interval '29 days' / CAST(:count AS integer)) AS at) AS times
"""
# The doubts of a quiet cycle are about rows that are offline: it makes up its mind about all others.
_OFFLINE = """
    INSERT INTO workspaces (name, status, instance_id)
    SELECT 'offline ' || number, 'offline', 'i-offline-' || number
    FROM generate_series(1, CAST(:count AS integer)) AS number
"""
_DOUBTS = """
    INSERT INTO reconciler.doubts (workspace_id, kind, instance_id, since, last_seen_at, offline_since)
    SELECT id, (ARRAY['unknown', 'transition', 'dead'])[1 + row_number() OVER () % 3], instance_id, at, at, at
    FROM workspaces, (SELECT now() - interval '25 hours' AS at) AS times WHERE status = 'offline'
"""
# Most have ended: a hold is kept for a month.
_HOLDS = """
    INSERT INTO reconciler.holds (workspace_id, reason, began_at, ends_at)
    SELECT gen_random_uuid(), 'maintenance', now() - interval '29 days',
           now() + (number - 0.9 * CAST(:count AS integer)) * interval '4 minutes'
    FROM generate_series(1, CAST(:count AS integer)) AS number
"""


def mass_death(place: Site) -> Scenario:
    """45,000 dead of 100,000, with a third of a processor: what one cycle after the other gets done."""
    cycles = []
    with ec2_world(place, FLEET, dead_every=0, foreign=FLEET // 10) as world, hosted(Platform, 1.0) as platform:
        ids = world.fleet.instance_ids()[:DEAD]
        environment = {
            **world.ec2.environment(),
            **world.fleet.environment(PROJECT),
            **platform.environment(),
        }
        with Process(PROJECT, environment) as process:
            world.fleet.reset()
            process.handle({"limit": 1})
            world.ec2.kill(ids + world.fleet.owe(MASS_DUE))
            for _ in range(MASS_CYCLES):
                world.ec2.begin()
                before = len(process.log())
                measured = process.handle(APPLY, share=LAMBDA_SHARE)
                lines = Counter(line.get("message") for line in process.log()[before:])
                cycles.append(
                    figures(PROJECT, FLEET, [measured])
                    | world.fleet.left_behind()
                    | {"most_lines": lines.most_common(1)[0], "restarts": platform.figures()["restarts"]}
                    | {name: measured["answer"][name] for name in ("dead", "deferred", "deadline_hit")}
                )
    return {
        "conditions": f"{LAMBDA_SHARE} of a CPU, {EC2_LATENCY_S} s a call, deadline of 45 s, no grace, "
        f"{MASS_DUE} restarts due before; the platform takes a restart in 1 s",
        "cycles": cycles,
    }


def slow_control_plane(place: Site) -> Scenario:
    """Answers after 8 s, some of them deaths, and restarts that are due, of a platform that is as slow."""
    fleet = Fleet(place, SLOW_ROWS)
    with hosted(Cp, SLOW_S) as cp, hosted(Platform, SLOW_S) as platform:
        due = fleet.owe(SLOW_DUE)
        cp.kill(due + fleet.instance_ids()[::SLOW_DEAD_EVERY])
        environment = {**cp.environment(), **platform.environment(), **fleet.environment(PROJECT), **NO_AWS}
        with Process(PROJECT, environment) as process:
            measured = process.handle(APPLY)
        asked, restarts = cp.figures(), platform.figures()
    fleet.database.drop()
    report = measured["answer"]
    return figures(PROJECT, SLOW_ROWS, [measured]) | {
        "conditions": f"control plane and platform take {SLOW_S:g} s; {SLOW_ROWS:,} workspaces, "
        f"1 in {SLOW_DEAD_EVERY} dead; {SLOW_DUE} restarts due",
        "dead": report["dead"],
        "skipped": {reason: count for reason, count in report["skipped"].items() if count},
        "restarts": restarts["restarts"],
        "peak_in_flight": asked["peak_in_flight"],
    }


def own_tables(place: Site) -> Scenario:
    """A quiet cycle after years, beside one with empty tables: both have the same rows of the platform's."""
    with hosted(Ec2, 0.0) as ec2:
        ec2.fill(1_000, foreign=0, dead_every=0)
        fleets = {"empty": Fleet(place, 1_000), "full": Fleet(place, 1_000)}
        for name, fleet in fleets.items():
            _grow(fleet, full=name == "full")
        processes = {
            name: Process(PROJECT, {**ec2.environment(), **fleet.environment(PROJECT)})
            for name, fleet in fleets.items()
        }
        runs: dict[str, list[Any]] = {name: [] for name in fleets}
        for turn in range(2 + QUIET_RUNS):
            for name, process in processes.items():
                ec2.begin()
                measured = process.handle(APPLY)
                runs[name] += [measured] if turn > 1 else []
        for process in processes.values():
            process.close()
    for fleet in fleets.values():
        fleet.database.drop()
    return {
        "conditions": f"{CLOSED_RESTARTS:,} closed restarts, {DOUBTS:,} doubts and {HOLDS:,} holds beside none; "
        f"1,000 running workspaces and {DOUBTS:,} offline ones, no latency of EC2; medians of {QUIET_RUNS} cycles",
        **{name: figures(PROJECT, 1_000, done) for name, done in runs.items()},
    }


def _grow(fleet: Fleet, *, full: bool) -> None:
    database = fleet.database
    database.query(_OFFLINE, count=DOUBTS)
    if full:
        indexes = database.query(
            "SELECT indexname AS name, indexdef AS definition FROM pg_indexes"
            " WHERE schemaname = 'reconciler' AND tablename = 'restarts' AND indexname <> 'restarts_pkey'"
        )
        for index in indexes:
            database.query(f"DROP INDEX reconciler.{index['name']}")
        database.query("ALTER TABLE reconciler.restarts DISABLE TRIGGER USER")
        database.query(_CLOSED, count=CLOSED_RESTARTS)
        database.query("ALTER TABLE reconciler.restarts ENABLE TRIGGER USER")
        for index in indexes:
            database.query(index["definition"])
        database.query(_DOUBTS)
        database.query(_HOLDS, count=HOLDS)
    database.query("VACUUM ANALYZE")


def https_checks(place: Site) -> Scenario:
    """The same checks over HTTP and HTTPS, 64 at once: in a new process, and then in a warm one."""
    rows = []
    with hosted(Cp, 0.1, plain=True) as plain, hosted(Cp, 0.1) as encrypted:
        for checks in CHECKS:
            fleet = Fleet(place, checks)
            runs: dict[str, list[list[Any]]] = {"http": [], "https": []}
            for _ in range(HTTPS_RUNS):
                for scheme, cp in (("http", plain), ("https", encrypted)):
                    with Process(PROJECT, {**cp.environment(), **fleet.environment(PROJECT), **NO_AWS}) as process:
                        runs[scheme].append([process.handle(APPLY) for _ in range(2)])
            rows += [
                figures(PROJECT, checks, [run[turn] for run in done]) | {"scheme": scheme, "warm": bool(turn)}
                for scheme, done in runs.items()
                for turn in range(2)
            ]
            fleet.database.drop()
    return {
        "conditions": f"the control plane answers in 0.1 s, 64 checks at once, the system's authorities; "
        f"medians of {HTTPS_RUNS}",
        "rows": rows,
    }
