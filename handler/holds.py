"""Changes by hand: a hold, or a release, which ends holds and back-offs. No cycle runs."""

import dataclasses
from typing import Any

from handler.deadline import Deadline
from handler.request import Request
from handler.store import Store
from handler.telemetry import hold_changed

# Lambda takes an answer of up to 6 MB; nobody reads more than this.
HOLDS_REPORTED = 100


def carry_out(request: Request, store: Store, deadline: Deadline) -> dict[str, Any]:
    """Hold or release, unless it is a dry run; return which workspaces are on hold now, why, and until when.

    Raises RequestError if a workspace to hold does not exist; StoreError.
    """
    store.check_rights(deadline, to_apply=request.applies)
    outcome = "held" if request.hold else "released"
    if not request.applies:
        outcome = "unchanged"
        holds = store.holds.active(deadline)
    elif request.hold:
        hold = request.hold
        holds = store.holds.place(deadline, hold.workspace_ids, reason=hold.reason, lasts_s=hold.lasts_s)
        hold_changed("workspace on hold", hold.workspace_ids, f"for {hold.lasts_s} s: {hold.reason}")
    else:
        released = request.release or ()
        holds = store.holds.release(deadline, released)
        hold_changed("workspace released", released, "by hand")
    return {
        "mode": request.mode,
        "outcome": outcome,
        "holds": [dataclasses.asdict(one) for one in holds[:HOLDS_REPORTED]],
        "on_hold": len(holds),
    }
