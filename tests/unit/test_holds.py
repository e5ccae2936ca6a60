"""A hold or release: what is done in which order, and what happens when time or the database fails."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from handler import holds
from handler.deadline import Deadline
from handler.domain.model import Hold
from handler.errors import ConnectionLostError, RequestError, RightsMissingError, RowLockedError, StoreError
from handler.request import HoldRequest, ReleaseRequest, Request
from handler.store import ActiveHolds, Store
from tests.unit.builders import Log, uuid

HOLD = Request("apply", hold=HoldRequest((uuid(1),), "maintenance", 60))
HOLD_ALL = Request("apply", hold=HoldRequest(None, "wait", 60))
RELEASE_ALL = Request("apply", release=ReleaseRequest(None))
ENDS_AT = "2026-01-15T11:30:00Z"


@dataclass
class Database:
    """Stands in for the store and for its holds. Each call takes `takes_s` of its seconds, or fails with its error."""

    failures: dict[str, list[StoreError | RequestError]] = field(default_factory=dict)
    takes_s: dict[str, float] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    placed: list[tuple[Sequence[str] | None, float]] = field(default_factory=list)
    rights: StoreError | None = None
    now: float = 0.0

    @property
    def holds(self) -> "Database":
        return self

    def exist(self, deadline: Deadline, _: Sequence[str]) -> bool:
        self._call("exist", deadline)
        return True

    def place(self, deadline: Deadline, ids: Sequence[str] | None, **_: Any) -> ActiveHolds:
        self._call("place", deadline)
        self.placed.append((ids, self.now))
        one = None if ids is None else ids[0]
        return ActiveHolds([Hold(one, "maintenance", ENDS_AT)], int(ids is not None), ids is None)

    def release(self, deadline: Deadline, *_: object, **__: object) -> ActiveHolds:
        self._call("release", deadline)
        return ActiveHolds([])

    def active(self, deadline: Deadline, **_: object) -> ActiveHolds:
        self._call("active", deadline)
        return ActiveHolds([])

    def in_flight(self, deadline: Deadline, _: Sequence[str] | None, *, locked: bool) -> list[str]:
        self._call("in_flight and locked" if locked else "in_flight", deadline)
        return [uuid(9)]

    def count_all(self, deadline: Deadline) -> int:
        self._call("count_all", deadline)
        return 7

    def check_rights(self, *_: object, **__: object) -> None:
        self.calls.append("check_rights")
        if self.rights is not None:
            raise self.rights

    def _call(self, name: str, deadline: Deadline) -> None:
        self.calls.append(name)
        self.now += min(self.takes_s.pop(name, 0.0), deadline.remaining())
        if deadline.over():
            raise StoreError("no time is left")
        for failure in self.failures.get(name, [])[:1]:
            raise failure


def carry_out(request: Request, database: Database) -> dict[str, Any]:
    deadline = Deadline(45, clock=lambda: database.now)
    return holds.carry_out(request, cast("Store", database), deadline, deadline.within(holds.ANSWER_SECONDS))


def test_a_hold_is_in_force_before_anything_else_is_read() -> None:
    database = Database()
    assert carry_out(HOLD, database) == {
        "mode": "apply",
        "outcome": "held",
        "holds": [{"workspace_id": uuid(1), "reason": "maintenance", "ends_at": ENDS_AT}],
        "on_hold": 1,
        "in_flight": [uuid(9)],
    }
    assert database.calls == ["exist", "place", "in_flight and locked"]


def test_everything_needs_no_check_and_its_workspaces_are_counted() -> None:
    database = Database()
    assert carry_out(HOLD_ALL, database)["on_hold"] == 7
    assert database.calls == ["place", "in_flight and locked", "count_all"]


def test_a_release_and_a_dry_run_lock_no_restart() -> None:
    database = Database()
    assert carry_out(RELEASE_ALL, database)["outcome"] == "released"
    assert carry_out(Request("dry-run", hold=HOLD.hold), database)["outcome"] == "unchanged"
    assert database.calls == ["release", "in_flight", "active", "in_flight"]


@pytest.mark.parametrize("asked", [HOLD, HOLD_ALL], ids=["some", "all"])
def test_a_hold_that_comes_too_late_is_placed_all_the_same(asked: Request) -> None:
    database = Database(takes_s={"place": 3.0})
    assert carry_out(asked, database)["in_flight"] == [uuid(9)]
    assert [at for _, at in database.placed] == [pytest.approx(holds.ANSWER_SECONDS)]


def test_a_hold_that_cannot_be_placed_in_time_for_another_reason_is_refused_at_once() -> None:
    database = Database({"place": [RowLockedError("locked")]})
    with pytest.raises(RowLockedError):
        carry_out(HOLD, database)
    assert database.calls == ["exist", "place"]


def test_what_cannot_be_read_after_a_hold_is_left_out_and_logged(log: Log) -> None:
    hung_up = ConnectionLostError("it hung up")
    database = Database({"in_flight and locked": [hung_up], "count_all": [hung_up]})
    answer = carry_out(HOLD_ALL, database)
    assert (answer["outcome"], answer["in_flight"], answer["on_hold"]) == ("held", None, 0)
    messages = ["everything on hold", "restarts in flight not read", "workspaces on hold not counted"]
    assert [line["message"] for line in log.lines()] == messages


@pytest.mark.parametrize("error", [RequestError("no such workspace"), RightsMissingError("permission denied")])
def test_a_refusal_names_all_rights_that_are_missing(error: StoreError | RequestError) -> None:
    missing = RightsMissingError("the role lacks everything")
    with pytest.raises(RightsMissingError) as raised:
        carry_out(HOLD, Database({"exist": [error]}, rights=missing))
    assert raised.value is missing
    with pytest.raises(type(error)) as unchanged:
        carry_out(HOLD, Database({"exist": [error]}))
    assert unchanged.value is error
