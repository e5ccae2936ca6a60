"""Asks EC2's own API about many instances at once."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from handler.deadline import Deadline
from handler.domain.model import INSTANCE_ID, NOT_FOUND, Cause, Failure, Sighting, Workspace, sighting_of, unknown
from handler.parallel import in_parallel
from handler.probes import fair_share
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

_RUNNING = "running"

# A single instance may be why a batch fails, or they may be too many for one answer.
_PERHAPS_OF_ONE = (Cause.SERVER_ERROR, Cause.OVERSIZE)
_CONTRADICTION = Failure(Cause.GARBLED_ANSWER)


@dataclass(frozen=True, slots=True)
class _Known:
    """What EC2 says about one instance, and when that arrived, by the deadline's clock."""

    state: str
    answered_at: float


# What EC2 says about one instance, or why there is no answer.
_Learnt = _Known | Failure


class Ec2Probe:
    """Asks for the recorded ids in batches. In a large fleet, it first lists everything that runs."""

    def __init__(self, api: Ec2Api, *, timeout_s: float, target: str) -> None:
        """Ask through `api` about the target, a Region; one call may take `timeout_s` seconds."""
        self._api = api
        self._timeout_s = timeout_s
        self._target = target
        self._bisecting_calls = BISECTING_CALLS
        self._is_first = True

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See Probe. A failed call costs only its own ids."""
        recorded_by: dict[str, list[Workspace]] = {}
        for workspace in workspaces:
            # A filter treats * and ? as wildcards, so only well-formed ids may get into one.
            if INSTANCE_ID.fullmatch(workspace.instance_id):
                recorded_by.setdefault(workspace.instance_id, []).append(workspace)
            else:
                yield unknown(workspace, Failure(Cause.MALFORMED_INSTANCE_ID))
        list_first = self._is_first and len(recorded_by) > LIST_ABOVE
        if self._is_first:  # later ones are for what looks dead: no listing of what runs has that
            self._is_first = False
            reason = "list what runs, ask for the rest" if list_first else "ask for each id"
            logger.info("plan chosen", count=len(recorded_by), reason=reason)
        if list_first:
            listing = deadline.within(deadline.remaining() * LISTING_TIME_SHARE)
            for instance_id, answered_at in self._running(recorded_by, listing):
                for workspace in recorded_by.pop(instance_id):
                    yield self._sighting(workspace, _Known(_RUNNING, answered_at))
        for instance_id, learnt in self._asked(recorded_by, deadline, fair_share(self._timeout_s, deadline)):
            for workspace in recorded_by[instance_id]:
                yield self._sighting(workspace, learnt)

    def impaired(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Callable[[], int]:
        """See Probe. One call, whatever the fleet's size; a failed one says nothing about anybody."""
        if not workspaces:
            return lambda: 0
        asking = deadline.within(deadline.remaining())
        pool = ThreadPoolExecutor(1)
        answer = pool.submit(self._impaired, asking)
        pool.shutdown(wait=False)

        def count() -> int:
            try:
                impaired = answer.result(min(deadline.remaining(), IMPAIRED_WAIT_S))
            except Ec2Error as error:
                failure = error.failure
            except TimeoutError:
                asking.close()
                failure = Failure(Cause.TIMEOUT)
            except Exception:  # noqa: BLE001 - an answer that makes no sense says nothing
                failure = Failure(Cause.GARBLED_ANSWER)
            else:
                return sum(workspace.instance_id in impaired for workspace in workspaces)
            logger.warning("impaired instances not counted", error=str(failure))
            return 0

        return count

    def _impaired(self, deadline: Deadline) -> set[str]:
        pages = islice(self._api.impaired(deadline), IMPAIRED_PAGES)
        return {instance_id for page in pages for instance_id in page.named}

    def _sighting(self, workspace: Workspace, learnt: _Learnt) -> Sighting:
        if isinstance(learnt, Failure):
            return unknown(workspace, learnt)
        return sighting_of(workspace, learnt.state, answered_at=learnt.answered_at, target=self._target)

    def _running(self, wanted: Collection[str], deadline: Deadline) -> Iterator[tuple[str, float]]:
        """Yield the wanted ids whose instances run, each once, and when that arrived.

        The listing need not be complete: an id that is missing from it is not dead, only asked about later. So a
        listing that fails, or that contains too few wanted ids, is simply given up.
        """
        budget = _ListingBudget(wanted)

        def list_zone(zone: str | None) -> list[tuple[str, float]]:
            pages = self._api.running(zone, deadline)
            running: list[tuple[str, float]] = []
            with contextlib.suppress(Exception):  # whatever fails here, the rest is asked about by id
                while budget.pays() and (page := next(pages, None)) is not None:
                    running += ((one, page.answered_at) for one in budget.found(page.named))
            return running

        zones = self._zones(deadline) if len(wanted) > ZONES_ABOVE else [None]
        for running in in_parallel(list_zone, iter(zones), deadline, at_once=CALLS_AT_ONCE):
            yield from running

    def _zones(self, deadline: Deadline) -> Sequence[str | None]:
        """Return the zones, each of which is listed separately, or [None] for one listing of everything."""
        with contextlib.suppress(Exception):
            return self._api.zones(deadline)
        return [None]

    def _asked(self, ids: Collection[str], deadline: Deadline, enough_s: float) -> Iterator[tuple[str, _Learnt]]:
        """Yield what EC2 says about each id; nothing for an id that was not reached by the deadline."""
        every = iter(tuple(ids))
        batches = iter(lambda: list(islice(every, IDS_PER_CALL)), [])

        def ask(batch: Sequence[str]) -> dict[str, _Learnt]:
            return self._ask(batch, deadline, enough_at=time.monotonic() + enough_s, attempts=ATTEMPTS)

        for learnt in in_parallel(ask, batches, deadline, at_once=CALLS_AT_ONCE):
            yield from learnt.items()

    def _ask(self, ids: Sequence[str], deadline: Deadline, *, enough_at: float, attempts: int) -> dict[str, _Learnt]:
        learnt: dict[str, _Learnt] = {}
        arrivals: list[float] = []
        try:
            for page in self._api.states(ids, deadline, attempts=attempts):
                arrivals.append(page.answered_at)
                for one, state in page.named:
                    # "not_found" is our own word. From EC2 it would be an unknown state.
                    known = _Known("" if state == NOT_FOUND else state, page.answered_at)
                    learnt[one] = _agreed(learnt.get(one, known), known)
        except Ec2Error as error:
            failure, cut_off = error.failure, error.cut_off
        except Exception:  # noqa: BLE001 - an answer that makes no sense proves nothing
            failure, cut_off = Failure(Cause.GARBLED_ANSWER), False
        else:
            # Who is on no page was missing already when the first one was written.
            not_found = _Known(NOT_FOUND, min(arrivals))
            return {one: learnt.get(one, not_found) for one in ids}
        # What came before the failure is proof, but only for the ids that it names.
        missing = [one for one in ids if one not in learnt]
        learnt = {one: learnt[one] for one in ids if one in learnt}
        if cut_off and time.monotonic() < enough_at:
            return learnt
        if failure.cause in _PERHAPS_OF_ONE and len(missing) > 1 and self._may_bisect():
            half = len(missing) // 2
            for part in (missing[:half], missing[half:]):
                learnt |= self._ask(part, deadline, enough_at=enough_at, attempts=1)
            return learnt
        return learnt | dict.fromkeys(missing, failure)

    def _may_bisect(self) -> bool:
        self._bisecting_calls -= 2
        return self._bisecting_calls >= 0


def _agreed(earlier: _Learnt, later: _Known) -> _Learnt:
    """Return what two pages say about an instance that moves during a listing: one of them may be out of date."""
    if isinstance(earlier, _Known) and earlier.state == later.state:
        return earlier
    return _CONTRADICTION


class _ListingBudget:
    """Tells whether a listing is worth it: a page costs one call, and saves one per IDS_PER_CALL wanted ids on it."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._missing = set(wanted)
        self._most_wasted = max(1, len(wanted) // IDS_PER_WASTED_PAGE)
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
