"""Lays a document out in the terminal."""

from collections.abc import Sequence

from ops.console import Console
from ops.report.document import Document, Figure, Kind, Section, Table, Tone

_STYLES = {
    Tone.PLAIN: "",
    Tone.GOOD: "green",
    Tone.WAIT: "cyan",
    Tone.CAUTION: "yellow",
    Tone.BAD: "red",
    Tone.ODD: "magenta",
    Tone.QUIET: "dim",
}


def show(console: Console, document: Document) -> None:
    """Print a document. What is folded is left out, and said so."""
    console.say()
    console.say(document.kind, "dim")
    console.say(document.title, f"bold {_STYLES[document.tone]}".strip())
    for sentence in document.lead:
        console.say(sentence)
    if document.figures:
        console.say()
        _figures(console, document.figures)
    for section in document.sections:
        _section(console, section)


def _figures(console: Console, figures: Sequence[Figure]) -> None:
    width = max(len(one.value) for one in figures)
    for one in figures:
        console.say(f"  {one.value:>{width}}  {one.label}", _STYLES[one.tone])


def _section(console: Console, section: Section) -> None:
    console.headline(section.heading)
    for sentence in section.sentences:
        console.say(sentence)
    width = max((len(name) for name, _ in section.facts), default=0)
    for name, text in section.facts:
        console.say(f"  {name:<{width}}  {text}")
    for table in section.tables:
        _table(console, table)


def _table(console: Console, table: Table) -> None:
    if table.folded:
        console.say(f"  {table.caption}: {len(table.rows)} more lines, which --html shows.", "dim")
        return
    rows = [row.cells for row in table.rows]
    ids = [column.name for column in table.columns if column.kind is Kind.ID]
    console.table([column.name for column in table.columns], rows, [_STYLES[row.tone] for row in table.rows], ids)
