"""Several Regions and accounts, with EC2's limits, and STS: what each target costs, and what it cannot cost."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from handler.probes.ec2 import api
from sandbox.ec2 import REGION
from sandbox.http_server import Hang, Reset
from sandbox.limited_ec2 import ApiError, LimitedEc2, TokenBucket
from sandbox.regions import HOME, SECRET, TOKEN, AssumeRole, Regions, Trust
from tests.support.events import DRY_RUN
from tests.support.stage import Outcome, Stage

WEST, ACCOUNT = "eu-west-1", "210987654321"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/reconciler"
EXTERNAL_ID = "an:external/id"
NAMES = (REGION, f"{WEST}/{ACCOUNT}")
TARGETS: list[dict[str, Any]] = [
    {"region": REGION},
    {"region": WEST, "role_arn": ROLE, "external_id": EXTERNAL_ID},
]
BREAKER_OFF = {"BREAKER_MAX_DEAD_FRACTION": "1"}
SOON: dict[str, Any] = {"ABSENT_MIN_AGE_SECONDS": "0"}
DENIED = ApiError("UnauthorizedOperation", "You are not authorized to perform this operation.", 403).as_answer()


@dataclass
class World:
    """A stage whose instances are here, in the function's own Region and account, or there."""

    stage: Stage
    regions: Regions
    here: LimitedEc2
    there: LimitedEc2

    def add(self, ec2: LimitedEc2, state: str | None, count: int = 1) -> list[str]:
        """Add workspaces whose instances are in a target, or (None) nowhere."""
        ids = ec2.add(count)
        for one in ids:
            if state is None:
                ec2.forget(one)
            else:
                ec2.set_state(one, state)
        return self.stage.fleet.add_all(ids)

    def cycle(self, event: Any = None, targets: list[dict[str, Any]] | None = None, **settings: str | None) -> Outcome:
        """Run a cycle over both targets."""
        listed = json.dumps(TARGETS if targets is None else targets)
        variables = {**self.regions.environment, **BREAKER_OFF, "EC2_TARGETS": listed, **settings}
        return self.stage.cycle(*([] if event is None else [event]), **variables)

    def asked(self, ec2: LimitedEc2) -> Counter[str]:
        """Return how often each instance was asked for."""
        return Counter(one for call in ec2.calls for one in call.filters.get("instance-id", ()))


@pytest.fixture
def world(stage: Stage) -> Iterator[World]:
    with Regions() as regions:
        here, there = regions.add(), regions.add(WEST, ACCOUNT)
        regions.roles[ROLE] = Trust(EXTERNAL_ID)
        yield World(stage, regions, here, there)
        assert_within_limits(here, there)


def assert_within_limits(*accounts: LimitedEc2) -> None:
    for ec2 in accounts:
        for call in ec2.calls:
            assert not call.instance_ids
            assert all(1 <= len(values) <= 200 for values in call.filters.values())


def test_what_is_dead_in_either_target_is_flipped_and_its_event_says_where(world: World) -> None:
    world.add(world.here, "running", 3)
    world.add(world.there, "running", 3)
    (one,), (other,) = world.add(world.here, "stopped"), world.add(world.there, "terminated")
    outcome = world.cycle()
    outcome.assert_only_flipped({one: "stopped", other: "terminated"})
    assert (outcome.report["targets_failed"], outcome.report["targets_empty"]) == ([], [])
    targets = {row["workspace_id"]: row["payload"]["target"] for row in outcome.after.events}
    assert targets == {one: NAMES[0], other: NAMES[1]}
    assert {line["workspace_id"]: line["target"] for line in outcome.lines("workspace flipped")} == targets
    assert world.regions.assumed == [AssumeRole(ROLE, EXTERNAL_ID, "instance-state-reconciler", REGION)]


@pytest.mark.parametrize("count", [20, 250])
def test_what_one_target_has_found_no_other_is_asked_about(world: World, count: int) -> None:
    world.add(world.here, "running", count // 2)
    world.add(world.there, "running", count // 2)
    (dead,) = world.add(world.there, "stopped")
    instance = world.stage.instance_of(dead)
    outcome = world.cycle(RESTART_GRACE_SECONDS="180")
    assert outcome.flipped == {dead}
    assert outcome.report["running"] == count
    asked_here, asked_there = world.asked(world.here), world.asked(world.there)
    assert asked_there[instance] == 2
    assert asked_here[instance] <= 1
    own = {one for one in asked_here if world.here.state_of(one)}
    assert max(Counter({one: asked_here[one] for one in own}).values(), default=1) == 1
    if count > 200:
        assert {call.action for call in world.there.calls} == {"DescribeInstanceStatus", "DescribeInstances"}
        assert asked_here.keys() | asked_there.keys() == {instance}


def test_a_region_that_is_down_costs_only_its_own_and_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FIRST_BACKOFF_S", 0.01)
    unknown = world.add(world.there, "stopped", 2)
    (dead,) = world.add(world.here, "stopped")
    world.add(world.here, "running", 2)
    world.there.script.reply(Reset())
    outcome = world.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.causes == dict.fromkeys(unknown, f"broken_connection in {NAMES[1]}")
    assert (outcome.report["targets_failed"], outcome.report["targets_empty"]) == ([NAMES[1]], [])
    (line,) = outcome.lines("target failed")
    assert (line["target"], line["error"]) == (NAMES[1], "broken_connection")
    doubts = {row["workspace_id"]: (row["kind"], row["reason"]) for row in world.stage.fleet.doubts()}
    assert doubts == dict.fromkeys(unknown, ("unknown", f"broken_connection in {NAMES[1]}"))


@pytest.mark.parametrize("count", [2, 250])
def test_a_region_that_hangs_costs_its_timeouts(world: World, count: int) -> None:
    """In a large fleet two: of its listing, and of the calls for what is not listed."""
    (dead,) = world.add(world.here, "stopped")
    world.add(world.here, "running", count)
    unknown = world.add(world.there, "stopped", count)
    world.there.script.reply(Hang())
    outcome = world.cycle(PROBE_TIMEOUT_SECONDS="0.5")
    assert outcome.flipped == {dead}
    assert len(outcome.calls) == 1
    assert (outcome.report["running"], outcome.report["unknown"]) == (count, len(unknown))
    assert set(outcome.causes.values()) == {f"timeout in {NAMES[1]}"}
    assert outcome.report["duration_ms"] < 3000


def test_an_account_that_denies_the_role_is_named_and_nothing_secret_is_logged(world: World) -> None:
    (dead,) = world.add(world.here, "stopped")
    world.add(world.here, "running", 2)
    world.add(world.there, "stopped", 2)
    world.regions.roles[ROLE] = Trust("another")
    outcome = world.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    assert set(outcome.causes.values()) == {f"role_not_assumed_refused_AccessDenied in {NAMES[1]}"}
    assert outcome.report["targets_failed"] == [NAMES[1]]
    assert len(world.regions.assumed) == 1
    assert EXTERNAL_ID not in outcome.output
    world.regions.roles[ROLE] = Trust(EXTERNAL_ID)
    outcome = world.cycle()
    assert outcome.report["targets_failed"] == []
    assert outcome.report["flipped"] == 2
    assert not any(secret in outcome.output for secret in (EXTERNAL_ID, SECRET, TOKEN, *world.regions.issued))


def test_sts_that_hangs_costs_its_target_one_timeout(world: World) -> None:
    (dead,) = world.add(world.here, "stopped")
    world.add(world.here, "running", 2)
    (unknown,) = world.add(world.there, "stopped")
    world.regions.script.reply(Hang())
    outcome = world.cycle(PROBE_TIMEOUT_SECONDS="0.5")
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.causes == {unknown: f"role_not_assumed_timeout in {NAMES[1]}"}
    assert outcome.report["duration_ms"] < 2000
    assert len(world.regions.assumed) == 1


def test_a_right_that_is_missing_in_one_account_costs_only_its_own(world: World) -> None:
    (dead,) = world.add(world.here, "stopped")
    world.add(world.here, "running", 2)
    unknown = world.add(world.there, "stopped", 2)
    world.there.script.reply(DENIED)
    outcome = world.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.causes == dict.fromkeys(unknown, f"refused_UnauthorizedOperation in {NAMES[1]}")


def test_throttling_in_one_account_leaves_the_others_their_time(world: World) -> None:
    (dead,) = world.add(world.here, "stopped")
    world.add(world.here, "running", 2)
    world.add(world.there, "stopped", 2)
    world.there.bucket = TokenBucket(capacity=0, refill_per_s=0)
    outcome = world.cycle(CYCLE_DEADLINE_SECONDS="6")
    outcome.assert_only_flipped({dead: "stopped"})
    assert set(outcome.causes.values()) == {f"throttled in {NAMES[1]}"}
    assert outcome.report["targets_failed"] == [NAMES[1]]


def test_credentials_that_expire_in_mid_cycle_are_renewed(world: World) -> None:
    """They expire after the first probe, so that the second one is refused."""
    world.add(world.here, "running", 2)
    world.add(world.there, "running", 2)
    (dead,) = world.add(world.there, "stopped")
    world.there.script.before(lambda _: world.regions.expire(), nth=1, action="DescribeInstances")
    world.cycle().assert_only_flipped({dead: "stopped"})
    assert len(world.regions.assumed) == 2


def test_credentials_that_can_not_be_renewed_in_mid_cycle_make_a_failed_target(world: World) -> None:
    (dead,) = world.add(world.there, "stopped")
    world.add(world.here, "running", 2)
    world.add(world.there, "running", 2)
    instance = world.stage.instance_of(dead)

    def expire(call: Any) -> None:
        if instance in call.filters.get("instance-id", ()):
            world.regions.expire()
            world.regions.roles.clear()

    world.there.script.before(expire)
    outcome = world.cycle()
    outcome.assert_only_flipped({})
    assert outcome.reasons == {dead: "not_confirmed"}
    assert outcome.report["targets_failed"] == [NAMES[1]]


def test_credentials_are_kept_from_cycle_to_cycle_and_renewed_ten_minutes_before_they_expire(world: World) -> None:
    world.add(world.here, "running")
    world.add(world.there, "running")
    for _ in range(3):
        assert world.cycle().report["running"] == 2
    assert len(world.regions.assumed) == 1
    world.stage.invoke.cold()
    world.regions.lasts = timedelta(minutes=9)
    for number in (2, 3, 4):
        assert world.cycle().report["running"] == 2
        assert len(world.regions.assumed) == number


def test_a_failed_renewal_costs_nothing_while_the_old_credentials_outlast_the_cycle(world: World) -> None:
    world.add(world.here, "running")
    world.add(world.there, "running")
    world.regions.lasts = timedelta(minutes=9)
    world.cycle()
    world.regions.roles.clear()
    outcome = world.cycle()
    assert (outcome.report["running"], outcome.report["targets_failed"]) == (2, [])
    assert len(world.regions.assumed) == 2
    outcome = world.cycle(CYCLE_DEADLINE_SECONDS="900")  # another setting starts the process anew, without credentials
    assert (outcome.report["running"], outcome.report["targets_failed"]) == (1, [NAMES[1]])


def test_an_instance_is_absent_only_if_no_target_finds_it(world: World) -> None:
    world.add(world.here, "running", 2)
    world.add(world.there, "running", 2)
    (absent,) = world.add(world.here, None)
    for _ in range(2):
        outcome = world.cycle(**SOON)
        outcome.assert_only_flipped({})
        assert outcome.report["absent"] == 1
    (doubt,) = world.stage.fleet.doubts()
    assert (doubt["kind"], doubt["reason"]) == ("absent", "not_found in every target")
    outcome = world.cycle(**SOON)
    outcome.assert_only_flipped({absent: "not_found"})
    assert outcome.after.events[-1]["payload"]["target"] == "every target"


def test_while_a_target_fails_nobody_is_absent(world: World) -> None:
    world.add(world.here, "running", 2)
    (gone,) = world.add(world.here, None)
    world.there.script.reply(DENIED)
    for _ in range(3):
        outcome = world.cycle(**SOON, ABSENT_SIGHTINGS="1")
        outcome.assert_only_flipped({})
        assert outcome.causes == {gone: f"refused_UnauthorizedOperation in {NAMES[1]}"}


def test_while_a_target_is_empty_nobody_is_absent(world: World) -> None:
    world.add(world.here, "running", 2)
    (gone,) = world.add(world.here, None)
    for _ in range(2):
        outcome = world.cycle(**SOON, ABSENT_SIGHTINGS="1")
        outcome.assert_only_flipped({})
        assert (outcome.report["targets_failed"], outcome.report["targets_empty"]) == ([], [NAMES[1]])
        (line,) = outcome.lines("target empty")
        assert line["target"] == NAMES[1]
    (doubt,) = world.stage.fleet.doubts()
    assert (doubt["workspace_id"], doubt["kind"], doubt["reason"]) == (gone, "unknown", f"empty_target in {NAMES[1]}")
    may_be_empty = [TARGETS[0], TARGETS[1] | {"may_be_empty": True}]
    outcome = world.cycle(targets=may_be_empty, **SOON, ABSENT_SIGHTINGS="1")
    outcome.assert_only_flipped({gone: "not_found"})
    assert outcome.report["targets_empty"] == []


def test_a_narrowed_cycle_calls_no_target_empty(world: World) -> None:
    one, *_ = world.add(world.here, "running", 2)
    world.add(world.there, "running", 2)
    outcome = world.cycle({"mode": "apply", "workspace_ids": [one]})
    assert (outcome.report["targets_empty"], outcome.lines("target empty")) == ([], [])


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        ("stopped", "running", "running"),
        ("running", "terminated", "running"),
        ("stopped", "terminated", "unknown"),
        ("pending", "stopped", "unknown"),
        ("stopped", "stopped", "dead"),
    ],
)
@pytest.mark.parametrize("others", [2, 250])
def test_if_two_know_an_instance_the_living_answer_wins(
    world: World, here: str, there: str, verdict: str, others: int
) -> None:
    """Two targets may overlap. Both are asked at once: in a large fleet, for what neither lists."""
    world.add(world.here, "running", others)
    world.add(world.there, "running", 2)
    (twice,) = world.add(world.here, here)
    instance = world.stage.instance_of(twice)
    account = world.there._account  # noqa: SLF001 - no account has another's instance
    account.known[instance] = account.known.pop(world.there.add()[0])
    account.known[instance].id, account.known[instance].state = instance, there
    outcome = world.cycle()
    assert outcome.report[verdict] == 1 + (verdict == "running") * (others + 2)
    assert outcome.flipped == ({twice} if verdict == "dead" else set())
    if verdict == "unknown":
        assert outcome.causes == {twice: f"targets_disagree in {NAMES[0]} and {NAMES[1]}"}


def test_an_id_that_moves_from_unknown_to_known_is_alive(world: World) -> None:
    """EC2 may not find a new instance for minutes."""
    world.add(world.here, "running", 2)
    world.add(world.there, "running", 2)
    young = world.there.add()[0]
    workspace = world.stage.fleet.add(young)
    hidden = world.there._account.known.pop(young)  # noqa: SLF001 - it is there, and not yet found
    for _ in range(2):
        assert world.cycle(**SOON).report["absent"] == 1
    world.there._account.known[young] = hidden  # noqa: SLF001
    outcome = world.cycle(**SOON)
    outcome.assert_only_flipped({})
    assert (outcome.report["running"], outcome.report["absent"]) == (5, 0)
    assert [row for row in world.stage.fleet.doubts() if row["workspace_id"] == workspace] == []


def test_a_target_is_removed_and_added_again_between_two_cycles(world: World) -> None:
    world.add(world.here, "running", 2)
    theirs = world.add(world.there, "running", 2)
    assert world.cycle().report["running"] == 4
    outcome = world.cycle(targets=TARGETS[:1])
    outcome.assert_only_flipped({})
    assert (outcome.report["running"], outcome.report["absent"]) == (2, 2)
    assert {row["workspace_id"] for row in world.stage.fleet.doubts()} == set(theirs)
    assert world.cycle().report["running"] == 4
    assert world.stage.fleet.doubts() == []


def test_the_only_target_may_be_in_another_account(world: World) -> None:
    world.add(world.there, "running", 2)
    (dead,) = world.add(world.there, "stopped")
    world.cycle(targets=TARGETS[1:]).assert_only_flipped({dead: "stopped"})
    assert world.here.calls == []


def test_the_only_target_is_named_too_if_it_fails_or_is_empty(world: World) -> None:
    world.add(world.here, None)
    outcome = world.cycle(targets=TARGETS[:1])
    assert (outcome.report["targets_failed"], outcome.report["targets_empty"]) == ([], [NAMES[0]])
    world.here.script.reply(DENIED)
    outcome = world.cycle(targets=TARGETS[:1])
    assert (outcome.report["targets_failed"], outcome.report["targets_empty"]) == ([NAMES[0]], [])
    assert set(outcome.causes.values()) == {"refused_UnauthorizedOperation"}


def test_a_dry_run_says_what_would_be_done_and_which_targets_are_in_trouble(world: World) -> None:
    world.add(world.here, "running", 2)
    (dead,) = world.add(world.here, "stopped")
    (unknown,) = world.add(world.there, "stopped")
    world.there.script.reply(DENIED)
    outcome = world.cycle(DRY_RUN)
    assert outcome.after == outcome.before
    assert [one["workspace_id"] for one in outcome.report["flips"]] == [dead]
    assert outcome.report["targets_failed"] == [NAMES[1]]
    assert unknown in outcome.causes


def test_two_accounts_of_one_region_are_two_targets(world: World) -> None:
    other = "321098765432"
    role = ROLE.replace(ACCOUNT, other)
    third = world.regions.add(WEST, other)
    world.regions.roles[role] = Trust()
    world.add(world.here, "running")
    world.add(world.there, "running")
    (dead,) = world.add(third, "stopped")
    outcome = world.cycle(targets=[*TARGETS, {"region": WEST, "role_arn": role}])
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.after.events[-1]["payload"]["target"] == f"{WEST}/{other}"
    assert world.regions.targets.keys() == {(REGION, HOME), (WEST, ACCOUNT), (WEST, other)}
