"""Which target is asked about which instance next, and what the targets' answers add up to. Pure.

A target is asked about an instance once at most. What one has found, no further call names. "Not found" counts when
every target has said it.
"""

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from handler.domain.model import NOT_FOUND, Cause, Failure
from handler.probes.ec2.probe import IDS_PER_CALL, RUNNING, Known, Learnt

# Targets that are asked at once, by their places.
_Group = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """What is known of one instance now, and the place of the target that found it."""

    instance_id: str
    learnt: Learnt
    target: int | None = None


@dataclass(slots=True)
class _Case:
    """What is known so far of one instance, and who is asked if those who are asked now do not find it."""

    ahead: tuple[_Group, ...]
    waits_for: int  # how many targets of the present group are still to be asked
    under_way: int = 0  # calls
    asked: int = 0  # the target that was asked last
    began_at: float = 0.0  # when the first of the calls under way began
    found: list[tuple[int, Known]] = field(default_factory=list)
    missing_at: float = math.inf
    failure: Failure | None = None
    cut_off: bool = False  # some target had too little time to answer, and has not failed


class Search:
    """The search for some instances in all targets, until each is found, or was asked for everywhere."""

    def __init__(
        self, ids: Sequence[str], names: Sequence[str], *, hints: Mapping[str, int], last: Collection[int] = ()
    ) -> None:
        """Search the targets with these names.

        `hints` tells where instances were found before: there they are asked for first. The others are asked for
        everywhere at once, but each target begins with another part of them, so that much is found before its turn
        comes elsewhere. The targets in `last` have failed in this cycle. They are asked for what no other has found.
        """
        self._names = names
        self._given_up: dict[int, Failure | None] = {}
        places = range(len(names))
        groups = [one for one in (tuple(p for p in places if p not in last), tuple(last)) if one]
        everywhere = [one for one in ids if one not in hints]
        self._cases = {one: _Case(tuple(groups[1:]), len(groups[0])) for one in everywhere}
        self._parts = [_Part(everywhere, len(everywhere) * place // len(names)) for place in places]
        for place in places:
            if place not in groups[0]:
                self._parts[place].left = 0
        self._queues: list[deque[str]] = [deque() for _ in places]
        for one in ids:
            if (hint := hints.get(one)) is not None:
                others = (tuple(place for place in group if place != hint) for group in groups)
                self._cases[one] = _Case(tuple(group for group in others if group), 1)
                self._queues[hint].append(one)

    def waiting(self, target: int) -> int:
        """Return how many instances a target may have to be asked for next."""
        return len(self._queues[target]) + self._parts[target].left

    def batch(self, target: int, now: float) -> tuple[list[str], int]:
        """Take ids to ask a target for now. Tell how many calls in a row this may take, this one included."""
        ids: list[str] = []
        times = 1
        while len(ids) < IDS_PER_CALL and (one := self._next(target)) is not None:
            case = self._cases[one]
            if case.found:  # what a call that is under way may still contradict, but no further one
                continue
            if not case.under_way:
                case.began_at = now
            case.under_way += 1
            case.asked = target
            times = max(times, 1 + len(case.ahead))
            ids.append(one)
        return ids, times

    def answered(self, target: int, batch: Sequence[str], learnt: Mapping[str, Learnt]) -> Iterator[Decided]:
        """Take what a target has answered about a batch; yield what that decides.

        Where nothing was learnt, the call was cut off too early to prove anything.
        """
        for one in batch:
            case = self._cases.get(one)
            if case is None:  # it was found running meanwhile
                continue
            case.under_way -= 1
            answer = learnt.get(one)
            if answer is None or isinstance(answer, Failure):
                self._failed(case, target, answer)
            elif answer.state == NOT_FOUND:
                case.missing_at = min(case.missing_at, answer.answered_at)
            else:
                case.found.append((target, answer))
            yield from self._moved_on(one, case)

    def give_up(self, target: int, failure: Failure | None) -> Iterator[Decided]:
        """Ask a target no more; yield what that decides. It has failed for all that it would still be asked for.

        Without a failure (None), it only had too little time.
        """
        self._given_up[target] = failure
        while (one := self._next(target)) is not None:
            case = self._cases[one]
            self._failed(case, target, failure)
            yield from self._moved_on(one, case)

    def cut_off(self, now: float, enough_s: float) -> Iterator[Decided]:
        """Yield what is known when time is up. What was asked for less than `enough_s` seconds ago was not reached."""
        for one, case in self._cases.items():
            if case.found:
                yield self._of(one, case)
            elif case.failure is not None:
                yield Decided(one, case.failure)
            elif case.under_way and now - case.began_at >= enough_s:
                yield Decided(one, Failure(Cause.TIMEOUT, target=self._names[case.asked]))

    def _next(self, target: int) -> str | None:
        """Take the next undecided instance to ask a target for."""
        queue, part = self._queues[target], self._parts[target]
        while queue or part.left:
            one = queue.popleft() if queue else part.take()
            case = self._cases.get(one)
            if case is not None:
                case.waits_for -= 1
                return one
        return None

    def _failed(self, case: _Case, target: int, failure: Failure | None) -> None:
        """Note that a target gave no answer about an instance; None: it only had too little time."""
        if failure is None:
            case.cut_off = True
        elif case.failure is None:
            case.failure = replace(failure, target=self._names[target])

    def _moved_on(self, one: str, case: _Case) -> Iterator[Decided]:
        """Yield the decision about an instance, or have the next targets asked."""
        is_running = any(known.state == RUNNING for _, known in case.found)
        if not is_running:
            if case.under_way:  # a living answer may still come
                return
            while not (case.found or case.waits_for) and case.ahead:
                group, *ahead = case.ahead
                case.ahead = tuple(ahead)
                for target in group:
                    if target in self._given_up:
                        self._failed(case, target, self._given_up[target])
                    else:
                        case.waits_for += 1
                        self._queues[target].append(one)
            if case.waits_for and not case.found:
                return
            if case.cut_off and not (case.found or case.failure):  # it was not reached
                return
        del self._cases[one]
        yield self._of(one, case)

    def _of(self, one: str, case: _Case) -> Decided:
        """Return what the answers about an instance add up to.

        If targets disagree, it lives if one says so. Otherwise nobody knows. It is absent only if nobody failed.
        """
        if case.found:
            target, known = next((found for found in case.found if found[1].state == RUNNING), case.found[0])
            if known.state != RUNNING and any(other.state != known.state for _, other in case.found):
                names = " and ".join(self._names[place] for place, _ in sorted(case.found, key=lambda found: found[0]))
                return Decided(one, Failure(Cause.TARGETS_DISAGREE, target=names))
            return Decided(one, known, target)
        return Decided(one, case.failure or Known(NOT_FOUND, case.missing_at))


class _Part:
    """A way through all ids that begins somewhere in the middle."""

    def __init__(self, ids: Sequence[str], start: int) -> None:
        self._ids, self._at, self.left = ids, start, len(ids)

    def take(self) -> str:
        one = self._ids[self._at]
        self._at, self.left = (self._at + 1) % len(self._ids), self.left - 1
        return one
