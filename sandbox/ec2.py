"""EC2's, Secrets Manager's and SQS's APIs over HTTP: moto's server, run in this process."""

import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl

import boto3
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from sandbox.ec2_xml import STATE_CODES
from sandbox.http_server import Answer
from sandbox.script import Script

if TYPE_CHECKING:  # the stubs exist for the type checker only
    from types_boto3_ec2 import EC2Client
    from types_boto3_secretsmanager import SecretsManagerClient

REGION = "eu-central-1"
ACCOUNT_ID = "123456789012"  # moto's account for unknown access keys

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "sandbox"}

# With these variables, a process cannot reach a real AWS account by mistake.
AWS_ENVIRONMENT = {
    **CREDENTIALS,
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


_IMAGE_ID = "ami-12c6146b"  # an image that moto knows
_LAUNCH_CHUNK = 100
_STOP_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One call of an AWS API. `parameters` are those of EC2's Query protocol; for other services they are empty."""

    service: str
    action: str
    parameters: Mapping[str, str]


class MotoEc2:
    """moto's EC2, Secrets Manager and SQS on 127.0.0.1 and a free port, from `start` to `stop`.

    moto keeps its state per process, so only one of these can run at a time. `script` holds rules for hooks and faults
    (only `Answer` works), which may select by `service` or `action`. `calls` lists all calls. `on_state_change` is told
    of each instance that stops or terminates, as EventBridge is.
    """

    def __init__(self) -> None:
        self.script: Script[ApiCall] = Script()
        self.calls: list[ApiCall] = []
        self.on_state_change: Callable[[str, str], object] | None = None
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The endpoint's URL. Raises RuntimeError while the server is not running."""
        if self._server is None:
            raise RuntimeError("MotoEc2 is not running")
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process calls this API instead of AWS."""
        return {**AWS_ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def start(self) -> Self:
        """Listen and answer until `stop`; return the server itself."""
        application = _ScriptedApplication(DomainDispatcherApplication(create_backend_app), self)
        self._server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_SilentHandler)
        self._server.daemon_threads = False  # type: ignore[attr-defined]  # so that closing waits for their threads
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_STOP_POLL_S,), daemon=True)
        self._thread.start()
        self.ec2: EC2Client = self.client("ec2")
        self.secrets: SecretsManagerClient = self.client("secretsmanager")
        return self

    def client(self, service: str) -> Any:
        """Return a new client of one of the services, to be closed by whoever asked for it."""
        return boto3.client(service, **_client_options(self.url))  # type: ignore[call-overload]  # any service

    def stop(self) -> None:
        """Stop answering and forget everything."""
        if self._server is None or self._thread is None:
            return
        self.ec2.close()
        self.secrets.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None
        self.reset()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reset(self) -> None:
        """Forget every instance, secret, rule and call."""
        # moto's own reset of EC2 reloads its catalogue of images, which takes longer than most tests.
        self._backend().reservations.clear()
        for service in ("secretsmanager", "sqs"):
            get_backend(service)[ACCOUNT_ID].reset()
        self.on_state_change = None
        self.script.clear()
        self.calls.clear()

    def launch(self, count: int = 1) -> list[str]:
        """Launch instances through the API; return their ids once they are `running`."""
        ids: list[str] = []
        while len(ids) < count:
            chunk = min(_LAUNCH_CHUNK, count - len(ids))
            answer = self.ec2.run_instances(ImageId=_IMAGE_ID, InstanceType="t4g.micro", MinCount=chunk, MaxCount=chunk)
            ids += [instance["InstanceId"] for instance in answer["Instances"]]
        return ids

    def stop_instances(self, instance_ids: Iterable[str]) -> None:
        """Bring instances to `stopped`."""
        if ids := list(instance_ids):
            before = self.states()
            self.ec2.stop_instances(InstanceIds=ids)
            self._tell(before, ids)

    def start_instances(self, instance_ids: Iterable[str]) -> None:
        """Bring instances back to `running`."""
        if ids := list(instance_ids):
            self.ec2.start_instances(InstanceIds=ids)

    def terminate(self, instance_ids: Iterable[str]) -> None:
        """Bring instances to `terminated`, where they stay visible; ignore unknown ones."""
        if ids := [one for one in instance_ids if self.state_of(one) is not None]:
            before = self.states()
            self.ec2.terminate_instances(InstanceIds=ids)
            self._tell(before, ids)

    def set_state(self, instance_id: str, state: str) -> None:
        """Put an instance into one of EC2's states, even one that moto itself passes through at once."""
        instance = self._find(instance_id)
        instance._state.name = state  # noqa: SLF001 - moto has no public way to `pending` or `stopping`
        instance._state.code = STATE_CODES[state]  # noqa: SLF001

    def forget(self, instance_id: str) -> None:
        """Make an instance unknown, as EC2 does a while after its termination."""
        reservations = self._backend().reservations
        for reservation in reservations.values():
            reservation.instances = [one for one in reservation.instances if one.id != instance_id]

    def state_of(self, instance_id: str) -> str | None:
        """Return EC2's word for an instance's state, or None if there is no such instance. Makes no API call."""
        instance = self._backend().get_instance_by_id(instance_id)
        return None if instance is None else str(instance.state)

    def states(self) -> dict[str, str]:
        """Return EC2's word for the state of every instance, by its id. Makes no API call."""
        return {instance.id: instance.state for instance in self._backend().all_instances()}

    def put_secret(self, name: str, value: Mapping[str, object]) -> str:
        """Create a secret, or give it a new value; return its ARN."""
        text = json.dumps(value)
        try:
            return self.secrets.create_secret(Name=name, SecretString=text)["ARN"]
        except self.secrets.exceptions.ResourceExistsException:
            return self.secrets.put_secret_value(SecretId=name, SecretString=text)["ARN"]

    def _tell(self, before: Mapping[str, str], instance_ids: Iterable[str]) -> None:
        """Tell of those instances whose state has changed."""
        if self.on_state_change is not None:
            now = self.states()
            for one in instance_ids:
                if now[one] != before[one]:
                    self.on_state_change(one, now[one])

    def _find(self, instance_id: str) -> Any:
        instance = self._backend().get_instance_by_id(instance_id)
        if instance is None:
            raise KeyError(instance_id)
        return instance

    def _backend(self) -> Any:
        return get_backend("ec2")[ACCOUNT_ID][REGION]


class _ScriptedApplication:
    """Passes each call to the script first, and to moto unless the script answers."""

    def __init__(self, application: Callable[..., Iterable[bytes]], server: MotoEc2) -> None:
        self._application = application
        self._server = server

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        call = _api_call(environ.get("HTTP_X_AMZ_TARGET", ""), body)
        self._server.calls.append(call)
        reply = self._server.script.play(call)
        if not isinstance(reply, Answer):
            return self._application(environ, start_response)
        status = HTTPStatus(reply.status)
        start_response(f"{status.value} {status.phrase}", [*reply.headers.items()])
        return [reply.body]


def _api_call(target: str, body: bytes) -> ApiCall:
    """Read the action of a request from its header (AWS's JSON protocol) or its parameters (the Query protocol)."""
    if target:
        service, _, action = target.partition(".")
        return ApiCall(service, action, {})
    parameters = dict(parse_qsl(body.decode()))
    return ApiCall("ec2", parameters.get("Action", ""), parameters)


class _SilentHandler(WSGIRequestHandler):
    """Writes no line to stderr for each request."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Say nothing."""


def _client_options(url: str) -> dict[str, Any]:
    return {
        "endpoint_url": url,
        "region_name": REGION,
        "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    }
