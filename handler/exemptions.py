"""What an engineer orders for single workspaces by hand: a hold, or the end of holds and restart pauses. No cycle."""

import dataclasses
from typing import Any

from handler.deadline import Deadline
from handler.registry import Registry
from handler.request import APPLY, Request
from handler.telemetry import exemption_changed

# An answer of Lambda's may have 6 MB; nobody reads more than this.
HOLDS_REPORTED = 100


def carry_out(order: Request, registry: Registry, deadline: Deadline) -> dict[str, Any]:
    """Hold or release, unless it is a dry run, and return what is held then: the workspaces, why, and until when.

    Raises RequestError when a workspace that is to be held does not exist; RegistryError.
    """
    registry.check_rights(deadline, to_apply=order.mode == APPLY)
    outcome = "held" if order.hold else "released"
    if order.mode != APPLY:
        outcome = "unchanged"
        holds = registry.holds.active(deadline)
    elif order.hold:
        hold = order.hold
        holds = registry.holds.place(deadline, hold.workspace_ids, reason=hold.reason, lasts_s=hold.lasts_s)
        exemption_changed("workspace held", hold.workspace_ids, f"for {hold.lasts_s} s: {hold.reason}")
    else:
        released = order.release or ()
        holds = registry.holds.release(deadline, released)
        exemption_changed("workspace released", released, "by hand")
    return {
        "mode": order.mode,
        "outcome": outcome,
        "holds": [dataclasses.asdict(one) for one in holds[:HOLDS_REPORTED]],
        "held": len(holds),
    }
