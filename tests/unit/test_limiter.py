"""How many checks may be in flight."""

import threading

import pytest

from handler.deadline import Deadline
from handler.probes.control_plane.limiter import PAUSE_S, ConcurrencyLimiter
from tests.unit.builders import Clock, Log

OVER = Deadline(0, clock=Clock())
OVERLOADED, FINE = True, False


def room(limiter: ConcurrencyLimiter) -> int:
    """Return how many checks the limiter lets through at once."""
    soon = Deadline(100, clock=Clock())
    entered = 0
    while limiter._in_flight < limiter._allowed:  # noqa: SLF001 - a full limiter makes everybody wait
        assert limiter.enter(soon)
        entered += 1
    for _ in range(entered):
        limiter.leave(overloaded=None)
    return entered


def checks(limiter: ConcurrencyLimiter, *overloaded: bool) -> None:
    for one in overloaded:
        deadline = Deadline(100, clock=Clock())
        assert limiter.enter(deadline)
        limiter.pause(deadline)
        limiter.leave(overloaded=one)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> ConcurrencyLimiter:
    return ConcurrencyLimiter(8, sleep=clock.sleep)


def test_at_first_all_checks_are_let_through(limiter: ConcurrencyLimiter) -> None:
    assert room(limiter) == 8


def test_no_check_is_let_through_after_the_deadline(limiter: ConcurrencyLimiter) -> None:
    assert not limiter.enter(OVER)
    assert room(limiter) == 8


def test_no_check_waits_past_the_deadline() -> None:
    limiter = ConcurrencyLimiter(1)
    assert limiter.enter(Deadline(100, clock=Clock()))
    assert not limiter.enter(OVER)


def test_a_waiting_check_is_let_through_when_another_ends() -> None:
    limiter, entered = ConcurrencyLimiter(1), threading.Event()
    assert limiter.enter(Deadline(100))

    def wait() -> None:
        if limiter.enter(Deadline(100)):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not entered.is_set()
    limiter.leave(overloaded=False)
    assert entered.wait(10)
    waiting.join()


def test_a_failed_round_halves_the_concurrency(limiter: ConcurrencyLimiter) -> None:
    checks(limiter, *[OVERLOADED] * 5, *[FINE] * 3)
    assert room(limiter) == 4
    checks(limiter, *[OVERLOADED] * 3, *[FINE])
    assert room(limiter) == 2


def test_a_round_may_fail_by_half(limiter: ConcurrencyLimiter) -> None:
    checks(limiter, *[OVERLOADED] * 4, *[FINE] * 4)
    assert room(limiter) == 8


def test_a_round_is_judged_at_its_end(limiter: ConcurrencyLimiter) -> None:
    checks(limiter, *[OVERLOADED] * 7)
    assert room(limiter) == 8


def test_half_of_three_is_one(clock: Clock) -> None:
    limiter = ConcurrencyLimiter(3, sleep=clock.sleep)
    checks(limiter, *[OVERLOADED] * 3)
    assert room(limiter) == 1


def test_one_check_is_always_let_through(limiter: ConcurrencyLimiter) -> None:
    checks(limiter, *[OVERLOADED] * 100)
    assert room(limiter) == 1


def test_a_good_round_doubles_the_concurrency_up_to_the_most(limiter: ConcurrencyLimiter) -> None:
    checks(limiter, *[OVERLOADED] * 100)
    widths = []
    for _ in range(5):
        checks(limiter, *[FINE] * room(limiter))
        widths.append(room(limiter))
    assert widths == [2, 4, 8, 8, 8]


def test_a_check_that_tells_nothing_does_not_count(limiter: ConcurrencyLimiter) -> None:
    for _ in range(100):
        limiter.enter(Deadline(100, clock=Clock()))
        limiter.leave(overloaded=None)
    assert room(limiter) == 8


def test_a_remote_that_fails_one_by_one_gets_pauses(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    checks(limiter, *[OVERLOADED] * (8 + 4 + 2))
    assert clock.slept == []
    checks(limiter, *[OVERLOADED])
    assert clock.slept == [PAUSE_S]


def test_a_pause_ends_at_the_deadline(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    checks(limiter, *[OVERLOADED] * 14)
    limiter.pause(Deadline(0.01, clock=clock))
    assert clock.slept == [pytest.approx(0.01)]


def test_a_concurrency_of_one_needs_no_pauses(clock: Clock) -> None:
    checks(ConcurrencyLimiter(1, sleep=clock.sleep), *[OVERLOADED] * 10)
    assert clock.slept == []


def test_entering_needs_no_pause(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    checks(limiter, *[OVERLOADED] * 14)
    assert limiter.enter(Deadline(100, clock=clock))
    assert clock.slept == []


def answers(limiter: ConcurrencyLimiter, *took_s: float) -> None:
    for one in took_s:
        assert limiter.enter(Deadline(100, clock=Clock()))
        limiter.leave(overloaded=False, took_s=one)


def test_a_round_twice_as_slow_halves_the_concurrency(
    limiter: ConcurrencyLimiter,
) -> None:
    answers(limiter, *[0.3] * 8)
    answers(limiter, *[0.3] * 3, *[0.7] * 5)
    assert room(limiter) == 4


@pytest.mark.parametrize(
    ("before_s", "after_s"),
    [pytest.param(0.3, 0.6, id="twice as long"), pytest.param(0.01, 0.5, id="quick all the same")],
)
def test_answers_may_take_somewhat_longer(limiter: ConcurrencyLimiter, before_s: float, after_s: float) -> None:
    answers(limiter, *[before_s] * 8, *[after_s] * 8)
    assert room(limiter) == 8


def test_answers_that_get_slower_little_by_little_are_noticed(limiter: ConcurrencyLimiter) -> None:
    answers(limiter, *[1.0] * 8, *[1.9] * 8)
    assert room(limiter) == 8
    answers(limiter, *[2.1] * 8)
    assert room(limiter) == 4


def test_quick_failures_do_not_make_answers_look_slow(limiter: ConcurrencyLimiter) -> None:
    checks(limiter, *[FINE] * 8)
    answers(limiter, *[0.6] * 8)
    assert room(limiter) == 8


def test_a_few_slow_answers_change_nothing(limiter: ConcurrencyLimiter) -> None:
    answers(limiter, *[0.1] * 8, *[0.1] * 5, *[8.0] * 3)
    assert room(limiter) == 8


def test_a_remote_that_is_always_slow_gets_all_checks(
    limiter: ConcurrencyLimiter,
) -> None:
    answers(limiter, *[8.0] * 24)
    assert room(limiter) == 8
    answers(limiter, *[0.1] * 8, *[8.0] * 8)
    assert room(limiter) == 4
    answers(limiter, *[8.0] * 4)
    assert room(limiter) == 8


def test_a_remote_that_only_gets_slower_keeps_a_quarter(limiter: ConcurrencyLimiter) -> None:
    for took_s in (0.1, 1, 3, 9, 27):
        answers(limiter, *[took_s] * room(limiter))
    assert room(limiter) == 2


def test_a_slow_round_never_raises_the_concurrency(limiter: ConcurrencyLimiter) -> None:
    answers(limiter, *[0.1] * 8)
    checks(limiter, *[OVERLOADED] * (8 + 4 + 2))
    answers(limiter, 9.0)
    assert room(limiter) == 1


def test_slower_answers_are_logged(limiter: ConcurrencyLimiter, log: Log) -> None:
    answers(limiter, *[0.1] * 8, *[1.0] * 8)
    (line,) = log.lines("concurrency changed")
    assert (line["count"], line["reason"]) == (4, "the checks take more than twice as long as before")


def test_each_reason_is_logged_once(limiter: ConcurrencyLimiter, log: Log) -> None:
    for _ in range(20):
        checks(limiter, *[OVERLOADED] * room(limiter))
        checks(limiter, *[FINE] * room(limiter))
    assert [(line["level"], line["count"], line["reason"]) for line in log.lines("concurrency changed")] == [
        ("WARNING", 4, "more than half of the checks timed out or were turned away"),
        ("WARNING", 8, "the checks succeed again, no slower than before"),
    ]


def test_a_good_remote_is_not_logged(limiter: ConcurrencyLimiter, log: Log) -> None:
    checks(limiter, *[FINE] * 100)
    assert log.lines() == []
