"""The picture of the demo."""

import xml.etree.ElementTree as ET

import pytest

from sandbox.picture import BACKGROUND, COLOURS, picture, shown
from tests.support.tools import ROOT

SVG = "{http://www.w3.org/2000/svg}"
OUTPUT = (
    "\n\x1b[1mSetting up\x1b[0m\n  PostgreSQL … \x1b[2m0.7 s\x1b[0m\n"
    "\n\x1b[1mThe log of the cycle\x1b[0m\n  12:50  flip <skipped> & why\n"
    "\n\x1b[1mThe report\x1b[0m\n  mode  apply\n"
    "\n\x1b[1mWhat just happened\x1b[0m\n\x1b[31m  Flipped: 3.\x1b[0m\n"
)


def test_it_shows_the_parts_that_matter_as_the_terminal_did() -> None:
    texts = list(ET.fromstring(picture(shown(OUTPUT))).iter(f"{SVG}text"))  # noqa: S314 - our own
    assert [(one.get("class"), one.text) for one in texts] == [
        ("bold", "$ make demo"),
        ("bold", "The log of the cycle"),
        ("text", "12:50"),
        ("text", "flip <skipped> & why"),
        ("bold", "What just happened"),
        ("red", "Flipped: 3."),
    ]
    assert float(texts[3].get("x", "0")) - float(texts[2].get("x", "0")) == pytest.approx(7 * 7.8, abs=0.1)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_its_colours_are_readable(mode: int) -> None:
    """By the measure of WCAG 2, level AA."""
    assert {name for name, pair in COLOURS.items() if contrast(pair[mode], BACKGROUND[mode]) < 4.5} == set()


def test_the_one_that_is_committed_is_small_and_asks_nobody_for_anything() -> None:
    text = (ROOT / "docs" / "demo.svg").read_text()
    assert len(text) < 60_000
    assert text.count("://") == 1  # the namespace
    assert "prefers-color-scheme: dark" in text


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
