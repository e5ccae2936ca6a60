"""What a cycle speaks of: plain values."""

from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """What an instance's state means for the workspace that records it."""

    RUNNING = "running"
    TRANSITION = "transition"
    DEAD = "dead"
    ABSENT = "absent"
    UNKNOWN = "unknown"


NOT_FOUND = "not_found"

# EC2's own words:
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceState.html
VERDICT_OF_STATE = {
    "running": Verdict.RUNNING,
    "pending": Verdict.TRANSITION,
    "stopping": Verdict.TRANSITION,
    "shutting-down": Verdict.TRANSITION,
    "stopped": Verdict.DEAD,
    "terminated": Verdict.DEAD,
    NOT_FOUND: Verdict.ABSENT,
}

FOUND = frozenset({Verdict.RUNNING, Verdict.TRANSITION, Verdict.DEAD})


class SkipReason(StrEnum):
    """Why a workspace that looked dead was not flipped."""

    ROW_GONE = "row_gone"
    STATUS_MOVED = "status_moved"
    INSTANCE_CLEARED = "instance_cleared"
    INSTANCE_CHANGED = "instance_changed"
    ROW_LOCKED = "row_locked"
    FRESH_HEARTBEAT = "fresh_heartbeat"
    RECONFIRM_ERROR = "reconfirm_error"
    NOT_CONFIRMED = "not_confirmed"
    BREAKER_OPEN = "breaker_open"
    OUT_OF_TIME = "out_of_time"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A candidate as the cycle's SELECT saw it; the heartbeat is the database's own text for it."""

    id: str
    instance_id: str
    last_heartbeat_at: str | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """One answer about one candidate's instance.

    `state` is EC2's word, or `not_found`, and empty for UNKNOWN; `cause` says why it is UNKNOWN.
    `took_s` is how long the answer took, in seconds, where that matters for what can still be done.
    """

    workspace: Workspace
    verdict: Verdict
    state: str
    cause: str = ""
    took_s: float = 0.0


def sighting_of(workspace: Workspace, state: str, took_s: float = 0.0) -> Sighting:
    """Return the sighting of `state`, which is UNKNOWN when EC2 has no such word."""
    verdict = VERDICT_OF_STATE.get(state)
    if verdict is None:
        return unknown(workspace, "unrecognised_state")
    return Sighting(workspace, verdict, state, took_s=took_s)


def unknown(workspace: Workspace, cause: str) -> Sighting:
    """Return the sighting of no usable answer; `cause` is a word of ours, never a remote's."""
    return Sighting(workspace, Verdict.UNKNOWN, "", cause)


@dataclass(frozen=True, slots=True)
class CurrentRow:
    """The row as the flip's re-read finds it, with the heartbeat's veto judged by the database.

    `restarts` counts those asked for without a stretch of health between, and `healthy_s` is for how many seconds it
    has been up since; both are None when it never was owed one.
    """

    status: str | None
    instance_id: str | None
    runtime: str | None
    fresh_heartbeat: bool
    held: bool = False
    restarts: int | None = None
    healthy_s: float | None = None


@dataclass(frozen=True, slots=True)
class Debt:
    """A restart that is owed to a flipped workspace."""

    id: int
    workspace_id: str
    instance_id: str
    attempts: int
    refusals: int
    of_this_cycle: bool

    def as_candidate(self) -> Workspace:
        """Return what a probe has to look at before the restart is asked for again."""
        return Workspace(self.workspace_id, self.instance_id, None)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the database says at the end of a cycle; ages in seconds."""

    restarts_pending: int
    restarts_blocked: int
    restarts_paused: int
    restarts_unrecovered: int
    oldest_restart_age_s: float
    coverage_age_s: float
    held: int


@dataclass(frozen=True, slots=True)
class Hold:
    """A workspace that is exempt; `ends_at` is a time in UTC (RFC 3339)."""

    workspace_id: str
    reason: str
    ends_at: str


@dataclass(slots=True)
class RestartCounts:
    """What became of the restarts that were owed."""

    requested: int = 0
    void: int = 0
    failed: int = 0
    uncertain: int = 0
    blocked: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Flip:
    """A workspace that was flipped, or that a dry run would have flipped."""

    workspace_id: str
    instance_id: str
    instance_state: str


@dataclass(slots=True)
class Report:
    """What one cycle did. The handler's answer, and the source of its metrics."""

    mode: str
    probe: str
    outcome: str = "completed"
    candidates: int = 0
    checked: int = 0
    running: int = 0
    transition: int = 0
    dead: int = 0
    absent: int = 0
    unknown: int = 0
    flipped: int = 0
    completed_pass: bool = False
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, SkipReason), 0))
    deferred: int = 0
    deadline_hit: bool = False
    breaker_open: bool = False
    restarts: RestartCounts = field(default_factory=RestartCounts)
    restarts_paused: int = 0
    restarts_unrecovered: int = 0
    held: int = 0
    duration_ms: int = 0
    flips: list[Flip] = field(default_factory=list)
