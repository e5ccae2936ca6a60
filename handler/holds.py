"""Changes by hand: a hold, or a release, which ends holds and back-offs. No cycle runs.

The answer comes within two seconds, whoever has locked what. A hold is in force before anything else is read.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from handler.deadline import Deadline
from handler.errors import RequestError, RightsMissingError, SchemaMissingError, SecretError, StoreError
from handler.request import HoldRequest, Request
from handler.store import ActiveHolds, Store
from handler.telemetry import hold_changed, hold_trouble

# From the start of the invocation. The rest of the two seconds is for the last statement to be given up on a slow CPU.
ANSWER_SECONDS = 1.5
# What a late hold still gets for its answer.
_LEAST_SECONDS = 0.2


def carry_out(request: Request, store: Store, deadline: Deadline, in_time: Deadline) -> dict[str, Any]:
    """Hold or release, unless it is a dry run; return what is on hold now, why, and until when, and what is in flight.

    `in_time` is when the answer is due. A hold that could not be placed until then is placed until the `deadline`.
    Raises RequestError if a workspace to hold does not exist; StoreError.
    """
    change = request.hold or request.release
    ids = None if change is None else change.workspace_ids
    unchecked = False
    try:
        if not request.applies:
            outcome, active = "unchanged", store.holds.active(in_time)
        elif request.hold:
            unchecked = ids is not None and not store.holds.exist(in_time, ids)
            outcome, active = "held", _place(request.hold, store, deadline, in_time)
            hold_changed("on hold", ids, f"for {request.hold.lasts_s} s: {request.hold.reason}")
        else:
            outcome, active = "released", store.holds.release(in_time, ids)
            hold_changed("released", ids, "by hand")
    except (RequestError, RightsMissingError, SchemaMissingError):
        store.check_rights(in_time, to_apply=request.applies)  # it names all that is missing, and matters more
        raise
    rest = in_time if in_time.remaining() > _LEAST_SECONDS else deadline.within(_LEAST_SECONDS)
    answer = {
        "mode": request.mode,
        "outcome": outcome,
        "holds": [dataclasses.asdict(one) for one in active.holds],
        "in_flight": _in_flight(ids, store, rest, locked=outcome == "held"),
        "on_hold": active.singly if unchecked else _count(active, store, rest),
    }
    return answer | ({"unchecked": True} if unchecked else {})


def _place(hold: HoldRequest, store: Store, deadline: Deadline, in_time: Deadline) -> ActiveHolds:
    def place(time_left: Deadline) -> ActiveHolds:
        return store.holds.place(time_left, hold.workspace_ids, reason=hold.reason, lasts_s=hold.lasts_s)

    try:
        return place(in_time)
    except (StoreError, SecretError):
        if not in_time.over():
            raise
    return place(deadline)  # late, for example because connecting took long


def _in_flight(ids: Sequence[str] | None, store: Store, rest: Deadline, *, locked: bool) -> list[str] | None:
    """Return the workspaces that are in flight. None if that cannot be read: the hold is in force all the same."""
    try:
        return store.holds.in_flight(rest, ids, locked=locked)
    except StoreError as error:
        hold_trouble("restarts in flight not read", error)
        return None


def _count(active: ActiveHolds, store: Store, rest: Deadline) -> int:
    """Return how many workspaces are on hold. Those that are on hold singly, if others cannot be counted in time."""
    if not active.on_everything:
        return active.singly
    try:
        return store.holds.count_all(rest)
    except StoreError as error:
        hold_trouble("workspaces on hold not counted", error)
        return active.singly
