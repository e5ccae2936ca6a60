"""The candidates, in fair order."""

from collections.abc import Sequence
from dataclasses import dataclass

from handler.deadline import Deadline
from handler.domain.coverage import Coverage
from handler.domain.model import Workspace
from handler.errors import SchemaMissingError
from handler.store.holds import on_hold
from handler.store.session import Session, Transaction

_COVERAGE = "SELECT cursor::text, pass_start::text, brought_forward::text[] FROM reconciler.coverage"

# The server converts nothing: some encodings have bytes without a counterpart in UTF-8, and one of them would fail the
# whole SELECT.
_UNCONVERTED = "SET LOCAL client_encoding = 'SQL_ASCII'; "
_CANDIDATES = f"""
SELECT id::text, instance_id, last_heartbeat_at::text
FROM platform.workspaces
WHERE status IN ('online', 'degraded')
  AND instance_id <> ''
  AND COALESCE(runtime, '') <> 'external'
  AND NOT {on_hold("workspaces.id")}
  AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY (CAST(:ids AS uuid[])))
ORDER BY id = ANY (CAST(:brought_forward AS uuid[])) DESC, id > CAST(:cursor AS uuid) DESC, id
LIMIT :one_more
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates in fair order, and the coverage that decided the order.

    `selected_at` is the time of the SELECT, as the database's own text. `next_unselected` is the id of the first
    candidate that the limit left out, or None.
    """

    workspaces: list[Workspace]
    selected_at: str
    next_unselected: str | None
    coverage: Coverage


class Candidates:
    """The workspaces that a cycle looks at. Every method raises StoreError."""

    def __init__(self, session: Session) -> None:
        """Use a session of the database."""
        self._session = session

    def select(self, deadline: Deadline, *, limit: int, workspace_ids: Sequence[str] | None) -> Selection:
        """Return at most `limit` candidates, beginning where the last full cycle stopped.

        With `workspace_ids`, only these are considered.
        """
        with self._session.transaction(deadline, read_only=True) as transaction:
            ((selected_at,),) = transaction.run(_UNCONVERTED + "SELECT now()::text")
            coverage = _coverage(transaction)
            rows = transaction.run(
                _CANDIDATES,
                ids=None if workspace_ids is None else list(workspace_ids),
                brought_forward=list(coverage.brought_forward),
                cursor=coverage.cursor,
                one_more=limit + 1,
            )
        left_out = rows[limit][0] if len(rows) > limit else None
        return Selection([Workspace(*row) for row in rows[:limit]], selected_at, left_out, coverage)


def _coverage(transaction: Transaction) -> Coverage:
    rows = transaction.run(_COVERAGE)
    if not rows:
        raise SchemaMissingError("the table reconciler.coverage has lost its row: run infra/schema.sql")
    cursor, pass_start, brought_forward = rows[0]
    return Coverage(cursor, pass_start, tuple(brought_forward))
