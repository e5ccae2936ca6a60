"""How many checks may be in flight."""

import threading

import pytest

from handler.deadline import Deadline
from handler.probes.control_plane.limiter import PAUSE_S, ConcurrencyLimiter
from tests.unit.builders import Clock, Log

OVER = Deadline(0, clock=Clock())
OVERLOADED, FINE = True, False


def room(gate: ConcurrencyLimiter) -> int:
    """Return how many checks the gate lets through at once."""
    soon = Deadline(100, clock=Clock())
    entered = 0
    while gate._in_flight < gate._allowed:  # noqa: SLF001 - else a full gate would have to be waited for
        assert gate.enter(soon)
        entered += 1
    for _ in range(entered):
        gate.leave(overloaded=None)
    return entered


def checks(gate: ConcurrencyLimiter, *overloaded: bool) -> None:
    for one in overloaded:
        deadline = Deadline(100, clock=Clock())
        assert gate.enter(deadline)
        gate.pause(deadline)
        gate.leave(overloaded=one)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> ConcurrencyLimiter:
    return ConcurrencyLimiter(8, sleep=clock.sleep)


def test_as_many_as_was_agreed_are_let_through_at_once(gate: ConcurrencyLimiter) -> None:
    assert room(gate) == 8


def test_nobody_is_let_through_after_the_deadline(gate: ConcurrencyLimiter) -> None:
    assert not gate.enter(OVER)
    assert room(gate) == 8


def test_nobody_waits_at_a_full_gate_past_the_deadline() -> None:
    gate = ConcurrencyLimiter(1)
    assert gate.enter(Deadline(100, clock=Clock()))
    assert not gate.enter(OVER)


def test_whoever_waits_is_let_through_when_another_leaves() -> None:
    gate, entered = ConcurrencyLimiter(1), threading.Event()
    assert gate.enter(Deadline(100))

    def wait() -> None:
        if gate.enter(Deadline(100)):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not entered.is_set()
    gate.leave(overloaded=False)
    assert entered.wait(10)
    waiting.join()


def test_half_as_many_are_let_through_when_more_than_half_of_a_round_was_too_much(gate: ConcurrencyLimiter) -> None:
    checks(gate, *[OVERLOADED] * 5, *[FINE] * 3)
    assert room(gate) == 4
    checks(gate, *[OVERLOADED] * 3, *[FINE])
    assert room(gate) == 2


def test_half_a_round_may_be_too_much(gate: ConcurrencyLimiter) -> None:
    checks(gate, *[OVERLOADED] * 4, *[FINE] * 4)
    assert room(gate) == 8


def test_a_round_is_judged_at_its_end_and_not_before(gate: ConcurrencyLimiter) -> None:
    checks(gate, *[OVERLOADED] * 7)
    assert room(gate) == 8


def test_half_of_an_odd_number_is_the_smaller_half(clock: Clock) -> None:
    gate = ConcurrencyLimiter(3, sleep=clock.sleep)
    checks(gate, *[OVERLOADED] * 3)
    assert room(gate) == 1


def test_one_is_always_let_through(gate: ConcurrencyLimiter) -> None:
    checks(gate, *[OVERLOADED] * 100)
    assert room(gate) == 1


def test_twice_as_many_are_let_through_after_a_good_round_up_to_what_was_agreed(gate: ConcurrencyLimiter) -> None:
    checks(gate, *[OVERLOADED] * 100)
    widths = []
    for _ in range(5):
        checks(gate, *[FINE] * room(gate))
        widths.append(room(gate))
    assert widths == [2, 4, 8, 8, 8]


def test_a_check_of_which_nothing_can_be_said_does_not_count(gate: ConcurrencyLimiter) -> None:
    for _ in range(100):
        gate.enter(Deadline(100, clock=Clock()))
        gate.leave(overloaded=None)
    assert room(gate) == 8


def test_a_remote_that_is_overloaded_even_one_by_one_is_given_a_pause(gate: ConcurrencyLimiter, clock: Clock) -> None:
    checks(gate, *[OVERLOADED] * (8 + 4 + 2))
    assert clock.slept == []
    checks(gate, *[OVERLOADED])
    assert clock.slept == [PAUSE_S]


def test_the_pause_is_never_longer_than_the_time_that_is_left(gate: ConcurrencyLimiter, clock: Clock) -> None:
    checks(gate, *[OVERLOADED] * 14)
    gate.pause(Deadline(0.01, clock=clock))
    assert clock.slept == [pytest.approx(0.01)]


def test_who_asks_one_by_one_anyway_is_not_slowed_down(clock: Clock) -> None:
    checks(ConcurrencyLimiter(1, sleep=clock.sleep), *[OVERLOADED] * 10)
    assert clock.slept == []


def test_whoever_only_enters_is_not_kept_waiting(gate: ConcurrencyLimiter, clock: Clock) -> None:
    checks(gate, *[OVERLOADED] * 14)
    assert gate.enter(Deadline(100, clock=clock))
    assert clock.slept == []


def answers(gate: ConcurrencyLimiter, *took_s: float) -> None:
    for one in took_s:
        assert gate.enter(Deadline(100, clock=Clock()))
        gate.leave(overloaded=False, took_s=one)


def test_half_as_many_are_let_through_when_half_of_a_round_takes_more_than_twice_as_long_as_before(
    gate: ConcurrencyLimiter,
) -> None:
    answers(gate, *[0.3] * 8)
    answers(gate, *[0.3] * 3, *[0.7] * 5)
    assert room(gate) == 4


@pytest.mark.parametrize(
    ("before_s", "after_s"),
    [pytest.param(0.3, 0.6, id="twice as long"), pytest.param(0.01, 0.5, id="quick all the same")],
)
def test_answers_may_take_somewhat_longer(gate: ConcurrencyLimiter, before_s: float, after_s: float) -> None:
    answers(gate, *[before_s] * 8, *[after_s] * 8)
    assert room(gate) == 8


def test_answers_that_get_slower_little_by_little_are_noticed_all_the_same(gate: ConcurrencyLimiter) -> None:
    answers(gate, *[1.0] * 8, *[1.9] * 8)
    assert room(gate) == 8
    answers(gate, *[2.1] * 8)
    assert room(gate) == 4


def test_what_failed_at_once_does_not_make_the_answers_look_slow(gate: ConcurrencyLimiter) -> None:
    checks(gate, *[FINE] * 8)
    answers(gate, *[0.6] * 8)
    assert room(gate) == 8


def test_a_few_slow_answers_slow_nobody_down(gate: ConcurrencyLimiter) -> None:
    answers(gate, *[0.1] * 8, *[0.1] * 5, *[8.0] * 3)
    assert room(gate) == 8


def test_a_remote_that_is_slow_from_the_beginning_or_stays_so_is_asked_as_much_as_was_agreed(
    gate: ConcurrencyLimiter,
) -> None:
    answers(gate, *[8.0] * 24)
    assert room(gate) == 8
    answers(gate, *[0.1] * 8, *[8.0] * 8)
    assert room(gate) == 4
    answers(gate, *[8.0] * 4)
    assert room(gate) == 8


def test_a_remote_that_only_gets_slower_is_asked_a_quarter_at_least(gate: ConcurrencyLimiter) -> None:
    for took_s in (0.1, 1, 3, 9, 27):
        answers(gate, *[took_s] * room(gate))
    assert room(gate) == 2


def test_a_remote_that_was_asked_too_much_and_slows_down_is_not_asked_more_for_it(gate: ConcurrencyLimiter) -> None:
    answers(gate, *[0.1] * 8)
    checks(gate, *[OVERLOADED] * (8 + 4 + 2))
    answers(gate, 9.0)
    assert room(gate) == 1


def test_that_a_remote_slows_down_is_told(gate: ConcurrencyLimiter, log: Log) -> None:
    answers(gate, *[0.1] * 8, *[1.0] * 8)
    (line,) = log.lines("concurrency changed")
    assert (line["count"], line["reason"]) == (4, "the checks take more than twice as long as before")


def test_a_remote_that_goes_up_and_down_at_its_limit_is_told_of_once_each_way(
    gate: ConcurrencyLimiter, log: Log
) -> None:
    for _ in range(20):
        checks(gate, *[OVERLOADED] * room(gate))
        checks(gate, *[FINE] * room(gate))
    assert [(line["level"], line["count"], line["reason"]) for line in log.lines("concurrency changed")] == [
        ("WARNING", 4, "more than half of the checks timed out or were turned away"),
        ("WARNING", 8, "the checks succeed again, no slower than before"),
    ]


def test_of_a_remote_that_has_never_been_asked_too_much_nothing_is_told(gate: ConcurrencyLimiter, log: Log) -> None:
    checks(gate, *[FINE] * 100)
    assert log.lines() == []
