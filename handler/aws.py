"""AWS calls over the bounded transport: whatever a call does, it ends by its deadline.

botocore's own timeouts are per socket operation and fixed when a client is made. Its documented
`before-send` event lets a signed request go out by another way, which here is `Transport`.
https://docs.aws.amazon.com/boto3/latest/guide/events.html

boto3 itself is not imported: over botocore's clients it adds resources and S3's transfers, whose import takes
as long as botocore's own.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.loaders import Loader

from handler import listing
from handler.deadline import Deadline
from handler.errors import SettingsError
from handler.transport import Transport

# botocore's description of EC2, cut down to what is asked and read here, and its list of endpoints, cut down to
# SERVICES by `make models`. The whole ones take longer to load than everything else together, and botocore parses
# all that a description names.
MODELS = Path(__file__).parent / "aws_models"
# What is called here, and by botocore when a developer's profile says to get credentials elsewhere.
SERVICES = ["ec2", "rds", "secretsmanager", "signin", "sso", "sso-oidc", "sts"]
BODY_LIMIT = 64 * 1024 * 1024


class Aws:
    """Clients by service, made when first used: making one costs more than a call."""

    def __init__(self, transport: Transport) -> None:
        """Send every call by `transport`."""
        self._transport = transport
        self._session = botocore.session.Session()
        self._session.register_component("data_loader", _Loader([str(MODELS)]))
        # Lambda sets both variables; botocore reads the second only.
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region:
            self._session.set_config_variable("region", region)
        self._clients: dict[str, Any] = {}
        self._making = threading.Lock()
        self._call = threading.local()

    def require_region(self) -> None:
        """Raise SettingsError if nothing says which Region's EC2 to ask."""
        if self._session.get_config_variable("region") is None:
            raise SettingsError("AWS_REGION: not set; expected the Region of the instances, as PROBE is ec2")

    def client(self, service: str) -> Any:
        """Return the service's client, whose calls are bounded only when made by `call`."""
        with self._making:
            if service not in self._clients:
                # One attempt: what is tried again, and when, is the caller's to say.
                config = Config(retries={"mode": "standard", "total_max_attempts": 1})
                client = self._session.create_client(service, config=config)
                client.meta.events.register("before-send", self._send)  # type: ignore[arg-type]
                client.meta.events.register(listing.EVENT, listing.read_instead)
                self._clients[service] = client
            return self._clients[service]

    def call(self, service: str, operation: str, deadline: Deadline, **parameters: Any) -> Any:
        """Make one call and return its parsed answer.

        Raises what botocore raises, and TransportError.
        """
        client = self.client(service)
        self._call.deadline = deadline
        return getattr(client, operation)(**parameters)

    def secret_text(self, arn: str, deadline: Deadline) -> str:
        """Return the text of a secret; raises like `call`."""
        answer = self.call("secretsmanager", "get_secret_value", deadline, SecretId=arn)
        return str(answer.get("SecretString", ""))

    def database_token(self, host: str, port: int, user: str) -> str:
        """Return an RDS IAM token in place of a password; it is made here, without a call."""
        token = self.client("rds").generate_db_auth_token(DBHostname=host, Port=port, DBUsername=user)
        return str(token)

    def close(self) -> None:
        """Close the idle connections; the clients stay."""
        self._transport.close()

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        answer = self._transport.call(
            request.method,
            request.url,
            headers=dict(request.headers.items()),
            deadline=self._call.deadline,
            body_limit=BODY_LIMIT,
            body=request.body,
        )
        return AWSResponse(request.url, answer.status, dict(answer.headers), _Body(answer.body))  # type: ignore[arg-type]


class _Loader(Loader):
    """Finds descriptions of services, the project's own first, without looking into the directories of all 400."""

    def list_available_services(self, type_name: str) -> list[str]:  # noqa: ARG002 - all are of each type
        return SERVICES

    def is_builtin_path(self, path: str) -> bool:
        # The project's endpoints are botocore's own, so they are no reason to pass over its rules.
        return path.startswith(str(MODELS)) or super().is_builtin_path(path)


class _Body:
    """What botocore reads an answer from."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self) -> Iterator[bytes]:
        yield self._content
