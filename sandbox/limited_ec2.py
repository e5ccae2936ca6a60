"""A small EC2 API with AWS's limits, which moto ignores: paging, batch sizes, malformed ids, throttling.

It answers `DescribeInstances`, `DescribeInstanceStatus` and `DescribeAvailabilityZones` in the Query protocol. It is
fast even with 100,000 instances. Its XML is about as long as AWS's own, so it costs a client as much.
"""

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from sandbox import ec2_xml
from sandbox.ec2 import AWS_ENVIRONMENT
from sandbox.ec2_xml import Instance
from sandbox.http_server import Answer, HttpStandIn, Reply, Request
from sandbox.script import Script

ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")

_XML = {"Content-Type": "text/xml;charset=UTF-8"}
_MAX_EXPLICIT_IDS = {"DescribeInstances": 1_000, "DescribeInstanceStatus": 100}
_MAX_FILTER_VALUES = 200
_MIN_PAGE, _MAX_PAGE = 5, 1_000
_WELL_FORMED_ID = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")


@dataclass(frozen=True, slots=True)
class DescribeCall:
    """One call: its action, its parameters as sent, and their meaning. `at` is a monotonic time in seconds."""

    action: str
    parameters: Mapping[str, str]
    instance_ids: tuple[str, ...]
    filters: Mapping[str, frozenset[str]]
    at: float

    @property
    def is_unfiltered(self) -> bool:
        """Whether the call asks for everything at once. AWS throttles such calls sooner."""
        return not (self.instance_ids or self.filters or "MaxResults" in self.parameters)


class ApiError(Exception):
    """An error from EC2: its code, its message, and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status

    def as_answer(self, *, delay_s: float = 0.0) -> Answer:
        """Return the HTTP answer for this error."""
        body = ec2_xml.error(escape(self.code), escape(self.message), request_id=str(uuid.uuid4()))
        return Answer(self.status, body, _XML, delay_s)


class TokenBucket:
    """Allows `capacity` calls at once, then `refill_per_s` per second. `clock` returns seconds."""

    def __init__(self, capacity: float, refill_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.refill_per_s = refill_per_s
        self._clock = clock
        self._tokens = capacity
        self._filled_at = clock()
        self._lock = threading.Lock()

    def take(self, tokens: float = 1) -> bool:
        """Take that many tokens if there are enough; tell whether there were."""
        with self._lock:
            self._refill()
            if self._tokens < tokens:
                return False
            self._tokens -= tokens
            return True

    def drain(self) -> None:
        """Take all tokens, as the account's other tools might."""
        with self._lock:
            self._refill()
            self._tokens = 0

    def pass_time(self, seconds: float) -> None:
        """Refill as if so many seconds had passed."""
        with self._lock:
            self._filled_at -= seconds

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self.capacity, self._tokens + (now - self._filled_at) * self.refill_per_s)
        self._filled_at = now


class LimitedEc2(HttpStandIn):
    """An account with instances, behind EC2's API and its limits. It answers each call after `latency_s` seconds.

    `bucket` throttles every call; `unfiltered_bucket` also throttles calls that ask for everything at once. `script`
    holds rules for faults and hooks, which may select by `action`. `calls` lists every call, including those answered
    with an error. `throttled` counts the calls that found a bucket empty. Instances are numbered from `first`.
    """

    def __init__(
        self,
        *,
        latency_s: float = 0.0,
        bucket: TokenBucket | None = None,
        unfiltered_bucket: TokenBucket | None = None,
        first: int = 1,
    ) -> None:
        super().__init__()
        self._first = first
        self.latency_s = latency_s
        self.bucket = bucket or TokenBucket(capacity=100, refill_per_s=20)
        self.unfiltered_bucket = unfiltered_bucket or TokenBucket(capacity=50, refill_per_s=10)
        self.script: Script[DescribeCall] = Script()
        self.calls: list[DescribeCall] = []
        self.throttled = 0
        self._account = _Account(self._first)

    def reset(self) -> None:
        """Forget every instance, rule and call."""
        self.script.clear()
        self.calls.clear()
        self.throttled = 0
        self._account = _Account(self._first)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process calls this EC2 API. Other services are unaffected."""
        return {**AWS_ENVIRONMENT, "AWS_ENDPOINT_URL_EC2": self.url}

    def add(self, count: int = 1, *, state: str = "running", zone: str | None = None) -> list[str]:
        """Add instances in a state, in one zone or spread over all zones; return their ids."""
        return [self._account.add(state, zone or ZONES[n % len(ZONES)]) for n in range(count)]

    def set_state(self, instance_id: str, state: str) -> None:
        """Put an instance into one of EC2's states. Raises KeyError if it is unknown."""
        self._account.known[instance_id].state = state

    def impair(self, instance_id: str) -> None:
        """Let an instance fail EC2's system status check. Raises KeyError if it is unknown."""
        self._account.known[instance_id].impaired = True

    def mend(self, instance_id: str) -> None:
        """Let it pass the check again. Raises KeyError if it is unknown."""
        self._account.known[instance_id].impaired = False

    def forget(self, instance_id: str) -> None:
        """Make an instance unknown. Raises KeyError if it already is."""
        self._account.known.pop(instance_id).forgotten = True

    def state_of(self, instance_id: str) -> str | None:
        """Return EC2's word for an instance's state, or None if it is unknown."""
        instance = self._account.known.get(instance_id)
        return None if instance is None else instance.state

    def handle(self, request: Request) -> Reply:
        """Return EC2's answer to one call, or the script's reply instead."""
        call = _read_call(request)
        self.calls.append(call)
        if (scripted := self.script.play(call)) is not None:
            return scripted
        try:
            self._throttle(call)
            return Answer(HTTPStatus.OK, self._answer(call), _XML, self.latency_s)
        except ApiError as error:
            return error.as_answer(delay_s=self.latency_s)

    def _throttle(self, call: DescribeCall) -> None:
        if not self.bucket.take() or (call.is_unfiltered and not self.unfiltered_bucket.take()):
            self.throttled += 1
            raise ApiError("RequestLimitExceeded", "Request limit exceeded.", HTTPStatus.SERVICE_UNAVAILABLE)

    def _answer(self, call: DescribeCall) -> bytes:
        request_id = str(uuid.uuid4())
        match call.action:
            case "DescribeInstances":
                page, token = self._account.page(call, _page_size(call))
                return ec2_xml.instances(page, token, request_id=request_id)
            case "DescribeInstanceStatus":
                only_running = call.parameters.get("IncludeAllInstances", "false") != "true"
                page, token = self._account.page(call, _page_size(call) or _MAX_PAGE, only_running=only_running)
                return ec2_xml.statuses(page, token, request_id=request_id)
            case "DescribeAvailabilityZones":
                return ec2_xml.zones(ZONES, request_id=request_id)
            case _:
                raise ApiError("InvalidAction", f"The action {call.action} is not valid for this web service.")


@dataclass(slots=True)
class _Account:
    """The instances, by id and in the order of listings."""

    first: int
    known: dict[str, Instance] = field(default_factory=dict)
    _listed: list[Instance] = field(default_factory=list)

    def add(self, state: str, zone: str) -> str:
        position = len(self._listed)
        instance = Instance(id=f"i-{position + self.first:017x}", state=state, zone=zone, position=position)
        self._listed.append(instance)
        self.known[instance.id] = instance
        return instance.id

    def page(
        self, call: DescribeCall, size: int | None, *, only_running: bool = False
    ) -> tuple[list[Instance], str | None]:
        """Return a page of at most `size` instances for a call, and the token of the next page, if any."""
        _check_filters(call)
        if call.instance_ids:
            matching = self._explicit(call)
        elif wanted := call.filters.get("instance-id"):
            matching = (self.known[one] for one in sorted(wanted) if one in self.known)
        else:
            matching = (one for one in islice(self._listed, _start(call), None) if not one.forgotten)
        matching = (one for one in matching if _passes(one, call.filters, only_running=only_running))
        if size is None:
            return list(matching), None
        page = list(islice(matching, size))
        more = next(matching, None)
        return page, None if more is None else f"token-{more.position}"

    def _explicit(self, call: DescribeCall) -> Iterator[Instance]:
        ids = call.instance_ids
        limit = _MAX_EXPLICIT_IDS[call.action]
        if "MaxResults" in call.parameters:
            raise ApiError(
                "InvalidParameterCombination",
                "The parameter instancesSet cannot be used with the parameter maxResults",
            )
        if len(ids) > limit:
            raise ApiError("InvalidParameterValue", f"{len(ids)} instance ids were given; at most {limit} are allowed")
        for one in ids:
            if not _WELL_FORMED_ID.fullmatch(one):
                raise ApiError("InvalidInstanceID.Malformed", f'Invalid id: "{one}"')
        if missing := [one for one in ids if one not in self.known]:
            word, verb = ("ID", "does") if len(missing) == 1 else ("IDs", "do")
            raise ApiError("InvalidInstanceID.NotFound", f"The instance {word} '{', '.join(missing)}' {verb} not exist")
        return (self.known[one] for one in dict.fromkeys(ids))


def _read_call(request: Request) -> DescribeCall:
    parameters = dict(parse_qsl(request.body.decode(), keep_blank_values=True))
    filters = {
        parameters[name]: frozenset(_numbered(parameters, f"{name.removesuffix('.Name')}.Value"))
        for name in parameters
        if re.fullmatch(r"Filter\.\d+\.Name", name)
    }
    return DescribeCall(
        action=parameters.get("Action", ""),
        parameters=parameters,
        instance_ids=tuple(_numbered(parameters, "InstanceId")),
        filters=filters,
        at=request.received_at,
    )


def _numbered(parameters: Mapping[str, str], name: str) -> Iterator[str]:
    """Yield the values of a list. The Query protocol numbers them from 1."""
    number = 1
    while (value := parameters.get(f"{name}.{number}")) is not None:
        yield value
        number += 1


def _page_size(call: DescribeCall) -> int | None:
    text = call.parameters.get("MaxResults")
    if text is None:
        return None
    if not text.isdecimal() or not _MIN_PAGE <= int(text) <= _MAX_PAGE:
        raise ApiError(
            "InvalidParameterValue",
            f"Value ( {text} ) for parameter maxResults is invalid. Expecting {_MIN_PAGE} to {_MAX_PAGE}.",
        )
    return int(text)


def _start(call: DescribeCall) -> int:
    """Return the position where the requested page begins."""
    token = call.parameters.get("NextToken")
    if token is None:
        return 0
    if not re.fullmatch(r"token-\d+", token):
        raise ApiError("InvalidNextToken", "The token is not valid.")
    return int(token.removeprefix("token-"))


_FILTERS: Mapping[str, Callable[[Instance], str]] = {
    "instance-id": lambda instance: instance.id,
    "instance-state-name": lambda instance: instance.state,
    "availability-zone": lambda instance: instance.zone,
    "system-status.status": lambda instance: "impaired" if instance.impaired else "ok",
}
# What only some calls can filter by.
_ACTION_OF_FILTER = {"instance-id": "DescribeInstances", "system-status.status": "DescribeInstanceStatus"}


def _check_filters(call: DescribeCall) -> None:
    for name, values in call.filters.items():
        if name not in _FILTERS or _ACTION_OF_FILTER.get(name, call.action) != call.action:
            raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid")
        if len(values) > _MAX_FILTER_VALUES:
            raise ApiError(
                "FilterLimitExceeded",
                f"The maximum number of filter values specified on a single call is {_MAX_FILTER_VALUES}",
            )


def _passes(instance: Instance, filters: Mapping[str, frozenset[str]], *, only_running: bool) -> bool:
    if only_running and instance.state != "running":
        return False
    return all(_FILTERS[name](instance) in values for name, values in filters.items())
