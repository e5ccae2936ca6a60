"""Owed restarts: which ones are asked for, when, and how the platform is asked."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from handler.deadline import Deadline
from handler.domain.model import Failure


class Answer(StrEnum):
    """What the platform's answer means for the restart."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    BLOCKED = "blocked"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer, the HTTP status or failure behind it, and for how many seconds the platform asks us to wait."""

    answer: Answer
    reason: Failure
    retry_after_s: float | None = None


class Connection(Protocol):
    """A connection to the platform that is ready for one call, so that nothing but sending is left after a claim."""

    def restart(self, workspace_id: str, instance_id: str, deadline: Deadline, *, not_after: float = math.inf) -> Reply:
        """Ask for a restart; return the answer, which is UNCERTAIN if none comes by the deadline.

        Nothing is sent later than `not_after`, by the deadline's clock: not even the same request with a new token,
        after the platform refused the old one. REFUSED without an HTTP status: nothing was sent.
        """
        ...

    def close(self) -> None:
        """Close the connection, used or not."""
        ...


class Platform(Protocol):
    """The platform, as the restarts need it. Safe to use from several threads."""

    def connect(self, deadline: Deadline) -> Connection | Reply:
        """Connect by the deadline, TLS included; return how that failed (REFUSED: nothing was sent) if it did."""
        ...
