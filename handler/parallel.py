"""Runs calls to a remote in parallel, a few at a time, until a deadline; and gathers what comes in, without delay."""

import queue
import threading
import time
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


def gathered(
    items: Iterator[Item], deadline: Deadline, *, most: int, longest_s: float, leave_s: float = 0.0
) -> Iterator[list[Item]]:
    """Yield the items in lists: up to `most` of those that come within `longest_s` seconds of a list's first one.

    These seconds count from the first item's arrival, even if it is taken later. No list waits for more items in the
    last `leave_s` seconds before the deadline, which are for using them. The last list comes by the deadline. Raises
    what `items` raises.
    """
    arrived: _Arrived[Item] = queue.SimpleQueue()

    def take() -> None:
        end = _End()
        try:
            for item in items:
                arrived.put((time.monotonic(), item))
        except BaseException as error:  # noqa: BLE001 - it is raised where the items are used
            end = _End(error)
        arrived.put((time.monotonic(), end))

    threading.Thread(target=take, daemon=True).start()
    end: _End | None = None
    while end is None:
        together, end = _those_in_time(arrived, deadline, most, longest_s, leave_s)
        if together:
            yield together
    if end.error is not None:
        raise end.error


def _those_in_time(
    arrived: "_Arrived[Item]", deadline: Deadline, most: int, longest_s: float, leave_s: float
) -> "tuple[list[Item], _End | None]":
    """Return the next list, and the end, if nothing more is to be waited for."""
    together: list[Item] = []
    wait_until = time.monotonic() + deadline.remaining() + HANDOVER_SECONDS
    while len(together) < most:
        try:
            arrived_at, item = arrived.get(timeout=max(0.0, wait_until - time.monotonic()))
        except queue.Empty:
            return together, None if together and not deadline.over() else _End()
        if isinstance(item, _End):
            return together, item
        if not together:
            wait_until = min(wait_until - leave_s, arrived_at + longest_s)
        together.append(item)
    return together, None


class _End:
    """The end of the items, and the error that ended them."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


# Each item with the time of its arrival.
_Arrived = queue.SimpleQueue[tuple[float, Item | _End]]
