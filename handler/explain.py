"""Explains one workspace: what is known of it, and what the next full cycle would do with it, and why.

It reads and probes, takes no lease, locks no row and writes nothing. Every judgement is the cycle's own: this module
only brings together what the cycle's code needs, for one workspace. What cannot be read costs only its own part of the
answer, and a note says why.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from handler import cycle
from handler.deadline import Deadline
from handler.domain.decide import Memory, Plan, decide
from handler.domain.explanation import (
    Deed,
    Ends,
    RememberedDoubt,
    RestartRecord,
    Restarts,
    Row,
    Would,
    breaker_words,
    candidate_words,
    decided_again,
    restart_words,
    waiting_words,
    would_flip,
    would_with_candidate,
    would_with_due,
    would_with_restart,
    would_with_watched,
)
from handler.domain.model import LOOKS_DEAD, Cause, Failure, Sighting, SkipReason, Verdict, Workspace, unknown
from handler.domain.restarts import Circumstances, Owed, WatchStep, before_asking, before_probing, watch
from handler.errors import ReconcilerError, UnfitDatabaseError
from handler.flips import Flipper
from handler.parallel import in_parallel
from handler.probes import Probe
from handler.request import APPLY, Request
from handler.restarts.asking import LOOKED_AT_BESIDES, in_turn
from handler.settings import Settings
from handler.store import Selection
from handler.telemetry import CycleLog

# Other candidates that are probed beside a workspace that looks dead. If one of them is found, "not found" counts, as
# in a cycle. A fleet of this size is probed as a whole, so that the breaker is exactly the next cycle's.
COMPANY = 100
# One part of the answer may take this long, in seconds: somebody may have locked a table.
PART_SECONDS = 2.0
# Counting a large fleet in which very many look dead takes longer. Nobody waits for a lock for so long.
FLEET_SECONDS = 10.0
TARGETS_AT_ONCE = 16

_FULL_CYCLE = Request(APPLY)
_SHOWN_OF_A_RESTART = (
    *("instance_id", "flipped_at", "due_at", "first_due_at", "attempts", "last_answer", "asked_at", "outcome"),
    *("closed_at", "watched_since"),
)

Value = TypeVar("Value")
# The sources of truth by name, each to be asked by itself.
Sources = Callable[[Deadline], Mapping[str, Probe]]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the database says. None: it could not be read (`row`: or there is none; `row_is_known` tells)."""

    workspace_id: str
    ends: Ends
    doubts: list[RememberedDoubt] | None
    records: list[RestartRecord] | None
    row_is_known: bool
    row: Row | None
    selection: Selection | None
    restarts: Restarts | None
    memory: Memory | None

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


@dataclass(frozen=True, slots=True)
class _Look:
    """What one source of truth says of the instance, and how many seconds that took."""

    source: str
    sighting: Sighting
    took_s: float


@dataclass(frozen=True, slots=True)
class _View:
    """What the next cycle would see and decide.

    `sighting` is the workspace's own, None if nobody looked; `whole_fleet` tells that everybody was looked at.
    """

    plan: Plan
    probe: Probe
    sighting: Sighting | None
    whole_fleet: bool


def explain(
    workspace_id: str, settings: Settings, parts: cycle.Parts, sources: Sources, deadline: Deadline
) -> dict[str, Any]:
    """Return what is known of a workspace, and what the next full cycle would do with it and why.

    Raises ReconcilerError if the database cannot be used at all.
    """
    parts.store.check_rights(deadline, to_apply=False)
    return _Explanation(workspace_id, settings, parts, sources, deadline).answer()


class _Explanation:
    def __init__(
        self, workspace_id: str, settings: Settings, parts: cycle.Parts, sources: Sources, deadline: Deadline
    ) -> None:
        self._id = workspace_id
        self._settings = settings
        self._parts = parts
        self._sources = sources
        self._deadline = deadline
        self._store = parts.store.explaining()
        self._notes: list[str] = []

    def answer(self) -> dict[str, Any]:
        store, part, one = self._store, self._part, self._id
        hold = part("hold", lambda left: store.hold(left, one))
        facts = self._facts(None if hold is None else hold.ends_at)
        details = facts.row and part("name, tier and created_at", lambda left: store.details(left, one))
        looks = part("instance", lambda _: self._looks(facts.to_probe))
        view = None if looks is None else part("breaker", lambda _: self._view(facts, looks))
        would = None if view is None else part("would", lambda _: self._would(facts, view))
        self._note_what_else_matters()
        answer = {
            "workspace_id": one,
            "row": facts.row and _named(details) | dataclasses.asdict(facts.row),
            "candidate": self._candidate(facts),
            "instance": None if looks is None else [_shown_look(one) for one in looks],
            "doubts": None if facts.doubts is None else [_shown_doubt(one, facts) for one in facts.doubts],
            "restarts": None
            if facts.records is None
            else [self._shown_restart(one, facts, view) for one in facts.records],
            "hold": hold and dataclasses.asdict(hold),
            "breaker": None if view is None else self._breaker(view),
            "would": None if would is None else {"action": str(would.deed), "reason": would.reason},
        }
        return answer | ({"notes": self._notes} if self._notes else {})

    def _part(self, name: str, read: Callable[[Deadline], Value], seconds: float = PART_SECONDS) -> Value | None:
        """Return a part of the answer; None, with a note, if it cannot be known."""
        try:
            return read(self._deadline.within(seconds))
        except UnfitDatabaseError:
            raise
        except ReconcilerError as error:
            self._notes.append(f"{name} unknown: {error}")
            return None

    # Read.

    def _facts(self, hold_ends_at: str | None) -> _Facts:
        store, part, one = self._store, self._part, self._id
        stop = part("Retry-After", store.stopped_until)
        doubts = part("doubts", lambda left: store.doubts(left, one))
        records = part("restarts", lambda left: store.restarts(left, one))
        rows = part("row", lambda left: [store.row(left, one)])
        return _Facts(
            workspace_id=one,
            ends=Ends(hold_ends_at, stop),
            doubts=doubts,
            records=records,
            row_is_known=rows is not None,
            row=rows[0] if rows else None,
            # Whoever has locked the platform's table is waited for once.
            selection=part("candidate", lambda left: self._select([one], left)) if rows else None,
            restarts=part("restart", self._restarts) if rows else None,
            memory=part("breaker", self._memory, FLEET_SECONDS) if rows else None,
        )

    def _select(self, workspace_ids: Sequence[str] | None, deadline: Deadline) -> Selection:
        return self._parts.store.candidates.select(
            deadline, limit=COMPANY, workspace_ids=workspace_ids, adopt=self._settings.adopt_offline
        )

    def _restarts(self, deadline: Deadline) -> Restarts:
        fresh_s, grace_s = self._settings.heartbeat_fresh_seconds, self._settings.restarts.grace_s
        owed = self._store.owed(deadline, self._id, fresh_s=fresh_s, grace_s=grace_s)
        return Restarts(owed, self._store.watched(deadline, self._id))

    def _memory(self, deadline: Deadline) -> Memory:
        return self._store.memory(deadline, self._id, breaker_window_s=self._settings.breaker.window_s)

    # Look.

    def _looks(self, workspace: Workspace | None) -> list[_Look]:
        """Ask every source of truth about the instance, each by itself, side by side."""
        if workspace is None:
            return []
        deadline = self._probing()
        sources = self._sources(deadline)

        def look(source: tuple[str, Probe]) -> _Look:
            name, probe = source
            began_at = time.monotonic()
            try:
                sighting = next(probe.sightings([workspace], deadline), None)
            except Exception as error:  # noqa: BLE001 - an unexpected error must cost only its own source
                sighting = unknown(workspace, Failure(Cause.UNEXPECTED, type(error).__name__))
            return _Look(name, sighting or _out_of_time(workspace), time.monotonic() - began_at)

        looks = {one.source: one for one in in_parallel(look, iter(sources.items()), deadline, at_once=TARGETS_AT_ONCE)}
        late = _Look("", _out_of_time(workspace), self._settings.probe_timeout_seconds)
        return [looks.get(name, dataclasses.replace(late, source=name)) for name in sources]

    def _probing(self) -> Deadline:
        return self._deadline.within(self._settings.probe_timeout_seconds)

    # Judge.

    def _view(self, facts: _Facts, looks: Sequence[_Look]) -> _View | None:
        """See and decide what the next cycle would, as far as it concerns the workspace.

        What looks dead is looked at as a cycle does, among others. Whatever else was seen settles it.
        """
        if facts.memory is None:
            return None
        probe = self._parts.probe(self._deadline)
        settled = next((one.sighting for one in looks if one.sighting.verdict is Verdict.RUNNING), None)
        if settled is None and len(looks) == 1 and looks[0].sighting.verdict not in LOOKS_DEAD:
            settled = looks[0].sighting
        if settled is not None or not looks:
            seen = [settled] if settled is not None and facts.candidate is not None else []
            return _View(self._plan(seen, facts.memory, ()), probe, settled, whole_fleet=False)
        company = self._select(None, self._deadline.within(PART_SECONDS))
        others = [one for one in company.workspaces if one.id != self._id]
        own = [] if facts.candidate is None else [facts.candidate]
        seen = list(probe.sightings([*own, *others], self._probing()))
        in_turn = set(company.queues.in_turn).difference(company.queues.brought_forward)
        plan = self._plan(seen, facts.memory, in_turn if company.all_selected else ())
        sighting = next((one for one in seen if one.workspace.id == self._id), None)
        workspace = facts.to_probe
        if sighting is None and workspace is not None:
            sighting = next(probe.sightings([workspace], self._probing()), None) or _out_of_time(workspace)
        return _View(plan, probe, sighting, whole_fleet=company.all_selected)

    def _plan(self, seen: Sequence[Sighting], memory: Memory, in_turn: Collection[str]) -> Plan:
        breaker, absence = self._settings.breaker, self._settings.absence
        return decide(seen, memory, breaker, absence, in_turn=in_turn, override_breaker=False)

    def _would(self, facts: _Facts, view: _View) -> Would | None:
        if facts.selection is None or facts.restarts is None:
            return None
        owed, watched = facts.restarts.owed, facts.restarts.watched
        if facts.candidate is not None and view.sighting is not None:
            if watched is not None and owed is None and view.sighting.verdict is Verdict.RUNNING:
                return would_with_watched(watched, None, self._circumstances(view))
            return self._would_with_candidate(facts.selection, view.sighting, view, facts.doubts or (), owed)
        if owed is not None:
            return self._would_with_restart(owed, facts, view)
        if watched is not None:
            looked = view.sighting if watch(watched) is WatchStep.PROBE else None
            return would_with_watched(watched, looked, self._circumstances(view))
        return Would(Deed.NOTHING, self._candidate_words(facts))

    def _would_with_candidate(
        self,
        selection: Selection,
        sighting: Sighting,
        view: _View,
        doubts: Sequence[RememberedDoubt],
        owed: Owed | None,
    ) -> Would:
        decision = next((one for one in view.plan.decisions if one.sighting is sighting), None)
        if decision is None or sighting not in view.plan.to_flip:
            return would_with_candidate(sighting, decision, owed)
        policy = cycle.flip_policy(_FULL_CYCLE, self._settings, selection)
        flipper = Flipper(self._parts.store.flips, view.probe, policy, self._settings, CycleLog())
        (attempt,) = flipper.rehearse([sighting], self._deadline, logged=False).attempts
        skipped = attempt.outcome if isinstance(attempt.outcome, SkipReason) else None
        return would_flip(sighting, decision, skipped, doubts)

    def _would_with_restart(self, owed: Owed, facts: _Facts, view: _View) -> Would:
        now = self._circumstances(view)
        record = next((one for one in facts.records or () if one.id == owed.restart.id), None)
        decision = before_probing(owed, now)
        if decision is None:
            if view.sighting is None:  # a row that is offline with this instance was looked at
                raise ReconcilerError("the instance was not looked at")
            most = 0 if self._parts.platform is None else self._settings.restarts.per_cycle
            ahead = self._due_before(owed, now, most) if most else 0
            return would_with_due(before_asking(owed, view.sighting, now), most=most, ahead=ahead)
        if view.sighting is not None and record is not None:
            decision = decided_again(decision, owed, record, view.sighting, now)
        return would_with_restart(decision, "" if record is None else waiting_words(record, owed, now, facts.ends))

    def _due_before(self, owed: Owed, now: Circumstances, most: int) -> int:
        """Return how many restarts come before this one, as far as rows and circumstances tell; `most` are enough."""
        never_refused, refused = (
            self._parts.store.restarts.due(
                self._deadline.within(PART_SECONDS),
                refused=refused,
                limit=most + LOOKED_AT_BESIDES,
                released_only=now.breaker_open,
                fresh_s=self._settings.heartbeat_fresh_seconds,
                grace_s=self._settings.restarts.grace_s,
                workspace_ids=None,
            )
            for refused in (False, True)
        )
        due = [one.restart.id for one in in_turn(never_refused, refused) if before_probing(one, now) is None]
        return due.index(owed.restart.id) if owed.restart.id in due else len(due)

    def _circumstances(self, view: _View) -> Circumstances:
        return Circumstances(
            full=True,
            breaker_open=view.plan.breaker.open,
            absence_counts=view.plan.absence_counts,
            absence=self._settings.absence,
        )

    # Answer.

    def _candidate(self, facts: _Facts) -> dict[str, Any] | None:
        if facts.selection is None or facts.restarts is None:
            return None
        return {"is": facts.candidate is not None, "why": self._candidate_words(facts)}

    def _candidate_words(self, facts: _Facts) -> str:
        return candidate_words(
            facts.row,
            facts.doubts or (),
            facts.restarts or Restarts(),
            selected=facts.candidate is not None,
            adopts=self._settings.adopt_offline,
        )

    def _breaker(self, view: _View) -> dict[str, Any]:
        why = breaker_words(view.plan.breaker, self._settings.breaker, whole_fleet=view.whole_fleet)
        return dataclasses.asdict(view.plan.breaker) | {"why": why}

    def _shown_restart(self, record: RestartRecord, facts: _Facts, view: _View | None) -> dict[str, Any]:
        state = None
        if view is not None and facts.restarts is not None:
            state = restart_words(record, facts.restarts, self._circumstances(view), facts.ends)
        return {name: getattr(record, name) for name in _SHOWN_OF_A_RESTART} | {"state": state}

    def _note_what_else_matters(self) -> None:
        for cause, count, since in self._part("doubts about the source", self._store.sources) or ():
            self._notes.append(f"{count} workspaces are unknown alike since {since}: {cause}")
        if self._settings.mode != APPLY:
            self._notes.append("the setting MODE is dry-run: no cycle does anything until it is apply")


def _out_of_time(workspace: Workspace) -> Sighting:
    return unknown(workspace, Failure(Cause.OUT_OF_TIME))


def _named(details: Any) -> dict[str, Any]:
    return {"name": None, "tier": None, "created_at": None} if details is None else dataclasses.asdict(details)


def _shown_look(look: _Look) -> dict[str, Any]:
    sighting = look.sighting
    return {
        "target": look.source,
        "state": sighting.state or None,
        "verdict": str(sighting.verdict),
        "reason": sighting.reason or None,
        "took_ms": round(look.took_s * 1000),
    }


def _shown_doubt(doubt: RememberedDoubt, facts: _Facts) -> dict[str, Any]:
    recorded = facts.row is not None and facts.row.instance_id == doubt.instance_id
    return dataclasses.asdict(doubt) | {"is_recorded_instance": recorded if facts.row_is_known else None}
