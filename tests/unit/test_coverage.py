"""Nobody is left out: cycle after cycle over fleets that come and go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from handler.domain.coverage import Coverage, Progress, advance
from tests.unit.builders import in_fair_order, number_of, uuid

NO_LIMIT = 1_000


@dataclass
class Simulation:
    """Full cycles over a fleet, each of which checks the first `capacity` that were selected."""

    candidates: set[int]
    sweep: Coverage = field(default_factory=Coverage)
    limit: int = NO_LIMIT
    most_first: int = 64

    def cycle(self, capacity: int = NO_LIMIT, *, left: Sequence[int] = (), late: Sequence[int] = ()) -> list[int]:
        """Run one; `left` are not reached although it would be their turn, `late` have no time left to be acted on.

        Return who was checked.
        """
        order = in_fair_order(map(uuid, self.candidates), self.sweep)
        turn = order[: self.limit]
        checked = [one for one in turn[:capacity] if one not in map(uuid, left)]
        self.progress = advance(
            self.sweep,
            turn,
            next_unselected=next(iter(order[self.limit :]), None),
            checked=checked,
            out_of_time=[one for one in checked if one in map(uuid, late)],
            most_first=self.most_first,
        )
        self.sweep = self.progress.sweep
        return [number_of(one) for one in checked]


# --- the cursor ---


def test_what_a_cycle_did_not_reach_comes_first_in_the_next_one() -> None:
    fleet = Simulation({1, 2, 3, 4, 5})
    assert [fleet.cycle(2) for _ in range(4)] == [[1, 2], [3, 4], [5, 1], [2, 3]]


def test_a_limit_cuts_the_fleet_into_turns_just_like_a_deadline() -> None:
    fleet = Simulation({1, 2, 3, 4, 5}, limit=2)
    assert [fleet.cycle() for _ in range(4)] == [[1, 2], [3, 4], [5, 1], [2, 3]]


def test_whoever_was_cut_off_in_the_midst_comes_first_and_the_others_have_their_turn_after_the_last() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6, 7})
    assert fleet.cycle(5, left=[2, 4]) == [1, 3, 5]
    assert fleet.cycle(5) == [2, 4, 6, 7, 1]
    assert fleet.progress.completed_pass


def test_before_more_than_may_come_first_the_cursor_stops() -> None:
    fleet = Simulation({1, 2, 3, 4, 5}, most_first=1)
    assert fleet.cycle(left=[2, 4]) == [1, 3, 5]
    assert fleet.cycle() == [2, 4, 5, 1, 3]


def test_a_pass_is_not_complete_before_those_that_were_cut_off_have_been_checked() -> None:
    fleet = Simulation({1, 2, 3, 4, 5})
    fleet.cycle(left=[2])
    assert not fleet.progress.completed_pass
    fleet.cycle(left=[2])
    assert not fleet.progress.completed_pass
    fleet.cycle()
    assert fleet.progress.completed_pass


@given(st.integers(20, 200), st.integers(4, 30), st.integers(3, 12), st.integers(0, 3))
def test_rows_that_hang_here_and_there_cost_the_others_no_turn(
    size: int, capacity: int, every: int, offset: int
) -> None:
    """Of those that hang the ones are cut off that are begun in the second half of a cycle."""
    fleet = Simulation(set(range(1, size + 1)))
    unchecked, counts, completed = set(fleet.candidates), [], 0
    while unchecked:
        order = [number_of(one) for one in in_fair_order(map(uuid, fleet.candidates), fleet.sweep)]
        late = [one for one in order[capacity // 2 : capacity] if one % every == offset % every]
        checked = fleet.cycle(capacity, left=late)
        counts.append(len(checked))
        unchecked -= set(checked)
        completed += fleet.progress.completed_pass
    assert len(counts) <= ceil(size / min(counts)) + 1
    for _ in range(2 * ceil(size / min(counts)) + 2):
        order = [number_of(one) for one in in_fair_order(map(uuid, fleet.candidates), fleet.sweep)]
        fleet.cycle(capacity, left=[one for one in order[capacity // 2 : capacity] if one % every == offset % every])
        completed += fleet.progress.completed_pass
    assert completed


def test_a_cycle_that_reached_nobody_leaves_the_next_one_where_it_was() -> None:
    fleet = Simulation({1, 2, 3})
    fleet.cycle(1)
    before = fleet.sweep
    fleet.cycle(0)
    assert fleet.sweep == before
    assert not fleet.progress.completed_pass


def test_the_cursor_goes_on_though_the_row_that_it_stands_on_is_gone() -> None:
    fleet = Simulation({1, 2, 3, 4})
    fleet.cycle(2)
    fleet.candidates -= {2}
    assert fleet.cycle(2) == [3, 4]


# --- those for whom there was no time left to act ---


def test_those_that_ran_out_of_time_come_first_of_all() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[2])
    assert fleet.cycle(3) == [2, 4, 5]


def test_having_come_first_they_fall_back_into_line() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[2])
    fleet.cycle(3)
    assert fleet.cycle(6) == [6, 1, 2, 3, 4, 5]


def test_those_that_ran_out_of_time_again_come_first_again() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[2])
    fleet.cycle(3, late=[2])
    assert fleet.cycle(3) == [2, 6, 1]


def test_those_brought_forward_stay_first_until_they_are_reached() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[2])
    fleet.cycle(0)
    assert fleet.cycle(1) == [2]


def test_one_brought_forward_that_is_no_candidate_any_more_is_forgotten() -> None:
    fleet = Simulation({1, 2, 3})
    fleet.cycle(late=[2])
    fleet.candidates -= {2}
    fleet.cycle()
    assert fleet.sweep.first == ()


def test_those_brought_forward_are_not_forgotten_when_a_lower_limit_leaves_some_of_them_out() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[1, 2, 3])
    fleet.limit = 2
    assert [fleet.cycle() for _ in range(3)] == [[1, 2], [3, 4], [5, 6]]


def test_those_brought_forward_stay_first_whether_a_limit_or_the_deadline_left_them_out() -> None:
    fleet = Simulation({1, 2, 3, 4, 5, 6})
    fleet.cycle(3, late=[1, 2, 3])
    fleet.limit = 2
    assert fleet.cycle(1) == [1]
    assert fleet.sweep.first == (uuid(2), uuid(3))


def test_of_very_many_that_ran_out_of_time_some_come_first_and_the_others_have_their_turn_in_the_next_pass() -> None:
    fleet = Simulation(set(range(1, 11)), most_first=2)
    fleet.cycle(8, late=[3, 5, 6, 7])
    assert fleet.sweep.first == (uuid(3), uuid(5))
    assert [fleet.cycle(4) for _ in range(3)] == [[3, 5, 9, 10], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_those_not_reached_stay_first_though_fewer_than_they_are_may_be_remembered_now() -> None:
    fleet = Simulation(set(range(1, 11)), most_first=4)
    fleet.cycle(5, late=[1, 2, 3, 4])
    fleet.most_first = 1
    assert fleet.cycle(1, late=[1]) == [1]
    assert fleet.cycle(4, late=[2]) == [2, 3, 4, 6]
    assert fleet.sweep.first == (uuid(2),)


def test_when_none_may_be_remembered_nobody_comes_first() -> None:
    fleet = Simulation({1, 2, 3}, most_first=0)
    assert [fleet.cycle(1, late=[1, 2, 3]) for _ in range(4)] == [[1], [2], [3], [1]]


# --- a pass ---


def test_a_pass_is_complete_when_one_cycle_reaches_everybody() -> None:
    fleet = Simulation({1, 2, 3})
    for _ in range(3):
        fleet.cycle()
        assert fleet.progress.completed_pass


def test_an_empty_fleet_is_a_complete_pass() -> None:
    fleet = Simulation(set())
    fleet.cycle()
    assert fleet.progress.completed_pass


def test_a_pass_takes_as_many_cycles_as_the_fleet_needs_and_the_next_begins_where_it_ended() -> None:
    fleet = Simulation({1, 2, 3, 4, 5})
    completed = []
    for _ in range(6):
        fleet.cycle(2)
        completed.append(fleet.progress.completed_pass)
    assert completed == [False, False, True, False, False, True]


def test_a_pass_is_not_complete_while_one_brought_forward_was_not_reached() -> None:
    fleet = Simulation({1, 2, 3})
    fleet.cycle(late=[1])
    fleet.cycle(left=[1])
    assert not fleet.progress.completed_pass


# --- over many cycles ---


@dataclass(frozen=True)
class Turn:
    """What happens around one cycle: who appears and disappears before it, and how far it gets."""

    appear: frozenset[int]
    disappear: frozenset[int]
    capacity: int
    left: frozenset[int]
    late: frozenset[int]


numbers = st.frozensets(st.integers(1, 30), max_size=4)
fleets = st.frozensets(st.integers(1, 30), max_size=20).map(set)
nobody = st.just(frozenset[int]())


def turns(
    capacity: st.SearchStrategy[int],
    left: st.SearchStrategy[frozenset[int]] = nobody,
    late: st.SearchStrategy[frozenset[int]] = nobody,
    moves: st.SearchStrategy[frozenset[int]] = numbers,
) -> st.SearchStrategy[list[Turn]]:
    """Return cycles to come."""
    return st.lists(st.builds(Turn, moves, moves, capacity, left, late), min_size=1, max_size=12)


@given(fleets, st.integers(1, 8), st.data(), st.booleans())
def test_every_candidate_is_checked_within_the_cycles_that_the_fleet_needs_and_one_more(
    candidates: set[int],
    capacity: int,
    data: st.DataObject,
    by_limit: bool,
) -> None:
    fleet = Simulation(candidates, limit=capacity if by_limit else NO_LIMIT)
    waited: dict[int, int] = {}  # the cycles since a candidate was checked last, or appeared
    met: dict[int, set[int]] = {}  # all that were candidates meanwhile
    for turn in data.draw(turns(st.just(capacity))):
        fleet.candidates = (fleet.candidates | turn.appear) - turn.disappear
        waited = {one: waited.get(one, 0) + 1 for one in fleet.candidates}
        met = {one: met.get(one, set()) | fleet.candidates for one in fleet.candidates}
        for one in fleet.cycle(capacity):
            waited[one], met[one] = 0, set()
        for one, cycles in waited.items():
            assert cycles <= ceil(len(met[one]) / capacity), f"{one} was not checked for {cycles} cycles"


@given(fleets, st.integers(2, 8), st.data())
def test_rows_that_can_never_be_acted_on_take_their_own_share_of_the_capacity_and_no_more(
    candidates: set[int], capacity: int, data: st.DataObject
) -> None:
    late = data.draw(st.frozensets(st.integers(1, 30), max_size=capacity - 1))
    fleet = Simulation(candidates, most_first=capacity)
    cycles = ceil(len(candidates) / (capacity - len(late))) + 1
    assert {one for _ in range(cycles) for one in fleet.cycle(capacity, late=tuple(late))} == candidates


@given(fleets, st.integers(1, 12), st.lists(st.frozensets(st.integers(1, 30)), min_size=1, max_size=5))
def test_however_many_run_out_of_time_cycle_after_cycle_the_rest_keeps_what_they_may_not_have(
    candidates: set[int], capacity: int, lates: list[frozenset[int]]
) -> None:
    fleet = Simulation(candidates, most_first=capacity // 2)
    cycles = ceil(len(candidates) / (capacity - capacity // 2)) + 1
    checked: set[int] = set()
    for number in range(cycles):
        checked.update(fleet.cycle(capacity, late=tuple(lates[number % len(lates)])))
    assert checked == candidates


@given(fleets, turns(st.integers(0, 30), moves=nobody))
def test_a_pass_is_complete_exactly_when_everybody_was_checked_since_the_last_one(
    candidates: set[int], to_come: list[Turn]
) -> None:
    fleet, checked = Simulation(candidates), set[int]()
    for turn in to_come:
        checked.update(fleet.cycle(turn.capacity))
        assert fleet.progress.completed_pass is (checked >= candidates)
        if fleet.progress.completed_pass:
            checked = set()


@given(fleets, st.integers(1, 30), turns(st.integers(0, 30), moves=nobody))
def test_a_limit_does_not_put_off_the_end_of_a_pass(candidates: set[int], limit: int, to_come: list[Turn]) -> None:
    fleet, checked = Simulation(candidates, limit=limit), set[int]()
    for turn in to_come:
        checked.update(fleet.cycle(turn.capacity))
        assert fleet.progress.completed_pass is (checked >= candidates)
        if fleet.progress.completed_pass:
            checked = set()


@given(
    fleets,
    turns(st.integers(0, 30), left=st.frozensets(st.integers(1, 30)), late=st.frozensets(st.integers(1, 30))),
    st.integers(1, 30),
    st.integers(0, 5),
)
def test_no_pass_is_called_complete_while_somebody_who_was_there_all_along_is_unchecked(
    candidates: set[int], to_come: list[Turn], limit: int, most_first: int
) -> None:
    fleet = Simulation(candidates, limit=limit, most_first=most_first)
    unchecked = set(candidates)
    for turn in to_come:
        fleet.candidates = (fleet.candidates | turn.appear) - turn.disappear
        unchecked &= fleet.candidates
        unchecked -= set(fleet.cycle(turn.capacity, left=tuple(turn.left), late=tuple(turn.late)))
        if fleet.progress.completed_pass:
            assert not unchecked
            unchecked = set(fleet.candidates)


@given(fleets, turns(st.integers(0, 30), late=st.frozensets(st.integers(1, 30))), st.integers(1, 30))
def test_whoever_ran_out_of_time_is_among_the_first_to_be_checked_next(
    candidates: set[int], to_come: list[Turn], most_first: int
) -> None:
    fleet, owed, crowded = Simulation(candidates, most_first=most_first), set[int](), False
    for turn in to_come:
        fleet.candidates = (fleet.candidates | turn.appear) - turn.disappear
        owed &= fleet.candidates
        remembered = fleet.candidates & {number_of(one) for one in fleet.sweep.first}
        assert remembered == owed or (crowded and remembered < owed)
        checked = fleet.cycle(turn.capacity, late=tuple(turn.late))
        assert set(checked[: len(remembered)]) <= remembered
        owed = (owed - set(checked)) | (set(checked) & turn.late)
        crowded = bool(owed) and (crowded or len(owed) > most_first)


@given(fleets, turns(st.integers(0, 30), left=numbers, late=st.frozensets(st.integers(1, 30))), st.integers(0, 5))
def test_never_more_are_remembered_by_name_than_was_agreed(
    candidates: set[int], to_come: list[Turn], most_first: int
) -> None:
    fleet = Simulation(candidates, most_first=most_first)
    for turn in to_come:
        fleet.cycle(turn.capacity, left=tuple(turn.left), late=tuple(turn.late))
        assert len(fleet.sweep.first) <= most_first
        assert len(set(fleet.sweep.first)) == len(fleet.sweep.first)


def test_the_progress_of_a_first_cycle_in_full() -> None:
    progress = advance(
        Coverage(),
        [uuid(1), uuid(2), uuid(3)],
        next_unselected=None,
        checked={uuid(1), uuid(2)},
        out_of_time=[uuid(1)],
        most_first=64,
    )
    assert progress == Progress(Coverage(uuid(2), Coverage().pass_began_at, (uuid(1),)), completed_pass=False)
