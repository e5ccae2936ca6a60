"""The simulation can fail: without any one guard, it finds a schedule that does harm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from handler import cycle, flips
from handler.deadline import Deadline
from handler.domain import decide, evidence
from handler.domain.coverage import Coverage, Progress
from handler.domain.decide import Plan, objection
from handler.domain.doubts import DoubtChanges, doubt_changes
from handler.domain.model import CurrentRow, Sighting, SkipReason, Workspace
from handler.domain.policy import AbsencePolicy
from handler.domain.restarts import Circumstances, Owed, RestartDecision, Step, WatchStep, before_probing
from handler.domain.state_changes import HEARTBEAT_ARRIVES_SECONDS
from handler.remembering import Remembering
from handler.request import Request
from handler.restarts import asking, watching
from handler.settings import Settings
from handler.store import FlipPolicy
from tests.fakes import store
from tests.fakes.tables import Row
from tests.simulation.explore import JUST_STOPPED, OFFLINE, OWED, WATCHED, Exhaustive, smallest_world, walk
from tests.simulation.simulation import Simulation, ViolationError

MOST_WALKS = 20_000
NEVER = float("inf")
# As they are, before a test replaces them.
_OWED, _POLICY = vars(store.Restarts)["_owed"], vars(cycle)["flip_policy"]
_RESTARTS, _VETOES_AFTER = vars(cycle)["_restarts"], vars(store.Flips)["_vetoes_after"]

Patch = pytest.MonkeyPatch
Removal = Callable[[Patch], None]


def _blind(see: Callable[[CurrentRow, Workspace], CurrentRow]) -> Removal:
    """Hide something in the row from the flip's judgement."""

    def judge(row: CurrentRow | None, workspace: Workspace) -> SkipReason | None:
        return objection(None if row is None else see(row, workspace), workspace)

    return lambda patch: patch.setattr(store, "objection", judge)


def _replace(where: Any, name: str, other: Any) -> Removal:
    return lambda patch: patch.setattr(where, name, other)


def _all(*removals: Removal) -> Removal:
    """Remove a guard that is in several places."""

    def remove(patch: Patch) -> None:
        for one in removals:
            one(patch)

    return remove


def _claims_nothing(
    restarts: store.Restarts, *args: Any, _claim: Any = store.Restarts.claim, **options: Any
) -> list[RestartDecision]:
    """Claim, and leave the restarts due as they were."""
    due = {one.id: one.due_at for one in restarts.tables.open_restarts()}
    decisions: list[RestartDecision] = _claim(restarts, *args, **options)
    for one in restarts.tables.open_restarts():
        one.due_at = due[one.id]
    return decisions


def _blind_to_holds(part: store.Part, workspace_id: str, not_after: float) -> SkipReason | None:
    del workspace_id
    in_time = part.lease_is_ours() and part.tables.now <= not_after
    return None if in_time else SkipReason.OUT_OF_TIME


def _blind_to_heartbeats(restarts: store.Restarts, *args: Any, _owed: Any = _OWED, **options: Any) -> Owed:
    owed: Owed = _owed(restarts, *args, **options)
    return replace(owed, heartbeat=False)


def _with_a_closed_breaker(plan: Plan, absence: AbsencePolicy, *, full: bool) -> Circumstances:
    return Circumstances(full, breaker_open=False, absence_counts=plan.absence_counts, absence=absence)


def _asks_whatever_it_saw(owed: Owed, sighting: Sighting, now: Circumstances) -> RestartDecision:
    del sighting
    return before_probing(owed, now) or RestartDecision(owed.restart, Step.ASK, "")


def _without_grace(request: Request, *args: Any, _policy: Any = _POLICY) -> FlipPolicy:
    policy: FlipPolicy = _policy(request, *args)
    if request.state_changes is not None:
        return policy
    return replace(policy, restarts=replace(policy.restarts, grace_s=0.0))


def _without_silence(request: Request, settings: Settings, *args: Any, _policy: Any = _POLICY) -> FlipPolicy:
    policy: FlipPolicy = _policy(request, settings, *args)
    return replace(policy, restarts=settings.restarts)


def _writes_at_once(simulation: Simulation, workspace_id: str, write: Callable[[Row], bool]) -> bool:
    """Write to a row although a flip has locked it."""
    row = simulation.world.tables.workspaces.get(workspace_id)
    return row is not None and write(row)


def _outlives_its_expiry(part: store.Part, _ours: Any = store.Part.lease_is_ours) -> bool:
    return part.ends is not None or bool(_ours(part))


def _takes_any_time(flips: store.Flips, workspace: Workspace, policy: FlipPolicy, _after: Any = _VETOES_AFTER) -> float:
    """Believe an event's time, be it of the future."""
    died_at = policy.died_at.get(workspace.instance_id)
    return float(_after(flips, workspace, policy)) if died_at is None else died_at + HEARTBEAT_ARRIVES_SECONDS


def _restarts_after_events(request: Request, *rest: Any, _restarts: Any = _RESTARTS) -> Any:
    return _restarts(replace(request, state_changes=None), *rest)


def _counts_every_absence(*args: Any, **facts: Any) -> DoubtChanges:
    return doubt_changes(*args, **facts | {"full": True})


@dataclass(frozen=True, slots=True)
class Guard:
    """How to remove a guard, and what the simulation then says. `start`: the state, if the smallest world is enough.

    With `event_age_s`, the first cycle there comes after an event of EC2's, of that age. Otherwise random schedules are
    searched from `seed` on: what goes wrong rarely takes minutes from the first one.
    """

    remove: Removal
    violation: str
    start: str | None = None
    event_age_s: float | None = None
    seed: int = 0


GUARDS: Mapping[str, Guard] = {
    "the instance is compared": Guard(
        _blind(lambda row, workspace: replace(row, instance_id=workspace.instance_id)), "another instance", "stopped"
    ),
    "the status is compared": Guard(_blind(lambda row, _: replace(row, status="online")), "no candidate", "stopped"),
    "a hold is respected up to the write": Guard(
        _replace(store.Part, "may_write", _blind_to_holds), "on hold", "stopped"
    ),
    "a heartbeat has a veto": Guard(_blind(lambda row, _: replace(row, fresh_heartbeat=False)), "heartbeat", "stopped"),
    "a heartbeat puts a restart off": Guard(_replace(store.Restarts, "_owed", _blind_to_heartbeats), "heartbeat", OWED),
    "the row is locked": Guard(_replace(Simulation, "on_row", _writes_at_once), "is flipped", "stopped"),
    "the second probe": Guard(_replace(flips, "confirms", lambda *_: True), "not seen dead twice", "stopped"),
    "evidence expires": Guard(
        _all(*(_replace(where, "expiry", lambda _: NEVER) for where in (evidence, asking, store))), "s old", "stopped"
    ),
    "evidence expires by the database's clock": Guard(_replace(store, "expiry", lambda _: NEVER), "s old", "stopped"),
    "the lease is respected": Guard(
        _all(
            _replace(store.Part, "require_lease", lambda _: None),
            _replace(store.Part, "lease_is_ours", lambda _: True),
        ),
        "without the lease",
        "stopped",
    ),
    "an event cycle ends with its expiry": Guard(
        _replace(store.Part, "lease_is_ours", _outlives_its_expiry), "past the expiry", JUST_STOPPED, event_age_s=0.0
    ),
    "a heartbeat after an event has a veto": Guard(
        _replace(store.Flips, "_vetoes_after", lambda *_: NEVER), "heartbeat is young", JUST_STOPPED, event_age_s=60.0
    ),
    "an event's time must not lie ahead": Guard(
        _replace(store.Flips, "_vetoes_after", _takes_any_time), "heartbeat is young", JUST_STOPPED, event_age_s=-50.0
    ),
    "a restart after an event waits for silence": Guard(
        _replace(cycle, "flip_policy", _without_silence), "before the silence", JUST_STOPPED
    ),
    "an event cycle restarts nobody": Guard(
        _replace(cycle, "_restarts", _restarts_after_events), "EC2's events writes", JUST_STOPPED, event_age_s=0.0
    ),
    "an event cycle counts no absence": Guard(
        _replace(cycle, "doubt_changes", _counts_every_absence), "counts an absence"
    ),
    "the claim keeps others away": Guard(
        _replace(store.Restarts, "claim", _claims_nothing), "earlier request", "stopped"
    ),
    "the row is read before it is asked for": Guard(
        _replace(store.Restarts, "is_still_owed", lambda *_: True), "not owed any more", "stopped"
    ),
    "a restart's instance is looked at again": Guard(
        _replace(asking, "before_asking", _asks_whatever_it_saw), "is not dead", "stopped"
    ),
    "a restart has its grace": Guard(_replace(cycle, "flip_policy", _without_grace), "before its grace"),
    "a restart has its grace after a hold": Guard(
        _replace(store.Restarts, "_is_due", lambda self, owed, _: owed.due_at <= self.tables.now), "before its grace"
    ),
    "a restart in vain is owed again late": Guard(_replace(store, "RECOVERY_SECONDS", -NEVER), "earlier request"),
    "restarts are watched": Guard(_replace(watching, "watch", lambda _: WatchStep.END), "nobody watches", WATCHED),
    "the deadline is respected": Guard(_replace(Deadline, "over", lambda _: False), "after the deadline", "stopped"),
    "the next cycle goes on where this one ended": Guard(
        _replace(cycle, "advance", lambda *_, **__: Progress(Coverage(), completed_pass=False)), "not everybody"
    ),
    "absences are remembered": Guard(_replace(decide, "gone_for_good", lambda *_, **__: (True, "")), "never dead"),
    "times that lie ahead are taken back": Guard(
        _replace(store.CycleMemory, "take_back_times", lambda *_, **__: None), "stays as it is"
    ),
    "doubts are saved": Guard(_replace(Remembering, "save_doubts", lambda *_, **__: None), "nobody remembers"),
    "only what was seen dead while it was up is adopted": Guard(
        _all(
            _replace(store.Candidates, "_may_be_adopted", lambda *_, **__: True),
            _replace(decide, "_was_seen_dead", lambda *_: True),
        ),
        "an offline row is doubted",
    ),
    "what the platform took offline is adopted": Guard(
        _replace(store.Candidates, "_may_be_adopted", lambda *_, **__: False), "not everybody", OFFLINE
    ),
    "the breaker": Guard(_replace(decide, "_breaker", lambda *_, **__: decide.Breaker(False, 0, 0)), "the breaker is"),  # noqa: FBT003
    "what the breaker keeps back is looked at": Guard(
        _replace(watching.Watching, "look_at_kept_back", lambda *_: None), "keep the breaker open", seed=19_000
    ),
    "the breaker keeps restarts back": Guard(
        _replace(Circumstances, "of", _with_a_closed_breaker),
        "though the breaker is open",
    ),
}


def counterexample(guard: Guard) -> str:
    """Search for a schedule that breaks an invariant, and return which one; an empty text if there is none."""
    try:
        if guard.start:
            Exhaustive(smallest_world(guard.start), event_age_s=guard.event_age_s).schedules(1, 1)
        else:
            for seed in range(guard.seed, guard.seed + MOST_WALKS):
                walk(seed)
    except ViolationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("guard", GUARDS)
def test_without_one_guard_some_schedule_does_harm(guard: str, monkeypatch: Patch) -> None:
    GUARDS[guard].remove(monkeypatch)
    assert GUARDS[guard].violation in counterexample(GUARDS[guard])
