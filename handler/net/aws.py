"""AWS calls through boto3 that end by their deadline.

botocore's own timeouts apply to single socket operations, and are fixed when a client is made. Its documented
`before-send` event lets a signed request take another way out: here, `net.bounded`.
https://docs.aws.amazon.com/boto3/latest/guide/events.html
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import boto3.session
import botocore.exceptions
import botocore.session
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.errors import SettingsError
from handler.net import limits
from handler.net.bounded import BoundedPools, CallError
from handler.net.roles import Assumed

if TYPE_CHECKING:
    from types_boto3_ec2 import EC2Client
    from types_boto3_rds import RDSClient
    from types_boto3_secretsmanager import SecretsManagerClient

# A thousand instances have 3.4 MB, and one call asks for 200. A secret has up to 64 KiB, six times that in JSON.
BODY_LIMIT = 4 * 1024 * 1024
# One attempt: the caller decides what to retry, and when.
_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 1})

# How other accounts see us in their logs.
SESSION_NAME = "instance-state-reconciler"
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z")

_Service = Literal["ec2", "rds", "secretsmanager", "sts"]
# https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
_ENDPOINT_OF_ALL = "AWS_ENDPOINT_URL"
_ENDPOINT_VARIABLE: Mapping[_Service, str] = {
    "ec2": "AWS_ENDPOINT_URL_EC2",
    "rds": "AWS_ENDPOINT_URL_RDS",
    "secretsmanager": "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "sts": "AWS_ENDPOINT_URL_STS",
}


@dataclass(slots=True)
class Call:
    """A call inside `within`: its deadline, and when the head of its answer arrived, by the deadline's clock."""

    deadline: Deadline
    answered_at: float = 0.0


class _Running(threading.local):
    """The call that is running on this thread."""

    call: Call | None = None


class Aws:
    """AWS clients, each made on first use, because making one costs more than a call.

    Their calls are bounded, and may only be made inside `within`. They raise botocore's exceptions and CallError.
    Making a client raises SettingsError if its endpoint's variable is malformed.
    """

    def __init__(self, pools: BoundedPools, *, models: Path, handlers: Mapping[str, Callable[..., None]]) -> None:
        """Send every call through `pools`. Service models in the directory `models` replace botocore's own.

        `handlers` are registered for botocore's events, by the event's name.
        """
        self._pools = pools
        session = botocore.session.Session()
        session.set_config_variable("data_path", str(models))
        # Lambda sets both variables; botocore reads only the second.
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region:
            session.set_config_variable("region", region)
        # The Region's own STS: in a private subnet it may be the only one, and its tokens are good in every Region.
        session.set_config_variable("sts_regional_endpoints", "regional")
        # No time is read here. Over some that are none, botocore's parser would think for minutes.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        # For the whole session, so that no client that botocore makes on its own (STS) goes past them.
        own: dict[str, Callable[..., Any]] = {"before-send": self._send, limits.EVENT: limits.check}
        for event, handler in {**own, **handlers}.items():
            session.register(event, handler)
        self._session = boto3.session.Session(botocore_session=session)
        self._clients: dict[tuple[_Service, str | None], Any] = {}
        self._making = threading.Lock()
        self._running = _Running()

    def region(self) -> str:
        """Return the Region of the instances. Raises SettingsError if none is configured."""
        region: str | None = self._session.region_name
        if region is None:
            raise SettingsError("AWS_REGION: not set; expected the Region of the instances, as PROBE is ec2")
        return region

    @contextlib.contextmanager
    def within(self, deadline: Deadline) -> Iterator[Call]:
        """Make every call on this thread end by the deadline, until the `with` block ends.

        Yields what tells when the latest answer arrived. Reading a large one can take seconds more.
        """
        outer, self._running.call = self._running.call, Call(deadline)
        try:
            yield self._running.call
        finally:
            self._running.call = outer

    def ec2(self, region: str | None = None) -> "EC2Client":
        """Return the EC2 client of a Region, by default the function's own."""
        return cast("EC2Client", self._client("ec2", region))

    def assumed(self, region: str, role_arn: str, external_id: str | None) -> Assumed:
        """Assume a role; return a new EC2 client of a Region with its credentials. Call it inside `within`.

        Raises botocore's exceptions and CallError, and KeyError or ValueError for an answer that makes no sense.
        """
        named = {} if external_id is None else {"ExternalId": external_id}
        answer = self._client("sts").assume_role(RoleArn=role_arn, RoleSessionName=SESSION_NAME, **named)
        given = answer["Credentials"]
        keys = {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
        }
        expires = given["Expiration"]
        if not _TIME.fullmatch(expires):
            raise ValueError("no time of expiry")
        with self._making:
            return Assumed(self._made("ec2", region, keys), datetime.fromisoformat(expires).timestamp())

    def secrets_manager(self) -> "SecretsManagerClient":
        """Return the Secrets Manager client."""
        return cast("SecretsManagerClient", self._client("secretsmanager"))

    def rds(self) -> "RDSClient":
        """Return the RDS client."""
        return cast("RDSClient", self._client("rds"))

    def secret_text(self, arn: str, deadline: Deadline) -> str:
        """Return the text of the secret with this ARN. Raises botocore's exceptions and CallError."""
        with self.within(deadline):
            answer = self.secrets_manager().get_secret_value(SecretId=arn)
        if "SecretString" not in answer and "SecretBinary" not in answer:  # then it is not from Secrets Manager
            raise CallError(Cause.GARBLED_ANSWER, sent=True)
        return answer.get("SecretString", "")

    def database_token(self, host: str, port: int, user: str) -> str:
        """Return an RDS IAM token to use as the password. It is signed here, without a call."""
        return self.rds().generate_db_auth_token(DBHostname=host, Port=port, DBUsername=user)

    def close(self) -> None:
        """Close the idle connections; the clients stay."""
        self._pools.clear()

    def _client(self, service: _Service, region: str | None = None) -> Any:
        with self._making:
            if (service, region) not in self._clients:
                self._clients[service, region] = self._made(service, region, {})
            return self._clients[service, region]

    def _made(self, service: _Service, region: str | None, keys: Mapping[str, str]) -> Any:
        session: Any = self._session  # its stubs have a signature for each service
        try:
            return session.client(service, region_name=region, config=_CONFIG, **keys)
        except botocore.exceptions.BotoCoreError:  # some are ValueErrors, too
            raise
        except ValueError:
            variable = _ENDPOINT_VARIABLE[service]
            variable = variable if os.environ.get(variable) else _ENDPOINT_OF_ALL
            raise SettingsError(f"{variable}: not usable; expected an http(s) address") from None

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        call = self._running.call
        if call is None:
            raise RuntimeError("a call to AWS outside `within` has no deadline")
        answer = self._pools.call(
            request.method,
            request.url,
            headers=dict(request.headers.items()),
            deadline=call.deadline,
            body_limit=BODY_LIMIT,
            body=request.body,
        )
        call.answered_at = answer.began_at
        return AWSResponse(request.url, answer.status, dict(answer.headers), _Body(answer.body))  # type: ignore[arg-type]


class _Body:
    """The raw response, as far as botocore uses it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self) -> Iterator[bytes]:
        yield self._content
