"""What is known of one workspace, and what the next cycle would do with it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ops.report.document import Column, Document, Figure, Kind, Row, Section, Table, Tone, seconds
from ops.report.reading import Explanation, printable
from ops.report.words import ACTIONS, SKIPPED

_TONES = {
    "flip": Tone.CAUTION,
    "adopt": Tone.CAUTION,
    "ask_for_restart": Tone.CAUTION,
    "skip": Tone.CAUTION,
    "wait": Tone.WAIT,
    "watch": Tone.WAIT,
}
_VERDICTS = {
    "running": Tone.GOOD,
    "transition": Tone.WAIT,
    "dead": Tone.BAD,
    "absent": Tone.CAUTION,
    "unknown": Tone.ODD,
}
# A time as the answer has it; everywhere in UTC.
_TIME = re.compile(r"\b(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)")
_NOT_READ = "This could not be read."


def document(explanation: Explanation) -> Document:
    """Lay out an explanation."""
    answer = explanation.answer
    would = answer.get("would")
    action = would["action"] if would else ""
    row = answer.get("row") or {}
    return Document(
        kind=f"Workspace {_text(row.get('name')) or answer['workspace_id']}",
        title=ACTIONS.get(action, f"The next cycle would: {action}")
        if would
        else "What the next cycle would do is not known",
        tone=_TONES.get(action, Tone.PLAIN),
        lead=(_sentence(would["reason"]) if would else _NOT_READ, *_notes(answer.get("notes"))),
        figures=tuple(_figures(answer)),
        sections=(
            _row(answer),
            _instance(answer.get("instance")),
            _hold_and_breaker(answer),
            _restarts(answer.get("restarts")),
            _doubts(answer.get("doubts")),
        ),
    )


def _text(value: Any) -> str:
    """Return any value of an answer as text: empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _TIME.sub(r"\1 \2", printable(str(value)))


def _reason(reason: Any) -> str:
    """Return a reason with our word for a skip, if it begins with one, in words: `on_hold: …`."""
    word, colon, rest = _text(reason).partition(": ")
    return f"{SKIPPED.get(word, word)}{colon}{rest}"


def _sentence(reason: str) -> str:
    text = _reason(reason)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _notes(notes: Any) -> Iterator[str]:
    """Yield what the answer says of parts that could not be read."""
    if isinstance(notes, list):
        yield from map(_text, notes)


def _figures(answer: Mapping[str, Any]) -> Iterator[Figure]:
    if row := answer.get("row"):
        yield Figure(_text(row.get("status")) or "-", "status of the row")
    for one in (answer.get("instance") or [])[:3]:
        verdict = _text(one.get("verdict"))
        where = f" ({_text(one['target'])})" if one.get("target") else ""
        yield Figure(_text(one.get("state")) or verdict, f"its instance{where}", _VERDICTS.get(verdict, Tone.PLAIN))
    if (candidate := answer.get("candidate")) is not None:
        yield Figure(_text(candidate.get("is")), "looked at by cycles")


def _row(answer: Mapping[str, Any]) -> Section:
    row, candidate = answer.get("row"), answer.get("candidate") or {}
    facts = [("workspace", answer["workspace_id"]), *_facts(row or {})]
    if candidate:
        facts.append(("a candidate", f"{_text(candidate.get('is'))}: {_text(candidate.get('why'))}"))
    said = "Times are in UTC." if row is not None else "There is no row of this id, or it could not be read."
    return Section("Its row", (said,), facts=tuple(facts))


def _facts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        yield name.replace("_", " "), _text(value) or "none"


def _instance(answers: Sequence[Mapping[str, Any]] | None) -> Section:
    heading = "Its instance, asked just now"
    if not answers:
        return Section(heading, (_NOT_READ if answers is None else "Nobody was asked.",))
    columns = (Column("Who answered"), Column("State"), Column("Verdict"), Column("Why"), Column("Took", Kind.NUMBER))
    rows = tuple(
        Row(
            (
                _text(one.get("target")) or "the control plane",
                _text(one.get("state")) or "none",
                _text(one.get("verdict")),
                _text(one.get("reason")),
                seconds(one["took_ms"]) if isinstance(one.get("took_ms"), int | float) else "",
            ),
            _VERDICTS.get(_text(one.get("verdict")), Tone.PLAIN),
        )
        for one in answers
    )
    return Section(heading, tables=(Table("Answers about the instance", columns, rows, marked=True),))


def _hold_and_breaker(answer: Mapping[str, Any]) -> Section:
    facts = []
    if hold := answer.get("hold"):
        whose = "everything is" if hold.get("all") else "this workspace is"
        facts.append(("hold", f"{whose} on hold until {_text(hold.get('ends_at'))}: {_text(hold.get('reason'))}"))
    else:
        facts.append(("hold", "none"))
    if breaker := answer.get("breaker"):
        why = _text(breaker.get("why")) or f"{_text(breaker.get('dead'))} of {_text(breaker.get('of'))} look dead"
        facts.append(("breaker", f"{'open' if breaker.get('open') else 'closed'}: {why}"))
    else:
        facts.append(("breaker", "not known"))
    return Section("Hold and breaker", facts=tuple(facts))


_RESTARTS = (
    ("state", "State"),
    ("instance_id", "Instance"),
    ("flipped_at", "Flipped"),
    ("due_at", "Due"),
    ("attempts", "Asked"),
    ("asked_at", "Last asked"),
    ("last_answer", "Last answer"),
    ("outcome", "Outcome"),
    ("closed_at", "Closed"),
)
_TIMES = ("flipped_at", "due_at", "asked_at", "closed_at", "since", "latest_at")
_KINDS = {"instance_id": Kind.ID, **dict.fromkeys(_TIMES, Kind.TIME)}
_DOUBTS = (
    ("kind", "Kind"),
    ("instance_id", "Instance"),
    ("since", "Since"),
    ("latest_at", "Latest"),
    ("sightings", "Sightings"),
    ("reason", "Why"),
)


def _restarts(restarts: Sequence[Mapping[str, Any]] | None) -> Section:
    return _history("Restarts, the newest first", "Restarts", _RESTARTS, restarts)


def _doubts(doubts: Sequence[Mapping[str, Any]] | None) -> Section:
    return _history("Doubts", "What is remembered of it", _DOUBTS, doubts)


def _history(
    heading: str, caption: str, names: Sequence[tuple[str, str]], values: Sequence[Mapping[str, Any]] | None
) -> Section:
    """Tabulate what the answer has under some names. Columns in which nothing stands are left out."""
    if not values:
        return Section(heading, (_NOT_READ if values is None else "There is none.",))
    used = [(key, name) for key, name in names if any(_text(one.get(key)) for one in values)]
    columns = tuple(Column(name, _KINDS.get(key, Kind.TEXT)) for key, name in used)
    rows = tuple(Row(tuple((_reason if key == "reason" else _text)(one.get(key)) for key, _ in used)) for one in values)
    return Section(heading, tables=(Table(caption, columns, rows),))
