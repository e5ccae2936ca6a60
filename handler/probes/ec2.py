"""EC2's own API, asked about many instances at once."""

import contextlib
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from handler.deadline import Deadline
from handler.model import NOT_FOUND, Sighting, Workspace, sighting_of, unknown
from handler.parallel import in_parallel
from handler.probes import fair_share
from handler.probes.ec2_api import ATTEMPTS, Ec2Api, Ec2Error
from handler.telemetry import logger

# Filters take 200 values. They pass over an id that EC2 does not know, where a call by explicit ids
# fails for all of them: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html
IDS_PER_CALL = 200
PAGE = 1000
CALLS_AT_ONCE = 8
# Up to here one call asks for the instances by their ids. Beyond, listing what runs costs a fifth of the
# calls and a tenth of the traffic and the CPU, unless most of the account is foreign.
SWEEP_ABOVE = IDS_PER_CALL
# Up to here one listing is read in so few pages that reading the zones side by side gains nothing.
ZONES_ABOVE = 5 * PAGE
SWEEP_TIME_SHARE = 0.6
# For so many ids a listing may cost one call that saves none, before it is left.
IDS_PER_WASTED_PAGE = 2 * PAGE
# How many calls a cycle may spend on finding out which instances of a failed batch are to blame.
BISECTING_CALLS = 64

# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html
# A filter takes * and ? for wildcards, so nothing else may get into one.
_INSTANCE_ID = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_RUNNING = "running"


class Learnt(NamedTuple):
    """EC2's word for an instance, or why there is none."""

    state: str
    cause: str = ""


class Ec2Probe:
    """Asks for the recorded ids in batches; for very many, first lists all that runs."""

    def __init__(self, api: Ec2Api, *, timeout_s: float) -> None:
        """Ask by `api`; `timeout_s` seconds is what a call may take."""
        self._api = api
        self._timeout_s = timeout_s
        self._bisecting_calls = BISECTING_CALLS
        self._plan_told = False

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See Probe. What fails costs only the ids of its own call."""
        recorded_by: dict[str, list[Workspace]] = {}
        for workspace in workspaces:
            if _INSTANCE_ID.fullmatch(workspace.instance_id):
                recorded_by.setdefault(workspace.instance_id, []).append(workspace)
            else:
                yield unknown(workspace, "malformed_instance_id")
        sweep = len(recorded_by) > SWEEP_ABOVE
        self._tell_plan(len(recorded_by), sweep=sweep)
        if sweep:
            listing = deadline.within(deadline.remaining() * SWEEP_TIME_SHARE)
            for instance_id in self._running(recorded_by, listing):
                for workspace in recorded_by.pop(instance_id):
                    yield sighting_of(workspace, _RUNNING)
        for instance_id, learnt in self._asked(recorded_by, deadline, fair_share(self._timeout_s, deadline)):
            for workspace in recorded_by[instance_id]:
                yield unknown(workspace, learnt.cause) if learnt.cause else sighting_of(workspace, learnt.state)

    def _running(self, wanted: Collection[str], deadline: Deadline) -> Iterator[str]:
        """Yield those of the wanted ids whose instances run, each once; never all for sure.

        An id that does not come is not dead: it is only to be asked about. So a listing that fails,
        or names too few of them, is simply left.
        """
        sweep = _Sweep(wanted)

        def list_zone(zone: str | None) -> list[str]:
            query: dict[str, Any] = {"MaxResults": PAGE}
            if zone:
                query["Filters"] = [{"Name": "availability-zone", "Values": [zone]}]
            pages = self._api.pages("describe_instance_status", deadline, **query)
            running: list[str] = []
            with contextlib.suppress(Exception):  # whatever went wrong, the rest is asked about
                while sweep.pays() and (page := next(pages, None)) is not None:
                    statuses = page["InstanceStatuses"]
                    running += sweep.found(
                        [one["InstanceId"] for one in statuses if one["InstanceState"]["Name"] == _RUNNING]
                    )
            return running

        zones = self._zones(deadline) if len(wanted) > ZONES_ABOVE else [None]
        for running in in_parallel(list_zone, iter(zones), deadline, at_once=CALLS_AT_ONCE):
            yield from running

    def _zones(self, deadline: Deadline) -> list[str | None]:
        """Return the zones, each of which is listed by itself, or [None] for one listing of everything."""
        with contextlib.suppress(Exception):  # then one listing has to do
            for page in self._api.pages("describe_availability_zones", deadline, attempts=1):
                return [zone["ZoneName"] for zone in page["AvailabilityZones"]]
        return [None]

    def _asked(self, ids: Collection[str], deadline: Deadline, enough_s: float) -> Iterator[tuple[str, Learnt]]:
        """Yield what EC2 says of each id; nothing of one that the deadline came too early for."""
        every = iter(tuple(ids))
        batches = iter(lambda: list(islice(every, IDS_PER_CALL)), [])

        def ask(batch: Sequence[str]) -> dict[str, Learnt]:
            return self._ask(batch, deadline, enough_at=time.monotonic() + enough_s, attempts=ATTEMPTS)

        for learnt in in_parallel(ask, batches, deadline, at_once=CALLS_AT_ONCE):
            yield from learnt.items()

    def _ask(self, ids: Sequence[str], deadline: Deadline, *, enough_at: float, attempts: int) -> dict[str, Learnt]:
        states: dict[str, str] = {}
        query: dict[str, Any] = {"MaxResults": PAGE, "Filters": [{"Name": "instance-id", "Values": list(ids)}]}
        try:
            for page in self._api.pages("describe_instances", deadline, attempts=attempts, **query):
                for reservation in page["Reservations"]:
                    for instance in reservation["Instances"]:
                        word = str(instance["State"]["Name"])
                        states[instance["InstanceId"]] = "" if word == NOT_FOUND else word  # that word is ours
        except Ec2Error as error:
            cause, cut_off = error.cause, error.cut_off
        except Exception:  # noqa: BLE001 - an answer that makes no sense proves nothing
            cause, cut_off = "garbled_answer", False
        else:
            return {one: Learnt(states.get(one, NOT_FOUND)) for one in ids}
        # A page that came before the failure is proof for the ids on it, and for no other.
        learnt = {one: Learnt(states[one]) for one in ids if one in states}
        missing = [one for one in ids if one not in states]
        if cut_off and time.monotonic() < enough_at:
            return learnt
        if cause == "server_error" and len(missing) > 1 and self._may_bisect():
            half = len(missing) // 2
            for part in (missing[:half], missing[half:]):
                learnt |= self._ask(part, deadline, enough_at=enough_at, attempts=1)
            return learnt
        return learnt | {one: Learnt("", cause) for one in missing}

    def _tell_plan(self, count: int, *, sweep: bool) -> None:
        """Log it for the first question of a cycle; the second probes are always few."""
        if not self._plan_told:
            self._plan_told = True
            reason = "list what runs, ask for the rest" if sweep else "ask for each id"
            logger.info("plan chosen", count=count, reason=reason)

    def _may_bisect(self) -> bool:
        self._bisecting_calls -= 2
        return self._bisecting_calls >= 0


class _Sweep:
    """Whether a listing pays: a page costs a call, and saves one for each IDS_PER_CALL of the wanted ids on it."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._missing = set(wanted)
        self._most_wasted = max(1, len(wanted) // IDS_PER_WASTED_PAGE)
        self._wasted = 0.0
        self._counting = threading.Lock()

    def pays(self) -> bool:
        """Tell whether to read another page: not once all are found, or only foreign instances seem to come."""
        return bool(self._missing) and self._wasted < self._most_wasted

    def found(self, running: Iterable[str]) -> set[str]:
        """Take the ids on a page, and return those that were still wanted."""
        with self._counting:
            found = self._missing.intersection(running)
            self._missing -= found
            # What earlier pages saved is no reason to waste more on later ones.
            self._wasted = max(0.0, self._wasted + 1 - len(found) / IDS_PER_CALL)
            return found
