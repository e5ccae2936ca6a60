"""Ranges of ids: together they are everything, and none overlaps another."""

from itertools import pairwise
from uuid import UUID

import pytest

from handler.domain.shards import MOST_SHARDS, WHOLE, Shard


@pytest.mark.parametrize("of", [1, 2, 3, 7, 8, 40, 999, MOST_SHARDS])
def test_the_shards_of_a_set_follow_each_other_without_a_gap_and_are_equally_large(of: int) -> None:
    shards = [Shard(number, of) for number in range(of)]
    bounds = [(UUID(one.first_id).int, UUID(one.last_id).int) for one in shards]
    assert (bounds[0][0], bounds[-1][1]) == (0, 2**128 - 1)
    assert all(last + 1 == first for (_, last), (first, _) in pairwise(bounds))
    sizes = [last - first + 1 for first, last in bounds]
    assert max(sizes) - min(sizes) <= 1
    assert all(k * 2**128 <= first * of and last * of < (k + 1) * 2**128 for k, (first, last) in enumerate(bounds))


def test_the_whole_fleet_is_the_one_shard_of_one() -> None:
    assert Shard(0, 1) == WHOLE
    assert (Shard(1, 2).first_id, Shard(0, 2).last_id) == (
        "80000000-0000-0000-0000-000000000000",
        "7fffffff-ffff-ffff-ffff-ffffffffffff",
    )


@pytest.mark.parametrize(
    ("most", "of", "share"), [(100, 1, 100), (100, 8, 12), (100, 40, 2), (100, 200, 1), (0, 1, 0), (0, 8, 0)]
)
def test_a_shard_has_its_part_of_what_all_may_do_but_at_least_one(most: int, of: int, share: int) -> None:
    assert Shard(0, of).share(most) == share
