"""What a cycle remembers of the workspaces that are neither alive nor flipped, and what it forgets. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from handler.domain.model import FOUND, LOOKS_DEAD, Sighting, Verdict, Workspace

# A doubt is written when it is new, and then only this often, in seconds: a control plane that is down must not cost a
# write for each row in every cycle.
REFRESH_SECONDS = 600.0
# More unknowns than this with one cause are one doubt, about the source.
MOST_OF_ONE_CAUSE = 1000
# Absences that were seen further apart than this are not added up.
ABSENCES_ADD_UP_SECONDS = 3600.0
# Why an absence is no sighting of one.
NOTHING_FOUND = "nothing_found"


@dataclass(frozen=True, slots=True)
class Known:
    """A doubt of earlier cycles: about which instance, how often it was seen, how many seconds ago first and last."""

    instance_id: str
    sightings: int
    age_s: float
    seen_s: float


# By workspace id and kind. The kind of a doubt is a verdict: dead, absent, transition or unknown.
KnownDoubts = Mapping[tuple[str, Verdict], Known]


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is to be remembered of a workspace, and why, as text for the log.

    `counts`: it is one more sighting. `by_hand`: an event with "adopt" asks to remember it.
    """

    workspace: Workspace
    kind: Verdict
    reason: str
    counts: bool = True
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class DoubtChanges:
    """What a cycle writes about doubts: `new` first, then `again`.

    Those `alive` lose all their doubts. Those `found` in any other state were not absent after all, so their sightings
    of absence count no more. `sources` has the causes of very many unknowns, and how many; None: as they were.
    """

    new: tuple[Doubt, ...]
    again: tuple[Doubt, ...]
    alive: tuple[str, ...]
    found: tuple[str, ...]
    sources: Mapping[str, int] | None


def absences(known: KnownDoubts, workspace: Workspace) -> Known:
    """Return how often and how long the instance that the workspace records was absent so far; zeros if never."""
    earlier = known.get((workspace.id, Verdict.ABSENT))
    if earlier is None or not earlier.sightings:
        return Known(workspace.instance_id, 0, 0.0, 0.0)
    if earlier.instance_id != workspace.instance_id or earlier.seen_s > ABSENCES_ADD_UP_SECONDS:
        return Known(workspace.instance_id, 0, 0.0, 0.0)
    return earlier


def doubt_changes(
    sightings: Iterable[Sighting], known: KnownDoubts, *, absence_counts: bool, full: bool, by_hand: bool = False
) -> DoubtChanges:
    """Return what to write about the first sightings of a cycle.

    `absence_counts` tells whether "not found" proves anything in this cycle. A narrowed cycle (not `full`) counts no
    absence, and says nothing about sources. An event `by_hand` has offline rows remembered, too.
    """
    seen = list(sightings)
    doubts = [
        doubt
        for one in seen
        if (doubt := _doubt(one, absence_counts=absence_counts, full=full, by_hand=by_hand)) is not None
    ]
    causes = Counter(doubt.reason for doubt in doubts if doubt.kind is Verdict.UNKNOWN)
    sources = {cause: count for cause, count in causes.items() if count > MOST_OF_ONE_CAUSE} if full else {}
    new: list[Doubt] = []
    again: list[Doubt] = []
    for doubt in doubts:
        earlier = known.get((doubt.workspace.id, doubt.kind))
        if doubt.kind is Verdict.UNKNOWN and doubt.reason in sources:
            continue
        if earlier is None or earlier.instance_id != doubt.workspace.instance_id:
            if doubt.counts or doubt.by_hand:
                new.append(doubt)
        elif doubt.by_hand or (doubt.counts and (doubt.kind is Verdict.ABSENT or earlier.seen_s >= REFRESH_SECONDS)):
            again.append(doubt)
    for written in (new, again):
        written.sort(key=lambda doubt: doubt.kind not in LOOKS_DEAD)
    doubted = {workspace_id for workspace_id, _ in known}
    return DoubtChanges(
        tuple(new),
        tuple(again),
        alive=tuple(one.workspace.id for one in seen if one.verdict is Verdict.RUNNING and one.workspace.id in doubted),
        found=tuple(one.workspace.id for one in seen if _was_not_absent(one, known)),
        sources=sources if full else None,
    )


def _doubt(sighting: Sighting, *, absence_counts: bool, full: bool, by_hand: bool) -> Doubt | None:
    workspace, verdict = sighting.workspace, sighting.verdict
    if verdict is Verdict.RUNNING:
        return None
    if verdict is Verdict.ABSENT and not absence_counts:
        return Doubt(workspace, Verdict.UNKNOWN, NOTHING_FOUND)
    return Doubt(
        workspace,
        verdict,
        sighting.words,
        counts=full or verdict is not Verdict.ABSENT,
        by_hand=by_hand and verdict in LOOKS_DEAD and workspace.offline,
    )


def _was_not_absent(sighting: Sighting, known: KnownDoubts) -> bool:
    earlier = known.get((sighting.workspace.id, Verdict.ABSENT))
    return sighting.verdict in FOUND and earlier is not None and earlier.sightings > 0
