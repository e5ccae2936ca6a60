"""`ops.report`: what it reads, what it says of it, and that nothing in it is more than text."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.model import SkipReason
from handler.domain.report import Report, RestartCounts
from ops.report.layout import document_of
from ops.report.page import page
from ops.report.reading import UnreadableError, read
from ops.report.words import SKIPPED
from tests.ops.reports import HOSTILE, cycle_log, explanation, flips, holding, line, poisoned, report, workspace
from tests.support.tools import ROOT, tool

NOW = datetime(2026, 1, 15, 11, 30, tzinfo=UTC)
SEVEN = 7_531


class Parsed(HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(*answers: Any, source: str = "out.json") -> Parsed:
    """Return the page of one answer, or of several, one a line."""
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in answers)
    return Parsed(page(document_of(text, source), source=source, now=NOW))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (report("dry-run", checked=20, flips=flips(3)), "3 workspaces would be taken offline, to be restarted"),
        (report("dry-run", checked=20, flips=flips(1)), "1 workspace would be taken offline, to be restarted"),
        (report("dry-run", flips=flips(100)), "100 or more workspaces would be taken offline"),
        (report("dry-run", flips=flips(2, adopted=True)), "2 workspaces, offline already, would be owed a restart"),
        (report("dry-run"), "An applied cycle would take no workspace offline"),
        (report(flipped=1, flips=flips(1)), "1 workspace was taken offline"),
        (report(flipped=5_000, adopted=2, flips=flips(100)), "5,000 workspaces were taken offline, and 2 adopted"),
        (report(flipped=5_000, flips=flips(100)), "5,000 workspaces in all. The report names 100 of them."),
        (report(adopted=1, flips=flips(1, adopted=True)), "1 workspace, offline already, is owed a restart"),
        (report(flips=flips(1, adopted=True)), "so that only its restart is recorded"),
        (report(checked=20), "No workspace was taken offline"),
        (
            report(breaker_open=True, flips=flips(2, blocked=True)),
            "The breaker is open: nothing is flipped or restarted",
        ),
        (report(breaker_open=True, flips=flips(2, blocked=True)), "What the open breaker keeps from being flipped"),
        (report(outcome="already_running"), "Another cycle was already running, so this one did nothing"),
        (report("dry-run", unrecorded=1), "1 point of 8 did not pass."),
        (report("dry-run"), "Every point passed."),
        (report(probe="control_plane", flips=flips(1), flipped=1), "the control plane says that its instance is"),
        (report(targets_failed=["eu-west-1", "us-east-1"]), "eu-west-1 and us-east-1 gave no answer"),
        (report(targets_empty=["eu-west-1"]), "eu-west-1 has none of the instances"),
        (report(deadline_hit=True, deferred=9), "Time ran out: 9 workspaces not reached"),
        (report(duration_ms=2_140, checked=20), "2.1 s in all. A cycle may take 45 s"),
        (report(oldest_doubt_seconds=7_300), "in doubt for 2 hours"),
        (report(oldest_doubt_seconds=1), "in doubt for 1 second"),
        (holding(), "its disk is replaced"),
        (holding(outcome="released", holds=[], in_flight=[], on_hold=0), "The release is in force"),
        (holding(in_flight=None, unchecked=True), "nobody has checked that those named here exist"),
        (holding(holds=[{"workspace_id": None, "reason": "stop", "ends_at": "…"}]), "Everything is on hold"),
        (explanation(), "The next cycle would ask the platform for its restart"),
        (explanation(would={"action": "new", "reason": "because"}), "The next cycle would: new"),
        (
            explanation(would={"action": "skip", "reason": "on_hold: its instance is stopped"}),
            "It is on hold: its instance is stopped.",
        ),
        (explanation(), "another transaction has locked its row"),
        (explanation(), "closed: 2 of 24 look dead"),
        (explanation(breaker={"open": True, "dead": 3, "of": 4, "why": "3 of 4"}), "open: 3 of 4"),
        (explanation(notes=["breaker unknown: timeout"]), "breaker unknown: timeout"),
        (explanation(row=None), "There is no row of this id"),
    ],
)
def test_the_page_says_it_in_plain_words(answer: dict[str, Any], said: str) -> None:
    assert said in parsed(answer).text


COUNTED = [one.name for one in fields(Report) if one.type in ("int", int)]


@pytest.mark.parametrize(
    "changes",
    [
        *({name: SEVEN} for name in COUNTED if name not in ("duration_ms", "oldest_doubt_seconds")),
        *({"skipped": {str(reason): SEVEN}} for reason in SkipReason),
        *({"restarts": {one.name: SEVEN}} for one in fields(RestartCounts)),
    ],
    ids=str,
)
def test_no_count_of_a_report_is_left_out(changes: dict[str, Any]) -> None:
    assert "7,531" not in parsed(report()).text
    assert "7,531" in parsed(report(**changes)).text


def test_every_reason_to_skip_has_words() -> None:
    assert set(SKIPPED) == {str(reason) for reason in SkipReason}


def test_what_could_not_be_read_is_said_and_the_rest_is_shown() -> None:
    unread = dict.fromkeys(("row", "candidate", "instance", "doubts", "restarts", "hold", "breaker", "would"))
    text = parsed(explanation(**unread)).text
    assert text.count("This could not be read.") == 4
    assert workspace(3) in text


LOG = [
    line("plan chosen", "a", reason="ask for each id"),
    *cycle_log(
        *("a", "2026-01-15T11:30:41.162+00:00"),
        [
            ("workspace flipped", 1, "stopped, twice"),
            ("flip skipped", 2, "on_hold"),
            ("instance unknown", 3, "timeout"),
        ],
        flipped=1,
        skipped={"on_hold": 1},
    ),
    json.dumps({"_aws": {}, "Flipped": 1}),
    json.dumps({"time": "…", "type": "platform.report", "record": {}}),
]


@pytest.mark.parametrize("before", ["", "2026-01-15T11:30:41 ", "2026-01-15T11:30:41+00:00 2026/01/15/[$LATEST]0a "])
def test_a_log_tells_of_each_workspace_why(before: str) -> None:
    text = parsed(*(before + one for one in LOG)).text
    assert "stopped, twice" in text
    assert "it is on hold" in text
    assert "no usable answer: timeout" in text
    assert "Cycle of 2026-01-15 11:30:41" in text


def test_a_day_has_a_row_for_each_cycle() -> None:
    cycles = [report(flipped=n == 7, duration_ms=1_000 + n, restarts={"accepted": n == 9}) for n in range(12)]
    for one in cycles:
        one["flipped"], one["restarts"]["accepted"] = int(one["flipped"]), int(one["restarts"]["accepted"])
    html = parsed(*cycles, report(outcome="already_running"), report(breaker_open=True))
    assert "14 cycles: 1 workspace flipped or adopted, 1 restart accepted" in html.text
    assert "Something happened in 4 of them." in html.text
    assert "The breaker was open in 1 cycle." in html.text
    assert "All cycles (14)" in html.text


def test_dry_runs_that_find_the_same_are_news_once() -> None:
    found = [("would flip", 1, "stopped"), ("would flip", 2, "stopped")]
    times = [f"2026-01-15T11:3{minute}:41.162+00:00" for minute in range(5)]
    logs = [one for minute, at in enumerate(times) for one in cycle_log(str(minute), at, found, mode="dry-run")]
    text = parsed(*logs).text
    assert "5 dry runs: 2 workspaces would be flipped" in text
    assert "Something happened in 1 of them." in text
    assert "Cycles from 2026-01-15 11:30:41 to 2026-01-15 11:34:41" in text


def broken(**changes: Any) -> str:
    whole = report() | changes
    return json.dumps({name: value for name, value in whole.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("START RequestId", "it is not JSON: "),
        ("{", "it is not JSON: "),
        ('{\n"mode": "apply"\n', "it is not JSON: "),
        (broken() + "\nEND", "line 2 is not JSON: "),
        ("17", "it is JSON, but not an object"),
        ("{}", "it is an object with no fields"),
        ('{"role": "reconciler"}', "it is an object with the fields 'role'"),
        ('{"StatusCode": 200}', "the answer is in the file that the command names"),
        (
            '{"errorMessage": "no connection", "errorType": "StoreError"}',
            "this is its error: StoreError: no connection",
        ),
        ("[]", "it has no report"),
        ("[1]", "entry 1: it is not an object"),
        (line("plan chosen", "a") + "\n" + line("instance read", "a"), "it has no report"),
        (broken(dead="many"), "'dead' is \"many\"; it has to be a whole number from 0"),
        (broken(dead=-1), "'dead' is -1"),
        (broken(dead=True), "'dead' is true"),
        (broken(dead=10**30), "'dead' is 1000"),
        (broken(dead=...), "'dead' is missing"),
        (broken(breaker_open=1), "'breaker_open' is 1; it has to be true or false"),
        (broken(skipped={}), "skipped: 'row_gone' is missing"),
        (broken(targets_failed=[1]), "'targets_failed' has to be a list of texts"),
        (broken(flips=[{}]), "flips, entry 1: 'workspace_id' is missing"),
        (broken() + "\n" + broken(dead=None), "line 2: 'dead' is missing"),
        (json.dumps(explanation(would={"action": 1})), "would: 'action' is 1"),
        (json.dumps(explanation(restarts=[1])), "restarts, entry 1: it is not an object"),
        (json.dumps(holding(holds=[{}])), "holds, entry 1: 'reason' is missing"),
        (broken() + "\n" + json.dumps(holding()), "several answers have to be reports of cycles"),
        ("[" * 100_000, "it is nested too deep"),
        ("1" * 5_000, "it is not JSON"),
    ],
    ids=lambda value: value[:40],
)
def test_anything_else_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UnreadableError) as refused:
        document_of(text, "out.json")
    assert str(refused.value).startswith("out.json: ")
    assert said in str(refused.value)


ANSWERS: dict[str, list[Any]] = {
    "report": [report("dry-run", flips=flips(2), targets_failed=["a"], targets_empty=["b"])],
    "breaker": [report(breaker_open=True, flips=flips(2, blocked=True, adopted=True))],
    "log": [json.loads(one) for one in LOG],
    "day": [report(flips=flips(2), flipped=2), report(targets_failed=["a"])],
    "hold": [holding()],
    "explanation": [explanation(notes=["not read"])],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_texts_are_text(name: str) -> None:
    """The page has no tag or attribute but those of a harmless answer, and the text is in it."""
    tame, hostile = parsed(*ANSWERS[name]), parsed(*map(poisoned, ANSWERS[name]), source=HOSTILE[:200])
    own = [*tame.tags, ("bdi", ["class"])]  # the mark of a word that is longer than a line
    assert [tag for tag in hostile.tags if tag not in own] == []
    assert "<script>window.tampered=true</script>" in hostile.text
    assert not [one for one in hostile.text if not one.isprintable() and one != "\n"]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SHAPES: list[Callable[[], dict[str, Any]]] = [report, explanation, holding]


@given(st.data(), st.sampled_from(SHAPES), ANY)
def test_any_value_in_any_place_is_shown_or_refused(data: st.DataObject, shape: Callable[[], Any], value: Any) -> None:
    answer = shape()
    place = answer
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        html = parsed(answer)
    except UnreadableError:
        return
    assert {tag for tag, _ in html.tags} <= {tag for one in ANSWERS.values() for tag, _ in parsed(*one).tags}


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(UnreadableError, match=r"^out\.json: "):
        read(text, "out.json")


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as an operator does."""
    command = [tool("deploy", "python"), "-m", "ops.report", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_command_shows_a_file_and_writes_its_page(tmp_path: Path) -> None:
    file, html = tmp_path / "out.json", tmp_path / "out.html"
    file.write_text(json.dumps(report("dry-run", checked=20, flips=flips(3))))
    done = run(str(file), "--html", str(html))
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 workspaces would be taken offline" in done.stdout
    assert workspace(2) in done.stdout, "whole, to be copied"
    assert "3 workspaces would be taken offline" in html.read_text()


def test_the_terminal_gets_no_control_characters() -> None:
    done = run("-", stdin=json.dumps(poisoned(explanation())))
    assert done.returncode == 0
    assert "\\x1b[2J" in done.stdout
    assert "[red]" in done.stdout, "rich's markup, too, is text"
    assert not [one for one in done.stdout if not one.isprintable() and one != "\n"]


def test_the_command_fails_by_name(tmp_path: Path) -> None:
    good, binary, missing = tmp_path / "good.json", tmp_path / "binary", tmp_path / "missing.json"
    good.write_text(json.dumps(report()))
    binary.write_bytes(b"\x1f\x8b\xff")
    for arguments, said in (
        ([str(missing)], f"{missing}: it cannot be read: No such file or directory"),
        ([str(binary)], f"{binary}: it is not text in UTF-8"),
        ([str(good), "--html", str(tmp_path / "no" / "where")], "the page cannot be written: No such file"),
        ([str(good), "--html", str(good)], "--html has to name another one"),
        (["-"], "standard input: it is empty; expected is an answer of the reconciler"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert said in done.stdout
        assert done.stderr == ""
    assert json.loads(good.read_text()) == report()
