"""Draws what the dashboard shows, read from stdin, into a picture. Runs in .venv-bench: nothing else needs matplotlib.

The picture names the widgets and lines that were drawn in its metadata, so that a test can tell when it is out of date.
"""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import dates
from matplotlib import pyplot as plt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_COLUMNS = 24
_COLUMN_IN, _ROW_IN = 0.72, 0.62
_GAP_IN = 0.07
_TITLE_IN, _LEGEND_IN = 0.3, 0.26
_GREEN, _RED, _GREY = "#1d8102", "#d13212", "#5f6b7a"
_BACKGROUND = "#f2f3f3"
_ROWS_OF_A_LOG = 9
_MINUTE_S = 60.0


def main() -> int:
    """Draw the picture; return the process's exit code."""
    panels = json.load(sys.stdin)
    rows = max(one["y"] + one["height"] for one in panels)
    plt.rcParams.update({"font.size": 8, "axes.edgecolor": "#c6c6cd", "xtick.color": _GREY, "ytick.color": _GREY})
    figure = plt.figure(figsize=(_COLUMNS * _COLUMN_IN, rows * _ROW_IN), facecolor=_BACKGROUND)
    drawn = {}
    for panel in panels:
        card = _card(figure, panel, rows)
        if "alarms" in panel:
            drawn[panel["title"]] = _alarms(card, panel["alarms"])
        elif "rows" in panel:
            drawn[panel["title"]] = _log(card, panel["columns"], panel["rows"])
        else:
            drawn[panel["title"]] = _lines(card, panel)
    _save(figure, sys.argv[1], json.dumps(drawn))
    return 0


def _save(figure: Any, path: str, drawn: str) -> None:
    """Write the picture with few colours, which makes it a third as large."""
    large = io.BytesIO()
    figure.savefig(large, dpi=90, facecolor=_BACKGROUND)
    about = PngInfo()
    about.add_text("Widgets", drawn)
    Image.open(large).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True, pnginfo=about)


def _card(figure: Any, panel: Mapping[str, Any], rows: int) -> Any:
    """Draw the white card of a widget with its title, and return it as a figure of its own."""
    width, height = _COLUMNS * _COLUMN_IN, rows * _ROW_IN
    left, top = panel["x"] * _COLUMN_IN + _GAP_IN, panel["y"] * _ROW_IN + _GAP_IN
    right = (panel["x"] + panel["width"]) * _COLUMN_IN - _GAP_IN
    bottom = (panel["y"] + panel["height"]) * _ROW_IN - _GAP_IN
    axes = figure.add_axes((left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height))
    axes.set(xticks=[], yticks=[], xlim=(0, right - left), ylim=(bottom - top, 0))
    axes.text(0.12, 0.19, panel["title"], weight="bold", va="center", fontsize=9)
    return axes


def _alarms(card: Any, alarms: Sequence[tuple[str, bool]]) -> list[str]:
    across = 7
    width, height = card.get_xlim()[1], card.get_ylim()[0]
    down = -(-len(alarms) // across)
    cell, step = width / across, (height - _TITLE_IN - 0.1) / down
    for number, (name, rings) in enumerate(alarms):
        left, top = number % across * cell + 0.08, _TITLE_IN + 0.06 + number // across * step
        colour = _RED if rings else _GREEN
        card.add_patch(plt.Rectangle((left, top), cell - 0.12, step - 0.08, color=colour, alpha=1 if rings else 0.14))
        text = f"{name}: {'ALARM' if rings else 'OK'}"
        card.text(left + 0.1, top + (step - 0.08) / 2, text, va="center", color="white" if rings else colour)
    return []


def _log(card: Any, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    width, height = card.get_xlim()[1], card.get_ylim()[0]
    shown = rows[:_ROWS_OF_A_LOG]
    longest = {name: max(len(name), *(len(str(row.get(name, ""))) for row in shown)) + 3 for name in columns}
    step = (height - _TITLE_IN - 0.1) / (len(shown) + 1)
    per_letter = (width - 0.24) / sum(longest.values())
    left = 0.12
    for name in columns:
        for number, text in enumerate([name, *(str(row.get(name, "")) for row in shown)]):
            top = _TITLE_IN + 0.05 + (number + 0.5) * step
            card.text(left, top, text, va="center", fontsize=7.5, color="#000" if number else _GREY)
        left += longest[name] * per_letter
    return []


def _lines(card: Any, panel: Mapping[str, Any]) -> list[str]:
    """Draw the lines of a widget; return the labels of those that have a value."""
    box, (width, height) = card.get_position(), (card.get_xlim()[1], card.get_ylim()[0])
    low, high = _LEGEND_IN + 0.24, _TITLE_IN + 0.08
    axes = card.figure.add_axes(
        (
            box.x0 + box.width * 0.5 / width,
            box.y0 + box.height * low / height,
            box.width * (width - 1.0) / width,
            box.height * (height - low - high) / height,
        )
    )
    sides = {"left": axes}
    if any(line["axis"] == "right" for line in panel["lines"]):
        sides["right"] = axes.twinx()
    handles = []
    for line in panel["lines"]:
        is_limit = line["label"].startswith(("alarm", "deadline"))
        for number, run in enumerate(_runs(line["points"])):
            times = [datetime.fromtimestamp(at_s, UTC) for at_s, _ in run]
            (handle,) = sides[line["axis"]].plot(
                *(times, [value for _, value in run]),
                color=line["color"],
                label=line["label"],
                linewidth=1.3,
                linestyle="--" if is_limit else "-",
                marker="o" if len(run) == 1 else "",
                markersize=3.5,
            )
            if number == 0:
                handles.append(handle)
    for name, side in sides.items():
        limits = panel["y_axis"].get(name, {})
        side.set_ylim(limits.get("min"), limits.get("max"))
        if limits.get("min") == 0 and "max" not in limits:
            side.set_ylim(0, max(1.0, side.dataLim.y1 * 1.08))
        side.spines[["top", "right", "left"]].set_visible(False)
        side.tick_params(length=0, labelsize=7)
        side.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
        if "label" in limits:
            side.set_title(limits["label"], loc=name, fontsize=7, color=_GREY, pad=2)
    axes.grid(axis="y", alpha=0.4)
    axes.set_xlim(*(datetime.fromtimestamp(at_s, UTC) for at_s in panel["window"]))
    axes.xaxis.set_major_locator(dates.MinuteLocator(byminute=[0, 30]))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    card.legend(
        handles=handles,
        loc="lower left",
        ncols=len(handles),
        fontsize=7,
        frameon=False,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=1.0,
        borderaxespad=0.3,
    )
    return [line["label"] for line in panel["lines"] if line["points"]]


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Return the points in pieces without a gap between them, as CloudWatch connects them."""
    runs: list[list[tuple[float, float]]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] <= _MINUTE_S:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


if __name__ == "__main__":
    sys.exit(main())
