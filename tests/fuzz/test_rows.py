"""Any content of the platform's rows: whole cycles on the real PostgreSQL."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.domain.model import LONGEST_INSTANCE_ID
from sandbox.control_plane import state_answer
from sandbox.http_server import Answer
from sandbox.postgres import PostgresServer
from tests.fuzz.anything import examples
from tests.support.events import APPLY
from tests.support.stage import Outcome, Stage, opened

pytestmark = pytest.mark.no_cover  # many times the same lines; the other tests measure coverage

LONGEST_LINE = 2000

# PostgreSQL takes no NUL and no half characters; an index on instance_id takes no more than 2.7 kB once compressed.
text = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=20)
odd = st.sampled_from(
    [
        *("null", "NULL", "Null", "{}", "{", '"', "\\", "'", "a,b", "a b", "\n", "\r\n", "\x7f", "\u2028", "\ufeff"),
        *(
            "'; DROP TABLE workspaces; --",
            "$1",
            ":id",
            "%s",
            "{0}",
            "${x}",
            "\\x00",
            "i-*",
            "i-?",
            "../..",
            "?a=b&c=d#e",
        ),
        *(
            "i-" + "0" * 17,
            "i-" + "\u0660" * 17,
            "i-" + "A" * 17,
            "I-" + "0" * 17,
            "i-" + "0" * 17 + "\n",
            "i-" + "0" * 5000,
        ),
        *("x" * 5000, "\x1b[31m" * 1000, "é" * 2000, '{"state": "terminated"}'),
    ]
)
instance_ids = st.none() | st.just("") | text | odd | text.map(lambda one: one * 300)
statuses = (
    st.sampled_from(["online", "online", "degraded", "offline", "paused", "ONLINE", "online ", "on\nline", ""]) | text
)
runtimes = st.sampled_from(["langgraph", None, "", "external", "External", "external "]) | text
heartbeats = st.none() | st.sampled_from(
    [
        "infinity",
        "-infinity",
        "4713-01-01 00:00:00 BC",
        "294276-12-31",
        "2000-02-29",
        "epoch",
        "1883-11-18 12:03:58+00",
    ]
)
words = st.sampled_from(["terminated", "terminated", "stopped", "not_found", "running", "shutting-down", "gone", "\n"])
rows = st.fixed_dictionaries(
    {
        "instance_id": instance_ids,
        "status": statuses,
        "runtime": runtimes,
        "name": text,
        "heartbeat": heartbeats,
        "word": words,
    }
)

DEAD = ("terminated", "stopped")


@pytest.fixture(scope="module")
def stage(postgres: PostgresServer) -> Iterator[Stage]:
    """Return a stage whose statuses are text, so that a row may have any."""
    with opened(postgres, "text") as stage:
        yield stage


def add(stage: Stage, rows: list[dict[str, Any]]) -> list[str]:
    columns = ("instance_id", "status", "runtime", "name")
    ids = stage.fleet.insert({name: row[name] for name in columns} for row in rows)
    for one, row in zip(ids, rows, strict=True):
        if row["heartbeat"] is not None:
            stage.fleet.update(one, last_heartbeat_at=row["heartbeat"])
    return ids


def may_be_flipped(row: dict[str, Any]) -> bool:
    """Tell whether a row is a candidate whose instance can be asked about."""
    if len((row["instance_id"] or "").encode()) > LONGEST_INSTANCE_ID:
        return False
    return row["status"] in ("online", "degraded") and bool(row["instance_id"]) and row["runtime"] != "external"


def assert_clean(stage: Stage, outcome: Outcome) -> None:
    assert max(map(len, outcome.output.splitlines())) < LONGEST_LINE
    for secret in (stage.control_plane.shared_secret, stage.control_plane.admin_token, stage.platform.token):
        assert secret not in outcome.output
    assert outcome.lines("re-read or flip failed") == []


ODD = {"instance_id": "null", "status": "online", "runtime": None, "name": "", "heartbeat": None, "word": "not_found"}


@given(st.lists(rows, min_size=1, max_size=8))
@example([ODD, ODD | {"instance_id": "i-1", "word": "terminated"}])
@example([ODD | {"word": "terminated", "heartbeat": one} for one in ("infinity", "-infinity", "294276-12-31", "epoch")])
@examples(0.2)
def test_exactly_the_dead_candidates_are_flipped(stage: Stage, rows: list[dict[str, Any]]) -> None:
    stage.clear()
    ids = add(stage, rows)
    words = {one: row["word"] for one, row in zip(ids, rows, strict=True)}
    stage.control_plane.script.reply(lambda question: state_answer(words[question.workspace_id]))
    for _ in range(2):
        outcome = stage.cycle(APPLY | {"override_breaker": True}, **stage.settings("control_plane"))
        assert_clean(stage, outcome)
        dead = {
            one: row["word"]
            for one, row in zip(ids, rows, strict=True)
            if may_be_flipped(row)
            and row["word"] in DEAD
            and row["heartbeat"] not in ("infinity", "294276-12-31")
            and outcome.before.rows[one]["status"] in ("online", "degraded")
        }
        outcome.assert_only_flipped(dead)
        stage.platform_is_at_work()


@given(st.lists(rows.map(lambda row: row | {"word": "terminated", "heartbeat": None}), min_size=1, max_size=8))
@examples(0.1)
def test_a_restart_for_any_instance_is_refused_and_then_accepted(stage: Stage, rows: list[dict[str, Any]]) -> None:
    stage.clear()
    stage.control_plane.script.reply(state_answer("terminated"))
    dead = {one: row["instance_id"] for one, row in zip(add(stage, rows), rows, strict=True) if may_be_flipped(row)}
    settings = {**stage.settings("control_plane"), "RESTART_RETRY_SECONDS": "0", "BREAKER_MAX_DEAD_FRACTION": "1"}
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(HTTPStatus.INTERNAL_SERVER_ERROR), times=len(dead))
    stage.platform.instead.reply(Answer(body=b"{}"))
    assert_clean(stage, stage.cycle(APPLY, **settings))
    outcome = stage.cycle(APPLY, **settings)
    assert_clean(stage, outcome)
    assert {call.workspace_id: call.expected_instance_id for call in outcome.calls} == dead
    assert sorted(
        (owed["workspace_id"], owed["instance_id"], owed["outcome"]) for owed in outcome.after.restarts
    ) == sorted((one, instance_id, "accepted") for one, instance_id in dead.items())


@given(st.lists(rows, min_size=1, max_size=8))
@examples(0.2)
def test_a_malformed_instance_id_is_never_sent_to_ec2_and_never_flipped(
    stage: Stage, rows: list[dict[str, Any]]
) -> None:
    stage.clear()
    dead = stage.add("terminated")
    add(stage, [row | {"instance_id": row["instance_id"] and row["instance_id"].replace("i-0", "i-g")} for row in rows])
    outcome = stage.cycle(APPLY | {"override_breaker": True})
    assert_clean(stage, outcome)
    outcome.assert_only_flipped({dead: "terminated"})
    assert {one for call in stage.ec2.calls for one in call.filters.get("instance-id", ())} == {stage.instance_of(dead)}
