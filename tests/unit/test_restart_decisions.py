"""What becomes of a restart: one table for the call, one for the watch."""

from dataclasses import replace

import pytest

from handler.domain.model import Restart
from handler.domain.policy import AbsencePolicy
from handler.domain.restarts import (
    Circumstances,
    Owed,
    Step,
    Watched,
    WatchStep,
    before_asking,
    before_probing,
    owed_again,
    watch,
    while_kept_back,
)
from tests.unit.builders import instance, saw, uuid

RESTART = Restart(1, uuid(1), instance(1))
NOW = Circumstances(full=True, breaker_open=False, absence_counts=True, absence=AbsencePolicy(3, 120))
OWED = Owed(RESTART, still_owed=True)


@pytest.mark.parametrize(
    ("owed", "now", "step"),
    [
        pytest.param(OWED, NOW, None, id="nothing is in the way"),
        pytest.param(replace(OWED, still_owed=False), NOW, Step.CANCEL, id="the row has moved on"),
        pytest.param(replace(OWED, on_hold=True), NOW, Step.WAIT, id="on hold"),
        pytest.param(replace(OWED, stopped=True), NOW, Step.WAIT, id="Retry-After"),
        pytest.param(replace(OWED, backing_off=True), NOW, Step.WAIT, id="crash loop"),
        pytest.param(replace(OWED, due=False), NOW, Step.WAIT, id="not due, or in its grace"),
        pytest.param(OWED, replace(NOW, breaker_open=True), Step.WAIT, id="the breaker is open"),
        pytest.param(
            replace(OWED, restart=replace(RESTART, released=True)),
            replace(NOW, breaker_open=True),
            None,
            id="the breaker is open, and it was released",
        ),
        pytest.param(replace(OWED, heartbeat=True), NOW, Step.PUT_OFF, id="a heartbeat came"),
        pytest.param(replace(OWED, still_owed=False, on_hold=True), NOW, Step.CANCEL, id="moved on, and on hold"),
        pytest.param(replace(OWED, on_hold=True, heartbeat=True), NOW, Step.WAIT, id="on hold, and a heartbeat"),
    ],
)
@pytest.mark.parametrize("state", ["terminated", "running", "not_found", "no such word"])
def test_before_a_call_the_row_has_the_first_say(owed: Owed, now: Circumstances, step: Step | None, state: str) -> None:
    decision = before_probing(owed, now)
    assert (None if decision is None else decision.step) == step
    if step is not None:
        assert before_asking(owed, saw(state), now) == decision


@pytest.mark.parametrize(
    ("state", "restart", "now", "step"),
    [
        pytest.param("terminated", RESTART, NOW, Step.ASK, id="terminated"),
        pytest.param("stopped", RESTART, NOW, Step.ASK, id="stopped"),
        pytest.param("running", RESTART, NOW, Step.CANCEL_AND_WATCH, id="running"),
        pytest.param("pending", RESTART, NOW, Step.PUT_OFF, id="pending"),
        pytest.param("shutting-down", RESTART, NOW, Step.PUT_OFF, id="shutting down"),
        pytest.param("no such word", RESTART, NOW, Step.PUT_OFF, id="no answer"),
        pytest.param("not_found", RESTART, NOW, Step.NEXT_CYCLE, id="absent for the first time"),
        pytest.param("not_found", replace(RESTART, absent_sightings=2, absent_s=120), NOW, Step.ASK, id="long absent"),
        pytest.param(
            "not_found", replace(RESTART, absent_sightings=2, absent_s=119), NOW, Step.NEXT_CYCLE, id="not long absent"
        ),
        pytest.param(
            "not_found", replace(RESTART, absent_sightings=1, absent_s=900), NOW, Step.NEXT_CYCLE, id="seen only twice"
        ),
        pytest.param(
            "not_found",
            replace(RESTART, absent_sightings=9, absent_s=900),
            replace(NOW, absence_counts=False),
            Step.PUT_OFF,
            id="long absent, and nothing else was found",
        ),
        pytest.param(
            "not_found",
            replace(RESTART, absent_sightings=2, absent_s=900),
            replace(NOW, full=False),
            Step.PUT_OFF,
            id="a narrowed cycle counts no absence",
        ),
        pytest.param(
            "not_found",
            replace(RESTART, absent_sightings=3, absent_s=900),
            replace(NOW, full=False),
            Step.ASK,
            id="full cycles have counted enough",
        ),
    ],
)
def test_then_the_instance(state: str, restart: Restart, now: Circumstances, step: Step) -> None:
    decision = before_asking(replace(OWED, restart=restart), saw(state), now)
    assert (decision.step, decision.restart) == (step, restart)
    assert decision.reason


WATCHED = Watched(RESTART, "provisioning", is_open=False, same_instance=False, up_s=None, on_hold=False)


@pytest.mark.parametrize(
    ("watched", "step"),
    [
        pytest.param(WATCHED, WatchStep.IS_NOT_UP, id="provisioning"),
        pytest.param(replace(WATCHED, status="failed"), WatchStep.IS_NOT_UP, id="failed"),
        pytest.param(replace(WATCHED, status="online"), WatchStep.IS_UP, id="online for the first time"),
        pytest.param(replace(WATCHED, status="degraded", up_s=299), WatchStep.IS_UP, id="up, not for long"),
        pytest.param(replace(WATCHED, status="degraded", up_s=300), WatchStep.END, id="up for five minutes"),
        pytest.param(replace(WATCHED, status="failed", up_s=900), WatchStep.IS_NOT_UP, id="failed after it was up"),
        *(
            pytest.param(replace(WATCHED, status=status), WatchStep.END, id=str(status))
            for status in ("removed", "paused", "hibernating", "hibernated", None)
        ),
        pytest.param(replace(WATCHED, status="offline"), WatchStep.IS_NOT_UP, id="offline with another instance"),
        pytest.param(
            replace(WATCHED, status="offline", same_instance=True), WatchStep.PROBE, id="offline with the same"
        ),
        pytest.param(
            replace(WATCHED, status="offline", same_instance=True, on_hold=True), WatchStep.IS_NOT_UP, id="on hold"
        ),
        pytest.param(
            replace(WATCHED, status="offline", same_instance=True, is_open=True), WatchStep.IS_NOT_UP, id="still open"
        ),
    ],
)
def test_the_watch_goes_on_until_the_workspace_is_up_or_unwanted(watched: Watched, step: WatchStep) -> None:
    assert watch(watched) is step


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ("running", Step.CANCEL_AND_WATCH),
        *((state, Step.WAIT) for state in ("stopped", "terminated", "not_found", "pending", "no such word")),
    ],
)
def test_what_the_breaker_keeps_back_ends_if_its_instance_runs_and_is_never_asked_for(state: str, step: Step) -> None:
    assert while_kept_back(saw(state)) is step


@pytest.mark.parametrize(
    ("state", "restart", "now", "again"),
    [
        ("terminated", RESTART, NOW, True),
        ("stopped", RESTART, NOW, True),
        ("running", RESTART, NOW, False),
        ("pending", RESTART, NOW, False),
        ("no such word", RESTART, NOW, False),
        ("not_found", RESTART, NOW, False),
        ("not_found", replace(RESTART, absent_sightings=2, absent_s=120), NOW, True),
        ("terminated", RESTART, replace(NOW, breaker_open=True), False),
        ("not_found", replace(RESTART, absent_sightings=9, absent_s=900), replace(NOW, absence_counts=False), False),
    ],
)
def test_a_restart_that_did_nothing_is_owed_again(
    state: str, restart: Restart, now: Circumstances, again: bool
) -> None:
    assert owed_again(restart, saw(state), now) is again
