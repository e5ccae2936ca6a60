"""The answer to a hold or a release."""

from collections.abc import Iterator

from ops.report.document import Column, Document, Kind, Row, Section, Table, Tone, counted, number
from ops.report.reading import Holding

_OUTCOMES = {
    "held": ("The hold is in force", Tone.GOOD),
    "released": ("The release is in force", Tone.GOOD),
    "unchanged": ("A dry run: no hold was changed", Tone.QUIET),
}


def document(holding: Holding) -> Document:
    """Lay out the answer to a hold or a release."""
    answer = holding.answer
    title, tone = _OUTCOMES.get(answer["outcome"], (answer["outcome"], Tone.PLAIN))
    if answer["unchecked"]:
        tone = Tone.CAUTION
    everything = any(one["workspace_id"] is None for one in answer["holds"])
    on_hold = "Everything is on hold" if everything else f"On hold: {counted(answer['on_hold'], 'workspace')}"
    return Document(
        kind="Hold or release",
        title=title,
        tone=tone,
        lead=(f"{on_hold}. What is on hold is looked at, and neither flipped nor restarted.", *_warnings(holding)),
        sections=(_holds(holding), _in_flight(holding)),
    )


def _warnings(holding: Holding) -> Iterator[str]:
    if holding.answer["unchecked"]:
        yield "The workspaces could not be read in time, so nobody has checked that those named here exist."


def _holds(holding: Holding) -> Section:
    rows = tuple(
        Row((one["workspace_id"] or "everything", one["ends_at"], one["reason"])) for one in holding.answer["holds"]
    )
    if not rows:
        return Section("Holds", ("There is none.",))
    columns = (Column("Workspace", Kind.ID), Column("Until", Kind.TIME), Column("Reason"))
    return Section("Holds", tables=(Table("Holds in force, the first to end first", columns, rows),))


def _in_flight(holding: Holding) -> Section:
    heading, named = "Restarts that may be under way", holding.answer["in_flight"]
    if named is None:
        return Section(heading, ("They could not be read in time.",))
    if not named:
        return Section(heading, ("There is none.",))
    rows = tuple(Row((one,)) for one in named)
    said = f"{number(len(rows))}: the platform was asked and has not answered yet, or is being asked at this moment."
    return Section(heading, (said,), tables=(Table("Workspaces", (Column("Workspace", Kind.ID),), rows),))
