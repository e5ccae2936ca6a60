"""The restarts that are owed, from the flip until the platform has taken them or the row moved on."""

from collections.abc import Sequence

from handler.database import Session, Transaction
from handler.deadline import Deadline
from handler.model import Debt
from handler.registry.holds import held
from handler.registry.lease import Lease

# What neither a crash loop's pause nor a hold keeps from being asked for.
_FREE = f"COALESCE(paused_until <= now(), true) AND NOT {held('owed.workspace_id')}"

_DUE = f"""
SELECT id, workspace_id::text, instance_id, attempts, refusals, cycle_id = CAST(:cycle_id AS uuid)
FROM reconciler.restarts AS owed
WHERE closed_at IS NULL AND next_attempt_at <= now() AND {_FREE}
  AND (cycle_id = CAST(:cycle_id AS uuid) OR NOT :own_only)
ORDER BY next_attempt_at, id LIMIT :most
"""  # noqa: S608 - put together from constants

_MINE = f"""
SELECT flipped_at::text FROM reconciler.restarts AS owed
WHERE id = :id AND closed_at IS NULL AND next_attempt_at <= now() AND {_FREE}
FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - put together from constants


class Debts:
    """The debts as one cycle sees them. Every method raises RegistryError."""

    def __init__(self, session: Session, cycle_id: str, lease: Lease) -> None:
        """Pay in the name of `cycle_id`, a UUID, as long as it holds `lease`."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease

    def follow_rows(self, deadline: Deadline, *, own_only: bool) -> list[Debt]:
        """Close those due whose row is gone, or no longer offline with the dead instance; return them.

        Also end the watch over those that were restarted and are online again, or not wanted any more.
        """
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(
                """
                UPDATE reconciler.restarts AS paid SET watched_until = now()
                WHERE outcome = 'paid' AND watched_until IS NULL
                  AND NOT EXISTS (SELECT FROM workspaces WHERE workspaces.id = paid.workspace_id
                                  AND status NOT IN ('online', 'removed', 'paused', 'hibernating', 'hibernated'))
                """
            )
            rows = transaction.run(
                """
                UPDATE reconciler.restarts AS owed SET closed_at = now(), outcome = 'void'
                WHERE closed_at IS NULL AND next_attempt_at <= now()
                  AND (cycle_id = CAST(:cycle_id AS uuid) OR NOT :own_only)
                  AND NOT EXISTS (SELECT FROM workspaces AS now_there WHERE now_there.id = owed.workspace_id
                                  AND now_there.status = 'offline' AND now_there.instance_id = owed.instance_id)
                RETURNING id, workspace_id::text, instance_id, attempts, refusals, cycle_id = CAST(:cycle_id AS uuid)
                """,
                cycle_id=self._cycle_id,
                own_only=own_only,
            )
        return [Debt(*row) for row in rows]

    def due(self, deadline: Deadline, *, limit: int, own_only: bool) -> list[Debt]:
        """Return the restarts that may be asked for now, the longest due first."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            rows = transaction.run(_DUE, cycle_id=self._cycle_id, own_only=own_only, most=limit)
        return [Debt(*row) for row in rows]

    def claim(self, deadline: Deadline, debt: Debt, *, uncertain_s: float, heartbeat_fresh_s: float) -> str:
        """Make sure that nobody asks for this restart for `uncertain_s` seconds, and that it is owed.

        Return `claimed`, `void` (the row moved on: the debt is closed), `taken` (by another payer,
        or by a hold) or `alive` (a heartbeat came after the flip, less than `heartbeat_fresh_s`
        seconds ago). Only after `claimed` may the platform be asked.
        """
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            mine = transaction.run(_MINE, id=debt.id)
            if not mine:
                return "taken"
            rows = transaction.run(
                """
                SELECT status::text, instance_id,
                       COALESCE(last_heartbeat_at > GREATEST(CAST(:flipped_at AS timestamptz),
                                clock_timestamp() - make_interval(secs => :fresh_s)), false)
                FROM workspaces WHERE id = CAST(:id AS uuid)
                """,
                id=debt.workspace_id,
                flipped_at=mine[0][0],
                fresh_s=heartbeat_fresh_s,
            )
            if [tuple(row[:2]) for row in rows] != [("offline", debt.instance_id)]:
                _close(transaction, debt, "void")
                return "void"
            if rows[0][2]:
                return "alive"
            # A hold may have been placed between the first statement's snapshot and its lock.
            claimed = transaction.run(
                f"""
                UPDATE reconciler.restarts AS owed
                SET attempts = attempts + 1, claimed_by = CAST(:cycle_id AS uuid), asked_at = now(),
                    last_answer = 'asked', next_attempt_at = now() + make_interval(secs => :uncertain_s)
                WHERE id = :id AND {_FREE}
                RETURNING 1
                """,  # noqa: S608 - put together from constants
                id=debt.id,
                cycle_id=self._cycle_id,
                uncertain_s=uncertain_s,
            )
        return "claimed" if claimed else "taken"

    def void(self, deadline: Deadline, debt: Debt) -> None:
        """End a debt of which nothing is owed any more."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            _close(transaction, debt, "void")

    def paid(self, deadline: Deadline, debt: Debt) -> None:
        """End a debt that the platform has taken: whatever has become of the lease, that stays true."""
        with self._session.transaction(deadline) as transaction:
            _close(transaction, debt, "paid")

    def leave(self, deadline: Deadline, debts: Sequence[Debt], *, pause_s: float) -> None:
        """Put debts behind the others, for `pause_s` seconds from now: nothing can be done for them yet."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(
                """
                UPDATE reconciler.restarts SET next_attempt_at = now() + make_interval(secs => :pause_s)
                WHERE id = ANY (CAST(:ids AS bigint[])) AND closed_at IS NULL AND next_attempt_at <= now()
                """,
                ids=[debt.id for debt in debts],
                pause_s=pause_s,
            )

    def postpone(self, deadline: Deadline, debt: Debt, answer: str, *, pause_s: float | None) -> None:
        """Note the platform's answer; the next attempt is due in `pause_s`, or as the claim said."""
        with self._session.transaction(deadline) as transaction:
            transaction.run(
                """
                UPDATE reconciler.restarts
                SET last_answer = :answer,
                    refusals = refusals + CASE WHEN CAST(:pause_s AS double precision) IS NULL THEN 0 ELSE 1 END,
                    next_attempt_at = COALESCE(now() + make_interval(secs => CAST(:pause_s AS double precision)),
                                               next_attempt_at)
                WHERE id = :id AND closed_at IS NULL AND claimed_by = CAST(:cycle_id AS uuid)
                """,
                id=debt.id,
                answer=answer,
                pause_s=pause_s,
                cycle_id=self._cycle_id,
            )


def _close(transaction: Transaction, debt: Debt, outcome: str) -> None:
    transaction.run(
        "UPDATE reconciler.restarts SET closed_at = now(), outcome = :outcome WHERE id = :id AND closed_at IS NULL",
        id=debt.id,
        outcome=outcome,
    )
