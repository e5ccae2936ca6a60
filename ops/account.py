"""The AWS account: clients, and what went wrong in a call, in a sentence."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3.session
import botocore.exceptions
from botocore.config import Config

from ops.console import OpsError

# A function runs for a minute at most, and must not be invoked twice.
_INVOKE = Config(read_timeout=90, retries={"total_max_attempts": 1})
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException")


class Account:
    """One account and Region. Clients are made once, when they are needed."""

    def __init__(self, region: str = "") -> None:
        """Use this Region, or the one that the environment or the profile names.

        AWS_REGION wins, as for the AWS CLI: boto3 itself reads AWS_DEFAULT_REGION alone.
        """
        region = region or os.environ.get("AWS_REGION", "")
        try:
            self._session: Any = boto3.session.Session(region_name=region or None)
        except botocore.exceptions.ProfileNotFound as error:
            raise OpsError(f"AWS_PROFILE: {error}") from error
        self.region: str = self._session.region_name or ""
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """Return the client of a service."""
        if service not in self._clients:
            self._clients[service] = self._session.client(service, config=_INVOKE if service == "lambda" else None)
        return self._clients[service]

    def identity(self) -> tuple[str, str, str]:
        """Return the account's number, its partition, and the ARN of whoever is signed in."""
        caller = self.client("sts").get_caller_identity()
        return caller["Account"], caller["Arn"].split(":")[1], caller["Arn"]

    def pages(self, service: str, operation: str, key: str, **arguments: Any) -> list[Any]:
        """Return the items of all pages of a listing."""
        paginator = self.client(service).get_paginator(operation)
        return [item for page in paginator.paginate(**arguments) for item in page[key]]


@contextmanager
def explaining() -> Iterator[None]:
    """Turn botocore's errors into ours. A denied call is named as IAM names it."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise OpsError(_sentence(error)) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.TokenRetrievalError) as error:
        raise OpsError(
            f"nobody is signed in to AWS ({error}). Sign in as with the AWS CLI, or set AWS_PROFILE"
        ) from error
    except botocore.exceptions.BotoCoreError as error:
        raise OpsError(f"AWS cannot be asked: {error}") from error


def code_of(error: botocore.exceptions.ClientError) -> str:
    """Return the error's code."""
    return str(error.response.get("Error", {}).get("Code", "?"))


def _sentence(error: botocore.exceptions.ClientError) -> str:
    code, said = code_of(error), error.response.get("Error", {}).get("Message", "")
    if code in _EXPIRED:
        return f"the sign-in to AWS is no longer valid ({code}): sign in again"
    if code in _DENIED or code.endswith("AccessDenied"):
        return (
            f"AWS denied {error.operation_name}: {said or 'no reason given'} (ops/deployer-policy.json has every right"
            " that is needed)"
        )
    return f"AWS refused {error.operation_name}: {said or 'no reason given'} ({code})"
