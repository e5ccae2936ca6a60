"""Several targets in simulated time: models of EC2's answers under the real probe over Regions and accounts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, cast

import pytest

from handler.deadline import Deadline
from handler.domain.model import NOT_FOUND, Cause, Failure, Sighting, Verdict, Workspace
from handler.probes import TargetTroubles
from handler.probes.ec2 import targets
from handler.probes.ec2.probe import Ec2Probe, Known, Learnt
from handler.probes.ec2.targets import TargetsProbe
from tests.fakes.world import ERROR, Caller, World


class Judge(Caller, Protocol):
    """A caller that looks at what the probe says."""

    def require(self, condition: object, what: str) -> None: ...


def target_of(instance_id: str, count: int) -> int:
    """Return the place of the target that has an instance."""
    return int(instance_id.removeprefix("i-") or "0", 16) % count


class Targets:
    """The probe over some targets, and what it must not do. See handler.probes.Probe."""

    def __init__(self, world: World, caller: Judge, *, count: int, timeout_s: float, hints: dict[str, int]) -> None:
        self._world, self._caller, self._count = world, caller, count
        self._blind = set(world.blind)
        models = [cast("Ec2Probe", _Target(self, place)) for place in range(count)]
        self._probe = TargetsProbe(models, timeout_s=timeout_s, hints=hints)
        self._recorded_by: dict[str, list[Workspace]] = {}
        self._found: set[str] = set()
        self._missing: dict[str, set[int]] = {}

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See handler.probes.Probe."""
        self._recorded_by = {}
        for workspace in workspaces:
            self._recorded_by.setdefault(workspace.instance_id, []).append(workspace)
        self._found, self._missing = set(), {}
        for one in self._probe.sightings(workspaces, deadline):
            instance_id = one.workspace.instance_id
            if one.verdict is Verdict.ABSENT:
                everybody = len(self._missing.get(instance_id, ())) == self._count
                self._caller.require(everybody, "an instance is absent, and not every target has said so")
                self._caller.require(not self._blind, "an instance is absent though a target knows nobody")
                self._caller.answered(one.workspace, NOT_FOUND, lied=instance_id in self._world.instances)
            elif one.verdict is Verdict.UNKNOWN and instance_id not in self._found:
                self._caller.answered(one.workspace, ERROR, lied=False)
            yield one

    def impaired(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Callable[[], int]:  # noqa: ARG002
        """See handler.probes.Probe. Nobody is."""
        return lambda: 0

    def troubles(self) -> TargetTroubles:
        """See handler.probes.Probe."""
        return self._probe.troubles()

    def begins(self, ids: Sequence[str]) -> None:
        """Look at what a call is to ask for."""
        self._caller.require(not self._found.intersection(ids), "a target is asked for what another has found")

    def answer(self, place: int, ids: Sequence[str], deadline: Deadline, enough_at: float) -> dict[str, Learnt]:
        """Answer a call to a target."""
        world, caller = self._world, self._caller
        caller.before("probe")
        world.tables.now += min(world.probe_takes_s, deadline.remaining())
        if deadline.over():
            return {} if deadline.now() < enough_at else dict.fromkeys(ids, Failure(Cause.TIMEOUT))
        if place in world.down:
            return dict.fromkeys(ids, Failure(Cause.SERVER_ERROR))
        learnt: dict[str, Learnt] = {}
        for one in ids:
            known = place not in self._blind and target_of(one, self._count) == place
            word, lied = world.answer(one) if known else (NOT_FOUND, False)
            learnt[one] = Failure(Cause.SERVER_ERROR) if word == ERROR else Known(word, caller.clock())
            if word == NOT_FOUND:
                self._missing.setdefault(one, set()).add(place)
            elif word != ERROR:
                self._found.add(one)
                for workspace in self._recorded_by[one]:
                    caller.answered(workspace, word, lied=lied)
        return learnt


class _Target:
    """One target, as far as the probe uses it."""

    api = None
    may_be_empty = False

    def __init__(self, targets: Targets, place: int) -> None:
        self._targets, self._place = targets, place
        self.target = f"target {place}"

    def begins(self, ids: Sequence[str]) -> None:
        self._targets.begins(ids)

    def ask(self, ids: Sequence[str], deadline: Deadline, *, enough_at: float) -> dict[str, Learnt]:
        return self._targets.answer(self._place, ids, deadline, enough_at)


class _Call(Future[Any]):
    """A call that is under way, and is answered when somebody waits for it."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__()
        self.answer = answer


class _NoThreads:
    """Begins calls as an executor does. They are answered one by one, on the thread that waits for them."""

    def __init__(self, _: int) -> None:
        pass

    def submit(self, ask: Any, ids: Sequence[str], deadline: Deadline, **options: float) -> _Call:
        ask.__self__.begins(ids)
        return _Call(partial(ask, ids, deadline, **options))

    def shutdown(self, **_: bool) -> None:
        pass


def _wait(calls: Iterable[_Call], *_: object) -> tuple[list[_Call], list[_Call]]:
    """Answer one of the calls: not always the first one."""
    under_way = list(calls)
    answered = under_way.pop(len(under_way) // 2)
    answered.set_result(answered.answer())
    return [answered], under_way


def without_threads(patch: pytest.MonkeyPatch) -> None:
    """Let the probe's calls be answered one after another, so that a schedule runs the same way each time."""
    patch.setattr(targets, "ThreadPoolExecutor", _NoThreads)
    patch.setattr(targets, "wait", _wait)
