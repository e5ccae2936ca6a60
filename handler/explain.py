"""Explains one workspace: what is known of it, and what the next full cycle would do with it, and why.

It reads and probes, takes no lease, locks no row and writes nothing. `next_cycle.py` judges. Here everything is read
that it needs, and the answer is put together. What cannot be read costs only its own part of the answer, and a note
says why.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from handler import cycle
from handler.deadline import Deadline
from handler.domain.decide import Memory
from handler.domain.explanation import breaker_words, restart_words
from handler.domain.known import OpenOrWatched, RememberedDoubt, RestartRecord
from handler.domain.model import Cause, Failure, Sighting, Workspace, unknown
from handler.errors import ReconcilerError, UnfitDatabaseError
from handler.next_cycle import LOOK_SECONDS, Facts, NextCycle, View, out_of_time
from handler.parallel import in_parallel
from handler.probes import Probe
from handler.request import APPLY
from handler.settings import Settings

# Counting a large fleet in which very many look dead takes longer than other looks at the database, in seconds. Nobody
# waits for a lock for so long.
FLEET_SECONDS = 10.0
TARGETS_AT_ONCE = 16

_SHOWN_OF_A_RESTART = (
    *("instance_id", "flipped_at", "due_at", "first_due_at", "attempts", "last_answer", "asked_at", "outcome"),
    *("closed_at", "watched_since"),
)

Value = TypeVar("Value")
# The sources of truth by name, each to be asked by itself.
Sources = Callable[[Deadline], Mapping[str, Probe]]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one source of truth says of the instance, and how many seconds that took."""

    source: str
    sighting: Sighting
    took_s: float


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
        self._store = parts.store.explaining()
        self._next_cycle = NextCycle(settings, parts, deadline)
        self._sources = sources
        self._deadline = deadline
        self._notes: list[str] = []

    def answer(self) -> dict[str, Any]:
        facts = self._facts()
        details = facts.row and self._read("name, tier and created_at", self._store.details, self._id)
        looks = self._known("instance", self._looks, facts.to_probe)
        view = None if looks is None else self._known("breaker", self._view, facts, looks)
        would = None if view is None else self._known("would", self._next_cycle.would, facts, view)
        self._note_what_else_matters()
        answer = {
            "workspace_id": self._id,
            "row": facts.row and _named(details) | dataclasses.asdict(facts.row),
            "candidate": self._candidate(facts),
            "instance": None if looks is None else [_shown_look(one) for one in looks],
            "doubts": None if facts.doubts is None else [_shown_doubt(one, facts) for one in facts.doubts],
            "restarts": None if facts.records is None else [_shown_restart(one, facts, view) for one in facts.records],
            "hold": facts.hold and dataclasses.asdict(facts.hold),
            "breaker": None if view is None else self._breaker(view),
            "would": None if would is None else {"action": str(would.deed), "reason": would.reason},
        }
        return answer | ({"notes": self._notes} if self._notes else {})

    def _read(self, name: str, read: Callable[..., Value], *arguments: Any) -> Value | None:
        """Read a part of the answer from the database; None, with a note, if it cannot be read now."""
        return self._known(name, read, self._deadline.within(LOOK_SECONDS), *arguments)

    def _known(self, name: str, find_out: Callable[..., Value], *arguments: Any) -> Value | None:
        """Return a part of the answer; None, with a note, if it cannot be known."""
        try:
            return find_out(*arguments)
        except UnfitDatabaseError:
            raise
        except ReconcilerError as error:
            self._notes.append(f"{name} unknown: {error}")
            return None

    def _facts(self) -> Facts:
        store, read, one = self._store, self._read, self._id
        hold = read("hold", store.hold, one)
        stopped_until = read("Retry-After", store.stopped_until)
        doubts = read("doubts", store.doubts, one)
        records = read("restarts", store.restarts, one)
        rows = read("row", lambda deadline: [store.row(deadline, one)])
        return Facts(
            workspace_id=one,
            hold=hold,
            stopped_until=stopped_until,
            doubts=doubts,
            records=records,
            row_is_known=rows is not None,
            row=rows[0] if rows else None,
            # Whoever has locked the platform's table is waited for once.
            selection=read("candidate", self._next_cycle.select, [one]) if rows else None,
            restarts=read("restart", self._restarts) if rows else None,
            memory=self._known("breaker", self._memory, self._deadline.within(FLEET_SECONDS)) if rows else None,
        )

    def _restarts(self, deadline: Deadline) -> OpenOrWatched:
        fresh_s, grace_s = self._settings.heartbeat_fresh_seconds, self._settings.restarts.grace_s
        owed = self._store.owed(deadline, self._id, fresh_s=fresh_s, grace_s=grace_s)
        return OpenOrWatched(owed, self._store.watched(deadline, self._id))

    def _memory(self, deadline: Deadline) -> Memory:
        return self._store.memory(deadline, self._id, breaker_window_s=self._settings.breaker.window_s)

    def _looks(self, workspace: Workspace | None) -> list[_Look]:
        """Ask every source of truth about the instance, each by itself, side by side."""
        if workspace is None:
            return []
        deadline = self._next_cycle.probing()
        sources = self._sources(deadline)

        def look(source: tuple[str, Probe]) -> _Look:
            name, probe = source
            began_at = time.monotonic()
            try:
                sighting = next(probe.sightings([workspace], deadline), None)
            except Exception as error:  # noqa: BLE001 - an unexpected error must cost only its own source
                sighting = unknown(workspace, Failure(Cause.UNEXPECTED, type(error).__name__))
            return _Look(name, sighting or out_of_time(workspace), time.monotonic() - began_at)

        looks = {one.source: one for one in in_parallel(look, iter(sources.items()), deadline, at_once=TARGETS_AT_ONCE)}
        late_s = self._settings.probe_timeout_seconds
        return [looks.get(name) or _Look(name, out_of_time(workspace), late_s) for name in sources]

    def _view(self, facts: Facts, looks: Sequence[_Look]) -> View | None:
        return self._next_cycle.view(facts, [one.sighting for one in looks])

    def _candidate(self, facts: Facts) -> dict[str, Any] | None:
        if facts.selection is None or facts.restarts is None:
            return None
        why = facts.why_candidate(adopts=self._settings.adopt_offline)
        return {"is": facts.candidate is not None, "why": why}

    def _breaker(self, view: View) -> dict[str, Any]:
        why = breaker_words(view.plan.breaker, self._settings.breaker, whole_fleet=view.whole_fleet)
        return dataclasses.asdict(view.plan.breaker) | {"why": why}

    def _note_what_else_matters(self) -> None:
        for cause, count, since in self._read("doubts about the source", self._store.sources) or ():
            self._notes.append(f"{count} workspaces are unknown alike since {since}: {cause}")
        if self._settings.mode != APPLY:
            self._notes.append("the setting MODE is dry-run: no cycle does anything until it is apply")


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


def _shown_doubt(doubt: RememberedDoubt, facts: Facts) -> dict[str, Any]:
    recorded = facts.row is not None and facts.row.instance_id == doubt.instance_id
    return dataclasses.asdict(doubt) | {"is_recorded_instance": recorded if facts.row_is_known else None}


def _shown_restart(record: RestartRecord, facts: Facts, view: View | None) -> dict[str, Any]:
    state = None
    if view is not None and facts.restarts is not None:
        state = restart_words(record, facts.restarts, view.now, facts.ends)
    return {name: getattr(record, name) for name in _SHOWN_OF_A_RESTART} | {"state": state}
