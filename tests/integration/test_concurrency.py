"""Cycles that overlap: one goes first, nobody waits, and nothing is done twice."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from sandbox.control_plane import StatusRequest
from sandbox.http_server import Answer
from tests.support.events import APPLY, DRY_RUN, SCHEDULED
from tests.support.stage import Stage
from tests.support.under_way import TIMEOUT_S, under_way

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
# Long enough for leases to expire, for refusals to be tried again and for what is uncertain to be asked again.
A_WHILE_S = 400.0
# What a cycle may take beyond its deadline.
TOLERANCE_S = 1.0


def lease(stage: Stage) -> list[dict[str, Any]]:
    """Return the lease, if anybody has it."""
    return stage.database.query("SELECT scope, holder::text, expires_at FROM reconciler.lease")


@pytest.mark.parametrize("event", [APPLY, SCHEDULED], ids=["by hand", "scheduled"])
def test_a_second_cycle_says_at_once_that_another_is_running_and_the_first_completes(stage: Stage, event: Any) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    with under_way(stage, APPLY) as finish_first:
        began_at = time.monotonic()
        second = stage.cycle(event)
        took_s = time.monotonic() - began_at
        assert second.report["outcome"] == "already_running"
        assert (second.report["candidates"], second.report["flipped"], second.calls) == (0, 0, [])
        second.assert_untouched(*second.before.rows)
        assert stage.ec2.calls == []
        assert took_s < 5, "it waited for the other, whose deadline is 45 s"
        assert finish_first()["outcome"] == "completed"
    assert stage.fleet.statuses()[dead] == "offline"
    assert lease(stage) == []
    assert stage.cycle().report["outcome"] == "completed"


def test_a_dry_run_neither_takes_the_lease_nor_minds_it(stage: Stage) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    with under_way(stage, APPLY) as finish_first:
        ours = lease(stage)
        assert len(ours) == 1
        rehearsal = stage.cycle(DRY_RUN)
        assert rehearsal.report["outcome"] == "completed"
        assert [flip["workspace_id"] for flip in rehearsal.report["flips"]] == [dead]
        assert lease(stage) == ours
        assert finish_first()["flipped"] == 1


def test_a_dry_run_under_way_keeps_no_applying_cycle_from_running(stage: Stage) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    applied: list[Any] = []

    def apply(_: object) -> None:
        assert lease(stage) == []
        with stage.invoke.in_process(APPLY) as other:
            applied.append(other.wait(TIMEOUT_S))

    stage.control_plane.script.before(apply, nth=1)
    rehearsal = stage.invoke(DRY_RUN, **stage.settings("control_plane"))
    assert [report["outcome"] for report in applied] == ["completed"]
    assert stage.fleet.statuses()[dead] == "offline"
    assert rehearsal["flips"] == [], "by then the row has moved on"


def test_the_lease_of_a_process_that_was_killed_is_free_after_the_longest_possible_cycle(stage: Stage) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    deadline_s = 10
    settings = stage.settings("control_plane") | {"CYCLE_DEADLINE_SECONDS": str(deadline_s)}
    with stage.invoke.in_process(APPLY, **settings) as doomed:
        stage.control_plane.script.before(lambda _: doomed.process.kill(), nth=1)
        doomed.process.wait()
    assert stage.cycle().report["outcome"] == "already_running"
    ((lasts_s,),) = (
        row.values()
        for row in stage.database.query(
            "SELECT CAST(extract(epoch FROM expires_at - acquired_at) AS float) FROM reconciler.lease"
        )
    )
    assert deadline_s + TOLERANCE_S <= lasts_s < deadline_s + 3 * TOLERANCE_S
    stage.fleet.age_everything(lasts_s)
    stage.cycle().assert_only_flipped({dead: "terminated"})


def test_a_cycle_that_fails_gives_its_lease_back(stage: Stage) -> None:
    dead = stage.add("terminated")
    stage.database.query("ALTER TABLE reconciler.doubts RENAME COLUMN sightings TO of_tomorrow")
    with pytest.raises(Exception, match=r"infra/schema\.sql"):
        stage.invoke(**MOSTLY_DEAD)
    assert lease(stage) == []
    stage.database.query("ALTER TABLE reconciler.doubts RENAME COLUMN of_tomorrow TO sightings")
    stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})


CYCLES, DEAD = 4, 40


class Overlap:
    """Cycles in separate processes that all have the lease, so that only locks and claims stand between them.

    Each looks at everybody, then all act at once. Of each dead workspace's second probes one has no answer, by turns
    another one, so that no cycle can flip all of them.
    """

    def __init__(self, stage: Stage, running: str, dead: list[str]) -> None:
        self.arrived = threading.Semaphore(0)
        self._act = threading.Event()
        self._stage = stage
        self._running = running
        self._unanswered = {one: CYCLES + number % CYCLES for number, one in enumerate(dead)}
        self._asked = Counter[str]()
        self._holders: list[str] = []
        self._counting = threading.Lock()

    def look(self, question: StatusRequest) -> None:
        """Stop each cycle at its question about the running workspace, and let the next one take the lease."""
        if question.workspace_id == self._running:
            self._holders += [row["holder"] for row in lease(self._stage)]
            self._stage.database.query("UPDATE reconciler.lease SET expires_at = now()")
            self.arrived.release()
            self._act.wait(TIMEOUT_S)

    def answer(self, question: StatusRequest) -> Answer | None:
        """Leave one second probe of each dead workspace without an answer."""
        with self._counting:
            asked = self._asked[question.workspace_id]
            self._asked[question.workspace_id] += 1
        return Answer(503) if asked == self._unanswered.get(question.workspace_id) else None

    @contextmanager
    def all_act(self) -> Iterator[None]:
        """Give all of them the lease, and let them go on."""
        query = self._stage.database.query
        query("ALTER TABLE reconciler.lease DROP CONSTRAINT lease_pkey")
        try:
            query("DELETE FROM reconciler.lease")
            query(
                "INSERT INTO reconciler.lease (scope, holder, expires_at) "
                "SELECT 'fleet', unnest(CAST(:holders AS uuid[])), now() + interval '1 minute'",
                holders=self._holders,
            )
            self._act.set()
            yield
        finally:
            query("ALTER TABLE reconciler.lease ADD CONSTRAINT lease_pkey PRIMARY KEY (scope)")


def test_four_cycles_that_act_at_once_flip_and_restart_each_workspace_once(stage: Stage) -> None:
    running, dead = stage.add("running"), stage.add_all(DEAD, "terminated")
    overlap = Overlap(stage, running, dead)
    stage.control_plane.script.before(overlap.look)
    stage.control_plane.script.reply(overlap.answer)
    settings = stage.settings("control_plane") | MOSTLY_DEAD | {"PROBE_TIMEOUT_SECONDS": str(TIMEOUT_S)}
    with ExitStack() as processes:
        cycles = []
        for _ in range(CYCLES):
            cycles.append(processes.enter_context(stage.invoke.in_process(APPLY, **settings)))
            assert overlap.arrived.acquire(timeout=TIMEOUT_S)
        with overlap.all_act():
            reports = [cycle.wait(TIMEOUT_S) for cycle in cycles]
    assert {report["outcome"] for report in reports} == {"completed"}
    assert sum(report["flipped"] for report in reports) == DEAD
    assert len({event["payload"]["cycle_id"] for event in stage.fleet.events()}) > 1, "only one of them acted"
    stage.control_plane.script.clear()
    stage.fleet.age_everything(A_WHILE_S)
    stage.cycle(**settings)
    once = dict.fromkeys(dead, 1)
    assert Counter(event["workspace_id"] for event in stage.fleet.events()) == once
    assert Counter(call.workspace_id for call in stage.platform.calls) == once
    assert stage.fleet.statuses() == {running: "online", **dict.fromkeys(dead, "offline")}
