"""What docs/runbook.md says: its sections, the query or widget that each alarm has one open, and its queries."""

import re
from dataclasses import dataclass

from tests.support.tools import ROOT

PAGE = (ROOT / "docs" / "runbook.md").read_text()

# In this order, in each alarm's section.
PARTS = ("For customers", "Open", "Causes", "Over")
_OPENED = re.compile(r"(query|widget) \*(.+?)\*|SQL query \[(.+?)\]")


@dataclass(frozen=True, slots=True)
class Opened:
    """What an alarm's section has one open first: a saved `query`, a `widget` of the dashboard, or a query in `sql`."""

    kind: str
    title: str


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


def _sections() -> dict[str, str]:
    found = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return {anchor(heading): text for heading, text in found}


def _sql() -> dict[str, str]:
    queries = {}
    for heading, section in re.findall(r"^### (.+?)\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        for number, query in enumerate(re.findall(r"^```sql\n(.*?)^```", section, re.MULTILINE | re.DOTALL), 1):
            queries[heading if number == 1 else f"{heading} ({number})"] = query
    return queries


# By their anchors.
SECTIONS = _sections()
# By their headings; of several under one heading, the later ones have a number.
SQL = _sql()
# The anchor of each alarm's section, as the page's own table has it.
ALARMS = {
    alarm: target
    for line in re.findall(r"^\| (`\w+Alarm`.*)\|$", PAGE, re.MULTILINE)
    for alarm in re.findall(r"`(\w+)`", line)
    for target in re.findall(r"\(#(.+?)\)", line)
}

# Queries for Logs Insights that are not saved, by their section.
INSIGHTS = {
    section: query
    for section, text in SECTIONS.items()
    for query in re.findall(r"^ *```\n(\s*filter .*?)^ *```", text, re.MULTILINE | re.DOTALL)
}


def parts(section: str) -> dict[str, str]:
    """Return the parts of an alarm's section by their labels, in the order of the page."""
    labels = "|".join(PARTS)
    found = re.findall(rf"^\*\*({labels})[^*]*\*\*(.*?)(?=^\*\*(?:{labels})\b|\Z)", section, re.MULTILINE | re.DOTALL)
    return {label: " ".join(text.split()) for label, text in found}


def opened(section: str) -> Opened:
    """Return what a section has one open first."""
    first = _OPENED.search(parts(section)["Open"])
    assert first, section
    kind, title, sql = first.groups()
    return Opened("sql", sql) if sql else Opened(kind, title)
