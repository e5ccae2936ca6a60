"""What the database says of one workspace, for a person. Pure.

Times are texts: UTC, RFC 3339.
"""

from dataclasses import dataclass

from handler.domain.decide import EXTERNAL
from handler.domain.restarts import Owed, Watched


@dataclass(frozen=True, slots=True)
class Row:
    """The platform's row, as far as every cycle reads it."""

    status: str | None
    runtime: str | None
    instance_id: str | None
    last_heartbeat_at: str | None
    updated_at: str | None

    @property
    def has_instance(self) -> bool:
        """Tell whether the row records an instance of ours."""
        return bool(self.instance_id) and self.runtime != EXTERNAL


@dataclass(frozen=True, slots=True)
class RowDetails:
    """What a cycle does not need of the row, and a person likes to see."""

    name: str | None
    tier: int | None
    created_at: str | None


@dataclass(frozen=True, slots=True)
class RememberedDoubt:
    """A doubt, as it is stored."""

    kind: str
    instance_id: str
    since: str | None
    sightings: int
    latest_at: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class RestartRecord:
    """A restart, open or closed, as it is stored.

    `is_open`, `is_watched` and `unrecovered` hold now; `waits` tells that its time has not come.
    """

    id: int
    instance_id: str
    flipped_at: str | None
    due_at: str | None
    first_due_at: str | None
    attempts: int
    streak: int
    last_answer: str | None
    asked_at: str | None
    outcome: str | None
    closed_at: str | None
    watched_since: str | None
    up_since: str | None
    backoff_until: str | None
    kept_back_at: str | None
    adopted: bool
    is_open: bool
    is_watched: bool
    unrecovered: bool
    waits: bool


@dataclass(frozen=True, slots=True)
class ActiveHold:
    """The hold that keeps the workspace from everything, of several the last one to end. `all`: it is on everything."""

    all: bool
    reason: str
    ends_at: str | None


@dataclass(frozen=True, slots=True)
class Ends:
    """When the hold on the workspace and the stop that the platform asked for end; None if there is none."""

    hold: str | None = None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class OpenOrWatched:
    """Whether one of the workspace's restarts is open, or watched; both with what the database says of them now."""

    owed: Owed | None = None
    watched: Watched | None = None
