"""Asks several targets, each a Region of an account, side by side."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from handler.deadline import Deadline
from handler.domain.model import (
    FOUND,
    NOT_FOUND,
    VERDICT_OF_STATE,
    Cause,
    Failure,
    Sighting,
    Workspace,
    sighting_of,
    unknown,
)
from handler.parallel import HANDOVER_SECONDS, in_parallel
from handler.probes import TargetTroubles, fair_share
from handler.probes.ec2.probe import (
    CALLS_AT_ONCE,
    IDS_PER_CALL,
    LISTING_TIME_SHARE,
    RUNNING,
    Ec2Probe,
    Known,
    Learnt,
    by_instance,
    counted_impaired,
    lists_first,
)
from handler.probes.ec2.search import Decided, Search

# The `target` of a sighting of an absent instance.
EVERY_TARGET = "every target"
# A target is given up after so many batches in a row without any answer: what hangs must not take up the whole time.
MOST_FAILURES = 3
# A call began early enough if its share of the time is at least this much of a first call's. (Even that one is a moment
# shorter than the whole share.)
ENOUGH = 0.95
# Each takes a thread and a connection, however many targets there are.
MOST_CALLS = 100
# Where instances were found last is remembered of this many. It saves calls, and proves nothing.
MOST_HINTS = 50_000

Hints = MutableMapping[str, int]
# A call under way: the target's place, and the ids.
_Calls = dict[Future[dict[str, Learnt]], tuple[int, list[str]]]


class TargetsProbe:
    """Asks every target for what it may have. The one that finds an instance decides its state.

    An instance that none finds is absent only if every target has answered, and has found another candidate in this
    cycle: a role in the wrong account would find none.
    """

    def __init__(self, targets: Sequence[Ec2Probe], *, timeout_s: float, hints: Hints) -> None:
        """Ask these targets. One call may take `timeout_s` seconds. `hints` outlive the cycle."""
        self._targets = targets
        self._names = [one.target for one in targets]
        self._timeout_s = timeout_s
        self._hints = hints
        # So few calls at once in total that their answers fit into the function's memory.
        self._at_once = max(1, CALLS_AT_ONCE // len(targets))
        self._found: set[int] = set()
        self._answered: set[int] = set()
        self._failed: dict[int, Failure] = {}
        # Once the first probe is over: the targets where it found nothing, and whether it decided about every instance.
        self._empty: list[int] | None = None
        self._complete = False

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See Probe. A failed call costs only what no other target finds."""
        recorded_by = yield from by_instance(workspaces)
        is_first, absent = self._empty is None, []
        if is_first and lists_first(recorded_by):
            for instance_id, known, target in self._listed(set(recorded_by), deadline):
                for workspace in recorded_by.pop(instance_id, ()):
                    yield self._sighting(workspace, Decided(instance_id, known, target))
        undecided = len(recorded_by)
        for decided in self._asked(list(recorded_by), deadline):
            undecided -= 1
            if isinstance(decided.learnt, Known) and decided.learnt.state == NOT_FOUND and is_first:
                absent.append(decided)  # until it is known who has found anything
                continue
            for workspace in recorded_by[decided.instance_id]:
                yield self._sighting(workspace, decided)
        if is_first:
            self._empty = self._without_finds()
            self._complete = bool(self._found) and not undecided
        for decided in absent:
            for workspace in recorded_by[decided.instance_id]:
                yield self._sighting(workspace, decided)

    def impaired(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Callable[[], int]:
        """See Probe."""
        return counted_impaired({one.target: one.api for one in self._targets}, workspaces, deadline)

    def troubles(self) -> TargetTroubles:
        """See Probe."""
        looked = range(len(self._targets)) if self._complete else self._answered
        empty = [one for one in self._empty or () if one in looked and one not in self._failed]
        failed = {self._names[target]: failure for target, failure in sorted(self._failed.items())}
        return TargetTroubles(failed, [self._names[one] for one in empty])

    def _without_finds(self) -> list[int]:
        places = enumerate(self._targets)
        return [place for place, one in places if place not in self._found and not one.may_be_empty]

    def _sighting(self, workspace: Workspace, decided: Decided) -> Sighting:
        learnt = decided.learnt
        if isinstance(learnt, Failure):
            return unknown(workspace, learnt)
        target = EVERY_TARGET if decided.target is None else self._names[decided.target]
        if learnt.state == NOT_FOUND and self._empty:
            return unknown(workspace, Failure(Cause.EMPTY_TARGET, target=self._names[self._empty[0]]))
        return sighting_of(workspace, learnt.state, answered_at=learnt.answered_at, target=target, several=True)

    def _listed(self, missing: set[str], deadline: Deadline) -> Iterator[tuple[str, Known, int]]:
        """Yield what runs, as far as the targets list it. The same instance may come from two of them."""
        listing = deadline.within(deadline.remaining() * LISTING_TIME_SHARE)
        expected = len(missing) // len(self._targets)

        def running(target: int) -> list[tuple[str, Known, int]]:
            listed = self._targets[target].running(missing, listing, expected=expected, at_once=self._at_once)
            return [(one, Known(RUNNING, answered_at), target) for one, answered_at in listed]

        places = range(len(self._targets))
        for found in in_parallel(running, iter(places), listing, at_once=min(MOST_CALLS, len(places))):
            for one in found:
                self._found.add(one[2])
                yield one

    def _asked(self, ids: Sequence[str], deadline: Deadline) -> Iterator[Decided]:
        """Yield what the targets say about each id; nothing for an id that was not reached by the deadline."""
        enough_s = fair_share(self._timeout_s, deadline)
        search = Search(ids, self._names, hints=self._hints, last=self._failed)
        shares = _Shares(deadline, self._timeout_s)
        in_a_row: list[list[Failure | None]] = [[] for _ in self._targets]
        under_way: _Calls = {}
        pool = ThreadPoolExecutor(min(MOST_CALLS, self._at_once * len(self._targets)))
        try:
            while True:
                if not deadline.over():
                    busy = Counter(target for target, _ in under_way.values())
                    for target in range(len(self._targets)):
                        self._begin(pool, search, target, busy[target], under_way, shares)
                if not under_way:
                    break
                ended, _ = wait(under_way, deadline.remaining() + HANDOVER_SECONDS, FIRST_COMPLETED)
                if not ended:
                    break
                for call in ended:
                    target, batch = under_way.pop(call)
                    learnt = call.result()
                    answered, failure = self._noted(target, learnt)
                    in_a_row[target] = [] if answered else [*in_a_row[target], failure]
                    yield from self._remembered(search.answered(target, batch, learnt))
                    if len(in_a_row[target]) == MOST_FAILURES:
                        yield from search.give_up(target, next(filter(None, in_a_row[target]), None))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        yield from search.cut_off(deadline.now(), enough_s)

    def _begin(
        self, pool: ThreadPoolExecutor, search: Search, target: int, busy: int, under_way: _Calls, shares: "_Shares"
    ) -> None:
        """Begin as many calls to a target as may be. A batch that is not full waits for the `busy` calls before it."""
        while busy < self._at_once and search.waiting(target) >= (IDS_PER_CALL if busy else 1):
            if len(under_way) == MOST_CALLS:
                return
            batch, times = search.batch(target, shares.deadline.now())
            if batch:
                share, enough_at = shares.next(times)
                call = pool.submit(self._targets[target].ask, batch, share, enough_at=enough_at)
                under_way[call] = (target, batch)
                busy += 1

    def _noted(self, target: int, learnt: dict[str, Learnt]) -> tuple[bool, Failure | None]:
        """Note what a target's answer says about the target. Return whether it is one, and why something is missing."""
        failure = next((one for one in learnt.values() if isinstance(one, Failure)), None)
        known = [one for one in learnt.values() if isinstance(one, Known)]
        if failure is not None:
            self._failed.setdefault(target, failure)
        if known:
            self._answered.add(target)
        if any(VERDICT_OF_STATE.get(one.state) in FOUND for one in known):
            self._found.add(target)
        return bool(known), failure

    def _remembered(self, all_decided: Iterator[Decided]) -> Iterator[Decided]:
        """Remember where instances are."""
        hints = self._hints
        for decided in all_decided:
            if isinstance(decided.learnt, Known):
                hints.pop(decided.instance_id, None)
            if decided.target is not None:
                hints[decided.instance_id] = decided.target
                while len(hints) > MOST_HINTS:
                    del hints[next(iter(hints))]
            yield decided


class _Shares:
    """How much of a probe's time each call may take. One that hangs leaves time to ask the others, and to decide."""

    def __init__(self, deadline: Deadline, timeout_s: float) -> None:
        self.deadline, self._timeout_s, self._whole_s = deadline, timeout_s, deadline.remaining()

    def next(self, times: int) -> tuple[Deadline, float]:
        """Return the deadline and `enough_at` of a call that begins now and may be the first of so many in a row.

        If it begins too late for a share like that of the first ones, and is cut off, it has not failed: its instances
        are left for the next cycle.
        """
        parts = max(2, times)
        share = self.deadline.within(self.deadline.remaining() / parts)
        is_late = share.remaining() < ENOUGH * min(self._timeout_s, self._whole_s / parts)
        return share, math.inf if is_late else -math.inf
