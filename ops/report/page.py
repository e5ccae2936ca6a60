"""Lays a document out as one HTML page that needs nothing else: no script, no font, no request."""

import base64
import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import jinja2

from ops.report.document import Document, number
from ops.report.reading import printable
from ops.report.words import GLOSSARY

_HERE = Path(__file__).parent
_LONGEST_WORD = 36  # a UUID


def page(document: Document, *, source: str, now: datetime) -> str:
    """Return the page. Whatever the document holds is text there, never markup."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    return _template().render(
        document=document,
        glossary=GLOSSARY,
        source=printable(source),
        made=f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        style=style,
        # The browser applies this very style sheet, and fetches and runs nothing.
        policy=f"default-src 'none'; style-src 'sha256-{_digest(style)}'; base-uri 'none'; form-action 'none'",
    )


@cache
def _template() -> jinja2.Template:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = number
    templates.tests["unbroken"] = _is_unbroken
    return templates.get_template("page.html")


def _is_unbroken(text: str) -> bool:
    """Tell whether a text has a word that is longer than a line: it has to break somewhere."""
    return max(map(len, text.split()), default=0) > _LONGEST_WORD


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
