"""What runs in parallel, and what it is gathered into."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from handler import parallel
from handler.deadline import Deadline


def test_what_has_waited_to_be_taken_does_not_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be evidence, which has grown old while earlier items were written."""
    now = [0.0]
    monkeypatch.setattr(parallel, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + now[0]))
    third_is_there, third_is_taken = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        third_is_there.set()
        third_is_taken.wait(1.0)
        yield 4

    lists = parallel.gathered(items(), Deadline(3600), most=2, longest_s=60.0)
    assert next(lists) == [1, 2]
    third_is_there.wait()
    now[0] = 60.0
    assert next(lists) == [3]
    third_is_taken.set()
    assert list(lists) == [[4]]
