"""Why a workspace fared as it did: told from what the handler logged, and from the row where it logged nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# What the handler's skip reasons mean, for someone who reads them for the first time.
SKIPPED = {
    "row_gone": "its row was deleted while it was being probed",
    "status_moved": "its status changed while it was being probed",
    "instance_cleared": "its instance was cleared while it was being probed",
    "instance_changed": "it got a new instance while the old one was being probed",
    "row_locked": "someone else holds its row",
    "fresh_heartbeat": "its heartbeat is fresh, so something still lives",
    "reconfirm_error": "its row could not be read again",
    "not_confirmed": "the second probe did not say the same",
    "breaker_open": "too many look dead at once, so the probe itself is doubted",
    "out_of_time": "no time was left; the next cycle takes it up first",
}

_DECISIONS = ("workspace flipped", "would flip", "flip skipped", "instance unknown", "instance absent")

_RESTARTS = {
    "restart requested": "a restart is paid",
    "restart void": "no restart is owed any more",
    "restart failed": "its restart was refused and stays owed",
    "restart uncertain": "whether its restart was taken is uncertain",
    "restart blocked": "its restart waits for a paused ancestor",
    "restart paused": "it dies again and again, so its restart has to wait",
    "restart put off": "it sends heartbeats again, so its restart has to wait",
}

_IN_TRANSITION = ("pending", "stopping", "shutting-down")
_CANDIDATE_STATUSES = ("online", "degraded")


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a workspace, in a word (flipped, doomed, spared, watched, fine or ignored), and why."""

    word: str
    why: str


class Explanations:
    """The handler's log lines of one cycle, by workspace."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._decisions: dict[str, Mapping[str, Any]] = {}
        self._restarts: dict[str, str] = {}
        for line in lines:
            workspace_id, message = str(line.get("workspace_id")), str(line.get("message"))
            if message in _RESTARTS:
                self._restarts[workspace_id] = _RESTARTS[message]
            elif message in _DECISIONS:
                self._decisions[workspace_id] = line

    def of(self, row: Mapping[str, Any], state: str | None, *, in_cycle: bool) -> Fate:
        """Return the fate of a workspace from its row and its instance's state, both as they were before the cycle.

        `in_cycle` tells whether the event let the cycle look at it at all.
        """
        workspace_id = str(row["id"])
        decision = self._decisions.get(workspace_id)
        if decision is None:
            return _undecided(row, state, in_cycle=in_cycle)
        reason = str(decision.get("reason", ""))
        match decision["message"]:
            case "workspace flipped":
                restart = self._restarts.get(workspace_id, "its restart is owed")
                return Fate("flipped", f"{reason}; {restart}")
            case "would flip":
                return Fate("doomed", f"{reason}; an applied cycle would flip it")
            case "flip skipped":
                return Fate("spared", SKIPPED.get(reason, reason))
            case "instance unknown":
                return Fate("watched", f"no usable answer ({reason}), which proves nothing")
            case _:
                return Fate("watched", reason)


def _undecided(row: Mapping[str, Any], state: str | None, *, in_cycle: bool) -> Fate:
    why_not = _why_not_a_candidate(row)
    if why_not is not None:
        return Fate("ignored", why_not)
    if not in_cycle:
        return Fate("ignored", "not in what the event asks for")
    if state == "running":
        return Fate("fine", "its instance is running")
    if state in _IN_TRANSITION:
        return Fate("watched", f"its instance is {state}; the next cycle looks again")
    return Fate("watched", "not reached in this cycle")


def _why_not_a_candidate(row: Mapping[str, Any]) -> str | None:
    if row["status"] not in _CANDIDATE_STATUSES:
        return f"{row['status']}: not the reconciler's business"
    if row["runtime"] == "external":
        return "external: no instance of ours behind it"
    return None if row["instance_id"] else "no instance is recorded"
