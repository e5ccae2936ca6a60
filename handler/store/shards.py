"""The SQL that narrows a statement to one shard, and that compares shards with the rows of others.

Rows of our own tables that belong to a shard have the columns `shards` and `shard`: number `shard` of `shards`. Shards
are compared as fractions of the id space, k/n, in whole numbers.
"""

from handler.domain.shards import Shard

_OURS, _OF = "CAST(:shard AS integer)", "CAST(:shards AS integer)"
IS_OUR_SHARD = f"(shards = {_OF} AND shard = {_OURS})"
IS_OUR_SET = f"(shards = {_OF})"
# The row's range and ours have ids in common.
OVERLAPS = f"(shard * {_OF} < ({_OURS} + 1) * shards AND (shard + 1) * {_OF} > {_OURS} * shards)"
# The row's range is a part of ours, or is ours.
IS_WITHIN = f"(shard * {_OF} >= {_OURS} * shards AND (shard + 1) * {_OF} <= ({_OURS} + 1) * shards)"
# A set of shards that was not used for so long, while another one was, is not in use any more.
RESTED_SECONDS = 900
# An aggregate over the rows of our set in reconciler.shard_coverage.
OUR_SET_RESTS = f"""COALESCE(
    max(used_at) < now() - make_interval(secs => {RESTED_SECONDS})
    AND max(used_at) < (SELECT max(used_at) FROM reconciler.shard_coverage WHERE NOT {IS_OUR_SET}), false)"""  # noqa: S608 - put together from constants


def in_range(column: str) -> str:
    """Return the condition that an id lies in the shard's range; `column` is an SQL expression."""
    return f"{column} BETWEEN CAST(:first_id AS uuid) AND CAST(:last_id AS uuid)"


def range_of(shard: Shard) -> dict[str, str]:
    """Return the parameters of `in_range`."""
    return {"first_id": shard.first_id, "last_id": shard.last_id}


def names_of(shard: Shard) -> dict[str, int]:
    """Return the parameters of the conditions on `shards` and `shard`."""
    return {"shard": shard.number, "shards": shard.of}
