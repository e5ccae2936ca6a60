"""The store in memory and the real one, taken through the same random life, answer the same at every step."""

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest

from handler.domain.coverage import BEFORE_ALL, Coverage, Progress
from handler.domain.model import Restart, Workspace, sighting_of
from handler.domain.policy import CrashLoopPolicy
from handler.errors import ReconcilerError
from handler.store import FlipPolicy, Selection, Store
from sandbox.postgres import StatusType
from tests.contract.subjects import InMemory, InPostgres, Subject
from tests.contract.test_store import CLOSE, FRESH_S, LEASE_S, RETRY_S, UNCERTAIN_S, soon
from tests.unit.builders import instance, uuid

LIVES, STEPS = 12, 80
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
    limit, narrowed = chance.randint(1, 4), chance.random() < 0.2
    ids = [uuid(number)] if narrowed else None
    life.selection = life.store(chance).candidates.select(soon(), limit=limit, workspace_ids=ids)
    found = [(one.id, one.instance_id, one.last_heartbeat_at is None) for one in life.selection.workspaces]
    return found, life.selection.all_selected, life.selection.queues, life.selection.coverage


def _flip(life: Life, number: int, chance: random.Random) -> object:
    """Flip one of the last selected workspaces, or ask what a flip would do."""
    if life.selection is None or not life.selection.workspaces:
        return None
    workspace = life.selection.workspaces[number % len(life.selection.workspaces)]
    flips = life.store(chance).flips
    attempt = flips.would_flip if chance.random() < 0.1 else flips.flip
    return attempt(soon(), sighting_of(workspace, "stopped"), FlipPolicy(life.selection.selected_at, 60, LOOP))


def _recall(life: Life, _: int, chance: random.Random) -> object:
    memory = life.store(chance).memory.recall(soon(), breaker_window_s=600)
    known = {one: (seen.instance_id, seen.sightings) for one, seen in memory.absences.items()}
    return known, memory.recently_flipped, _Ages(tuple(seen.age_s for _, seen in sorted(memory.absences.items())))


def _gauges(life: Life, _: int, chance: random.Random) -> object:
    found = life.store(chance).gauges(soon())
    return (
        (
            found.restarts_pending,
            found.restarts_blocked,
            found.restarts_backing_off,
            found.restarts_unrecovered,
            found.on_hold,
        ),
        _Ages((found.oldest_restart_age_s, found.coverage_age_s)),
    )


@dataclass(frozen=True, eq=False, slots=True)
class _Ages:  # noqa: PLW1641 - it is only compared
    """Ages in seconds. They are equal if they are close."""

    ages_s: tuple[float, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ages) and self.ages_s == pytest.approx(other.ages_s, abs=CLOSE)


def _due(life: Life, _: int, chance: random.Random) -> object:
    life.restarts = life.store(chance).restarts.due(soon(), limit=3, own_only=chance.random() < 0.2)
    return life.restarts


def _on_restart(act: Callable[[Store, Restart, random.Random], object]) -> Step:
    """Do something with one of the restarts that were due last."""

    def step(life: Life, number: int, chance: random.Random) -> object:
        store = life.store(chance)
        return act(store, life.restarts[number % len(life.restarts)], chance) if life.restarts else None

    return step


def _follow(life: Life, _: int, chance: random.Random) -> object:
    return life.store(chance).restarts.cancel_moved_on(soon(), own_only=chance.random() < 0.2)


def _coverage(life: Life, number: int, chance: random.Random) -> None:
    first = tuple(uuid(one) for one in range(1, 4) if chance.random() < 0.2)
    coverage = Coverage(chance.choice((BEFORE_ALL, uuid(1), uuid(2))), uuid(number), first)
    life.store(chance).memory.save_coverage(soon(), Progress(coverage, completed_pass=chance.random() < 0.5))


def _absent(life: Life, number: int, chance: random.Random) -> None:
    absent = [Workspace(uuid(number), instance(chance.randint(1, 2)), None)]
    found = [uuid(one) for one in range(1, 4) if one != number and chance.random() < 0.3]
    life.store(chance).memory.remember_absences(soon(), absent, found)


def _hold(life: Life, number: int, chance: random.Random) -> object:
    holds = life.store(chance).holds.place(soon(), [uuid(number)], reason="why", lasts_s=100)
    return [(one.workspace_id, one.reason) for one in holds]


def _release(life: Life, number: int, chance: random.Random) -> object:
    return [one.workspace_id for one in life.store(chance).holds.release(soon(), [uuid(number)])]


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
    (_recall, 3),
    (_gauges, 3),
    (_due, 10),
    (
        _on_restart(
            lambda store, restart, _: store.restarts.claim(
                soon(), restart, uncertain_s=UNCERTAIN_S, heartbeat_fresh_s=FRESH_S
            )
        ),
        10,
    ),
    (_on_restart(lambda store, restart, _: store.restarts.accepted(soon(), restart)), 3),
    (_on_restart(lambda store, restart, _: store.restarts.cancel(soon(), restart)), 1),
    (_on_restart(lambda store, restart, _: store.restarts.put_off(soon(), [restart], wait_s=RETRY_S)), 2),
    (
        _on_restart(
            lambda store, restart, chance: store.restarts.record_answer(
                soon(), restart, chance.choice(("refused", "blocked")), wait_s=chance.choice((None, RETRY_S))
            )
        ),
        4,
    ),
    (lambda life, _, chance: life.store(chance).restarts.stop(soon(), lasts_s=chance.choice((1, RETRY_S))), 1),
    (_follow, 3),
    (_coverage, 2),
    (lambda life, _, chance: life.store(chance).memory.purge(soon()), 2),
    (_absent, 4),
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
            assert lives[0].subject.events() == lives[1].subject.events()


def _told(step: Step, life: Life, number: int, chance: random.Random) -> object:
    try:
        return step(life, number, chance)
    except ReconcilerError as error:
        return type(error)
