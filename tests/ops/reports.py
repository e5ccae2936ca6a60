"""Answers of the reconciler, as it writes them: made from its own report, so that no field is missing or made up."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from handler.domain.report import Report

INSTANCE = "i-0a1b2c3d4e5f60718"
# What somebody may write into a row to harm whoever looks at it.
HOSTILE = (
    "<script>window.tampered=true</script><img src=x onerror='window.tampered=true'>\"'&amp;{{7*7}}{% raw %}"
    "]]>--></style></title>\x1b[2J\x1b]0;x\x07\r\n[red]\u202e\u200b\ud800\x00" + "W" * 400
)


def workspace(number: int) -> str:
    """Return the id of a workspace."""
    return f"00000000-0000-4000-8000-{number:012d}"


def flips(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return a report's list of flips."""
    states = ("stopped", "terminated")
    return [
        {"workspace_id": workspace(n), "instance_id": f"i-{n:017x}", "instance_state": states[n % 2], **more}
        for n in range(1, count + 1)
    ]


def report(mode: str = "apply", **changes: Any) -> dict[str, Any]:
    """Return a cycle's report. Of `skipped` and `restarts`, a change names only what is not 0."""
    whole: dict[str, Any] = json.loads(json.dumps(asdict(Report(mode, "ec2"))))
    for name in ("skipped", "restarts"):
        changes[name] = whole[name] | changes.get(name, {})
    return whole | changes


def line(message: str, cycle_id: str, **more: Any) -> str:
    """Return a line of the reconciler's log."""
    return json.dumps({"level": "INFO", "message": message, "cycle_id": cycle_id, "service": "reconciler", **more})


def cycle_log(cycle_id: str, at: str, decisions: Iterable[tuple[str, int, str]] = (), **changes: Any) -> list[str]:
    """Return the lines of one cycle's log: its decisions (message, number of the workspace, reason), and its end."""
    told = [
        line(
            *(message, cycle_id),
            workspace_id=workspace(number),
            instance_id=f"i-{number:017x}",
            instance_state="stopped",
            reason=reason,
            count=1,
        )
        for message, number, reason in decisions
    ]
    figures: Mapping[str, Any] = {name: value for name, value in report(**changes).items() if name != "flips"}
    return [*told, line("cycle finished", cycle_id, timestamp=at, **figures)]


def explanation(**changes: Any) -> dict[str, Any]:
    """Return the answer to an explain event: a restart that the platform has refused once."""
    return {
        "workspace_id": workspace(3),
        "row": {
            "name": "spot-reclaimed",
            "status": "offline",
            "tier": 2,
            "runtime": "langgraph",
            "instance_id": INSTANCE,
            "last_heartbeat_at": "2026-01-15T11:20:03Z",
            "created_at": "2025-05-02T08:00:00Z",
            "updated_at": "2026-01-15T11:24:10Z",
        },
        "candidate": {"is": False, "why": "its status is offline, and its restart is owed"},
        "instance": [
            {"target": "eu-west-1", "state": "terminated", "verdict": "dead", "reason": None, "took_ms": 84},
            {"target": "us-east-1", "state": None, "verdict": "absent", "reason": "not found", "took_ms": 131},
        ],
        "doubts": [
            {
                "kind": "dead",
                "instance_id": INSTANCE,
                "since": "2026-01-15T11:23:08Z",
                "sightings": 2,
                "latest_at": "2026-01-15T11:24:08Z",
                "reason": "row_locked",
                "is_recorded_instance": True,
            }
        ],
        "restarts": [
            {
                "instance_id": INSTANCE,
                "flipped_at": "2026-01-15T11:24:10Z",
                "due_at": "2026-01-15T11:31:10Z",
                "first_due_at": "2026-01-15T11:27:10Z",
                "attempts": 2,
                "last_answer": "http_503",
                "asked_at": "2026-01-15T11:29:10Z",
                "outcome": None,
                "closed_at": None,
                "watched_since": None,
                "state": "due",
            }
        ],
        "hold": {"all": False, "reason": "its disk is replaced", "ends_at": "2026-01-15T12:00:00Z"},
        "breaker": {"open": False, "dead": 2, "of": 24, "why": ""},
        "would": {"action": "ask_for_restart", "reason": "its instance is terminated, and its restart is due"},
        **changes,
    }


def holding(**changes: Any) -> dict[str, Any]:
    """Return the answer to a hold."""
    hold = {"workspace_id": workspace(1), "reason": "its disk is replaced", "ends_at": "2026-01-15T12:00:00Z"}
    return {"mode": "apply", "outcome": "held", "holds": [hold], "on_hold": 1, "in_flight": [workspace(2)], **changes}


def poisoned(value: Any) -> Any:
    """Return a JSON value in which each text is hostile, but for the words that tell what it is."""
    if isinstance(value, dict):
        kept = ("mode", "outcome", "action", "message", "cycle_id", "level")
        return {key: one if key in kept else poisoned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    return HOSTILE if isinstance(value, str) else value
