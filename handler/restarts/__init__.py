"""Owed restarts: which ones are asked for, when, and how the platform is asked."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from handler.deadline import Deadline
from handler.domain.model import Failure, Restart


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


class Platform(Protocol):
    """The platform, as the restarts need it."""

    def restart(self, restart: Restart, deadline: Deadline) -> Reply:
        """Ask once for an owed restart; return the answer, which is UNCERTAIN if none comes by the deadline."""
        ...
