"""One cycle over the fakes: what it does, and what it reports."""

import copy
from itertools import groupby
from math import ceil

import pytest

from handler.domain.coverage import Coverage
from handler.domain.model import SkipReason, Verdict
from handler.domain.report import Report
from handler.domain.shards import Shard
from handler.errors import ConnectionLostError, ReconcilerError, RowLockedError, SecretError, StoreError
from handler.phases import Phases
from handler.request import Request
from tests.fakes.tables import StoredDoubt, StoredHold
from tests.fakes.world import Lie, World
from tests.unit.builders import Log, instance, uuid
from tests.unit.invocation import FULL, Happening, Invocation, fails, fleet, owe, row

DRY_RUN = Request("dry-run")
OVERRIDE = Request("apply", override_breaker=True)


def skipped(report: Report) -> dict[str, int]:
    return {reason: count for reason, count in report.skipped.items() if count}


def flipped(report: Report) -> list[str]:
    return [flip.workspace_id for flip in report.flips]


def look_first(world: World, number: int, word: str) -> None:
    """Have the first probe, and only that, see this state."""
    world.lies[instance(number)] = Lie(word, 1)


# --- a cycle ---


def test_a_cycle_flips_and_restarts_the_dead_and_leaves_the_rest() -> None:
    world = fleet(6, _2="terminated", _3="stopping", _4=None, _5="hovering")
    before = copy.deepcopy(world.tables.workspaces)
    invocation = Invocation(world)
    report = invocation.run()
    assert invocation.rights == [True]
    assert [call for call, _ in groupby(invocation.wrote_by)] == [
        *(
            "acquire",
            "take_back_times",
            "take_up",
            "tend",
            "save_coverage",
            "forget",
            "save",
            "flip",
            "cancel_moved_on",
            "claim",
        ),
        *("accepted", "save_coverage", "purge", "release"),
    ]
    figures = (report.candidates, report.checked, report.running, report.transition, report.dead)
    assert figures == (6, 6, 2, 1, 1)
    assert (report.absent, report.unknown, report.flipped, report.deferred) == (1, 1, 1, 0)
    assert [(one.workspace_id, one.instance_id, one.instance_state) for one in report.flips] == [
        (uuid(2), instance(2), "terminated")
    ]
    assert (report.completed_pass, report.deadline_hit) == (True, False)
    assert (report.restarts.accepted, report.restarts.pending) == (1, 0)
    assert invocation.asked == [2]
    assert {(one.workspace_id, one.kind) for one in world.tables.doubts.values()} == {
        (uuid(3), Verdict.TRANSITION),
        (uuid(4), Verdict.ABSENT),
        (uuid(5), Verdict.UNKNOWN),
    }
    assert {one: row for one, row in world.tables.workspaces.items() if one != uuid(2)} == {
        one: row for one, row in before.items() if one != uuid(2)
    }


def test_a_quiet_cycle_saves_once_where_the_next_one_begins() -> None:
    invocation = Invocation(fleet(3, _2="stopping"))
    assert invocation.run().completed_pass
    assert invocation.wrote_by.count("save_coverage") == 1


def test_a_dry_run_reports_what_it_would_flip_and_writes_nothing() -> None:
    world = fleet(6, _2="terminated", _3="stopped")
    row(world, 3).heartbeat_at = world.tables.now
    owe(world, 7)
    before = copy.deepcopy(world.tables)
    invocation = Invocation(world)
    report = invocation.run(DRY_RUN)
    assert invocation.rights == [False]
    assert (invocation.wrote_by, invocation.asked) == ([], [])
    assert world.tables == before
    assert flipped(report) == [uuid(2)]
    assert (report.flipped, skipped(report)) == (0, {"fresh_heartbeat": 1})


def test_a_cycle_beside_another_one_does_nothing() -> None:
    world = fleet(6, _2="terminated")
    owe(world, 7)
    owe(world, 8)
    world.tables.restarts[1].last_answer = "blocked"
    world.tables.holds[uuid(1)] = StoredHold("why", world.tables.now + 60)
    world.tables.lease = ("another cycle", world.tables.now + 60)
    before = copy.deepcopy(world.tables)
    invocation = Invocation(world)
    report = invocation.run()
    assert report.outcome == "already_running"
    assert (invocation.wrote_by, invocation.probed, invocation.asked) == ([], [], [])
    assert world.tables == before
    assert (report.restarts.pending, report.restarts.blocked, report.on_hold) == (2, 1, 1)


def test_a_cycle_without_the_lease_reports_how_things_stand() -> None:
    world = fleet(3, _2="stopping")
    Invocation(world).run()
    world.tables.workspaces[uuid(3)].instance_id = None
    owe(world, 4)
    world.tables.restarts.clear()
    world.tables.now += 1000
    row(world, 4).updated_at = world.tables.now - 1000
    world.tables.lease = ("another cycle", world.tables.now + 60)
    report = Invocation(world).run()
    assert report.outcome == "already_running"
    assert (report.oldest_doubt_seconds, report.unrecorded, report.offline_unowed) == (1000, 1, 1)


def test_a_dry_run_needs_no_lease() -> None:
    world = fleet(3)
    world.tables.lease = ("another cycle", world.tables.now + 60)
    assert Invocation(world).run(DRY_RUN).outcome == "completed"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ConnectionLostError("gone"), id="the database is gone"),
        pytest.param(SecretError("DATABASE_SECRET_ARN"), id="the secret for a new login is gone"),
    ],
)
def test_a_lease_that_cannot_be_released_expires_by_itself(error: ReconcilerError, log: Log) -> None:
    report = Invocation(fleet(3, _2="stopped"), first={"release": [fails(error)]}).run()
    assert (report.outcome, report.flipped) == ("completed", 1)
    assert [line["error"] for line in log.lines("lease not released")] == [str(error)]


def test_a_failed_cycle_releases_its_lease() -> None:
    world = fleet(3)
    with pytest.raises(ConnectionLostError):
        Invocation(world, first={"recall": [fails(ConnectionLostError("gone"))]}).run()
    assert world.tables.lease is None


# --- what prevents a flip ---


def a_heartbeat(world: World) -> Happening:
    return lambda: setattr(row(world, 2), "heartbeat_at", world.tables.now)


def another_instance(world: World) -> Happening:
    return lambda: setattr(row(world, 2), "instance_id", instance(22))


def a_hold(world: World) -> Happening:
    return lambda: world.tables.holds.update({uuid(2): StoredHold("why", world.tables.now + 60)})


def a_lock(world: World) -> Happening:
    return lambda: setattr(row(world, 2), "locked_by", "somebody else")


@pytest.mark.parametrize(
    ("happening", "reason"),
    [
        pytest.param(a_heartbeat, SkipReason.FRESH_HEARTBEAT, id="a heartbeat"),
        pytest.param(another_instance, SkipReason.INSTANCE_CHANGED, id="another instance"),
        pytest.param(a_hold, SkipReason.ON_HOLD, id="a hold"),
        pytest.param(a_lock, SkipReason.ROW_LOCKED, id="somebody else has locked the row"),
    ],
)
@pytest.mark.parametrize("request_made", [FULL, DRY_RUN], ids=["apply", "dry run"])
def test_what_prevents_one_flip_leaves_the_others(request_made: Request, happening: object, reason: SkipReason) -> None:
    assert callable(happening)
    if request_made is DRY_RUN and happening is a_lock:
        return  # a dry run takes no locks
    world = fleet(6, _2="stopped", _3="stopped")
    call = "flip" if request_made is FULL else "would_flip"
    report = Invocation(world, first={call: [happening(world)]}).run(request_made)
    assert skipped(report) == {reason: 1}
    assert flipped(report) == [uuid(3)]
    assert report.flipped == (request_made is FULL)
    assert [one.workspace_id for one in world.tables.restarts] == [uuid(3)] * report.flipped


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(RowLockedError("locked"), SkipReason.ROW_LOCKED, id="a lock that was waited for"),
        pytest.param(ConnectionLostError("gone"), SkipReason.RECONFIRM_ERROR, id="the database fails"),
        pytest.param(SecretError("gone"), SkipReason.RECONFIRM_ERROR, id="the secret for a login cannot be fetched"),
    ],
)
@pytest.mark.parametrize(("request_made", "call"), [(FULL, "flip"), (DRY_RUN, "would_flip")], ids=["apply", "dry run"])
def test_a_set_that_fails_is_tried_once_more(
    request_made: Request, call: str, error: Exception, reason: SkipReason
) -> None:
    world = fleet(1000, **dict.fromkeys((f"_{number}" for number in range(1, 301)), "stopped"))
    report = Invocation(world, first={call: [fails(error)]}).run(request_made)
    assert (skipped(report), len(flipped(report))) == ({}, 300)
    world = fleet(1000, **dict.fromkeys((f"_{number}" for number in range(1, 301)), "stopped"))
    report = Invocation(world, each={call: fails(error)}).run(request_made)
    assert (skipped(report), flipped(report)) == ({reason: 300}, [])


@pytest.mark.parametrize("second", ["running", "stopping", None, "hovering"])
def test_a_second_probe_that_does_not_confirm_prevents_the_flip(second: str | None) -> None:
    world = fleet(6, _2=second)
    look_first(world, 2, "stopped")
    report = Invocation(world).run()
    assert (skipped(report), report.flipped) == ({"not_confirmed": 1}, 0)


def test_a_second_probe_that_finds_the_instance_resets_its_absence() -> None:
    world = fleet(3, _2="running")
    at = world.tables.now
    absence = StoredDoubt(uuid(2), Verdict.ABSENT, instance(2), "not_found", at - 600, at - 60, sightings=5)
    world.tables.doubts[uuid(2), Verdict.ABSENT] = absence
    look_first(world, 2, "not_found")
    report = Invocation(world).run()
    assert (skipped(report), report.absent) == ({"not_confirmed": 1}, 1)
    assert world.tables.doubts == {}


@pytest.mark.parametrize(
    ("request_made", "message"), [(FULL, "workspace flipped"), (DRY_RUN, "would flip")], ids=["apply", "dry run"]
)
def test_a_flip_is_logged_with_the_state_of_the_second_probe(request_made: Request, message: str, log: Log) -> None:
    world = fleet(6, _2="stopped", _3="terminated")
    look_first(world, 2, "terminated")
    look_first(world, 3, "stopped")
    Invocation(world).run(request_made)
    assert [(line["workspace_id"], line["reason"]) for line in log.lines(message)] == [
        (uuid(2), "stopped, confirmed by a second probe"),
        (uuid(3), "terminated, confirmed by a second probe"),
    ]


def test_an_open_breaker_flips_nothing_and_counts_whom_it_stopped() -> None:
    report = Invocation(fleet(5, _1="stopped", _2="stopped", _3="stopped")).run()
    assert report.breaker_open
    assert (skipped(report), report.flipped) == ({"breaker_open": 3}, 0)


def test_the_override_lifts_the_breaker_for_this_cycle() -> None:
    assert Invocation(fleet(5, _1="stopped", _2="stopped", _3="stopped")).run(OVERRIDE).flipped == 3


@pytest.mark.parametrize("cursor", [100, 0], ids=["far from their turn", "in their turn"])
def test_those_who_were_brought_forward_do_not_open_the_breaker(cursor: int) -> None:
    """Of four hundred, a cycle checks forty: ten of the dead that came first, and thirty in turn, half of them dead."""
    first = range(1, 11)
    next_in_turn = [number for number in range(cursor + 1, 401) if number not in first][:15]
    world = fleet(400, **dict.fromkeys((f"_{number}" for number in (*first, *next_in_turn)), "stopped"))
    world.tables.coverage = Coverage(uuid(cursor), uuid(cursor), tuple(map(uuid, first)))
    report = Invocation(world, CANDIDATE_LIMIT="40").run()
    assert (report.checked, report.dead, report.breaker_open) == (40, 25, False)


def test_what_the_open_breaker_blocks_stands_in_the_report() -> None:
    world = fleet(400, **dict.fromkeys((f"_{number}" for number in range(1, 302)), "stopped"))
    row(world, 1).heartbeat_at = world.tables.now
    report = Invocation(world).run()
    assert report.breaker_open
    assert (len(report.flips), {flip.blocked for flip in report.flips}) == (99, {True})
    assert uuid(1) not in flipped(report)


# --- a part of the fleet ---


@pytest.mark.parametrize(
    ("request_made", "candidates"),
    [
        pytest.param(Request("apply", limit=2), 2, id="a limit"),
        pytest.param(Request("apply", (uuid(3),)), 1, id="chosen workspaces"),
        pytest.param(Request("apply", limit=1_000_000), 6, id="a limit beyond the fleet"),
    ],
)
def test_a_narrowed_cycle_moves_no_cursor_and_completes_no_pass(request_made: Request, candidates: int) -> None:
    invocation = Invocation(fleet(6))
    report = invocation.run(request_made)
    assert (report.candidates, report.completed_pass) == (candidates, False)
    assert "save_coverage" not in invocation.wrote_by


@pytest.mark.parametrize(
    ("request_made", "asked"),
    [
        pytest.param(Request("apply", (uuid(3), uuid(7))), [7], id="chosen workspaces"),
        pytest.param(Request("apply", limit=5), [], id="a limit"),
        pytest.param(FULL, [7, 8], id="everybody"),
    ],
)
def test_a_narrowed_cycle_asks_for_the_restarts_of_the_named_workspaces_only(
    request_made: Request, asked: list[int]
) -> None:
    world = fleet(6)
    owe(world, 7)
    owe(world, 8)
    invocation = Invocation(world)
    invocation.run(request_made)
    assert sorted(invocation.asked) == asked


def test_the_smaller_of_the_events_and_the_settings_limit_counts() -> None:
    for limit, candidates in ((5, 3), (2, 2)):
        assert Invocation(fleet(6), CANDIDATE_LIMIT="3").run(Request("apply", limit=limit)).candidates == candidates


# --- time ---


def test_the_next_cycle_begins_with_what_the_deadline_left() -> None:
    world = fleet(100)
    world.probe_takes_s = 1
    report = Invocation(world).run(seconds=20)
    assert report.checked == 14
    assert (report.deferred, report.deadline_hit, report.completed_pass) == (86, True, False)
    assert world.tables.coverage.cursor == uuid(14)


def test_slow_answers_end_the_probing_in_time_for_a_second_probe() -> None:
    world = fleet(100, _1="terminated")
    world.probe_takes_s, began_at = 8, world.tables.now
    report = Invocation(world).run(seconds=45)
    assert report.flipped == 1
    assert report.checked == 4
    assert world.tables.now - began_at <= 45


def test_dead_workspaces_without_time_left_are_brought_forward() -> None:
    dead = dict.fromkeys((f"_{number}" for number in range(1, 801)), "stopped")
    report = Invocation(fleet(2000, **dead), answers_take_s={"flip": 13}).run(seconds=40)
    assert report.flipped == 600
    assert skipped(report) == {"out_of_time": 200}
    assert report.deadline_hit


@pytest.mark.parametrize(
    ("dead", "flips", "brought_forward"),
    [
        pytest.param(300, 200, 100, id="those that are left"),
        pytest.param(500, 200, 250, id="half of those checked"),
        pytest.param(2500, 200, 1000, id="a thousand"),
    ],
)
def test_a_limited_number_comes_first(dead: int, flips: int, brought_forward: int) -> None:
    world = fleet(dead, **dict.fromkeys((f"_{number}" for number in range(1, dead + 1)), "stopped"))
    report = Invocation(world, answers_take_s={"flip": 44}).run(OVERRIDE)
    assert skipped(report) == {"out_of_time": dead - flips}
    assert len(world.tables.coverage.brought_forward) == brought_forward


def test_a_cycle_that_dies_while_it_flips_has_saved_where_the_next_one_begins_and_what_it_saw() -> None:
    world = fleet(600, **dict.fromkeys((f"_{number}" for number in range(1, 41)), "stopped"))

    def die() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        Invocation(world, first={"flip": [die]}, CANDIDATE_LIMIT="100").run()
    assert world.tables.coverage.cursor == uuid(100)
    assert len(world.tables.coverage.brought_forward) == 40
    assert len(world.tables.doubts) == 40


def test_rows_that_always_run_out_of_time_never_starve_the_rest() -> None:
    world = fleet(100, **dict.fromkeys((f"_{number}" for number in range(1, 101) if number % 4), "stopped"))
    world.probe_takes_s = 1
    probed = set[int]()

    def flips_take_long() -> None:
        world.tables.now += 3.5

    for _ in range(ceil(100 / 7) + 1):
        invocation = Invocation(world, each={"flip": flips_take_long})
        report = invocation.run(OVERRIDE, seconds=20)
        assert (report.checked, report.flipped) == (14, 0)
        probed.update(invocation.probed)
    assert probed == set(range(1, 101))


def test_a_flip_that_failed_for_lack_of_time_is_brought_forward() -> None:
    world = fleet(6, _2="stopped")

    def take_long() -> None:
        world.tables.now += 44
        raise ConnectionLostError("gone")

    assert skipped(Invocation(world, first={"flip": [take_long]}).run()) == {"out_of_time": 1}
    assert world.tables.coverage.brought_forward == (uuid(2),)


def test_due_restarts_have_time_of_their_own() -> None:
    """The control plane takes eight seconds for an answer, and so does the platform."""
    world = fleet(400)
    for number in range(401, 411):
        owe(world, number)
    world.probe_takes_s = 8

    def answer_slowly(_: str) -> None:
        world.tables.now += 0.5  # the fake's calls come one after the other

    def spend_the_time_to_flip() -> None:
        world.tables.now = began_at + to_flip_s

    began_at = world.tables.now
    invocation = Invocation(world, asked=answer_slowly, in_bulk=True, each={"recall": spend_the_time_to_flip})
    to_flip_s = Phases.of(invocation.deadline(45), restarts_due=True).flipping.remaining()
    invocation.run()
    assert world.tables.now - began_at <= 45.5
    assert sorted(invocation.asked)[:8] == list(range(401, 409))


def test_slow_restarts_are_no_deadline_hit() -> None:
    world = fleet(6)
    owe(world, 7)

    def take_long(_: str) -> None:
        world.tables.now += 9

    report = Invocation(world, asked=take_long).run(seconds=10)
    assert [one.outcome for one in world.tables.restarts] == ["accepted"]
    assert (report.deferred, report.restarts.accepted) == (0, 1)
    assert not report.deadline_hit


def test_a_cycle_without_time_to_probe_checks_nobody_and_reports_it() -> None:
    invocation = Invocation(fleet(6, _2="stopped"), answers_take_s={"select": 40})
    report = invocation.run()
    assert (report.checked, report.deferred, report.deadline_hit, report.flipped) == (0, 6, True, 0)
    assert invocation.probed == []


def test_a_cycle_without_any_time_cannot_be_run() -> None:
    invocation = Invocation(fleet(6))
    with pytest.raises(StoreError):
        invocation.run(seconds=0)
    assert invocation.wrote_by == []


# --- shards ---


def test_a_shard_flips_nothing_if_the_others_have_seen_too_many_dead_meanwhile() -> None:
    """Each saves what it saw before it looks at the whole fleet, so one of them sees that both saw too many."""
    world, high = World(), 2**127
    for number in (1, 2, 3, high, high + 1, high + 2):
        world.add(uuid(number), "terminated" if number in (1, 2, high, high + 1) else "running")
    beside = Invocation(world)
    reports: list[Report] = []

    def another_begins() -> None:
        reports.append(beside.run(Request("apply", shard=Shard(1, 2))))

    invocation = Invocation(world, first={"_save": [another_begins]})
    report = invocation.run(Request("apply", shard=Shard(0, 2)))
    assert [(one.flipped, one.breaker_open) for one in (*reports, report)] == [(2, False), (0, True)]
    assert len(world.tables.events) == 2


def test_a_shard_asks_for_no_restart_if_the_others_have_seen_too_many_dead_meanwhile() -> None:
    """It has nobody to flip itself. A full cycle, which sees everybody, would ask for nothing either."""
    world, high = World(), 2**127
    for number in (1, 2):
        world.add(uuid(number), "running")
    for number in range(high, high + 5):
        world.add(uuid(number), "terminated")
    owe(world, 3)
    beside = Invocation(world)

    def another_sees_it() -> None:
        beside.run(Request("apply", shard=Shard(1, 2)))

    invocation = Invocation(world, first={"_forget": [another_sees_it]})
    report = invocation.run(Request("apply", shard=Shard(0, 2)))
    assert (report.breaker_open, report.restarts.pending, invocation.asked) == (True, 1, [])
