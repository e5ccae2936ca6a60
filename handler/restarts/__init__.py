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
    """The answer, the HTTP status or failure behind it, and the seconds that the platform asked to wait."""

    answer: Answer
    reason: Failure
    retry_after_s: float | None = None


class Platform(Protocol):
    """Who restarts a workspace."""

    def restart(self, restart: Restart, deadline: Deadline) -> Reply:
        """Ask once for the owed restart, and wait for the answer by the deadline."""
        ...
