"""Any event at the entry point."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.errors import ReconcilerError, RequestError, shown
from sandbox.state_changes import state_change
from tests.fuzz.anything import CANARY, Nobody, any_json, examples, nearly
from tests.support.events import EVENTS, event
from tests.support.invoke import Invoke
from tests.support.stage import recorded
from tests.support.state_changes import batch, message, returned

pytestmark = pytest.mark.no_cover  # many times the same lines; the other tests measure coverage

ID = "00000000-0000-4000-8000-000000000001"
RIGHT = [
    *(event(path.stem) for path in sorted(EVENTS.glob("*.json"))),
    {"mode": "apply", "workspace_ids": [ID], "limit": 5, "override_breaker": True},
    {"mode": "apply", "hold": {"workspace_ids": [ID], "reason": "maintenance", "seconds": 60}},
    {"mode": "apply", "release": [ID]},
    state_change("i-0123456789abcdef0"),
]
REFUSED = re.compile(
    r"event field (mode|workspace_ids?|limit|override_breaker|adopt|shards?|source|detail|detail-type|event"
    r"|hold|release)"
    r"(\.reason|\.seconds|\.workspace_ids|\.all|\.instance-id|\.state)?(\[\d+\])?: found "
)
UNKNOWN = "event field {}: unknown"


@pytest.fixture
def invoke() -> Invoke:
    secrets = {"PLATFORM_TOKEN": CANARY, "PLATFORM_BASE_URL": "http://127.0.0.1:1"}
    database = f"postgresql://reconciler:{CANARY}@127.0.0.1:1/platform?sslmode=disable"
    return Invoke({**secrets, "DATABASE_URL": database, "AWS_REGION": "eu-central-1"})


@given(any_json | nearly(RIGHT, any_json | st.just(ID)) | st.sampled_from(RIGHT))
@example({"workspace_ids": [ID] * 100_000 + ["x" * 100_000]})
@example({"x" * 1_000_000: 1})
@example({"limit": 10**5000})
@example({"mode": json.loads("[" * 200 + "]" * 200)})
@examples(2)
def test_any_event_is_accepted_or_refused_by_its_field(nobody: Nobody, invoke: Invoke, event: Any) -> None:
    nobody.asked = 0
    with recorded() as output, pytest.raises(ReconcilerError) as error:
        invoke(event)
    message = str(error.value)
    if isinstance(error.value, RequestError):
        assert nobody.asked == 0
        assert REFUSED.match(message) or any(message.startswith(UNKNOWN.format(shown(name))) for name in event)
        assert "; expected " in message
        assert len(message) < 300
        assert message.isprintable()
        assert output.getvalue() == ""
    else:
        assert nobody.asked > 0
    assert CANARY not in message + output.getvalue()


RECORD = message(state_change("i-0123456789abcdef0"))


@given(any_json | nearly([{"Records": [RECORD, RECORD]}, batch(*RIGHT)], any_json))
@examples(0.5)
def test_any_batch_is_refused_by_its_field_or_loses_no_message_that_is_good(
    nobody: Nobody, invoke: Invoke, event: Any
) -> None:
    nobody.asked = 0
    refused, ids = "", []
    with recorded() as output:
        try:
            ids = returned(invoke.batch(event))
        except RequestError as refusal:
            refused = str(refusal)
    if refused:
        assert refused.startswith("event field ")
        assert len(refused) < 300
        assert (nobody.asked, output.getvalue()) == (0, "")
        return
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    dropped = [line for line in lines if line["message"] == "message dropped"]
    failed = [line for line in lines if line["message"] == "messages returned"]
    assert len(dropped) + sum(line["count"] for line in failed) == len(event["Records"])
    assert len(ids) <= len(event["Records"])
    assert bool(failed) == (nobody.asked > 0)
    assert CANARY not in output.getvalue()
