"""docs/reference.md names everything that the outside world may see."""

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import handler
from handler.domain.model import SkipReason
from handler.domain.report import Flip, Report, RestartCounts
from handler.telemetry import DETECTION_LATENCY, EVENT_FLIPS, METRIC_NAMES, WOULD_FLIP
from tests.unit.test_settings import EVERY_VARIABLE

REFERENCE = (Path(handler.__file__).parents[1] / "docs" / "reference.md").read_text()
# What takes a log line's message first.
LOGS = {"info", "warning", "error", "log", "sighting_capped", "restart", "failure", "hold_trouble", "_attempt"}


def log_messages() -> Iterator[str]:
    for path in sorted(Path(handler.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in LOGS and isinstance(node.args[0].value, str):
                    yield node.args[0].value


NAMES = {
    "metrics": {*METRIC_NAMES, DETECTION_LATENCY, EVENT_FLIPS, WOULD_FLIP},
    "settings": set(EVERY_VARIABLE),
    "the report's fields": {one.name for one in fields(Report)} - {"mode", "probe"},
    "skips": {str(reason) for reason in SkipReason},
    "restarts": {one.name for one in fields(RestartCounts)},
    "log lines": set(log_messages()),
}


@pytest.mark.parametrize("kind", NAMES)
def test_the_reference_has_every_name(kind: str) -> None:
    assert NAMES[kind]
    assert {name for name in NAMES[kind] if f"`{name}`" not in REFERENCE} == set()


def test_the_reference_shows_how_a_flip_is_marked() -> None:
    marks = {one.name for one in fields(Flip) if one.type in (bool, "bool")}
    assert {mark for mark in marks if f'`"{mark}": true`' not in REFERENCE} == set()
