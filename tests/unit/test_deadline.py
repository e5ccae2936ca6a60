"""One budget of time, and its parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.deadline import Deadline
from tests.unit.builders import Clock


def test_the_time_left_shrinks_to_zero() -> None:
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    assert deadline.remaining() == 10
    clock.sleep(4)
    assert deadline.remaining() == 6
    clock.sleep(100)
    assert deadline.remaining() == 0


@pytest.mark.parametrize("seconds", [0, -1], ids=["no time", "less than none"])
def test_a_deadline_without_time_is_over_at_once(seconds: float) -> None:
    assert Deadline(seconds, clock=Clock()).over()


def test_a_deadline_is_over_at_its_end_and_not_before() -> None:
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    clock.sleep(9.5)
    assert not deadline.over()
    clock.sleep(0.5)
    assert deadline.over()


@given(whole=st.floats(0, 1000), before=st.floats(0, 1000), part=st.floats(-10, 2000), after=st.floats(0, 1000))
def test_a_part_never_outlasts_the_whole(whole: float, before: float, part: float, after: float) -> None:
    clock = Clock()
    deadline = Deadline(whole, clock=clock)
    clock.sleep(before)
    piece = deadline.within(part)
    assert piece.remaining() == pytest.approx(max(0.0, min(part, whole - before)), abs=1e-9)
    clock.sleep(after)
    assert piece.remaining() <= deadline.remaining()


def test_a_deadline_can_be_shortened_and_not_lengthened() -> None:
    deadline = Deadline(10, clock=Clock())
    deadline.shorten(20)
    assert deadline.remaining() == 10
    deadline.shorten(3)
    assert deadline.remaining() == 3
    deadline.shorten(-1)
    assert deadline.over()


def test_shortening_the_whole_shortens_its_parts() -> None:
    deadline = Deadline(10, clock=Clock())
    part = deadline.within(8)
    deadline.shorten(2)
    assert part.remaining() == 2


def test_closing_the_whole_closes_its_parts_at_once() -> None:
    deadline = Deadline(10, clock=Clock())
    part_of_a_part = deadline.within(8).within(5)
    deadline.close()
    assert deadline.over()
    assert part_of_a_part.over()


def test_a_part_of_a_closed_deadline_is_over() -> None:
    deadline = Deadline(10, clock=Clock())
    deadline.close()
    assert deadline.within(5).over()


def test_an_extended_deadline_is_one_of_its_own() -> None:
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    clock.sleep(4)
    extended = deadline.extended(2)
    assert extended.remaining() == 8
    deadline.close()
    assert extended.remaining() == 8
    clock.sleep(8)
    assert extended.over()


def test_closing_a_part_leaves_the_whole_open() -> None:
    deadline = Deadline(10, clock=Clock())
    deadline.within(5).close()
    assert deadline.remaining() == 10


def test_a_deadline_is_over_after_the_process_was_frozen() -> None:
    clock = Clock()
    deadline = Deadline(45, clock=clock)
    part = deadline.within(10)
    clock.sleep(600)  # the next invocation
    assert part.over()
