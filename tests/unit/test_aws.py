"""AWS calls have the same endpoints and signatures as with plain botocore, and obey their deadline."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from handler.deadline import Deadline
from handler.errors import SettingsError
from handler.net.aws import Aws
from handler.net.bounded import Answer, BoundedPools
from handler.net.secrets import Secrets
from handler.probes.ec2 import status_pages
from handler.process import MODELS
from sandbox import ec2_xml
from sandbox.ec2_xml import Instance

SOON = Deadline(10)
CALLS: Mapping[str, tuple[str, dict[str, str]]] = {
    "ec2": ("describe_availability_zones", {}),
    "secretsmanager": ("get_secret_value", {"SecretId": "arn:of-one"}),
}


HANDLERS = {status_pages.EVENT: status_pages.read_instead}


class NoAnswerError(Exception):
    pass


class Recorder(BoundedPools):
    """Records where a request goes, which region and service it is signed for, and within which deadline."""

    def __init__(self) -> None:
        super().__init__(connections=1)
        self.sent: tuple[str, str] | None = None
        self.deadline: Deadline | None = None

    def call(self, method: str, url: str, *, headers: Mapping[str, Any], **options: Any) -> Answer:
        del method
        self.deadline = options.get("deadline")
        self.note(url, headers)
        raise NoAnswerError

    def note(self, url: str, headers: Mapping[str, Any]) -> None:
        authorization = headers["Authorization"]
        text = authorization.decode() if isinstance(authorization, bytes) else authorization
        credential = text.partition("Credential=")[2].partition(",")[0]  # key/date/region/service/aws4_request
        self.sent = (url, "/".join(credential.split("/")[2:]))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Set what a Lambda function has, and hide the developer's own files and variables."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    return monkeypatch


def aws_over(pools: BoundedPools) -> Aws:
    return Aws(pools, models=MODELS, handlers=HANDLERS)


def call(aws: Aws, service: str) -> None:
    client: Any = aws.ec2() if service == "ec2" else aws.secrets_manager()
    operation, parameters = CALLS[service]
    getattr(client, operation)(**parameters)


def sent_by_the_handler(service: str) -> tuple[str, str] | None:
    recorder = Recorder()
    aws = aws_over(recorder)
    with aws.within(SOON), pytest.raises(NoAnswerError):
        call(aws, service)
    return recorder.sent


def sent_by_botocore(service: str, region: str) -> tuple[str, str] | None:
    recorder = Recorder()
    operation, parameters = CALLS[service]
    client = botocore.session.Session().create_client(service, region, config=Config(retries={"total_max_attempts": 1}))

    def note(request: Any, **_: Any) -> None:
        recorder.call(request.method, request.url, headers=request.headers)

    client.meta.events.register("before-send", note)
    with pytest.raises(NoAnswerError):
        getattr(client, operation)(**parameters)
    return recorder.sent


# --- which endpoint ---


@pytest.mark.parametrize("service", CALLS)
@pytest.mark.parametrize("variant", ["", "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"])
@pytest.mark.parametrize("region", ["eu-central-1", "us-gov-west-1", "cn-north-1", "eu-moon-1"])
def test_a_call_goes_where_botocore_sends_it(
    environment: pytest.MonkeyPatch, service: str, variant: str, region: str
) -> None:
    environment.setenv("AWS_REGION", region)
    if variant:
        environment.setenv(variant, "true")
    sent = sent_by_the_handler(service)
    assert sent == sent_by_botocore(service, region)
    assert sent is not None
    assert region in sent[0]


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2"])
def test_a_variables_endpoint_is_used(environment: pytest.MonkeyPatch, variable: str) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    environment.setenv(variable, "https://ec2.example:8443")
    assert sent_by_the_handler("ec2") == ("https://ec2.example:8443/", "eu-central-1/ec2/aws4_request")


@pytest.mark.parametrize("service", ["ec2", "secrets_manager", "rds", "sts"])
@pytest.mark.parametrize("of_all", [True, False])
def test_a_malformed_endpoint_is_refused_by_its_variables_name(
    environment: pytest.MonkeyPatch, service: str, of_all: bool
) -> None:
    variable = "AWS_ENDPOINT_URL" if of_all else f"AWS_ENDPOINT_URL_{service.upper()}"
    environment.setenv("AWS_REGION", "eu-central-1")
    environment.setenv(variable, "no address")
    aws = aws_over(Recorder())
    make: Any = partial(aws.assumed, "eu-west-1", ROLE, None) if service == "sts" else getattr(aws, service)
    with pytest.raises(SettingsError, match=f"{variable}: not usable"):
        make()


def test_a_malformed_endpoint_for_secrets_is_not_taken_for_a_malformed_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    environment.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "no address")
    secrets = Secrets(aws_over(Recorder()).secret_text)
    with pytest.raises(SettingsError, match="AWS_ENDPOINT_URL_SECRETS_MANAGER: not usable"):
        secrets.read("arn:of-one", "CP_SECRET_ARN", SOON)


# --- which region, which credentials ---


def region_of(sent: tuple[str, str] | None) -> str:
    assert sent is not None
    return sent[1].split("/")[0]


def test_lambdas_region_wins_over_the_default_one_and_the_profiles(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-west-3\n")
    assert region_of(sent_by_the_handler("ec2")) == "eu-west-3"
    environment.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert region_of(sent_by_the_handler("ec2")) == "eu-west-2"
    environment.setenv("AWS_REGION", "eu-west-1")
    assert region_of(sent_by_the_handler("ec2")) == "eu-west-1"


def test_without_a_region_the_settings_are_refused(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="AWS_REGION: not set"):
        aws_over(Recorder()).region()
    environment.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert aws_over(Recorder()).region() == "eu-central-1"


@pytest.mark.parametrize("service", ["ec2", "rds", "secretsmanager", "signin", "sso", "sso-oidc", "sts"])
def test_every_service_behind_a_profiles_credentials_has_a_client(
    environment: pytest.MonkeyPatch, service: Any
) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    client = aws_over(Recorder())._session.client(service)  # noqa: SLF001 - botocore asks for it where nobody sees it
    assert client.meta.region_name == "eu-central-1"


def test_a_database_token_is_for_the_functions_region(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "cn-north-1")
    token = aws_over(Recorder()).database_token("db.example", 5432, "reconciler")
    assert token.startswith("db.example:5432/?Action=connect&DBUser=reconciler&")
    assert "%2Fcn-north-1%2Frds-db%2Faws4_request" in token


# --- other Regions, roles in other accounts ---

ROLE = "arn:aws:iam::210987654321:role/reconciler"
CREDENTIALS = {
    "AccessKeyId": "ASIAOTHER",
    "SecretAccessKey": "other",
    "SessionToken": "a+token",
    "Expiration": "2026-11-28T12:34:56Z",
}


class Sts(Recorder):
    """Answers STS with these credentials, and nobody else."""

    def __init__(self, given: Mapping[str, str]) -> None:
        super().__init__()
        self.given = given
        self.asked: list[dict[str, str]] = []
        self.asked_at: list[tuple[str, str] | None] = []
        self.headers: Mapping[str, Any] = {}

    def call(self, method: str, url: str, *, headers: Mapping[str, Any], **options: Any) -> Answer:
        if "AssumeRole" not in str(options["body"]):
            self.headers = headers
            return super().call(method, url, headers=headers, **options)
        self.note(url, headers)
        self.asked_at.append(self.sent)
        self.asked.append(dict(parse_qsl(options["body"])))
        given = "".join(f"<{name}>{value}</{name}>" for name, value in self.given.items())
        body = f"<R><AssumeRoleResult><Credentials>{given}</Credentials></AssumeRoleResult></R>"
        return Answer(200, {}, body.encode())


def test_each_region_has_a_client_of_its_own(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    recorder = Recorder()
    aws = aws_over(recorder)
    for region in ("eu-west-1", "us-east-1", "eu-west-1"):
        with aws.within(SOON), pytest.raises(NoAnswerError):
            aws.ec2(region).describe_availability_zones()
        assert recorder.sent == (f"https://ec2.{region}.amazonaws.com/", f"{region}/ec2/aws4_request")
    assert aws.ec2("eu-west-1") is aws.ec2("eu-west-1")


@pytest.mark.parametrize("external_id", [None, "an:external/id"])
def test_a_role_is_assumed_at_the_functions_own_region_and_used_in_the_targets(
    environment: pytest.MonkeyPatch, external_id: str | None
) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    sts = Sts(CREDENTIALS)
    aws = aws_over(sts)
    with aws.within(SOON):
        assumed = aws.assumed("eu-west-1", ROLE, external_id)
        with pytest.raises(NoAnswerError):
            assumed.client.describe_availability_zones()
    assert sts.asked_at == [("https://sts.eu-central-1.amazonaws.com/", "eu-central-1/sts/aws4_request")]
    (asked,) = sts.asked
    assert (asked["RoleArn"], asked.get("ExternalId")) == (ROLE, external_id)
    assert asked["RoleSessionName"] == "instance-state-reconciler"
    assert sts.sent == ("https://ec2.eu-west-1.amazonaws.com/", "eu-west-1/ec2/aws4_request")
    assert b"Credential=ASIAOTHER/" in sts.headers["Authorization"]
    assert sts.headers["X-Amz-Security-Token"] == b"a+token"
    assert assumed.expires_at == datetime(2026, 11, 28, 12, 34, 56, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("missing", CREDENTIALS)
def test_credentials_that_lack_a_part_are_none(environment: pytest.MonkeyPatch, missing: str) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    aws = aws_over(Sts({name: value for name, value in CREDENTIALS.items() if name != missing}))
    with aws.within(SOON), pytest.raises(KeyError):
        aws.assumed("eu-west-1", ROLE, None)


@pytest.mark.parametrize("expires", ["", "soon", "9" * 100_000, "2026-13-28T12:34:56Z", "2026-11-28"])
def test_credentials_without_a_time_of_expiry_are_none(environment: pytest.MonkeyPatch, expires: str) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    aws = aws_over(Sts(CREDENTIALS | {"Expiration": expires}))
    with aws.within(SOON), pytest.raises(ValueError, match=r"expiry|month"):
        aws.assumed("eu-west-1", ROLE, None)


# --- the deadline ---


@pytest.mark.parametrize("service", CALLS)
def test_a_call_has_the_deadline_that_it_is_made_within(environment: pytest.MonkeyPatch, service: str) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    recorder = Recorder()
    aws = aws_over(recorder)
    for deadline in (Deadline(10), Deadline(20)):
        with aws.within(deadline), pytest.raises(NoAnswerError):
            call(aws, service)
        assert recorder.deadline is deadline


def test_a_secret_is_fetched_within_its_deadline(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    recorder = Recorder()
    with pytest.raises(NoAnswerError):
        aws_over(recorder).secret_text("arn:of-one", SOON)
    assert recorder.deadline is SOON


# --- status pages ---


class Answering(BoundedPools):
    """Gives one answer to every call."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(connections=1)
        self.answer = Answer(status, {}, body, began_at=123.0)

    def call(self, *_: Any, **__: Any) -> Answer:
        return self.answer


PAGE = ec2_xml.statuses([Instance("i-01234567", "running", "eu-central-1a", 1)], "token-2", request_id="r-1")
STATUS = {"InstanceId": "i-01234567", "InstanceState": {"Name": "running"}, "SystemStatus": {"Status": "ok"}}
LISTED = {"InstanceStatuses": [STATUS]}


def answered(operation: str, status: int, body: bytes, **parameters: Any) -> Any:
    """Return what the EC2 client makes of an answer."""
    aws = aws_over(Answering(status, body))
    with aws.within(SOON):
        return getattr(aws.ec2(), operation)(**parameters)


def test_a_call_knows_when_its_answer_arrived(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    aws = aws_over(Answering(200, PAGE))
    with aws.within(SOON) as outer, aws.within(SOON) as call:
        aws.ec2().describe_instance_status(MaxResults=1000)
    assert (call.answered_at, outer.answered_at) == (123.0, 0.0)


@pytest.fixture
def pages_read(environment: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of what is read without botocore."""
    environment.setenv("AWS_REGION", "eu-central-1")
    read: list[Any] = []
    read_page = status_pages.read

    def recorded(page: bytes) -> Any:
        read.append(read_page(page))
        return read[-1]

    environment.setattr(status_pages, "read", recorded)
    return read


def test_a_plain_status_page_is_read_without_botocore(pages_read: list[Any]) -> None:
    answer = answered("describe_instance_status", 200, PAGE, MaxResults=1000)
    assert pages_read == [LISTED | {"NextToken": "token-2"}]
    assert {name: answer[name] for name in pages_read[0]} == pages_read[0]


def test_botocore_parses_nothing_of_a_plain_status_page(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    environment.setattr(status_pages, "read", lambda _: LISTED)
    answer = answered("describe_instance_status", 200, b"what botocore would stumble over")
    assert answer["InstanceStatuses"] == LISTED["InstanceStatuses"]


def test_an_odd_status_page_is_read_by_botocore(pages_read: list[Any]) -> None:
    odd = PAGE.replace(b"<status>ok", b"<status>ok &amp; well", 1)
    answer = answered("describe_instance_status", 200, odd, MaxResults=1000)
    assert pages_read == [None]
    first, *rest = answer["InstanceStatuses"]
    assert first == LISTED["InstanceStatuses"][0] | {"SystemStatus": {"Status": "ok & well"}}
    assert rest == LISTED["InstanceStatuses"][1:]
    assert answer["NextToken"] == "token-2"


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_refusal_that_looks_like_a_status_page_is_a_refusal(pages_read: list[Any], status: int) -> None:
    with pytest.raises(ClientError):
        answered("describe_instance_status", status, PAGE, MaxResults=1000)
    assert pages_read == []


def test_pages_of_other_calls_are_read_by_botocore(pages_read: list[Any]) -> None:
    answer = answered("describe_instances", 200, PAGE, MaxResults=1000)
    assert pages_read == []
    assert "InstanceStatuses" not in answer
