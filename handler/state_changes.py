"""What a cycle after EC2's events tells their queue and the metrics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from handler.domain.model import Sighting, Verdict
from handler.domain.state_changes import StateChange, latency_s
from handler.flips import FlipResults
from handler.store import Flipped, Selection


@dataclass(frozen=True, slots=True)
class EventResults:
    """What came of EC2's events.

    `unjudged` are the instances that somebody has to look at again: there was no answer, or no time to act.
    `latencies_s` is, for each flip whose event has a usable time, how many seconds after it the flip was committed.
    """

    unjudged: frozenset[str] = frozenset()
    latencies_s: tuple[float, ...] = ()


def event_results(
    changes: Mapping[str, StateChange] | None,
    selection: Selection,
    sightings: Iterable[Sighting],
    flips: FlipResults,
) -> EventResults:
    """Return what came of the events; nothing for a cycle without any."""
    if changes is None:
        return EventResults()
    judged = {one.workspace.id for one in sightings if one.verdict is not Verdict.UNKNOWN} - flips.unjudged
    unjudged = {one.instance_id for one in selection.workspaces if one.id not in judged}
    if not selection.all_selected:
        unjudged |= changes.keys() - {one.instance_id for one in selection.workspaces}
    latencies = (
        latency_s(changes[one.sighting.workspace.instance_id], selection.clock.at(one.at))
        for one in flips.attempts
        if isinstance(one.outcome, Flipped)
    )
    return EventResults(frozenset(unjudged), tuple(one for one in latencies if one is not None))
