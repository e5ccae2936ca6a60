"""Several cycles, such as those of a day: what happened in which, and how long each took."""

from collections.abc import Sequence
from statistics import median

from ops.report import cycle as one_cycle
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
    number,
    seconds,
)
from ops.report.reading import Cycle

# A page of more rows is nothing that anybody reads.
_MOST_ROWS = 2_000
# Columns of the chart: more cycles share one, and the longest of them counts.
_MOST_COLUMNS = 120


def document(cycles: Sequence[Cycle]) -> Document:
    """Lay out several cycles, in their order."""
    told = [(place, cycle, *one_cycle.summary(cycle)) for place, cycle in enumerate(cycles, 1)]
    rows = [_row(place, cycle, said, tone) for place, cycle, said, tone in told]
    noteworthy = [row for row in rows if row.cells[1]]
    flipped = sum(cycle["flipped"] + cycle["adopted"] for cycle in cycles)
    accepted = sum(cycle.report["restarts"]["accepted"] for cycle in cycles)
    breaker = sum(cycle["breaker_open"] for cycle in cycles)
    ran = [cycle for cycle in cycles if cycle.report["outcome"] == "completed"]
    title = f"{counted(len(cycles), 'cycle')}: {counted(flipped, 'workspace')} flipped, {counted(accepted, 'restart')} accepted"
    columns = (
        Column("Cycle"),
        Column("What happened"),
        Column("Checked", Kind.NUMBER),
        Column("Dead", Kind.NUMBER),
        Column("Left alone", Kind.NUMBER),
        Column("Took", Kind.NUMBER),
    )
    tables = [Table("Cycles in which something happened", columns, tuple(noteworthy[-_MOST_ROWS:]), marked=True)] if noteworthy else []
    if len(noteworthy) < len(rows):
        tables.append(Table("All cycles", columns, tuple(rows[-_MOST_ROWS:]), marked=True, folded=True))
    said = "Nothing happened in any of them." if not noteworthy else f"Something happened in {number(len(noteworthy))} of them."
    cut = f"Of a list, the latest {number(_MOST_ROWS)} are shown." if len(noteworthy) > _MOST_ROWS or len(rows) > _MOST_ROWS else ""
    return Document(
        kind=_period(cycles),
        title=title,
        tone=Tone.BAD if breaker else Tone.CAUTION if flipped else Tone.GOOD,
        lead=(said, *([f"The breaker was open in {counted(breaker, 'cycle')}."] if breaker else [])),
        figures=(
            Figure(number(len(ran)), "completed", Tone.GOOD),
            Figure(number(flipped), "flipped or adopted", Tone.CAUTION if flipped else Tone.PLAIN),
            Figure(number(accepted), "restarts accepted"),
            Figure(number(max((cycle.report["restarts"]["pending"] for cycle in cycles[-1:]), default=0)), "restarts owed at the end"),
            Figure(number(breaker), "with an open breaker", Tone.BAD if breaker else Tone.PLAIN),
            Figure(number(sum(cycle["deadline_hit"] for cycle in cycles)), "cut short by the deadline"),
        ),
        sections=(
            Section("Cycle by cycle", (cut,) if cut else (), tables=tuple(tables)),
            *([one_cycle.look_at(ran[-1], "Doubts, and what else to look at in the end"), _time(ran)] if ran else []),
        ),
    )


def _period(cycles: Sequence[Cycle]) -> str:
    times = [cycle.at for cycle in cycles if cycle.at]
    return f"Cycles from {_at(times[0])} to {_at(times[-1])}" if times else "Cycles in the order of the file"


def _at(time: str) -> str:
    """Return a log's time without the parts that nobody compares: 2026-11-28 11:30:41."""
    return time[:19].replace("T", " ")


def _row(place: int, cycle: Cycle, said: str, tone: Tone) -> Row:
    return Row(
        (
            _at(cycle.at) or str(place),
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
    where = _at(ran[longest].at) or f"cycle {longest + 1}"
    says = f"Half of them took {seconds(median(took))} or less, the longest {seconds(took[longest])} ({where})."
    sizes = tuple(float(max(took[start : start + share])) for start in range(0, len(took), share))
    chart = Chart("How long each cycle took, in their order", sizes)
    return Section("Where the time went", (says,), chart=chart if len(sizes) > 1 else None)
