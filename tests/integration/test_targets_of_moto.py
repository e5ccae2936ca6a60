"""Several Regions and accounts as moto has them: real signatures, real roles, real answers of STS."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import boto3
import pytest
from moto.backends import get_backend

from sandbox.ec2 import ACCOUNT_ID, REGION, MotoEc2
from tests.support.stage import Stage

WEST, ACCOUNT = "eu-west-1", "210987654321"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/reconciler"
TARGETS = json.dumps(
    [{"region": REGION}, {"region": WEST}, {"region": WEST, "role_arn": ROLE, "external_id": "an:external/id"}]
)
_IMAGE_ID = "ami-12c6146b"


@pytest.fixture
def elsewhere(moto: MotoEc2) -> Iterator[dict[str, Any]]:
    """EC2 clients of the other Region, by the names of the targets: of our own account, and of the other one."""
    at: Any = partial(boto3.client, endpoint_url=moto.url)
    own = {"aws_access_key_id": "sandbox", "aws_secret_access_key": "sandbox"}
    given = at("sts", region_name=REGION, **own).assume_role(RoleArn=ROLE, RoleSessionName="test")["Credentials"]
    other = {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }
    yield {WEST: at("ec2", region_name=WEST, **own), f"{WEST}/{ACCOUNT}": at("ec2", region_name=WEST, **other)}
    for account in (ACCOUNT_ID, ACCOUNT):  # moto's own reset reloads its images
        get_backend("ec2")[account][WEST].reservations.clear()


def launched(client: Any, count: int) -> list[str]:
    answer = client.run_instances(ImageId=_IMAGE_ID, InstanceType="t4g.micro", MinCount=count, MaxCount=count)
    return [one["InstanceId"] for one in answer["Instances"]]


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
