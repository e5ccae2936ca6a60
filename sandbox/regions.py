"""EC2 in several Regions and accounts, and STS, behind one address. A request is signed for one of them."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from urllib.parse import parse_qsl

from sandbox.ec2 import AWS_ENVIRONMENT, CREDENTIALS, REGION
from sandbox.http_server import Answer, HttpStandIn, Reply, Request
from sandbox.limited_ec2 import ApiError, LimitedEc2
from sandbox.script import Script

HOME = "home"
# As in AWS's signatures, version 4.
_CREDENTIAL = re.compile(
    r"Credential=(?P<key>[^/]+)/[0-9]{8}/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9]+)/aws4_request"
)
_XML = {"Content-Type": "text/xml"}
_LASTS = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class AssumeRole:
    """A call to STS, with its parameters as sent, and the Region of the endpoint."""

    role_arn: str
    external_id: str | None
    session_name: str
    region: str


@dataclass(slots=True)
class Trust:
    """A role that may be assumed, with an external id or (None) without."""

    external_id: str | None = None


@dataclass(slots=True)
class Issued:
    """Credentials: of which account, and whether AWS takes them for expired."""

    account: str
    expired: bool = field(default=False)


class Regions(HttpStandIn):
    """Accounts by Region, and the roles in them.

    `targets` has the account of each Region and account id (HOME: the function's own). `roles` are those that trust us,
    by their ARNs. `assumed` lists the calls to STS, `script` rules for them. Credentials last for `lasts`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.targets: dict[tuple[str, str], LimitedEc2] = {}
        self.roles: dict[str, Trust] = {}
        self.assumed: list[AssumeRole] = []
        self.issued: dict[str, Issued] = {}
        self.script: Script[AssumeRole] = Script()
        self.lasts = _LASTS

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process calls these APIs."""
        return {**AWS_ENVIRONMENT, "AWS_ENDPOINT_URL_EC2": self.url, "AWS_ENDPOINT_URL_STS": self.url}

    def add(self, region: str = REGION, account: str = HOME, *, first: int | None = None) -> LimitedEc2:
        """Return the account in a Region, whose instances have ids of their own, or are numbered from `first`."""
        ec2 = LimitedEc2(first=1 + 1_000_000 * len(self.targets) if first is None else first)
        self.targets[region, account] = ec2
        return ec2

    def expire(self) -> None:
        """Let AWS refuse all credentials that it has given so far."""
        for one in self.issued.values():
            one.expired = True

    def handle(self, request: Request) -> Reply:
        """Return STS's answer, or that of the account that the request is signed for."""
        signed = _CREDENTIAL.search(request.headers.get("authorization", ""))
        if signed is None:
            return ApiError("MissingAuthenticationToken", "It is not signed.", HTTPStatus.FORBIDDEN).as_answer()
        key, region, service = signed.group("key", "region", "service")
        if service == "sts":
            return self._assume(dict(parse_qsl(request.body.decode())), region)
        issued = self.issued.get(key)
        if issued is not None and issued.expired:
            return ApiError("RequestExpired", "Request has expired.").as_answer()
        account = HOME if key == CREDENTIALS["AWS_ACCESS_KEY_ID"] else issued.account if issued else ""
        ec2 = self.targets.get((region, account))
        if ec2 is None:
            return ApiError("AuthFailure", "The credentials are not valid here.", HTTPStatus.UNAUTHORIZED).as_answer()
        return ec2.handle(request)

    def _assume(self, parameters: Mapping[str, str], region: str) -> Reply:
        call = AssumeRole(parameters["RoleArn"], parameters.get("ExternalId"), parameters["RoleSessionName"], region)
        self.assumed.append(call)
        if (scripted := self.script.play(call)) is not None:
            return scripted
        trust = self.roles.get(call.role_arn)
        if trust is None or trust.external_id != call.external_id:
            return _sts_error("AccessDenied", f"Not authorized to perform: sts:AssumeRole on {call.role_arn}", 403)
        key = f"ASIA{len(self.issued):016d}"
        self.issued[key] = Issued(account=call.role_arn.split(":")[4])
        expires = (datetime.now(UTC) + self.lasts).strftime("%Y-%m-%dT%H:%M:%SZ")
        credentials = (
            f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>"
            f"<SessionToken>{TOKEN}</SessionToken><Expiration>{expires}</Expiration>"
        )
        body = (
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
            f"<Credentials>{credentials}</Credentials></AssumeRoleResult>"
            f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata></AssumeRoleResponse>"
        )
        return Answer(HTTPStatus.OK, body.encode(), _XML)


# What nobody may find in a log.
SECRET, TOKEN = "assumed/secret+key", "assumed/session+token"


def _sts_error(code: str, message: str, status: int) -> Answer:
    body = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
        f"<RequestId>{uuid.uuid4()}</RequestId></ErrorResponse>"
    )
    return Answer(status, body.encode(), _XML)
