"""What every platform client does: the simulation's in memory, and the HTTP client with a server."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Protocol

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause, Failure, Workspace
from handler.net.secrets import Secrets, Tokens
from handler.restarts import Answer, Platform, Reply
from handler.restarts.platform import HttpPlatform
from handler.settings import Remote
from sandbox import http_server
from sandbox.fleet import Fleet
from sandbox.platform import Platform as PlatformServer
from sandbox.postgres import Database
from tests.fakes.tables import Row
from tests.fakes.world import Asked, World
from tests.fakes.world import Platform as FakePlatform
from tests.unit.builders import instance, uuid

RETRY_AFTER_S = 120.0


class Subject(Protocol):
    """A platform with one workspace, which is offline and records a dead instance."""

    def platform(self) -> Platform:
        """Return the platform as a cycle asks it."""
        ...

    def deadline(self, seconds: float) -> Deadline:
        """Return a deadline by the platform's clock."""
        ...

    def answer(self, status: HTTPStatus) -> None:
        """Make it answer with this and do nothing."""
        ...

    def hang(self) -> None:
        """Make it not answer."""
        ...

    def remove(self) -> None:
        """Remove the workspace."""
        ...

    def recorded(self) -> str | None:
        """Return the instance that the workspace records."""
        ...

    def asked(self) -> int:
        """Return how many requests have come."""
        ...


class InMemory:
    """See Subject. It is also the invocation that asks."""

    cycle_id = "cycle"

    def __init__(self) -> None:
        self._world = World()
        self._world.tables.workspaces[uuid(1)] = Row(instance(1), status="offline")

    def platform(self) -> Platform:
        return FakePlatform(self._world, self)

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds, clock=self.clock)

    def answer(self, status: HTTPStatus) -> None:
        if status is HTTPStatus.CONFLICT:
            self._world.blocked.add(uuid(1))
        else:
            moods = {HTTPStatus.SERVICE_UNAVAILABLE: "refuse", HTTPStatus.TOO_MANY_REQUESTS: "throttle"}
            self._world.platform_mood = moods[status]

    def hang(self) -> None:
        self._world.platform_mood = "lose"

    def remove(self) -> None:
        self._world.tables.workspaces[uuid(1)].status = "removed"

    def recorded(self) -> str | None:
        self._world.tables.now += 3600
        self._world.work()
        return self._world.tables.workspaces[uuid(1)].instance_id

    def asked(self) -> int:
        return len(self._world.asked)

    def before(self, call: str) -> None:
        pass

    def clock(self) -> float:
        return self._world.tables.now

    def answered(self, workspace: Workspace, word: str, *, lied: bool) -> None:
        raise AssertionError(workspace, word, lied)

    def asks(self, workspace_id: str, instance_id: str) -> Asked:
        self._world.asked.append(Asked(1, workspace_id, instance_id, self.clock()))
        return self._world.asked[-1]


class OverHttp:
    """See Subject."""

    def __init__(self, server: PlatformServer, database: Database) -> None:
        self._server, self._fleet = server, Fleet(database)
        self._fleet.add(instance(1), id=uuid(1), status="offline")

    def platform(self) -> Platform:
        remote = Remote(self._server.url, None, ("token",), {"token": self._server.token})
        return HttpPlatform(remote.base_url, None, Tokens(remote, "PLATFORM_SECRET_ARN", Secrets(_never)), Deadline(1))

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds)

    def answer(self, status: HTTPStatus) -> None:
        wait = {"Retry-After": f"{RETRY_AFTER_S:.0f}"} if status is HTTPStatus.TOO_MANY_REQUESTS else {}
        self._server.instead.reply(http_server.Answer(status, headers=wait))

    def hang(self) -> None:
        self._server.instead.reply(http_server.Hang())

    def remove(self) -> None:
        self._fleet.update(uuid(1), status="removed")

    def recorded(self) -> str | None:
        self._server.settle()
        return str(self._fleet.row(uuid(1))["instance_id"])

    def asked(self) -> int:
        return len(self._server.calls)


def _never(*_: object) -> str:
    raise AssertionError("a secret is asked for")


@pytest.fixture(params=["memory", "http"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A platform of each kind."""
    if request.param == "memory":
        yield InMemory()
        return
    database = request.getfixturevalue("database")
    with PlatformServer(database, terminate=lambda _: None, launch=lambda: instance(2)) as server:
        yield OverHttp(server, database)


def ask(subject: Subject, seconds: float = 5.0) -> Reply:
    """Connect and ask, both by the same deadline."""
    deadline = subject.deadline(seconds)
    connection = subject.platform().connect(deadline)
    if isinstance(connection, Reply):
        return connection
    try:
        return connection.restart(uuid(1), instance(1), deadline)
    finally:
        connection.close()


def test_an_accepted_restart_provisions_another_instance(subject: Subject) -> None:
    assert ask(subject).answer is Answer.ACCEPTED
    assert subject.recorded() not in (None, instance(1))


@pytest.mark.parametrize(
    ("status", "answer", "wait_s"),
    [
        (HTTPStatus.SERVICE_UNAVAILABLE, Answer.REFUSED, None),
        (HTTPStatus.TOO_MANY_REQUESTS, Answer.REFUSED, RETRY_AFTER_S),
        (HTTPStatus.CONFLICT, Answer.BLOCKED, None),
    ],
)
def test_an_answer_that_does_nothing_has_its_meaning(
    subject: Subject, status: HTTPStatus, answer: Answer, wait_s: float | None
) -> None:
    subject.answer(status)
    assert ask(subject) == Reply(answer, Failure(Cause.HTTP_STATUS, str(status.value)), wait_s)
    assert subject.recorded() == instance(1)


def test_a_removed_workspace_is_refused(subject: Subject) -> None:
    subject.remove()
    assert ask(subject) == Reply(Answer.REFUSED, Failure(Cause.HTTP_STATUS, "404"))


def test_a_request_without_an_answer_is_uncertain(subject: Subject) -> None:
    subject.hang()
    assert ask(subject, seconds=0.3) == Reply(Answer.UNCERTAIN, Failure(Cause.TIMEOUT))
    assert subject.asked() == 1


def test_nothing_is_asked_for_when_no_time_is_left(subject: Subject) -> None:
    assert ask(subject, seconds=0.0).answer is Answer.REFUSED
    assert subject.asked() == 0
