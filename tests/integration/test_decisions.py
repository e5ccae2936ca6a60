"""Which workspaces go offline: every status, state and runtime at once, with both probes and both column types."""

from dataclasses import dataclass
from itertools import product, repeat

import pytest

from sandbox.ec2 import MotoEc2
from sandbox.postgres import PostgresServer
from tests.support.events import APPLY, DRY_RUN
from tests.support.stage import Outcome, Stage, Stages, opened

NO_LONGER_CANDIDATES = ("offline", "failed", "removed", "paused", "hibernated")
NOT_YET_CANDIDATES = ("provisioning", "hibernating", "awaiting_agent", None)
CANDIDATES = ("online", "degraded")
OURS = ("langgraph", "", None)
RUNTIMES = (*OURS, "external")

ALIVE = ("running", "pending", "stopping", "shutting-down")
DEAD = ("stopped", "terminated")
UNKNOWN_TO_EC2 = None
A_WORD_THAT_EC2_HAS_NOT = "rebooting"  # which only a control plane could say

FLEETS = [("moto", "enum"), ("ec2", "text"), ("control_plane", "enum"), ("control_plane", "text")]

Case = tuple[str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class Run:
    """Three cycles over one fleet, and which workspace is which."""

    case_of: dict[str, Case]
    rehearsed: Outcome
    applied: Outcome
    absences_believed: Outcome

    def flipped(self, outcome: Outcome) -> set[Case]:
        """Return the cases of the workspaces that a cycle flipped."""
        return {self.case_of[one] for one in outcome.flipped}

    def all_in(self, *states: str | None) -> dict[str, str]:
        """Return every candidate whose instance is in one of these states, with that state."""
        return {
            one: state or "not_found"
            for one, (status, state, runtime) in self.case_of.items()
            if status in CANDIDATES and state in states and runtime in OURS
        }


@pytest.fixture(scope="module", params=FLEETS, ids="-".join)
def run(request: pytest.FixtureRequest, postgres: PostgresServer, moto: MotoEc2, stages: Stages) -> Run:
    truth, status_type = request.param
    with opened(postgres, status_type, moto=moto) if truth == "moto" else stages.borrowed(status_type) as stage:
        states = [*ALIVE, *DEAD, UNKNOWN_TO_EC2, *([A_WORD_THAT_EC2_HAS_NOT] if truth == "control_plane" else [])]
        case_of = populated(stage, states)
        settings = stage.settings(truth)
        rehearsed = stage.cycle(DRY_RUN, **settings)
        applied = stage.cycle(APPLY, **settings)
        stage.platform_is_at_work()
        at_once = {"ABSENT_SIGHTINGS": "1", "ABSENT_MIN_AGE_SECONDS": "0"}
        return Run(case_of, rehearsed, applied, absences_believed=stage.cycle(APPLY, **settings, **at_once))


def populated(stage: Stage, states: list[str | None]) -> dict[str, Case]:
    """Fill in a workspace for each case there is, with an instance of its own; return the cases by workspace.

    moto takes its time to launch, so that there all workspaces share an instance whose cases differ in nothing else.
    """
    kinds = list(product((*CANDIDATES, *NO_LONGER_CANDIDATES, *NOT_YET_CANDIDATES), RUNTIMES))
    instances = [
        repeat(*stage.instances(1, state)) if stage.moto else iter(stage.instances(len(kinds), state))
        for state in states
    ]
    case_of: dict[str, Case] = {}
    for status, runtime in kinds:
        ids = stage.fleet.add_all([next(one) for one in instances], status=status, runtime=runtime)
        case_of |= {one: (status, state, runtime) for one, state in zip(ids, states, strict=True)}
    return case_of


def test_exactly_the_candidates_whose_instance_is_stopped_or_terminated_go_offline(run: Run) -> None:
    assert run.flipped(run.applied) == set(product(CANDIDATES, DEAD, OURS))
    run.applied.assert_only_flipped(run.all_in(*DEAD))


def test_exactly_the_candidates_that_ec2_does_not_know_follow_once_their_absence_is_believed(run: Run) -> None:
    assert run.flipped(run.absences_believed) == set(product(CANDIDATES, [UNKNOWN_TO_EC2], OURS))
    run.absences_believed.assert_only_flipped(run.all_in(UNKNOWN_TO_EC2))


def test_a_dry_run_names_exactly_those_that_the_next_cycle_flips_and_writes_nothing(run: Run) -> None:
    run.rehearsed.assert_only_flipped({})
    named = {flip["workspace_id"]: flip["instance_state"] for flip in run.rehearsed.report["flips"]}
    assert named == run.all_in(*DEAD)


def test_the_report_counts_the_verdicts_of_the_candidates_and_of_nobody_else(run: Run) -> None:
    for outcome, dead in (run.rehearsed, 12), (run.applied, 12), (run.absences_believed, 0):
        report = outcome.report
        unknown = len(run.all_in(A_WORD_THAT_EC2_HAS_NOT))
        verdicts = {name: report[name] for name in ("running", "transition", "dead", "absent", "unknown")}
        assert verdicts == {"running": 6, "transition": 18, "dead": dead, "absent": 6, "unknown": unknown}
        assert report["candidates"] == report["checked"] == sum(verdicts.values())
        assert (report["deferred"], outcome.skips, report["breaker_open"]) == (0, {}, False)


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_a_workspace_that_records_no_instance_is_never_asked_about(stage: Stage, probe: str) -> None:
    stage.fleet.add_all([None, ""])
    stage.add("running")
    outcome = stage.cycle(**stage.settings(probe))
    outcome.assert_only_flipped({})
    assert outcome.report["candidates"] == 1
    asked = [call for call in stage.ec2.calls if call.action == "DescribeInstances"]
    assert len(stage.control_plane.requests if probe == "control_plane" else asked) == 1


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_a_dead_instance_takes_all_the_candidates_that_record_it_offline_and_nobody_else(
    stage: Stage, probe: str
) -> None:
    stage.add_all(3, "running")
    (shared,) = stage.instances(1, "terminated")
    both = [stage.fleet.add(shared, status=status) for status in CANDIDATES]
    stage.fleet.add(shared, status="paused")
    stage.fleet.add(shared, runtime="external")
    outcome = stage.cycle(**stage.settings(probe))
    outcome.assert_only_flipped(dict.fromkeys(both, "terminated"))


def test_what_is_flipped_is_the_state_that_was_confirmed_right_before(stage: Stage) -> None:
    stage.add("running")
    workspace = stage.add("stopped")
    instance = stage.instance_of(workspace)
    stage.ec2.script.before(lambda _: stage.ec2.set_state(instance, "terminated"), nth=2, action="DescribeInstances")
    stage.cycle().assert_only_flipped({workspace: "terminated"})


def test_a_second_cycle_finds_nothing_left_to_do(stage: Stage) -> None:
    stage.add_all(2, "running")
    workspace = stage.add("terminated")
    stage.cycle().assert_only_flipped({workspace: "terminated"})
    stage.platform_is_at_work()
    again = stage.cycle()
    again.assert_only_flipped({})
    assert (again.report["candidates"], again.report["restarts"]["accepted"]) == (2, 0)
