"""What every probe does: the simulation's in memory, EC2's, with one target and with two, and the control plane's."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol

import pytest

from handler import process
from handler.deadline import Deadline
from handler.domain.model import NOT_FOUND, VERDICT_OF_STATE, Sighting, Verdict, Workspace
from handler.net.secrets import Secrets, Tokens
from handler.probes import Probe
from handler.probes.control_plane.probe import ControlPlaneProbe
from handler.probes.ec2.api import Ec2Api
from handler.probes.ec2.probe import Ec2Probe
from handler.settings import Remote
from sandbox.control_plane import ControlPlane
from sandbox.ec2 import REGION
from sandbox.ec2_xml import STATE_CODES
from sandbox.http_server import Answer
from sandbox.limited_ec2 import ApiError, LimitedEc2
from sandbox.regions import Regions, Trust
from tests.fakes import world
from tests.fakes.world import ERROR, Asked, Instance, Lie, World
from tests.unit.builders import instance, number_of, workspace

PLENTY_S = 20.0
EC2S_WORDS = tuple(word for word in VERDICT_OF_STATE if word != NOT_FOUND)
NOT_EC2S_WORD = "rebooting"
WORDS = (*EC2S_WORDS, NOT_EC2S_WORD)


class Subject(Protocol):
    """A probe, and the account that it asks about."""

    def set_state(self, number: int, state: str | None) -> None:
        """Put an instance into a state, or (None) make it unknown."""
        ...

    targets: tuple[str, ...]

    def impair(self, number: int) -> None:
        """Let an instance fail EC2's system status check, if the source of truth knows of such checks."""
        ...

    def refuse(self) -> None:
        """Make the source of truth answer with an error."""
        ...

    def delay(self, seconds: float) -> None:
        """Make each answer take that long."""
        ...

    def deadline(self, seconds: float) -> Deadline:
        """Return a deadline by the probe's clock."""
        ...

    def probe(self, *, timeout_s: float = 10.0) -> Probe:
        """Return a new probe. It makes one check at a time, unless it asks about all instances at once."""
        ...


class InMemory:
    """See Subject. It is also the invocation that uses the probe."""

    cycle_id = "cycle"
    targets: tuple[str, ...] = (world.TARGET,)

    def __init__(self) -> None:
        self._world = World()

    def set_state(self, number: int, state: str | None) -> None:
        self._world.instances.pop(instance(number), None)
        if state is not None:
            self._world.instances[instance(number)] = Instance(state)

    def impair(self, number: int) -> None:
        self._world.impaired.add(instance(number))

    def refuse(self) -> None:
        self._world.lies = {one: Lie(ERROR, 1) for one in self._world.instances}

    def delay(self, seconds: float) -> None:
        self._world.probe_takes_s = seconds

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds, clock=self.clock)

    def probe(self, *, timeout_s: float = 10.0) -> Probe:
        return world.Probe(self._world, self, in_bulk=False, timeout_s=timeout_s)

    def before(self, call: str) -> None:
        pass

    def clock(self) -> float:
        return self._world.tables.now

    def answered(self, workspace: Workspace, word: str, *, lied: bool) -> None:
        pass

    def asks(self, workspace_id: str, instance_id: str) -> Asked:
        raise AssertionError(workspace_id, instance_id)


class OfEc2:
    """See Subject. The account has the instances of the first few numbers."""

    targets: tuple[str, ...] = (REGION,)

    def __init__(self, server: LimitedEc2) -> None:
        self._server = server
        assert server.add(len(WORDS) + 2)[0] == instance(1)
        self._aws = process.aws()
        self.close = self._aws.close

    def set_state(self, number: int, state: str | None) -> None:
        if state is None:
            self._server.forget(instance(number))
        else:
            self._server.set_state(instance(number), state)

    def impair(self, number: int) -> None:
        self._server.impair(instance(number))

    def refuse(self) -> None:
        error = ApiError("UnauthorizedOperation", "You are not authorized.", HTTPStatus.FORBIDDEN)
        self._server.script.reply(error.as_answer())

    def delay(self, seconds: float) -> None:
        self._server.latency_s = seconds

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds)

    def probe(self, *, timeout_s: float = 10.0) -> Probe:
        api = Ec2Api(self._aws.ec2, self._aws.within, timeout_s=timeout_s)
        return Ec2Probe(api, timeout_s=timeout_s, target=self._aws.region())


class OfTargets:
    """See Subject. Instances with odd numbers are here, the others there, in another Region and account."""

    targets: tuple[str, ...] = (REGION, "eu-west-1/210987654321", "every target")

    def __init__(self, regions: Regions) -> None:
        role = "arn:aws:iam::210987654321:role/reconciler"
        regions.roles[role] = Trust()
        self._here, self._there = regions.add(), regions.add("eu-west-1", "210987654321", first=1)
        for number in range(1, len(WORDS) + 3):
            for one in (self._here, self._there):
                one.add()
            self._other(number).forget(instance(number))
        listed = [{"region": REGION}, {"region": "eu-west-1", "role_arn": role}]
        targets = json.dumps([one | {"may_be_empty": True} for one in listed])
        self._process = process.Process({"DATABASE_URL": "postgresql://x:y@z/platform", "EC2_TARGETS": targets})
        self.close = self._process.close

    def _own(self, number: int) -> LimitedEc2:
        return self._here if number % 2 else self._there

    def _other(self, number: int) -> LimitedEc2:
        return self._there if number % 2 else self._here

    def set_state(self, number: int, state: str | None) -> None:
        if state is None:
            self._own(number).forget(instance(number))
        else:
            self._own(number).set_state(instance(number), state)

    def impair(self, number: int) -> None:
        self._own(number).impair(instance(number))

    def refuse(self) -> None:
        error = ApiError("UnauthorizedOperation", "You are not authorized.", HTTPStatus.FORBIDDEN)
        self._here.script.reply(error.as_answer())

    def delay(self, seconds: float) -> None:
        self._here.latency_s = self._there.latency_s = seconds

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds)

    def probe(self, *, timeout_s: float = 10.0) -> Probe:
        self._process.settings = replace(self._process.settings, probe_timeout_seconds=timeout_s)
        return self._process.parts().probe(Deadline(1))


class OfControlPlane:
    """See Subject. `states` are what the control plane answers from."""

    targets: tuple[str, ...] = ("control_plane",)

    def __init__(self, server: ControlPlane, states: dict[str, str]) -> None:
        self._server, self._states = server, states
        tokens = {"shared_secret": server.shared_secret, "admin_token": server.admin_token}
        self._remote = Remote(server.url, None, tuple(tokens), tokens)

    def set_state(self, number: int, state: str | None) -> None:
        self._states.pop(instance(number), None)
        if state is not None:
            self._states[instance(number)] = state

    def impair(self, number: int) -> None:
        """The control plane knows of no status checks."""

    def refuse(self) -> None:
        self._server.script.reply(Answer(HTTPStatus.BAD_REQUEST))

    def delay(self, seconds: float) -> None:
        self._server.latency_s = seconds

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds)

    def probe(self, *, timeout_s: float = 10.0) -> Probe:
        tokens = Tokens(self._remote, "CP_SECRET_ARN", Secrets(_never))
        return ControlPlaneProbe(self._server.url, tokens, Deadline(1), concurrency=1, timeout_s=timeout_s)


def _never(*_: object) -> str:
    raise AssertionError("a secret is asked for")


@pytest.fixture(params=["memory", "ec2", "targets", "control_plane"])
def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """A probe of each kind."""
    if request.param == "memory":
        yield InMemory()
    elif request.param == "ec2":
        with LimitedEc2() as ec2:
            for name, value in ec2.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setitem(STATE_CODES, NOT_EC2S_WORD, 32)
            with closing(OfEc2(ec2)) as subject:
                yield subject
    elif request.param == "targets":
        with Regions() as regions:
            for name, value in regions.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setitem(STATE_CODES, NOT_EC2S_WORD, 32)
            with closing(OfTargets(regions)) as over_targets:
                yield over_targets
    else:
        states: dict[str, str] = {}
        with ControlPlane(states.get) as control_plane:
            yield OfControlPlane(control_plane, states)


def seen(subject: Subject, *numbers: int, within_s: float = PLENTY_S, timeout_s: float = 10.0) -> dict[int, Sighting]:
    """Probe these workspaces; return their sightings, of which each has one at most."""
    sightings = list(
        subject.probe(timeout_s=timeout_s).sightings(list(map(workspace, numbers)), subject.deadline(within_s))
    )
    found = {number_of(one.workspace.id): one for one in sightings}
    assert len(found) == len(sightings)
    return found


def test_each_state_of_ec2_has_its_verdict_and_any_other_is_unknown(subject: Subject) -> None:
    for number, word in enumerate(WORDS, 1):
        subject.set_state(number, word)
    subject.set_state(len(WORDS) + 1, None)
    found = seen(subject, *range(1, len(WORDS) + 2))
    assert [found[number].state for number in range(1, len(WORDS) + 2)] == [*EC2S_WORDS, "", NOT_FOUND]
    for number, word in enumerate(EC2S_WORDS, 1):
        assert found[number].verdict is VERDICT_OF_STATE[word]
    assert found[len(WORDS)].verdict is Verdict.UNKNOWN
    assert found[len(WORDS) + 1].verdict is Verdict.ABSENT


def test_a_sighting_says_who_answered_and_when(subject: Subject) -> None:
    """When the answer arrived, not when it was asked for: it may be acted on for a few seconds only."""
    subject.set_state(1, "stopped")
    subject.set_state(2, None)
    subject.delay(0.2)
    deadline = subject.deadline(PLENTY_S)
    asked_at = deadline.now()
    found = list(subject.probe().sightings([workspace(1), workspace(2)], deadline))
    assert {one.verdict for one in found} == {Verdict.DEAD, Verdict.ABSENT}
    for one in found:
        assert one.target in subject.targets
        assert asked_at + 0.2 <= one.answered_at <= deadline.now()


def test_impaired_instances_are_counted_where_that_is_known(subject: Subject) -> None:
    """An instance of two workspaces counts twice; one that does not run, or is nobody's, does not count."""
    for number, state in enumerate(("running", "running", "stopped", "running"), 1):
        subject.set_state(number, state)
    for number in (1, 3, 4):
        subject.impair(number)
    ours = [workspace(1), workspace(2), workspace(3), workspace(5, instance(1))]
    expected = 0 if subject.targets == ("control_plane",) else 2
    assert subject.probe().impaired(ours, subject.deadline(PLENTY_S))() == expected


def test_nobody_is_impaired_as_far_as_is_known_when_no_time_is_left(subject: Subject) -> None:
    subject.set_state(1, "running")
    subject.impair(1)
    assert subject.probe().impaired([workspace(1)], subject.deadline(0.0))() == 0


def test_no_workspaces_means_no_sightings(subject: Subject) -> None:
    assert seen(subject) == {}


def test_workspaces_that_record_the_same_instance_each_have_a_sighting(subject: Subject) -> None:
    subject.set_state(1, "stopped")
    both = [workspace(1), workspace(2, instance(1))]
    found = list(subject.probe().sightings(both, subject.deadline(PLENTY_S)))
    assert {one.workspace.id for one in found} == {one.id for one in both}
    assert {one.verdict for one in found} == {Verdict.DEAD}


def test_a_second_probe_asks_again(subject: Subject) -> None:
    subject.set_state(1, "stopped")
    probe = subject.probe()
    (first,) = probe.sightings([workspace(1)], subject.deadline(PLENTY_S))
    subject.set_state(1, "running")
    (second,) = probe.sightings([workspace(1)], subject.deadline(PLENTY_S))
    assert (first.verdict, second.verdict) == (Verdict.DEAD, Verdict.RUNNING)


def test_an_error_is_no_answer(subject: Subject) -> None:
    subject.set_state(1, "stopped")
    subject.refuse()
    found = seen(subject, 1)[1]
    assert (found.verdict, found.state) == (Verdict.UNKNOWN, "")
    assert found.failure


def test_nobody_is_reached_when_no_time_is_left(subject: Subject) -> None:
    subject.set_state(1, "stopped")
    assert seen(subject, 1, within_s=0.0) == {}


def test_a_check_that_takes_longer_than_it_may_counts_and_is_no_answer(subject: Subject) -> None:
    subject.set_state(1, "stopped")
    subject.delay(1.0)
    assert seen(subject, 1, timeout_s=0.2)[1].verdict is Verdict.UNKNOWN


def test_a_check_that_the_deadline_cuts_off_counts_when_it_had_its_share_of_the_time(subject: Subject) -> None:
    subject.set_state(1, "stopped")
    subject.delay(1.0)
    assert seen(subject, 1, within_s=0.3)[1].verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("subject", ["memory", "control_plane"], indirect=True)
def test_the_last_of_several_checks_may_begin_too_late_to_count(subject: Subject) -> None:
    for number in (1, 2):
        subject.set_state(number, "stopped")
    subject.delay(1.2)
    assert {number: one.verdict for number, one in seen(subject, 1, 2, within_s=1.8).items()} == {1: Verdict.DEAD}
