"""Lambda's Runtime API, and a process of AWS's runtime client that runs the built artifact against it.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import json
import os
import queue
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_VERSION = "/2018-06-01/runtime"
_NEXT = f"{_VERSION}/invocation/next"
_INIT_ERROR = f"{_VERSION}/init/error"
_ARN = "arn:aws:lambda:eu-central-1:123456789012:function:reconciler"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an invocation: the function's answer, or the error that it raised."""

    request_id: str
    value: Any
    failed: bool


class InitError(Exception):
    """The function's process could not start. The message is what it told the Runtime API."""


class RuntimeApi:
    """The HTTP server from which a function's process gets events, and to which it reports outcomes."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[str, bytes, float] | None] = queue.Queue()
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Return host and port, as in AWS_LAMBDA_RUNTIME_API."""
        return f"127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """End the clients that wait for an event, and stop listening."""
        self.events.put(None)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing: a killed process hangs up at any moment."""


def _handler(api: RuntimeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # buffered: two packets for an answer would wait for each other

        def do_GET(self) -> None:
            waiting = api.events.get() if self.path == _NEXT else None
            if waiting is None:
                self._answer(HTTPStatus.GONE)
                return
            request_id, event, deadline = waiting
            self._answer(
                HTTPStatus.OK,
                event,
                {
                    "Content-Type": "application/json",  # without it the client crashes
                    "Lambda-Runtime-Aws-Request-Id": request_id,
                    "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": _ARN,
                    "Lambda-Runtime-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1",
                },
            )

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request_id, _, kind = self.path.removeprefix(f"{_VERSION}/invocation/").partition("/")
            if self.path == _INIT_ERROR:
                request_id, kind = "", "error"
            api.outcomes.put(Outcome(request_id, body, failed=kind == "error"))
            self._answer(HTTPStatus.ACCEPTED)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: HTTPStatus, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


class LambdaFunction:
    """One process of a deployed function, from its cold start to the end of its `with` block.

    The artifact is its directory and on its path; this project and the tests' packages are not.
    """

    def __init__(  # what Lambda is told about a function
        self,
        python: str,
        artifact: Path,
        handler: str,
        environment: Mapping[str, str],
        *,
        log: Path,
        timeout_s: float = 55.0,
    ) -> None:
        self._api = RuntimeApi()
        self._log_path = log
        self._timeout_s = timeout_s
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [python, "-m", "awslambdaric", handler],
                cwd=artifact,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    "PATH": os.defpath,
                    "PYTHONDONTWRITEBYTECODE": "1",  # Lambda's /var/task cannot be written to
                    "TZ": ":UTC",
                    "LANG": "en_US.UTF-8",
                    "LAMBDA_TASK_ROOT": str(artifact),
                    "AWS_LAMBDA_RUNTIME_API": self._api.address,
                    "AWS_LAMBDA_FUNCTION_NAME": "reconciler",
                    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
                    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
                    "AWS_LAMBDA_LOG_FORMAT": "JSON",
                    "AWS_LAMBDA_LOG_LEVEL": "INFO",
                    "AWS_REGION": "eu-central-1",
                    "AWS_DEFAULT_REGION": "eu-central-1",
                    **environment,
                },
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)  # without notice, as in Lambda
        self._process.wait()
        self._api.stop()

    @property
    def process_id(self) -> int:
        """Return the process's id."""
        return self._process.pid

    def invoke(self, event: Any) -> Outcome:
        """Send an event; return the outcome. The process is frozen before and after, as in Lambda.

        Raises InitError when the process ended without taking the event, TimeoutError when the function's time is up.
        """
        request_id = str(uuid.uuid4())
        deadline = time.time() + self._timeout_s
        self._process.send_signal(signal.SIGCONT)
        self._api.events.put((request_id, json.dumps(event).encode(), deadline))
        outcome = self._next_outcome(deadline)
        if not outcome.request_id:
            raise InitError(json.dumps(outcome.value))
        assert outcome.request_id == request_id
        self._process.send_signal(signal.SIGSTOP)
        return outcome

    def _next_outcome(self, deadline: float) -> Outcome:
        while time.time() < deadline:
            try:
                return self._api.outcomes.get(timeout=0.1)
            except queue.Empty:
                if self._process.poll() is not None and self._api.outcomes.empty():
                    raise InitError(self.log()) from None
        raise TimeoutError(self.log())

    def log(self) -> str:
        """Return all that the process has written."""
        return self._log_path.read_text(errors="replace")

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the log line by line. Fails on a line that is not JSON, which Lambda could not filter."""
        return [json.loads(line) for line in self.log().splitlines() if line]
