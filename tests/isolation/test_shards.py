"""Two cycles that begin at the same time: overlapping shards exclude each other, and the others never do."""

from collections.abc import Callable, Iterator

import pytest

from handler.deadline import Deadline
from handler.domain.coverage import Coverage, Progress
from handler.domain.shards import WHOLE, Shard
from handler.store import lease, memory
from handler.store.lease import Lease
from handler.store.memory import CycleMemory
from handler.store.shards import RESTED_SECONDS
from sandbox.postgres import StatusType
from tests.isolation.arena import OURS, THEIRS, WORKSPACE, Arena
from tests.support.interleaving import TIMEOUT_S, all_interleavings

LOW, HIGH = Shard(0, 2), Shard(1, 2)
_NOBODY_S = "DELETE FROM reconciler.lease WHERE scope NOT IN ('ours', 'theirs'); DELETE FROM reconciler.shard_coverage;"
_EXPIRED = f"""
{_NOBODY_S} INSERT INTO reconciler.lease (scope, holder, expires_at, shards, shard)
VALUES ('fleet', '{WORKSPACE}', now(), 1, 0), ('shard 0 of 2', '{WORKSPACE}', now(), 2, 0)
"""  # noqa: S608 - put together from constants
_RESTED = f"""
{_NOBODY_S} INSERT INTO reconciler.shard_coverage (shards, shard, taken_up_at, used_at)
SELECT 2, shard, now() - interval '1 day', now() - make_interval(secs => {2 * RESTED_SECONDS})
FROM generate_series(0, 1) AS shard UNION ALL SELECT 1, 0, now(), now()
"""  # noqa: S608 - put together from constants


@pytest.fixture(autouse=True)
def locks_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a cycle wait for another's lock as long as that takes, however slow the machine is."""
    monkeypatch.setattr(lease, "LOCK_WAIT_SECONDS", TIMEOUT_S)
    monkeypatch.setattr(lease, "ACQUIRING_SECONDS", TIMEOUT_S)
    monkeypatch.setattr(memory, "LOCK_WAIT_SECONDS", TIMEOUT_S)


@pytest.fixture
def arena(arenas: Callable[[StatusType], Arena]) -> Iterator[Arena]:
    arena = arenas("enum")
    yield arena
    arena.reset(_NOBODY_S)


def acquire(shard: Shard) -> Callable[[Arena, str], bool]:
    return lambda arena, cycle: Lease(arena.sessions[cycle], cycle, shard).acquire(Deadline(TIMEOUT_S), lasts_s=45)


def take_up(shard: Shard) -> Callable[[Arena, str], None]:
    def act(arena: Arena, cycle: str) -> None:
        CycleMemory(arena.sessions[cycle], arena.lease(cycle), shard).take_up(Deadline(TIMEOUT_S))

    return act


def save(shard: Shard) -> Callable[[Arena, str], None]:
    def act(arena: Arena, cycle: str) -> None:
        cursor = Coverage(shard.first_id, shard.first_id)
        memory_of = CycleMemory(arena.sessions[cycle], arena.lease(cycle), shard)
        memory_of.save_coverage(Deadline(TIMEOUT_S), Progress(cursor, completed_pass=True))

    return act


@pytest.mark.parametrize("before", [_NOBODY_S, _EXPIRED], ids=["no leases", "expired leases"])
@pytest.mark.parametrize(
    ("ours", "theirs", "overlap"),
    [(LOW, WHOLE, True), (WHOLE, WHOLE, True), (LOW, Shard(0, 3), True), (LOW, HIGH, False)],
    ids=["a shard and a full cycle", "two full cycles", "shards of different sets", "neighbours"],
)
def test_whoever_comes_first_has_the_lease_and_an_overlapping_one_does_not(
    arena: Arena, ours: Shard, theirs: Shard, before: str, *, overlap: bool
) -> None:
    sides = [arena.handler(OURS, acquire(ours)), arena.handler(THEIRS, acquire(theirs))]
    for interleaving in all_interleavings(sides, arena.blocked, lambda: arena.reset(before)):
        answers = [interleaving.answers[name] for name in ("ours", "theirs")]
        assert sorted(answers) == [not overlap, True], " ".join(interleaving.steps)


def coverage(arena: Arena) -> list[tuple[int, int, bool]]:
    """Return the rows of the set, and whether each was taken up just now."""
    rows = arena.look(
        "SELECT shards, shard, taken_up_at > now() - interval '1 hour'"
        " FROM reconciler.shard_coverage WHERE shards = 2 ORDER BY shard"
    )
    return [(shards, shard, now) for shards, shard, now in rows]


@pytest.mark.parametrize(
    ("before", "theirs"),
    [
        pytest.param(_NOBODY_S, take_up(HIGH), id="a new set"),
        pytest.param(_RESTED, take_up(HIGH), id="a set that has rested"),
        pytest.param(_NOBODY_S, save(HIGH), id="a new set, and another shard saves"),
    ],
)
def test_shards_that_begin_together_take_up_their_set_as_if_one_had_come_first(
    arena: Arena, theirs: Callable[[Arena, str], None], before: str
) -> None:
    sides = [arena.handler(OURS, take_up(LOW)), arena.handler(THEIRS, theirs)]
    for interleaving in all_interleavings(sides, arena.blocked, lambda: arena.reset(before)):
        assert interleaving.answers == {"ours": None, "theirs": None}, " ".join(interleaving.steps)
        assert coverage(arena) == [(2, 0, True), (2, 1, True)], " ".join(interleaving.steps)
