"""Runs calls to a remote in parallel, a few at a time, until a deadline."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from handler.deadline import Deadline

# A result that came in time may take this much longer to be handed over.
HANDOVER_SECONDS = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterator[Item], deadline: Deadline, *, at_once: int
) -> Iterator[Result]:
    """Yield what `work` returns for each item, in any order, until the deadline. Raises what `work` raises.

    At most `at_once` calls run at a time, and an item is taken only when there is room for it. `work` must end by the
    deadline on its own. A call that is late all the same is left behind.
    """
    pool = ThreadPoolExecutor(at_once)
    under_way: set[Future[Result]] = set()
    try:
        while True:
            room = 0 if deadline.over() else at_once - len(under_way)
            under_way |= {pool.submit(work, item) for item in islice(items, room)}
            ended, under_way = wait(under_way, deadline.remaining() + HANDOVER_SECONDS, FIRST_COMPLETED)
            if not ended:
                return
            yield from (future.result() for future in ended)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
