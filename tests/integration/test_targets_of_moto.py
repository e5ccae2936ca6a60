"""Several Regions and accounts as moto has them: real signatures, real roles, real answers of STS."""

from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.ec2 import REGION, MotoEc2
from tests.support import accounts
from tests.support.accounts import ACCOUNT, TARGETS, WEST, launched
from tests.support.stage import Stage


@pytest.fixture
def elsewhere(moto: MotoEc2) -> Iterator[dict[str, Any]]:
    with accounts.elsewhere(moto) as clients:
        yield clients


def test_each_account_is_asked_in_its_region_with_its_own_credentials(
    cloud: Stage, moto: MotoEc2, elsewhere: dict[str, Any]
) -> None:
    cloud.add_all(2, "running")
    here = moto.launch()[0]
    moto.stop_instances([here])
    dead = {cloud.fleet.add(here): REGION}
    for name, client in elsewhere.items():
        alive, stopped = launched(client, 2)
        client.stop_instances(InstanceIds=[stopped])
        cloud.fleet.add(alive)
        dead[cloud.fleet.add(stopped)] = name
    outcome = cloud.cycle(EC2_TARGETS=TARGETS, BREAKER_MAX_DEAD_FRACTION="1")
    outcome.assert_only_flipped(dict.fromkeys(dead, "stopped"))
    assert {row["workspace_id"]: row["payload"]["target"] for row in outcome.after.events} == dead
    assert (outcome.report["running"], outcome.report["targets_failed"], outcome.report["targets_empty"]) == (4, [], [])
    assert len([call for call in moto.calls if call.action == "AssumeRole"]) == 2  # the test's and the handler's


def test_without_the_list_instances_elsewhere_look_absent_and_are_listed_by_a_dry_run(
    cloud: Stage, elsewhere: dict[str, Any]
) -> None:
    cloud.add_all(2, "running")
    theirs = cloud.fleet.add(launched(elsewhere[f"{WEST}/{ACCOUNT}"], 1)[0])
    outcome = cloud.cycle({"mode": "dry-run"})
    assert (outcome.report["running"], outcome.report["absent"]) == (2, 1)
    assert [line["workspace_id"] for line in outcome.lines("instance absent")] == [theirs]
    assert cloud.cycle({"mode": "dry-run"}, EC2_TARGETS=TARGETS).report["running"] == 3
