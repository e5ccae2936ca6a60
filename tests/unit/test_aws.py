"""AWS calls: where they go, signed how, is what botocore makes of the same environment without the project's data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from handler.deadline import Deadline
from handler.net.aws import Aws
from handler.net.bounded import Answer, BoundedPools
from handler.probes.ec2 import status_pages
from sandbox import ec2_xml
from sandbox.ec2_xml import Instance

SOON = Deadline(10)
CALLS: Mapping[str, tuple[str, dict[str, str]]] = {
    "ec2": ("describe_availability_zones", {}),
    "secretsmanager": ("get_secret_value", {"SecretId": "arn:of-one"}),
}


class NoAnswerError(Exception):
    pass


class Recorder(BoundedPools):
    """Notes where a request goes, and whom it is signed for."""

    def __init__(self) -> None:
        super().__init__(connections=1)
        self.sent: tuple[str, str] | None = None

    def call(self, method: str, url: str, *, headers: Mapping[str, Any], **_: Any) -> Answer:
        del method
        self.note(url, headers)
        raise NoAnswerError

    def note(self, url: str, headers: Mapping[str, Any]) -> None:
        authorization = headers["Authorization"]
        text = authorization.decode() if isinstance(authorization, bytes) else authorization
        credential = text.partition("Credential=")[2].partition(",")[0]  # key/date/region/service/aws4_request
        self.sent = (url, "/".join(credential.split("/")[2:]))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A Lambda function's, with no files and no variables of the developer's own."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    return monkeypatch


def sent_by_the_handler(service: str) -> tuple[str, str] | None:
    transport = Recorder()
    operation, parameters = CALLS[service]
    with pytest.raises(NoAnswerError):
        Aws(transport).call(service, operation, SOON, **parameters)
    return transport.sent


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
def test_a_call_goes_where_botocore_would_send_it(
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
def test_an_endpoint_that_a_variable_names_is_used(environment: pytest.MonkeyPatch, variable: str) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    environment.setenv(variable, "https://ec2.example:8443")
    assert sent_by_the_handler("ec2") == ("https://ec2.example:8443/", "eu-central-1/ec2/aws4_request")


# --- which region, which credentials ---


def region_of(sent: tuple[str, str] | None) -> str:
    assert sent is not None
    return sent[1].split("/")[0]


def test_lambdas_region_comes_before_the_default_one_and_that_before_the_profiles(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-west-3\n")
    assert region_of(sent_by_the_handler("ec2")) == "eu-west-3"
    environment.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert region_of(sent_by_the_handler("ec2")) == "eu-west-2"
    environment.setenv("AWS_REGION", "eu-west-1")
    assert region_of(sent_by_the_handler("ec2")) == "eu-west-1"


@pytest.mark.parametrize("service", ["ec2", "rds", "secretsmanager", "signin", "sso", "sso-oidc", "sts"])
def test_whatever_gets_a_profiles_credentials_can_be_asked(environment: pytest.MonkeyPatch, service: str) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    assert Aws(Recorder()).client(service).meta.region_name == "eu-central-1"


def test_a_database_token_is_for_the_instances_region(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "cn-north-1")
    token = Aws(Recorder()).database_token("db.example", 5432, "reconciler")
    assert token.startswith("db.example:5432/?Action=connect&DBUser=reconciler&")
    assert "%2Fcn-north-1%2Frds-db%2Faws4_request" in token


# --- what runs ---


class Answering(BoundedPools):
    """Gives one answer, whatever is asked."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(connections=1)
        self.answer = Answer(status, {}, body)

    def call(self, *_: Any, **__: Any) -> Answer:
        return self.answer


PAGE = ec2_xml.statuses([Instance("i-01234567", "running", "eu-central-1a", 1)], "token-2", request_id="r-1")
LISTED = {"InstanceStatuses": [{"InstanceId": "i-01234567", "InstanceState": {"Name": "running"}}]}


@pytest.fixture
def pages_read(environment: pytest.MonkeyPatch) -> list[Any]:
    """What is read without botocore, from here on."""
    environment.setenv("AWS_REGION", "eu-central-1")
    read: list[Any] = []
    read_page = status_pages.read

    def noted(page: bytes) -> Any:
        read.append(read_page(page))
        return read[-1]

    environment.setattr(status_pages, "read", noted)
    return read


def test_a_page_of_what_runs_is_read_without_botocore(pages_read: list[Any]) -> None:
    answer = Aws(Answering(200, PAGE)).call("ec2", "describe_instance_status", SOON, MaxResults=1000)
    assert pages_read == [LISTED | {"NextToken": "token-2"}]
    assert {name: answer[name] for name in pages_read[0]} == pages_read[0]


def test_botocore_is_left_nothing_to_parse_of_a_page_that_is_read_without_it(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", "eu-central-1")
    environment.setattr(status_pages, "read", lambda _: LISTED)
    answer = Aws(Answering(200, b"what botocore would stumble over")).call("ec2", "describe_instance_status", SOON)
    assert answer["InstanceStatuses"] == LISTED["InstanceStatuses"]


def test_a_page_that_only_botocore_can_read_is_read_by_it(pages_read: list[Any]) -> None:
    commented = PAGE.replace(b"<item>", b"<!-- a comment --><item>", 1)
    answer = Aws(Answering(200, commented)).call("ec2", "describe_instance_status", SOON, MaxResults=1000)
    assert pages_read == [None]
    assert answer["InstanceStatuses"] == LISTED["InstanceStatuses"]
    assert answer["NextToken"] == "token-2"


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_refusal_is_one_though_it_looks_like_a_page_of_what_runs(pages_read: list[Any], status: int) -> None:
    with pytest.raises(ClientError):
        Aws(Answering(status, PAGE)).call("ec2", "describe_instance_status", SOON, MaxResults=1000)
    assert pages_read == []


def test_a_page_of_another_call_is_botocores_to_read(pages_read: list[Any]) -> None:
    answer = Aws(Answering(200, PAGE)).call("ec2", "describe_instances", SOON, MaxResults=1000)
    assert pages_read == []
    assert "InstanceStatuses" not in answer
