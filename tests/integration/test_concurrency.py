"""Cycles that overlap: one goes first, nobody waits, and nothing is done twice."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from sandbox.control_plane import StatusRequest
from sandbox.http_server import Answer
from sandbox.invocation import InvocationError
from tests.support.events import APPLY, DRY_RUN, SCHEDULED
from tests.support.stage import Stage

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
# Long enough for leases to expire, for refusals to be tried again and for what is uncertain to be asked again.
A_WHILE_S = 400.0
TIMEOUT_S = 30.0
# What a cycle may take beyond its deadline.
TOLERANCE_S = 1.0


def lease(stage: Stage) -> list[dict[str, Any]]:
    """Return the lease, if anybody has it."""
    return stage.database.query("SELECT scope, holder::text, expires_at FROM reconciler.lease")


@contextmanager
def another_cycle_under_way(stage: Stage) -> Iterator[Callable[[], dict[str, Any]]]:
    """Keep another process in the middle of its cycle, waiting for the control plane's first answer.

    Yields a function that lets it finish, and returns its report.
    """
    waiting, go_on = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        waiting.set()
        go_on.wait(TIMEOUT_S)

    def finish() -> dict[str, Any]:
        go_on.set()
        return other.wait(TIMEOUT_S)

    stage.control_plane.script.before(wait, nth=1)
    with stage.invoke.in_process(APPLY, **stage.settings("control_plane")) as other:
        try:
            assert waiting.wait(TIMEOUT_S)
            yield finish
        finally:
            go_on.set()


@pytest.mark.parametrize("event", [APPLY, SCHEDULED], ids=["by hand", "scheduled"])
def test_a_second_cycle_says_at_once_that_another_is_running_and_the_first_completes(stage: Stage, event: Any) -> None:
    stage.add_all(2, "running")
    dead = stage.add("terminated")
    with another_cycle_under_way(stage) as finish_first:
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
    with another_cycle_under_way(stage) as finish_first:
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
    deadline_s = 1
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
    stage.database.query("ALTER TABLE reconciler.absences RENAME COLUMN sightings TO of_tomorrow")
    with pytest.raises(Exception, match=r"infra/schema\.sql"):
        stage.invoke(**MOSTLY_DEAD)
    assert lease(stage) == []
    stage.database.query("ALTER TABLE reconciler.absences RENAME COLUMN of_tomorrow TO sightings")
    stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})


CYCLES, DEAD, CHECKS_AT_ONCE = 4, 40, 8


class Overlap:
    """Cycles in separate processes, which get the lease in turn, again and again, while all of them act."""

    def __init__(self, stage: Stage, running: str) -> None:
        self.arrived = threading.Semaphore(0)
        self.about_to_act = threading.Semaphore(0)
        self.all_looked = threading.Event()
        self.act = threading.Event()
        self._stage = stage
        self._running = running
        self._released = [threading.Event() for _ in range(CYCLES)]
        self._holders: list[str] = []
        self._looks = self._turns = 0
        self._counting = threading.Lock()

    def look(self, question: StatusRequest) -> None:
        """Stop each cycle at its question about the running workspace, and at its second probes of the dead."""
        with self._counting:
            self._looks += 1
            first_looks = CYCLES * (DEAD + 1)
            again = self._looks > first_looks
            if self._looks == first_looks:
                self.all_looked.set()
        if question.workspace_id == self._running:
            number = len(self._holders)
            self._holders += [row["holder"] for row in lease(self._stage)]
            self._stage.database.query("UPDATE reconciler.lease SET expires_at = now()")
            self.arrived.release()
            self._released[number].wait(TIMEOUT_S)
        elif again:
            self.about_to_act.release()
            self.act.wait(TIMEOUT_S)
            self.pass_on()

    def release(self, number: int) -> None:
        """Give a cycle the lease, and let it go on until it is about to act."""
        self._give(number)
        self._released[number].set()
        for _ in range(CHECKS_AT_ONCE):
            assert self.about_to_act.acquire(timeout=TIMEOUT_S)

    def pass_on(self, *_: object) -> None:
        """Give the lease to the next of them."""
        with self._counting:
            self._turns += 1
            self._give(self._turns % CYCLES)

    def _give(self, number: int) -> None:
        self._stage.database.query(
            "UPDATE reconciler.lease SET holder = CAST(:holder AS uuid), expires_at = now() + interval '1 minute'",
            holder=self._holders[number],
        )


def test_four_cycles_that_act_at_once_flip_and_restart_each_workspace_once(stage: Stage) -> None:
    running, dead = stage.add("running"), stage.add_all(DEAD, "terminated")
    overlap = Overlap(stage, running)
    stage.control_plane.script.before(overlap.look)
    stage.platform.instead.before(overlap.pass_on)
    settings = stage.settings("control_plane") | MOSTLY_DEAD | {"PROBE_CONCURRENCY": str(CHECKS_AT_ONCE)}
    settings |= {"PROBE_TIMEOUT_SECONDS": str(TIMEOUT_S)}
    with ExitStack() as processes:
        cycles = []
        for _ in range(CYCLES):
            cycles.append(processes.enter_context(stage.invoke.in_process(APPLY, **settings)))
            assert overlap.arrived.acquire(timeout=TIMEOUT_S)
        assert overlap.all_looked.wait(TIMEOUT_S)
        for number in range(CYCLES):
            overlap.release(number)
        overlap.act.set()
        for cycle in cycles:
            with suppress(InvocationError):  # one that has lost its lease at its end says so
                cycle.wait(TIMEOUT_S)
    assert len({event["payload"]["cycle_id"] for event in stage.fleet.events()}) > 1, "only one of them acted"
    stage.control_plane.script.clear()
    stage.platform.instead.clear()
    stage.platform.instead.reply(Answer(body=b"{}"))
    stage.fleet.age_everything(A_WHILE_S)
    stage.cycle(**settings)
    once = dict.fromkeys(dead, 1)
    assert Counter(event["workspace_id"] for event in stage.fleet.events()) == once
    assert Counter(call.workspace_id for call in stage.platform.calls) == once
    assert stage.fleet.statuses() == {running: "online", **dict.fromkeys(dead, "offline")}
