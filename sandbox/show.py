"""Prints the fleet, the cycle's log, its report and a summary for the demo."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ops.report.layout import document_of
from ops.report.words import SKIPPED
from sandbox.explain import Result
from sandbox.snapshot import Snapshot
from sandbox.terminal import headline, pairs, say, styled, table

_SHOWN_IN_FULL = 40
_STYLES = {
    "flipped": "red",
    "adopted": "red",
    "would flip": "red",
    "would adopt": "red",
    "skipped": "yellow",
    "waiting": "cyan",
    "healthy": "green",
    "ignored": "dim",
}


def fleet_before(before: Snapshot) -> None:
    """Show every workspace, or the first ones of a large fleet."""
    headline("The fleet before")
    rows = []
    for row in before.rows:
        state = before.states[row["id"]] or ("not found" if row["instance_id"] else "")
        rows.append((short(row["id"]), row["name"], row["status"], row["instance_id"] or "", state))
    table(("id", "workspace", "status", "recorded instance", "EC2 says"), rows[:_SHOWN_IN_FULL])
    if len(rows) > _SHOWN_IN_FULL:
        say(styled(f"  … and {len(rows) - _SHOWN_IN_FULL} more", "dim"))


def log_line(line: Mapping[str, Any] | str, note: str = "") -> None:
    """Show a line that the handler wrote: log lines in brief, metrics not at all, anything else as it is."""
    if isinstance(line, str):
        say(f"  {line}")
    elif "message" in line:
        words = [str(line.get("timestamp", ""))[11:23], f"{line['message']:<19}"]
        if "workspace_id" in line:
            words += [short(line["workspace_id"]), str(line.get("instance_id", ""))]
        words.append(str(line.get("reason", line.get("error", ""))))
        say(("  " + "  ".join(words)).rstrip() + note)


def fleet_after(before: Snapshot, after: Snapshot, results: Mapping[str, Result]) -> None:
    """Show what happened to every workspace, and why. Leave the healthy ones out of a large fleet."""
    headline("The fleet after, and why")
    shown = [row for row in before.rows if len(before.rows) <= _SHOWN_IN_FULL or results[row["id"]].word != "healthy"]
    now = {row["id"]: row for row in after.rows}
    rows = []
    for row in shown:
        result = results[row["id"]]
        status = _status_change(row, now.get(row["id"]), flipped=result.word == "flipped")
        rows.append((short(row["id"]), row["name"], status, result.word, result.why))
    table(("id", "workspace", "status", "result", "why"), rows, [_STYLES[results[row["id"]].word] for row in shown])
    if len(shown) < len(before.rows):
        say(styled(f"  … and {len(before.rows) - len(shown)} more, all healthy", "dim"))


def _status_change(before: Mapping[str, Any], after: Mapping[str, Any] | None, *, flipped: bool) -> str:
    if after is None:
        return f"{before['status']} → deleted"
    statuses = [before["status"]]
    # After a restart, the row shows a new instance but no trace of `offline`.
    if flipped and (after["status"], after["instance_id"]) != (before["status"], before["instance_id"]):
        statuses.append("offline")
    if after["status"] != statuses[-1]:
        statuses.append(after["status"])
    return " → ".join(statuses)


def report(values: Mapping[str, Any], title: str) -> None:
    """Show the handler's answer without its list of flips, which the fleet's table contains."""
    headline(title)
    pairs([(name, str(value)) for name, value in values.items() if not isinstance(value, (dict, list))])
    for name in ("skipped", "restarts"):
        counted = [f"{reason} {number}" for reason, number in values[name].items() if number]
        say(f"  {name}: {', '.join(counted) or 'none'}")


def holds(values: Mapping[str, Any]) -> None:
    """Show the handler's answer to a hold or release event."""
    headline(f"The answer ({values['mode']}): {values['outcome']}; on hold now: {values['on_hold']}")
    rows = [
        (short(one["workspace_id"]) if one["workspace_id"] else "everything", one["ends_at"], one["reason"])
        for one in values["holds"]
    ]
    if rows:
        table(("id", "on hold until", "reason"), rows)
    if values["in_flight"]:
        say(f"  in flight: {', '.join(map(short, values['in_flight']))}")


def explanation(values: Mapping[str, Any]) -> None:
    """Show the handler's answer to an explain event, in the words of `ops`."""
    document = document_of(json.dumps(values), "the answer")
    headline(f"{document.kind}: {document.title}")
    for sentence in document.lead:
        say(f"  {sentence}")
    for section in document.sections:
        headline(section.heading)
        for sentence in section.sentences:
            say(f"  {sentence}")
        width = max((len(name) for name, _ in section.facts), default=0)
        for name, text in section.facts:
            say(f"  {name:<{width}}  {text}")
        for one in section.tables:
            table([column.name for column in one.columns], [row.cells for row in one.rows])


def metrics(lines: Sequence[Mapping[str, Any]]) -> None:
    """Show the metrics that CloudWatch would extract from a cycle's log."""
    headline("The latest metrics")
    values = [
        (metric["Name"], _with_unit(line[metric["Name"]], metric["Unit"]))
        for line in lines
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", [])
        for metric in directive["Metrics"]
    ]
    if values:
        pairs(values)
    else:
        say("  none: only full, applied cycles emit metrics")


def _with_unit(value: Any, unit: str) -> str:
    number = value[0] if isinstance(value, list) else value
    return f"{number:.4g}" if unit == "Count" else f"{number:.4g} {unit.lower()}"


def summary(reports: Sequence[Mapping[str, Any]], *, restarted: int) -> None:
    """Say in a few sentences what the cycles did, given their reports and the number of restarts carried out."""
    headline("What just happened")
    for sentence in _sentences(reports, restarted):
        say(f"  {sentence}")


def _sentences(reports: Sequence[Mapping[str, Any]], restarted: int) -> list[str]:
    values = reports[0]
    if values["outcome"] != "completed":
        return ["Another cycle was already running, so this one did nothing."]
    meanings = {
        "running": "running",
        "dead": "dead",
        "transition": "changing state",
        "absent": "not known to EC2",
        "unknown": "without a usable answer",
    }
    counted = [f"{values[name]} {meaning}" for name, meaning in meanings.items() if values[name]]
    sentences = [f"Candidates: {values['candidates']} ({', '.join(counted) or 'none checked'})."]
    if values["breaker_open"]:
        sentences.append("Too many look dead, so the breaker opened and nothing was flipped: the probe may be wrong.")
    elif values["mode"] != "apply":
        sentences.append(f"A dry run, so nothing was written. An applied cycle would flip: {len(values['flips'])}.")
    else:
        flipped = sum(one["flipped"] for one in reports)
        each = ", each in one transaction with its event and its owed restart" if flipped else ""
        sentences.append(f"Flipped offline: {flipped}{each}.")
        if len(reports) > 1:
            sentences.append(f"Still dead after the grace, and restarted by the platform: {restarted}.")
    skipped = [SKIPPED[reason] for reason, number in values["skipped"].items() if number]
    if skipped:
        sentences.append(f"Skipped, although the instance looked dead: {'; '.join(skipped)}.")
    return sentences


def short(workspace_id: str) -> str:
    """Return the end of a demo workspace's id, which is enough to tell them apart."""
    return workspace_id[-4:]
