"""Several Regions and accounts in a cycle that is too short for all: who was not reached has not failed."""

from collections import Counter
from types import SimpleNamespace

import pytest

from handler.domain.model import NOT_FOUND, Cause, Failure
from handler.net.roles import Assumed, RoleClient
from handler.probes.ec2 import probe as ec2_probe
from handler.probes.ec2.probe import Known
from handler.probes.ec2.search import Search
from tests.unit.builders import Clock, instance, workspace
from tests.unit.test_ec2_probe import all_of, some
from tests.unit.test_targets_probe import HERE, THERE, states, two

ONE = instance(1)
DENIED = Failure(Cause.REFUSED, "UnauthorizedOperation")
NOT_THERE = {ONE: Known(NOT_FOUND, 1.0)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ec2_probe, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.mark.parametrize("knows_where", [True, False])
@pytest.mark.parametrize("takes_s", [0.0, 0.05, 0.2])
def test_who_is_not_reached_in_time_is_left_for_the_next_cycle(
    clock: Clock, takes_s: float, *, knows_where: bool
) -> None:
    """They are not UNKNOWN, which would count as checked; and no target is called failed for our lack of time."""
    ids = 200 * 80
    cycle = two(clock, all_of(ids, "stopped"), {})
    for account in cycle.accounts.values():
        account.takes_s = takes_s
    if knows_where:
        cycle.hints.update(dict.fromkeys(all_of(ids), 0))
    seen = Counter(cycle.look(some(ids), seconds=2).values())
    assert seen.keys() == {"stopped"}
    assert seen.total() < ids
    assert cycle.troubles[0] == {}


def test_a_target_that_hangs_for_its_share_of_the_time_has_failed_however_short_that_is(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2))
    cycle.accounts[HERE].takes_s = 1000
    assert cycle.look(some(2), seconds=3) == {1: f"timeout in {HERE}", 2: "running"}
    assert cycle.troubles == ({HERE: "timeout"}, [])


def test_nobody_is_absent_for_a_target_that_had_no_time_to_answer() -> None:
    """Nor if that target is given up for it, whoever else is asked then."""
    for give_up in (False, True):
        search = Search([ONE], (HERE, THERE, "elsewhere"), hints={}, last={2})
        for target in (0, 1):
            search.batch(target, 0.0)
        assert list(search.answered(0, [ONE], {})) == []
        if give_up:
            assert list(search.give_up(2, None)) == []
        assert list(search.answered(1, [ONE], NOT_THERE)) == []
        if not give_up:
            assert search.batch(2, 1.0)[0] == [ONE]
            assert list(search.answered(2, [ONE], NOT_THERE)) == []
        assert list(search.cut_off(1000.0, 5.0)) == []


def test_what_another_target_says_counts_though_one_had_no_time_to_answer() -> None:
    for learnt in (Known("stopped", 1.0), DENIED):
        search = Search([ONE], (HERE, THERE), hints={}, last={1})
        search.batch(0, 0.0)
        assert list(search.answered(0, [ONE], {})) == []
        search.batch(1, 1.0)
        (decided,) = search.answered(1, [ONE], {ONE: learnt})
        assert isinstance(decided.learnt, type(learnt))


def test_a_check_that_waited_for_its_turn_was_not_cut_off() -> None:
    """Only the call that the deadline cut off tells whether the instance was reached."""
    search = Search([ONE], (HERE, THERE), hints={ONE: 0})
    search.batch(0, 0.0)
    assert list(search.answered(0, [ONE], NOT_THERE)) == []
    assert list(search.cut_off(30.0, 5.0)) == []
    search.batch(1, 26.0)
    assert list(search.cut_off(30.0, 5.0)) == []
    assert [str(one.learnt) for one in search.cut_off(31.0, 5.0)] == [f"timeout in {THERE}"]


def test_a_target_that_only_says_what_no_instance_does_has_found_nobody(clock: Clock) -> None:
    """Whatever answers there, it is not EC2 as we know it; so nobody is absent."""
    cycle = two(clock, states(1), states(2, state="hovering"))
    assert cycle.look(some(3)) == {1: "running", 2: "unrecognised_state", 3: f"empty_target in {THERE}"}
    assert cycle.troubles == ({}, [THERE])
    assert cycle.look([workspace(3)]) == {3: f"empty_target in {THERE}"}


def test_a_clock_that_is_ahead_costs_one_call_to_sts_in_a_cycle() -> None:
    """By our clock, what STS gives has always expired."""
    calls: list[int] = []

    def assume() -> Assumed:
        calls.append(1)
        return Assumed(object(), 1000.0)  # type: ignore[arg-type]

    role = RoleClient(assume, clock=lambda: 5000.0)
    now = role.for_cycle(45.0)
    assert len({id(now()) for _ in range(5)}) == len(calls) == 1
    assert now.renew(now())
    for _ in range(5):
        now()
    assert len(calls) == 2
    assert not now.renew(now())
