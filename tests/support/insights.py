"""CloudWatch Logs Insights, as far as the saved queries use it: `filter`, `fields`, `sort`, `limit`, and `stats`.

Anything else is an error with its name. That includes a function inside another one, which AWS documents nowhere.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

Line = dict[str, Any]

_WORD = re.compile(r"""\s*("[^"]*"|'[^']*'|!=|[()\[\],=]|@?[A-Za-z_][\w.]*)""")
_AGGREGATE = re.compile(r"(\w+)\(([\w.@*]+)\)(?: as (\w+))?")
_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "count": len,
    "sum": lambda values: sum(float(one) for one in values),
    "max": max,
    "latest": lambda values: values[-1],
}
_BIN = re.compile(r"bin\((\d+)m\)")
_TIME = "%Y-%m-%d %H:%M:%S.%f"


def rows(query: str, lines: Iterable[Line]) -> list[Line]:
    """Return what a query answers about lines, which are in the order of their times."""
    found = [_flat(line) for line in lines]
    shown: list[str] | None = None
    for command in query.split("|"):
        name, _, rest = command.strip().partition(" ")
        match name:
            case "filter":
                found = [line for line in found if _Filter(rest).matches(line)]
            case "stats":
                found, shown = _stats(rest, found), None
            case "fields":
                shown = rest.split(", ")
            case "sort":
                found = _sorted(rest, found)
            case "limit":
                found = found[: int(rest)]
            case "SOURCE":
                pass
            case _:
                raise NotImplementedError(command)
    return found if shown is None else [{name: line[name] for name in shown if name in line} for line in found]


def _flat(value: Line, prefix: str = "") -> Line:
    flat: Line = {}
    for key, one in value.items():
        flat |= _flat(one, f"{prefix}{key}.") if isinstance(one, dict) else {prefix + key: one}
    return flat


def _sorted(text: str, lines: list[Line]) -> list[Line]:
    field, order = text.split()
    has_it = [line for line in lines if field in line]
    rest = [line for line in lines if field not in line]
    return sorted(has_it, key=lambda line: line[field], reverse=order == "desc") + rest


def _stats(text: str, lines: list[Line]) -> list[Line]:
    aggregates, _, by = text.partition(" by ")
    fields = [one.strip() for one in re.split(r", *", by.strip())]
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(_grouped(one, line) for one in fields), []).append(line)
    result = []
    for key, members in groups.items():
        row: Line = dict(zip(fields, key, strict=True))
        for part in aggregates.split(", "):
            function, field, name = _matched(part.strip())
            values = members if field == "*" else [line[field] for line in members if field in line]
            row[name or part.strip()] = _AGGREGATES[function](values)
        result.append(row)
    return result


def _grouped(field: str, line: Line) -> Any:
    """Return a field's value, or when the period of `bin(…)` began."""
    period = _BIN.fullmatch(field)
    if period is None:
        return line.get(field)
    at_s = datetime.strptime(line["@timestamp"], _TIME).replace(tzinfo=UTC).timestamp()
    period_s = int(period[1]) * 60
    return datetime.fromtimestamp(at_s - at_s % period_s, UTC).strftime(_TIME)[:-3]


def _matched(text: str) -> tuple[str, str, str | None]:
    match = _AGGREGATE.fullmatch(text)
    if match is None:
        raise NotImplementedError(text)
    return match[1], match[2], match[3]


class _Filter:
    """A condition: comparisons, `in`, `ispresent`, `and`, `or` and parentheses."""

    def __init__(self, text: str) -> None:
        self._words: list[str] = []
        at = 0
        while text[at:].strip():
            word = _WORD.match(text, at)
            if word is None:
                raise NotImplementedError(text[at:])
            self._words.append(word[1])
            at = word.end()
        self._at = 0

    def matches(self, line: Line) -> bool:
        self._at = 0
        result = self._any(line)
        if self._at != len(self._words):
            raise NotImplementedError(" ".join(self._words[self._at :]))
        return result

    def _next(self) -> str:
        self._at += 1
        return self._words[self._at - 1]

    def _take(self, word: str) -> bool:
        taken = self._at < len(self._words) and self._words[self._at] == word
        self._at += taken
        return taken

    def _any(self, line: Line) -> bool:
        result = self._all(line)
        while self._take("or"):
            result = self._all(line) or result
        return result

    def _all(self, line: Line) -> bool:
        result = self._one(line)
        while self._take("and"):
            result = self._one(line) and result
        return result

    def _one(self, line: Line) -> bool:
        if self._take("("):
            result = self._any(line)
            assert self._take(")")
            return result
        field = self._next()
        if field == "ispresent":
            opened, field, closed = self._next(), self._next(), self._next()
            assert (opened, closed) == ("(", ")")
            return field in line
        operator = self._next()
        if operator == "in":
            assert self._take("[")
            values = [self._next()[1:-1]]
            while self._take(","):
                values.append(self._next()[1:-1])
            assert self._take("]")
            return line.get(field) in values
        if operator not in ("=", "!="):
            raise NotImplementedError(operator)
        equal: bool = line.get(field) == self._next()[1:-1]
        return equal == (operator == "=")
