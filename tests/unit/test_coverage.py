"""Coverage: no workspace starves, cycle after cycle, over fleets that come and go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from handler.domain.coverage import Coverage, Progress, Queues, advance
from tests.unit.builders import number_of, queues, uuid

NO_LIMIT = 1_000


@dataclass
class Simulation:
    """Full cycles over a fleet. Each one checks the first `capacity` of the workspaces that it selects."""

    candidates: set[int]
    coverage: Coverage = field(default_factory=Coverage)
    limit: int = NO_LIMIT
    most_first: int = 64

    def cycle(self, capacity: int = NO_LIMIT, *, cut_off: Sequence[int] = (), late: Sequence[int] = ()) -> list[int]:
        """Run one cycle and return who was checked.

        The deadline cuts off the checks of `cut_off`. It leaves no time to act on those of `late`.
        """
        waiting, hanging, out_of_time = self._queues(), set(map(uuid, cut_off)), set(map(uuid, late))
        checked = [one for one in waiting.fair_order()[: self.limit][:capacity] if one not in hanging]
        self.progress = advance(
            self.coverage,
            Queues(waiting.in_turn[: self.limit + 1], waiting.brought_forward),
            checked=checked,
            out_of_time=[one for one in checked if one in out_of_time],
            most_first=self.most_first,
        )
        self.coverage = self.progress.coverage
        return [number_of(one) for one in checked]

    def order(self) -> list[int]:
        """Return everybody in the order in which the next cycle takes them."""
        return [number_of(one) for one in self._queues().fair_order()]

    def circle(self) -> list[int]:
        """Return everybody in the order of the circle, beginning behind the cursor."""
        return [number_of(one) for one in self._queues().in_turn]

    def _queues(self) -> Queues:
        return queues(map(uuid, self.candidates), self.coverage)


# --- the cursor ---


def test_the_next_cycle_begins_where_the_last_one_ended() -> None:
    fleet = Simulation({1, 2, 3, 4, 5})
    assert [fleet.cycle(2) for _ in range(4)] == [[1, 2], [3, 4], [5, 1], [2, 3]]


def test_a_limit_divides_the_fleet_as_a_deadline_does() -> None:
    fleet = Simulation({1, 2, 3, 4, 5}, limit=2)
    assert [fleet.cycle() for _ in range(4)] == [[1, 2], [3, 4], [5, 1], [2, 3]]


def test_checks_that_were_cut_off_are_brought_forward_in_the_next_cycle() -> None:
    """The others go on behind the last one that was checked."""
    fleet = Simulation({1, 2, 3, 4, 5, 6, 7})
    assert fleet.cycle(5, cut_off=[2, 4]) == [1, 3, 5]
    assert fleet.cycle(5) == [6, 2, 7, 4, 1]
    assert fleet.progress.completed_pass


def test_the_cursor_stops_before_more_cut_off_checks_than_may_be_brought_forward() -> None:
    fleet = Simulation({1, 2, 3, 4, 5}, most_first=1)
    assert fleet.cycle(cut_off=[2, 4]) == [1, 3, 5]
    assert fleet.cycle() == [4, 2, 5, 1, 3]


def test_a_pass_is_incomplete_until_cut_off_checks_are_repeated() -> None:
    fleet = Simulation({1, 2, 3, 4, 5})
    fleet.cycle(cut_off=[2])
    assert not fleet.progress.completed_pass
    fleet.cycle(cut_off=[2])
    assert not fleet.progress.completed_pass
    fleet.cycle()
    assert fleet.progress.completed_pass


@given(st.integers(20, 200), st.integers(4, 30), st.integers(3, 12), st.integers(0, 3))
def test_rows_that_hang_delay_no_other_row(size: int, capacity: int, every: int, offset: int) -> None:
    """The rows that hang are cut off if their checks begin in the second half of a cycle."""
    fleet = Simulation(set(range(1, size + 1)))
    unchecked, counts, completed = set(fleet.candidates), [], 0
    while unchecked:
        order = fleet.order()
        late = [one for one in order[capacity // 2 : capacity] if one % every == offset % every]
        checked = fleet.cycle(capacity, cut_off=late)
        counts.append(len(checked))
        unchecked -= set(checked)
        completed += fleet.progress.completed_pass
    assert len(counts) <= ceil(size / min(counts)) + 1
    for _ in range(2 * ceil(size / min(counts)) + 2):
        order = fleet.order()
        fleet.cycle(capacity, cut_off=[one for one in order[capacity // 2 : capacity] if one % every == offset % every])
        completed += fleet.progress.completed_pass
    assert completed


def test_a_cycle_that_checks_nobody_moves_no_cursor() -> None:
    fleet = Simulation({1, 2, 3})
    fleet.cycle(1)
    before = fleet.coverage
    fleet.cycle(0)
    assert fleet.coverage == before
    assert not fleet.progress.completed_pass


def test_the_cursor_goes_on_when_its_row_is_gone() -> None:
    fleet = Simulation({1, 2, 3, 4})
    fleet.cycle(2)
    fleet.candidates -= {2}
    assert fleet.cycle(2) == [3, 4]


# --- dead workspaces without time left to act ---


def test_workspaces_that_ran_out_of_time_are_checked_by_turns_with_those_in_turn() -> None:
    fleet = Simulation(set(range(1, 11)))
    fleet.cycle(4, late=[2, 3])
    assert fleet.cycle(6) == [5, 2, 6, 3, 7, 8]


def test_workspaces_are_brought_forward_only_once() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[2])
    fleet.cycle(3)
    assert fleet.cycle(6) == [6, 1, 2, 3, 4, 5]


def test_workspaces_that_run_out_of_time_again_are_brought_forward_again() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[2])
    fleet.cycle(3, late=[2])
    assert fleet.cycle(3) == [6, 2, 1]


def test_workspaces_stay_brought_forward_until_they_are_checked() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[2])
    fleet.cycle(0)
    assert fleet.cycle(1) == [4]
    assert fleet.cycle(2) == [5, 2]


def test_a_workspace_that_is_brought_forward_is_also_checked_in_turn() -> None:
    """Cycles that check a single one have no other room for it."""
    fleet = Simulation({1, 2, 3})
    fleet.cycle(3, late=[2])
    assert [fleet.cycle(1) for _ in range(3)] == [[1], [2], [3]]
    assert fleet.coverage.brought_forward == ()


def test_a_workspace_that_is_no_longer_a_candidate_is_forgotten() -> None:
    fleet = Simulation({1, 2, 3})
    fleet.cycle(late=[2])
    fleet.candidates -= {2}
    fleet.cycle()
    assert fleet.coverage.brought_forward == ()


def test_a_lower_limit_forgets_nobody_who_was_brought_forward() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[1, 2, 3])
    fleet.limit = 2
    assert [fleet.cycle() for _ in range(3)] == [[4, 1], [5, 2], [6, 3]]


def test_limit_and_deadline_together_forget_nobody_who_was_brought_forward() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[1, 2, 3])
    fleet.limit = 2
    assert fleet.cycle(1) == [4]
    assert fleet.coverage.brought_forward == (uuid(1), uuid(2), uuid(3))


def test_only_so_many_are_brought_forward_and_the_others_wait_for_the_next_pass() -> None:
    """Two may be brought forward here, of four that ran out of time."""
    fleet = Simulation(set(range(1, 11)), most_first=2)
    fleet.cycle(8, late=[3, 5, 6, 7])
    assert fleet.coverage.brought_forward == (uuid(3), uuid(5))
    assert [fleet.cycle(4) for _ in range(3)] == [[9, 3, 10, 5], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_workspaces_stay_brought_forward_even_if_fewer_may_be_now() -> None:
    fleet = Simulation(set(range(1, 11)), most_first=4)
    fleet.cycle(5, late=[1, 2, 3, 4])
    fleet.most_first = 1
    assert fleet.cycle(2, late=[1]) == [6, 1]
    assert fleet.cycle(6, late=[2]) == [7, 2, 8, 3, 9, 4]
    assert fleet.coverage.brought_forward == (uuid(2),)


def test_nobody_comes_first_when_none_may() -> None:
    fleet = Simulation({1, 2, 3}, most_first=0)
    assert [fleet.cycle(1, late=[1, 2, 3]) for _ in range(4)] == [[1], [2], [3], [1]]


# --- a pass ---


def test_one_cycle_that_checks_everybody_completes_a_pass() -> None:
    fleet = Simulation({1, 2, 3})
    for _ in range(3):
        fleet.cycle()
        assert fleet.progress.completed_pass


def test_an_empty_fleet_completes_a_pass() -> None:
    fleet = Simulation(set())
    fleet.cycle()
    assert fleet.progress.completed_pass


def test_the_next_pass_begins_where_the_last_one_ended() -> None:
    fleet = Simulation({1, 2, 3, 4, 5})
    completed = []
    for _ in range(6):
        fleet.cycle(2)
        completed.append(fleet.progress.completed_pass)
    assert completed == [False, False, True, False, False, True]


def test_a_pass_is_incomplete_until_everybody_brought_forward_is_checked() -> None:
    fleet = Simulation({1, 2, 3})
    fleet.cycle(late=[1])
    fleet.cycle(cut_off=[1])
    assert not fleet.progress.completed_pass


# --- over many cycles ---


@dataclass(frozen=True)
class Turn:
    """One cycle: which workspaces appear and disappear before it, and how far it gets."""

    appear: frozenset[int]
    disappear: frozenset[int]
    capacity: int
    cut_off: frozenset[int]
    late: frozenset[int]


numbers = st.frozensets(st.integers(1, 30), max_size=4)
fleets = st.frozensets(st.integers(1, 30), max_size=20).map(set)
nobody = st.just(frozenset[int]())


def turns(
    capacity: st.SearchStrategy[int],
    cut_off: st.SearchStrategy[frozenset[int]] = nobody,
    late: st.SearchStrategy[frozenset[int]] = nobody,
    moves: st.SearchStrategy[frozenset[int]] = numbers,
) -> st.SearchStrategy[list[Turn]]:
    """Return a strategy for a list of cycles."""
    return st.lists(st.builds(Turn, moves, moves, capacity, cut_off, late), min_size=1, max_size=12)


@given(fleets, st.integers(1, 8), st.data(), st.booleans())
def test_every_candidate_is_checked_in_time(
    candidates: set[int],
    capacity: int,
    data: st.DataObject,
    by_limit: bool,
) -> None:
    """A candidate waits no longer than it takes to check everybody once who is a candidate in that time."""
    fleet = Simulation(candidates, limit=capacity if by_limit else NO_LIMIT)
    waited: dict[int, int] = {}  # cycles since a candidate was last checked, or appeared
    met: dict[int, set[int]] = {}  # all that were candidates since then
    for turn in data.draw(turns(st.just(capacity))):
        fleet.candidates = (fleet.candidates | turn.appear) - turn.disappear
        waited = {one: waited.get(one, 0) + 1 for one in fleet.candidates}
        met = {one: met.get(one, set()) | fleet.candidates for one in fleet.candidates}
        for one in fleet.cycle(capacity):
            waited[one], met[one] = 0, set()
        for one, cycles in waited.items():
            assert cycles <= ceil(len(met[one]) / capacity), f"{one} has waited for {cycles} cycles"


@given(fleets, st.integers(2, 8), st.data())
def test_rows_that_always_run_out_of_time_delay_the_others_only_by_their_own_checks(
    candidates: set[int], capacity: int, data: st.DataObject
) -> None:
    late = data.draw(st.frozensets(st.integers(1, 30), max_size=capacity - 1))
    fleet = Simulation(candidates, most_first=capacity)
    cycles = ceil(len(candidates) / (capacity - len(late))) + 1
    assert {one for _ in range(cycles) for one in fleet.cycle(capacity, late=tuple(late))} == candidates


@given(fleets, st.integers(1, 12), st.lists(st.frozensets(st.integers(1, 30)), min_size=1, max_size=5))
def test_half_of_the_capacity_remains_however_many_run_out_of_time(
    candidates: set[int], capacity: int, lates: list[frozenset[int]]
) -> None:
    """At most half of the capacity is brought forward, so the rest goes on in turn."""
    fleet = Simulation(candidates, most_first=capacity // 2)
    cycles = ceil(len(candidates) / (capacity - capacity // 2)) + 1
    checked: set[int] = set()
    for number in range(cycles):
        checked.update(fleet.cycle(capacity, late=tuple(lates[number % len(lates)])))
    assert checked == candidates


@given(fleets, turns(st.integers(0, 30), moves=nobody))
def test_a_pass_is_complete_exactly_when_everybody_has_been_checked(candidates: set[int], to_come: list[Turn]) -> None:
    fleet, checked = Simulation(candidates), set[int]()
    for turn in to_come:
        checked.update(fleet.cycle(turn.capacity))
        assert fleet.progress.completed_pass is (checked >= candidates)
        if fleet.progress.completed_pass:
            checked = set()


@given(fleets, st.integers(1, 30), turns(st.integers(0, 30), moves=nobody))
def test_a_limit_does_not_delay_the_end_of_a_pass(candidates: set[int], limit: int, to_come: list[Turn]) -> None:
    fleet, checked = Simulation(candidates, limit=limit), set[int]()
    for turn in to_come:
        checked.update(fleet.cycle(turn.capacity))
        assert fleet.progress.completed_pass is (checked >= candidates)
        if fleet.progress.completed_pass:
            checked = set()


@given(
    fleets,
    turns(st.integers(0, 30), cut_off=st.frozensets(st.integers(1, 30)), late=st.frozensets(st.integers(1, 30))),
    st.integers(1, 30),
    st.integers(0, 5),
)
def test_no_pass_is_complete_while_a_lasting_candidate_is_unchecked(
    candidates: set[int], to_come: list[Turn], limit: int, most_first: int
) -> None:
    fleet = Simulation(candidates, limit=limit, most_first=most_first)
    unchecked = set(candidates)
    for turn in to_come:
        fleet.candidates = (fleet.candidates | turn.appear) - turn.disappear
        unchecked &= fleet.candidates
        unchecked -= set(fleet.cycle(turn.capacity, cut_off=tuple(turn.cut_off), late=tuple(turn.late)))
        if fleet.progress.completed_pass:
            assert not unchecked
            unchecked = set(fleet.candidates)


@given(fleets, turns(st.integers(0, 30), late=st.frozensets(st.integers(1, 30))), st.integers(1, 30))
def test_workspaces_that_ran_out_of_time_are_checked_among_the_first(
    candidates: set[int], to_come: list[Turn], most_first: int
) -> None:
    """As many are checked in turn meanwhile."""
    fleet, owed, crowded = Simulation(candidates, most_first=most_first), set[int](), False
    for turn in to_come:
        fleet.candidates = (fleet.candidates | turn.appear) - turn.disappear
        owed &= fleet.candidates
        remembered = fleet.candidates & {number_of(one) for one in fleet.coverage.brought_forward}
        assert remembered == owed or (crowded and remembered < owed)
        assert remembered <= set(fleet.order()[: 2 * len(remembered)])
        checked = fleet.cycle(turn.capacity, late=tuple(turn.late))
        owed = (owed - set(checked)) | (set(checked) & turn.late)
        crowded = bool(owed) and (crowded or len(owed) > most_first)


@given(
    st.integers(1, 60), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.lists(numbers, max_size=5), st.data()
)
def test_every_candidate_is_checked_in_turn_however_many_run_out_of_time_and_however_far_a_cycle_gets(
    size: int, capacities: list[int], punctual: list[frozenset[int]], data: st.DataObject
) -> None:
    """All but a few run out of time. At most half of each cycle's checks are for those brought forward."""
    fleet = Simulation(set(range(1, size + 1)))
    in_turn = ceil(min(capacities) / 2)
    last_checked = dict.fromkeys(fleet.candidates, 0)
    for number in range(1, 2 * ceil(size / in_turn) + 2):
        capacity = data.draw(st.sampled_from(capacities))
        fleet.most_first = capacity // 2
        brought_forward = {number_of(one) for one in fleet.coverage.brought_forward}
        circle = fleet.circle()
        checked = fleet.cycle(capacity, late=tuple(fleet.candidates.difference(*punctual)))
        half = set(circle[: ceil(len(checked) / 2)])
        assert half <= set(checked)
        assert len(brought_forward.intersection(checked) - half) <= len(checked) / 2
        last_checked |= dict.fromkeys(checked, number)
        assert number - min(last_checked.values()) <= ceil(size / in_turn) + 1


@given(fleets, turns(st.integers(0, 30), cut_off=numbers, late=st.frozensets(st.integers(1, 30))), st.integers(0, 5))
def test_no_more_are_brought_forward_than_may_be(candidates: set[int], to_come: list[Turn], most_first: int) -> None:
    fleet = Simulation(candidates, most_first=most_first)
    for turn in to_come:
        fleet.cycle(turn.capacity, cut_off=tuple(turn.cut_off), late=tuple(turn.late))
        assert len(fleet.coverage.brought_forward) <= most_first
        assert len(set(fleet.coverage.brought_forward)) == len(fleet.coverage.brought_forward)


def test_the_progress_of_a_first_cycle() -> None:
    progress = advance(
        Coverage(),
        Queues([uuid(1), uuid(2), uuid(3)]),
        checked={uuid(1), uuid(2)},
        out_of_time=[uuid(1)],
        most_first=64,
    )
    assert progress == Progress(Coverage(uuid(2), Coverage().pass_start, (uuid(1),)), completed_pass=False)


@given(st.lists(st.uuids()))
def test_the_text_of_ids_stands_in_the_order_in_which_postgresql_compares_them(ids: list[UUID]) -> None:
    """PostgreSQL compares the bytes of a uuid, whatever the database's collation."""
    assert sorted(map(str, ids)) == [str(one) for one in sorted(ids, key=lambda one: one.bytes)]
