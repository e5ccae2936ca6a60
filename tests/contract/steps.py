"""What the contract's tests do with a store, step by step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from handler.deadline import Deadline
from handler.domain.doubts import Doubt, DoubtChanges
from handler.domain.evidence import Confirmed
from handler.domain.model import Restart, Sighting, SkipReason, Verdict, Workspace, sighting_of
from handler.domain.policy import AbsencePolicy, CrashLoopPolicy, RestartPolicy
from handler.domain.report import Gauges
from handler.domain.restarts import Circumstances, Owed, RestartDecision, Watched, before_asking
from handler.store import ActiveHolds, Flipped, FlipPolicy, Selection, Store
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid

LEASE_S, UNCERTAIN_S, RETRY_S, FRESH_S = 45.5, 300.0, 60.0, 60.0
LOOP = CrashLoopPolicy(backoff_s=300, reset_s=3600)
NOW = Circumstances(full=True, breaker_open=False, absence_counts=True, absence=AbsencePolicy(3, 120.0))
CLOSE = 5.0  # seconds by which an age may be off, because real time passes
NO_CHANGES = DoubtChanges((), (), (), (), None)


def soon() -> Deadline:
    return Deadline(10)


def holding(subject: Subject, cycle: int = 0) -> Store:
    """Return the store of a cycle that has the lease."""
    store = subject.store(cycle)
    assert store.lease.acquire(soon(), lasts_s=LEASE_S)
    return store


def hold(
    store: Store, *numbers: int, lasts_s: float = 100, reason: str = "why", deadline: Deadline | None = None
) -> ActiveHolds:
    """Put these workspaces on hold; with none, everything."""
    ids = [uuid(number) for number in numbers] or None
    return store.holds.place(deadline or soon(), ids, reason=reason, lasts_s=lasts_s, most=9)


# --- candidates and flips ---


def select(
    store: Store,
    limit: int = 100,
    workspace_ids: Sequence[str] | None = None,
    *,
    adopt: bool = True,
    by_hand: bool = False,
) -> Selection:
    return store.candidates.select(soon(), limit=limit, workspace_ids=workspace_ids, adopt=adopt, by_hand=by_hand)


def selected(store: Store) -> list[str]:
    """Return the ids of all candidates."""
    return [one.id for one in select(store).workspaces]


def policy(
    selection: Selection,
    *,
    loop: CrashLoopPolicy = LOOP,
    fresh_s: float = FRESH_S,
    grace_s: float = 0.0,
    released: bool = False,
    died_s: Mapping[str, float | None] | None = None,
) -> FlipPolicy:
    """Return the terms of a flip. `died_s` says how many seconds ago instances died, as EC2's events have it."""
    restarts = RestartPolicy(per_cycle=100, grace_s=grace_s, retry_s=RETRY_S, uncertain_s=UNCERTAIN_S)
    now_s = selection.clock.shown_s
    died_at = {one: None if ago_s is None else now_s - ago_s for one, ago_s in (died_s or {}).items()}
    return FlipPolicy(selection.selected_at, selection.clock, "ec2", fresh_s, loop, restarts, released, died_at)


def saw(workspace: Workspace, state: str = "stopped", *, age_s: float = 0.0) -> Sighting:
    """Return the sighting that was made `age_s` seconds ago."""
    return sighting_of(workspace, state, answered_at=time.monotonic() - age_s)


def confirmed(workspace: Workspace, state: str = "stopped", *, age_s: float = 0.0) -> Confirmed:
    return Confirmed(saw(workspace, state, age_s=age_s), saw(workspace, state, age_s=age_s))


def flip(
    store: Store,
    number: int = 1,
    *,
    state: str = "stopped",
    age_s: float = 0.0,
    grace_s: float = 0.0,
    by_hand: bool = False,
    released: bool = False,
) -> Flipped | SkipReason:
    """Select a workspace, and flip or adopt it at once."""
    selection = select(store, workspace_ids=[uuid(number)], by_hand=by_hand)
    one, terms = selection.workspaces[0], policy(selection, grace_s=grace_s, released=released)
    return store.flips.flip(soon(), [confirmed(one, state, age_s=age_s)], terms)[one.id]


def flipped(subject: Subject, *numbers: int, grace_s: float = 0.0) -> Store:
    """Return the store of a cycle that has just flipped these workspaces, or the first one."""
    store = holding(subject)
    for number in numbers or (1,):
        subject.add(uuid(number), instance(number))
        assert isinstance(flip(store, number, grace_s=grace_s), Flipped)
    return store


# --- doubts ---


def doubt(
    number: int = 1,
    kind: Verdict = Verdict.ABSENT,
    *,
    instance_id: str | None = None,
    reason: str = "why",
    counts: bool = True,
    by_hand: bool = False,
) -> Doubt:
    one = Workspace(uuid(number), instance_id or instance(number), None)
    return Doubt(one, kind, reason, counts=counts, by_hand=by_hand)


def save(store: Store, *new: Doubt, alive: Sequence[str] = (), found: Sequence[str] = ()) -> None:
    store.doubts.save(soon(), DoubtChanges(new, (), tuple(alive), tuple(found), None))


# --- restarts ---


def due(
    store: Store,
    *,
    refused: bool | None = None,
    limit: int = 100,
    released_only: bool = False,
    grace_s: float = 0.0,
    workspace_ids: Sequence[str] | None = None,
) -> list[Owed]:
    """Return the restarts that may be asked for now; those never refused first, unless `refused` says which ones."""
    return [
        owed
        for which in ((False, True) if refused is None else (refused,))
        for owed in store.restarts.due(
            soon(),
            refused=which,
            limit=limit,
            released_only=released_only,
            fresh_s=FRESH_S,
            grace_s=grace_s,
            workspace_ids=workspace_ids,
        )
    ]


def the_due(store: Store, number: int = 1) -> Restart:
    """Return the restart of a workspace, which has to be due."""
    (owed,) = due(store, workspace_ids=[uuid(number)])
    return owed.restart


def decide(
    store: Store,
    restart: Restart,
    state: str = "stopped",
    *,
    age_s: float = 0.0,
    now: Circumstances = NOW,
    grace_s: float = 0.0,
    blind: bool = False,
) -> RestartDecision | None:
    """Decide about a restart whose instance is seen now, and carry it out; None if somebody else has it.

    A `blind` decision sees no hold and no stop, as if they had come a moment later.
    """
    clock = select(store).clock

    def judge(owed: Owed, sighting: Sighting) -> RestartDecision:
        seen = replace(owed, on_hold=False, stopped=False) if blind else owed
        return before_asking(seen, sighting, now)

    decisions = store.restarts.claim(
        soon(),
        [(restart, saw(restart.as_candidate(), state, age_s=age_s))],
        judge,
        clock=clock,
        fresh_s=FRESH_S,
        grace_s=grace_s,
        uncertain_s=UNCERTAIN_S,
        retry_s=RETRY_S,
    )
    return decisions[0] if decisions else None


def step(store: Store, restart: Restart, state: str = "stopped", *, age_s: float = 0.0) -> str | None:
    """Return only what was decided."""
    decision = decide(store, restart, state, age_s=age_s)
    return None if decision is None else str(decision.step)


def accepted(store: Store, number: int = 1) -> Restart:
    """Have the platform accept a workspace's due restart; return it as it was claimed."""
    decision = decide(store, the_due(store, number))
    assert decision is not None
    assert decision.step == "ask"
    store.restarts.accepted(soon(), decision.restart)
    return decision.restart


def watched(store: Store) -> list[Watched]:
    return store.watches.watched(soon())


def note(store: Store, *, ended: Sequence[int] = (), up: Sequence[int] = (), not_up: Sequence[int] = ()) -> None:
    store.watches.note_watch(soon(), ended=ended, up=up, not_up=not_up)


def gauges(store: Store) -> Gauges:
    return store.gauges(soon())
