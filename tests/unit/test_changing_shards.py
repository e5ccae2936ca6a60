"""Changing the number of shards loses and starves nobody, in whatever order it changes."""

import random
from math import ceil
from uuid import UUID

import pytest

from handler.deadline import Deadline
from handler.domain.coverage import advance
from handler.domain.shards import Shard
from tests.fakes.store import fake_store
from tests.fakes.tables import Row, Tables, contains

PERIOD_S = 60.0


class Minutes:
    """A fleet, and one cycle of each shard a minute. A cycle checks `capacity` candidates."""

    def __init__(self, chance: random.Random, *, candidates: int, capacity: int) -> None:
        ids = [str(UUID(int=chance.getrandbits(128))) for _ in range(candidates)]
        self.tables = Tables(workspaces={one: Row(f"i-{one[:8]}") for one in ids})
        self._chance, self._capacity = chance, capacity

    def pass_with(self, shards: int) -> set[str]:
        """Let a minute pass with so many shards; return who was checked."""
        numbers = list(range(shards))
        self._chance.shuffle(numbers)
        checked = {one for number in numbers for one in self._cycle(Shard(number, shards))}
        self.tables.now += PERIOD_S
        return checked

    def bound(self, shards: int) -> int:
        """Return within how many of its minutes a number of shards has checked everybody (contract, section 7)."""
        fullest = max(
            sum(contains(Shard(number, shards), one) for one in self.tables.workspaces) for number in range(shards)
        )
        return ceil(fullest / self._capacity) + 1

    def _cycle(self, shard: Shard) -> list[str]:
        store, deadline = fake_store(self.tables, f"cycle of {shard}", shard=shard), Deadline(45)
        assert store.lease.acquire(deadline, lasts_s=45)
        store.memory.take_up(deadline)
        selection = store.candidates.select(deadline, limit=self._capacity, workspace_ids=None)
        checked = [one.id for one in selection.workspaces]
        # Some run out of time, so that they are brought forward.
        late = [one for one in checked if self._chance.random() < 0.1]
        progress = advance(
            selection.coverage, selection.queues, checked=checked, out_of_time=late, most_first=len(checked) // 2
        )
        store.memory.save_coverage(deadline, progress)
        store.lease.release(deadline)
        return checked


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_numbers_of_shards_nobody_waits_longer_than_one_of_them_takes_to_go_round(seed: int) -> None:
    """Of so many minutes that each number of shards cannot have had fewer than it takes, one has had enough.

    Rows that are brought forward take half of the checks at most, so that a round takes twice as long at most.
    """
    chance = random.Random(seed)  # noqa: S311 - it has to be the same each time
    minutes = Minutes(chance, candidates=chance.randint(1, 60), capacity=chance.randint(2, 9))
    numbers = chance.sample(range(1, 12), chance.randint(1, 4))
    most = sum(2 * minutes.bound(one) for one in numbers)
    waited = dict.fromkeys(minutes.tables.workspaces, 0)
    for _ in range(3 * most):
        checked = minutes.pass_with(chance.choice(numbers))
        waited = {one: 0 if one in checked else since + 1 for one, since in waited.items()}
        assert max(waited.values()) <= most


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (3, 5), (7, 2)])
def test_once_the_number_stays_everybody_is_checked_within_its_own_bound(before: int, after: int) -> None:
    minutes = Minutes(random.Random(before), candidates=80, capacity=3)  # noqa: S311
    for _ in range(7):
        minutes.pass_with(before)
    checked = set[str]().union(*(minutes.pass_with(after) for _ in range(2 * minutes.bound(after))))
    assert checked == minutes.tables.workspaces.keys()


def test_numbers_that_alternate_starve_nobody() -> None:
    """Each goes on from its own cursor: from the other's, both would check the same ones again and again."""
    minutes = Minutes(random.Random(0), candidates=90, capacity=2)  # noqa: S311
    bound = max(2 * minutes.bound(one) for one in (1, 8))
    checked: set[str] = set()
    for _ in range(bound):
        checked |= minutes.pass_with(1)
        minutes.pass_with(8)
    assert checked == minutes.tables.workspaces.keys()
