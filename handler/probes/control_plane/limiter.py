"""How many checks may be in flight: fewer when a remote begins to fail or slows down, more when it recovers."""

import statistics
import threading
import time
from collections.abc import Callable

from handler.deadline import Deadline
from handler.telemetry import logger

# Between two checks, while the remote fails even with one at a time.
PAUSE_S = 0.05
# Answers are slow if they take SLOWER times as long as usual, and longer than QUICK_S.
SLOWER = 2.0
QUICK_S = 0.5
# A remote that is only slow gets at least this share of all checks: it may be slow for other reasons.
LEAST_SHARE = 0.25
_LONGEST_WAIT_S = 1.0

_FAILING = "more than half of the checks timed out or were turned away"
_SLOWING = "the checks take more than twice as long as before"
_RECOVERED = "the checks succeed again, no slower than before"


class ConcurrencyLimiter:
    """Limits the checks in flight. After a round that fails or is slow, it allows half as many.

    A round is as many checks as may be in flight. It fails if more than half of its checks fail. Its time is the median
    of theirs, so that no single bad row slows the others down.
    """

    def __init__(self, most: int, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Allow at most `most` checks at once. `sleep` takes seconds."""
        self._most = most
        self._allowed = most
        self._in_flight = 0
        self._ended = 0
        self._failed = 0
        self._took_s: list[float] = []
        self._usual_s: float | None = None
        self._logged: set[str] = set()
        self._sleep = sleep
        self._changed = threading.Condition()

    def enter(self, deadline: Deadline) -> bool:
        """Wait until a check may begin; return False if the deadline comes first."""
        with self._changed:
            while self._in_flight >= self._allowed and not deadline.over():
                self._changed.wait(min(deadline.remaining(), _LONGEST_WAIT_S))
            if deadline.over():
                return False
            self._in_flight += 1
        return True

    def pause(self, deadline: Deadline) -> None:
        """Wait a moment if the remote fails even when it gets one check at a time."""
        if self._allowed == 1 < self._most:
            self._sleep(min(PAUSE_S, deadline.remaining()))

    def leave(self, *, overloaded: bool | None, took_s: float = 0.0) -> None:
        """End a check, and say whether the remote seems overloaded; None if the check does not tell.

        `took_s` is how many seconds the answer took; 0 if there was none.
        """
        with self._changed:
            self._in_flight -= 1
            if overloaded is not None:
                self._ended += 1
                self._failed += overloaded
                self._took_s += [took_s] if took_s else []
                if self._ended >= self._allowed:
                    self._adapt()
            self._changed.notify_all()

    def _adapt(self) -> None:
        half, double = max(1, self._allowed // 2), min(self._most, self._allowed * 2)
        if 2 * self._failed > self._ended:
            self._allow(half, _FAILING)
        elif self._took_s and self._slows_down(statistics.median(self._took_s)):
            self._allow(min(self._allowed, max(half, int(self._most * LEAST_SHARE))), _SLOWING)
        else:
            self._allow(double, _RECOVERED)
        self._ended, self._failed, self._took_s = 0, 0, []

    def _slows_down(self, took_s: float) -> bool:
        """Tell whether the median took much longer than usual. If it stays that slow, that becomes the usual."""
        slower = self._usual_s is not None and took_s > max(QUICK_S, SLOWER * self._usual_s)
        self._usual_s = took_s if slower or self._usual_s is None else min(self._usual_s, took_s)
        return slower

    def _allow(self, allowed: int, reason: str) -> None:
        if allowed != self._allowed and reason not in self._logged:
            self._logged.add(reason)  # once each: at a remote's limit, concurrency goes up and down all the time
            logger.warning("concurrency changed", count=allowed, reason=reason)
        self._allowed = allowed
