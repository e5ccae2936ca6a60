"""The tables, and the rights that the role needs on them."""

from collections.abc import Sequence

from handler.domain.model import LONGEST_INSTANCE_ID

# Table, column (None for the whole table) and right.
Rights = Sequence[tuple[str, str | None, str]]

# The platform's tables. The role's own search_path says where they are: see transaction.py.
PLATFORM_TABLES = ("workspaces", "structure_events")
OWN_TABLES = tuple(
    f"reconciler.{name}"
    for name in (
        *("schema_version", "lease", "coverage", "shard_coverage", "doubts", "source_doubts"),
        *("restarts", "restart_stops", "holds"),
    )
)


def short(text: str) -> str:
    """Return the SQL for the beginning of a text that may have any length; `text` is an SQL expression.

    One that is cut equals nothing that we look for: it has one character more than the longest instance id.
    """
    return f"left({text}, {LONGEST_INSTANCE_ID + 1})"


# What makes a row a candidate, beside the adopted ones.
IS_UP = """(workspaces.status IN ('online', 'degraded') AND workspaces.instance_id <> ''
    AND COALESCE(workspaces.runtime, '') <> 'external')"""
# Of a restart: a cycle still looks at what becomes of its workspace.
IS_WATCHED = "(watched_since IS NOT NULL AND watch_ended_at IS NULL)"
IS_OPEN_OR_WATCHED = f"(closed_at IS NULL OR {IS_WATCHED})"

RIGHTS_TO_READ: Rights = (
    *(
        ("workspaces", one, "SELECT")
        for one in ("id", "status", "runtime", "instance_id", "last_heartbeat_at", "updated_at")
    ),
    *((table, None, "SELECT") for table in OWN_TABLES),
)
RIGHTS_TO_APPLY: Rights = (
    *RIGHTS_TO_READ,
    *(("workspaces", one, "UPDATE") for one in ("status", "updated_at")),
    *(("structure_events", one, "INSERT") for one in ("event_type", "workspace_id", "payload")),
    *(
        (f"reconciler.{table}", None, right)
        for table in ("lease", "shard_coverage", "doubts", "source_doubts", "restarts", "restart_stops", "holds")
        for right in ("INSERT", "UPDATE", "DELETE")
    ),
)
# What a hold or a release uses. The platform's tables are not among them: somebody may have locked those.
RIGHTS_TO_HOLD: Rights = tuple(
    (f"reconciler.{table}", None, right)
    for table in ("restarts", "restart_stops", "holds")
    for right in ("SELECT", "INSERT", "UPDATE", "DELETE")
)
