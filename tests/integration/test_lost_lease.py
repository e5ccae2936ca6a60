"""A cycle whose lease runs out in the middle of a claim: another one may be at work by then."""

import contextlib

import pytest

from handler.domain.model import Sighting
from handler.domain.restarts import Circumstances, Owed, RestartDecision, before_asking
from handler.errors import LeaseLostError
from handler.restarts import asking
from tests.support.stage import Stage


def test_a_lease_that_runs_out_during_the_decision_lets_no_restart_be_claimed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.add_all(3, "running")
    workspace = stage.add("terminated")
    stage.cycle(PLATFORM_BASE_URL=None, PLATFORM_TOKEN=None)
    decided: list[RestartDecision] = []

    def decide(owed: Owed, sighting: Sighting, now: Circumstances) -> RestartDecision:
        decided.append(before_asking(owed, sighting, now))
        stage.database.query("UPDATE reconciler.lease SET expires_at = now()")
        return decided[-1]

    monkeypatch.setattr(asking, "before_asking", decide)
    with contextlib.suppress(LeaseLostError):
        stage.cycle()
    assert [str(one.step) for one in decided] == ["ask"]
    (restart,) = stage.fleet.restarts(workspace)
    assert (restart["attempts"], stage.platform.calls) == (0, [])
