"""The database in memory: the platform's rows and the reconciler's own. Times are seconds of one clock."""

from dataclasses import dataclass, field

from handler.domain.coverage import Coverage
from handler.store.restarts import LATEST_END_OF_STOP_SECONDS


@dataclass
class Row:
    """A workspace. `locked_by` names whose transaction has locked the row."""

    instance_id: str | None
    status: str | None = "online"
    runtime: str | None = "langgraph"
    heartbeat_at: float | None = None
    locked_by: str | None = None


@dataclass
class StoredAbsence:
    """A row of `reconciler.absences`."""

    instance_id: str
    sightings: int
    first_seen_at: float
    last_seen_at: float


@dataclass
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
    watch_ended_at: float | None = None


@dataclass
class StoredStop:
    """A row of `reconciler.restart_stops`."""

    ends_at: float


@dataclass
class StoredHold:
    """A row of `reconciler.holds`: the workspace's hold that ends last."""

    reason: str
    ends_at: float


@dataclass
class Tables:
    """One database. `events` are the workspaces and instances of the platform's WORKSPACE_OFFLINE events."""

    now: float = 1_000_000.0
    workspaces: dict[str, Row] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    lease: tuple[str, float] | None = None
    coverage: Coverage = field(default_factory=Coverage)
    first_cycle_at: float | None = None
    pass_completed_at: float | None = None
    absences: dict[str, StoredAbsence] = field(default_factory=dict)
    restarts: list[StoredRestart] = field(default_factory=list)
    stops: list[StoredStop] = field(default_factory=list)
    # By workspace; that of None is on everything. They stay when they have ended, because ages count from then.
    holds: dict[str | None, StoredHold] = field(default_factory=dict)

    def is_on_hold(self, workspace_id: str | None) -> bool:
        """Tell whether the workspace is on hold now, singly or with everything."""
        return any(one in self.holds and self.holds[one].ends_at > self.now for one in (workspace_id, None))

    def hold_ended_at(self, workspace_id: str) -> float | None:
        """Return when the workspace's latest hold, or that on everything, ends or ended."""
        return max((self.holds[one].ends_at for one in (workspace_id, None) if one in self.holds), default=None)

    def on_hold_singly(self) -> set[str]:
        """Return the workspaces that are on hold by themselves."""
        return {one for one, hold in self.holds.items() if one is not None and hold.ends_at > self.now}

    def is_stopped(self) -> bool:
        """Tell whether no restart may be asked for now."""
        return any(map(self.is_on, self.stops))

    def is_on(self, stop: StoredStop) -> bool:
        """Tell whether a stop is on now, and not left by a clock that has jumped since."""
        return self.now < stop.ends_at <= self.now + LATEST_END_OF_STOP_SECONDS

    def open_restarts(self) -> list[StoredRestart]:
        """Return the restarts that are neither accepted nor cancelled."""
        return [one for one in self.restarts if one.closed_at is None]
