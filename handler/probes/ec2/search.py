"""Which target is asked about which instance next, and what the targets' answers add up to. Pure.

A target is asked about an instance once at most. What one has found, no further call names. "Not found" counts when
every target has said it.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from handler.domain.model import NOT_FOUND, Cause, Failure
from handler.probes.ec2.probe import IDS_PER_CALL, RUNNING, Known, Learnt

# Instead of a target's place: the instance was found by none.
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Decided:
    """What is known of one instance now. `target` is the place of the one that found it, or NOWHERE."""

    instance_id: str
    learnt: Learnt
    target: int = NOWHERE


@dataclass(slots=True)
class _Case:
    """What is known so far of one instance, and who is still to be asked, next one first."""

    ahead: tuple[int, ...] = ()
    waits_for: int = 0  # targets to be asked, whatever others say
    under_way: int = 0  # calls
    asked: int = NOWHERE  # latest
    began_at: float | None = None
    found: list[tuple[int, Known]] = field(default_factory=list)
    missing_at: float = math.inf
    failure: Failure | None = None


class Search:
    """The search for some instances in all targets, until each is found, or was asked for everywhere."""

    def __init__(
        self, ids: Iterable[str], names: Sequence[str], *, hints: Mapping[str, int], last: Collection[int] = ()
    ) -> None:
        """Search the targets with these names.

        `hints` tells where instances were found before: there they are asked for first. One that was found NOWHERE is
        asked for everywhere at once. Of the others, each target is the first one to be asked for its share. The targets
        in `last` are asked when all others were.
        """
        self._names = names
        self._queues: list[deque[str]] = [deque() for _ in names]
        self._given_up: dict[int, Failure] = {}
        self._cases: dict[str, _Case] = {}
        places = range(len(names))
        orders = [sorted((*places[first:], *places[:first]), key=lambda one: one in last) for first in places]
        for number, one in enumerate(ids):
            hint = hints.get(one)
            if hint == NOWHERE:
                self._cases[one] = _Case(waits_for=len(names))
                for queue in self._queues:
                    queue.append(one)
            else:
                order = orders[number % len(names) if hint is None else hint]
                first = order[0] if hint is None else hint
                self._cases[one] = _Case(tuple(target for target in order if target != first), waits_for=1)
                self._queues[first].append(one)

    def waiting(self, target: int) -> int:
        """Return about how many instances are to be asked for at a target next."""
        return len(self._queues[target])

    def batch(self, target: int, now: float) -> tuple[list[str], int]:
        """Take ids to ask a target for now. Tell how many targets, this one included, may have to be asked in turn."""
        queue, in_turn = self._queues[target], 1
        ids: list[str] = []
        while queue and len(ids) < IDS_PER_CALL:
            one = queue.popleft()
            case = self._cases.get(one)
            if case is None:
                continue
            case.waits_for -= 1
            if case.found:  # what a call that is under way may still contradict, but no further one
                continue
            case.under_way += 1
            case.asked = target
            case.began_at = now if case.began_at is None else case.began_at
            in_turn = max(in_turn, 1 + len(case.ahead))
            ids.append(one)
        return ids, in_turn

    def answered(self, target: int, batch: Sequence[str], learnt: Mapping[str, Learnt]) -> Iterator[Decided]:
        """Take what a target has answered about a batch; yield what that decides. No answer is a failure."""
        no_answer = Failure(Cause.TIMEOUT)
        for one in batch:
            case = self._cases.get(one)
            if case is None:  # it was found running meanwhile
                continue
            case.under_way -= 1
            answer = learnt.get(one, no_answer)
            if isinstance(answer, Failure):
                self._failed(case, target, answer)
            elif answer.state == NOT_FOUND:
                case.missing_at = min(case.missing_at, answer.answered_at)
            else:
                case.found.append((target, answer))
            yield from self._moved_on(one, case)

    def give_up(self, target: int, failure: Failure) -> Iterator[Decided]:
        """Ask a target no more; yield what that decides. It has failed for whatever it would be asked for."""
        self._given_up[target] = failure
        queue = self._queues[target]
        while queue:
            one = queue.popleft()
            case = self._cases.get(one)
            if case is not None:
                case.waits_for -= 1
                self._failed(case, target, failure)
                yield from self._moved_on(one, case)

    def cut_off(self, now: float, enough_s: float) -> Iterator[Decided]:
        """Yield what is known at the end of the time. Who had not `enough_s` seconds was not reached."""
        for one, case in self._cases.items():
            if case.found:
                yield _of(one, case)
            elif case.failure is not None:
                yield Decided(one, case.failure)
            elif case.began_at is not None and now - case.began_at >= enough_s:
                yield Decided(one, Failure(Cause.TIMEOUT, target=self._names[case.asked]))

    def _failed(self, case: _Case, target: int, failure: Failure) -> None:
        if case.failure is None:
            case.failure = replace(failure, target=self._names[target])

    def _moved_on(self, one: str, case: _Case) -> Iterator[Decided]:
        """Yield the decision about an instance, or have the next target asked."""
        is_running = any(known.state == RUNNING for _, known in case.found)
        if not is_running:
            if case.under_way:  # a living answer may still come
                return
            while not (case.found or case.waits_for) and case.ahead:
                target, *ahead = case.ahead
                case.ahead = tuple(ahead)
                if target in self._given_up:
                    self._failed(case, target, self._given_up[target])
                else:
                    case.waits_for += 1
                    self._queues[target].append(one)
            if case.waits_for and not case.found:
                return
        del self._cases[one]
        yield _of(one, case)


def _of(one: str, case: _Case) -> Decided:
    """Return what the answers about an instance add up to.

    If targets disagree, it lives if one says so. Otherwise nobody knows. It is absent only if nobody failed.
    """
    if case.found:
        target, known = next((found for found in case.found if found[1].state == RUNNING), case.found[0])
        if known.state != RUNNING and any(other.state != known.state for _, other in case.found):
            return Decided(one, Failure(Cause.TARGETS_DISAGREE))
        return Decided(one, known, target)
    return Decided(one, case.failure or Known(NOT_FOUND, case.missing_at))
