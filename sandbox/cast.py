"""The made-up fleet: one workspace for each fate, and healthy ones around them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

# The recorded instance of a workspace whose instance EC2 does not know, and of one that records none.
UNKNOWN = "unknown to EC2"
NONE = "none"

_CROWD_DIES_EVERY = 40
_LONG_SILENT_S = 300.0
_JUST_HEARD_S = 5.0


@dataclass(frozen=True, slots=True)
class Role:
    """One workspace to be: its row, and the state to bring its instance to (or UNKNOWN, or NONE)."""

    name: str
    instance: str = "running"
    status: str = "online"
    runtime: str = "langgraph"
    heartbeat_age_s: float = _LONG_SILENT_S
    reprovisioned: bool = False


# In this order, the dead are never the majority of any first few: the breaker would see a broken probe in that.
_ROLES = (
    Role("stopped-by-hand", "stopped"),
    Role("healthy"),
    Role("spot-reclaimed", "terminated"),
    Role("degraded-but-up", status="degraded"),
    Role("starting", "pending"),
    Role("healthy-too"),
    Role("degraded-and-gone", "terminated", status="degraded"),
    Role("paused", "stopped", status="paused"),
    Role("external", "terminated", runtime="external"),
    Role("busy"),
    Role("expired-record", UNKNOWN),
    Role("quiet"),
    Role("reprovisioned-meanwhile", "terminated", reprovisioned=True),
    Role("being-stopped", "stopping"),
    Role("still-beating", "terminated", heartbeat_age_s=_JUST_HEARD_S),
    Role("idle"),
    Role("hibernated", "stopped", status="hibernated"),
    Role("never-provisioned", NONE),
    Role("being-terminated", "shutting-down"),
)


def roles(number: int) -> list[Role]:
    """Return that many roles: the cast first, then a crowd of which a few are dead."""
    return list(islice(_endless(), number))


def workspace_id(number: int) -> str:
    """Return the id of the workspace at a place, from 1: the same in every run, so that an event can name it."""
    return f"00000000-0000-4000-8000-{number:012d}"


def _endless() -> Iterator[Role]:
    yield from _ROLES
    for number in count(len(_ROLES) + 1):
        yield Role(f"crowd-{number}", "stopped" if number % _CROWD_DIES_EVERY == 0 else "running")
