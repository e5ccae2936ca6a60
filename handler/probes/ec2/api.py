"""EC2's describe calls as the probe needs them: paced, retried, read to the last page, failing with a cause."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import botocore.exceptions

from handler.deadline import Deadline
from handler.domain.model import Cause, Failure
from handler.net.aws_errors import code_of, is_expired, is_server_error, is_throttling
from handler.net.bounded import CallError
from handler.net.roles import RoleError

if TYPE_CHECKING:
    from types_boto3_ec2 import EC2Client
    from types_boto3_ec2.type_defs import FilterTypeDef

    from handler.net.aws import Call

PAGE = 1000
ATTEMPTS = 3
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 4.0
# Describe calls draw on a bucket of 100 tokens, refilled by 20 a second, that the account's other tools
# share: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html. A cycle takes half at most.
BURST_CALLS = 50
CALLS_PER_SECOND = 10.0

_WORTH_RETRYING = (
    *(Cause.SERVER_ERROR, Cause.BROKEN_CONNECTION, Cause.CONNECTION_REFUSED),
    Cause.NAME_LOOKUP_FAILED,  # a resolver often fails for a moment, and rarely for long
)

_RUNNING = "running"
_IMPAIRED = "impaired"

# Which of the client's operations to call.
_Operation = Callable[["EC2Client"], Callable[..., Any]]
_Named = TypeVar("_Named")


@dataclass(frozen=True, slots=True)
class Page(Generic[_Named]):
    """A page of a listing: what it names, to be read once, and when it arrived, by the deadline's clock."""

    named: Iterable[_Named]
    answered_at: float


class Ec2Error(Exception):
    """A call failed for good. `cut_off` tells whether the deadline ended it."""

    def __init__(self, failure: Failure, *, cut_off: bool = False) -> None:
        """Take the reason, and whether the deadline ended the call."""
        super().__init__(str(failure))
        self.failure = failure
        self.cut_off = cut_off


class Ec2Api:
    """The describe calls of one cycle. Safe to use from several threads."""

    def __init__(
        self,
        client: Callable[[], "EC2Client"],
        within: Callable[[Deadline], AbstractContextManager["Call"]],
        *,
        timeout_s: float,
        renew: Callable[["EC2Client"], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Call with the client from `client()`, inside `within(deadline)`. Each call may take `timeout_s` seconds.

        A client that cannot be made (no credentials, a malformed Region, a role that cannot be assumed) is a failed
        call. `renew` gets a client with expired credentials, and tells whether `client()` has another one now.
        """
        self._client = client
        self._renew = renew
        self._within = within
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._pace = _Pace(clock)

    def states(
        self, ids: Sequence[str], deadline: Deadline, *, attempts: int = ATTEMPTS
    ) -> Iterator[Page[tuple[str, str]]]:
        """Yield pages of the ids and states of the instances that EC2 knows. Raises Ec2Error.

        After an error, what was yielded is still true, and nothing is known about the rest.
        """
        by_id: FilterTypeDef = {"Name": "instance-id", "Values": ids}
        for page, answered_at in self._pages(
            lambda client: client.describe_instances, deadline, attempts, MaxResults=PAGE, Filters=[by_id]
        ):
            yield Page(_ids_and_states(page), answered_at)

    def running(self, zone: str | None, deadline: Deadline) -> Iterator[Page[str]]:
        """Yield pages of the ids of all running instances, or of those in one zone. Raises Ec2Error."""
        for page, answered_at in self._statuses(deadline, ATTEMPTS, {"availability-zone": zone} if zone else {}):
            yield Page([one["InstanceId"] for one in page if one["InstanceState"]["Name"] == _RUNNING], answered_at)

    def impaired(self, deadline: Deadline) -> Iterator[Page[str]]:
        """Yield pages of the ids of running instances that fail EC2's system status check. Raises Ec2Error.

        Each answer is checked, because not everything that answers like EC2 knows the filter. When EC2 throttles, this
        gives up: what is left of the account's calls is for the states.
        """
        impaired_only = {"system-status.status": _IMPAIRED}
        for page, answered_at in self._statuses(deadline, 1, impaired_only, patient=False):
            impaired = [
                one["InstanceId"]
                for one in page
                if one["InstanceState"]["Name"] == _RUNNING and one["SystemStatus"]["Status"] == _IMPAIRED
            ]
            yield Page(impaired, answered_at)

    def zones(self, deadline: Deadline) -> list[str]:
        """Return the names of the Region's zones. Raises Ec2Error."""
        pages = self._pages(lambda client: client.describe_availability_zones, deadline, attempts=1)
        return [zone["ZoneName"] for page, _ in pages for zone in page["AvailabilityZones"]]

    def _statuses(
        self, deadline: Deadline, attempts: int, only: Mapping[str, str], *, patient: bool = True
    ) -> Iterator[tuple[Any, float]]:
        query: dict[str, Any] = {"MaxResults": PAGE}
        if only:
            query["Filters"] = [{"Name": name, "Values": [value]} for name, value in only.items()]
        pages = self._pages(
            lambda client: client.describe_instance_status, deadline, attempts, patient=patient, **query
        )
        return ((page["InstanceStatuses"], answered_at) for page, answered_at in pages)

    def _pages(
        self, call: _Operation, deadline: Deadline, attempts: int, *, patient: bool = True, **query: Any
    ) -> Iterator[tuple[Any, float]]:
        """Yield all pages of a listing, and when each arrived.

        Raises Ec2Error: nothing is known about pages that were not yielded.
        """
        token: dict[str, str] = {}
        followed: set[str] = set()
        while True:
            page, answered_at = self._page(call, deadline, attempts, patient=patient, **query, **token)
            yield page, answered_at
            next_token = page.get("NextToken")
            if not next_token:
                return
            if next_token in followed:  # the listing goes in circles
                raise Ec2Error(Failure(Cause.GARBLED_ANSWER))
            followed.add(next_token)
            token = {"NextToken": next_token}

    def _page(
        self, call: _Operation, deadline: Deadline, attempts: int, *, patient: bool, **parameters: Any
    ) -> tuple[Any, float]:
        failure = Failure(Cause.PACED)
        for attempt in itertools.count(1):
            self._wait(self._pace.turn(), deadline, failure)
            client = None
            try:
                with self._within(deadline.within(self._timeout_s)) as answer:
                    client = self._client()
                    return call(client)(**parameters), answer.answered_at
            except Exception as error:
                failure = _failure(error)
                if client is not None and _is_expired(error) and self._renew(client):
                    continue
                throttled = failure.cause is Cause.THROTTLED
                if throttled:
                    self._pace.slow_down()
                # Throttling is not this call's fault: a patient one is made again while there is time.
                again = patient if throttled else failure.cause in _WORTH_RETRYING and attempt < attempts
                if not again:
                    raise Ec2Error(failure, cut_off=deadline.over()) from error
            backoff_s = min(FIRST_BACKOFF_S * 2.0 ** (attempt - 1), LONGEST_BACKOFF_S)
            self._wait(backoff_s * random.uniform(1, 2), deadline, failure)  # noqa: S311 - jitter, not a secret
        raise AssertionError

    def _wait(self, seconds: float, deadline: Deadline, failure: Failure) -> None:
        if seconds >= deadline.remaining():
            raise Ec2Error(failure, cut_off=True)
        if seconds > 0:
            self._sleep(seconds)


def _ids_and_states(page: Any) -> Iterator[tuple[str, str]]:
    for reservation in page["Reservations"]:
        for one in reservation["Instances"]:
            yield one["InstanceId"], str(one["State"]["Name"])


class _Pace:
    """The cycle's own token bucket. It leaves the account's other tools their share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._taking = threading.Lock()
        self._tokens = float(BURST_CALLS)
        self._counted_at = clock()

    def turn(self) -> float:
        """Take a token; return how many seconds to wait before it may be used."""
        with self._taking:
            now = self._clock()
            self._tokens = min(BURST_CALLS, self._tokens + (now - self._counted_at) * CALLS_PER_SECOND) - 1
            self._counted_at = now
            return max(0.0, -self._tokens / CALLS_PER_SECOND)

    def slow_down(self) -> None:
        """Give up the burst: the account's bucket is empty."""
        with self._taking:
            self._tokens = min(self._tokens, 0.0)


def _is_expired(error: Exception) -> bool:
    return isinstance(error, botocore.exceptions.ClientError) and is_expired(error)


def _failure(error: Exception) -> Failure:
    match error:
        case RoleError():
            return Failure(Cause.ROLE_NOT_ASSUMED, str(_failure(error.cause)))
        case botocore.exceptions.ClientError():
            return _refusal(error)
        case CallError():
            return Failure(error.cause)
        case botocore.exceptions.BotoCoreError():
            return Failure(Cause.SDK_FAILED, type(error).__name__)  # no credentials, no XML, …
        case _:
            return Failure(Cause.GARBLED_ANSWER)


def _refusal(error: botocore.exceptions.ClientError) -> Failure:
    if is_throttling(error):
        return Failure(Cause.THROTTLED)
    if is_server_error(error):
        return Failure(Cause.SERVER_ERROR)
    return Failure(Cause.REFUSED, code_of(error))
