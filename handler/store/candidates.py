"""The candidates, in fair order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from handler.deadline import Deadline
from handler.domain.coverage import Coverage, Queues
from handler.domain.model import Workspace
from handler.errors import SchemaMissingError
from handler.store.holds import on_hold
from handler.store.session import Session, Transaction

_COVERAGE = "SELECT cursor::text, pass_start::text, brought_forward::text[] FROM reconciler.coverage"

# The server converts nothing: some encodings have bytes without a counterpart in UTF-8, and one of them would fail the
# whole SELECT.
_UNCONVERTED = "SET LOCAL client_encoding = 'SQL_ASCII'; "
# In ORDER BY a bare `id` would be the text in front of it, which every collation sorts in its own way.
_CANDIDATES = f"""
SELECT id::text, instance_id, last_heartbeat_at::text
FROM platform.workspaces
WHERE status IN ('online', 'degraded')
  AND instance_id <> ''
  AND COALESCE(runtime, '') <> 'external'
  AND NOT {on_hold("workspaces.id")}
  AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY (CAST(:ids AS uuid[])))
ORDER BY workspaces.id > CAST(:cursor AS uuid) DESC, workspaces.id
LIMIT :most
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates in fair order, and the coverage that decided the order.

    `selected_at` is the time of the SELECT, as the database's own text. `all_selected` tells that the limit left nobody
    out.
    """

    workspaces: list[Workspace]
    selected_at: str
    all_selected: bool
    coverage: Coverage
    queues: Queues


class Candidates:
    """The workspaces that a cycle looks at. Every method raises StoreError."""

    def __init__(self, session: Session) -> None:
        """Use a session of the database."""
        self._session = session

    def select(self, deadline: Deadline, *, limit: int, workspace_ids: Sequence[str] | None) -> Selection:
        """Return at most `limit` candidates, in fair order. With `workspace_ids`, only these are considered."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            ((selected_at,),) = transaction.run(_UNCONVERTED + "SELECT now()::text")
            coverage = _coverage(transaction)
            ids = None if workspace_ids is None else list(workspace_ids)
            in_turn = _select(transaction, ids, coverage, limit + 1)
            first = [one for one in coverage.brought_forward if ids is None or one in ids]
            brought_forward = _select(transaction, first, coverage, len(first)) if first else {}
        return selection(in_turn, brought_forward, limit, selected_at, coverage)


def selection(
    in_turn: Mapping[str, Workspace],
    brought_forward: Mapping[str, Workspace],
    limit: int,
    selected_at: str,
    coverage: Coverage,
) -> Selection:
    """Return `limit` of the candidates: those in turn, one more than that, and those brought forward, in any order."""
    queues = Queues(list(in_turn), [one for one in coverage.brought_forward if one in brought_forward])
    found = {**brought_forward, **in_turn}
    workspaces = [found[one] for one in queues.fair_order()[:limit]]
    return Selection(workspaces, selected_at, len(workspaces) == len(found), coverage, queues)


def _select(transaction: Transaction, ids: Sequence[str] | None, coverage: Coverage, most: int) -> dict[str, Workspace]:
    rows = transaction.run(_CANDIDATES, ids=ids, cursor=coverage.cursor, most=most)
    return {row[0]: Workspace(*row) for row in rows}


def _coverage(transaction: Transaction) -> Coverage:
    rows = transaction.run(_COVERAGE)
    if not rows:
        raise SchemaMissingError("the table reconciler.coverage has lost its row: run infra/schema.sql")
    cursor, pass_start, brought_forward = rows[0]
    return Coverage(cursor, pass_start, tuple(brought_forward))
