"""Plays Lambda's event source mapping: takes messages from the queue, invokes the handler, deletes what it has judged.

https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from sandbox.queue import StateChangeQueue

BATCH = 100
WINDOW_S = 2.0
CONCURRENCY = 2

_POLL_S = 1
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch that was handed to the handler: its records, those of them that stay in the queue, and any error."""

    records: list[dict[str, Any]]
    kept: list[dict[str, Any]]
    error: Exception | None


class EventSourceMapping:
    """Hands the queue's messages to `invoke`, which gets Lambda's event and returns the handler's answer or raises.

    `deliver` hands over one batch. From `with` to its end, as many threads as `concurrency` do so. `deliveries` is what
    came of it.
    """

    def __init__(
        self,
        queue: StateChangeQueue,
        invoke: Callable[[dict[str, Any]], Any],
        *,
        batch: int = BATCH,
        window_s: float = WINDOW_S,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self._queue = queue
        self._invoke = invoke
        self._batch = batch
        self._window_s = window_s
        self._stopping = threading.Event()
        self._delivered = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._poll) for _ in range(concurrency)]
        self.deliveries: list[Delivery] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def deliver(self, *, wait_s: int = 0) -> Delivery | None:
        """Gather a batch, hand it over, and delete what the handler did not return. None if no message came."""
        records = self._gathered(wait_s)
        if not records:
            return None
        ids = {one["messageId"] for one in records}
        try:
            failed, error = _failed(self._invoke({"Records": records}), ids), None
        except Exception as raised:  # noqa: BLE001 - whatever the handler raises
            failed, error = ids, raised
        kept = [one for one in records if one["messageId"] in failed]
        self._queue.delete(one for one in records if one["messageId"] not in failed)
        delivery = Delivery(records, kept, error)
        self.deliveries.append(delivery)
        self._delivered.release()
        return delivery

    def wait(self, timeout_s: float = 30.0) -> None:
        """Wait until one more batch has been handed over than was waited for before. Raises TimeoutError."""
        if not self._delivered.acquire(timeout=timeout_s):
            raise TimeoutError(f"no batch was handed over within {timeout_s:g} s")

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self.deliver(wait_s=_POLL_S)

    def _gathered(self, wait_s: int) -> list[dict[str, Any]]:
        """Return a full batch, or what has come when the window closes, which the first message opens."""
        records = self._queue.receive(self._batch, wait_s=wait_s)
        closes_at = time.monotonic() + self._window_s
        while records and len(records) < self._batch and time.monotonic() < closes_at:
            more = self._queue.receive(self._batch - len(records))
            records += more
            if not more:
                self._stopping.wait(_PAUSE_S)
        return records


def _failed(answer: Any, ids: set[str]) -> set[str]:
    """Return the ids of the messages that an answer names. One that makes no sense names all, as Lambda has it."""
    if not isinstance(answer, Mapping) or not answer.get("batchItemFailures"):
        return set()
    failures = answer["batchItemFailures"]
    if not isinstance(failures, list) or not all(isinstance(one, Mapping) for one in failures):
        return ids
    named = {one.get("itemIdentifier") for one in failures}
    return named if named.issubset(ids) else ids
