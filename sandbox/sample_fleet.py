"""The demo's fleet: one workspace for each situation, and healthy ones around them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

# Instead of a state: EC2 does not know the recorded instance, or the row records none.
NOT_FOUND = "not found"
NO_INSTANCE = "none"

_DEAD_FILLER_EVERY = 40
_OLD_HEARTBEAT_S = 300.0
_FRESH_HEARTBEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class SampleWorkspace:
    """One workspace to create: its row, and its instance's state (or NOT_FOUND, or NO_INSTANCE)."""

    name: str
    instance: str = "running"
    status: str = "online"
    runtime: str = "langgraph"
    heartbeat_age_s: float = _OLD_HEARTBEAT_S
    reprovisioned: bool = False


# In this order, the dead are never the majority of the first few. Otherwise the breaker would open.
_SITUATIONS = (
    SampleWorkspace("stopped-by-hand", "stopped"),
    SampleWorkspace("healthy"),
    SampleWorkspace("spot-reclaimed", "terminated"),
    SampleWorkspace("degraded-but-up", status="degraded"),
    SampleWorkspace("starting", "pending"),
    SampleWorkspace("healthy-too"),
    SampleWorkspace("degraded-and-gone", "terminated", status="degraded"),
    SampleWorkspace("paused", "stopped", status="paused"),
    SampleWorkspace("external", "terminated", runtime="external"),
    SampleWorkspace("busy"),
    SampleWorkspace("expired-record", NOT_FOUND),
    SampleWorkspace("quiet"),
    SampleWorkspace("just-reprovisioned", "terminated", reprovisioned=True),
    SampleWorkspace("being-stopped", "stopping"),
    SampleWorkspace("still-beating", "terminated", heartbeat_age_s=_FRESH_HEARTBEAT_S),
    SampleWorkspace("idle"),
    SampleWorkspace("hibernated", "stopped", status="hibernated"),
    SampleWorkspace("never-provisioned", NO_INSTANCE),
    SampleWorkspace("being-terminated", "shutting-down"),
)


def sample_fleet(number: int) -> list[SampleWorkspace]:
    """Return that many workspaces: first one for each situation, then fillers, a few of them dead."""
    return list(islice(_endless(), number))


def workspace_id(number: int) -> str:
    """Return the id of the workspace at a place, counted from 1. It never changes, so that event files can name it."""
    return f"00000000-0000-4000-8000-{number:012d}"


def _endless() -> Iterator[SampleWorkspace]:
    yield from _SITUATIONS
    for number in count(len(_SITUATIONS) + 1):
        yield SampleWorkspace(f"filler-{number}", "stopped" if number % _DEAD_FILLER_EVERY == 0 else "running")
