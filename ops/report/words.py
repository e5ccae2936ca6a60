"""The reconciler's words, for someone who reads them for the first time."""

# Reasons to skip a flip: the keys of a report's `skipped`.
SKIPPED = {
    "row_gone": "its row was deleted during the probe",
    "status_moved": "its status changed during the probe",
    "instance_cleared": "its instance was cleared during the probe",
    "instance_changed": "it got a new instance during the probe",
    "row_locked": "another transaction has locked its row",
    "on_hold": "it is on hold",
    "fresh_heartbeat": "its heartbeat is fresh, so it still lives",
    "reconfirm_error": "its row could not be read again",
    "not_confirmed": "the second probe did not confirm that it is dead",
    "breaker_open": "the breaker is open: too many look dead at once, so the probe may be wrong",
    "out_of_time": "the cycle ran out of time; the next one takes it first",
}

# The log's lines about one workspace, and whether it is flipped or adopted by it.
DECISIONS = {
    "workspace flipped": True,
    "workspace adopted": True,
    "would flip": True,
    "would adopt": True,
    "flip skipped": False,
    "instance unknown": False,
    "instance absent": False,
    "adoption waits": False,
}

SOURCES = {"ec2": "EC2", "control_plane": "the control plane"}

# What a cycle would do with a workspace: `would.action` of an explanation.
ACTIONS = {
    "flip": "The next cycle would take it offline",
    "adopt": "The next cycle would record the restart that it needs",
    "wait": "The next cycle would wait",
    "skip": "The next cycle would leave it alone, although it looks dead",
    "ask_for_restart": "The next cycle would ask the platform for its restart",
    "cancel_restart": "The next cycle would cancel its restart",
    "watch": "The next cycle would go on watching its restart",
    "nothing": "The next cycle would do nothing with it",
}

# What each word of the page means, for whoever has not met the reconciler.
GLOSSARY = (
    ("workspace", "one customer's place on the platform: a row in its database, and a machine (instance) behind it"),
    ("cycle", "one look at all workspaces; there is one every minute"),
    ("dry run", "a cycle that looks and changes nothing"),
    ("flip", "to mark a workspace offline whose machine is dead. Two looks must agree first"),
    (
        "restart",
        "what the platform is asked for minutes after a flip. It ends the old machine for good and makes a new one",
    ),
    ("adopt", "to record the restart of a workspace that the platform has marked offline itself"),
    ("heartbeat", "a workspace's own sign of life. While it is fresh, nothing is flipped"),
    ("hold", "somebody's order to leave a workspace, or all of them, alone for a while"),
    ("breaker", "stops everything when too many look dead at once: then the source may be wrong, not the machines"),
    ("doubt", "what is remembered of a workspace that is neither alive nor flipped"),
    ("target", "one Region of one AWS account in which machines are looked for"),
)
