"""Text, tables and a little colour for a person at a terminal."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def styled(text: str, style: str) -> str:
    """Return the text in a style, or as it is if nobody wants colours (https://no-color.org)."""
    if not style or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def say(text: str = "") -> None:
    """Print a line at once, even if stdout is a pipe, and in one piece, even if other threads print, too."""
    print(f"{text}\n", end="", flush=True)


def headline(text: str) -> None:
    """Print a heading below an empty line."""
    say()
    say(styled(text, "bold"))


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show what is being done, and then how long it took."""
    began_at = time.monotonic()
    print(f"  {text} … ", end="", flush=True)
    yield
    say(styled(f"{time.monotonic() - began_at:.1f} s", "dim"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
    """Print rows in aligned columns under a header. `styles` has a style, or an empty string, for each row."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    say(styled(_aligned(header, widths), "dim"))
    for number, row in enumerate(rows):
        say(styled(_aligned(row, widths), styles[number] if number < len(styles) else ""))


def pairs(values: Sequence[tuple[str, str]], *, columns: int = 3) -> None:
    """Print names and values, several per line."""
    name_width = max(len(name) for name, _ in values)
    value_width = max(len(value) for _, value in values)
    cells = [f"{name:<{name_width}}  {value:<{value_width}}" for name, value in values]
    lines = -(-len(cells) // columns)
    for line in range(lines):
        say("  " + "    ".join(cells[line::lines]).rstrip())


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return ("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))).rstrip()
