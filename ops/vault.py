"""The secrets that a deploy makes. Each has a tag with its stack's name; others are never touched."""

import json
import secrets
from collections.abc import Mapping

import botocore.exceptions

from ops.account import Account, code_of
from ops.console import OpsError

TAG = "instance-state-reconciler"
# Undone by `aws secretsmanager restore-secret`, or by the next deploy.
RECOVERY_DAYS = 7
PARTS = ("database", "owner", "platform")
_PASSWORD_BYTES = 32


def name_of(stack: str, part: str) -> str:
    """Return the name of a stack's secret."""
    return f"{stack}/{part}"


def put(account: Account, stack: str, part: str, content: Mapping[str, object]) -> str:
    """Create a secret, or give it this content; return its ARN."""
    client, name = account.client("secretsmanager"), name_of(stack, part)
    text = json.dumps(content)
    if find(account, stack, part, restore=True) is None:
        created = client.create_secret(
            Name=name,
            SecretString=text,
            Description="Made by `make deploy` of the instance-state reconciler.",
            Tags=[{"Key": TAG, "Value": stack}],
        )
        return str(created["ARN"])
    return str(client.put_secret_value(SecretId=name, SecretString=text)["ARN"])


def generate(account: Account, stack: str, user: str) -> str:
    """Return the ARN of the secret with the role's password: the one that is there, or a new one."""
    arn = find(account, stack, "database", restore=True)
    if arn is not None:
        return arn
    return put(account, stack, "database", {"username": user, "password": secrets.token_urlsafe(_PASSWORD_BYTES)})


def find(account: Account, stack: str, part: str, *, restore: bool = False) -> str | None:
    """Return the ARN of a stack's secret, or None. Raises OpsError if the name is somebody else's."""
    client, name = account.client("secretsmanager"), name_of(stack, part)
    try:
        found = client.describe_secret(SecretId=name)
    except botocore.exceptions.ClientError as error:
        if code_of(error) == "ResourceNotFoundException":
            return None
        raise
    if {"Key": TAG, "Value": stack} not in found.get("Tags", []):
        raise OpsError(
            f"the secret {name} is there already, and `make deploy` did not make it: name it as a parameter,"
            f" give it the tag {TAG}={stack}, or choose another stack name"
        )
    if found.get("DeletedDate"):
        if not restore:
            return None
        client.restore_secret(SecretId=name)
    return str(found["ARN"])


def delete(account: Account, stack: str) -> list[str]:
    """Delete the stack's secrets, to be gone for good in some days; return their names."""
    gone = []
    for part in PARTS:
        if find(account, stack, part) is not None:
            account.client("secretsmanager").delete_secret(
                SecretId=name_of(stack, part), RecoveryWindowInDays=RECOVERY_DAYS
            )
            gone.append(name_of(stack, part))
    return gone
