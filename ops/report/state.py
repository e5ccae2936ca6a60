"""How things stand at the end of a cycle: restarts, what a person should look at, and where the time went."""

from collections.abc import Iterator

from ops.checklist import MOST_DURATION_MS
from ops.report.document import (
    Column,
    Kind,
    Row,
    Section,
    Share,
    Table,
    Tone,
    counted,
    lasting,
    listed,
    number,
    seconds,
)
from ops.report.reading import Cycle

# What CYCLE_DEADLINE_SECONDS is unless somebody has set it: the report does not say.
_USUAL_DEADLINE_MS = 45_000

_RESTARTS = (
    ("accepted", "accepted", Tone.GOOD, "the platform does it"),
    ("refused", "refused", Tone.CAUTION, "the platform said no, or could not be reached; tried again later"),
    (
        "uncertain",
        "uncertain",
        Tone.CAUTION,
        "sent, but no answer came; left alone for a while, so as not to ask twice",
    ),
    ("cancelled", "cancelled", Tone.QUIET, "not needed any more: the workspace has moved on, or its machine runs"),
    ("pending", "owed at the end", Tone.WAIT, "in their grace, waiting for their turn, or to be tried again"),
    ("blocked", "… of these, blocked", Tone.WAIT, "an ancestor of the workspace is paused"),
    (
        "backing_off",
        "… of these, backing off",
        Tone.WAIT,
        "the workspace dies again and again, so each restart waits longer",
    ),
    (
        "unrecovered",
        "without success",
        Tone.CAUTION,
        "asked for more than 15 minutes ago, and the workspace is not back",
    ),
)

# What a person should look at, if it is news of this cycle. The rest lasts, maybe for days.
_NEWS = ("targets_failed", "deadline_hit")


def restarts(cycle: Cycle) -> Section:
    """Count the restarts by what became of them."""
    counts = cycle.report["restarts"]
    rows = tuple(
        Row((word, number(counts[name]), meaning), tone) for name, word, tone, meaning in _RESTARTS if counts[name]
    )
    columns = (Column("Restarts"), Column("Count", Kind.NUMBER), Column("What it means"))
    if not rows:
        said = "None is owed."
        return Section("Restarts", (said if cycle.dry_run else f"{said} None was asked for.",))
    said = "A dry run asks for none." if cycle.dry_run else ""
    tables = (Table("Restarts by what became of them", columns, rows, marked=True),)
    return Section("Restarts", (said,) if said else (), tables=tables)


def look_at(cycle: Cycle, heading: str) -> Section:
    """List what a person should look at."""
    rows = tuple(Row((text, meaning), Tone.CAUTION) for _, text, meaning in _to_look_at(cycle))
    if not rows:
        return Section(heading, ("Nothing.",))
    columns = (Column("What"), Column("What it means"))
    return Section(
        heading,
        ("docs/runbook.md has a section for each.",),
        tables=(Table("What else to look at", columns, rows, marked=True),),
    )


def news(cycle: Cycle) -> list[str]:
    """Return what a person should look at because of this very cycle."""
    return [text for name, text, _ in _to_look_at(cycle) if name in _NEWS]


def _to_look_at(cycle: Cycle) -> Iterator[tuple[str, str, str]]:
    """Yield what a person should look at: its field, what is the case, and what it means."""
    for name, what in (("targets_failed", "gave no answer"), ("targets_empty", "has none of the instances")):
        if cycle.report[name]:
            meaning = {
                "targets_failed": "to some question. Until it answers, none is flipped because it was not found",
                "targets_empty": "until it shows one, none is flipped because it was not found",
            }[name]
            yield name, f"{listed(cycle.report[name])} {what}", meaning
    if cycle["deadline_hit"]:
        yield "deadline_hit", "the deadline cut the cycle short", "what it left undone goes first in the next one"
    if cycle["oldest_doubt_seconds"]:
        age = lasting(cycle["oldest_doubt_seconds"])
        yield (
            "doubt",
            f"in doubt for {age}",
            "the oldest doubt: a workspace that is neither alive nor flipped for so long",
        )
    if cycle["unrecorded"]:
        text = f"{counted(cycle['unrecorded'], 'workspace')} up without an instance"
        yield "unrecorded", text, "the row names no machine, so nobody can look after it"
    if cycle["offline_unowed"]:
        text = f"{counted(cycle['offline_unowed'], 'workspace')} offline, and nobody at it"
        yield "offline_unowed", text, "for more than 15 minutes, without a restart that is owed or watched"
    if cycle["impaired"]:
        text = f"{counted(cycle['impaired'], 'instance')} impaired"
        yield "impaired", text, "the machine runs, but fails EC2's system status check. It is never flipped for that"
    if cycle["on_hold"]:
        text = f"{counted(cycle['on_hold'], 'workspace')} on hold"
        yield "on_hold", text, "by somebody's order: looked at, but neither flipped nor restarted"
    if cycle.report["restarts"]["unrecovered"]:
        text = f"{counted(cycle.report['restarts']['unrecovered'], 'restart')} without success"
        yield "unrecovered", text, "asked for more than 15 minutes ago, and the workspace is not back"


def time(cycle: Cycle) -> Section:
    """Say how long the cycle took, and what it had no time for."""
    took = cycle["duration_ms"]
    left = max(0, _USUAL_DEADLINE_MS - took)
    sentences = [
        f"{seconds(took)} in all. A cycle may take {_USUAL_DEADLINE_MS // 1000} s, if not set otherwise.",
    ]
    if cycle["checked"]:
        each = took / cycle["checked"]
        sentences.append(f"For {counted(cycle['checked'], 'workspace')}, that is {each:,.1f} ms each.")
    out_of_time = cycle.report["skipped"]["out_of_time"]
    if cycle["deadline_hit"] or cycle["deferred"] or out_of_time:
        sentences.append(
            f"Time ran out: {counted(cycle['deferred'], 'workspace')} not reached, "
            f"{number(out_of_time)} not flipped in time."
        )
    sentences.append(
        "Every workspace has had its turn in this round."
        if cycle["completed_pass"]
        else "The round of all workspaces goes on in the next cycle."
    )
    tone = Tone.CAUTION if took > MOST_DURATION_MS or cycle["deadline_hit"] else Tone.GOOD
    return Section("Where the time went", tuple(sentences), bar=(Share(took, tone), Share(left, Tone.PLAIN)))
