"""The search for instances in several targets: who is asked for what, and what the answers add up to."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.model import NOT_FOUND, Cause, Failure
from handler.probes.ec2.probe import Known, Learnt
from handler.probes.ec2.search import NOWHERE, Decided, Search
from tests.unit.builders import instance

NAMES = ("here", "there", "elsewhere")
HERE, THERE, ELSEWHERE = range(3)
DENIED, TIMEOUT = Failure(Cause.REFUSED, "UnauthorizedOperation"), Failure(Cause.TIMEOUT)
ONE = instance(1)


def known(state: str, at: float = 1.0) -> Known:
    return Known(state, at)


def begin(ids: Iterable[str] = (ONE,), *, hints: Mapping[str, int] | None = None, last: Iterable[int] = ()) -> Search:
    return Search(ids, NAMES, hints=hints or {}, last=set(last))


def asked(search: Search, target: int, now: float = 0.0) -> list[str]:
    return search.batch(target, now)[0]


def answered(search: Search, target: int, learnt: Mapping[str, Learnt]) -> list[Decided]:
    return list(search.answered(target, list(learnt), learnt))


def test_each_target_is_the_first_to_be_asked_for_its_share() -> None:
    search = begin(instance(number) for number in range(1, 8))
    assert [asked(search, target) for target in range(3)] == [
        [instance(1), instance(4), instance(7)],
        [instance(2), instance(5)],
        [instance(3), instance(6)],
    ]


def test_what_is_not_found_is_asked_for_at_the_next_target_until_all_have_answered() -> None:
    search = begin()
    decided: list[Decided] = []
    for target in (HERE, THERE, ELSEWHERE):
        assert decided == []
        assert [asked(search, other) for other in range(3) if other != target] == [[], []]
        assert asked(search, target) == [ONE]
        decided = answered(search, target, {ONE: known(NOT_FOUND, 10.0 - target)})
    assert decided == [Decided(ONE, Known(NOT_FOUND, 8.0), NOWHERE)]


def test_what_is_found_is_asked_for_nowhere_else() -> None:
    search = begin()
    asked(search, HERE)
    assert answered(search, HERE, {ONE: known("stopped")}) == [Decided(ONE, known("stopped"), HERE)]
    assert [asked(search, target) for target in range(3)] == [[], [], []]


def test_a_failed_target_makes_unknown_of_what_no_other_finds() -> None:
    both = (ONE, instance(4))
    search = begin([ONE, instance(2), instance(3), instance(4)])
    asked(search, HERE)
    assert answered(search, HERE, dict.fromkeys(both, DENIED)) == []
    asked(search, THERE)
    assert answered(search, THERE, {ONE: known("running"), instance(4): known(NOT_FOUND)}) == [
        Decided(ONE, known("running"), THERE)
    ]
    asked(search, ELSEWHERE)
    (decided,) = answered(search, ELSEWHERE, {instance(4): known(NOT_FOUND)})
    assert str(decided.learnt) == "refused_UnauthorizedOperation in here"


def test_a_target_that_is_given_up_is_asked_for_nothing_more() -> None:
    search = begin(instance(number) for number in range(1, 7))
    first = asked(search, HERE)
    assert list(search.give_up(THERE, TIMEOUT)) == []
    assert asked(search, THERE) == []
    assert answered(search, HERE, dict.fromkeys(first, known(NOT_FOUND))) == []
    rest = asked(search, ELSEWHERE)
    assert set(rest) >= set(first)
    decided = answered(search, ELSEWHERE, dict.fromkeys(rest, known(NOT_FOUND)))
    assert {str(one.learnt) for one in decided} == {"timeout in there"}
    assert {one.instance_id for one in decided} >= set(first)


def test_a_target_that_failed_before_is_asked_last() -> None:
    search = begin([ONE, instance(2), instance(3)], last={HERE})
    assert asked(search, HERE) == []
    assert sorted(asked(search, THERE) + asked(search, ELSEWHERE)) == [ONE, instance(2), instance(3)]


def test_where_an_instance_was_found_it_is_asked_for_first() -> None:
    search = begin(hints={ONE: ELSEWHERE}, last={ELSEWHERE})
    assert asked(search, HERE) == asked(search, THERE) == []
    assert asked(search, ELSEWHERE) == [ONE]
    assert answered(search, ELSEWHERE, {ONE: known(NOT_FOUND)}) == []  # a hint proves nothing
    assert asked(search, HERE) == [ONE]
    assert answered(search, HERE, {ONE: known("running")}) == [Decided(ONE, known("running"), HERE)]


def test_what_was_found_nowhere_is_asked_for_everywhere_at_once() -> None:
    search = begin(hints={ONE: NOWHERE})
    assert [asked(search, target) for target in range(3)] == [[ONE]] * 3
    assert answered(search, THERE, {ONE: known(NOT_FOUND, 2.0)}) == []
    assert answered(search, HERE, {ONE: known(NOT_FOUND, 1.0)}) == []
    assert answered(search, ELSEWHERE, {ONE: known(NOT_FOUND, 3.0)}) == [Decided(ONE, Known(NOT_FOUND, 1.0), NOWHERE)]


def test_an_instance_that_turns_up_is_asked_for_nowhere_else() -> None:
    search = begin(hints={ONE: NOWHERE})
    asked(search, HERE)
    assert answered(search, HERE, {ONE: known("pending")}) == [Decided(ONE, known("pending"), HERE)]
    assert asked(search, THERE) == asked(search, ELSEWHERE) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("stopped", "running", "running"),
        ("running", "stopped", "running"),
        ("stopped", "stopped", "stopped"),
        ("stopped", "terminated", "targets_disagree"),
        ("terminated", "pending", "targets_disagree"),
        ("stopping", "stopped", "targets_disagree"),
        ("stopped", "hovering", "targets_disagree"),
    ],
)
def test_of_two_targets_that_know_an_instance_the_living_answer_wins(first: str, second: str, expected: str) -> None:
    """Two may have been asked at once. What is dead here is not believed before the other has answered."""
    search = begin(hints={ONE: NOWHERE})
    for target in (HERE, THERE):
        asked(search, target)
    decided = answered(search, HERE, {ONE: known(first)})
    assert bool(decided) == (first == "running")
    assert asked(search, ELSEWHERE) == []
    decided += answered(search, THERE, {ONE: known(second)})
    (only,) = decided
    assert (only.learnt.state if isinstance(only.learnt, Known) else str(only.learnt)) == expected


def test_an_instance_that_nobody_was_asked_for_long_enough_is_not_reached() -> None:
    search = begin(instance(number) for number in range(1, 5))
    search.batch(HERE, 10.0)
    search.batch(THERE, 12.0)
    answered(search, THERE, {instance(2): DENIED})
    cut_off = {one.instance_id: str(one.learnt) for one in search.cut_off(15.0, 5.0)}
    assert cut_off == {
        instance(1): "timeout in here",
        instance(4): "timeout in here",
        instance(2): "refused_UnauthorizedOperation in there",
    }
    assert {one.instance_id for one in search.cut_off(14.9, 5.0)} == {instance(2)}


def test_what_one_has_found_counts_when_the_time_is_over_before_the_other_answers() -> None:
    search = begin(hints={ONE: NOWHERE})
    asked(search, HERE)
    asked(search, THERE)
    answered(search, HERE, {ONE: known("stopped")})
    assert list(search.cut_off(1.0, 5.0)) == [Decided(ONE, known("stopped"), HERE)]


def test_as_many_targets_as_may_have_to_be_asked_share_the_time() -> None:
    search = begin([ONE, instance(2)], hints={ONE: NOWHERE})
    assert search.batch(HERE, 0.0) == ([ONE], 1)
    assert search.batch(THERE, 0.0) == ([ONE, instance(2)], 3)


states = st.sampled_from(["running", "stopped", "terminated", "pending"])
worlds = st.lists(st.tuples(st.none() | st.integers(0, 2), states), min_size=1, max_size=12)


@given(worlds, st.sets(st.integers(0, 2)), st.dictionaries(st.integers(0, 11), st.integers(-1, 2)), st.randoms())
def test_whatever_the_order_each_is_found_or_asked_for_everywhere_once(
    world: list[tuple[int | None, str]], failing: set[int], hinted: dict[int, int], chance: random.Random
) -> None:
    """Each instance is in one target or in none. Some targets fail. Answers come in any order."""
    ids = [instance(number) for number in range(len(world))]
    search = begin(ids, hints={instance(number): hint for number, hint in hinted.items()})
    decided: dict[str, Decided] = {}
    times: Counter[tuple[int, str]] = Counter()
    calls: list[tuple[int, list[str]]] = []
    for _ in range(1000):
        for target in range(3):
            batch = asked(search, target)
            assert not decided.keys() & batch
            times.update((target, one) for one in batch)
            calls += [(target, batch)] if batch else []
        if not calls:
            break
        target, batch = calls.pop(chance.randrange(len(calls)))
        learnt: dict[str, Learnt] = {}
        for instance_id in batch:
            where, state = world[ids.index(instance_id)]
            learnt[instance_id] = TIMEOUT if target in failing else known(state if where == target else NOT_FOUND)
        for one in answered(search, target, learnt):
            assert one.instance_id not in decided
            decided[one.instance_id] = one
    assert not calls
    assert max(times.values()) == 1
    for instance_id, (where, state) in zip(ids, world, strict=True):
        result = decided[instance_id]
        if where is not None and where not in failing:
            assert result == Decided(instance_id, known(state), where)
        elif failing:
            assert isinstance(result.learnt, Failure)
        else:
            assert result == Decided(instance_id, known(NOT_FOUND), NOWHERE)
            assert all(times[target, instance_id] for target in range(3))
