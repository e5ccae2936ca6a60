"""Explains what a cycle did with each workspace, from the handler's log and, where it logged nothing, from the row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ops.report.words import DECISIONS, SKIPPED

_RESTARTS = {
    "restart accepted": "the platform accepted its restart",
    "restart cancelled": "its restart was cancelled",
    "restart refused": "the platform refused its restart, so it stays owed",
    "restart uncertain": "the platform did not answer, so its restart is uncertain",
    "restart blocked": "its restart is blocked by a paused ancestor",
    "restart backing off": "it is in a crash loop, so its restart waits",
    "restart put off": "its restart was put off",
    "restart owed again": "its restart did nothing, so it is owed again",
}

_IN_TRANSITION = ("pending", "stopping", "shutting-down")
_CANDIDATE_STATUSES = ("online", "degraded")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a workspace, in a word that `sandbox.show` knows, and why."""

    word: str
    why: str


class Explanations:
    """The handler's log lines of one or more cycles, by workspace. Of several about one, the latest counts."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._decisions: dict[str, Mapping[str, Any]] = {}
        self._restarts: dict[str, str] = {}
        for line in lines:
            workspace_id, message = str(line.get("workspace_id")), str(line.get("message"))
            if message in _RESTARTS:
                self._restarts[workspace_id] = _RESTARTS[message]
            elif message in DECISIONS:
                self._decisions[workspace_id] = line

    def of(self, row: Mapping[str, Any], state: str | None, *, in_cycle: bool) -> Result:
        """Return a workspace's result, given its row and its instance's state from before the cycle.

        `in_cycle` says whether the event's cycle includes the workspace.
        """
        workspace_id = str(row["id"])
        decision = self._decisions.get(workspace_id)
        if decision is None:
            return _undecided(row, state, in_cycle=in_cycle)
        reason = str(decision.get("reason", ""))
        match decision["message"]:
            case "workspace flipped" | "workspace adopted" as message:
                restart = self._restarts.get(workspace_id, "its restart is owed")
                return Result(message.removeprefix("workspace "), f"{reason}; {restart}")
            case "would flip" | "would adopt" as message:
                return Result(message, f"{reason}; an applied cycle would do it")
            case "flip skipped":
                return Result("skipped", SKIPPED.get(reason, reason))
            case "instance unknown":
                return Result("waiting", f"no usable answer ({reason}), which proves nothing")
            case _:
                return Result("waiting", reason)


def _undecided(row: Mapping[str, Any], state: str | None, *, in_cycle: bool) -> Result:
    why_not = _why_not_a_candidate(row)
    if why_not is not None:
        return Result("ignored", why_not)
    if not in_cycle:
        return Result("ignored", "the event does not include it")
    if state == "running":
        return Result("healthy", "its instance is running")
    if state in _IN_TRANSITION:
        return Result("waiting", f"its instance is {state}; the next cycle checks again")
    return Result("waiting", "this cycle did not reach it")


def _why_not_a_candidate(row: Mapping[str, Any]) -> str | None:
    if row["status"] not in _CANDIDATE_STATUSES:
        return f"not a candidate: its status is {row['status']}"
    if row["runtime"] == "external":
        return "not a candidate: it is external, without an instance of ours"
    return None if row["instance_id"] else "not a candidate: its row records no instance"
