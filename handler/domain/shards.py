"""Which part of the fleet a cycle looks at: a range of workspace ids. Pure."""

import uuid
from dataclasses import dataclass

MOST_SHARDS = 1000
_IDS = 1 << 128


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `of` equal ranges of the ids; `number` counts from 0. The whole fleet is the one shard of one."""

    number: int = 0
    of: int = 1

    @property
    def first_id(self) -> str:
        """The first id of the range."""
        return str(uuid.UUID(int=self._begins(self.number)))

    @property
    def last_id(self) -> str:
        """The last id of the range."""
        return str(uuid.UUID(int=self._begins(self.number + 1) - 1))

    def share(self, most: int) -> int:
        """Return this shard's share of what all shards together may do, but at least one (of none: none)."""
        return min(most, max(1, most // self.of))

    def _begins(self, number: int) -> int:
        return -(-number * _IDS // self.of)


WHOLE = Shard()
