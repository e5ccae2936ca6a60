"""What is shown of a report, before it is known where: plain values, which the terminal and the page lay out."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """How something is to be taken. It is never said by colour alone."""

    PLAIN = "plain"
    GOOD = "good"
    WAIT = "wait"
    CAUTION = "caution"
    BAD = "bad"
    ODD = "odd"
    QUIET = "quiet"


class Kind(StrEnum):
    """What a column holds."""

    TEXT = "text"
    ID = "id"
    TIME = "time"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the few numbers that are read first."""

    value: str
    label: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    kind: Kind = Kind.TEXT


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: as many texts as there are columns, and what to make of it."""

    cells: tuple[str, ...]
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below each other. The first column names the row. `folded`: shown when somebody asks for it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    marked: bool = False  # with a mark in the row's tone, as a key to the section's bar
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a bar."""

    size: float
    tone: Tone


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns in their order in time. `says` is the same in words."""

    says: str
    sizes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the document."""

    heading: str
    sentences: tuple[str, ...] = ()
    bar: tuple[Share, ...] = ()
    chart: Chart | None = None
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """All that is shown: what it is about, the one sentence to remember, a few figures, and the rest in sections."""

    kind: str
    title: str
    tone: Tone
    lead: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    sections: tuple[Section, ...] = ()


def number(value: float) -> str:
    """Return a number as people write it."""
    return f"{value:,.0f}"


def counted(value: int, what: str, plural: str = "") -> str:
    """Return a number and what it counts: `1 workspace`, `5,000 workspaces`."""
    return f"{number(value)} {what if value == 1 else plural or what + 's'}"


def seconds(milliseconds: float) -> str:
    """Return a duration in seconds."""
    return f"{milliseconds / 1000:,.1f} s"


def moment(time: str) -> str:
    """Return a log's time without the parts that nobody compares: 2026-01-15 11:30:41."""
    return time[:19].replace("T", " ")


def lasting(age_seconds: float) -> str:
    """Return an age in the largest unit that still says something."""
    units = (("day", 86_400), ("hour", 3_600), ("minute", 60))
    return next(
        (counted(int(age_seconds // length), unit) for unit, length in units if age_seconds >= 2 * length),
        counted(int(age_seconds), "second"),
    )


def listed(parts: Sequence[str]) -> str:
    """Return texts as a list in a sentence: `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
