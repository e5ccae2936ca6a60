"""What the dashboard of a stack shows after a rehearsal: its widgets with all values, ready to be drawn."""

from collections.abc import Mapping
from typing import Any

from tests.support.cloudwatch import alarms, lines, widgets
from tests.support.rehearsal import Rehearsal
from tests.support.story import MINUTE_S

# CloudWatch's own, for lines without a colour.
_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)


def panels(now: Rehearsal, minutes: int) -> list[dict[str, Any]]:
    """Return the widgets, each with what it shows of the last minutes."""
    return [_panel(now, widget, minutes) for widget in widgets(now.stack)]


def _panel(now: Rehearsal, widget: Mapping[str, Any], minutes: int) -> dict[str, Any]:
    properties = widget["properties"]
    panel = {name: widget[name] for name in ("x", "y", "width", "height")} | {"title": properties["title"]}
    match widget["type"]:
        case "alarm":
            ringing = now.ringing()
            names = {f"<{name}.Arn>": name for name in alarms(now.stack)}
            listed = [names[one] for one in properties["alarms"]]
            return panel | {"alarms": [[name.removesuffix("Alarm"), name in ringing] for name in listed]}
        case "log":
            found = now.answer(properties["query"])
            return panel | {"columns": list(dict.fromkeys(key for row in found for key in row)), "rows": found}
        case "metric":
            window = [now.now_s - minutes * MINUTE_S, now.now_s]
            return panel | {"lines": _lines(now, widget, minutes), "y_axis": properties["yAxis"], "window": window}
        case other:
            raise NotImplementedError(other)


def _lines(now: Rehearsal, widget: Mapping[str, Any], minutes: int) -> list[dict[str, Any]]:
    times = [now.now_s - minute * MINUTE_S for minute in reversed(range(minutes))]
    shown = []
    for number, line in enumerate(lines(widget)):
        points = [(at_s, now.cloudwatch.of(line, at_s, at_s + MINUTE_S)) for at_s in times]
        shown.append(
            {
                "label": line.label,
                "axis": line.axis,
                "color": line.color or _COLOURS[number % len(_COLOURS)],
                "points": [point for point in points if point[1] is not None],
            }
        )
    return shown
