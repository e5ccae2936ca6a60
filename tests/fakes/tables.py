"""The database in memory: the platform's rows and the reconciler's own. Times are seconds of one clock."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from handler.domain.coverage import BEFORE_ALL, Coverage
from handler.domain.decide import CANDIDATE_STATUSES, EXTERNAL, OFFLINE
from handler.domain.model import Verdict
from handler.domain.shards import WHOLE, Shard
from handler.store.restarts import LATEST_END_OF_STOP_SECONDS

GONE = (Verdict.DEAD, Verdict.ABSENT)
REMEMBERED_DEAD_SECONDS = 24 * 3600.0


def contains(shard: Shard, workspace_id: str) -> bool:
    """Tell whether an id lies in the shard's range. Ids need not be UUIDs."""
    return shard == WHOLE or shard.first_id <= workspace_id <= shard.last_id


def overlap(one: Shard, other: Shard) -> bool:
    """Tell whether two shards have ids in common."""
    return one.first_id <= other.last_id and other.first_id <= one.last_id


def is_within(one: Shard, other: Shard) -> bool:
    """Tell whether all of one shard's ids are the other's."""
    return other.first_id <= one.first_id and one.last_id <= other.last_id


@dataclass(slots=True)
class Row:
    """A workspace. `locked_by` names whose transaction has locked the row, here and below."""

    instance_id: str | None
    status: str | None = "online"
    runtime: str | None = "langgraph"
    heartbeat_at: float | None = None
    updated_at: float | None = None
    locked_by: str | None = None

    @property
    def is_up(self) -> bool:
        """Tell whether the row is a candidate."""
        return self.status in CANDIDATE_STATUSES and self._is_ours

    @property
    def is_offline(self) -> bool:
        """Tell whether the row may be a candidate for an adoption."""
        return self.status == OFFLINE and self._is_ours

    @property
    def _is_ours(self) -> bool:
        return bool(self.instance_id) and self.runtime != EXTERNAL


@dataclass(slots=True)
class StoredDoubt:
    """A row of `reconciler.doubts`."""

    workspace_id: str
    kind: Verdict
    instance_id: str
    reason: str
    since: float
    last_seen_at: float
    sightings: int = 1
    offline_since: float | None = None
    by_hand: bool = False
    locked_by: str | None = None


@dataclass(slots=True)
class StoredCoverage:
    """A row of `reconciler.shard_coverage`."""

    taken_up_at: float
    used_at: float | None = None
    coverage: Coverage | None = None
    pass_completed_at: float | None = None


@dataclass(slots=True)
class StoredSource:
    """A row of `reconciler.source_doubts`."""

    workspaces: int
    since: float
    last_seen_at: float


@dataclass(slots=True)
class StoredRestart:
    """A row of `reconciler.restarts`."""

    id: int
    workspace_id: str
    instance_id: str
    cycle_id: str
    flipped_at: float
    due_at: float
    attempts: int = 0
    refusals: int = 0
    claimed_by: str | None = None
    asked_at: float | None = None
    last_answer: str | None = None
    closed_at: float | None = None
    outcome: str | None = None
    streak: int = 0
    backoff_until: float | None = None
    adopted: bool = False
    released: bool = False
    kept_back_at: float | None = None
    absent_sightings: int = 0
    absent_since: float | None = None
    first_due_at: float | None = None
    watched_since: float | None = None
    up_since: float | None = None
    watch_ended_at: float | None = None
    locked_by: str | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether the restart is neither accepted nor cancelled."""
        return self.closed_at is None

    @property
    def is_watched(self) -> bool:
        """Tell whether the watch goes on."""
        return self.watched_since is not None and self.watch_ended_at is None


@dataclass(slots=True)
class StoredStop:
    """A row of `reconciler.restart_stops`."""

    ends_at: float


@dataclass(slots=True)
class StoredHold:
    """A row of `reconciler.holds`: the workspace's hold that ends last."""

    reason: str
    ends_at: float


@dataclass
class Tables:
    """One database. `events` are the workspaces and instances of the platform's WORKSPACE_OFFLINE events.

    `leases` are holders and expiries. `locked` names the tables that somebody else has locked: `coverage`, `lease`.
    """

    now: float = 1_000_000.0
    workspaces: dict[str, Row] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    leases: dict[Shard, tuple[str, float]] = field(default_factory=dict)
    shards: dict[Shard, StoredCoverage] = field(default_factory=dict)
    doubts: dict[tuple[str, Verdict], StoredDoubt] = field(default_factory=dict)
    sources: dict[tuple[str, Shard], StoredSource] = field(default_factory=dict)
    restarts: list[StoredRestart] = field(default_factory=list)
    stops: list[StoredStop] = field(default_factory=list)
    # By workspace; that of None is on everything. They stay when they have ended, because ages count from then.
    holds: dict[str | None, StoredHold] = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)

    @property
    def lease(self) -> tuple[str, float] | None:
        """Whose the lease of full cycles is, and when it ends."""
        return self.leases.get(WHOLE)

    @lease.setter
    def lease(self, lease: tuple[str, float]) -> None:
        self.leases[WHOLE] = lease

    @property
    def coverage(self) -> Coverage:
        """Where the next full cycle begins."""
        return self.coverage_of(WHOLE)

    @coverage.setter
    def coverage(self, coverage: Coverage) -> None:
        self.shards[WHOLE] = StoredCoverage(self.now, self.now, coverage)

    def coverage_of(self, shard: Shard) -> Coverage:
        """Return where the shard's next cycle begins: it inherits that from earlier shards if it has saved nothing."""
        own = self.shards.get(shard)
        if own is not None and own.coverage is not None:
            return own.coverage
        earlier = [
            (-math.inf if one.used_at is None else one.used_at, one.coverage)
            for other, one in self.shards.items()
            if one.coverage is not None and overlap(other, shard)
        ]
        if not earlier:
            return Coverage()
        cursor = max(earlier, key=lambda one: one[0])[1].cursor
        start = cursor if contains(shard, cursor) else BEFORE_ALL
        first = {one for _, coverage in earlier for one in coverage.brought_forward if contains(shard, one)}
        return Coverage(start, start, tuple(sorted(first)))

    def is_on_hold(self, workspace_id: str | None) -> bool:
        """Tell whether the workspace is on hold now, singly or with everything."""
        return any(one in self.holds and self.holds[one].ends_at > self.now for one in (workspace_id, None))

    def on_hold_singly(self) -> set[str]:
        """Return the workspaces that are on hold by themselves."""
        return {one for one, hold in self.holds.items() if one is not None and hold.ends_at > self.now}

    def on_hold(self) -> set[str]:
        """Return the workspaces that are on hold: also all candidates, if everything is."""
        doubted = {(one.workspace_id, one.instance_id) for one in self.doubts.values() if one.kind in GONE}
        candidates = {
            one
            for one, row in self.workspaces.items()
            if row.is_up or (row.is_offline and (one, row.instance_id) in doubted)
        }
        return self.on_hold_singly() | (candidates if self.is_on_hold(None) else set())

    def hold_ended_at(self, workspace_id: str) -> float:
        """Return when the latest hold, single or on everything, ends or ended; the beginning of time without one."""
        return max((self.holds[one].ends_at for one in (workspace_id, None) if one in self.holds), default=-math.inf)

    def is_stopped(self) -> bool:
        """Tell whether no restart may be asked for now."""
        return any(map(self.is_on, self.stops))

    def is_on(self, stop: StoredStop) -> bool:
        """Tell whether a stop is on now, and not left by a clock that has jumped since."""
        return self.now < stop.ends_at <= self.now + LATEST_END_OF_STOP_SECONDS

    def open_restarts(self) -> list[StoredRestart]:
        """Return the restarts that are neither accepted nor cancelled."""
        return [one for one in self.restarts if one.is_open]

    def restarts_of(self, workspace_id: str) -> list[StoredRestart]:
        """Return a workspace's restarts, the latest last."""
        return [one for one in self.restarts if one.workspace_id == workspace_id]

    def live_restart(self, workspace_id: str) -> StoredRestart | None:
        """Return the workspace's restart that is open or watched."""
        return next((one for one in self.restarts_of(workspace_id) if one.is_open or one.is_watched), None)

    def is_restarting(self, workspace_id: str, *, by_hand: bool) -> bool:
        """Tell whether a restart is open or watched. By hand, a watch over another instance's is no obstacle."""
        row = self.workspaces[workspace_id]
        return any(
            one.is_open or (one.is_watched and (one.instance_id == row.instance_id or not by_hand))
            for one in self.restarts_of(workspace_id)
        )

    def doubts_of(self, workspace_id: str) -> list[StoredDoubt]:
        """Return a workspace's doubts."""
        return [one for one in self.doubts.values() if one.workspace_id == workspace_id]

    def remembers_dead(self, doubt: StoredDoubt) -> bool:
        """Tell whether a doubt says that the instance was dead or absent within the last 24 hours."""
        recent = doubt.last_seen_at > self.now - REMEMBERED_DEAD_SECONDS
        return doubt.kind in GONE and doubt.sightings > 0 and recent

    def forget(self, doubts: Iterable[StoredDoubt]) -> None:
        """Delete doubts, but for those that somebody else has locked."""
        for one in doubts:
            if one.locked_by is None:
                del self.doubts[one.workspace_id, one.kind]
