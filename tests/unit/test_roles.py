"""The clients of assumed roles: kept from cycle to cycle, renewed early, failed for one cycle at most."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from handler.net.roles import RENEWED_EARLY_SECONDS, Assumed, RoleClient, RoleError
from tests.unit.builders import Clock

HOUR, CYCLE = 3600.0, 45.0


class Sts:
    """Gives a new client for each call, or raises."""

    def __init__(self, clock: Clock, lasts_s: float = HOUR) -> None:
        self.clock, self.lasts_s = clock, lasts_s
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self) -> Assumed:
        self.calls += 1
        if self.error is not None:
            raise self.error
        client: Any = f"client {self.calls}"
        return Assumed(client, self.clock() + self.lasts_s)


@pytest.fixture
def sts() -> Sts:
    return Sts(Clock())


@pytest.fixture
def cycle(sts: Sts) -> Callable[[], Any]:
    """Return what begins a new cycle."""
    role = RoleClient(sts, clock=sts.clock)
    return lambda: role.for_cycle(CYCLE)


def test_a_role_is_assumed_when_it_is_first_needed_and_kept_from_cycle_to_cycle(sts: Sts, cycle: Any) -> None:
    cycle()
    assert sts.calls == 0
    assert [cycle()() for _ in range(3)] == ["client 1"] * 3


def test_it_is_assumed_anew_ten_minutes_before_it_expires(sts: Sts, cycle: Any) -> None:
    assert cycle()() == "client 1"
    sts.clock.now += HOUR - RENEWED_EARLY_SECONDS - 1
    assert cycle()() == "client 1"
    sts.clock.now += 1
    assert cycle()() == "client 2"
    assert RENEWED_EARLY_SECONDS == 600


def test_what_a_cycle_has_got_is_renewed_when_it_is_refused_and_not_before(sts: Sts, cycle: Any) -> None:
    now = cycle()
    first = now()
    sts.clock.now += HOUR
    assert now() == first == "client 1"
    assert now.renew(first)
    assert now() == "client 2"


def test_credentials_that_do_not_last_ten_minutes_are_good_for_the_cycle_that_got_them(sts: Sts, cycle: Any) -> None:
    sts.lasts_s = RENEWED_EARLY_SECONDS - 1
    now = cycle()
    assert [now() for _ in range(3)] == ["client 1"] * 3
    assert cycle()() == "client 2"


def test_a_role_that_cannot_be_assumed_is_asked_for_once_a_cycle(sts: Sts, cycle: Any) -> None:
    sts.error = ValueError("denied")
    now = cycle()
    for _ in range(3):
        with pytest.raises(RoleError) as failure:
            now()
        assert failure.value.cause is sts.error
    assert sts.calls == 1
    sts.error = None
    with pytest.raises(RoleError):
        now()
    assert cycle()() == "client 2"


def test_a_failed_renewal_costs_nothing_while_the_old_credentials_outlast_the_cycle(sts: Sts, cycle: Any) -> None:
    cycle()()
    sts.error = ValueError("denied")
    sts.clock.now += HOUR - RENEWED_EARLY_SECONDS
    now = cycle()
    assert [now() for _ in range(3)] == ["client 1"] * 3
    assert sts.calls == 2
    sts.clock.now += RENEWED_EARLY_SECONDS - CYCLE
    with pytest.raises(RoleError):
        cycle()()


def test_refused_credentials_are_renewed_once_in_a_cycle(cycle: Any) -> None:
    now = cycle()
    first = now()
    assert now.renew(first)
    assert now.renew(first)  # another thread's call with the same ones
    second = now()
    assert (first, second) == ("client 1", "client 2")
    assert not now.renew(second)
    assert cycle()() == second
    assert cycle().renew(second)


def test_calls_at_once_assume_the_role_once() -> None:
    clock, begun, end = Clock(), threading.Event(), threading.Event()
    sts = Sts(clock)

    def slow() -> Assumed:
        begun.set()
        assert end.wait(10)
        return sts()

    now = RoleClient(slow, clock=clock).for_cycle(CYCLE)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(now())) for _ in range(4)]
    for one in threads:
        one.start()
    assert begun.wait(10)
    end.set()
    for one in threads:
        one.join()
    assert got == ["client 1"] * 4
