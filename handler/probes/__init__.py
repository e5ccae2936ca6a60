"""Sources of truth about instances: each takes candidates and yields what it learns of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from handler.deadline import Deadline
from handler.domain.model import Sighting, Workspace


class Probe(Protocol):
    """Where the state of instances is asked for."""

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """Yield at most one sighting for each workspace, in any order, and end by the deadline.

        A workspace without a sighting was not reached. If the deadline cuts a check off that had at least
        `fair_share` of time, the workspace counts as reached and is UNKNOWN.
        """
        ...


def fair_share(timeout_s: float, deadline: Deadline) -> float:
    """Return how many seconds a check must have had to count, although the deadline cut it off.

    It is the smaller of the check's timeout and half of the time there is. So a row that hangs counts, and the cursor
    passes it, while a row whose check began too late does not.
    """
    return min(timeout_s, deadline.remaining() / 2)
