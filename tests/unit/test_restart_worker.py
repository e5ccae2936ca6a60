"""What becomes of the restarts that are owed, when parts of the world fail meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from handler.deadline import Deadline
from handler.domain.model import Restart, Sighting, Workspace, sighting_of
from handler.domain.report import Report
from handler.errors import ConnectionLostError, SecretError
from handler.restarts import Answer, Reply
from handler.restarts.platform import HttpPlatform
from handler.restarts.worker import CALLS_AT_ONCE, RestartWorker
from handler.settings import Settings
from handler.telemetry import CycleLog
from tests.unit.builders import Clock, Log, debt, uuid

if TYPE_CHECKING:
    from handler.store import Restarts

PAID = Reply(Answer.ACCEPTED, "http_202")


@dataclass
class Books:
    """Stands in for the debts in the database, by their ids.

    `moved_on` are those whose row is not what it was; `claims` says what becomes of a debt's claim.
    """

    owed: list[Restart]
    moved_on: set[int] = field(default_factory=set)
    claims: dict[int, str | Exception] = field(default_factory=dict)
    claimed: list[int] = field(default_factory=list)
    closed: dict[int, str] = field(default_factory=dict)
    postponed: dict[int, tuple[str, float | None]] = field(default_factory=dict)
    left: dict[int, float] = field(default_factory=dict)
    trouble_at_closing: Exception | None = None
    longest_look_s: float = 0.0

    def follow_rows(self, deadline: Deadline, *, own_only: bool) -> list[Restart]:
        self._look(deadline)
        void = [one for one in self._open(own_only=own_only) if one.id in self.moved_on]
        self.closed |= {one.id: "void" for one in void}
        return void

    def due(self, deadline: Deadline, *, limit: int, own_only: bool) -> list[Restart]:
        self._look(deadline)
        return sorted(self._open(own_only=own_only), key=lambda one: one.id in self.left)[:limit]

    def _open(self, *, own_only: bool) -> list[Restart]:
        return [one for one in self.owed if one.id not in self.closed and (one.of_this_cycle or not own_only)]

    def leave(self, _: Deadline, debts: Sequence[Restart], *, pause_s: float) -> None:
        self.left |= {one.id: pause_s for one in debts}

    def claim(self, deadline: Deadline, owed: Restart, *, uncertain_s: float, heartbeat_fresh_s: float) -> str:
        self._look(deadline)
        assert (uncertain_s, heartbeat_fresh_s) == (300, 60)
        claim = self.claims.get(owed.id, "claimed")
        if isinstance(claim, Exception):
            raise claim
        if claim == "claimed":
            self.claimed.append(owed.id)
        return claim

    def _look(self, deadline: Deadline) -> None:
        self.longest_look_s = max(self.longest_look_s, deadline.remaining())

    def void(self, _: Deadline, owed: Restart) -> None:
        self.closed[owed.id] = "void"

    def paid(self, _: Deadline, owed: Restart) -> None:
        if self.trouble_at_closing is not None:
            raise self.trouble_at_closing
        self.closed[owed.id] = "paid"

    def postpone(self, _: Deadline, owed: Restart, answer: str, *, pause_s: float | None) -> None:
        self.postponed[owed.id] = (answer, pause_s)


@dataclass
class States:
    """Stands in for the probe."""

    states: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def sightings(self, workspaces: Sequence[Workspace], _: Deadline) -> Iterator[Sighting]:
        for workspace in workspaces:
            self.asked.append(workspace.instance_id)
            if workspace.instance_id in self.states:
                yield sighting_of(workspace, self.states[workspace.instance_id])


Answers = Callable[[Restart], Reply]


@dataclass
class Desk:
    """Stands in for the platform."""

    answers: Answers
    asked: list[int] = field(default_factory=list)

    def restart(self, owed: Restart, _: Deadline) -> Reply:
        self.asked.append(owed.id)
        return self.answers(owed)


def pay(
    books: Books,
    answers: Answers = lambda _: PAID,
    states: States | None = None,
    *,
    own_only: bool = False,
    absence_counts: bool = True,
    seconds: float = 20,
    **variables: str,
) -> tuple[Report, Desk]:
    desk, report = Desk(answers), Report("apply", "ec2")
    settings = Settings.from_env({"DATABASE_URL": "postgresql://u@h/n"} | variables)
    payments = RestartWorker(cast("Restarts", books), states or States(), settings, report, CycleLog())
    deadline = Deadline(seconds, clock=Clock())
    payments.pay(
        lambda _: cast("HttpPlatform", desk), deadline, deadline, own_only=own_only, absence_counts=absence_counts
    )
    return report, desk


def fresh(count: int) -> list[Restart]:
    return [debt(number) for number in range(1, count + 1)]


def old(number: int) -> Restart:
    return debt(number, attempts=1, of_this_cycle=False)


# --- what is asked for ---


def test_each_debt_is_claimed_asked_for_and_paid_once() -> None:
    books = Books(fresh(20))
    report, desk = pay(books)
    assert sorted(desk.asked) == sorted(books.claimed) == list(range(1, 21))
    assert books.closed == dict.fromkeys(range(1, 21), "paid")
    assert (report.restarts.requested, report.restarts.failed) == (20, 0)


def test_no_more_are_asked_for_than_one_cycle_may() -> None:
    books = Books(fresh(20))
    report, desk = pay(books, RESTARTS_PER_CYCLE="5")
    assert sorted(desk.asked) == books.claimed == [1, 2, 3, 4, 5]
    assert report.restarts.requested == 5


def test_what_turns_out_void_or_taken_leaves_room_for_others() -> None:
    books = Books(fresh(4), claims={1: "void", 2: "taken"})
    report, desk = pay(books, RESTARTS_PER_CYCLE="2")
    assert sorted(desk.asked) == [3, 4]
    assert (report.restarts.void, report.restarts.requested) == (1, 2)


def test_without_a_platform_nothing_is_claimed() -> None:
    books, report = Books(fresh(3)), Report("apply", "ec2")
    settings = Settings.from_env({"DATABASE_URL": "postgresql://u@h/n"})
    deadline = Deadline(20, clock=Clock())
    RestartWorker(cast("Restarts", books), States(), settings, report, CycleLog()).pay(
        None, deadline, deadline, own_only=False, absence_counts=True
    )
    assert books.claimed == []


@pytest.mark.parametrize("seconds", [0, 0.4], ids=["no time", "too little for a call"])
def test_a_call_that_would_be_cut_off_at_once_does_not_begin(seconds: float) -> None:
    books = Books(fresh(3))
    pay(books, seconds=seconds)
    assert books.claimed == []


# --- what a second look says, before anything is asked for again ---


@pytest.mark.parametrize(
    ("state", "asked", "void"),
    [
        *[("terminated", True, 0), ("stopped", True, 0), ("not_found", True, 0)],
        *[("running", False, 1), ("pending", False, 0), ("stopping", False, 0), ("no such word", False, 0)],
    ],
)
@pytest.mark.parametrize("owed", [old(1), debt(1, attempts=1)], ids=["of an earlier cycle", "asked for before"])
def test_a_debt_of_earlier_is_asked_for_only_if_its_instance_is_still_dead(
    owed: Restart, state: str, asked: bool, void: int
) -> None:
    books = Books([owed])
    report, desk = pay(books, states=States({owed.instance_id: state}))
    assert (desk.asked == [1], report.restarts.void) == (asked, void)
    assert books.closed.get(1) == ("paid" if asked else "void" if void else None)
    assert (books.left == {1: 60}) is (not asked and not void)


def test_an_absence_that_is_not_to_be_believed_puts_a_debt_of_earlier_off() -> None:
    gone, dead = old(1), old(2)
    states = States({gone.instance_id: "not_found", dead.instance_id: "terminated"})
    books = Books([gone, dead])
    _, desk = pay(books, states=states, absence_counts=False)
    assert (desk.asked, books.closed, books.left) == ([2], {2: "paid"}, {1: 60})


def test_a_debt_whose_workspace_sends_heartbeats_again_is_not_asked_for_and_the_log_says_why(log: Log) -> None:
    books = Books(fresh(2), claims={1: "alive"})
    _, desk = pay(books)
    assert desk.asked == [2]
    assert [(line["workspace_id"], line["reason"]) for line in log.lines("restart put off")] == [
        (uuid(1), "a heartbeat came after the flip")
    ]


def test_a_debt_of_earlier_whose_instance_was_not_reached_is_left() -> None:
    books = Books([old(1)])
    report, desk = pay(books, states=States({}))
    assert (desk.asked, books.closed, books.left) == ([], {}, {1: 60})
    assert (report.restarts.void, report.restarts.failed, report.restarts.uncertain) == (0, 0, 0)


def test_debts_of_which_nothing_can_be_said_go_behind_the_others() -> None:
    silent, dead = [old(number) for number in range(1, 301)], old(301)
    books, states = Books([*silent, dead]), States({dead.instance_id: "terminated"})
    cycles = [pay(books, states=states, RESTARTS_PER_CYCLE="10")[1].asked for _ in range(4)]
    assert cycles[:3] == [[], [], [301]]
    assert cycles[3] == []


def test_nothing_is_left_for_later_when_something_can_be_said_of_each() -> None:
    books = Books([old(1), old(2), debt(3)])
    pay(books, states=States({old(1).instance_id: "terminated", old(2).instance_id: "running"}))
    assert books.left == {}


def test_a_debt_of_this_cycle_was_seen_dead_a_moment_ago_and_is_not_probed_again() -> None:
    states = States({})
    _, desk = pay(Books(fresh(1)), states=states)
    assert (states.asked, desk.asked) == ([], [1])


def test_a_debt_whose_row_has_moved_on_is_void_without_a_look_at_its_instance(log: Log) -> None:
    books = Books([old(1), old(2), debt(3)], moved_on={1, 3})
    states = States({old(1).instance_id: "terminated", old(2).instance_id: "terminated"})
    report, desk = pay(books, states=states)
    assert (states.asked, desk.asked) == ([old(2).instance_id], [2])
    assert books.closed == {1: "void", 2: "paid", 3: "void"}
    assert (report.restarts.void, report.restarts.requested) == (2, 1)
    told = [(line["workspace_id"], line["reason"]) for line in log.lines("restart cancelled")]
    assert told == [(uuid(1), "the row has moved on"), (uuid(3), "the row has moved on")]


def test_a_narrowed_cycle_neither_pays_nor_voids_the_debts_of_others() -> None:
    books = Books([old(1), old(2), debt(3)], moved_on={1})
    states = States({old(2).instance_id: "terminated"})
    report, desk = pay(books, states=states, own_only=True)
    assert (states.asked, desk.asked, books.closed) == ([], [3], {3: "paid"})
    assert report.restarts.void == 0


# --- what the answers do ---


@pytest.mark.parametrize(
    ("reply", "noted", "counted"),
    [
        pytest.param(Reply(Answer.REFUSED, "http_500"), ("refused", 60), "failed", id="refused"),
        pytest.param(Reply(Answer.REFUSED, "http_429", 7.0), ("refused", 7), "failed", id="told to wait"),
        pytest.param(Reply(Answer.UNCERTAIN, "timeout"), ("uncertain", None), "uncertain", id="no answer"),
        pytest.param(Reply(Answer.BLOCKED, "http_409"), ("blocked", 60), None, id="an ancestor is paused"),
    ],
)
def test_a_debt_that_was_not_paid_is_put_off(
    reply: Reply, noted: tuple[str, float | None], counted: str | None
) -> None:
    books = Books(fresh(1))
    report, _ = pay(books, lambda _: reply)
    assert books.postponed == {1: noted}
    assert books.closed == {}
    counts = {name: getattr(report.restarts, name) for name in ("requested", "failed", "uncertain")}
    assert counts == {name: int(name == counted) for name in counts}


def test_the_pause_grows_with_the_refusals_that_came_before() -> None:
    books = Books([debt(1, refusals=3)])
    pay(books, lambda _: Reply(Answer.REFUSED, "http_500"))
    assert books.postponed == {1: ("refused", 480)}


def test_once_told_to_wait_nothing_more_is_asked_for_in_this_cycle() -> None:
    books = Books(fresh(100))
    _, desk = pay(books, lambda _: Reply(Answer.REFUSED, "http_429", 30.0))
    assert len(desk.asked) <= 2 * CALLS_AT_ONCE


def test_once_told_to_wait_nobody_is_asked_for_before_the_time_that_the_platform_named() -> None:
    books = Books(fresh(100))
    _, desk = pay(books, lambda _: Reply(Answer.REFUSED, "http_429", 30.0))
    assert books.postponed == dict.fromkeys(desk.asked, ("refused", 30))
    assert books.left == {one.id: 30 for one in books.owed if one.id not in desk.asked}


@pytest.mark.parametrize(("seconds", "longest_s"), [(20, 2), (1, 1)])
def test_no_look_at_the_debts_takes_longer_than_one_at_a_row_may(seconds: float, longest_s: float) -> None:
    books = Books(fresh(3))
    pay(books, seconds=seconds, RECONFIRM_TIMEOUT_SECONDS="2")
    assert books.longest_look_s == longest_s


# --- what fails meanwhile ---

DATABASE_TROUBLES = [
    pytest.param(ConnectionLostError("gone"), id="the database is gone"),
    pytest.param(SecretError("gone"), id="the secret to log in anew cannot be fetched"),
]


def test_a_platform_without_a_token_leaves_the_debts_for_the_next_cycle() -> None:
    books, report = Books(fresh(3)), Report("apply", "ec2")
    settings = Settings.from_env({"DATABASE_URL": "postgresql://u@h/n"})
    deadline = Deadline(20, clock=Clock())

    def no_token(_: Deadline) -> HttpPlatform:
        raise SecretError("PLATFORM_SECRET_ARN: the secret cannot be fetched")

    payments = RestartWorker(cast("Restarts", books), States(), settings, report, CycleLog())
    payments.pay(no_token, deadline, deadline, own_only=False, absence_counts=True)
    assert books.claimed == []


@pytest.mark.parametrize("trouble", DATABASE_TROUBLES)
def test_an_answer_that_cannot_be_noted_costs_the_others_nothing(trouble: Exception) -> None:
    books = Books(fresh(3), trouble_at_closing=trouble)
    report, desk = pay(books)
    assert sorted(desk.asked) == [1, 2, 3]
    assert report.restarts.requested == 3


@pytest.mark.parametrize("trouble", DATABASE_TROUBLES)
def test_answers_to_what_was_asked_are_noted_though_a_later_claim_fails(trouble: Exception) -> None:
    books = Books(fresh(4), claims={3: trouble})
    report, desk = pay(books)
    assert sorted(desk.asked) == [1, 2]
    assert books.closed == {1: "paid", 2: "paid"}
    assert report.restarts.requested == 2


def test_a_call_that_fails_in_an_unforeseen_way_is_uncertain_and_costs_the_others_nothing() -> None:
    def surprise(owed: Restart) -> Reply:
        if owed.id == 2:
            raise OverflowError("s3cret")
        return PAID

    books = Books(fresh(3))
    report, _ = pay(books, surprise)
    assert books.closed == {1: "paid", 3: "paid"}
    assert books.postponed[2][0] == "uncertain"
    assert (report.restarts.requested, report.restarts.uncertain) == (2, 1)
