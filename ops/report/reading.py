"""Reads what the reconciler answered, from a file or a log. Nothing of it is trusted: not its shape, not its texts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ops.report.words import DECISIONS, SKIPPED
from ops.text import shown

_LONGEST_TEXT = 300
_MOST = 10**12
_EXPECTED = (
    "expected is an answer of the reconciler: a cycle's report, an explanation, the answer to a hold or a release; "
    "or several reports, or the reconciler's log, with one JSON object a line"
)

COUNTS = (
    *("candidates", "checked", "running", "transition", "dead", "absent", "unknown", "impaired", "flipped", "adopted"),
    *("deferred", "on_hold", "oldest_doubt_seconds", "unrecorded", "offline_unowed", "duration_ms"),
)
RESTARTS = ("accepted", "cancelled", "refused", "uncertain", "blocked", "pending", "backing_off", "unrecovered")
_FLAGS = ("completed_pass", "deadline_hit", "breaker_open")


@dataclass(frozen=True, slots=True)
class Decision:
    """What a cycle did with one workspace, or would do."""

    message: str  # the log's; one of DECISIONS
    workspace_id: str
    instance_id: str
    state: str
    reason: str = ""
    adopted: bool = False
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle's report, checked: every field of the contract is there and has its type."""

    report: Mapping[str, Any]
    flips: tuple[Decision, ...]  # flipped or adopted, would be, or blocked
    others: tuple[Decision, ...] = ()  # neither; only a log knows them
    at: str = ""  # only a log knows it
    flips_listed: bool = True  # a log's line about the cycle has no `flips`

    @property
    def dry_run(self) -> bool:
        """Whether the cycle changed nothing."""
        return bool(self.report["mode"] != "apply")

    @property
    def completed(self) -> bool:
        """Whether it ran. If not, another cycle was at it."""
        return bool(self.report["outcome"] == "completed")

    def __getitem__(self, name: str) -> int:
        """Return a count or a flag of the report."""
        return int(self.report[name])


@dataclass(frozen=True, slots=True)
class Holding:
    """The answer to a hold or a release."""

    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer to an explain event. Each part may be missing: what could not be read is null."""

    answer: Mapping[str, Any]


Answer = Cycle | Holding | Explanation


def read(text: str, source: str) -> list[Answer]:
    """Return what a file holds. Raises UnreadableError, which names the source and what was expected."""
    try:
        return _answers(text)
    except _WrongError as wrong:
        raise UnreadableError(f"{printable(source)}: {wrong}; {_EXPECTED}") from None
    except RecursionError:
        raise UnreadableError(f"{printable(source)}: it is nested too deep; {_EXPECTED}") from None


def printable(text: str) -> str:
    """Return a text that nothing can come of when it is shown: no control or invisible characters, and not too long."""
    short = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
    return shown(short)


class UnreadableError(Exception):
    """A file is not what was expected; the message names it, what is wrong, and what was expected."""


class _WrongError(Exception):
    """The message says what is wrong, but does not name the source."""


def _answers(text: str) -> list[Answer]:
    if not text.strip():
        raise _WrongError("it is empty")
    try:
        value = _parsed(text)
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) == 1 or lines[0][1].strip() == "{":  # not one object a line
            raise _WrongError(f"it is not JSON: {printable(str(error))}") from None
        return _logged([(f"line {number}: ", _object_in(number, line)) for number, line in lines])
    if isinstance(value, list):
        return _logged([(f"entry {number}: ", one) for number, one in enumerate(value, 1)])
    return [_answer(value, "")]


def _object_in(number: int, line: str) -> Any:
    """Return the object of a line. `aws logs tail` puts a time, and maybe the stream's name, in front of it."""
    start = line.find("{")
    try:
        return _parsed(line[max(0, start) :])
    except ValueError as error:
        raise _WrongError(f"line {number} is not JSON: {printable(str(error))}") from None


def _parsed(text: str) -> Any:
    return _clean(json.loads(text))


def _clean(value: Any) -> Any:
    """Make every text of a JSON value printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): _clean(one) for key, one in value.items()}
    return value


def _logged(values: Sequence[tuple[str, Any]]) -> list[Answer]:
    """Return the answers among many values, each with the decisions that the log has of its cycle."""
    answers: list[Answer] = []
    decisions: dict[str, list[Decision]] = {}
    for where, value in values:
        if not isinstance(value, dict):
            raise _WrongError(f"{where}it is not an object")
        message, cycle_id = value.get("message"), value.get("cycle_id")
        if message in DECISIONS and isinstance(cycle_id, str):
            decisions.setdefault(cycle_id, []).append(_decision(value, str(message), where))
        elif message == "cycle finished":
            answers.append(_finished(value, decisions.pop(str(cycle_id), ()), where))
        elif not _is_another_line(value):
            answers.append(_answer(value, where))
    if not answers:
        raise _WrongError("it has no report: a log has one in each line 'cycle finished'")
    return answers


def _is_another_line(value: Mapping[str, Any]) -> bool:
    """Tell whether it is a line of a log that is about no cycle as a whole: ours, metrics, or Lambda's own."""
    return "level" in value or "_aws" in value or ("type" in value and "record" in value)


def _finished(line: Mapping[str, Any], decisions: Sequence[Decision], where: str) -> Cycle:
    """Return the cycle of a line `cycle finished`."""
    cycle = _cycle(line, where)
    flips = tuple(one for one in decisions if DECISIONS[one.message])
    others = tuple(one for one in decisions if not DECISIONS[one.message])
    at = line.get("timestamp")
    return replace(cycle, flips=flips, others=others, at=at if isinstance(at, str) else "", flips_listed=False)


def _answer(value: Any, where: str) -> Answer:
    if not isinstance(value, dict):
        raise _WrongError(f"{where}it is JSON, but not an object")
    if "would" in value and "workspace_id" in value:
        return Explanation(_explained(value, where))
    if "holds" in value:
        return Holding(_held(value, where))
    if "candidates" in value:
        return _cycle(value, where)
    if "errorMessage" in value:
        kind, message = value.get("errorType", "an error"), value["errorMessage"]
        raise _WrongError(f"{where}the function failed, and this is its error: {kind}: {message}")
    if "StatusCode" in value:
        raise _WrongError(
            f"{where}this is what `aws lambda invoke` prints; the answer is in the file that the command names"
        )
    raise _WrongError(f"{where}it is an object with {_keys(value)}")


def _keys(value: Mapping[str, Any]) -> str:
    some = [f"'{key}'" for key in list(value)[:5]]
    return f"the fields {', '.join(some)}{' and more' if len(value) > len(some) else ''}" if some else "no fields"


def _cycle(value: Mapping[str, Any], where: str) -> Cycle:
    report: dict[str, Any] = {}
    for name in ("mode", "probe", "outcome"):
        report[name] = field(value, name, str, where)
    for name in COUNTS:
        report[name] = field(value, name, int, where)
    for name in _FLAGS:
        report[name] = field(value, name, bool, where)
    for name in ("targets_failed", "targets_empty"):
        report[name] = _texts(value, name, where)
    skipped = field(value, "skipped", dict, where)
    report["skipped"] = {name: field(skipped, name, int, f"{where}skipped: ") for name in {**SKIPPED, **skipped}}
    restarts = field(value, "restarts", dict, where)
    report["restarts"] = {name: field(restarts, name, int, f"{where}restarts: ") for name in RESTARTS}
    flips = field(value, "flips", list, where) if "flips" in value else []
    dry_run = report["mode"] != "apply"
    decided = tuple(
        _flip(one, f"{where}flips, entry {number}: ", dry_run=dry_run) for number, one in enumerate(flips, 1)
    )
    report["flips"] = flips
    return Cycle(report, decided)


def _flip(value: Any, where: str, *, dry_run: bool) -> Decision:
    if not isinstance(value, dict):
        raise _WrongError(f"{where}it is not an object")
    adopted, blocked = value.get("adopted") is True, value.get("blocked") is True
    would = dry_run or blocked
    message = (
        ("would adopt" if adopted else "would flip") if would else f"workspace {'adopted' if adopted else 'flipped'}"
    )
    return Decision(
        message,
        field(value, "workspace_id", str, where),
        field(value, "instance_id", str, where),
        field(value, "instance_state", str, where),
        adopted=adopted,
        blocked=blocked,
    )


def _decision(line: Mapping[str, Any], message: str, where: str) -> Decision:
    return Decision(
        message,
        field(line, "workspace_id", str, where),
        field(line, "instance_id", str, where),
        optional(line, "instance_state", str, where) or "",
        reason=field(line, "reason", str, where),
        adopted=message.endswith(("adopt", "adopted")),
    )


def _held(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    in_flight = value.get("in_flight")
    return {
        "mode": field(value, "mode", str, where),
        "outcome": field(value, "outcome", str, where),
        "on_hold": field(value, "on_hold", int, where),
        "in_flight": None if in_flight is None else _texts(value, "in_flight", where),
        "unchecked": value.get("unchecked") is True,
        "holds": [
            {
                "workspace_id": optional(one, "workspace_id", str, inside),
                "reason": field(one, "reason", str, inside),
                "ends_at": field(one, "ends_at", str, inside),
            }
            for one, inside in _objects(value, "holds", where)
        ],
    }


def _explained(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    would = optional(value, "would", dict, where)
    if would is not None:
        for name in ("action", "reason"):
            field(would, name, str, f"{where}would: ")
    for name in ("row", "candidate", "hold", "breaker"):
        optional(value, name, dict, where)
    lists = {
        name: None if value.get(name) is None else [one for one, _ in _objects(value, name, where)]
        for name in ("instance", "doubts", "restarts")
    }
    return {**value, "workspace_id": field(value, "workspace_id", str, where), **lists}


def _objects(value: Mapping[str, Any], name: str, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for number, one in enumerate(field(value, name, list, where), 1):
        inside = f"{where}{name}, entry {number}: "
        if not isinstance(one, dict):
            raise _WrongError(f"{inside}it is not an object")
        yield one, inside


def _texts(value: Mapping[str, Any], name: str, where: str) -> list[str]:
    texts = field(value, name, list, where)
    if not all(isinstance(one, str) for one in texts):
        raise _WrongError(f"{where}'{name}' has to be a list of texts")
    return texts


_Value = TypeVar("_Value")
_TYPES = {str: "a text", int: "a whole number from 0", bool: "true or false", dict: "an object", list: "a list"}


def field(value: Mapping[str, Any], name: str, expected: type[_Value], where: str) -> _Value:
    """Return a field that has to be there."""
    found = optional(value, name, expected, where)
    if found is None:
        raise _WrongError(f"{where}'{name}' is missing; it has to be {_TYPES[expected]}")
    return found


def optional(value: Mapping[str, Any], name: str, expected: type[_Value], where: str) -> _Value | None:
    """Return a field of a type, or None if it is missing or null."""
    found = value.get(name)
    if found is None:
        return None
    # In Python, True is a whole number, too.
    if type(found) is not expected or (isinstance(found, int) and not 0 <= found <= _MOST):
        shown = printable(json.dumps(found))[:60]
        raise _WrongError(f"{where}'{name}' is {shown}; it has to be {_TYPES[expected]}")
    return found
