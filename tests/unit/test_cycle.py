"""One cycle over a made-up world, as far as it can be told without a database."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, cast

import pytest

from handler import cycle
from handler.deadline import Deadline
from handler.domain.backoff import CrashLoop
from handler.domain.coverage import Coverage
from handler.domain.decide import Absence, Memory
from handler.domain.model import Restart, Sighting, SkipReason, Workspace, sighting_of
from handler.domain.report import Gauges, Report
from handler.errors import ConnectionLostError, LeaseLostError, ReconcilerError, RowLockedError, SecretError
from handler.request import Request
from handler.restarts import Answer, Reply
from handler.restarts.platform import HttpPlatform
from handler.settings import Settings
from handler.store import Flipped, FlipPolicy, Selection, Store
from tests.unit.builders import Clock, Log, debt, in_fair_order, instance, number_of, uuid, workspace

APPLY, DRY_RUN = Request("apply"), Request("dry-run")


@dataclass
class World:
    """Stands in for the database, the probe and the platform; what takes time takes it from one clock."""

    states: dict[int, str]
    second_states: dict[int, str] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    probe_takes_s: float = 0.0
    flip_takes_s: float = 0.0
    restart_takes_s: float = 0.0
    flips: dict[int, SkipReason | Exception] = field(default_factory=dict)
    absences: dict[str, Absence] = field(default_factory=dict)
    lease_is_free: bool = True
    release_fails: ReconcilerError | None = None
    debts_due: list[Restart] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    saved: list[tuple[Coverage, bool]] = field(default_factory=list)
    probed: set[int] = field(default_factory=set)

    # the registry

    @property
    def lease(self) -> "World":
        return self

    @property
    def fleet(self) -> "World":
        return self

    @property
    def debts(self) -> "World":
        return self

    @property
    def rows(self) -> "World":
        return self

    def check_rights(self, _: Deadline, *, to_apply: bool) -> None:
        self.done.append(f"rights to {'apply' if to_apply else 'read'}")

    def acquire(self, _: Deadline, *, lasts_s: float) -> bool:
        assert lasts_s > 0
        return self.lease_is_free

    def release(self, _: Deadline) -> None:
        self.done.append("released")
        if self.release_fails is not None:
            raise self.release_fails

    def select(self, _: Deadline, *, limit: int, workspace_ids: Sequence[str] | None) -> Selection:
        sweep = self.saved[-1][0] if self.saved else Coverage()
        ids = in_fair_order((uuid(n) for n in self.states if workspace_ids is None or uuid(n) in workspace_ids), sweep)
        chosen = [workspace(number_of(one)) for one in ids[:limit]]
        return Selection(chosen, "now", next(iter(ids[limit:]), None), sweep)

    def recall(self, _: Deadline, *, breaker_window_s: float) -> Memory:
        assert breaker_window_s == 600
        return Memory(self.absences, frozenset())

    def remember_absences(self, _: Deadline, absent: Sequence[Workspace], forgotten: Sequence[str]) -> None:
        self.done += [f"absent {number_of(one.id)}" for one in absent]
        self.done += [f"found {number_of(one)}" for one in forgotten]

    def flip(self, deadline: Deadline, sighting: Sighting, _: FlipPolicy) -> Flipped | SkipReason:
        assert not deadline.over()
        self.clock.sleep(self.flip_takes_s)
        number = number_of(sighting.workspace.id)
        answer = self.flips.get(number)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        self.done.append(f"flipped {number}")
        return Flipped(CrashLoop(0, 0.0))

    def would_flip(self, _: Deadline, sighting: Sighting, __: FlipPolicy) -> Flipped | SkipReason:
        answer = self.flips.get(number_of(sighting.workspace.id), Flipped(CrashLoop(0, 0.0)))
        assert not isinstance(answer, Exception)
        return answer

    def save_sweep(self, _: Deadline, sweep: Coverage, *, completed_pass: bool) -> None:
        self.saved.append((sweep, completed_pass))

    def gauges(self, _: Deadline) -> Gauges:
        return Gauges(4, 1, 0, 0, 0.0, 0.0, 0)

    def follow_rows(self, _: Deadline, **__: object) -> list[Restart]:
        return []

    def due(self, _: Deadline, **__: object) -> list[Restart]:
        return self.debts_due

    def claim(self, _: Deadline, owed: Restart, **__: object) -> str:
        self.done.append(f"claimed {owed.id}")
        return "claimed"

    def paid(self, _: Deadline, owed: Restart) -> None:
        self.done.append(f"paid {owed.id}")

    # the probe and the platform

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        for one in workspaces:
            if self.probe_takes_s >= deadline.remaining():
                return
            self.clock.sleep(self.probe_takes_s)
            number = number_of(one.id)
            self.probed.add(number)
            state = self.states[number]
            self.states |= {number: self.second_states.get(number, state)}
            yield sighting_of(one, state, self.probe_takes_s)

    def restart(self, _: Restart, __: Deadline) -> Reply:
        self.clock.sleep(self.restart_takes_s)
        return Reply(Answer.ACCEPTED, "http_202")


def run(world: World, order: Request = APPLY, seconds: float = 45, **variables: str) -> Report:
    settings = Settings.from_env({"DATABASE_URL": "postgresql://u@h/n"} | variables)
    parts = cycle.Parts(cast("Store", world), lambda _: world, lambda _: cast("HttpPlatform", world))
    report, _ = cycle.run(order, settings, parts, Deadline(seconds, clock=world.clock))
    return report


def fleet(count: int, **others: str) -> dict[int, str]:
    """Return that many running instances, but for the `others`, like `_3="stopped"`."""
    return dict.fromkeys(range(1, count + 1), "running") | {int(name[1:]): state for name, state in others.items()}


def skipped(report: Report) -> dict[str, int]:
    return {reason: count for reason, count in report.skipped.items() if count}


# --- the story ---


def test_the_dead_are_flipped_the_rest_is_left_and_the_figures_add_up() -> None:
    world = World(fleet(6, _2="terminated", _3="stopping", _4="not_found", _5="hovering"))
    report = run(world)
    assert world.done == ["rights to apply", "absent 4", "flipped 2", "released"]
    figures = (report.candidates, report.checked, report.running, report.transition, report.dead)
    assert figures == (6, 6, 2, 1, 1)
    assert (report.absent, report.unknown, report.flipped, report.deferred) == (1, 1, 1, 0)
    assert [(one.workspace_id, one.instance_id, one.instance_state) for one in report.flips] == [
        (uuid(2), instance(2), "terminated")
    ]
    assert report.completed_pass
    assert not report.deadline_hit


def test_a_dry_run_says_what_it_would_flip_and_writes_nothing() -> None:
    world = World(fleet(6, _2="terminated", _3="stopped"), flips={3: SkipReason.FRESH_HEARTBEAT}, debts_due=[debt(1)])
    report = run(world, DRY_RUN)
    assert world.done == ["rights to read"]
    assert world.saved == []
    assert [one.workspace_id for one in report.flips] == [uuid(2)]
    assert (report.flipped, skipped(report)) == (0, {"fresh_heartbeat": 1})


def test_a_second_cycle_at_once_does_nothing() -> None:
    world = World(fleet(6, _2="terminated"), lease_is_free=False)
    report = run(world)
    assert report.outcome == "already_running"
    assert world.done == ["rights to apply"]
    assert (report.restarts.pending, report.restarts.blocked) == (4, 1)


def test_a_dry_run_does_not_mind_the_lease() -> None:
    assert run(World(fleet(3), lease_is_free=False), DRY_RUN).outcome == "completed"


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(ConnectionLostError("gone"), id="the database is gone"),
        pytest.param(SecretError("DATABASE_SECRET_ARN"), id="it has to be logged in anew, and the secret is gone"),
    ],
)
def test_a_lease_that_cannot_be_given_back_expires_by_itself(trouble: ReconcilerError) -> None:
    report = run(World(fleet(3, _2="stopped"), release_fails=trouble))
    assert (report.outcome, report.flipped) == ("completed", 1)


def test_the_lease_is_given_back_though_the_cycle_fails() -> None:
    world = World(fleet(3))
    world.recall = lambda *_, **__: (_ for _ in ()).throw(ConnectionLostError("gone"))  # type: ignore[method-assign]
    with pytest.raises(ConnectionLostError):
        run(world)
    assert world.done[-1] == "released"


# --- what stands in the way of a flip ---


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        pytest.param(SkipReason.FRESH_HEARTBEAT, "fresh_heartbeat", id="a heartbeat"),
        pytest.param(SkipReason.INSTANCE_CHANGED, "instance_changed", id="another instance"),
        pytest.param(RowLockedError("held"), "row_locked", id="somebody else holds the row"),
        pytest.param(ConnectionLostError("gone"), "reconfirm_error", id="the database fails"),
        pytest.param(SecretError("gone"), "reconfirm_error", id="the secret to log in anew cannot be fetched"),
        pytest.param(LeaseLostError("gone"), "out_of_time", id="the lease is lost"),
    ],
)
def test_what_is_said_against_one_flip_costs_the_others_nothing(outcome: SkipReason | Exception, reason: str) -> None:
    world = World(fleet(6, _2="stopped", _3="stopped"), flips={2: outcome})
    report = run(world)
    assert (skipped(report), report.flipped) == ({reason: 1}, 1)
    assert "flipped 3" in world.done


@pytest.mark.parametrize("second", ["running", "stopping", "not_found", "hovering"])
def test_what_the_second_probe_does_not_confirm_is_not_flipped(second: str) -> None:
    world = World(fleet(6, _2="stopped"), second_states={2: second})
    report = run(world)
    assert (skipped(report), report.flipped) == ({"not_confirmed": 1}, 0)


@pytest.mark.parametrize(
    ("order", "message"), [(APPLY, "workspace flipped"), (DRY_RUN, "would flip")], ids=["apply", "dry run"]
)
def test_a_flip_is_told_with_the_state_that_two_looks_agreed_on(order: Request, message: str, log: Log) -> None:
    run(World(fleet(6, _2="terminated", _3="stopped"), second_states={2: "stopped", 3: "terminated"}), order)
    assert [(line["workspace_id"], line["reason"]) for line in log.lines(message)] == [
        (uuid(2), "stopped, confirmed by a second probe"),
        (uuid(3), "terminated, confirmed by a second probe"),
    ]


def test_an_open_breaker_flips_nothing_and_counts_what_it_held() -> None:
    world = World(fleet(5, _1="stopped", _2="stopped", _3="stopped"))
    report = run(world)
    assert report.breaker_open
    assert (skipped(report), report.flipped) == ({"breaker_open": 3}, 0)


def test_the_override_lifts_the_breaker_for_this_cycle() -> None:
    world = World(fleet(5, _1="stopped", _2="stopped", _3="stopped"))
    assert run(world, Request("apply", override_breaker=True)).flipped == 3


# --- a part of the fleet ---


@pytest.mark.parametrize(
    ("order", "candidates"),
    [
        pytest.param(Request("apply", limit=2), 2, id="a limit"),
        pytest.param(Request("apply", (uuid(3),)), 1, id="chosen workspaces"),
        pytest.param(Request("apply", limit=1_000_000), 6, id="a limit beyond the fleet"),
    ],
)
def test_a_narrowed_cycle_moves_no_cursor_and_completes_no_pass(order: Request, candidates: int) -> None:
    world = World(fleet(6))
    report = run(world, order)
    assert (report.candidates, report.completed_pass, world.saved) == (candidates, False, [])


def test_the_smaller_of_the_events_and_the_settings_limit_is_taken() -> None:
    assert run(World(fleet(6)), Request("apply", limit=5), CANDIDATE_LIMIT="3").candidates == 3
    assert run(World(fleet(6)), Request("apply", limit=2), CANDIDATE_LIMIT="3").candidates == 2


# --- time ---


def test_what_the_deadline_leaves_unreached_is_deferred_and_the_next_cycle_begins_there() -> None:
    world = World(fleet(100), probe_takes_s=1)
    report = run(world, seconds=20)
    assert report.checked == 14
    assert (report.deferred, report.deadline_hit, report.completed_pass) == (86, True, False)
    assert world.saved[0][0].cursor == uuid(14)


def test_slow_answers_end_the_probing_early_enough_for_a_second_probe() -> None:
    world = World(fleet(100, _1="terminated"), probe_takes_s=8)
    report = run(world, seconds=45)
    assert report.flipped == 1
    assert report.checked == 4
    assert world.clock.now - 1000 <= 45


def test_what_there_is_no_time_left_to_act_on_comes_first_in_the_next_cycle() -> None:
    world = World(fleet(50, **{f"_{n}": "stopped" for n in range(1, 21)}), flip_takes_s=3)
    report = run(world, seconds=40, RECONFIRM_TIMEOUT_SECONDS="5")
    assert report.flipped == 13
    assert skipped(report) == {"out_of_time": 7}
    assert report.deadline_hit
    assert world.saved[0][0].first == tuple(uuid(n) for n in range(14, 21))


@pytest.mark.parametrize(
    ("dead", "remembered"),
    [
        pytest.param(50, 25, id="half of those checked"),
        pytest.param(2500, 1000, id="a thousand"),
    ],
)
def test_there_is_an_end_to_how_many_come_first(dead: int, remembered: int) -> None:
    world = World(dict.fromkeys(range(1, dead + 1), "stopped"), flip_takes_s=100)
    report = run(world, Request("apply", override_breaker=True))
    assert skipped(report) == {"out_of_time": dead - 1}
    assert len(world.saved[0][0].first) == remembered


def test_rows_that_run_out_of_time_cycle_after_cycle_never_starve_the_rest() -> None:
    states = {number: "running" if number % 4 == 0 else "stopped" for number in range(1, 101)}
    world = World(states, probe_takes_s=1, flip_takes_s=100)
    world.flips = dict.fromkeys(states, ConnectionLostError("gone"))
    for _ in range(ceil(100 / 7) + 1):
        report = run(world, Request("apply", override_breaker=True), seconds=20)
        assert (report.checked, report.flipped) == (14, 0)
    assert world.probed == states.keys()


def test_a_flip_that_failed_because_the_time_was_over_comes_first_in_the_next_cycle() -> None:
    world = World(fleet(6, _2="stopped"), flips={2: ConnectionLostError("gone")}, flip_takes_s=100)
    assert skipped(run(world)) == {"out_of_time": 1}
    assert world.saved[0][0].first == (uuid(2),)


def test_restarts_that_take_their_time_are_not_the_deadline_cutting_something_off() -> None:
    world = World(fleet(6), debts_due=[debt(1)], restart_takes_s=40)
    report = run(world, seconds=45)
    assert "paid 1" in world.done
    assert (report.deferred, report.restarts.requested) == (0, 1)
    assert not report.deadline_hit


def test_a_cycle_without_any_time_checks_nobody_and_says_so() -> None:
    world: Any = World(fleet(6))
    report = run(world, seconds=0)
    assert (report.checked, report.deferred, report.deadline_hit, report.flipped) == (0, 6, True, 0)
