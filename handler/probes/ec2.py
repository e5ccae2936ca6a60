"""EC2's own API, asked about many instances at once."""

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, NamedTuple

import botocore.exceptions

from handler.deadline import Deadline
from handler.model import NOT_FOUND, Sighting, Workspace, sighting_of, unknown
from handler.probes import fair_share
from handler.transport import TransportError

# Filters take 200 values. They pass over an id that EC2 does not know, where a call by explicit ids
# fails for all of them: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html
IDS_PER_CALL = 200
PAGE = 1000
CALLS_AT_ONCE = 4
ATTEMPTS = 3
FIRST_PAUSE_S = 0.5
# How many calls a cycle may spend on finding out which instances of a failed batch are to blame.
BISECTING_CALLS = 64

# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html
# A filter takes * and ? for wildcards, so nothing else may get into one.
_INSTANCE_ID = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
_THROTTLED = ("RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled")
_SERVER_ERROR = 500
_ERROR_CODE = re.compile(r"[A-Za-z.]{1,60}")
_A_MOMENT_S = 0.2

# Makes one call, bounded by the deadline: operation, deadline, parameters → parsed answer.
Call = Callable[..., Any]


class Learnt(NamedTuple):
    """EC2's word for an instance, or why there is none."""

    state: str
    cause: str = ""


class Ec2Probe:
    """Asks `DescribeInstances` for the recorded ids, in batches, a few at once."""

    def __init__(self, call: Call, *, timeout_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Ask by `call(operation, deadline, **parameters)`, each call bounded by `timeout_s`."""
        self._call = call
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._bisecting_calls = BISECTING_CALLS

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See Probe. What fails costs only the ids of its own call."""
        recorded_by: dict[str, list[Workspace]] = {}
        for workspace in workspaces:
            if _INSTANCE_ID.fullmatch(workspace.instance_id):
                recorded_by.setdefault(workspace.instance_id, []).append(workspace)
            else:
                yield unknown(workspace, "malformed_instance_id")
        ids = iter(recorded_by)
        enough_s = fair_share(self._timeout_s, deadline)
        under_way: set[Future[dict[str, Learnt]]] = set()
        pool = ThreadPoolExecutor(CALLS_AT_ONCE)
        try:
            while True:
                while len(under_way) < CALLS_AT_ONCE and not deadline.over():
                    batch = list(islice(ids, IDS_PER_CALL))
                    if not batch:
                        break
                    under_way.add(pool.submit(self._ask, batch, deadline, enough_s, ATTEMPTS))
                ended, under_way = wait(under_way, deadline.remaining() + _A_MOMENT_S, FIRST_COMPLETED)
                if not ended:  # all is done, or what is left hangs in a name lookup, which obeys no timeout
                    return
                for future in ended:
                    for instance_id, learnt in future.result().items():
                        for workspace in recorded_by[instance_id]:
                            yield _sighting(workspace, learnt)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, ids: Sequence[str], deadline: Deadline, enough_s: float, attempts: int) -> dict[str, Learnt]:
        """Return what is learnt of each id; nothing of one that the deadline came too early for."""
        started = time.monotonic()
        states: dict[str, str] = {}
        cause = self._listed(ids, deadline, states, attempts)
        if not cause:
            return {one: Learnt(states.get(one, NOT_FOUND)) for one in ids}
        # A page that came before the failure is proof for the ids on it, and for no other.
        learnt = {one: Learnt(states[one]) for one in ids if one in states}
        missing = [one for one in ids if one not in states]
        if deadline.over() and time.monotonic() - started < enough_s:
            return learnt
        if cause in _WORTH_BISECTING and len(missing) > 1 and self._may_bisect():
            half = len(missing) // 2
            for part in (missing[:half], missing[half:]):
                learnt |= self._ask(part, deadline, enough_s, attempts=1)
            return learnt
        return learnt | {one: Learnt("", cause) for one in missing}

    def _listed(self, ids: Sequence[str], deadline: Deadline, states: dict[str, str], attempts: int) -> str:
        """Read the listing of `ids` into `states`; return why it failed, nothing when it is whole."""
        for attempt in range(attempts):
            try:
                self._list(ids, deadline, states)
            except Exception as error:  # noqa: BLE001 - whatever went wrong, it proves nothing
                cause = _cause(error)
                pause_s = FIRST_PAUSE_S * 2**attempt * random.uniform(1, 2)  # noqa: S311 - jitter
                if cause not in _WORTH_RETRYING or attempt + 1 == attempts or pause_s >= deadline.remaining():
                    return cause
                self._sleep(pause_s)
            else:
                return ""
        raise AssertionError(attempts)

    def _list(self, ids: Sequence[str], deadline: Deadline, states: dict[str, str]) -> None:
        listing = {"Filters": [{"Name": "instance-id", "Values": list(ids)}], "MaxResults": PAGE}
        token: dict[str, str] = {}
        while True:
            page = self._call("describe_instances", deadline.within(self._timeout_s), **listing, **token)
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    states[instance["InstanceId"]] = instance["State"]["Name"]
            next_token = page.get("NextToken")
            if not next_token:
                return
            if token == {"NextToken": next_token}:
                raise ValueError("the listing goes in circles")
            token = {"NextToken": next_token}

    def _may_bisect(self) -> bool:
        self._bisecting_calls -= 2
        return self._bisecting_calls >= 0


def _sighting(workspace: Workspace, learnt: Learnt) -> Sighting:
    return unknown(workspace, learnt.cause) if learnt.cause else sighting_of(workspace, learnt.state)


_WORTH_RETRYING = ("throttled", "server_error", "broken_connection", "connection_refused")
_WORTH_BISECTING = ("server_error",)


def _cause(error: Exception) -> str:
    match error:
        case botocore.exceptions.ClientError():
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in _THROTTLED:
                return "throttled"
            if status >= _SERVER_ERROR:
                return "server_error"
            return f"refused_{code}" if _ERROR_CODE.fullmatch(code) else "refused"
        case TransportError():
            return error.cause
        case _:
            return "garbled_answer"
