"""Several cycles, such as those of a day: what happened in which, and how long each took."""

from collections.abc import Iterator, Sequence
from statistics import median

from ops.report import cycle as one_cycle
from ops.report import state
from ops.report.document import (
    Chart,
    Column,
    Document,
    Figure,
    Kind,
    Row,
    Section,
    Table,
    Tone,
    counted,
    moment,
    number,
    seconds,
)
from ops.report.reading import Cycle, Decision

# A page of more rows is nothing that anybody reads.
_MOST_ROWS = 2_000
_MANY_ROWS = 20
# Columns of the chart: more cycles share one, and the longest of them counts.
_MOST_COLUMNS = 120


def document(cycles: Sequence[Cycle]) -> Document:
    """Lay out several cycles, in their order."""
    ran = [cycle for cycle in cycles if cycle.completed]
    rows = [
        _row(place, cycle, before)
        for place, (cycle, before) in enumerate(zip(cycles, [None, *cycles], strict=False), 1)
    ]
    breaker = sum(cycle["breaker_open"] for cycle in cycles)
    lead = ["Nothing happened in any of them.", f"The breaker was open in {counted(breaker, 'cycle')}."]
    if noteworthy := sum(bool(row.cells[1]) for row in rows):
        lead[0] = f"Something happened in {number(noteworthy)} of them."
    title, tone = _title(cycles)
    return Document(
        kind=_period(cycles),
        title=title,
        tone=Tone.BAD if breaker else tone,
        lead=tuple(lead if breaker else lead[:1]),
        figures=tuple(_figures(cycles, ran)),
        sections=(
            *([_time(ran), _flipped(cycles)] if ran else []),
            *([state.look_at(ran[-1], "Doubts, and what else to look at in the end")] if ran else []),
            _cycle_by_cycle(rows),
        ),
    )


def _title(cycles: Sequence[Cycle]) -> tuple[str, Tone]:
    if all(cycle.dry_run for cycle in cycles):
        would = counted(len(_touched(cycles)), "workspace")
        return f"{counted(len(cycles), 'dry run')}: {would} would be flipped", Tone.CAUTION if _touched(
            cycles
        ) else Tone.GOOD
    flipped, accepted = _flips(cycles), _accepted(cycles)
    said = f"{counted(flipped, 'workspace')} flipped or adopted, {counted(accepted, 'restart')} accepted"
    return f"{counted(len(cycles), 'cycle')}: {said}", Tone.CAUTION if flipped else Tone.GOOD


def _flips(cycles: Sequence[Cycle]) -> int:
    return sum(cycle["flipped"] + cycle["adopted"] for cycle in cycles)


def _accepted(cycles: Sequence[Cycle]) -> int:
    return sum(cycle.report["restarts"]["accepted"] for cycle in cycles)


def _touched(cycles: Sequence[Cycle]) -> dict[tuple[str, str], list[tuple[Cycle, Decision]]]:
    """Return, for each workspace and instance, the cycles that flipped or adopted it, or would."""
    touched: dict[tuple[str, str], list[tuple[Cycle, Decision]]] = {}
    for cycle in cycles:
        for one in cycle.flips:
            touched.setdefault((one.workspace_id, one.instance_id), []).append((cycle, one))
    return touched


def _figures(cycles: Sequence[Cycle], ran: Sequence[Cycle]) -> Iterator[Figure]:
    yield Figure(number(len(ran)), "completed", Tone.GOOD)
    if all(cycle.dry_run for cycle in cycles):
        touched = len(_touched(cycles))
        yield Figure(number(touched), "would be flipped", Tone.CAUTION if touched else Tone.PLAIN)
    else:
        yield Figure(number(_flips(cycles)), "flipped or adopted", Tone.CAUTION if _flips(cycles) else Tone.PLAIN)
        yield Figure(number(_accepted(cycles)), "restarts accepted")
    if ran:
        yield Figure(number(ran[-1].report["restarts"]["pending"]), "restarts owed in the end")
    breaker = sum(cycle["breaker_open"] for cycle in cycles)
    yield Figure(number(breaker), "with an open breaker", Tone.BAD if breaker else Tone.PLAIN)
    cut = sum(cycle["deadline_hit"] for cycle in cycles)
    yield Figure(number(cut), "cut short by the deadline", Tone.CAUTION if cut else Tone.PLAIN)


def _flipped(cycles: Sequence[Cycle]) -> Section:
    touched = _touched(cycles)
    heading = (
        "What would be flipped, and why" if all(cycle.dry_run for cycle in cycles) else "What was flipped, and why"
    )
    if not touched:
        said = (
            "The file names none of these workspaces: reports do, and the log's lines about each."
            if _flips(cycles)
            else "No workspace."
        )
        return Section(heading, (said,))
    columns = (
        Column("Workspace", Kind.ID),
        Column("Instance", Kind.ID),
        Column("Why"),
        Column("First", Kind.TIME),
        Column("Cycles", Kind.NUMBER),
    )
    rows = []
    for (workspace_id, instance_id), found in touched.items():
        first, latest = found[0][0], found[-1]
        why = one_cycle.why(latest[1], latest[0])
        rows.append(Row((workspace_id, instance_id, why, moment(first.at), number(len(found)))))
    caption = "Workspaces that were flipped or adopted, or would be"
    return Section(heading, tables=(Table(caption, columns, tuple(rows[-_MOST_ROWS:]), folded=len(rows) > _MANY_ROWS),))


def _cycle_by_cycle(rows: Sequence[Row]) -> Section:
    columns = (
        Column("Cycle", Kind.TIME),
        Column("What happened"),
        Column("Checked", Kind.NUMBER),
        Column("Dead", Kind.NUMBER),
        Column("Left alone", Kind.NUMBER),
        Column("Took", Kind.NUMBER),
    )
    noteworthy = [row for row in rows if row.cells[1]]
    tables = []
    if noteworthy:
        shown = tuple(noteworthy[-_MOST_ROWS:])
        tables.append(Table("Cycles in which something happened", columns, shown, marked=True))
    if len(noteworthy) < len(rows):
        tables.append(Table("All cycles", columns, tuple(rows[-_MOST_ROWS:]), marked=True, folded=True))
    cut = (f"The latest {number(_MOST_ROWS)} are shown.",) if len(rows) > _MOST_ROWS else ()
    return Section("Cycle by cycle", cut, tables=tuple(tables))


def _period(cycles: Sequence[Cycle]) -> str:
    times = [cycle.at for cycle in cycles if cycle.at]
    return f"Cycles from {moment(times[0])} to {moment(times[-1])}" if times else "Cycles in the order of the file"


def _row(place: int, cycle: Cycle, before: Cycle | None) -> Row:
    said, tone = one_cycle.summary(cycle, before)
    return Row(
        (
            moment(cycle.at) or str(place),
            said,
            number(cycle["checked"]),
            number(cycle["dead"] + cycle["absent"]),
            number(one_cycle.skips(cycle)),
            seconds(cycle["duration_ms"]),
        ),
        tone,
    )


def _time(ran: Sequence[Cycle]) -> Section:
    took = [cycle["duration_ms"] for cycle in ran]
    share = -(-len(took) // _MOST_COLUMNS)
    longest = max(range(len(took)), key=took.__getitem__)
    where = moment(ran[longest].at) or f"cycle {longest + 1}"
    says = f"Half of them took {seconds(median(took))} or less, the longest {seconds(took[longest])} ({where})."
    sizes = tuple(float(max(took[start : start + share])) for start in range(0, len(took), share))
    chart = Chart("How long each cycle took, in their order", sizes)
    return Section("Where the time went", (says,), chart=chart if len(sizes) > 1 else None)
