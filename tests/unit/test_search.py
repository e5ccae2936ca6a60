"""The search for instances in several targets: who is asked for what, and what the answers add up to."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.model import NOT_FOUND, Cause, Failure
from handler.probes.ec2.probe import Known, Learnt
from handler.probes.ec2.search import Decided, Search
from tests.unit.builders import instance

NAMES = ("here", "there", "elsewhere")
HERE, THERE, ELSEWHERE = range(3)
DENIED, TIMEOUT = Failure(Cause.REFUSED, "UnauthorizedOperation"), Failure(Cause.TIMEOUT)
ONE = instance(1)


def known(state: str, at: float = 1.0) -> Known:
    return Known(state, at)


def begin(ids: Iterable[str] = (ONE,), *, hints: Mapping[str, int] | None = None, last: Iterable[int] = ()) -> Search:
    return Search(list(ids), NAMES, hints=hints or {}, last=set(last))


def asked(search: Search, target: int, now: float = 0.0) -> list[str]:
    return search.batch(target, now)[0]


def answered(search: Search, target: int, learnt: Mapping[str, Learnt]) -> list[Decided]:
    return list(search.answered(target, list(learnt), learnt))


def test_everybody_is_asked_for_what_nobody_has_found_and_begins_elsewhere() -> None:
    ids = [instance(number) for number in range(6)]
    search = begin(ids)
    assert asked(search, HERE) == ids
    assert asked(search, THERE) == [*ids[2:], *ids[:2]]
    assert asked(search, ELSEWHERE) == [*ids[4:], *ids[:4]]
    assert [asked(search, target) for target in range(3)] == [[], [], []]


def test_a_batch_is_as_large_as_a_filter_and_leaves_out_what_was_found_meanwhile() -> None:
    ids = [instance(number) for number in range(600)]
    search = begin(ids)
    batches = [asked(search, target) for target in range(3)]
    assert batches == [ids[:200], ids[200:400], ids[400:]]
    for target in range(3):
        assert len(answered(search, target, dict.fromkeys(batches[target], known("running")))) == 200
    assert [asked(search, target) for target in range(3)] == [[], [], []]


def test_not_found_counts_when_all_have_said_it_and_is_as_old_as_the_first_answer() -> None:
    search = begin()
    assert [asked(search, target) for target in range(3)] == [[ONE]] * 3
    assert answered(search, THERE, {ONE: known(NOT_FOUND, 2.0)}) == []
    assert answered(search, HERE, {ONE: known(NOT_FOUND, 1.0)}) == []
    assert answered(search, ELSEWHERE, {ONE: known(NOT_FOUND, 3.0)}) == [Decided(ONE, Known(NOT_FOUND, 1.0))]


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_what_is_found_is_asked_for_nowhere_else(state: str) -> None:
    search = begin()
    asked(search, HERE)
    assert answered(search, HERE, {ONE: known(state)}) == [Decided(ONE, known(state), HERE)]
    assert [asked(search, target) for target in range(3)] == [[], [], []]


def test_a_failed_target_makes_unknown_of_what_no_other_finds() -> None:
    two = [ONE, instance(2)]
    search = begin(two)
    for target in range(3):
        asked(search, target)
    assert answered(search, HERE, dict.fromkeys(two, DENIED)) == []
    assert answered(search, THERE, {ONE: known("running"), instance(2): known(NOT_FOUND)}) == [
        Decided(ONE, known("running"), THERE)
    ]
    (decided,) = answered(search, ELSEWHERE, dict.fromkeys(two, known(NOT_FOUND)))
    assert str(decided.learnt) == "refused_UnauthorizedOperation in here"


def test_a_target_that_is_given_up_is_asked_for_nothing_more() -> None:
    search = begin([ONE], hints={ONE: HERE})
    asked(search, HERE)
    assert list(search.give_up(THERE, TIMEOUT)) == []
    assert answered(search, HERE, {ONE: known(NOT_FOUND)}) == []
    assert asked(search, THERE) == []
    assert asked(search, ELSEWHERE) == [ONE]
    (decided,) = answered(search, ELSEWHERE, {ONE: known(NOT_FOUND)})
    assert str(decided.learnt) == "timeout in there"


def test_what_only_a_target_that_is_given_up_was_to_be_asked_for_is_unknown() -> None:
    search = begin([ONE, instance(2)])
    for target in (HERE, THERE):
        answered(search, target, dict.fromkeys(asked(search, target), known(NOT_FOUND)))
    assert [str(one.learnt) for one in search.give_up(ELSEWHERE, TIMEOUT)] == ["timeout in elsewhere"] * 2


def test_a_target_that_failed_before_is_asked_when_no_other_has_found_the_instance() -> None:
    search = begin([ONE, instance(2)], last={HERE})
    for target in (THERE, ELSEWHERE):
        assert asked(search, HERE) == []
        batch = asked(search, target)
        answered(search, target, {one: known("stopped" if one == instance(2) else NOT_FOUND) for one in batch})
    assert asked(search, HERE) == [ONE]


def test_where_an_instance_was_found_it_is_asked_for_first() -> None:
    search = begin(hints={ONE: ELSEWHERE}, last={ELSEWHERE})
    assert asked(search, HERE) == asked(search, THERE) == []
    assert asked(search, ELSEWHERE) == [ONE]
    assert answered(search, ELSEWHERE, {ONE: known(NOT_FOUND)}) == []  # a hint proves nothing
    assert asked(search, HERE) == asked(search, THERE) == [ONE]
    assert answered(search, HERE, {ONE: known("running")}) == [Decided(ONE, known("running"), HERE)]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("stopped", "running", "running"),
        ("running", "stopped", "running"),
        ("stopped", "stopped", "stopped"),
        ("stopped", "terminated", "targets_disagree in here and there"),
        ("terminated", "pending", "targets_disagree in here and there"),
        ("stopping", "stopped", "targets_disagree in here and there"),
        ("stopped", "hovering", "targets_disagree in here and there"),
    ],
)
def test_of_two_targets_that_know_an_instance_the_living_answer_wins(first: str, second: str, expected: str) -> None:
    """What is dead here is not believed before the other, which was asked at once, has answered."""
    search = begin()
    for target in (HERE, THERE):
        asked(search, target)
    decided = answered(search, HERE, {ONE: known(first)})
    assert bool(decided) == (first == "running")
    assert asked(search, ELSEWHERE) == []
    decided += answered(search, THERE, {ONE: known(second)})
    (only,) = decided
    assert (only.learnt.state if isinstance(only.learnt, Known) else str(only.learnt)) == expected


def test_an_instance_that_nobody_was_asked_for_long_enough_is_not_reached() -> None:
    hints = {instance(number): number % 3 for number in range(1, 5)}
    search = begin(hints, hints=hints)
    search.batch(THERE, 10.0)  # 1 and 4
    search.batch(ELSEWHERE, 12.0)  # 2
    answered(search, ELSEWHERE, {instance(2): DENIED})
    cut_off = {one.instance_id: str(one.learnt) for one in search.cut_off(15.0, 5.0)}
    assert cut_off == {
        instance(1): "timeout in there",
        instance(4): "timeout in there",
        instance(2): "refused_UnauthorizedOperation in elsewhere",
    }
    assert {one.instance_id for one in search.cut_off(14.9, 5.0)} == {instance(2)}


def test_what_one_has_found_counts_when_the_time_is_over_before_the_other_answers() -> None:
    search = begin()
    asked(search, HERE)
    asked(search, THERE)
    answered(search, HERE, {ONE: known("stopped")})
    assert list(search.cut_off(1.0, 5.0)) == [Decided(ONE, known("stopped"), HERE)]


def test_those_who_may_have_to_be_asked_one_after_the_other_share_the_time() -> None:
    search = begin([ONE], last={ELSEWHERE})
    assert search.batch(HERE, 0.0) == ([ONE], 2)
    search = begin([ONE, instance(2)], hints={instance(2): HERE}, last={ELSEWHERE})
    assert search.batch(THERE, 0.0) == ([ONE], 2)
    assert search.batch(HERE, 0.0) == ([instance(2), ONE], 3)


states = st.sampled_from(["running", "stopped", "terminated", "pending"])
some_targets = st.sets(st.integers(0, 2))
worlds = st.lists(st.tuples(st.none() | st.integers(0, 2), states), min_size=1, max_size=12)


@given(
    worlds,
    st.sets(st.integers(0, 2)),
    st.dictionaries(st.integers(0, 11), st.integers(0, 2)),
    st.sets(st.integers(0, 2)),
    st.randoms(),
)
def test_whatever_the_order_each_is_found_or_asked_for_everywhere_once(
    world: list[tuple[int | None, str]],
    failing: set[int],
    hinted: dict[int, int],
    last: set[int],
    chance: random.Random,
) -> None:
    """Each instance is in one target or in none. Some targets fail. Answers come in any order."""
    ids = [instance(number) for number in range(len(world))]
    search = begin(ids, hints={instance(number): hint for number, hint in hinted.items()}, last=last)
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
            assert result == Decided(instance_id, known(NOT_FOUND))
            assert all(times[target, instance_id] for target in range(3))
