"""AWS calls through boto3 that end by their deadline.

botocore's own timeouts apply to single socket operations, and are fixed when a client is made. Its documented
`before-send` event lets a signed request take another way out: here, `net.bounded`.
https://docs.aws.amazon.com/boto3/latest/guide/events.html
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from types_boto3_ec2 import EC2Client
    from types_boto3_rds import RDSClient
    from types_boto3_secretsmanager import SecretsManagerClient

# A thousand instances have 3.4 MB, and one call asks for 200. A secret has up to 64 KiB, six times that in JSON.
BODY_LIMIT = 4 * 1024 * 1024
# One attempt: the caller decides what to retry, and when.
_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 1})

_Service = Literal["ec2", "rds", "secretsmanager"]
# https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
_ENDPOINT_OF_ALL = "AWS_ENDPOINT_URL"
_ENDPOINT_VARIABLE: Mapping[_Service, str] = {
    "ec2": "AWS_ENDPOINT_URL_EC2",
    "rds": "AWS_ENDPOINT_URL_RDS",
    "secretsmanager": "AWS_ENDPOINT_URL_SECRETS_MANAGER",
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
        # No time is read here. Over some that are none, botocore's parser would think for minutes.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        # For the whole session, so that no client that botocore makes on its own (STS) goes past them.
        own: dict[str, Callable[..., Any]] = {"before-send": self._send, limits.EVENT: limits.check}
        for event, handler in {**own, **handlers}.items():
            session.register(event, handler)
        self._session = boto3.session.Session(botocore_session=session)
        self._clients: dict[str, Any] = {}
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

    def ec2(self) -> "EC2Client":
        """Return the EC2 client."""
        return cast("EC2Client", self._client("ec2"))

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

    def _client(self, service: _Service) -> Any:
        with self._making:
            if service not in self._clients:
                self._clients[service] = self._made(service)
            return self._clients[service]

    def _made(self, service: _Service) -> Any:
        try:
            return self._session.client(service, config=_CONFIG)
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
