"""What EC2's state-change events are good for: they say where to look, and since when. Pure.

An event may be lost, late, doubled or untrue, so nothing is flipped because of what it says. Only its time counts: a
workspace that has sent no heartbeat since its machine's death has not outlived it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from handler.domain.model import VERDICT_OF_STATE, Verdict

# A heartbeat that was sent before the death may arrive this much later. EC2 rounds the event's time down to a second.
HEARTBEAT_ARRIVES_SECONDS = 5.0
# The time of an older event says nothing about today's machine.
OLDEST_EVENT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class StateChange:
    """An instance that EC2 says has changed its state, and when, in seconds since 1970.

    Without a usable time (None), the ordinary heartbeat rule holds for it.
    """

    instance_id: str
    state: str
    at: float | None


def merged(changes: Iterable[StateChange]) -> dict[str, StateChange]:
    """Return the latest change of each instance. Its time is used only if all of them tell of a death at some time."""
    latest: dict[str, StateChange] = {}
    for change in changes:
        one = change if VERDICT_OF_STATE.get(change.state) is Verdict.DEAD else replace(change, at=None)
        other = latest.get(one.instance_id)
        if other is None or one.at is None or (other.at is not None and one.at > other.at):
            latest[one.instance_id] = one
    return latest


def latency_s(change: StateChange, committed_at_s: float) -> float | None:
    """Return how many seconds after the event a flip was committed; None if the event's time is unusable."""
    if change.at is None or not 0.0 <= committed_at_s - change.at <= OLDEST_EVENT_SECONDS:
        return None
    return committed_at_s - change.at
