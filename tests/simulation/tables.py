"""What the database holds, in memory: the platform's rows and the reconciler's own. Times are seconds of one clock."""

from dataclasses import dataclass, field

from handler.domain.coverage import Coverage


@dataclass
class Row:
    """A workspace. `locked_by` is whoever's transaction holds the row."""

    instance_id: str | None
    status: str | None = "online"
    runtime: str | None = "langgraph"
    heartbeat_at: float | None = None
    locked_by: str | None = None


@dataclass
class Absent:
    """A row of `reconciler.absences`."""

    instance_id: str
    sightings: int
    first_seen_at: float
    last_seen_at: float


@dataclass
class Owed:
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
class Held:
    """A row of `reconciler.holds`."""

    reason: str
    ends_at: float


@dataclass
class Tables:
    """One database. `events` are the workspaces and instances of the platform's WORKSPACE_OFFLINE events."""

    now: float = 1_000_000.0
    workspaces: dict[str, Row] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    lease: tuple[str, float] | None = None
    sweep: Coverage = field(default_factory=Coverage)
    began_at: float | None = None
    pass_completed_at: float | None = None
    absences: dict[str, Absent] = field(default_factory=dict)
    restarts: list[Owed] = field(default_factory=list)
    holds: dict[str, Held] = field(default_factory=dict)

    def is_held(self, workspace_id: str) -> bool:
        """Whether a hold exempts the workspace now."""
        held = self.holds.get(workspace_id)
        return held is not None and held.ends_at > self.now

    def open_restarts(self) -> list[Owed]:
        """Return the debts that are neither paid nor void."""
        return [one for one in self.restarts if one.closed_at is None]
