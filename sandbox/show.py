"""How the demo shows a fleet, a cycle and what came of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sandbox.explain import SKIPPED, Fate
from sandbox.snapshot import Snapshot
from sandbox.terminal import headline, pairs, say, styled, table

_SHOWN_IN_FULL = 40
_STYLES = {"flipped": "red", "doomed": "red", "spared": "yellow", "watched": "cyan", "fine": "green", "ignored": "dim"}


def fleet_before(before: Snapshot) -> None:
    """Show every workspace, or the first of many."""
    headline("The fleet before")
    rows = []
    for row in before.rows:
        state = before.states[row["id"]] or ("not found" if row["instance_id"] else "")
        rows.append((short(row["id"]), row["name"], row["status"], row["instance_id"] or "", state))
    table(("id", "workspace", "status", "recorded instance", "EC2 says"), rows[:_SHOWN_IN_FULL])
    if len(rows) > _SHOWN_IN_FULL:
        say(styled(f"  … and {len(rows) - _SHOWN_IN_FULL} more", "dim"))


def log_line(line: Mapping[str, Any] | str) -> None:
    """Show what the handler wrote: a log line in brief, no metrics, anything else as it is."""
    if isinstance(line, str):
        say(f"  {line}")
    elif "message" in line:
        words = [str(line.get("timestamp", ""))[11:23], f"{line['message']:<18}"]
        if "workspace_id" in line:
            words += [short(line["workspace_id"]), str(line.get("instance_id", ""))]
        words.append(str(line.get("reason", line.get("error", ""))))
        say("  " + "  ".join(words).rstrip())


def fleet_after(before: Snapshot, after: Snapshot, fates: Mapping[str, Fate]) -> None:
    """Show what became of every workspace, and why; of many, those alone with which something is the matter."""
    headline("The fleet after, and why")
    shown = [row for row in before.rows if len(before.rows) <= _SHOWN_IN_FULL or fates[row["id"]].word != "fine"]
    now = {row["id"]: row for row in after.rows}
    rows = []
    for row in shown:
        fate = fates[row["id"]]
        status = _status_change(row, now.get(row["id"]), flipped=fate.word == "flipped")
        rows.append((short(row["id"]), row["name"], status, fate.word, fate.why))
    table(("id", "workspace", "status", "fate", "why"), rows, [_STYLES[fates[row["id"]].word] for row in shown])
    if len(shown) < len(before.rows):
        say(styled(f"  … and {len(before.rows) - len(shown)} more, which are fine", "dim"))


def _status_change(before: Mapping[str, Any], after: Mapping[str, Any] | None, *, flipped: bool) -> str:
    if after is None:
        return f"{before['status']} → deleted"
    statuses = [before["status"]]
    # A restart that is over has left no trace of `offline` in the row, but a new instance.
    if flipped and (after["status"], after["instance_id"]) != (before["status"], before["instance_id"]):
        statuses.append("offline")
    if after["status"] != statuses[-1]:
        statuses.append(after["status"])
    return " → ".join(statuses)


def report(values: Mapping[str, Any]) -> None:
    """Show the handler's answer, but for its list of flips, which the table of the fleet holds."""
    headline("The report")
    pairs([(name, str(value)) for name, value in values.items() if not isinstance(value, (dict, list))])
    for name in ("skipped", "restarts"):
        counted = [f"{reason} {number}" for reason, number in values[name].items() if number]
        say(f"  {name}: {', '.join(counted) or 'none'}")


def holds(values: Mapping[str, Any]) -> None:
    """Show the handler's answer to an event that holds or releases workspaces, which is no cycle."""
    headline(f"The answer ({values['mode']}): {values['outcome']}; held now: {values['held']}")
    rows = [(short(one["workspace_id"]), one["ends_at"], one["reason"]) for one in values["holds"]]
    if rows:
        table(("id", "held until", "reason"), rows)


def metrics(lines: Sequence[Mapping[str, Any]]) -> None:
    """Show what CloudWatch would take out of the log."""
    headline("The metrics")
    values = [
        (metric["Name"], _with_unit(line[metric["Name"]], metric["Unit"]))
        for line in lines
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", [])
        for metric in directive["Metrics"]
    ]
    if values:
        pairs(values)
    else:
        say("  none: only a full, applied cycle emits them")


def _with_unit(value: Any, unit: str) -> str:
    number = value[0] if isinstance(value, list) else value
    return f"{number:.4g}" if unit == "Count" else f"{number:.4g} {unit.lower()}"


def story(values: Mapping[str, Any], *, restarted: int) -> None:
    """Say in a few sentences what a cycle did, from its report and the number of restarts carried out."""
    headline("What just happened")
    for sentence in _sentences(values, restarted):
        say(f"  {sentence}")


def _sentences(values: Mapping[str, Any], restarted: int) -> list[str]:
    if values["outcome"] != "completed":
        return ["Another cycle was under way, so this one left everything to it."]
    meanings = {
        "running": "running",
        "dead": "dead",
        "transition": "on the way from one state to another",
        "absent": "not known to EC2",
        "unknown": "without a usable answer",
    }
    counted = [f"{values[name]} {meaning}" for name, meaning in meanings.items() if values[name]]
    sentences = [f"Workspaces that claim to be up: {values['candidates']}; their instances: {', '.join(counted)}."]
    if values["breaker_open"]:
        sentences.append("So many look dead that the breaker opened: nothing was flipped, for the probe may be wrong.")
    elif values["mode"] != "apply":
        sentences.append(
            f"A dry run, so nothing was written. An applied cycle would take offline: {len(values['flips'])}."
        )
    else:
        sentences += [
            f"Taken offline: {values['flipped']}, each in one transaction with its event and the restart it is owed.",
            f"Reprovisioned by the platform since: {restarted}.",
        ]
    spared = [SKIPPED[reason] for reason, number in values["skipped"].items() if number]
    if spared:
        sentences.append(f"Spared, though their instance is dead: {'; '.join(spared)}.")
    return sentences


def short(workspace_id: str) -> str:
    """Return the end of one of the demo's ids, which tells them apart."""
    return workspace_id[-4:]
