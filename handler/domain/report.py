"""What one cycle did: the source of the handler's answer and of its metrics."""

from dataclasses import dataclass, field
from enum import StrEnum

from handler.domain.model import SkipReason


class Outcome(StrEnum):
    """How a cycle ended."""

    COMPLETED = "completed"
    ALREADY_RUNNING = "already_running"


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is open in the database at the end of a cycle, with ages in seconds."""

    restarts_pending: int
    restarts_blocked: int
    restarts_backing_off: int
    restarts_unrecovered: int
    oldest_restart_age_s: float
    coverage_age_s: float
    on_hold: int
    oldest_doubt_s: float


@dataclass(frozen=True, slots=True)
class FleetGauges:
    """Rows that are up without an instance, and rows that have been offline for long without anybody at it."""

    unrecorded: int = 0
    offline_unowed: int = 0


@dataclass(frozen=True, slots=True)
class Flip:
    """A workspace that was flipped, or that a dry run would flip or adopt, or that the open breaker `blocked`."""

    workspace_id: str
    instance_id: str
    instance_state: str
    adopted: bool = False
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class RestartCounts:
    """Restarts: what this cycle did about them (the first four), and how things stand at its end (the others)."""

    accepted: int = 0
    cancelled: int = 0
    refused: int = 0
    uncertain: int = 0
    blocked: int = 0
    pending: int = 0
    backing_off: int = 0
    unrecovered: int = 0


def no_skips() -> dict[str, int]:
    """Return every skip reason with the count 0."""
    return {str(reason): 0 for reason in SkipReason}


@dataclass(frozen=True, slots=True)
class Report:
    """One cycle, in the fields and the order of the handler's answer. `docs/reference.md` explains each field."""

    mode: str
    probe: str
    outcome: Outcome = Outcome.COMPLETED
    candidates: int = 0
    checked: int = 0
    running: int = 0
    transition: int = 0
    dead: int = 0
    absent: int = 0
    unknown: int = 0
    impaired: int = 0
    flipped: int = 0
    adopted: int = 0
    completed_pass: bool = False
    skipped: dict[str, int] = field(default_factory=no_skips)
    deferred: int = 0
    deadline_hit: bool = False
    breaker_open: bool = False
    restarts: RestartCounts = field(default_factory=RestartCounts)
    on_hold: int = 0
    oldest_doubt_seconds: int = 0
    unrecorded: int = 0
    offline_unowed: int = 0
    targets_failed: list[str] = field(default_factory=list)
    targets_empty: list[str] = field(default_factory=list)
    duration_ms: int = 0
    flips: tuple[Flip, ...] = ()
