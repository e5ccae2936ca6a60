"""The simulation can fail: without any one guard, it finds a schedule that does harm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from handler import cycle, flips
from handler.deadline import Deadline
from handler.domain import decide
from handler.domain.coverage import Coverage, Progress
from handler.domain.decide import Action, objection
from handler.domain.model import CurrentRow, SkipReason, Workspace
from handler.restarts.worker import RestartWorker
from handler.store import Claim
from tests.fakes import store
from tests.simulation.explore import Exhaustive, smallest_world, walk
from tests.simulation.simulation import ViolationError

MOST_WALKS = 20_000

Patch = pytest.MonkeyPatch


def _blind(see: Callable[[CurrentRow, Workspace], CurrentRow]) -> Callable[[Patch], None]:
    """Hide something in the row from the flip's judgement."""

    def judge(row: CurrentRow | None, workspace: Workspace) -> SkipReason | None:
        return objection(None if row is None else see(row, workspace), workspace)

    return lambda patch: patch.setattr(store, "objection", judge)


def _replace(where: Any, name: str, other: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(where, name, other)


def _claims_nothing(restarts: store.Restarts, *args: Any, _claim: Any = store.Restarts.claim, **options: Any) -> Claim:
    """Claim, and leave the restart due as it was."""
    due = {one.id: one.due_at for one in restarts.tables.open_restarts()}
    answer: Claim = _claim(restarts, *args, **options)
    for one in restarts.tables.open_restarts():
        one.due_at = due[one.id]
    return answer


@dataclass(frozen=True, slots=True)
class Guard:
    """How to remove a guard, and what the simulation then says. `start`: the state, if the smallest world is enough."""

    remove: Callable[[Patch], None]
    violation: str
    start: str | None = None


GUARDS: Mapping[str, Guard] = {
    "the instance is compared": Guard(
        _blind(lambda row, workspace: replace(row, instance_id=workspace.instance_id)), "another instance", "stopped"
    ),
    "the status is compared": Guard(_blind(lambda row, _: replace(row, status="online")), "no candidate", "stopped"),
    "a hold is respected": Guard(_blind(lambda row, _: replace(row, on_hold=False)), "on hold", "stopped"),
    "a heartbeat has a veto": Guard(_blind(lambda row, _: replace(row, fresh_heartbeat=False)), "heartbeat", "stopped"),
    "the row is locked": Guard(_replace(store.Flips, "lock", lambda *_: None), "is flipped", "stopped"),
    "the second probe": Guard(_replace(flips, "confirms", lambda *_: True), "not seen dead twice", "stopped"),
    "the lease is respected": Guard(
        _replace(store.Part, "require_lease", lambda _: None), "without the lease", "stopped"
    ),
    "the claim keeps others away": Guard(
        _replace(store.Restarts, "claim", _claims_nothing), "earlier request", "stopped"
    ),
    "the row is read before it is asked for": Guard(
        _replace(store, "_is_owed", lambda *_: True), "not owed any more", "stopped"
    ),
    "an old restart's instance is looked at again": Guard(
        _replace(RestartWorker, "_still_dead", lambda _, due, *__, **___: list(due)), "nobody looked again"
    ),
    "the deadline is respected": Guard(_replace(Deadline, "over", lambda _: False), "after the deadline", "stopped"),
    "the next cycle goes on where this one ended": Guard(
        _replace(cycle, "advance", lambda *_, **__: Progress(Coverage(), completed_pass=False)), "not everybody"
    ),
    "absences are remembered": Guard(_replace(decide, "_absent", lambda *_, **__: (Action.FLIP, "")), "never dead"),
    "the breaker": Guard(
        _replace(decide, "_breaker", lambda *_, **__: decide.Breaker(0, 0, open=False)), "breaker's window"
    ),
}


def counterexample(guard: Guard) -> str:
    """Search for a schedule that breaks an invariant, and return which one; an empty text if there is none."""
    try:
        if guard.start:
            Exhaustive(smallest_world(guard.start)).schedules(1, 1)
        else:
            for seed in range(MOST_WALKS):
                walk(seed)
    except ViolationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("guard", GUARDS)
def test_without_one_guard_some_schedule_does_harm(guard: str, monkeypatch: Patch) -> None:
    GUARDS[guard].remove(monkeypatch)
    assert GUARDS[guard].violation in counterexample(GUARDS[guard])
