"""The saved queries, run over lines that the code logs and lines that Lambda adds."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from handler.domain.model import Sighting, SkipReason, Verdict, Workspace
from handler.errors import StoreError
from handler.telemetry import CycleLog, logger
from tests.support.cloudformation import STACK, Stack
from tests.support.insights import rows


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(logger.registered_handler, "stream", stream)
    return stream


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def query(stack: Stack, title: str) -> str:
    (text,) = (
        one["QueryString"]
        for one in stack.of_type("AWS::Logs::QueryDefinition").values()
        if one["Name"] == f"{STACK}/{title}"
    )
    return str(text)


@pytest.fixture
def stack(stacks: dict[str, Stack]) -> Stack:
    return stacks["applying"]


def sightings(count: int) -> Iterator[Sighting]:
    for number in range(count):
        workspace = Workspace(f"00000000-0000-4000-8000-{number:012}", f"i-{number:017}", None)
        yield Sighting(workspace, Verdict.UNKNOWN, "")


@pytest.mark.parametrize(
    ("title", "message", "total"),
    [
        ("What was unknown and why", "instance unknown", "instances"),
        ("Why flips were skipped", "flip skipped", "flips"),
    ],
)
def test_what_has_a_line_and_what_is_only_counted_add_up(
    title: str, message: str, total: str, stack: Stack, output: io.StringIO
) -> None:
    log = CycleLog()
    for number, sighting in enumerate(sightings(350)):
        log.sighting_capped(message, sighting, "timeout" if number % 3 else "http_500")
    log.the_rest()
    found = rows(query(stack, title), lines(output))
    assert {row["reason"]: row[total] for row in found} == {"timeout": 233, "http_500": 117}


def test_what_was_absent_is_listed_with_its_instance(stack: Stack, output: io.StringIO) -> None:
    log = CycleLog()
    for _ in range(2):
        for sighting in sightings(3):
            log.sighting_capped("instance absent", sighting, "1 of 3 sightings")
    found = rows(query(stack, "What was absent"), lines(output))
    assert [(row["workspace_id"], row["instance"], row["times"]) for row in found] == [
        (one.workspace.id, one.workspace.instance_id, 2) for one in sightings(3)
    ]


def report(status: str, **more: str) -> dict[str, Any]:
    record = {"requestId": "1", "metrics": {"durationMs": 55_000.0}, "status": status, **more}
    return {"time": "2026-01-15T10:30:55.000Z", "type": "platform.report", "record": record}


def test_what_went_wrong_includes_what_only_lambda_tells(stack: Stack, output: io.StringIO) -> None:
    CycleLog().failure("platform's answer not recorded", StoreError("the database refused"))
    CycleLog().sighting("flip skipped", next(sightings(1)), SkipReason.NOT_CONFIRMED)
    raised = {"level": "ERROR", "errorType": "SecretError", "errorMessage": "DATABASE_SECRET_ARN: …"}
    timeout, memory = report("timeout"), report("error", errorType="Runtime.OutOfMemory")
    found = rows(query(stack, "What went wrong"), [*lines(output), raised, timeout, memory, report("success")])
    assert [row.get("error") or row.get("errorType") or row["record.status"] for row in found] == [
        "the database refused",
        "SecretError",
        "timeout",
        "error",
    ]
