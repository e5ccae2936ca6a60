"""What a flip or a restart rests on: two answers, of which the second must be a few seconds old at most. Pure."""

from dataclasses import dataclass

from handler.domain.model import Sighting

# A machine may be started again at any time. An answer that is older than this proves nothing any more.
EVIDENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DatabaseClock:
    """The database's clock by ours: it showed `shown_s` (seconds since 1970) when ours showed `at_s` or a bit earlier.

    So `at` is never later than the truth. If this process was frozen since, its clock may have stood still, and `at` is
    too early by as much. Evidence then seems older than it is.
    """

    shown_s: float
    at_s: float

    def at(self, moment_s: float) -> float:
        """Return the database's time at a moment of our clock."""
        return self.shown_s + (moment_s - self.at_s)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A dead instance that was seen twice, by `first` in the cycle's sweep and by `second` right before acting."""

    first: Sighting
    second: Sighting

    @property
    def expires_at(self) -> float:
        """When the evidence expires, by the clock of the deadlines."""
        return expiry(self.second)


def expiry(sighting: Sighting) -> float:
    """Return when a sighting stops being evidence, by the clock of the deadlines."""
    return sighting.answered_at + EVIDENCE_SECONDS
