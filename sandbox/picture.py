"""Records a run of the demo as a picture, readable in light and dark.

python -m sandbox.picture FILE.svg
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

# What is shown of the demo: the parts whose headlines begin like this.
_SHOWN = ("The log of", "The fleet after", "What just happened")
_COMMAND = "\x1b[1m$ make demo\x1b[0m"

_CHARACTER_PX, _LINE_PX, _MARGIN_PX = 7.8, 18, 16
# By the codes of `sandbox.terminal`. In light, and in dark.
_CLASSES = {"0": "text", "1": "bold", "2": "dim", "31": "red", "32": "green", "33": "yellow", "36": "cyan"}
COLOURS = {
    "text": ("#1f2328", "#e6edf3"),
    "bold": ("#1f2328", "#e6edf3"),
    "dim": ("#59636e", "#9198a1"),
    "red": ("#b42318", "#ff7b72"),
    "green": ("#1a7f37", "#3fb950"),
    "yellow": ("#8a5a00", "#d29922"),
    "cyan": ("#0b6b75", "#39c5cf"),
}
BACKGROUND = ("#f6f8fa", "#0d1117")

_CODE = re.compile(r"\x1b\[(\d+)m")
# Columns are apart by two spaces at least. Each is placed for itself, whatever font there is.
_COLUMN = re.compile(r"\S+(?: \S+)*")


def main(arguments: list[str]) -> int:
    """Run the demo and write the picture; return the demo's exit code."""
    (path,) = arguments
    exit_code, output = _recorded()
    sys.stdout.write(output)
    if exit_code == 0:
        Path(path).write_text(picture(shown(output)))
    return exit_code


def shown(output: str) -> list[str]:
    """Return the lines of the demo's output that the picture shows."""
    parts = re.split(r"^(?=\x1b\[1m)", output, flags=re.MULTILINE)
    kept = [part.rstrip() for part in parts if _CODE.sub("", part).startswith(_SHOWN)]
    return [_COMMAND, "", *"\n\n".join(kept).splitlines()]


def picture(lines: list[str]) -> str:
    """Return lines for a terminal as an SVG."""
    plain = [_CODE.sub("", line) for line in lines]
    width = round(max(map(len, plain)) * _CHARACTER_PX + 2 * _MARGIN_PX)
    height = len(lines) * _LINE_PX + 2 * _MARGIN_PX
    light, dark = (_style(number) for number in (0, 1))
    texts = "\n".join(text for number, line in enumerate(lines) for text in _texts(line, number))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" \
font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13" role="img" \
aria-label="Output of make demo">
<style>{light} .bold {{ font-weight: bold }} @media (prefers-color-scheme: dark) {{ {dark} }}</style>
<rect class="page" width="{width}" height="{height}" rx="8"/>
{texts}
</svg>
"""


def _style(number: int) -> str:
    colours = {name: pair[number] for name, pair in COLOURS.items()} | {"page": BACKGROUND[number]}
    return " ".join(f".{name} {{ fill: {colour} }}" for name, colour in colours.items())


def _texts(line: str, number: int) -> Iterator[str]:
    y = _MARGIN_PX + (number + 0.75) * _LINE_PX
    column, style = 0, "text"
    for place, part in enumerate(_CODE.split(line)):
        if place % 2:
            style = _CLASSES[part]
            continue
        for found in _COLUMN.finditer(part):
            x = _MARGIN_PX + (column + found.start()) * _CHARACTER_PX
            length = len(found[0]) * _CHARACTER_PX
            text = escape(found[0])
            yield f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" textLength="{length:.1f}">{text}</text>'
        column += len(part)


def _recorded() -> tuple[int, str]:
    """Run the demo at a terminal; return its exit code and what it printed."""
    reading, writing = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen([sys.executable, "-m", "sandbox.demo"], stdout=writing, env=environment) as process:
        os.close(writing)
        output = b""
        with contextlib.suppress(OSError):  # the terminal's end
            while some := os.read(reading, 65536):
                output += some
        os.close(reading)
    return process.returncode, output.decode().replace("\r\n", "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
