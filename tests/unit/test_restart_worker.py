"""The restart worker over the fakes: which restarts are asked for, when, and what the answers do."""

import copy
from collections.abc import Callable
from typing import Self

import pytest

from handler.deadline import Deadline
from handler.domain.evidence import DatabaseClock
from handler.domain.model import Cause, Failure
from handler.domain.restarts import Circumstances
from handler.errors import ConnectionLostError, SecretError
from handler.restarts import Answer, Platform, Reply
from handler.restarts.asking import CALLS_AT_ONCE
from handler.restarts.worker import RestartResults, RestartWorker
from handler.telemetry import CycleLog
from tests.fakes.tables import StoredRestart
from tests.fakes.world import ERROR, Lie, World
from tests.unit.builders import Log, instance, number_of, uuid
from tests.unit.invocation import Invocation, fails, nothing, owe, row

OWN = "cycle 1"  # the first invocation over a world


def owing(count: int) -> World:
    """Return a world of so many workspaces, each of which this cycle has just flipped."""
    world = World()
    for number in range(1, count + 1):
        owe(world, number, by=OWN)
    return world


def restart(world: World, number: int) -> StoredRestart:
    (owed,) = (one for one in world.tables.restarts if one.workspace_id == uuid(number))
    return owed


def outcomes(world: World) -> dict[int, str]:
    """Return how each closed restart ended."""
    return {number_of(one.workspace_id): one.outcome for one in world.tables.restarts if one.outcome is not None}


def put_off(world: World) -> dict[int, float]:
    """Return in how many seconds each open restart is due that is not due yet."""
    now = world.tables.now
    return {number_of(one.workspace_id): one.due_at - now for one in world.tables.open_restarts() if one.due_at > now}


def pass_time(world: World, seconds: float) -> None:
    world.tables.now += seconds


def work(
    invocation: Invocation,
    *,
    only: list[str] | None = None,
    absence_counts: bool = True,
    breaker_open: bool = False,
    release: bool = False,
    seconds: float = 20,
    platform: Callable[[Deadline], Platform] | None = None,
    without_platform: bool = False,
) -> RestartResults:
    """Run the worker as a cycle does, while the lease is its own."""
    tables = invocation.world.tables
    tables.lease = (invocation.cycle_id, tables.now + 3600)
    store = invocation.store()
    now = Circumstances(
        full=only is None,
        breaker_open=breaker_open,
        absence_counts=absence_counts,
        absence=invocation.settings.absence,
    )
    worker = RestartWorker(
        store,
        invocation.probe(),
        invocation.settings,
        clock=DatabaseClock(tables.now, tables.now),
        now=now,
        workspace_ids=only,
        most=invocation.settings.restarts.per_cycle,
        log=CycleLog(),
    )
    return worker.run(
        None if without_platform else platform or (lambda _: invocation.platform()),
        invocation.deadline(seconds),
        invocation.deadline(seconds + 0.5),
        release=release,
    )


# --- what is asked for ---


def test_each_restart_is_claimed_and_asked_for_once() -> None:
    world = owing(20)
    invocation = Invocation(world)
    results = work(invocation)
    assert sorted(invocation.asked) == list(range(1, 21))
    assert [one.attempts for one in world.tables.restarts] == [1] * 20
    assert outcomes(world) == dict.fromkeys(range(1, 21), "accepted")
    assert (results.answers, results.cancelled) == ({Answer.ACCEPTED: 20}, 0)


def test_a_cycle_asks_for_no_more_restarts_than_it_may() -> None:
    world = owing(20)
    invocation = Invocation(world, RESTARTS_PER_CYCLE="5")
    results = work(invocation)
    assert sorted(invocation.asked) == [1, 2, 3, 4, 5]
    assert [one.attempts for one in world.tables.restarts] == [1] * 5 + [0] * 15
    assert results.answers == {Answer.ACCEPTED: 5}


def test_cancelled_and_taken_restarts_leave_room_for_others() -> None:
    world = owing(4)

    def move_on_and_take() -> None:
        row(world, 1).status = "online"
        restart(world, 2).due_at = world.tables.now + 300

    invocation = Invocation(world, first={"claim": [move_on_and_take]}, RESTARTS_PER_CYCLE="2")
    results = work(invocation)
    assert sorted(invocation.asked) == [3, 4]
    assert outcomes(world) == {1: "cancelled", 3: "accepted", 4: "accepted"}
    assert (results.cancelled, results.answers) == (1, {Answer.ACCEPTED: 2})


def test_without_a_platform_nothing_is_claimed() -> None:
    world = owing(3)
    invocation = Invocation(world)
    work(invocation, without_platform=True)
    assert invocation.wrote_by == ["cancel_moved_on"]


@pytest.mark.parametrize(
    ("seconds", "probe_takes_s", "probed"),
    [
        pytest.param(0, 0, [], id="no time"),
        pytest.param(0.4, 0, [], id="too little for a call"),
        pytest.param(0.9, 0.42, [1], id="too little after the probe"),
    ],
)
def test_a_call_that_would_be_cut_off_at_once_does_not_begin(
    seconds: float, probe_takes_s: float, probed: list[int]
) -> None:
    world = owing(1)
    world.probe_takes_s = probe_takes_s
    invocation = Invocation(world)
    work(invocation, seconds=seconds)
    assert "claim" not in invocation.wrote_by
    assert (invocation.probed, invocation.asked) == (probed, [])


# --- the probe before a retry ---

RETRIES = {
    "of an earlier cycle": lambda world, state: owe(world, 1, state=state, attempts=1),
    "asked for before": lambda world, state: owe(world, 1, state=state, attempts=1, by=OWN),
    "never asked for": lambda world, state: owe(world, 1, state=state),
}


@pytest.mark.parametrize(
    ("state", "asked", "cancelled"),
    [
        *[("terminated", True, 0), ("stopped", True, 0)],
        *[("running", False, 1), ("pending", False, 0), ("stopping", False, 0), ("no such word", False, 0)],
    ],
)
@pytest.mark.parametrize("kind", RETRIES)
def test_an_older_restart_is_asked_for_only_if_its_instance_is_still_dead(
    kind: str, state: str | None, asked: bool, cancelled: int
) -> None:
    world = World()
    RETRIES[kind](world, state)
    invocation = Invocation(world)
    results = work(invocation)
    assert invocation.probed == [1]
    assert (invocation.asked == [1], results.cancelled) == (asked, cancelled)
    assert outcomes(world).get(1) == ("accepted" if asked else "cancelled" if cancelled else None)
    assert (put_off(world) == {1: 60}) is (not asked and not cancelled)


def test_a_restart_whose_instance_is_gone_is_asked_for_in_the_third_cycle_that_does_not_find_it() -> None:
    world = World()
    owe(world, 1, state=None)
    asked = []
    for _ in range(3):
        invocation = Invocation(world)
        work(invocation)
        asked.append(invocation.asked)
        world.tables.now += 60
    assert asked == [[], [], [1]]
    assert outcomes(world) == {1: "accepted"}


def test_sightings_of_absence_before_the_flip_count() -> None:
    world = World()
    owe(world, 1, state=None)
    restart(world, 1).absent_sightings, restart(world, 1).absent_since = 2, world.tables.now - 120
    invocation = Invocation(world)
    work(invocation)
    assert invocation.asked == [1]


def test_an_instance_that_is_found_again_is_not_absent_any_more() -> None:
    world = World()
    owe(world, 1, state="pending")
    restart(world, 1).absent_sightings, restart(world, 1).absent_since = 2, world.tables.now - 120
    work(Invocation(world))
    assert restart(world, 1).absent_sightings == 0


def test_an_absence_that_does_not_count_puts_an_older_restart_off() -> None:
    world = World()
    owe(world, 1, state=None)
    owe(world, 2)
    invocation = Invocation(world)
    work(invocation, absence_counts=False)
    assert (invocation.asked, outcomes(world), put_off(world)) == ([2], {2: "accepted"}, {1: 60})


def test_a_heartbeat_after_the_flip_puts_a_restart_off(log: Log) -> None:
    world = owing(2)
    row(world, 1).heartbeat_at = world.tables.now - 59
    invocation = Invocation(world)
    work(invocation)
    assert invocation.asked == [2]
    assert restart(world, 1).closed_at is None
    assert [(line["workspace_id"], line["reason"]) for line in log.lines("restart put off")] == [
        (uuid(1), "a heartbeat came after the flip")
    ]


def test_an_old_heartbeat_puts_no_restart_off() -> None:
    world = owing(1)
    row(world, 1).heartbeat_at = world.tables.now - 60
    invocation = Invocation(world)
    work(invocation)
    assert invocation.asked == [1]


def test_an_older_restart_whose_instance_was_not_reached_is_put_off() -> None:
    world = World()
    owe(world, 1)
    owe(world, 2)
    world.probe_takes_s = 7  # of the ten seconds that probing may take
    invocation = Invocation(world)
    results = work(invocation)
    assert (invocation.probed, invocation.asked) == ([1], [1])
    assert (outcomes(world), put_off(world)) == ({1: "accepted"}, {2: 60})
    assert (results.cancelled, results.answers) == (0, {Answer.ACCEPTED: 1})


def test_undecided_restarts_go_behind_the_others() -> None:
    world = World()
    for number in range(1, 301):
        owe(world, number)
        world.lies[instance(number)] = Lie(ERROR, 1000)
    owe(world, 301)
    cycles = []
    for _ in range(4):
        invocation = Invocation(world, RESTARTS_PER_CYCLE="10")
        work(invocation)
        cycles.append(invocation.asked)
        world.tables.now += 60
    assert cycles == [[], [], [301], []]


def test_decided_restarts_are_not_put_off() -> None:
    world = World()
    owe(world, 1)
    owe(world, 2, state="running")
    owe(world, 3, by=OWN)
    invocation = Invocation(world)
    work(invocation)
    assert "put_off" not in invocation.wrote_by
    assert outcomes(world) == {1: "accepted", 2: "cancelled", 3: "accepted"}


def test_even_a_new_restart_of_this_cycle_is_probed_again() -> None:
    invocation = Invocation(owing(1))
    work(invocation)
    assert (invocation.probed, invocation.asked) == ([1], [1])


def test_evidence_that_has_grown_too_old_by_the_claim_is_not_acted_on() -> None:
    world = owing(1)
    invocation = Invocation(world, answers_take_s={"connect": 0}, first={"claim": [lambda: pass_time(world, 5.1)]})
    work(invocation)
    assert (invocation.asked, outcomes(world), restart(world, 1).attempts) == ([], {}, 0)


def test_a_claim_that_cannot_be_sent_in_time_is_given_back() -> None:
    world = owing(1)
    invocation = Invocation(world, answers_take_s={"claim": 5.1})
    results = work(invocation)
    owed = restart(world, 1)
    assert (invocation.asked, results.answers) == ([], {})
    assert (owed.attempts, owed.asked_at, owed.last_answer, owed.watched_since) == (0, None, None, None)
    assert owed.due_at <= world.tables.now


def test_a_platform_that_cannot_be_reached_has_refused() -> None:
    world = owing(2)
    world.unreachable = True
    invocation = Invocation(world)
    results = work(invocation)
    assert (invocation.asked, results.answers) == ([], {Answer.REFUSED: 2})
    assert put_off(world) == {1: 60, 2: 60}
    assert [(one.attempts, one.refusals, one.watched_since) for one in world.tables.restarts] == [(0, 1, None)] * 2


def test_a_restart_whose_row_has_moved_on_is_cancelled_without_a_probe(log: Log) -> None:
    world = World()
    owe(world, 1)
    owe(world, 2)
    owe(world, 3, by=OWN)
    for number in (1, 3):
        row(world, number).status = "online"
    invocation = Invocation(world)
    results = work(invocation)
    assert (invocation.probed, invocation.asked) == ([2], [2])
    assert outcomes(world) == {1: "cancelled", 2: "accepted", 3: "cancelled"}
    assert (results.cancelled, results.answers) == (2, {Answer.ACCEPTED: 1})
    lines = [(line["workspace_id"], line["reason"]) for line in log.lines("restart cancelled")]
    assert lines == [(uuid(1), "the row has moved on"), (uuid(3), "the row has moved on")]


def test_a_narrowed_cycle_leaves_the_restarts_of_others_alone() -> None:
    world = World()
    owe(world, 1)
    owe(world, 2)
    owe(world, 3, by=OWN)
    row(world, 1).status = "online"
    others = copy.deepcopy(world.tables.restarts[:2])
    invocation = Invocation(world)
    results = work(invocation, only=[uuid(3)])
    assert (invocation.probed, invocation.asked, outcomes(world)) == ([3], [3], {3: "accepted"})
    assert world.tables.restarts[:2] == others
    assert results.cancelled == 0


# --- what the answers do ---


@pytest.mark.parametrize(
    ("mood", "answer", "due_in_s", "refusals"),
    [
        pytest.param("refuse", Answer.REFUSED, 60, 1, id="refused"),
        pytest.param("throttle", Answer.REFUSED, 60, 1, id="told to wait"),
        pytest.param("lose", Answer.UNCERTAIN, 290, 0, id="no answer for ten seconds"),
        pytest.param("blocked", Answer.BLOCKED, 60, 1, id="an ancestor is paused"),
    ],
)
def test_a_restart_that_was_not_accepted_is_put_off(mood: str, answer: Answer, due_in_s: float, refusals: int) -> None:
    world = owing(1)
    world.platform_mood = mood
    results = work(Invocation(world))
    assert put_off(world) == {1: due_in_s}
    assert (restart(world, 1).last_answer, restart(world, 1).refusals) == (answer, refusals)
    assert outcomes(world) == {}
    assert results.answers == {answer: 1}


def test_the_wait_grows_with_earlier_refusals() -> None:
    world = World()
    owe(world, 1, by=OWN, refusals=3)
    world.platform_mood = "refuse"
    work(Invocation(world))
    assert put_off(world) == {1: 480}


def throttled(world: World) -> Invocation:
    """Return an invocation whose every request the platform answers with: wait for two minutes."""
    return Invocation(world, each={"restart": lambda: setattr(world, "platform_mood", "throttle")})


def test_once_told_to_wait_the_cycle_asks_for_no_more() -> None:
    invocation = throttled(owing(100))
    work(invocation)
    assert len(invocation.asked) <= 2 * CALLS_AT_ONCE


def test_once_told_to_wait_all_restarts_wait_in_every_cycle() -> None:
    world = owing(100)
    invocation = throttled(world)
    work(invocation)
    refused = [number_of(one.workspace_id) for one in world.tables.restarts if one.last_answer == "refused"]
    assert sorted(refused) == sorted(invocation.asked)
    assert put_off(world) == dict.fromkeys(refused, 60)
    world.tables.now += 110
    later = Invocation(world)
    assert work(later).answers == {}
    world.tables.now += 20
    work(later)
    assert len(later.asked) > 0


class Waits:
    """A platform that refuses everything, and asks to wait for these seconds in turn."""

    def __init__(self, *seconds: float | None) -> None:
        self._seconds = iter(seconds)

    def connect(self, _: Deadline) -> Self:
        return self

    def close(self) -> None:
        pass

    def restart(self, *_: object, **__: object) -> Reply:
        return Reply(Answer.REFUSED, Failure(Cause.HTTP_STATUS, "503"), next(self._seconds))


def test_the_longest_wait_that_the_platform_asks_for_counts(log: Log) -> None:
    world = owing(CALLS_AT_ONCE)
    platform = Waits(None, 0.0, 5.0, 120.0, 60.0, 120.0, 1.0, 2.0)
    work(Invocation(world), platform=lambda _: platform)
    stops = [one.ends_at - world.tables.now for one in world.tables.stops]
    assert stops == sorted(set(stops))
    assert stops[-1] == 120
    assert len(log.lines("restarts stopped")) == len(stops)


def test_a_wait_of_no_time_stops_nothing() -> None:
    world = owing(2 * CALLS_AT_ONCE)
    platform = Waits(*[0.0] * 2 * CALLS_AT_ONCE)
    assert work(Invocation(world), platform=lambda _: platform).answers == {Answer.REFUSED: 2 * CALLS_AT_ONCE}
    assert put_off(world) == dict.fromkeys(range(1, 2 * CALLS_AT_ONCE + 1), 60)


def test_a_stop_that_cannot_be_recorded_is_obeyed_by_this_cycle(log: Log) -> None:
    world = owing(100)
    broken = {"stop": fails(ConnectionLostError("gone"))}
    platform = Waits(*[600.0] * 100)
    results = work(Invocation(world, each=broken), platform=lambda _: platform)
    assert results.answers[Answer.REFUSED] <= 2 * CALLS_AT_ONCE
    assert len(put_off(world)) == results.answers[Answer.REFUSED]
    assert len(log.lines("stop not recorded")) == 1


@pytest.mark.parametrize("call", ["cancel_moved_on", "due", "claim"])
@pytest.mark.parametrize(("seconds", "longest_s"), [(20, 2), (1, 1)])
def test_no_look_at_the_store_takes_longer_than_a_re_read_may(call: str, seconds: float, longest_s: float) -> None:
    for took_s, asked in ((longest_s - 0.51, [1]), (longest_s, [])):
        world = owing(1)

        def take_long(world: World = world, took_s: float = took_s) -> None:
            world.tables.now += took_s

        invocation = Invocation(world, first={call: [take_long]}, RECONFIRM_TIMEOUT_SECONDS="2")
        work(invocation, seconds=seconds)
        assert invocation.asked == asked


# --- failures meanwhile ---

DATABASE_FAILURES = [
    pytest.param(ConnectionLostError("gone"), id="the database is gone"),
    pytest.param(SecretError("gone"), id="the secret for a new login cannot be fetched"),
]


def test_without_the_platforms_token_the_restarts_wait_for_the_next_cycle(log: Log) -> None:
    def no_token(_: Deadline) -> Platform:
        raise SecretError("PLATFORM_SECRET_ARN: the secret cannot be fetched")

    world = owing(3)
    watched(world, 4)
    invocation = Invocation(world)
    work(invocation, platform=no_token)
    assert invocation.wrote_by == ["cancel_moved_on", "note_watch", "owe_again"]
    assert len(log.lines("restarts left for the next cycle")) == 1


@pytest.mark.parametrize("error", DATABASE_FAILURES)
def test_an_answer_that_cannot_be_recorded_leaves_the_others(error: Exception, log: Log) -> None:
    world = owing(3)
    invocation = Invocation(world, each={"accepted": fails(error)})
    results = work(invocation)
    assert sorted(invocation.asked) == [1, 2, 3]
    assert results.answers == {Answer.ACCEPTED: 3}
    assert put_off(world) == dict.fromkeys([1, 2, 3], 300)
    assert len(log.lines("platform's answer not recorded")) == 3


@pytest.mark.parametrize("error", DATABASE_FAILURES)
def test_answers_are_recorded_though_a_later_claim_fails(error: Exception) -> None:
    world = owing(2 * CALLS_AT_ONCE)
    invocation = Invocation(world, first={"claim": [nothing, fails(error)]})
    results = work(invocation)
    first = list(range(1, CALLS_AT_ONCE + 1))
    assert sorted(invocation.asked) == first
    assert outcomes(world) == dict.fromkeys(first, "accepted")
    assert results.answers == {Answer.ACCEPTED: CALLS_AT_ONCE}


def test_an_unexpected_error_makes_its_restart_uncertain_and_leaves_the_others(log: Log) -> None:
    def surprise(workspace_id: str) -> None:
        if workspace_id == uuid(2):
            raise OverflowError("s3cret")

    world = owing(3)
    results = work(Invocation(world, asked=surprise))
    assert outcomes(world) == {1: "accepted", 3: "accepted"}
    assert (restart(world, 2).last_answer, put_off(world)) == ("uncertain", {2: 300})
    assert results.answers == {Answer.ACCEPTED: 2, Answer.UNCERTAIN: 1}
    assert [line["reason"] for line in log.lines("restart uncertain")] == ["unexpected_OverflowError"]


# --- whose turn it is ---


def test_put_off_restarts_do_not_starve_the_silent_one_behind_them() -> None:
    world = World()
    for number in range(1, 102):
        owe(world, number)
    owe(world, 102)
    asked = []
    for _ in range(3):
        for number in range(1, 102):
            row(world, number).heartbeat_at = world.tables.now
        invocation = Invocation(world, RESTARTS_PER_CYCLE="1")
        work(invocation)
        asked += invocation.asked
        world.tables.now += 60
    assert asked == [102]


def test_blocked_restarts_take_half_of_the_calls_at_most() -> None:
    world = World()
    for number in range(1, 1501):
        owe(world, number, attempts=1, refusals=1)
        world.blocked.add(uuid(number))
    for number in range(1501, 1507):
        owe(world, number)
    invocation = Invocation(world, RESTARTS_PER_CYCLE="6")
    work(invocation)
    assert sorted(number for number in invocation.asked if number > 1500) == [1501, 1502, 1503]
    assert len(invocation.asked) == 6


# --- the breaker ---


def test_an_open_breaker_keeps_back_what_is_due_and_nobody_has_released() -> None:
    world = owing(3)
    restart(world, 2).released = True
    invocation = Invocation(world)
    work(invocation, breaker_open=True)
    assert invocation.asked == [2]
    assert [one.kept_back_at is not None for one in world.tables.restarts] == [True, False, True]


def test_a_release_lasts() -> None:
    world = owing(3)
    work(Invocation(world, RESTARTS_PER_CYCLE="1"), release=True)
    later = Invocation(world)
    work(later, breaker_open=True)
    assert sorted(later.asked) == [2, 3]


# --- the watch ---


def watched(
    world: World, number: int = 1, *, status: str = "offline", ago_s: float = 600.0, state: str = "terminated"
) -> StoredRestart:
    """Return a restart that was accepted a while ago, and whose row has that status now."""
    owe(world, number, attempts=1, state=state)
    row(world, number).status = status
    owed, at = restart(world, number), world.tables.now - ago_s
    owed.asked_at = owed.closed_at = owed.watched_since = at
    owed.outcome = "accepted"
    return owed


def test_a_workspace_that_was_up_for_five_minutes_is_watched_no_longer() -> None:
    world = World()
    owed = watched(world, status="degraded")
    ended = []
    for _ in range(7):
        work(Invocation(world))
        ended.append(owed.watch_ended_at is not None)
        world.tables.now += 60
    assert ended == [False] * 5 + [True] * 2


def test_five_minutes_up_begin_anew_after_it_was_down() -> None:
    world = World()
    owed = watched(world, status="online")
    for status in ["online"] * 4 + ["failed"] + ["online"] * 5:
        row(world, 1).status = status
        work(Invocation(world))
        world.tables.now += 60
    assert owed.watch_ended_at is None


def test_a_restart_that_has_done_nothing_is_owed_again_a_quarter_of_an_hour_after_its_call() -> None:
    world = World()
    old = watched(world, ago_s=100)
    invocation = Invocation(world)
    work(invocation)
    _, again = world.tables.restarts
    assert (again.instance_id, again.streak, again.due_at) == (instance(1), 1, world.tables.now + 800)
    assert (old.watch_ended_at, again.watched_since) == (world.tables.now, old.watched_since)
    assert invocation.asked == []


def test_the_watched_are_probed_in_turn_if_there_is_no_time_for_all() -> None:
    world = World()
    for number in range(1, 10):
        watched(world, number, state="running")
    watched(world, 10)
    world.probe_takes_s = 3
    for _ in range(4):
        work(Invocation(world))
        world.tables.now += 60
    assert [number_of(one.workspace_id) for one in world.tables.open_restarts()] == [10]


def test_due_restarts_leave_the_watched_some_time() -> None:
    world = owing(100)
    watched(world, 101)
    world.probe_takes_s = 0.1
    invocation = Invocation(world, each={"restart": lambda: pass_time(world, 0.55)})
    work(invocation)
    assert len(invocation.asked) > 2 * CALLS_AT_ONCE
    assert uuid(101) in {one.workspace_id for one in world.tables.open_restarts()}


@pytest.mark.parametrize("call", ["owe_again", "kept_back"])
def test_an_error_about_those_that_are_looked_after_leaves_the_due_ones(call: str, log: Log) -> None:
    world = owing(2 * CALLS_AT_ONCE)
    for owed in world.tables.restarts:
        owed.released = True
    watched(world, 101)
    invocation = Invocation(world, each={call: fails(ConnectionLostError("gone"))})
    work(invocation, breaker_open=call == "kept_back")
    assert len(invocation.asked) == 2 * CALLS_AT_ONCE
    assert len(log.lines("restarts left for the next cycle")) == 1


def test_what_is_kept_back_is_probed_in_turn_if_there_is_no_time_for_all() -> None:
    world = owing(10)
    world.instances[instance(10)].state = "running"
    world.probe_takes_s = 3
    for _ in range(4):
        work(Invocation(world), breaker_open=True)
        world.tables.now += 60
    assert outcomes(world) == {10: "cancelled"}


@pytest.mark.parametrize("state", ["running", "pending"])
def test_a_restart_whose_instance_lives_is_not_owed_again(state: str) -> None:
    world = World()
    watched(world, state=state)
    work(Invocation(world))
    assert len(world.tables.restarts) == 1
