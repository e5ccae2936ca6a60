"""How many checks may be in flight: fewer when a remote begins to fail, more again when it recovers."""

import threading
import time
from collections.abc import Callable

from handler.deadline import Deadline
from handler.telemetry import logger

# Between the checks of a remote that fails even when it is asked one thing at a time.
PAUSE_S = 0.05
_LONGEST_WAIT_S = 1.0


class Gate:
    """Lets checks through. When more than half of a round of them fail, half as many are let through.

    A round is as many checks as may be in flight, so that no single bad row slows the others down.
    """

    def __init__(self, most: int, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Let at most `most` checks through at once."""
        self._most = most
        self._allowed = most
        self._in_flight = 0
        self._ended = 0
        self._failed = 0
        self._told: set[bool] = set()
        self._sleep = sleep
        self._changed = threading.Condition()

    def enter(self, deadline: Deadline) -> bool:
        """Wait for a place; return False when the deadline comes first."""
        with self._changed:
            while self._in_flight >= self._allowed and not deadline.over():
                self._changed.wait(min(deadline.remaining(), _LONGEST_WAIT_S))
            if deadline.over():
                return False
            self._in_flight += 1
        return True

    def pause(self, deadline: Deadline) -> None:
        """Wait a moment if the remote fails even when it is asked one thing at a time."""
        if self._allowed == 1 < self._most:
            self._sleep(min(PAUSE_S, deadline.remaining()))

    def leave(self, *, overloaded: bool | None) -> None:
        """Give the place back, and say whether the remote seems overloaded; None: nothing can be said."""
        with self._changed:
            self._in_flight -= 1
            if overloaded is not None:
                self._ended += 1
                self._failed += overloaded
                if self._ended >= self._allowed:
                    self._adapt()
            self._changed.notify_all()

    def _adapt(self) -> None:
        failing = 2 * self._failed > self._ended
        allowed = max(1, self._allowed // 2) if failing else min(self._most, self._allowed * 2)
        if allowed != self._allowed and failing not in self._told:
            self._told.add(failing)  # once each way: a remote at its limit goes up and down all the time
            reason = (
                "more than half of the checks timed out or were turned away" if failing else "the checks succeed again"
            )
            logger.warning("checks in flight changed", count=allowed, reason=reason)
        self._allowed, self._ended, self._failed = allowed, 0, 0
