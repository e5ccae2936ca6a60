"""README's figures, from bench/results.json.

    python -m bench.readme [--write]

Prints the section that stands between the markers in README.md; with --write it puts it there.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.tables import Table, all_tables

CHECKOUT = Path(__file__).parent.parent
README = CHECKOUT / "README.md"
RESULTS = CHECKOUT / "bench" / "results.json"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"


def main() -> int:
    """Print the section, or write it; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description="README's figures.")
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    if parser.parse_args().write:
        rewrite()
    else:
        sys.stdout.write(rendered(json.loads(RESULTS.read_text())) + "\n")
    return 0


def rewrite() -> None:
    """Put the figures into README.md, between the markers. Raises ValueError if it has none."""
    before, _, after = _parts(README.read_text())
    README.write_text(f"{before}{START}\n{rendered(json.loads(RESULTS.read_text()))}\n{END}{after}")


def in_readme() -> str:
    """Return the section as it stands in README.md now."""
    return _parts(README.read_text())[1].strip("\n")


def rendered(results: Mapping[str, Any]) -> str:
    """Return the section as Markdown."""
    machine = results["machine"]
    intro = (
        f"Measured by `make bench` on {machine['processor']}, {machine['cores']} cores, Python {machine['python']},"
        f" {machine['system']}, servers and contestants on the same machine, at {machine['measured_at']}. Medians;"
        " ratios are to the first row of a table unless it says otherwise. `bench/README.md` says what they depend on."
    )
    return "\n\n".join([intro, *(_markdown(table) for table in all_tables(results))])


def _markdown(table: Table) -> str:
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join(
        [f"**{table.title}** ({table.conditions}):", "", *("| " + " | ".join(cells) + " |" for cells in lines)]
    )


def _parts(text: str) -> tuple[str, str, str]:
    before, start, rest = text.partition(START)
    section, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md has no {START} … {END}")
    return before, section, after


if __name__ == "__main__":
    sys.exit(main())
