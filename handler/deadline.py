"""One time budget, passed down: every timeout is a part of what is left of it."""

import time
from collections.abc import Callable


class Deadline:
    """A moment on a monotonic clock after which nothing may begin.

    A part of it, made by `within`, never lasts longer. Once closed, a deadline and all its parts are over. So a thread
    that comes back late finds its time over, even if the process was frozen and its clock stood still.
    """

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        parent: "Deadline | None" = None,
    ) -> None:
        """Start a budget of `seconds`, counted from now by `clock` (in seconds)."""
        self._clock = clock
        self._parent = parent
        self._ends_at = clock() + seconds

    def now(self) -> float:
        """Return the time by this deadline's clock, in seconds."""
        return self._clock()

    def remaining(self) -> float:
        """Return the seconds that are left; 0.0 when it is over."""
        left = max(0.0, self._ends_at - self._clock())
        return left if self._parent is None else min(left, self._parent.remaining())

    def over(self) -> bool:
        """Tell whether no time is left."""
        return self.remaining() <= 0.0

    def within(self, seconds: float) -> "Deadline":
        """Return a part of this budget: `seconds` from now, or what is left if that is less."""
        return Deadline(seconds, clock=self._clock, parent=self)

    def extended(self, seconds: float) -> "Deadline":
        """Return an independent deadline that ends `seconds` after this one."""
        return Deadline(self.remaining() + seconds, clock=self._clock)

    def shorten(self, seconds: float) -> None:
        """End this deadline in `seconds` from now, unless it ends sooner anyway."""
        self._ends_at = min(self._ends_at, self._clock() + seconds)

    def close(self) -> None:
        """End this deadline and all its parts now."""
        self._ends_at = float("-inf")
