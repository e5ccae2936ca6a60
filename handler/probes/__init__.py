"""Sources of truth about instances: each takes candidates and yields what it learns about them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from handler.deadline import Deadline
from handler.domain.model import Failure, Sighting, Workspace


@dataclass(frozen=True, slots=True)
class TargetTroubles:
    """The Regions and accounts that gave no answer, and why; and those in which no candidate's instance was found."""

    failed: Mapping[str, Failure] = field(default_factory=dict)
    empty: Sequence[str] = ()


class Probe(Protocol):
    """A source of truth for the states of instances."""

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """Yield at most one sighting for each workspace, in any order, and end by the deadline.

        Each says when its answer arrived, by the deadline's clock.
        A workspace without a sighting was not reached. If the deadline cuts off a check that had at least its
        `fair_share` of time, the workspace counts as reached and is UNKNOWN.
        """
        ...

    def impaired(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Callable[[], int]:
        """Begin to ask which instances run but fail EC2's system status check, while the caller goes on.

        Return a function that returns, within a second, how many of the workspaces' do; 0 if there is no answer.
        """
        ...

    def troubles(self) -> TargetTroubles:
        """Tell which targets have failed so far, or are empty though they should not be."""
        ...


def fair_share(timeout_s: float, deadline: Deadline) -> float:
    """Return how many seconds a check must have had to count as reached, even though the deadline cut it off.

    That is the check's timeout or half of the time left, whichever is shorter. So a row that hangs counts, and the
    cursor passes it. A row whose check began too late does not count.
    """
    return min(timeout_s, deadline.remaining() / 2)
