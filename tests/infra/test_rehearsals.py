"""Every alarm, rehearsed: its cause, the runbook's first look at it, the cure, and its end.

Each rehearsal causes its alarm, yields what the query or widget that its section of docs/runbook.md has one open first
must name, and then does what the page says until the alarm is over.
"""

import contextlib
import json
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from sandbox.ec2 import REGION, MotoEc2
from sandbox.http_server import Answer, Hang
from sandbox.limited_ec2 import ApiError
from sandbox.postgres import PostgresServer
from sandbox.queue import StateChangeQueue
from sandbox.regions import Regions
from tests.support.cloudformation import Stack
from tests.support.cloudwatch import alarms, lines, widgets
from tests.support.events import event
from tests.support.rehearsal import Rehearsal
from tests.support.runbook import ALARMS, INSIGHTS, PARTS, SECTIONS, SQL, opened, parts
from tests.support.stage import Stage
from tests.support.stage import opened as set_up

MINUTE_S = 60.0
AN_HOUR_S = 3600
QUIET = 3
GRACE = 3
ACCOUNT = "210987654321"
AWAY = "postgresql://reconciler@127.0.0.1:1/away?sslmode=disable"
DENIED = ApiError("UnauthorizedOperation", "You are not authorized to perform this operation.", 403).as_answer()

Told = Generator[tuple[str, ...], None, None]
REHEARSALS: dict[str, Callable[[Rehearsal], Told]] = {}


def rehearses(alarm: str) -> Callable[[Callable[[Rehearsal], Told]], Callable[[Rehearsal], Told]]:
    """Register a rehearsal under its alarm."""

    def registered(rehearsal: Callable[[Rehearsal], Told]) -> Callable[[Rehearsal], Told]:
        REHEARSALS[alarm] = rehearsal
        return rehearsal

    return registered


@pytest.fixture(scope="module")
def stage(postgres: PostgresServer) -> Iterator[Stage]:
    with set_up(postgres) as stage:
        yield stage


@pytest.fixture
def stack(request: pytest.FixtureRequest, stacks: dict[str, Stack]) -> Stack:
    return stacks[getattr(request, "param", "applying with a platform")]


@pytest.fixture
def now(stage: Stage, ec2: MotoEc2, stack: Stack) -> Iterator[Rehearsal]:
    """Ten living workspaces, a platform that accepts restarts, and some quiet minutes."""
    with StateChangeQueue(ec2) as queue:
        now = Rehearsal(stage, stack, queue)
        if stack.parameters["Probe"] == "control_plane":
            now.settings |= stage.settings("control_plane")
        now.story.workspaces(10)
        now.story.answers()
        now.minutes(QUIET)
        yield now
    stage.clear()


def shown(now: Rehearsal, kind: str, title: str) -> list[dict[str, Any]]:
    """Return what the page's query or widget shows."""
    match kind:
        case "query":
            return now.saved(title)
        case "sql":
            return [{name: str(value) for name, value in row.items()} for row in now.stage.database.query(SQL[title])]
        case "widget":
            (widget,) = (one for one in widgets(now.stack) if one["properties"]["title"] == title)
            if "query" in widget["properties"]:
                return now.answer(widget["properties"]["query"])
            values = {line.label: now.cloudwatch.of(line, now.now_s, now.now_s + MINUTE_S) for line in lines(widget)}
            return [{f"{label} is {value:g}": value} for label, value in values.items() if value is not None]
    raise NotImplementedError(kind)


@pytest.mark.parametrize("alarm", ALARMS)
def test_a_section_says_what_it_means_what_to_open_what_to_do_and_when_it_is_over(alarm: str) -> None:
    said = parts(SECTIONS[ALARMS[alarm]])
    assert tuple(said) == PARTS
    assert all(said.values())


def test_every_alarm_is_rehearsed(stacks: dict[str, Stack]) -> None:
    existing = alarms(stacks["applying with a platform"]).keys() | alarms(stacks["shards"]).keys()
    assert REHEARSALS.keys() == existing == ALARMS.keys()


@pytest.mark.parametrize(
    ("alarm", "stack"),
    [(one, "shards" if one == "ShardsAlarm" else "applying with a platform") for one in ALARMS],
    ids=ALARMS,
    indirect=["stack"],
)
def test_the_first_look_at_an_alarm_names_its_cause_and_the_cure_ends_it(alarm: str, now: Rehearsal) -> None:
    assert now.ringing() == set()
    section = SECTIONS[ALARMS[alarm]]
    with contextlib.closing(REHEARSALS[alarm](now)) as rehearsal:
        named = next(rehearsal)
        assert alarm in now.ringing()
        look = opened(section)
        answer = json.dumps(shown(now, look.kind, look.title), default=str)
        assert [one for one in named if one not in answer] == [], answer
        with pytest.raises(StopIteration):
            next(rehearsal)
    assert alarm not in now.ringing()


def test_the_query_about_targets_says_which_since_when_and_why(now: Rehearsal) -> None:
    with Regions() as regions:
        regions.add()
        regions.add("eu-west-1", ACCOUNT)
        targets = [{"region": REGION}, {"region": "eu-west-1", "role_arn": f"arn:aws:iam::{ACCOUNT}:role/gone"}]
        now.settings |= {**regions.environment, "EC2_TARGETS": json.dumps(targets)}
        now.minutes(8)
    query = INSIGHTS["a-target-fails-or-is-empty"]
    assert now.answer(query) == [
        {"bin(10m)": f"2026-01-15 03:{tens}0:00.000", "message": message, "target": target, "error": error, "cycles": n}
        for tens, n in ((1, 2), (0, 6))
        for message, target, error in (
            ("target failed", f"eu-west-1/{ACCOUNT}", "role_not_assumed_refused_AccessDenied"),
            ("target empty", REGION, None),
        )
    ]


# ── Is it running? ────────────────────────────────────────────────────────────────────────────────────────────────


@rehearses("NoCycleAlarm")
def a_session_was_left_open_in_the_middle_of_taking_the_lease(now: Rehearsal) -> Told:
    with contextlib.closing(now.stage.database.connect()) as somebody:
        somebody.run("BEGIN")
        somebody.run("INSERT INTO reconciler.lease VALUES ('fleet', gen_random_uuid(), now(), now())")
        ((pid,),) = somebody.run("SELECT pg_backend_pid()")
        now.minutes(3)
        yield ("AlreadyRunning is 1",)
        assert [row["pid"] for row in now.stage.database.query(SQL["Who holds the lease (2)"])] == [pid]
        somebody.run("ROLLBACK")
    now.minutes()


@rehearses("ErrorsAlarm")
def a_right_is_missing(now: Rehearsal) -> Told:
    now.stage.database.query("REVOKE SELECT ON reconciler.holds FROM reconciler")
    now.minutes(2)
    yield ("infra/grants.sql",)
    now.stage.database.query("GRANT SELECT ON reconciler.holds TO reconciler")
    now.minutes(5)


@rehearses("ShardsAlarm")
def one_shard_is_throttled(now: Rehearsal) -> Told:
    now.throttled = {3}
    now.minutes(2)
    yield ("CycleCompleted is 7", "shards not invoked is 1")
    now.throttled.clear()
    now.minutes(5)


@rehearses("FailedQueueAlarm")
def the_database_is_away_for_a_minute(now: Rehearsal) -> Told:
    now.settings["DATABASE_URL"] = AWAY
    now.minutes()
    yield ("failed is 1", "undelivered is 0")
    now.settings.clear()
    now.messages["FailedQueue"] = 0
    now.minutes()


@rehearses("UndeliveredQueueAlarm")
def the_schedule_s_role_is_gone(now: Rehearsal) -> Told:
    now.is_scheduled = False
    now.minutes()
    yield ("failed is 0", "undelivered is 1")
    now.is_scheduled = True
    now.messages["UndeliveredQueue"] = 0
    now.minutes()


# ── How long does it take? ────────────────────────────────────────────────────────────────────────────────────────


@rehearses("DeadlineAlarm")
def ec2_hangs(now: Rehearsal) -> Told:
    now.settings["CYCLE_DEADLINE_SECONDS"] = "1"
    now.stage.ec2.script.reply(Hang())
    now.minutes(5)
    yield ('"deadline_hit": true',)
    now.stage.ec2.script.clear()
    now.minutes(2)


@rehearses("CoverageAgeAlarm")
def the_limit_is_too_small_for_the_fleet(now: Rehearsal) -> Told:
    now.settings["CANDIDATE_LIMIT"] = "1"
    now.minutes()
    now.passes(10 * MINUTE_S)
    now.minutes(3)
    yield ("Candidates is 1",)
    now.settings.clear()
    now.minutes(3)


# ── What is in doubt? ─────────────────────────────────────────────────────────────────────────────────────────────


@rehearses("UnknownAlarm")
def a_right_of_ec2_is_missing(now: Rehearsal) -> Told:
    now.stage.ec2.script.reply(DENIED)
    now.minutes(5)
    yield ("refused_UnauthorizedOperation",)
    now.stage.ec2.script.clear()
    now.minutes(2)


@rehearses("DoubtAgeAlarm")
def an_instance_never_stops(now: Rehearsal) -> Told:
    one = now.story.workspace()
    now.story.dies(one, state="shutting-down")
    now.minutes()
    now.passes(30 * MINUTE_S)
    now.minutes(3)
    yield ("transition", "shutting-down", one)
    now.stage.ec2.set_state(now.stage.instance_of(one), "terminated")
    now.minutes()


@rehearses("OfflineUnowedAlarm")
def the_platform_s_own_restart_has_failed(now: Rehearsal) -> Told:
    one = now.stage.add("terminated", status="offline", updated_age_s=AN_HOUR_S)
    now.minutes(15)
    yield (one,)
    now.send({**event("adopt"), "workspace_ids": [one]})
    now.minutes(5)


@rehearses("ImpairedAlarm")
def a_host_has_lost_its_power(now: Rehearsal) -> Told:
    instance = now.stage.instance_of(min(now.story.alive))
    now.stage.ec2.impair(instance)
    now.minutes(15)
    yield ("Impaired is 1",)
    now.stage.ec2.mend(instance)
    now.minutes(5)


@rehearses("HoldOnEverythingAlarm")
def everything_is_on_hold_for_maintenance(now: Rehearsal) -> Told:
    hold = event("hold-all")
    hold["hold"] |= {"seconds": 25 * AN_HOUR_S, "reason": "moving the database"}
    now.send(hold)
    now.minutes(24, lasts_s=AN_HOUR_S)
    yield ("moving the database", "None")
    now.send(event("release-all"))
    now.minutes(lasts_s=AN_HOUR_S)


# ── What did it do? ───────────────────────────────────────────────────────────────────────────────────────────────


def half_of_the_fleet_dies(now: Rehearsal) -> list[str]:
    dead = sorted(now.story.alive)[:6]
    now.story.dies(*dead)
    return dead


@rehearses("BreakerOpenAlarm")
def most_of_the_fleet_dies(now: Rehearsal) -> Told:
    dead = half_of_the_fleet_dies(now)
    now.minutes()
    yield ("Candidates is 10", "Dead is 6")
    for one in dead:
        now.story.comes_back(one, on_new_instance=False)
    now.minutes()


@rehearses("FlipsAlarm")
def a_spot_reclaim_takes_twenty_one(now: Rehearsal) -> Told:
    now.story.workspaces(40)
    dead = sorted(now.story.alive)[:21]
    now.story.dies(*dead)
    now.minutes()
    yield (dead[0], dead[-1], "terminated")
    now.minutes(10)


@rehearses("FlipErrorsAlarm")
def a_trigger_refuses_events(now: Rehearsal) -> Told:
    database = now.stage.database
    database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no events today'; END $$"
    )
    database.query("CREATE TRIGGER refuse BEFORE INSERT ON structure_events EXECUTE FUNCTION refuse()")
    now.story.dies(min(now.story.alive))
    now.minutes(5)
    yield ("re-read or flip failed", "P0001", "no events today")
    database.query("DROP TRIGGER refuse ON structure_events")
    database.query("DROP FUNCTION refuse()")
    now.minutes(2)


# ── Which restarts are stuck? ─────────────────────────────────────────────────────────────────────────────────────


@rehearses("RestartAgeAlarm")
def the_platform_refuses_the_token(now: Rehearsal) -> Told:
    one = min(now.story.alive)
    now.story.answers(Answer(401))
    now.story.dies(one)
    now.minutes(1 + GRACE)
    now.passes(31 * MINUTE_S)
    now.minutes(3)
    yield (one, "restart refused", "http_401")
    now.story.answers()
    now.passes(15 * MINUTE_S)
    now.minutes()


@rehearses("RestartsUnrecoveredAlarm")
def the_platform_cannot_provision(now: Rehearsal) -> Told:
    one = min(now.story.alive)
    now.story.dies(one)
    now.minutes(1 + GRACE)
    now.story.becomes(one, status="failed")
    now.passes(15 * MINUTE_S)
    now.minutes(5)
    yield (one, "failed", "accepted")
    now.story.comes_back(one)
    now.story.becomes(one, status="online")
    now.minutes(3)


@rehearses("RestartsBackingOffAlarm")
def a_workspace_dies_four_times(now: Rehearsal) -> Told:
    one = min(now.story.alive)
    for _ in range(3):
        now.story.dies(one)
        now.minutes()
        now.passes(GRACE * MINUTE_S)
        now.minutes()
        now.story.comes_back(one)
        now.story.becomes(one, status="online")
    now.story.dies(one)
    now.minutes()
    yield (one, '"restarts": 4')
    now.send({**event("release"), "release": [one]})
    now.minutes()


# ── State-change events ───────────────────────────────────────────────────────────────────────────────────────────


def dies_with_an_event(now: Rehearsal) -> str:
    one = min(now.story.alive)
    now.story.dies(one)
    now.happens(one)
    return one


@rehearses("StateChangesErrorsAlarm")
def a_setting_is_wrong(now: Rehearsal) -> Told:
    now.settings["EC2_TARGETS"] = '[{"region": "nowhere"}]'
    dies_with_an_event(now)
    now.minutes()
    now.passes(3 * MINUTE_S)
    now.minutes()
    yield ("EC2_TARGETS",)
    now.settings.clear()
    now.minutes(5)


@rehearses("StateChangesAgeAlarm")
def the_database_is_away(now: Rehearsal) -> Told:
    now.settings["DATABASE_URL"] = AWAY
    dies_with_an_event(now)
    now.minutes(6)
    yield ("messages returned", "no connection to the database")
    now.settings.clear()
    now.minutes(4)


@rehearses("DeadLetterQueueAlarm")
def the_database_is_away_for_a_quarter_of_an_hour(now: Rehearsal) -> Told:
    now.settings["DATABASE_URL"] = AWAY
    dies_with_an_event(now)
    for _ in range(6):
        now.minutes()
        now.passes(3 * MINUTE_S)
    now.minutes()
    yield ("messages returned", "no connection to the database")
    now.settings.clear()
    now.queue.purge()
    now.minutes()
