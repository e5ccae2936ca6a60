"""Sources of truth about instances: each takes candidates and yields what it learns of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from handler.deadline import Deadline
from handler.model import Sighting, Workspace


class Probe(Protocol):
    """Where an instance's state is asked for."""

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """Yield at most one sighting for each workspace, in any order, and end by the deadline.

        A workspace without a sighting was not reached. One whose check the deadline cut off counts
        as reached, and is UNKNOWN, if the check had at least `fair_share` of time.
        """
        ...


def fair_share(timeout_s: float, deadline: Deadline) -> float:
    """Return how many seconds a check must have had to count as one, though the deadline cut it.

    The smaller of its timeout and half of the time there is: so a hanging row is counted, and
    passed over, while one that was only begun too late is not.
    """
    return min(timeout_s, deadline.remaining() / 2)
