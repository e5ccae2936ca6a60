"""Asks EC2's own API about many instances at once."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice

from handler.deadline import Deadline
from handler.domain.model import INSTANCE_ID, NOT_FOUND, Cause, Failure, Sighting, Workspace, sighting_of, unknown
from handler.parallel import in_parallel
from handler.probes import TargetTroubles, fair_share
from handler.probes.ec2.api import ATTEMPTS, PAGE, Ec2Api, Ec2Error
from handler.telemetry import logger

# A filter takes 200 values. It ignores an id that EC2 does not know; a call with explicit ids would fail
# as a whole: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html
IDS_PER_CALL = 200
CALLS_AT_ONCE = 8
# Up to this many instances, one call asks for their ids. Above, listing what runs takes a fifth of the calls,
# and a tenth of traffic and CPU, unless most of the account's instances are not ours.
LIST_ABOVE = IDS_PER_CALL
# Up to this many instances, a listing has too few pages for reading the zones in parallel to gain anything.
ZONES_ABOVE = 5 * PAGE
LISTING_TIME_SHARE = 0.6
# A listing may waste one call per this many ids. Then it is given up.
IDS_PER_WASTED_PAGE = 2 * PAGE
# How many calls a cycle may spend on finding the ids that make a batch fail.
BISECTING_CALLS = 64
# One page has room for a thousand impaired instances. A few more are read, in case most of them are not ours.
IMPAIRED_PAGES = 3
# Once everything else is known, nobody waits longer than this for them.
IMPAIRED_WAIT_S = 1.0

RUNNING = "running"

# A single instance may be why a batch fails, or they may be too many for one answer.
_PERHAPS_OF_ONE = (Cause.SERVER_ERROR, Cause.OVERSIZE)
_CONTRADICTION = Failure(Cause.GARBLED_ANSWER)


@dataclass(frozen=True, slots=True)
class Known:
    """What EC2 says about one instance, and when that arrived, by the deadline's clock."""

    state: str
    answered_at: float


# What EC2 says about one instance, or why there is no answer.
Learnt = Known | Failure


class Ec2Probe:
    """Asks for the recorded ids in batches. In a large fleet, it first lists everything that runs."""

    def __init__(self, api: Ec2Api, *, timeout_s: float, target: str, may_be_empty: bool = False) -> None:
        """Ask through `api` about the target of this name; one call may take `timeout_s` seconds."""
        self.api = api
        self.target = target
        self.may_be_empty = may_be_empty
        self._timeout_s = timeout_s
        self._bisecting_calls = BISECTING_CALLS
        self._is_first = True
        self._found = self._answered = False
        self._failure: Failure | None = None

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See Probe. A failed call costs only its own ids."""
        recorded_by = yield from by_instance(workspaces)
        list_first = self._is_first and lists_first(recorded_by)
        self._is_first = False
        if list_first:
            listing = deadline.within(deadline.remaining() * LISTING_TIME_SHARE)
            missing = set(recorded_by)
            for instance_id, answered_at in self.running(missing, listing, expected=len(missing)):
                for workspace in recorded_by.pop(instance_id):
                    yield self._sighting(workspace, Known(RUNNING, answered_at))
        for instance_id, learnt in self._asked(recorded_by, deadline, fair_share(self._timeout_s, deadline)):
            for workspace in recorded_by[instance_id]:
                yield self._sighting(workspace, learnt)

    def impaired(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Callable[[], int]:
        """See Probe. One call, whatever the fleet's size; a failed one says nothing about anybody."""
        return counted_impaired({"": self.api}, workspaces, deadline)

    def troubles(self) -> TargetTroubles:
        """See Probe."""
        failed = {} if self._failure is None else {self.target: self._failure}
        is_empty = self._answered and not (self._found or self._failure or self.may_be_empty)
        return TargetTroubles(failed, (self.target,) if is_empty else ())

    def _sighting(self, workspace: Workspace, learnt: Learnt) -> Sighting:
        if isinstance(learnt, Failure):
            self._failure = learnt
            return unknown(workspace, learnt)
        self._answered = True
        self._found = self._found or learnt.state != NOT_FOUND
        return sighting_of(workspace, learnt.state, answered_at=learnt.answered_at, target=self.target)

    def running(
        self, missing: set[str], deadline: Deadline, *, expected: int, at_once: int = CALLS_AT_ONCE
    ) -> Iterator[tuple[str, float]]:
        """Yield the ids of `missing` whose instances run, and when that arrived; take them out of the set.

        About so many are expected here. The listing need not be complete: an id that is missing from it is not dead,
        only asked about later. So a listing that fails, or that contains too few wanted ids, is simply given up.
        """
        budget = _ListingBudget(missing, expected)

        def list_zone(zone: str | None) -> list[tuple[str, float]]:
            pages = self.api.running(zone, deadline)
            running: list[tuple[str, float]] = []
            with contextlib.suppress(Exception):  # whatever fails here, the rest is asked about by id
                while budget.pays() and (page := next(pages, None)) is not None:
                    running += ((one, page.answered_at) for one in budget.found(page.named))
            return running

        zones = self._zones(deadline) if expected > ZONES_ABOVE and at_once > 1 else [None]
        for running in in_parallel(list_zone, iter(zones), deadline, at_once=at_once):
            yield from running

    def _zones(self, deadline: Deadline) -> Sequence[str | None]:
        """Return the zones, each of which is listed separately, or [None] for one listing of everything."""
        with contextlib.suppress(Exception):
            return self.api.zones(deadline)
        return [None]

    def _asked(self, ids: Collection[str], deadline: Deadline, enough_s: float) -> Iterator[tuple[str, Learnt]]:
        """Yield what EC2 says about each id; nothing for an id that was not reached by the deadline."""
        every = iter(tuple(ids))
        batches = iter(lambda: list(islice(every, IDS_PER_CALL)), [])

        def ask(batch: Sequence[str]) -> dict[str, Learnt]:
            return self.ask(batch, deadline, enough_at=time.monotonic() + enough_s)

        for learnt in in_parallel(ask, batches, deadline, at_once=CALLS_AT_ONCE):
            yield from learnt.items()

    def ask(
        self, ids: Sequence[str], deadline: Deadline, *, enough_at: float = -math.inf, attempts: int = ATTEMPTS
    ) -> dict[str, Learnt]:
        """Return what EC2 says about each id; nothing for those whose call the deadline cut off before `enough_at`."""
        learnt: dict[str, Learnt] = {}
        arrivals: list[float] = []
        try:
            for page in self.api.states(ids, deadline, attempts=attempts):
                arrivals.append(page.answered_at)
                for one, state in page.named:
                    # "not_found" is our own word. From EC2 it would be an unknown state.
                    known = Known("" if state == NOT_FOUND else state, page.answered_at)
                    learnt[one] = _agreed(learnt.get(one, known), known)
        except Ec2Error as error:
            failure, cut_off = error.failure, error.cut_off
        except Exception:  # noqa: BLE001 - an answer that makes no sense proves nothing
            failure, cut_off = Failure(Cause.GARBLED_ANSWER), False
        else:
            # Who is on no page was missing already when the first one was written.
            not_found = Known(NOT_FOUND, min(arrivals))
            return {one: learnt.get(one, not_found) for one in ids}
        # What came before the failure is proof, but only for the ids that it names.
        missing = [one for one in ids if one not in learnt]
        learnt = {one: learnt[one] for one in ids if one in learnt}
        if cut_off and time.monotonic() < enough_at:
            return learnt
        if failure.cause in _PERHAPS_OF_ONE and len(missing) > 1 and self._may_bisect():
            half = len(missing) // 2
            for part in (missing[:half], missing[half:]):
                learnt |= self.ask(part, deadline, enough_at=enough_at, attempts=1)
            return learnt
        return learnt | dict.fromkeys(missing, failure)

    def _may_bisect(self) -> bool:
        self._bisecting_calls -= 2
        return self._bisecting_calls >= 0


def by_instance(workspaces: Sequence[Workspace]) -> Generator[Sighting, None, dict[str, list[Workspace]]]:
    """Return who records which instance; yield the sightings of those who record what is no instance id."""
    recorded_by: dict[str, list[Workspace]] = {}
    for workspace in workspaces:
        # A filter treats * and ? as wildcards, so only well-formed ids may get into one.
        if INSTANCE_ID.fullmatch(workspace.instance_id):
            recorded_by.setdefault(workspace.instance_id, []).append(workspace)
        else:
            yield unknown(workspace, Failure(Cause.MALFORMED_INSTANCE_ID))
    return recorded_by


def lists_first(ids: Collection[str]) -> bool:
    """Choose the plan for a cycle's first probe. Later ones ask for what looks dead, which no such listing names."""
    list_first = len(ids) > LIST_ABOVE
    reason = "list what runs, ask for the rest" if list_first else "ask for each id"
    logger.info("plan chosen", count=len(ids), reason=reason)
    return list_first


def counted_impaired(
    apis: Mapping[str, Ec2Api], workspaces: Sequence[Workspace], deadline: Deadline
) -> Callable[[], int]:
    """See Probe.impaired. One call for each target, by its name, which may be empty if there is only one."""
    if not workspaces:
        return lambda: 0
    asking = deadline.within(deadline.remaining())
    pool = ThreadPoolExecutor(min(len(apis), CALLS_AT_ONCE))
    answers = {pool.submit(_impaired, api, asking): target for target, api in apis.items()}
    pool.shutdown(wait=False)

    def count() -> int:
        ended, late = wait(answers, min(deadline.remaining(), IMPAIRED_WAIT_S))
        if late:
            asking.close()
        impaired: set[str] = set()
        for answer, target in answers.items():
            failure = Failure(Cause.TIMEOUT)
            if answer in ended:
                try:
                    impaired |= answer.result()
                    continue
                except Ec2Error as error:
                    failure = error.failure
                except Exception:  # noqa: BLE001 - an answer that makes no sense says nothing
                    failure = Failure(Cause.GARBLED_ANSWER)
            logger.warning("impaired instances not counted", error=str(replace(failure, target=target)))
        return sum(workspace.instance_id in impaired for workspace in workspaces)

    return count


def _impaired(api: Ec2Api, deadline: Deadline) -> set[str]:
    pages = islice(api.impaired(deadline), IMPAIRED_PAGES)
    return {instance_id for page in pages for instance_id in page.named}


def _agreed(earlier: Learnt, later: Known) -> Learnt:
    """Return what two pages say about an instance that moves during a listing: one of them may be out of date."""
    if isinstance(earlier, Known) and earlier.state == later.state:
        return earlier
    return _CONTRADICTION


class _ListingBudget:
    """Tells whether a listing is worth it: a page costs one call, and saves one per IDS_PER_CALL wanted ids on it."""

    def __init__(self, missing: set[str], expected: int) -> None:
        self._missing = missing
        self._most_wasted = max(1, expected // IDS_PER_WASTED_PAGE)
        self._wasted = 0.0
        self._counting = threading.Lock()

    def pays(self) -> bool:
        """Tell whether to read another page: not if all ids are found, or if most instances are not ours."""
        return bool(self._missing) and self._wasted < self._most_wasted

    def found(self, running: Iterable[str]) -> set[str]:
        """Take the ids on a page; return those that were still missing."""
        with self._counting:
            found = self._missing.intersection(running)
            self._missing -= found
            # Savings from earlier pages must not allow more waste on later ones.
            self._wasted = max(0.0, self._wasted + 1 - len(found) / IDS_PER_CALL)
            return found
