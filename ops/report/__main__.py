"""Shows a report, an explanation or the answer to a hold: python -m ops.report FILE|- [--html OUT]."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ops.command import run
from ops.console import Console, OpsError
from ops.report.layout import document_of
from ops.report.page import page
from ops.report.reading import UnreadableError, printable
from ops.report.terminal import show

_STDIN = "-"


def report(console: Console, file: str, html: Path | None) -> None:
    """Show a file, and write its page. Raises OpsError if it cannot be read or written, or is something else."""
    source = "standard input" if file == _STDIN else printable(file)
    try:
        document = document_of(_text(file, source), source)
    except UnreadableError as error:
        raise OpsError(str(error)) from error
    show(console, document)
    if html is None:
        return
    try:
        if file != _STDIN and html.exists() and html.samefile(file):
            raise OpsError(f"{source} is the file to read: --html has to name another one")
        html.write_text(page(document, source=source, now=datetime.now(UTC)), encoding="utf-8")
    except OSError as error:
        raise OpsError(f"{printable(str(html))}: the page cannot be written: {error.strerror}") from error
    console.say()
    console.say(f"The page is {printable(str(html))}.")


def _text(file: str, source: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == _STDIN else Path(file).read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OpsError(f"{source}: it is not text in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise OpsError(f"{source}: it cannot be read: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the file that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.report",
        description="Show what the reconciler answered: a cycle's report, an explanation, the answer to a hold or a "
        "release; or several reports or the log, with one JSON object a line.",
    )
    parser.add_argument("file", help="the file with the answer; - reads standard input")
    parser.add_argument("--html", type=Path, metavar="OUT", help="also write one self-contained page")
    parsed = parser.parse_args(arguments)
    return run(lambda console: report(console, parsed.file, parsed.html))


if __name__ == "__main__":
    sys.exit(main())
