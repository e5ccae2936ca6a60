"""A gateway sends back the request that it got, tokens included: not one word of it is in anything that is printed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path

import pytest

from handler.telemetry import LINES_OF_A_KIND
from sandbox.http_server import HttpStandIn, Raw, Reply, Request
from sandbox.postgres import PostgresServer
from tests.integration.test_telemetry import CANARY, MOSTLY_DEAD, SECRETS
from tests.support.events import APPLY
from tests.support.stage import Stage, opened

ROOT = Path(__file__).parents[2]
SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:database"
LEVELS = ["DEBUG", "INFO"]

# As in Lambda, the root logger has a handler and a level before the handler's module is loaded, and what the handler
# raises is printed. This root handler prints all that there is of a record. Another one comes later.
RUNTIME = """
import asyncio, json, logging, os, sys, threading, traceback, warnings

class Everything(logging.Formatter):
    def format(self, record):
        return super().format(record) + repr(vars(record))

def print_everything():
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Everything())
    logging.getLogger().addHandler(handler)

print_everything()
logging.getLogger().setLevel(os.environ["AWS_LAMBDA_LOG_LEVEL"])
logging.getLogger("witness").log(logging.getLogger().level, "the root logger prints")
from handler.app import lambda_handler
from sandbox.lambda_context import LambdaContext

for event in json.load(sys.stdin):
    try:
        lambda_handler(event, LambdaContext(55.0))
    except Exception as error:
        print(type(error).__name__, error, *traceback.format_tb(error.__traceback__))

class Unruly:
    def __del__(self):
        raise ValueError("canary")

print_everything()
try:
    int("canary")
except ValueError:
    names = [name for name in logging.root.manager.loggerDict if name != "instance-state-reconciler"]
    assert {"botocore", "concurrent.futures", "urllib3"} <= set(names)
    for name in [None, "a new one", *names]:
        logging.getLogger(name).setLevel(1)
        for level in range(1, 60, 10):
            logging.getLogger(name).log(
                level, "canary %s", "canary", exc_info=True, stack_info=True, extra={"more": "canary"}
            )
warnings.simplefilter("always")
warnings.warn("canary")
thread = threading.Thread(target=int, args=("canary",))
thread.start()
thread.join()
Unruly()
loop = asyncio.new_event_loop()
loop.call_exception_handler({"message": "canary", "exception": ValueError("canary")})
loop.close()
"""

Answering = Callable[[bytes], bytes]
OK = b"HTTP/1.1 200 OK\r\n"
ECHOES: Mapping[str, Answering] = {
    "after CR CR LF": lambda said: OK + b"X: 1\r\r\n" + said + b"Content-Length: 2\r\n\r\n{}",
    "after CR CR LF, as an error": lambda said: b"HTTP/1.1 503 No\r\nX: 1\r\r\n" + said + b"\r\n",
    "as headers": lambda said: OK + said + b"Content-Length: 0\r\n\r\n",
    "as headers that are broken": lambda said: OK + said.replace(b":", b"") + b"\r\n",
    "as headers without end": lambda said: OK + said * 1_000,
    "as the reason": lambda said: b"HTTP/1.1 500 " + said.replace(b"\r\n", b" ") + b"\r\n\r\n",
    "as a protocol": lambda said: said + b"\r\n",
    "as cookies": lambda said: OK + b"Set-Cookie: canary=" + said.replace(b"\r\n", b"; expires=") + b"\r\n\r\n",
    "as a media type": lambda said: OK + b"Content-Type: multipart/" + said.replace(b"\r\n", b";") + b"\r\n\r\n",
    "as a redirect": lambda said: b"HTTP/1.1 302 No\r\nLocation: " + said.replace(b"\r\n", b"") + b"\r\n\r\n",
    "as a length": lambda said: OK + b"Content-Length: " + said.replace(b"\r\n", b"") + b"\r\n\r\n",
    "as chunks": lambda said: OK + b"Transfer-Encoding: chunked\r\n\r\n" + said,
    "as a time to wait": lambda said: b"HTTP/1.1 429 No\r\nRetry-After: " + said.replace(b"\r\n", b"") + b"\r\n\r\n",
    "as a body": lambda said: OK + b"\r\n" + said,
    "as a state": lambda said: OK + b"\r\n" + json.dumps({"state": said.decode("latin-1")}).encode(),
    "as an error": lambda said: (
        b"HTTP/1.1 400 No\r\n\r\n" + json.dumps({"__type": said.decode("latin-1"), "message": "canary"}).encode()
    ),
    "as XML": lambda said: OK + b"\r\n<a><canary>" + said + b"</canary>",
    "as an error in XML": lambda said: (
        b"HTTP/1.1 400 No\r\n\r\n<Response><Errors><Error><Code>"
        + said
        + b"</Code><Message>canary</Message></Error></Errors></Response>"
    ),
    "as a secret": lambda said: OK + b"\r\n" + json.dumps({"SecretString": said.decode("latin-1")}).encode(),
    "as a date": lambda said: (
        OK + b"\r\n" + json.dumps({"SecretString": "{}", "CreatedDate": f"10:36 {said.decode()}"}).encode()
    ),
    "as a time zone": lambda _: OK + b'\r\n{"SecretString": "{}", "CreatedDate": "10:36 CANARY"}',
}


class Echo(HttpStandIn):
    """Answers with the headers of the request, and a word of its own, each time in another way."""

    def __init__(self) -> None:
        super().__init__()
        self._number = count()

    def handle(self, request: Request) -> Reply:
        said = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items()) + "X-Own: canary\r\n"
        how = list(ECHOES.values())[next(self._number) % len(ECHOES)]
        return Raw(how(said.encode("latin-1")))


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as echo:
        yield echo


@pytest.fixture(scope="module")
def secretive(postgres: PostgresServer) -> Iterator[Stage]:
    """Systems that know the tokens above."""
    with opened(postgres) as stage:
        yield stage


@pytest.fixture
def stage(secretive: Stage) -> Stage:
    secretive.clear()
    secretive.control_plane.shared_secret = SECRETS["CP_SHARED_SECRET"]
    secretive.control_plane.admin_token = SECRETS["CP_ADMIN_TOKEN"]
    secretive.platform.token = SECRETS["PLATFORM_TOKEN"]
    secretive.invoke.environment |= MOSTLY_DEAD | SECRETS
    return secretive


def printed(environment: Mapping[str, str], level: str, *, cycles: int = 1) -> str:
    """Run cycles in a process like Lambda's; return all that it wrote anywhere."""
    done = subprocess.run(
        [sys.executable, "-c", RUNTIME],
        input=json.dumps([APPLY] * cycles),
        env={
            **environment,
            "PATH": os.environ["PATH"],
            "PYTHONWARNINGS": "always",
            "POWERTOOLS_LOG_LEVEL": level,
            "AWS_LAMBDA_LOG_LEVEL": level,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the root logger prints" in done.stderr
    assert '"thread failed"' in done.stdout
    return done.stdout + done.stderr


def leaks(text: str) -> list[str]:
    """Return the first few places in which a canary is."""
    found = re.finditer(f"(?i).{{0,200}}{CANARY}.{{0,60}}", text)
    return [match[0] for match in islice(found, 3)]


@pytest.mark.parametrize("level", LEVELS)
def test_a_control_plane_that_echoes_tokens_puts_none_into_the_log(stage: Stage, echo: Echo, level: str) -> None:
    stage.add_all(2 * len(ECHOES), "running")
    settings = stage.settings("control_plane") | {"CP_BASE_URL": echo.url} | SECRETS
    text = printed(stage.invoke.environment | settings, level)
    assert text.count('"instance unknown"') == 2 * len(ECHOES)
    assert leaks(text) == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_platform_that_echoes_its_token_does_not_put_it_into_the_log(stage: Stage, echo: Echo, level: str) -> None:
    stage.add_all(2 * len(ECHOES), "terminated")
    text = printed(stage.invoke.environment | {"PLATFORM_BASE_URL": echo.url}, level)
    assert text.count('"workspace flipped"') == 2 * len(ECHOES)
    assert text.count('"message":"restart ') == 2 * len(ECHOES)
    assert leaks(text) == []


@pytest.mark.parametrize("level", LEVELS)
def test_an_endpoint_of_ec2_that_echoes_credentials_puts_none_into_the_log(
    stage: Stage, echo: Echo, level: str
) -> None:
    """So many that the status pages are read, too."""
    stage.add_all(300, "running")
    text = printed(stage.invoke.environment | {"AWS_ENDPOINT_URL_EC2": echo.url}, level)
    assert text.count('"message":"instance unknown"') == LINES_OF_A_KIND
    assert leaks(text) == []


@pytest.mark.parametrize("level", LEVELS)
def test_an_endpoint_of_secrets_manager_that_echoes_credentials_puts_none_into_the_log(
    stage: Stage, echo: Echo, level: str
) -> None:
    settings = {"AWS_ENDPOINT_URL_SECRETS_MANAGER": echo.url, "DATABASE_SECRET_ARN": SECRET}
    environment = {name: value for name, value in stage.invoke.environment.items() if name != "DATABASE_URL"}
    text = printed(environment | settings, level, cycles=len(ECHOES))
    assert text.count("Error DATABASE_SECRET_ARN: ") == len(ECHOES)
    assert leaks(text) == []
