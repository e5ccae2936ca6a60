"""CloudWatch Logs Insights, as far as the saved queries use it: `filter`, and `stats` over plain fields.

Anything else is an error with its name. That includes a function inside another one, which AWS documents nowhere.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

Line = dict[str, Any]

_WORD = re.compile(r"""\s*("[^"]*"|'[^']*'|!=|[()\[\],=]|@?[A-Za-z_][\w.]*)""")
_AGGREGATE = re.compile(r"(\w+)\(([\w.@]+)\) as (\w+)")
_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "sum": lambda values: sum(float(one) for one in values),
    "max": max,
    "latest": lambda values: values[-1],
}


def rows(query: str, lines: Iterable[Line]) -> list[Line]:
    """Return the lines that a query finds, or the rows of its `stats`. It sorts nothing and leaves nothing out."""
    found = [_flat(line) for line in lines]
    for command in query.split("|"):
        name, _, rest = command.strip().partition(" ")
        match name:
            case "filter":
                found = [line for line in found if _Filter(rest).matches(line)]
            case "stats":
                found = _stats(rest, found)
            case "fields" | "sort" | "limit" | "SOURCE":
                pass
            case _:
                raise NotImplementedError(command)
    return found


def _flat(value: Line, prefix: str = "") -> Line:
    flat: Line = {}
    for key, one in value.items():
        flat |= _flat(one, f"{prefix}{key}.") if isinstance(one, dict) else {prefix + key: one}
    return flat


def _stats(text: str, lines: list[Line]) -> list[Line]:
    aggregates, _, by = text.partition(" by ")
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.get(by.strip()), []).append(line)
    result = []
    for key, members in groups.items():
        row = {by.strip(): key}
        for part in aggregates.split(", "):
            function, field, name = _matched(_AGGREGATE, part.strip())
            row[name] = _AGGREGATES[function]([line[field] for line in members if field in line])
        result.append(row)
    return result


def _matched(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    match = pattern.fullmatch(text)
    if match is None:
        raise NotImplementedError(text)
    return match.groups()


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
