"""Another Region of our account, and another account, as moto has them: real signatures, roles and answers of STS."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import boto3
from moto.backends import get_backend

from sandbox.ec2 import ACCOUNT_ID, CREDENTIALS, REGION, MotoEc2

WEST, ACCOUNT = "eu-west-1", "210987654321"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/reconciler"
# The setting EC2_TARGETS for all of it.
TARGETS = json.dumps(
    [{"region": REGION}, {"region": WEST}, {"region": WEST, "role_arn": ROLE, "external_id": "an:external/id"}]
)
_IMAGE_ID = "ami-12c6146b"


@contextmanager
def elsewhere(moto: MotoEc2) -> Iterator[dict[str, Any]]:
    """Yield EC2 clients of the other Region, by the names of the targets: of our own account, and of the other one."""
    at: Any = partial(boto3.client, endpoint_url=moto.url)
    own = {name.lower(): CREDENTIALS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    given = at("sts", region_name=REGION, **own).assume_role(RoleArn=ROLE, RoleSessionName="test")["Credentials"]
    other = {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }
    try:
        yield {WEST: at("ec2", region_name=WEST, **own), f"{WEST}/{ACCOUNT}": at("ec2", region_name=WEST, **other)}
    finally:
        for account in (ACCOUNT_ID, ACCOUNT):  # moto's own reset reloads its images
            get_backend("ec2")[account][WEST].reservations.clear()


def launched(client: Any, count: int) -> list[str]:
    """Launch that many instances there; return their ids."""
    answer = client.run_instances(ImageId=_IMAGE_ID, InstanceType="t4g.micro", MinCount=count, MaxCount=count)
    return [one["InstanceId"] for one in answer["Instances"]]
