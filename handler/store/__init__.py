"""The platform's database. All of the project's SQL is in this package.

The flip, in `store.flip`, is the one place that writes to the platform's tables.
"""

from typing import TYPE_CHECKING

from handler.deadline import Deadline
from handler.domain.report import FleetGauges, Gauges
from handler.domain.shards import WHOLE, Shard
from handler.store.candidates import Candidates, Selection
from handler.store.doubts import Doubts
from handler.store.flip import FlipOutcomes, Flipped, FlipPolicy, Flips
from handler.store.gauges import read_fleet_gauges, read_gauges
from handler.store.holds import ActiveHolds, Holds
from handler.store.lease import Expiry, Lease
from handler.store.memory import CycleMemory
from handler.store.restarts import Restarts
from handler.store.rights import check_rights
from handler.store.session import Session
from handler.store.watches import Watches

if TYPE_CHECKING:
    from handler.store.explaining import Explaining

__all__ = [
    "ActiveHolds",
    "Doubts",
    "FlipOutcomes",
    "FlipPolicy",
    "Flipped",
    "Flips",
    "Holds",
    "Restarts",
    "Selection",
    "Store",
    "Watches",
]


class Store:
    """The database as one cycle sees it. Every method, also of its parts, may raise StoreError."""

    def __init__(self, session: Session, cycle_id: str, *, leased: bool = True, shard: Shard = WHOLE) -> None:
        """Act for the cycle `cycle_id`, a UUID, in the range of a shard.

        `leased`: with the lease; otherwise beside whoever has it.
        """
        self._session = session
        self._shard = shard
        self.lease = Lease(session, cycle_id, shard) if leased else Expiry(session, cycle_id)
        self.candidates = Candidates(session, shard)
        self.doubts = Doubts(session, self.lease, shard)
        self.memory = CycleMemory(session, self.lease, shard)
        self.flips = Flips(session, cycle_id, self.lease)
        self.restarts = Restarts(session, cycle_id, self.lease, shard)
        self.watches = Watches(session, cycle_id, self.lease, shard)
        self.holds = Holds(session)

    def check_rights(self, deadline: Deadline, *, to_apply: bool) -> None:
        """Raise SchemaMissingError or RightsMissingError if a cycle would fail half-way."""
        check_rights(self._session, deadline, to_apply=to_apply)

    def gauges(self, deadline: Deadline) -> Gauges:
        """Return what is open in the whole fleet at the end of a cycle, and how old it is."""
        return read_gauges(self._session, deadline, self._shard)

    def fleet_gauges(self, deadline: Deadline) -> FleetGauges:
        """Return what is wrong with the platform's rows beside dead instances."""
        return read_fleet_gauges(self._session, deadline)

    def explaining(self) -> "Explaining":
        """Return what is known of one workspace, for a person. No cycle pays for its import."""
        from handler.store.explaining import Explaining  # noqa: PLC0415

        return Explaining(self._session)
