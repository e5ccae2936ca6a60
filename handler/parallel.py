"""Calls to a remote, a few at once, none past the deadline."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from handler.deadline import Deadline

# How long after the deadline an answer that came in time may still take to be handed over.
_GRACE_S = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterator[Item], deadline: Deadline, *, at_once: int
) -> Iterator[Result]:
    """Yield what `work` returns for each item, in any order, at most `at_once` at a time, until the deadline.

    An item is taken when there is room for it, not before. Work that has begun must end by the deadline on its own. A
    name lookup obeys no timeout: it is left behind.
    """
    pool = ThreadPoolExecutor(at_once)
    under_way: set[Future[Result]] = set()
    try:
        while True:
            room = 0 if deadline.over() else at_once - len(under_way)
            under_way |= {pool.submit(work, item) for item in islice(items, room)}
            ended, under_way = wait(under_way, deadline.remaining() + _GRACE_S, FIRST_COMPLETED)
            if not ended:
                return
            yield from (future.result() for future in ended)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
