"""The SQL of the runbook, run as it stands there."""

import json
from typing import Any

import pytest

from handler.request import Request, parse
from sandbox.postgres import Database
from tests.support.runbook import SQL
from tests.support.stage import Stage

UNOWED, EVENT = "Offline workspaces that nobody restarts", "Offline workspaces that nobody restarts (2)"
OLD_S = 1000.0


def rows(database: Database, title: str) -> list[dict[str, Any]]:
    return [{name: str(value) for name, value in row.items()} for row in database.query(SQL[title])]


def ids(database: Database, title: str) -> list[str]:
    return [row.get("id") or row["workspace_id"] for row in rows(database, title)]


def test_the_runbook_has_queries() -> None:
    assert len(SQL) > 10


@pytest.mark.parametrize("title", SQL)
def test_a_query_runs(title: str, stage: Stage) -> None:
    stage.database.query(SQL[title])


def test_the_event_has_those_adopted_that_the_metric_counts(stage: Stage) -> None:
    """What no cycle saw dead, the event makes known; the next full cycle adopts it."""
    stage.add_all(9, "running")
    forgotten = stage.add("terminated", status="offline", updated_age_s=OLD_S)
    stage.add("terminated", status="offline")
    stage.add("terminated", status="offline", runtime="external", updated_age_s=OLD_S)
    assert stage.cycle().report["offline_unowed"] == 1
    assert ids(stage.database, UNOWED) == [forgotten]
    ((event,),) = (row.values() for row in stage.database.query(SQL[EVENT]))
    event = event if isinstance(event, dict) else json.loads(event)
    assert parse(event) == Request("apply", workspace_ids=(forgotten,), adopt=True)
    assert stage.cycle(event).report["dead"] == 1
    assert ids(stage.database, "Doubts") == [forgotten]
    assert stage.cycle().report["adopted"] == 1
    assert ids(stage.database, "Open restarts") == [forgotten]
    assert ids(stage.database, UNOWED) == []
    assert stage.cycle().report["offline_unowed"] == 0


def test_unrecovered_restarts_are_those_that_the_gauge_counts(stage: Stage) -> None:
    stage.add_all(9, "running")
    dead = stage.add("terminated")
    stage.cycle()
    stage.fleet.update(dead, status="failed")
    assert ids(stage.database, "Unrecovered restarts") == []
    stage.fleet.age_everything(OLD_S)
    assert stage.cycle().report["restarts"]["unrecovered"] == 1
    assert ids(stage.database, "Unrecovered restarts") == [dead]


def test_rows_without_an_instance_are_those_that_the_metric_counts(stage: Stage) -> None:
    unrecorded = stage.fleet.add_all([None, ""])
    stage.fleet.add(None, runtime="external")
    stage.fleet.add(None, status="offline")
    assert stage.cycle().report["unrecorded"] == 2
    assert sorted(ids(stage.database, "Rows without an instance")) == sorted(unrecorded)


@pytest.mark.parametrize(("state", "in_cycle"), [("terminated", 1), (None, 2)], ids=["dead", "absent"])
def test_where_full_cycles_adopt_nothing_by_themselves_they_go_on_from_the_event(
    stage: Stage, state: str | None, in_cycle: int
) -> None:
    running, *_ = stage.add_all(9, "running")
    dead, other = (stage.add(state, status="offline", updated_age_s=OLD_S) for _ in range(2))
    event = {"mode": "apply", "workspace_ids": [dead, running], "adopt": True}
    assert stage.cycle(event, ADOPT_OFFLINE="false").report["adopted"] == 0
    adopted = []
    for _ in range(4):
        stage.fleet.age_everything(61)
        adopted.append(stage.cycle(ADOPT_OFFLINE="false").report["adopted"])
    assert [cycle for cycle, count in enumerate(adopted, 1) if count] == [in_cycle]
    assert stage.fleet.restarts(other) == []
