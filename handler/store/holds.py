"""Holds: workspaces that a person has exempted for a while."""

from collections.abc import Sequence

from handler.deadline import Deadline
from handler.domain.model import Hold
from handler.errors import RequestError
from handler.store.session import Session, Transaction

_PLACE = """
INSERT INTO reconciler.holds (workspace_id, reason, ends_at)
SELECT workspace_id, :reason, now() + make_interval(secs => :lasts_s)
FROM unnest(CAST(:ids AS uuid[])) AS placed (workspace_id)
ON CONFLICT (workspace_id) DO UPDATE
SET reason = EXCLUDED.reason, began_at = now(), ends_at = EXCLUDED.ends_at
"""
_END = "DELETE FROM reconciler.holds WHERE workspace_id = ANY (CAST(:ids AS uuid[]))"
_END_BACKOFF = """
UPDATE reconciler.restarts SET streak = 0, backoff_until = NULL
WHERE workspace_id = ANY (CAST(:ids AS uuid[])) AND (streak > 0 OR backoff_until IS NOT NULL)
"""
_ACTIVE = """
SELECT workspace_id::text, reason, to_char(ends_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
FROM reconciler.holds WHERE ends_at > now() ORDER BY ends_at, holds.workspace_id
"""
_LOCK_ROWS = """
SELECT id::text FROM platform.workspaces WHERE id = ANY (CAST(:ids AS uuid[]))
ORDER BY workspaces.id FOR NO KEY UPDATE
"""
_LOCK_RESTARTS = """
SELECT FROM reconciler.restarts WHERE workspace_id = ANY (CAST(:ids AS uuid[])) AND closed_at IS NULL
ORDER BY id FOR UPDATE
"""

# A row without a workspace is a hold on everything.
ALL_ON_HOLD = "EXISTS (SELECT FROM reconciler.holds WHERE holds.workspace_id IS NULL AND holds.ends_at > now())"
# How many workspaces are on hold singly.
COUNT_ON_HOLD_SINGLY = "(SELECT count(DISTINCT workspace_id) FROM reconciler.holds WHERE ends_at > now())"
# Ages count from a hold's end, so holds are kept for some time. Parameters: `days`, and `most` rows.
PURGE_HOLDS = """
DELETE FROM reconciler.holds
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.holds
    WHERE ends_at < now() - make_interval(days => :days) ORDER BY ends_at LIMIT :most FOR UPDATE SKIP LOCKED
))
"""


def on_hold(workspace_id: str) -> str:
    """Return the SQL condition that a workspace is on hold now, singly or with everything.

    `workspace_id` is an SQL expression.
    """
    return f"""(EXISTS (SELECT FROM reconciler.holds WHERE holds.workspace_id = {workspace_id} AND holds.ends_at > now())
        OR {ALL_ON_HOLD})"""


def hold_ended_at(workspace_id: str) -> str:
    """Return the SQL expression for the time at which the latest hold ends or ended; NULL if there was none."""
    return f"""GREATEST(
        (SELECT max(holds.ends_at) FROM reconciler.holds WHERE holds.workspace_id = {workspace_id}),
        (SELECT max(holds.ends_at) FROM reconciler.holds WHERE holds.workspace_id IS NULL))"""


class Holds:
    """The holds in the database. Every method raises StoreError."""

    def __init__(self, session: Session) -> None:
        """Use a session of the database."""
        self._session = session

    def active(self, deadline: Deadline) -> list[Hold]:
        """Return the holds that have not ended, the first to end first."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            return _active(transaction)

    def place(self, deadline: Deadline, workspace_ids: Sequence[str], *, reason: str, lasts_s: float) -> list[Hold]:
        """Put the workspaces on hold for `lasts_s` seconds from now, and return all active holds.

        Waits for a flip or claim that is under way. Once it returns, no new one begins. It places all holds or none:
        raises RequestError if a workspace does not exist.
        """
        with self._session.transaction(deadline) as transaction:
            _lock(transaction, workspace_ids)
            transaction.run(_PLACE, ids=list(workspace_ids), reason=reason, lasts_s=lasts_s)
            return _active(transaction)

    def release(self, deadline: Deadline, workspace_ids: Sequence[str]) -> list[Hold]:
        """End the workspaces' holds and back-offs, forget their crash loops, and return all active holds."""
        ids = list(workspace_ids)
        with self._session.transaction(deadline) as transaction:
            transaction.run(_END, ids=ids)
            transaction.run(_END_BACKOFF, ids=ids)
            return _active(transaction)


def _active(transaction: Transaction) -> list[Hold]:
    return [Hold(*row) for row in transaction.run(_ACTIVE)]


def _lock(transaction: Transaction, workspace_ids: Sequence[str]) -> None:
    ids = list(workspace_ids)
    missing = set(ids).difference(one for (one,) in transaction.run(_LOCK_ROWS, ids=ids))
    if missing:
        raise RequestError(f"event field hold.workspace_ids: no workspace {', '.join(sorted(missing)[:10])}")
    transaction.run(_LOCK_RESTARTS, ids=ids)
