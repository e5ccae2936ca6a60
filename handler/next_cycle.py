"""What the next full cycle would see of one workspace, and do with it: by the cycle's own code, without any write."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from handler import cycle
from handler.deadline import Deadline
from handler.domain.decide import Memory, Plan, decide
from handler.domain.explanation import (
    Deed,
    Would,
    candidate_words,
    decided_again,
    waiting_words,
    would_flip,
    would_with_candidate,
    would_with_due,
    would_with_restart,
    would_with_watched,
)
from handler.domain.known import ActiveHold, Ends, OpenOrWatched, RememberedDoubt, RestartRecord, Row
from handler.domain.model import LOOKS_DEAD, Cause, Failure, Sighting, SkipReason, Verdict, Workspace, unknown
from handler.domain.restarts import Circumstances, Owed, WatchStep, before_asking, before_probing, watch
from handler.errors import ReconcilerError
from handler.flips import Flipper
from handler.probes import Probe
from handler.request import APPLY, Request
from handler.restarts.asking import in_turn, list_due
from handler.settings import Settings
from handler.store import Selection
from handler.telemetry import CycleLog

# Other candidates that are probed beside a workspace that looks dead. If one of them is found, "not found" counts, as
# in a cycle. A fleet of this size is probed as a whole, so that the breaker is exactly the next cycle's.
COMPANY = 100
# One look at the database may take this long, in seconds: somebody may have locked a table.
LOOK_SECONDS = 2.0

_FULL_CYCLE = Request(APPLY)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database says. None: it could not be read (`row`, `hold` and `stopped_until` also: there is none).

    `row_is_known` tells which of the two it is for the row.
    """

    workspace_id: str
    hold: ActiveHold | None
    stopped_until: str | None
    doubts: list[RememberedDoubt] | None
    records: list[RestartRecord] | None
    row_is_known: bool
    row: Row | None
    selection: Selection | None
    restarts: OpenOrWatched | None
    memory: Memory | None

    @property
    def ends(self) -> Ends:
        """When what keeps the restart waiting ends."""
        return Ends(None if self.hold is None else self.hold.ends_at, self.stopped_until)

    @property
    def candidate(self) -> Workspace | None:
        """The workspace as the cycle's SELECT sees it, if it is a candidate."""
        return next(iter(self.selection.workspaces), None) if self.selection is not None else None

    @property
    def to_probe(self) -> Workspace | None:
        """The workspace with the instance that matters, or None: then no instance of ours does."""
        owed, watched = (None, None) if self.restarts is None else (self.restarts.owed, self.restarts.watched)
        if self.candidate is not None or self.row is None:
            return self.candidate
        if owed is not None and owed.still_owed:
            return owed.restart.as_candidate()
        if watched is not None and watched.same_instance:
            return watched.restart.as_candidate()
        return Workspace(self.workspace_id, self.row.instance_id or "", None) if self.row.has_instance else None

    def why_candidate(self, *, adopts: bool) -> str:
        """Say why the workspace is a candidate, or why not. `adopts`: the setting ADOPT_OFFLINE."""
        selected, restarts = self.candidate is not None, self.restarts or OpenOrWatched()
        return candidate_words(self.row, self.doubts or (), restarts, selected=selected, adopts=adopts)


@dataclass(frozen=True, slots=True)
class View:
    """What the next cycle would see, and what it would decide about its candidates.

    `sighting` is the workspace's own, None if nobody looked; `whole_fleet` tells that everybody was looked at.
    """

    plan: Plan
    now: Circumstances
    probe: Probe
    sighting: Sighting | None
    whole_fleet: bool


class NextCycle:
    """The next full cycle, as far as it concerns one workspace. Every method may raise ReconcilerError."""

    def __init__(self, settings: Settings, parts: cycle.Parts, deadline: Deadline) -> None:
        """Judge by these settings, and probe and read by the deadline."""
        self._settings = settings
        self._parts = parts
        self._deadline = deadline

    def select(self, deadline: Deadline, workspace_ids: Sequence[str] | None) -> Selection:
        """Select candidates as a cycle does: these, or (None) the first ones of all."""
        return self._parts.store.candidates.select(
            deadline, limit=COMPANY, workspace_ids=workspace_ids, adopt=self._settings.adopt_offline
        )

    def probing(self) -> Deadline:
        """Return the deadline for one look at instances."""
        return self._deadline.within(self._settings.probe_timeout_seconds)

    def view(self, facts: Facts, looks: Sequence[Sighting]) -> View | None:
        """Return what it would see, given a look at the instance by each source; None if its memory is not known.

        What looks dead is looked at as a cycle does, among others. Whatever else was seen settles it.
        """
        if facts.memory is None:
            return None
        settled = _settled(looks)
        if looks and settled is None:
            return self._look_among_others(facts, facts.memory)
        seen = [settled] if settled is not None and facts.candidate is not None else []
        return self._decided(seen, facts.memory, None, self._parts.probe(self._deadline), settled)

    def _look_among_others(self, facts: Facts, memory: Memory) -> View:
        company = self.select(self._deadline.within(LOOK_SECONDS), None)
        others = [one for one in company.workspaces if one.id != facts.workspace_id]
        own = [] if facts.candidate is None else [facts.candidate]
        probe = self._parts.probe(self._deadline)
        seen = list(probe.sightings([*own, *others], self.probing()))
        sighting = next((one for one in seen if one.workspace.id == facts.workspace_id), None)
        if sighting is None and facts.to_probe is not None:
            sighting = next(probe.sightings([facts.to_probe], self.probing()), None) or out_of_time(facts.to_probe)
        return self._decided(seen, memory, company, probe, sighting)

    def _decided(
        self,
        seen: Sequence[Sighting],
        memory: Memory,
        company: Selection | None,
        probe: Probe,
        sighting: Sighting | None,
    ) -> View:
        """Decide as a cycle does about what was seen. `company`: the candidates that were probed, if they were."""
        breaker, absence = self._settings.breaker, self._settings.absence
        whole_fleet = company is not None and company.all_selected
        counted = company.queues.only_in_turn if company is not None and whole_fleet else set()
        plan = decide(seen, memory, breaker, absence, in_turn=counted, override_breaker=False)
        return View(plan, Circumstances.of(plan, absence, full=True), probe, sighting, whole_fleet)

    def would(self, facts: Facts, view: View) -> Would | None:
        """Return what it would do with the workspace, and why; None if too little could be read."""
        if facts.selection is None or facts.restarts is None:
            return None
        owed, watched = facts.restarts.owed, facts.restarts.watched
        if facts.candidate is not None and view.sighting is not None:
            if watched is not None and owed is None and view.sighting.verdict is Verdict.RUNNING:
                return would_with_watched(watched, None, view.now)
            return self._would_with_candidate(facts, facts.selection, view.sighting, view, owed)
        if owed is not None:
            return self._would_with_restart(owed, facts, view)
        if watched is not None:
            looked = view.sighting if watch(watched) is WatchStep.PROBE else None
            return would_with_watched(watched, looked, view.now)
        return Would(Deed.NOTHING, facts.why_candidate(adopts=self._settings.adopt_offline))

    def _would_with_candidate(
        self, facts: Facts, selection: Selection, sighting: Sighting, view: View, owed: Owed | None
    ) -> Would:
        decision = next((one for one in view.plan.decisions if one.sighting is sighting), None)
        if decision is None or sighting not in view.plan.to_flip:
            return would_with_candidate(sighting, decision, owed)
        policy = cycle.flip_policy(_FULL_CYCLE, self._settings, selection)
        flipper = Flipper(self._parts.store.flips, view.probe, policy, self._settings, CycleLog())
        (attempt,) = flipper.rehearse([sighting], self._deadline, logged=False).attempts
        skipped = attempt.outcome if isinstance(attempt.outcome, SkipReason) else None
        return would_flip(sighting, decision, skipped, facts.doubts or ())

    def _would_with_restart(self, owed: Owed, facts: Facts, view: View) -> Would:
        record = next((one for one in facts.records or () if one.id == owed.restart.id), None)
        decision = before_probing(owed, view.now)
        if decision is None:
            if view.sighting is None:  # a row that is offline with this instance was looked at
                raise ReconcilerError("the instance was not looked at")
            most = 0 if self._parts.platform is None else self._settings.restarts.per_cycle
            ahead = self._due_before(owed, view.now, most) if most else 0
            return would_with_due(before_asking(owed, view.sighting, view.now), most=most, ahead=ahead)
        if view.sighting is not None and record is not None:
            decision = decided_again(decision, owed, record, view.sighting, view.now)
        return would_with_restart(decision, "" if record is None else waiting_words(record, owed, view.now, facts.ends))

    def _due_before(self, owed: Owed, now: Circumstances, most: int) -> int:
        """Return how many restarts come before this one, as far as rows and circumstances tell; `most` are enough.

        A cycle cancels first what has moved on.
        """
        listed = partial(list_due, self._parts.store.restarts, settings=self._settings, now=now, most=most)
        looks = (listed(self._deadline.within(LOOK_SECONDS), refused=refused) for refused in (False, True))
        turns = in_turn(*([one for one in look if one.still_owed] for look in looks))
        due = [one.restart.id for one in turns if before_probing(one, now) is None]
        return due.index(owed.restart.id) if owed.restart.id in due else len(due)


def _settled(looks: Sequence[Sighting]) -> Sighting | None:
    """Return the look at the instance that no other candidate's can change, if there is one."""
    running = next((one for one in looks if one.verdict is Verdict.RUNNING), None)
    if running is None and len(looks) == 1 and looks[0].verdict not in LOOKS_DEAD:
        return looks[0]
    return running


def out_of_time(workspace: Workspace) -> Sighting:
    """Return the sighting of an instance that nobody has answered for in time."""
    return unknown(workspace, Failure(Cause.OUT_OF_TIME))
