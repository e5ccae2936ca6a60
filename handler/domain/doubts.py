"""What a cycle remembers of the workspaces that are neither alive nor flipped, and what it forgets. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from handler.domain.model import FOUND, Sighting, Verdict, Workspace

# A doubt is written when it is new. Then only this often, in seconds: a control plane that is down must not cost a write
# for each row in every cycle.
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
    """What is to be remembered of a workspace, and why, as text for the log. An absence that was counted `adds_up`."""

    workspace: Workspace
    kind: Verdict
    reason: str


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
    if earlier is None or earlier.instance_id != workspace.instance_id or earlier.seen_s > ABSENCES_ADD_UP_SECONDS:
        return Known(workspace.instance_id, 0, 0.0, 0.0)
    return earlier if earlier.sightings else Known(workspace.instance_id, 0, 0.0, 0.0)


def doubt_changes(
    sightings: Iterable[Sighting], known: KnownDoubts, *, absence_counts: bool, full: bool, by_hand: bool = False
) -> DoubtChanges:
    """Return what to write about the first sightings of a cycle.

    `absence_counts` tells whether "not found" proves anything in this cycle. A narrowed cycle (not `full`) counts no
    absence, and says nothing about sources. An event `by_hand` has absences remembered, once.
    """
    new: list[Doubt] = []
    again: list[Doubt] = []
    seen = list(sightings)
    doubts = [doubt for one in seen if (doubt := _doubt(one, absence_counts=absence_counts)) is not None]
    causes = Counter(doubt.reason for doubt in doubts if doubt.kind is Verdict.UNKNOWN)
    sources = {cause: count for cause, count in causes.items() if count > MOST_OF_ONE_CAUSE} if full else {}
    for doubt in doubts:
        if doubt.kind is Verdict.UNKNOWN and doubt.reason in sources:
            continue
        earlier = known.get((doubt.workspace.id, doubt.kind))
        is_new = earlier is None or earlier.instance_id != doubt.workspace.instance_id
        if doubt.kind is Verdict.ABSENT and not full and not (by_hand and is_new):
            continue
        if is_new:
            new.append(doubt)
        elif doubt.kind is Verdict.ABSENT or (earlier is not None and earlier.seen_s >= REFRESH_SECONDS):
            again.append(doubt)
    looks_gone = (Verdict.DEAD, Verdict.ABSENT)
    new.sort(key=lambda doubt: doubt.kind not in looks_gone)
    again.sort(key=lambda doubt: doubt.kind not in looks_gone)
    doubted = {workspace_id for workspace_id, _ in known}
    return DoubtChanges(
        tuple(new),
        tuple(again),
        alive=tuple(one.workspace.id for one in seen if one.verdict is Verdict.RUNNING and one.workspace.id in doubted),
        found=tuple(one.workspace.id for one in seen if _was_not_absent(one, known)),
        sources=sources if full else None,
    )


def _doubt(sighting: Sighting, *, absence_counts: bool) -> Doubt | None:
    if sighting.verdict is Verdict.RUNNING:
        return None
    if sighting.verdict is Verdict.ABSENT and not absence_counts:
        return Doubt(sighting.workspace, Verdict.UNKNOWN, NOTHING_FOUND)
    return Doubt(sighting.workspace, sighting.verdict, sighting.reason or sighting.state)


def _was_not_absent(sighting: Sighting, known: KnownDoubts) -> bool:
    earlier = known.get((sighting.workspace.id, Verdict.ABSENT))
    return sighting.verdict in FOUND and earlier is not None and earlier.sightings > 0
