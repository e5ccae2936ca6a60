"""Write the figures of bench/results.json into the READMEs, and the model's into docs/scale.md.

    python -m bench.readme [--write]

README.md gets one summary table, bench/README.md gets every table, docs/scale.md what `bench.scale` works out, each
between its markers. Prints the sections; with --write it puts them into the files.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import scale
from bench.tables import Table, all_tables, markdown

CHECKOUT = Path(__file__).parent.parent
RESULTS = CHECKOUT / "bench" / "results.json"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
# The one table that README.md shows, by its title.
SUMMARY = "100,000 workspaces in one cycle"


@dataclass(frozen=True, slots=True)
class Page:
    """A file with a generated section between START and END."""

    path: Path
    render: Callable[[Mapping[str, Any]], str]

    def written(self) -> str:
        """Return the section as the file has it now. Raises ValueError if the file has no markers."""
        return self._parts()[1].strip("\n")

    def write(self, results: Mapping[str, Any]) -> None:
        """Replace the section. Raises ValueError if the file has no markers."""
        before, _, after = self._parts()
        self.path.write_text(f"{before}{START}\n{self.render(results)}\n{END}{after}")

    def _parts(self) -> tuple[str, str, str]:
        before, start, rest = self.path.read_text().partition(START)
        section, end, after = rest.partition(END)
        if not start or not end:
            raise ValueError(f"{self.path.relative_to(CHECKOUT)} has no {START} … {END}")
        return before, section, after


def main() -> int:
    """Print the sections, or write them; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description="The bench figures in the READMEs.")
    parser.add_argument("--write", action="store_true", help="put them into the files")
    if parser.parse_args().write:
        rewrite()
        return 0
    results = measured()
    for page in PAGES:
        sys.stdout.write(f"{page.path.relative_to(CHECKOUT)}:\n\n{page.render(results)}\n\n")
    return 0


def rewrite() -> None:
    """Put the figures into the files. Raises ValueError if one of them has no markers."""
    results = measured()
    for page in PAGES:
        page.write(results)


def measured() -> dict[str, Any]:
    """Return what the last run of the bench measured."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


def _summary(results: Mapping[str, Any]) -> str:
    return _markdown(next(table for table in all_tables(results) if table.title == SUMMARY))


def _everything(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    intro = (
        f"Measured on {machine['processor']}, {machine['cores']} cores, Python {machine['python']},"
        f" {machine['system']}, at {machine['measured_at']}; servers and contestants share the machine. Figures are"
        " medians. Ratios compare with the first row of a table unless the table says otherwise."
    )
    return "\n\n".join([intro, *(_markdown(table) for table in all_tables(results))])


def _markdown(table: Table) -> str:
    return f"**{table.title}** ({table.conditions}):\n\n{markdown(table.header, table.rows)}"


PAGES = (
    Page(CHECKOUT / "README.md", _summary),
    Page(CHECKOUT / "bench" / "README.md", _everything),
    Page(CHECKOUT / "docs" / "scale.md", lambda _: scale.page()),
)


if __name__ == "__main__":
    sys.exit(main())
