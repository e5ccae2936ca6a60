"""CloudWatch, as far as the template uses it: metrics, statistics, metric math, alarms, and a dashboard's widgets.

Whatever else a template might ask for is an error with its name.
"""

import ast
import json
import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.cloudformation import Stack


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is known by."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a widget: a metric's statistic, or an expression that needs none."""

    label: str
    metric: Metric | None
    expression: str
    stat: str
    axis: str
    color: str | None


_STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "Sum": sum,
    "Maximum": max,
    "Average": lambda values: sum(values) / len(values),
    "p50": lambda values: _percentile(values, 0.50),
    "p99": lambda values: _percentile(values, 0.99),
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
}


class CloudWatch:
    """The values of metrics. Times are in seconds since 1970."""

    def __init__(self) -> None:
        self._values: dict[Metric, list[tuple[float, float]]] = defaultdict(list)

    def put(self, at_s: float, metric: Metric, *values: float) -> None:
        """Take values of a metric."""
        self._values[metric] += [(at_s, one) for one in values]

    def take(self, at_s: float, line: Mapping[str, Any]) -> None:
        """Take the metrics of a log line, if it has any."""
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            for names in directive["Dimensions"]:
                dimensions = tuple((name, line[name]) for name in names)
                for one in directive["Metrics"]:
                    values = line[one["Name"]]
                    metric = Metric(directive["Namespace"], one["Name"], dimensions)
                    self.put(at_s, metric, *(values if isinstance(values, list) else [values]))

    def value(self, metric: Metric, stat: str, start_s: float, end_s: float) -> float | None:
        """Return a statistic over a period, None if nothing was measured."""
        values = [value for at_s, value in self._values.get(metric, []) if start_s <= at_s < end_s]
        return _STATISTICS[stat](values) if values else None

    def of(self, line: Line, start_s: float, end_s: float) -> float | None:
        """Return what a widget's line shows of a period."""
        if line.metric is None:
            return computed(line.expression, {})
        return self.value(line.metric, line.stat, start_s, end_s)

    def is_in_alarm(self, alarm: Mapping[str, Any], now_s: float) -> bool:
        """Tell whether an alarm is in ALARM, which CloudWatch works out each minute from the periods before."""
        metrics = alarm.get("Metrics", [])
        period_s = alarm["Period"] if "Period" in alarm else metrics[1]["MetricStat"]["Period"]
        periods = int(alarm["EvaluationPeriods"])
        is_breached = _COMPARISONS[alarm["ComparisonOperator"]]
        breaching = 0
        for number in range(periods):
            end_s = now_s - number * period_s
            value = self._measured(alarm, end_s - period_s, end_s)
            if value is None:
                breaching += {"breaching": True, "notBreaching": False}[alarm["TreatMissingData"]]
            else:
                breaching += is_breached(value, float(alarm["Threshold"]))
        return breaching >= int(alarm.get("DatapointsToAlarm", periods))

    def _measured(self, alarm: Mapping[str, Any], start_s: float, end_s: float) -> float | None:
        if "Metrics" not in alarm:
            return self.value(_metric(alarm), alarm["Statistic"], start_s, end_s)
        (expression,) = (one["Expression"] for one in alarm["Metrics"] if one.get("ReturnData", True))
        inputs = {one["Id"]: one["MetricStat"] for one in alarm["Metrics"] if "MetricStat" in one}
        return computed(
            expression,
            {name: self.value(_metric(one["Metric"]), one["Stat"], start_s, end_s) for name, one in inputs.items()},
        )


def alarms(stack: Stack) -> dict[str, dict[str, Any]]:
    """Return a stack's alarms by their names."""
    return stack.of_type("AWS::CloudWatch::Alarm")


def metrics_of(alarm: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics that an alarm looks at."""
    parts = [one["MetricStat"]["Metric"] for one in alarm.get("Metrics", []) if "MetricStat" in one]
    return [_metric(one) for one in parts or [alarm]]


def widgets(stack: Stack) -> list[dict[str, Any]]:
    """Return the widgets of a stack's dashboard."""
    body = json.loads(stack.properties("Dashboard")["DashboardBody"])
    found: list[dict[str, Any]] = body["widgets"]
    return found


def lines(widget: Mapping[str, Any]) -> Iterator[Line]:
    """Yield a widget's lines without shorthand: `.` repeats the word above, `...` all words above but the last."""
    properties = widget["properties"]
    above: list[str] = []
    for entry in properties.get("metrics", []):
        words = [word for word in entry if isinstance(word, str)]
        options = next((one for one in entry if isinstance(one, dict)), {})
        stat = options.get("stat", properties.get("stat", "Average"))
        axis, color = options.get("yAxis", "left"), options.get("color")
        if "expression" in options:
            yield Line(options["label"], None, options["expression"], stat, axis, color)
            continue
        if words[0] == "...":
            words = above[: len(above) - len(words) + 1] + words[1:]
        above = [old if new == "." else new for new, old in zip(words, above or words, strict=True)]
        namespace, name, *dimensions = above
        metric = Metric(namespace, name, tuple(zip(dimensions[::2], dimensions[1::2], strict=True)))
        yield Line(options.get("label", name), metric, "", stat, axis, color)


def computed(expression: str, inputs: Mapping[str, float | None]) -> float | None:
    """Return the value of an expression in metric math; None if something that it needs was not measured."""
    text = re.sub(r"\b(AND|OR)\b", lambda word: word[1].lower(), expression)
    return _computed(ast.parse(text, mode="eval").body, inputs)


_OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}


def _computed(  # noqa: PLR0911 - one case for each kind of expression
    node: ast.expr, inputs: Mapping[str, float | None]
) -> float | None:
    def each(*nodes: ast.expr) -> list[float | None]:
        return [_computed(one, inputs) for one in nodes]

    match node:
        case ast.Constant(int() | float() as value):
            return value
        case ast.Name(name):
            return inputs[name]
        case ast.BinOp(left, how, right) | ast.Compare(left, [how], [right]) if type(how) in _OPERATORS:
            one, other = each(left, right)
            return None if one is None or other is None else float(_OPERATORS[type(how)](one, other))
        case ast.BoolOp(ast.And(), parts):
            values = each(*parts)
            return None if None in values else float(all(values))
        case ast.Call(ast.Name("IF"), [condition, yes, no]):
            (decides,) = each(condition)
            return None if decides is None else each(yes if decides else no)[0]
        case ast.Call(ast.Name("SUM"), [ast.List(parts)]):
            measured = [one for one in each(*parts) if one is not None]
            return sum(measured) if measured else None
        case ast.Call(ast.Name("TIME_SERIES"), [value]):
            return each(value)[0]
    raise NotImplementedError(ast.unparse(node))


def _metric(described: Mapping[str, Any]) -> Metric:
    dimensions = tuple((one["Name"], one["Value"]) for one in described["Dimensions"])
    return Metric(described["Namespace"], described["MetricName"], dimensions)


def _percentile(values: Sequence[float], fraction: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
