"""EC2's API as a probe needs it: whole listings, paced, retried, and with a word for each failure."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import botocore.exceptions

from handler.credentials import ERROR_CODE
from handler.deadline import Deadline
from handler.transport import TransportError

ATTEMPTS = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 4.0
# Describe calls draw on a bucket of 100 tokens, refilled by 20 a second, that the account's other tools
# share: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html. A cycle takes half at most.
BURST_CALLS = 50
CALLS_PER_SECOND = 10.0

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
THROTTLED = "throttled"
_THROTTLED_CODES = ("RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled")
_SERVER_ERROR = 500
_WORTH_RETRYING = ("server_error", "broken_connection", "connection_refused")

# Makes one call, bounded by the deadline: operation, deadline, parameters → parsed answer.
Call = Callable[..., Any]


class Ec2Error(Exception):
    """A call failed for good; `cause` is a word of ours, or EC2's error code.

    `cut_off` tells that it is the deadline that did not let it succeed.
    """

    def __init__(self, cause: str, *, cut_off: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.cut_off = cut_off


class Ec2Api:
    """The describe calls of one cycle. Safe to use from several threads."""

    def __init__(
        self,
        call: Call,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make calls by `call(operation, deadline, **parameters)`, each bounded by `timeout_s` seconds."""
        self._call = call
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._pace = _Pace(clock)

    def pages(self, operation: str, deadline: Deadline, *, attempts: int = ATTEMPTS, **query: Any) -> Iterator[Any]:
        """Yield the pages of a listing to its end. Raises Ec2Error: what was not yielded is not known."""
        token: dict[str, str] = {}
        while True:
            page = self._page(operation, deadline, attempts, **query, **token)
            yield page
            next_token = page.get("NextToken")
            if not next_token:
                return
            if token == {"NextToken": next_token}:
                raise Ec2Error("garbled_answer")  # the listing goes in circles
            token = {"NextToken": next_token}

    def _page(self, operation: str, deadline: Deadline, attempts: int, **parameters: Any) -> Any:
        cause = "paced"
        for attempt in itertools.count(1):
            self._wait(self._pace.turn(), deadline, cause)
            try:
                return self._call(operation, deadline.within(self._timeout_s), **parameters)
            except Exception as error:
                cause = _cause(error)
                if cause == THROTTLED:  # it is not this call's fault: wait as long as there is time
                    self._pace.slow_down()
                elif cause not in _WORTH_RETRYING or attempt >= attempts:
                    raise Ec2Error(cause, cut_off=deadline.over()) from error
            pause_s = min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), LONGEST_PAUSE_S)
            self._wait(pause_s * random.uniform(1, 2), deadline, cause)  # noqa: S311 - jitter, not a secret
        raise AssertionError

    def _wait(self, seconds: float, deadline: Deadline, cause: str) -> None:
        if seconds >= deadline.remaining():
            raise Ec2Error(cause, cut_off=True)
        if seconds > 0:
            self._sleep(seconds)


class _Pace:
    """A token bucket of the cycle's own, so that it leaves the account's other tools their share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._taking = threading.Lock()
        self._tokens = float(BURST_CALLS)
        self._counted_at = clock()

    def turn(self) -> float:
        """Take a token; return in how many seconds it is good."""
        with self._taking:
            now = self._clock()
            self._tokens = min(BURST_CALLS, self._tokens + (now - self._counted_at) * CALLS_PER_SECOND) - 1
            self._counted_at = now
            return max(0.0, -self._tokens / CALLS_PER_SECOND)

    def slow_down(self) -> None:
        """Give up the burst: the account's bucket is empty."""
        with self._taking:
            self._tokens = min(self._tokens, 0.0)


def _cause(error: Exception) -> str:
    match error:
        case botocore.exceptions.ClientError():
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in _THROTTLED_CODES:
                return THROTTLED
            if status >= _SERVER_ERROR:
                return "server_error"
            return f"refused_{code}" if ERROR_CODE.fullmatch(code) else "refused"
        case TransportError():
            return error.cause
        case botocore.exceptions.BotoCoreError():
            return f"aws_{type(error).__name__}"  # no credentials, no XML, …
        case _:
            return "garbled_answer"
