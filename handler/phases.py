"""How a cycle divides its time among its phases."""

from dataclasses import dataclass

from handler.deadline import Deadline

# Phase deadlines, as fractions of the cycle. A phase may also use the time that earlier ones left. They keep a slow
# control plane from using up the time to act.
PROBING_ENDS = 0.75
FLIPPING_ENDS = 0.95
RESTARTS_END = 0.98
# Due restarts have this much time reserved: to ask for eight of them while control plane and platform take 8 s for an
# answer each. But at most this fraction of the cycle.
RESTARTS_RESERVE_SECONDS = 18.0
LONGEST_RESTARTS_RESERVE = 0.4
# The closing writes are short, and happen even if the cycle's time is over.
CLOSING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Phases:
    """The deadline of each phase of a cycle. `closing` ends a little after `whole`."""

    probing: Deadline
    flipping: Deadline
    restarts: Deadline
    whole: Deadline
    closing: Deadline

    @staticmethod
    def of(deadline: Deadline, *, restarts_due: bool) -> "Phases":
        """Divide a cycle's time. With `restarts_due`, enough of it is left to ask for some."""
        whole_s = deadline.remaining()
        reserve_s = min(RESTARTS_RESERVE_SECONDS, LONGEST_RESTARTS_RESERVE * whole_s) if restarts_due else 0.0
        flipping_s = min(FLIPPING_ENDS * whole_s, RESTARTS_END * whole_s - reserve_s)
        return Phases(
            probing=deadline.within(PROBING_ENDS / FLIPPING_ENDS * flipping_s),
            flipping=deadline.within(flipping_s),
            restarts=deadline.within(RESTARTS_END * whole_s),
            whole=deadline,
            closing=deadline.extended(CLOSING_SECONDS),
        )
