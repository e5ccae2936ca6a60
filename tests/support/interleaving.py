"""Runs two sides on one database in every interleaving: each side stops before each of its statements.

Each side is ordinary code on its own thread. PostgreSQL tells (`pg_blocking_pids`) when a statement waits for a lock of
the other side; then the other side goes on until the statement gets through.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from handler.deadline import Deadline
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store.session import Session

# Nothing here takes this long, except a defect, which then fails by name.
TIMEOUT_S = 30.0
# How long a statement is waited for before PostgreSQL is asked whether it is blocked. No outcome depends on it.
_ASKED_AFTER_S = 0.002


class Turnstile:
    """Stops a thread until it is let go."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def stop(self) -> None:
        """Report an arrival, and wait."""
        self.arrived.release()
        if not self.go.acquire(timeout=TIMEOUT_S):
            raise TimeoutError("nobody lets this side go on")


class SteppedSession(Session):
    """The handler's own session, which stops before each statement once it has a turnstile."""

    turnstile: Turnstile | None = None

    def _run(self, deadline: Deadline, sql: str, **parameters: Any) -> list[Any]:
        self._stop()
        return super()._run(deadline, sql, **parameters)

    def _roll_back(self) -> None:
        self._stop()
        super()._roll_back()

    def _stop(self) -> None:
        if self.turnstile is not None:
            self.turnstile.stop()


class InterruptedSession(Session):
    """The handler's own session, to which something happens before or after one of its statements, counted from 1."""

    happens: Callable[[], object] | None = None
    before: int | None = None
    after: int | None = None
    statements: int = 0

    def interrupt(self, happens: Callable[[], object], *, before: int | None = None, after: int | None = None) -> None:
        """Let `happens` happen before or after that statement from now on."""
        self.happens, self.before, self.after, self.statements = happens, before, after, 0

    def _run(self, deadline: Deadline, sql: str, **parameters: Any) -> list[Any]:
        self.statements += 1
        number = self.statements
        if number == self.before and self.happens is not None:
            self.happens()
        rows = super()._run(deadline, sql, **parameters)
        if number == self.after and self.happens is not None:
            self.happens()
        return rows


class SteppedStatements:
    """Plain SQL on its own connection, stopped in the same way: what the platform does."""

    turnstile: Turnstile | None = None

    def __init__(self, connection: Any) -> None:
        self._run = connection.run

    def run(self, statements: Sequence[str]) -> None:
        """Run them one after the other."""
        for statement in statements:
            if self.turnstile is not None:
                self.turnstile.stop()
            self._run(statement)


Stepped = SteppedSession | SteppedStatements


def stepped_session(url: str) -> SteppedSession:
    """Return a session of the handler for that database."""
    return SteppedSession(database_from({"DATABASE_URL": url}), Secrets(_nothing), _nothing)


def interrupted_session(url: str) -> InterruptedSession:
    """Return another one."""
    return InterruptedSession(database_from({"DATABASE_URL": url}), Secrets(_nothing), _nothing)


def _nothing(*_: object) -> str:
    raise AssertionError("nothing is fetched here")


@dataclass(frozen=True, slots=True)
class Side:
    """One side: its name, where its statements stop, the PostgreSQL process that runs them, and its code."""

    name: str
    stepped: Stepped
    pid: int
    act: Callable[[], Any]


@dataclass(slots=True)
class Interleaving:
    """One interleaving: who moved at each step, who could have moved, and what each side returned."""

    steps: list[str] = field(default_factory=list)
    choices: list[tuple[str, ...]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)


class _Actor:
    """A running side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.name = side.name
        self.ended = False
        self.waiting = False
        self.answer: Any = None
        self._turnstile = Turnstile()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def begin(self) -> None:
        self.side.stepped.turnstile = self._turnstile
        self._thread.start()
        if not self.arrives(TIMEOUT_S):
            raise TimeoutError(f"{self.name} does not come to its first statement")

    def let_go(self) -> None:
        self.waiting = False
        self._turnstile.go.release()

    def arrives(self, timeout_s: float) -> bool:
        """Tell whether the statement under way has come to its end."""
        self.waiting = self.waiting or self._turnstile.arrived.acquire(timeout=timeout_s)
        return self.waiting

    def _work(self) -> None:
        try:
            self.answer = self.side.act()
        except Exception as error:  # noqa: BLE001 - what it raises is its answer
            self.answer = error
        self.side.stepped.turnstile = None
        self.ended = True
        self._turnstile.arrived.release()


def in_order(sides: Sequence[Side]) -> dict[str, Any]:
    """Let one side do everything, and then the next; return what each returned."""
    answers: dict[str, Any] = {}
    for side in sides:
        try:
            answers[side.name] = side.act()
        except Exception as error:  # noqa: BLE001 - what it raises is its answer
            answers[side.name] = error
    return answers


def all_interleavings(
    sides: Sequence[Side], blocked: Callable[[int], bool], reset: Callable[[], None]
) -> Iterator[Interleaving]:
    """Yield every interleaving of the sides' statements, each on a database that was `reset`.

    `blocked(pid)` tells whether that PostgreSQL process waits for a lock. Raises AssertionError when
    all wait for each other.
    """
    chosen: list[str] = []
    while True:
        reset()
        interleaving = _run(sides, blocked, chosen)
        yield interleaving
        chosen = list(interleaving.steps)
        while chosen:
            last, possible = chosen.pop(), interleaving.choices[len(chosen)]
            untried = possible[possible.index(last) + 1 :]
            if untried:
                chosen.append(untried[0])
                break
        else:
            return


def _run(sides: Sequence[Side], blocked: Callable[[int], bool], chosen: Sequence[str]) -> Interleaving:
    """Move the sides step by step: first as `chosen`, then always the first side that can move."""
    actors = {side.name: _Actor(side) for side in sides}
    interleaving = Interleaving()
    for actor in actors.values():
        actor.begin()
    while not all(actor.ended for actor in actors.values()):
        possible = tuple(name for name, actor in actors.items() if actor.waiting and not actor.ended)
        assert possible, f"a deadlock after {interleaving.steps}"
        step = len(interleaving.steps)
        name = chosen[step] if step < len(chosen) else possible[0]
        interleaving.steps.append(name)
        interleaving.choices.append(possible)
        actors[name].let_go()
        # First the side that moved: its step may have let the other's statement through.
        for actor in sorted(actors.values(), key=lambda one: one.name != name):
            _settle(actor, blocked)
    interleaving.answers = {name: actor.answer for name, actor in actors.items()}
    return interleaving


def _settle(actor: _Actor, blocked: Callable[[int], bool]) -> None:
    """Wait until the actor's statement has ended, or waits for a lock."""
    patience = Deadline(TIMEOUT_S)
    while not actor.arrives(_ASKED_AFTER_S) and not blocked(actor.side.pid):
        if patience.over():
            raise TimeoutError(f"a statement of {actor.name} neither ends nor waits for a lock")
