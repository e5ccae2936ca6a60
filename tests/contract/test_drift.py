"""The store in memory and the real one, taken through the same random life, answer the same at every step."""

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from handler.domain.coverage import BEFORE_ALL, Coverage, Progress
from handler.domain.doubts import DoubtChanges
from handler.domain.model import Restart, Verdict
from handler.domain.policy import CrashLoopPolicy
from handler.domain.restarts import Owed
from handler.errors import ReconcilerError
from handler.store import Selection, Store
from sandbox.postgres import StatusType
from tests.contract.steps import (
    CLOSE,
    FRESH_S,
    LEASE_S,
    RETRY_S,
    confirmed,
    decide,
    doubt,
    note,
    policy,
    select,
    soon,
    watched,
)
from tests.contract.subjects import InMemory, InPostgres, Subject
from tests.unit.builders import instance, uuid

LIVES, STEPS = 12, 100
A_YEAR_S = 365 * 86_400.0
A_MOMENT_S = 0.001  # so that later events have later times in memory, too
WORKSPACES = 3
LOOP = CrashLoopPolicy(backoff_s=300, reset_s=600)
# No sum of a few of them is close to a limit, because on PostgreSQL real time passes as well.
AGES_S = (7.13, 61.37, 131.71, 353.93, 1013.57)


@dataclass(slots=True)
class Life:
    """What happened to one store: `cycle` last had the lease; the other fields are its latest answers."""

    subject: Subject
    cycle: int = 0
    selection: Selection | None = None
    restarts: list[Restart] = field(default_factory=list)

    def store(self, chance: random.Random) -> Store:
        """Return the store of the cycle that last had the lease, or sometimes the other cycle's."""
        return self.subject.store(self.cycle if chance.random() < 0.9 else 1 - self.cycle)


# A step in a store's life, about the workspace with this number. `chance` is the same for both stores.
Step = Callable[[Life, int, random.Random], Any]


def _acquire(life: Life, number: int, _: random.Random) -> object:
    acquired = life.subject.store(number % 2).lease.acquire(soon(), lasts_s=LEASE_S)
    life.cycle = number % 2 if acquired else life.cycle
    return acquired


def _age(life: Life, number: int, chance: random.Random) -> object:
    """Let time pass; usually, another cycle begins then."""
    life.subject.age(chance.choice(AGES_S))
    return _acquire(life, number, chance) if chance.random() < 0.8 else None


def _select(life: Life, number: int, chance: random.Random) -> object:
    limit, narrowed = chance.randint(1, 4), chance.random() < 0.3
    adopt, by_hand = chance.random() < 0.9, narrowed and chance.random() < 0.5
    ids = [uuid(number)] if narrowed else None
    life.selection = select(life.store(chance), limit, ids, adopt=adopt, by_hand=by_hand)
    found = [
        (one.id, one.instance_id, one.last_heartbeat_at is None, one.on_hold, one.offline)
        for one in life.selection.workspaces
    ]
    return found, life.selection.all_selected, life.selection.queues, life.selection.coverage


def _flip(life: Life, _: int, chance: random.Random) -> object:
    """Flip what was last selected, or some of it, or ask what a flip would do."""
    if life.selection is None:
        return None
    flips = life.store(chance).flips
    attempt = flips.would_flip if chance.random() < 0.1 else flips.flip
    seen = [
        confirmed(one, chance.choice(("stopped", "not_found")), age_s=chance.choice((0.0, 0.0, 0.0, 60.0)))
        for one in life.selection.workspaces[: chance.randint(1, 3)]
    ]
    terms = policy(life.selection, loop=LOOP, grace_s=chance.choice((0.0, 100.0)), released=chance.random() < 0.2)
    return attempt(soon(), seen, terms) if seen else None


def _event(life: Life, number: int, chance: random.Random) -> object:
    """Flip what records an instance, as a cycle after EC2's events does, with or without time left for it."""
    store = life.subject.store(1, leased=False)
    store.lease.acquire(soon(), lasts_s=LEASE_S if chance.random() < 0.8 else -LEASE_S)
    ids = [instance(1), instance(2)][: 1 + number % 2]
    selection = store.candidates.recording(soon(), ids, limit=chance.randint(1, 4))
    died_s = {one: chance.choice((None, 100.0, 500.0, 2000.0, -100.0)) for one in ids}
    seen = [confirmed(one) for one in selection.workspaces]
    outcomes = store.flips.flip(soon(), seen, policy(selection, loop=LOOP, died_s=died_s)) if seen else None
    return [one.id for one in selection.workspaces], selection.all_selected, outcomes


def _recall(life: Life, _: int, chance: random.Random) -> object:
    memory = life.store(chance).doubts.recall(soon(), breaker_window_s=600)
    known = sorted(memory.doubts.items())
    ages = [age_s for _, seen in known for age_s in (seen.age_s, seen.seen_s)]
    return [(key, seen.instance_id, seen.sightings) for key, seen in known], memory.fleet, _Ages(tuple(ages))


def _gauges(life: Life, _: int, chance: random.Random) -> object:
    store = life.store(chance)
    found = store.gauges(soon())
    return (
        (
            found.restarts_pending,
            found.restarts_blocked,
            found.restarts_backing_off,
            found.restarts_unrecovered,
            found.on_hold,
            store.fleet_gauges(soon()),
        ),
        _Ages((found.oldest_restart_age_s, found.coverage_age_s, found.oldest_doubt_s)),
    )


@dataclass(frozen=True, eq=False, slots=True)
class _Ages:  # noqa: PLW1641 - it is only compared
    """Ages in seconds. They are equal if they are close."""

    ages_s: tuple[float, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ages) and self.ages_s == pytest.approx(other.ages_s, abs=CLOSE)


def _due(life: Life, number: int, chance: random.Random) -> object:
    grace_s, released_only = chance.choice((0.0, 100.0)), chance.random() < 0.1
    ids = [uuid(number)] if chance.random() < 0.2 else None
    store = life.store(chance)
    found = store.restarts.due(
        soon(),
        refused=chance.random() < 0.3,
        limit=2,
        released_only=released_only,
        fresh_s=FRESH_S,
        grace_s=grace_s,
        workspace_ids=ids,
    )
    life.restarts = [one.restart for one in found] or life.restarts
    return _said(found), store.restarts.any_due(soon(), grace_s=grace_s, workspace_ids=ids)


def _said(owed: list[Owed]) -> object:
    """Return what is the same on both databases, and the ages apart."""
    return [replace(one, restart=replace(one.restart, absent_s=0.0)) for one in owed], _Ages(
        tuple(one.restart.absent_s for one in owed)
    )


def _on_restart(act: Callable[[Store, Restart, random.Random], object]) -> Step:
    """Do something with one of the restarts that were due last."""

    def step(life: Life, number: int, chance: random.Random) -> object:
        store = life.store(chance)
        return act(store, life.restarts[number % len(life.restarts)], chance) if life.restarts else None

    return step


def _follow(life: Life, _: int, chance: random.Random) -> object:
    return sorted(life.store(chance).watches.cancel_moved_on(soon()), key=lambda one: one.id)


def _claim(store: Store, restart: Restart, chance: random.Random) -> object:
    """Decide about a restart; return only what was decided."""
    decision = decide(
        store,
        restart,
        chance.choice(("stopped", "stopped", "not_found", "running", "stopping", "no such word")),
        age_s=chance.choice((0.0, 0.0, 0.0, 60.0)),
        grace_s=chance.choice((0.0, 100.0)),
        blind=chance.random() < 0.2,
    )
    return None if decision is None else (decision.step, decision.restart.id)


def _watch(life: Life, _: int, chance: random.Random) -> object:
    """See what is watched, and note something of it."""
    store = life.store(chance)
    found = sorted(watched(store), key=lambda one: one.restart.id)
    life.restarts = [one.restart for one in found] or life.restarts
    noted: dict[str, list[int]] = {"ended": [], "up": [], "not_up": []}
    for one in found:
        noted[chance.choice(("ended", "up", "up", "not_up", "not_up", "not_up"))].append(one.restart.id)
    note(store, **noted)
    said = [
        (one.restart.id, one.status, one.is_open, one.same_instance, one.up_s is None, one.on_hold) for one in found
    ]
    return said, _Ages(tuple(one.up_s or 0.0 for one in found))


def _again(store: Store, restart: Restart, chance: random.Random) -> object:
    return store.watches.owe_again(soon(), {restart.id: (chance.randint(0, 4), chance.choice((0.0, 200.0)))})


def _jump(life: Life, number: int, chance: random.Random) -> None:
    """Have the database's clock be a year ahead until now, and a cycle take the times back."""
    life.subject.age(-A_YEAR_S)
    _acquire(life, number, chance)
    for one in range(1, WORKSPACES + 1):  # a hold stays as it is
        life.store(chance).holds.release(soon(), [uuid(one)], most=99)
    life.subject.store(life.cycle).memory.take_back_times(soon(), longest_wait_s=900.0)


def _breaker(life: Life, number: int, chance: random.Random) -> object:
    watches, ids = life.store(chance).watches, [uuid(number)] if chance.random() < 0.5 else None
    if chance.random() < 0.3:
        watches.release(soon(), workspace_ids=ids)
    watches.keep_back(soon(), grace_s=chance.choice((0.0, 100.0)), workspace_ids=ids)
    looked_at: dict[str, list[Restart]] = {"running": [], "found": [], "others": []}
    for one in watches.kept_back(soon(), workspace_ids=ids):
        looked_at[chance.choice(("running", "found", "others", "others"))].append(one)
    said = {name: [one.id for one in some] for name, some in looked_at.items()}
    return said, [one.id for one in watches.look_at_kept_back(soon(), **looked_at)]


def _coverage(life: Life, number: int, chance: random.Random) -> None:
    first = tuple(uuid(one) for one in range(1, 4) if chance.random() < 0.2)
    coverage = Coverage(chance.choice((BEFORE_ALL, uuid(1), uuid(2))), uuid(number), first)
    life.store(chance).memory.save_coverage(soon(), Progress(coverage, completed_pass=chance.random() < 0.5))


def _doubts(life: Life, number: int, chance: random.Random) -> None:
    """Save doubts of some workspaces, and forget others'."""
    others = [uuid(one) for one in range(1, WORKSPACES + 1) if one != number]
    new = [
        doubt(
            number,
            kind,
            instance_id=instance(chance.randint(1, 2)),
            reason=chance.choice(("why", "why not")),
            counts=chance.random() < 0.8,
            by_hand=chance.random() < 0.1,
        )
        for kind in Verdict
        if kind is not Verdict.RUNNING and chance.random() < 0.5
    ]
    sources = {cause: 1001 for cause in ("timeout", "throttled") if chance.random() < 0.3}
    changes = DoubtChanges(
        tuple(new),
        (),
        tuple(one for one in others if chance.random() < 0.2),
        tuple(one for one in others if chance.random() < 0.2),
        sources if chance.random() < 0.5 else None,
    )
    life.store(chance).doubts.save(soon(), changes)


def _tend(life: Life, number: int, chance: random.Random) -> None:
    doubts = life.store(chance).doubts
    doubts.set_reasons(soon(), {uuid(number): "row_locked"})
    doubts.tend(soon())


def _hold(life: Life, number: int, chance: random.Random) -> object:
    holds = life.store(chance).holds.place(soon(), [uuid(number)], reason="why", lasts_s=100, most=99)
    return [(one.workspace_id, one.reason) for one in holds.holds]


def _release(life: Life, number: int, chance: random.Random) -> object:
    return [one.workspace_id for one in life.store(chance).holds.release(soon(), [uuid(number)], most=99).holds]


def _on_row(act: Callable[[Subject, str, random.Random], object]) -> Step:
    """Do something to a row, if it is there."""

    def step(life: Life, number: int, chance: random.Random) -> object:
        return act(life.subject, uuid(number), chance) if uuid(number) in life.subject.rows() else None

    return step


def _add(life: Life, number: int, chance: random.Random) -> None:
    if uuid(number) not in life.subject.rows():
        life.subject.add(uuid(number), instance(chance.randint(1, 2)))


def _status(subject: Subject, one: str, chance: random.Random) -> None:
    subject.update(one, status=chance.choice(("online", "online", "degraded", "offline", "paused", "provisioning")))


STEPS_AND_WEIGHTS: tuple[tuple[Step, int], ...] = (
    (_acquire, 4),
    (lambda life, _, chance: life.store(chance).lease.release(soon()), 1),
    (_select, 10),
    (_flip, 16),
    (_event, 5),
    (_recall, 3),
    (_gauges, 3),
    (_due, 10),
    (_on_restart(_claim), 14),
    (_on_restart(lambda store, restart, _: store.restarts.accepted(soon(), restart)), 4),
    (_on_restart(lambda store, restart, _: store.restarts.give_back(soon(), restart)), 2),
    (_on_restart(lambda store, restart, _: store.restarts.put_off(soon(), [restart], wait_s=RETRY_S)), 1),
    (_on_restart(lambda store, restart, _: store.watches.count_absences(soon(), [restart])), 1),
    (_on_restart(lambda store, restart, _: store.watches.count_absences(soon(), [], others=[restart])), 1),
    (_on_restart(_again), 3),
    (_watch, 4),
    (_breaker, 3),
    (
        _on_restart(
            lambda store, restart, chance: store.restarts.record_answer(
                soon(),
                restart,
                chance.choice(("refused", "blocked")),
                wait_s=chance.choice((None, RETRY_S)),
                claimed=chance.random() < 0.8,
            )
        ),
        4,
    ),
    (lambda life, _, chance: life.store(chance).restarts.stop(soon(), lasts_s=chance.choice((1, RETRY_S))), 1),
    (_follow, 3),
    (_coverage, 2),
    (_jump, 1),
    (lambda life, _, chance: life.store(chance).memory.purge(soon()), 2),
    (_doubts, 8),
    (_tend, 3),
    (_hold, 2),
    (_release, 3),
    (_age, 10),
    (_add, 4),
    (_on_row(_status), 12),
    (_on_row(lambda subject, one, chance: subject.update(one, instance_id=instance(chance.randint(1, 2)))), 3),
    (_on_row(lambda subject, one, _: subject.update(one, instance_id=None)), 1),
    (_on_row(lambda subject, one, chance: subject.heartbeat(one, age_s=chance.choice((0, 200, 900)))), 2),
    (_on_row(lambda subject, one, _: subject.delete(one)), 1),
)


@pytest.mark.parametrize("status_type", ["enum", "text"])
@pytest.mark.parametrize("seed", range(LIVES))
def test_the_store_in_memory_and_the_real_one_answer_the_same(
    request: pytest.FixtureRequest, status_type: StatusType, seed: int
) -> None:
    with closing(InPostgres(request.getfixturevalue(f"{status_type}_database"))) as real:
        memory = InMemory()
        lives = Life(memory), Life(real)
        for life in lives:
            for number in range(1, WORKSPACES + 1):
                life.subject.add(uuid(number), instance(number))
        chance = random.Random(f"{seed} {status_type}")  # noqa: S311 - it has to be the same each time
        steps, weights = zip(*STEPS_AND_WEIGHTS, strict=True)
        for _ in range(STEPS):
            (step,), number, inner = chance.choices(steps, weights), chance.randint(1, WORKSPACES), chance.random()
            memory.tables.now += A_MOMENT_S
            told = [_told(step, life, number, random.Random(inner)) for life in lives]  # noqa: S311
            assert told[0] == told[1], step
            assert lives[0].subject.rows() == lives[1].subject.rows(), step
            assert lives[0].subject.restarts() == lives[1].subject.restarts(), step
            assert lives[0].subject.more() == lives[1].subject.more(), step
            assert lives[0].subject.doubts() == lives[1].subject.doubts(), step
            assert sorted(lives[0].subject.events()) == sorted(lives[1].subject.events())


def _told(step: Step, life: Life, number: int, chance: random.Random) -> object:
    try:
        return step(life, number, chance)
    except ReconcilerError as error:
        return type(error)
