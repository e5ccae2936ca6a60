"""The EC2 probe over several Regions and accounts."""

import threading
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause, Sighting, Verdict, Workspace
from handler.probes.ec2 import probe as ec2_probe
from handler.probes.ec2 import targets as ec2_targets
from handler.probes.ec2.probe import CALLS_AT_ONCE, LIST_ABOVE, ZONES_ABOVE, Ec2Probe
from handler.probes.ec2.targets import MOST_FAILURES, TargetsProbe
from tests.unit.builders import Clock, Log, instance, workspace
from tests.unit.test_ec2_probe import (
    DENIED,
    INSTANCES,
    SERVER_ERROR,
    STATUS,
    THROTTLED,
    ZONES,
    Account,
    Answering,
    all_of,
    api,
    broken,
    found,
    some,
)

HERE, THERE = "eu-central-1", "eu-west-1/210987654321"
TIMEOUT = broken(Cause.TIMEOUT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ec2_probe, "time", SimpleNamespace(monotonic=clock))
    return clock


class Cycle:
    """A probe over accounts, by the names of their targets, and what its probes have seen."""

    def __init__(
        self, clock: Clock, accounts: dict[str, Account], hints: dict[str, int] | None = None, may_be_empty: str = ""
    ) -> None:
        self.clock, self.accounts = clock, accounts
        self.hints: dict[str, int] = {} if hints is None else hints
        probes = [
            Ec2Probe(api(account, clock), timeout_s=10, target=name, may_be_empty=name == may_be_empty)
            for name, account in accounts.items()
        ]
        self.probe = TargetsProbe(probes, timeout_s=10, hints=self.hints)

    def sightings(self, workspaces: Sequence[Workspace], seconds: float = 30) -> list[Sighting]:
        seen = list(self.probe.sightings(workspaces, Deadline(seconds, clock=self.clock)))
        assert max(Counter(one.workspace.id for one in seen).values(), default=0) <= 1
        return seen

    def look(self, workspaces: Sequence[Workspace], seconds: float = 30) -> dict[int, str]:
        return found({one.workspace.id: one for one in self.sightings(workspaces, seconds)})

    def asked(self, name: str) -> Counter[str]:
        """Return how often a target was asked for each id."""
        return Counter(one for query in self.accounts[name].asked() for one in query["Filters"][0]["Values"])

    @property
    def troubles(self) -> tuple[dict[str, str], list[str]]:
        troubles = self.probe.troubles()
        return {name: str(failure) for name, failure in troubles.failed.items()}, list(troubles.empty)


def two(clock: Clock, here: dict[str, str], there: dict[str, str], **options: Any) -> Cycle:
    accounts = {HERE: Account(here, clock=clock), THERE: Account(there, clock=clock)}
    return Cycle(clock, accounts, **options)


def states(*numbers: int, state: str = "running") -> dict[str, str]:
    return {instance(number): state for number in numbers}


# --- whole answers ---


def test_each_instance_has_the_state_that_its_target_says(clock: Clock) -> None:
    cycle = two(clock, states(1, 2) | states(3, state="stopped"), states(4, state="terminated") | states(5))
    assert cycle.look(some(6)) == {
        **dict.fromkeys((1, 2, 5), "running"),
        3: "stopped",
        4: "terminated",
        6: "not_found",
    }
    assert cycle.troubles == ({}, [])


def test_a_sighting_names_its_target_and_an_absence_every_one(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2, state="stopped"))
    seen = {one.state: (one.target, one.words) for one in cycle.sightings(some(3))}
    assert seen == {
        "running": (HERE, f"running in {HERE}"),
        "stopped": (THERE, f"stopped in {THERE}"),
        "not_found": ("every target", "not_found in every target"),
    }


@pytest.mark.parametrize("count", [20, LIST_ABOVE + 1, 3 * LIST_ABOVE])
def test_what_one_target_has_found_no_other_is_asked_about(clock: Clock, count: int) -> None:
    """In each plan, with dead ones and absent ones among them."""
    mine = {
        instance(number): "stopped" if number % 7 == 0 else "running" for number in range(1, count + 1) if number % 11
    }
    here = {one: state for number, (one, state) in enumerate(mine.items()) if number % 3}
    cycle = two(clock, here, {one: state for one, state in mine.items() if one not in here})
    expected = {number: mine.get(instance(number), "not_found") for number in range(1, count + 1)}
    assert cycle.look(some(count)) == expected
    assert max(cycle.asked(HERE).values()) == max(cycle.asked(THERE).values()) == 1
    lists = count > LIST_ABOVE
    for name, own in ((HERE, here), (THERE, mine.keys() - here)):
        assert (STATUS in {called for called, _ in cycle.accounts[name].calls}) == lists
        running = {one for one in mine if mine[one] == "running"}
        if lists:
            assert not cycle.asked(name).keys() & running
        assert cycle.asked(name).keys() >= {one for one in own if mine[one] == "stopped"}


def test_an_instance_of_two_workspaces_is_asked_for_once_and_a_malformed_id_never(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2, state="stopped"))
    seen = cycle.look([workspace(1), workspace(2), workspace(3, instance(2)), workspace(4, "i-*")])
    assert seen == {1: "running", 2: "stopped", 3: "stopped", 4: "malformed_instance_id"}
    assert set((cycle.asked(HERE) + cycle.asked(THERE)).keys()) == {instance(1), instance(2)}


def test_no_workspaces_mean_no_calls(clock: Clock) -> None:
    cycle = two(clock, {}, {})
    assert cycle.look([]) == {}
    assert cycle.accounts[HERE].calls == cycle.accounts[THERE].calls == []
    assert cycle.troubles == ({}, [])


def test_an_instance_that_both_list_is_seen_once(clock: Clock) -> None:
    count = LIST_ABOVE + 1
    cycle = two(clock, all_of(count), all_of(count))
    assert cycle.look(some(count)) == dict.fromkeys(range(1, count + 1), "running")


def test_the_zones_of_large_targets_are_listed_side_by_side(clock: Clock) -> None:
    count = 2 * ZONES_ABOVE + 2
    half = count // 2
    cycle = two(clock, all_of(half), states(*range(half + 1, count + 1)))
    assert Counter(cycle.look(some(count)).values()) == {"running": count}
    for account in cycle.accounts.values():
        assert len(account.asked(ZONES)) == 1
        assert account.asked() == []


@pytest.mark.parametrize("targets", [2, 3, CALLS_AT_ONCE + 2])
def test_so_few_calls_are_under_way_that_their_answers_fit_into_memory(clock: Clock, targets: int) -> None:
    """And each target is asked, however many there are."""
    busy: Counter[int] = Counter()
    peaks: list[Counter[int]] = []
    counting, full = threading.Lock(), threading.Event()
    most = max(targets, CALLS_AT_ONCE // targets * targets)

    def client(target: int) -> Answering:
        def answer() -> Any:
            with counting:
                busy[target] += 1
                peaks.append(Counter(busy))
                if busy.total() == most:
                    full.set()
            full.wait(5)
            with counting:
                busy[target] -= 1
            return {"Reservations": []}

        return Answering(answer)

    probes = [Ec2Probe(api(client(one), clock), timeout_s=10, target=str(one)) for one in range(targets)]
    probe = TargetsProbe(probes, timeout_s=10, hints={})
    list(probe.sightings([], Deadline(30)))
    list(probe.sightings(some(2000), Deadline(30)))
    assert max(one.total() for one in peaks) == most
    assert max(max(one.values()) for one in peaks) == max(1, CALLS_AT_ONCE // targets)


# --- failed targets ---


@pytest.mark.parametrize("failure", [DENIED, TIMEOUT, SERVER_ERROR], ids=["denied", "timeout", "server error"])
@pytest.mark.parametrize("count", [10, 2 * LIST_ABOVE])
def test_a_target_that_fails_makes_unknown_of_what_only_it_could_know(clock: Clock, failure: Any, count: int) -> None:
    there = {instance(number): "stopped" if number % 4 == 0 else "running" for number in range(2, count + 1, 2)}
    cycle = two(clock, all_of(count), there)
    cycle.accounts[HERE].failure = lambda *_: failure
    seen = {one.workspace.instance_id: one for one in cycle.sightings(some(count))}
    for one, state in there.items():
        assert (seen[one].state, seen[one].target) == (state, THERE)
    others = [one for one in seen.values() if one.workspace.instance_id not in there]
    assert {one.verdict for one in others} == {Verdict.UNKNOWN}
    (reason,) = {one.reason for one in others}
    assert reason.endswith(f" in {HERE}")
    assert cycle.troubles == ({HERE: reason.removesuffix(f" in {HERE}")}, [])


def test_endless_throttling_of_one_leaves_time_for_the_other(clock: Clock) -> None:
    cycle = two(clock, {}, all_of(10, "stopped"))
    cycle.accounts[HERE].failure = lambda *_: THROTTLED
    assert Counter(cycle.look(some(10)).values()) == {"stopped": 10}
    assert cycle.troubles == ({HERE: "throttled"}, [])


def test_a_target_that_answers_nothing_is_given_up(clock: Clock) -> None:
    ids = 200 * 20
    cycle = two(clock, {}, all_of(10))
    cycle.accounts[HERE].failure = lambda operation, _: TIMEOUT if operation == INSTANCES else None
    cycle.hints.update(dict.fromkeys(all_of(ids), 0))
    assert Counter(cycle.look(some(ids)).values()) == {"running": 10, f"timeout in {HERE}": ids - 10}
    assert len(cycle.accounts[HERE].asked()) <= MOST_FAILURES + CALLS_AT_ONCE


def test_a_batch_that_fails_costs_only_its_own(clock: Clock) -> None:
    ids = 200 * 6
    cycle = two(clock, all_of(ids, "stopped"), {})
    bad = instance(1)
    cycle.accounts[HERE].failure = lambda operation, query: (
        DENIED if operation == INSTANCES and bad in query["Filters"][0]["Values"] else None
    )
    seen = Counter(cycle.look(some(ids)).values())
    assert seen == {"stopped": ids - 200, f"refused_UnauthorizedOperation in {HERE}": 200}


def test_a_call_that_hangs_is_a_failed_one_and_ends_by_its_timeout(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2))
    cycle.accounts[HERE].takes_s = 1000
    began_at = clock.now
    assert cycle.look(some(2)) == {1: f"timeout in {HERE}", 2: "running"}
    assert clock.now - began_at <= 20


def test_nothing_is_asked_after_the_deadline(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2))
    assert cycle.look(some(2), seconds=0) == {}
    assert cycle.accounts[HERE].calls == cycle.accounts[THERE].calls == []
    assert cycle.troubles == ({}, [])


# --- empty targets ---


def test_nobody_is_absent_while_a_target_is_empty(clock: Clock) -> None:
    cycle = two(clock, states(1), {})
    assert cycle.look(some(2)) == {1: "running", 2: f"empty_target in {THERE}"}
    assert cycle.troubles == ({}, [THERE])


def test_a_target_that_may_be_empty_may_be_empty(clock: Clock) -> None:
    cycle = two(clock, states(1), {}, may_be_empty=THERE)
    assert cycle.look(some(2)) == {1: "running", 2: "not_found"}
    assert cycle.troubles == ({}, [])


def test_whether_a_target_is_empty_is_known_only_at_the_end_of_the_first_probe(clock: Clock) -> None:
    """The absent one is sought everywhere before anything is found there."""
    cycle = two(clock, states(2), states(3))
    assert cycle.look(some(3)) == {1: "not_found", 2: "running", 3: "running"}


def test_the_second_probe_knows_from_the_first_one_which_targets_are_empty(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2))
    assert cycle.look(some(3))[3] == "not_found"
    assert cycle.look([workspace(3)]) == {3: "not_found"}
    cycle = two(clock, states(1), {})
    cycle.look(some(3))
    cycle.accounts[THERE].states.update(states(4))
    assert cycle.look([workspace(3), workspace(4)]) == {3: f"empty_target in {THERE}", 4: "running"}


def test_a_restart_alone_makes_no_absence_believable(clock: Clock) -> None:
    """The cycle's first probe had no candidates, so it found none of them anywhere."""
    cycle = two(clock, states(1), states(2))
    cycle.look([])
    assert cycle.look(some(3)) == {1: "running", 2: "running", 3: f"empty_target in {HERE}"}


def test_a_target_whose_instances_are_all_elsewhere_is_empty_even_if_nobody_asks_it(clock: Clock) -> None:
    cycle = two(clock, states(1), {}, hints={instance(1): 0})
    cycle.look(some(1))
    assert cycle.accounts[THERE].calls == []
    assert cycle.troubles == ({}, [THERE])


# --- hints and second probes ---


def test_a_second_probe_asks_the_target_that_found_the_instance_and_absent_ones_everywhere(clock: Clock) -> None:
    cycle = two(clock, states(1, 3), states(2) | states(4, state="stopped"))
    cycle.look(some(5))
    for account in cycle.accounts.values():
        account.calls.clear()
    assert cycle.look([workspace(4), workspace(5)]) == {4: "stopped", 5: "not_found"}
    assert cycle.asked(HERE) == {instance(5): 1}
    assert cycle.asked(THERE) == {instance(4): 1, instance(5): 1}


def test_the_next_cycle_asks_where_instances_were_found(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2))
    cycle.look(some(2))
    again = two(clock, states(1, state="stopped"), states(2, state="stopped"), hints=cycle.hints)
    assert again.look(some(2)) == {1: "stopped", 2: "stopped"}
    assert (again.asked(HERE), again.asked(THERE)) == ({instance(1): 1}, {instance(2): 1})


def test_an_id_moves_from_unknown_to_known(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2))
    assert cycle.look(some(3))[3] == "not_found"
    again = two(clock, states(1), states(2, 3), hints=cycle.hints)
    assert again.look(some(3))[3] == "running"


def test_no_more_hints_are_kept_than_fit(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ec2_targets, "MOST_HINTS", 5)
    cycle = two(clock, states(*range(1, 5)), states(*range(5, 10)))
    cycle.look(some(9))
    assert len(cycle.hints) == 5


def test_an_absence_is_as_old_as_the_first_targets_answer(clock: Clock) -> None:
    cycle = two(clock, states(1), states(2))
    for account in cycle.accounts.values():
        account.takes_s = 2.0
    (absent,) = [one for one in cycle.sightings(some(3)) if one.verdict is Verdict.ABSENT]
    assert absent.answered_at == 1002.0
    assert clock.now > 1002.0


# --- impaired instances ---


def test_impaired_instances_are_counted_in_every_target(clock: Clock, log: Log) -> None:
    cycle = two(clock, states(1, 2), states(2, 3))
    cycle.accounts[HERE].impaired = {instance(1), instance(2)}
    cycle.accounts[THERE].impaired = {instance(2), instance(3)}
    assert cycle.probe.impaired(some(2), Deadline(5))() == 2
    assert log.lines() == []
    cycle.accounts[HERE].failure = lambda *_: DENIED
    assert cycle.probe.impaired(some(3), Deadline(5))() == 2
    (line,) = log.lines("impaired instances not counted")
    assert line["error"] == f"refused_UnauthorizedOperation in {HERE}"
    assert cycle.probe.impaired([], Deadline(5))() == 0
