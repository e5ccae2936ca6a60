"""A stand-in for Lambda's Invoke API, which hands each asynchronous invocation on to whoever runs functions here."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from sandbox.http_server import Answer, HttpStandIn, Reply, Request

_INVOKE = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")


@dataclass(frozen=True, slots=True)
class Invoked:
    """One call: of which function, how (`Event`: asynchronously), with what."""

    function: str
    kind: str
    event: Any


class LambdaApi(HttpStandIn):
    """Accepts invocations as Lambda does, and calls `run` with the event of each asynchronous one.

    `refuse` tells which events are throttled; these are listed in `invocations`, too, each time that they are tried.
    """

    def __init__(self, run: Callable[[Any], None], *, refuse: Callable[[Any], bool] = lambda _: False) -> None:
        super().__init__()
        self.invocations: list[Invoked] = []
        self._run = run
        self._refuse = refuse

    @property
    def environment(self) -> dict[str, str]:
        """The variable that has AWS's SDKs call this API."""
        return {"AWS_ENDPOINT_URL_LAMBDA": self.url}

    def handle(self, request: Request) -> Reply:
        """Take an invocation, or throttle it."""
        path = _INVOKE.fullmatch(unquote(request.path))
        if request.method != "POST" or path is None:
            return Answer(HTTPStatus.NOT_FOUND)
        event = json.loads(request.body)
        kind = request.headers.get("x-amz-invocation-type", "RequestResponse")
        self.invocations.append(Invoked(path[1], kind, event))
        if self._refuse(event):
            headers = {"x-amzn-ErrorType": "TooManyRequestsException", "x-amzn-RequestId": str(uuid4())}
            return Answer(HTTPStatus.TOO_MANY_REQUESTS, b'{"Message": "Rate Exceeded."}', headers)
        if kind != "Event":
            return Answer(HTTPStatus.NOT_IMPLEMENTED)
        self._run(event)
        return Answer(HTTPStatus.ACCEPTED)
