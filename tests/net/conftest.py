"""One server whose certificate is trusted, and the three ways to send it a request: GET, POST, AWS."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from botocore.exceptions import ClientError

from handler import process
from handler.deadline import Deadline
from handler.net import aws, tls
from handler.net.aws import Aws
from handler.net.bounded import BoundedPools, CallError
from handler.net.http import HttpClient
from sandbox import ec2_xml
from sandbox.certificates import Authority
from tests.net.server import Script, Server, server_context
from tests.support.strict_tls import strict_contexts

BODY_LIMIT = 64 * 1024
# Bodies that EC2's client can read. The other clients ignore them.
NO_ZONES = ec2_xml.zones([], request_id="r-1")
AN_ERROR = ec2_xml.error("NoAnswer", "an error", request_id="r-1")


# Sends one request with a new client, and closes the client; returns the status.
Call = Callable[[str, Deadline], int]


class Serve(Protocol):
    """Starts a server, which ends with the test."""

    def __call__(self, *scripts: Script, greeting: Script = ()) -> Server: ...


@pytest.fixture(scope="package")
def authority() -> Authority:
    """An authority that this process trusts."""
    return Authority()


@pytest.fixture(scope="package")
def plain_authority() -> Authority:
    """Another one that is trusted, whose certificates have no more extensions than a chain needs."""
    return Authority("Plain authority", plain=True)


@pytest.fixture(scope="package", autouse=True)
def trust(authority: Authority, plain_authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust two authorities, and hide the developer's own variables."""
    directory = tmp_path_factory.mktemp("net")
    bundle = directory / "authority.pem"
    bundle.write_bytes(authority.certificate + plain_authority.certificate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(bundle))
        patch.setenv("SSL_CERT_DIR", str(directory))
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_CONFIG_FILE", str(directory / "none"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "none"))
        patch.setenv("AWS_REGION", "eu-central-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "example")
        patch.setenv("AWS_SESSION_TOKEN", "example")
        with strict_contexts():
            tls.https_context()
            yield


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    """What the server speaks."""
    scheme: str = request.param
    return scheme


@pytest.fixture
def serve(scheme: str, authority: Authority) -> Iterator[Serve]:
    """Servers that speak `scheme`. At the end, no client may have left a connection open."""
    tls = server_context(authority.issue(["127.0.0.1"])) if scheme == "https" else None
    with contextlib.ExitStack() as stack:
        yield lambda *scripts, greeting=(): stack.enter_context(Server(*scripts, greeting=greeting, tls=tls))


def get(url: str, deadline: Deadline) -> int:
    with contextlib.closing(HttpClient(connections=1)) as client:
        return client.get(url, params={}, headers={}, deadline=deadline, body_limit=BODY_LIMIT).status


def post(url: str, deadline: Deadline) -> int:
    with contextlib.closing(HttpClient(connections=1)) as client:
        return client.post(url, json={}, headers={}, deadline=deadline).status


def failure(call: Call, url: str, deadline: Deadline) -> CallError:
    """Return how a call fails."""
    with pytest.raises(CallError) as failure:
        call(url, deadline)
    return failure.value


class Ec2:
    """An EC2 client that asks each test's own server. It is made only once, which takes a tenth of a second."""

    def __init__(self) -> None:
        self._url = threading.local()
        self.aws = Aws(BoundedPools(connections=2), models=process.MODELS, handlers={"before-call.ec2": self._direct})
        failure(self.call, "http://127.0.0.1", Deadline(0))  # the first call takes longer than some deadlines here

    def call(self, url: str, deadline: Deadline) -> int:
        """Ask for the zones, and close the connection."""
        try:
            return self.ask(url, deadline)
        finally:
            self.aws.close()

    def ask(self, url: str, deadline: Deadline) -> int:
        """Ask for the zones."""
        self.direct(url)
        try:
            with self.aws.within(deadline):
                answer = self.aws.ec2().describe_availability_zones()
        except ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"]
        return answer["ResponseMetadata"]["HTTPStatusCode"]

    def direct(self, url: str) -> None:
        """Send this thread's next calls to that server."""
        self._url.now = url

    def _direct(self, params: dict[str, str], **_: object) -> None:
        params["url"] = getattr(self._url, "now", params["url"])


@pytest.fixture(scope="package")
def ec2_of_all_tests(trust: None) -> Ec2:  # noqa: ARG001 - it takes the TLS context
    return Ec2()


@pytest.fixture
def ec2(ec2_of_all_tests: Ec2, monkeypatch: pytest.MonkeyPatch) -> Ec2:
    """EC2's client, whose answers may be as long as those to a GET."""
    monkeypatch.setattr(aws, "BODY_LIMIT", BODY_LIMIT)
    return ec2_of_all_tests


@pytest.fixture(params=["get", "post", "aws"])
def call(request: pytest.FixtureRequest) -> Call:
    """A GET, a POST, or a call to AWS."""
    if request.param == "aws":
        ec2: Ec2 = request.getfixturevalue("ec2")
        return ec2.call
    return {"get": get, "post": post}[request.param]
