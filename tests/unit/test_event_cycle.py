"""A cycle after EC2's events, over the fakes: whom it looks at, what it leaves alone, and what it returns."""

import copy
from itertools import groupby

import pytest

from handler.domain.model import SkipReason, Verdict
from handler.domain.state_changes import StateChange
from handler.errors import ConnectionLostError, LeaseLostError
from handler.request import Request
from tests.fakes.tables import StoredDoubt
from tests.fakes.world import ERROR, Lie, World
from tests.unit.builders import instance, uuid
from tests.unit.invocation import Invocation, fails, fleet, owe, row


def after(world: World, *numbers: int, age_s: float | None = 2.0, mode: str = "apply") -> Request:
    """Return the request after the events of these instances, of that age (None: without a time)."""
    at = None if age_s is None else world.tables.now - age_s
    return Request(mode, state_changes={instance(one): StateChange(instance(one), "terminated", at) for one in numbers})


def skipped(invocation: Invocation, request: Request) -> dict[str, int]:
    return {reason: count for reason, count in invocation.run(request).skipped.items() if count}


def test_it_flips_the_dead_among_the_named_and_asks_for_no_restart() -> None:
    world = fleet(6, _1="terminated", _2="terminated")
    owe(world, 7)
    invocation = Invocation(world)
    report = invocation.run(after(world, 2, 3))
    assert (report.candidates, report.checked, report.running, report.dead, report.flipped) == (2, 2, 1, 1, 1)
    assert [one.workspace_id for one in report.flips] == [uuid(2)]
    assert [call for call, _ in groupby(invocation.wrote_by)] == ["forget", "save", "flip"]
    assert (invocation.probed, invocation.asked) == ([2, 3, 2], [])
    assert (report.completed_pass, report.restarts.pending) == (False, 2)


def test_it_works_beside_whoever_has_the_lease_and_leaves_it_alone() -> None:
    world = fleet(6, _2="terminated")
    lease = world.tables.lease = ("another cycle", world.tables.now + 60)
    report = Invocation(world).run(after(world, 2))
    assert (report.outcome, report.flipped, world.tables.lease) == ("completed", 1, lease)


def test_where_no_row_records_an_instance_nobody_is_asked() -> None:
    world = fleet(3, _2="terminated")
    before = copy.deepcopy(world.tables)
    invocation = Invocation(world)
    result = invocation.result(after(world, 8, 9))
    assert (result.report.candidates, result.events.unjudged) == (0, frozenset())
    assert (invocation.probed, invocation.wrote_by, world.tables) == ([], [], before)


def test_a_row_that_is_offline_is_not_adopted() -> None:
    world, now = fleet(3, _2="terminated"), 1_000_000.0
    row(world, 2).status = "offline"
    world.tables.doubts[uuid(2), Verdict.DEAD] = StoredDoubt(uuid(2), Verdict.DEAD, instance(2), "dead", now, now)
    assert Invocation(world).run(after(world, 2)).candidates == 0


def test_a_dry_run_writes_nothing() -> None:
    world = fleet(6, _2="terminated")
    before = copy.deepcopy(world.tables)
    invocation = Invocation(world)
    report = invocation.run(after(world, 2, mode="dry-run"))
    assert ([one.workspace_id for one in report.flips], report.flipped) == ([uuid(2)], 0)
    assert (invocation.wrote_by, world.tables) == ([], before)


def test_absences_are_not_counted() -> None:
    world = fleet(6, _2=None)
    for _ in range(5):
        world.tables.now += 60
        assert Invocation(world).run(after(world, 2, 3)).absent == 1
    assert world.tables.doubts == {}


def test_the_second_rule_of_the_breaker_holds_and_the_first_does_not() -> None:
    world = fleet(20, **dict.fromkeys((f"_{number}" for number in range(1, 6)), "stopped"))
    assert Invocation(world).run(after(world, *range(1, 6))).flipped == 5
    world = fleet(9, **dict.fromkeys((f"_{number}" for number in range(1, 6)), "stopped"))
    report = Invocation(world).run(after(world, *range(1, 6)))
    assert (report.breaker_open, report.flipped, report.skipped["breaker_open"]) == (True, 0, 5)


# --- the heartbeat ---


@pytest.mark.parametrize(
    ("event_age_s", "beat_age_s", "flips"),
    [
        pytest.param(2.0, 10.0, True, id="before the death"),
        pytest.param(20.0, 16.0, True, id="within the tolerance"),
        pytest.param(20.0, 14.0, False, id="after the death"),
        pytest.param(600.0, 300.0, False, id="long ago, but after the death"),
        pytest.param(None, 10.0, False, id="young, and no time"),
        pytest.param(None, 70.0, True, id="old, and no time"),
        pytest.param(-5.0, 10.0, False, id="young, and a time to come"),
        pytest.param(901.0, 10.0, False, id="young, and a time too long ago"),
        pytest.param(901.0, 70.0, True, id="old, and a time too long ago"),
    ],
)
def test_a_heartbeat_vetoes_the_flip_only_if_it_came_after_the_death(
    event_age_s: float | None, beat_age_s: float, flips: bool
) -> None:
    world = fleet(6, _2="terminated")
    row(world, 2).heartbeat_at = world.tables.now - beat_age_s
    reasons = skipped(Invocation(world), after(world, 2, age_s=event_age_s))
    assert reasons == ({} if flips else {"fresh_heartbeat": 1})


def test_a_heartbeat_during_the_cycle_vetoes_the_flip_whatever_the_event_says() -> None:
    world = fleet(6, _2="terminated")

    def beat() -> None:
        row(world, 2).heartbeat_at = world.tables.now - 100

    assert skipped(Invocation(world, first={"flip": [beat]}), after(world, 2)) == {"fresh_heartbeat": 1}


@pytest.mark.parametrize(("grace_s", "due_in_s"), [(0, 60), (30, 60), (180, 180)])
def test_its_restart_waits_for_silence(grace_s: int, due_in_s: int) -> None:
    world = fleet(6, _2="terminated")
    Invocation(world, RESTART_GRACE_SECONDS=str(grace_s)).run(after(world, 2))
    (restart,) = world.tables.restarts
    assert restart.due_at == world.tables.now + due_in_s


# --- what is returned ---


def unjudged(invocation: Invocation, request: Request, seconds: float = 45) -> set[str]:
    return set(invocation.result(request, seconds).events.unjudged)


def test_what_was_judged_is_not_returned() -> None:
    world = fleet(9, _2="terminated", _3="stopping", _4=None, _5="stopped", _6="stopped")
    row(world, 5).heartbeat_at = world.tables.now
    row(world, 6).locked_by = "somebody else"
    assert unjudged(Invocation(world), after(world, *range(1, 8), 99)) == set()


@pytest.mark.parametrize("probe", [1, 2])
def test_an_instance_that_is_unknown_at_either_probe_is_returned(probe: int) -> None:
    world = fleet(6, _2="terminated")

    def no_answer() -> None:
        world.lies[instance(2)] = Lie(ERROR, 1)

    call = {1: "recording", 2: "recall"}[probe]
    assert unjudged(Invocation(world, first={call: [no_answer]}), after(world, 2, 3)) == {instance(2)}


@pytest.mark.parametrize("word", ["running", "stopping"])
def test_a_second_answer_that_it_lives_is_final(word: str) -> None:
    world = fleet(6, _2=word)
    world.lies[instance(2)] = Lie("stopped", 1)
    assert unjudged(Invocation(world), after(world, 2)) == set()


def test_what_was_not_reached_is_returned() -> None:
    world = fleet(30)
    world.probe_takes_s = 1
    left = unjudged(Invocation(world), after(world, *range(1, 21)), seconds=10)
    assert 0 < len(left) < 20


def test_what_the_limit_left_out_is_returned() -> None:
    world = fleet(6)
    assert unjudged(Invocation(world, CANDIDATE_LIMIT="1"), after(world, 1, 2)) == {instance(2)}


def test_what_the_database_refused_is_returned() -> None:
    world = fleet(6, _2="terminated")
    gone = {"flip": fails(ConnectionLostError("gone"))}
    assert unjudged(Invocation(world, each=gone), after(world, 2, 3)) == {instance(2)}


def test_what_came_too_late_is_returned() -> None:
    world = fleet(6, _2="terminated")

    def take_long() -> None:
        world.tables.now += 44
        raise ConnectionLostError("gone")

    invocation = Invocation(world, first={"flip": [take_long]})
    result = invocation.result(after(world, 2))
    assert result.report.skipped[SkipReason.OUT_OF_TIME] == 1
    assert result.events.unjudged == {instance(2)}


def test_an_instance_that_two_rows_record_is_returned_if_one_of_them_was_not_judged() -> None:
    world = fleet(6, _2="running")
    row(world, 3).instance_id = instance(2)
    world.lies[instance(2)] = Lie(ERROR, 1)
    result = Invocation(world).result(after(world, 2))
    assert (result.report.running, result.report.unknown) == (1, 1)
    assert result.events.unjudged == {instance(2)}


# --- the latency ---


def test_each_flip_with_a_usable_time_has_a_latency() -> None:
    world = fleet(6, _2="terminated", _3="terminated")
    request = after(world, 2, 3, 4)
    changes = {**(request.state_changes or {}), instance(3): StateChange(instance(3), "terminated", None)}
    result = Invocation(world, answers_take_s={"flip": 0.5}).result(Request("apply", state_changes=changes))
    assert (result.report.flipped, result.events.latencies_s) == (2, (2.5,))


# --- time ---


def test_a_cycle_that_was_frozen_past_its_expiry_writes_nothing() -> None:
    world = fleet(6, _2="terminated")
    invocation = Invocation(world)
    frozen_s = 0.0

    def clock() -> float:
        return world.tables.now - frozen_s

    def freeze() -> None:
        nonlocal frozen_s
        world.tables.now += 60
        frozen_s += 60

    invocation.clock = clock  # type: ignore[method-assign]
    invocation._each = {"flip": freeze}  # noqa: SLF001 - it needs the clock
    with pytest.raises(LeaseLostError):  # so that the whole batch comes again
        invocation.run(after(world, 2))
    assert (row(world, 2).status, world.tables.events, world.tables.restarts) == ("online", [], [])
