"""Who runs now: one applying cycle at a time."""

from handler.database import Session, Transaction
from handler.deadline import Deadline
from handler.errors import LeaseLostError

FLEET = "fleet"
# A lease outlives its cycle by this much, so that a cycle that ends late is still alone.
MARGIN_SECONDS = 1.5

# For a statement that must not do anything when the lease is lost; its parameters are those of `Lease.own`.
IS_HELD = """EXISTS (
    SELECT FROM reconciler.lease
    WHERE scope = :scope AND holder = CAST(:cycle_id AS uuid) AND expires_at > clock_timestamp()
)"""


class Lease:
    """The right of one cycle to act. Nothing is doubled without it; it only keeps cycles apart."""

    def __init__(self, session: Session, cycle_id: str) -> None:
        """Hold it in the name of `cycle_id`, a UUID."""
        self._session = session
        self.own = {"scope": FLEET, "cycle_id": cycle_id}

    def acquire(self, deadline: Deadline, *, lasts_s: float) -> bool:
        """Take the lease for `lasts_s`, the longest that the cycle can last; tell whether it was free."""
        with self._session.transaction(deadline) as transaction:
            taken = transaction.run(
                """
                INSERT INTO reconciler.lease AS held (scope, holder, expires_at)
                VALUES (:scope, CAST(:cycle_id AS uuid), clock_timestamp() + make_interval(secs => :lasts_s))
                ON CONFLICT (scope) DO UPDATE
                SET holder = EXCLUDED.holder, acquired_at = now(), expires_at = EXCLUDED.expires_at
                WHERE held.expires_at <= clock_timestamp() OR held.holder = EXCLUDED.holder
                RETURNING 1
                """,
                **self.own,
                lasts_s=lasts_s + MARGIN_SECONDS,
            )
        return bool(taken)

    def require(self, transaction: Transaction) -> None:
        """Raise LeaseLostError unless it is held: a frozen and thawed cycle acts on nothing."""
        ((held,),) = transaction.run("SELECT " + IS_HELD, **self.own)
        if not held:
            raise LeaseLostError("this cycle's lease has expired or is another's")

    def release(self, deadline: Deadline) -> None:
        """Give the lease back, if it is still this cycle's."""
        with self._session.transaction(deadline) as transaction:
            transaction.run(
                "DELETE FROM reconciler.lease WHERE scope = :scope AND holder = CAST(:cycle_id AS uuid)",
                **self.own,
            )
