"""The platform's database. All of the project's SQL is in this package.

The flip, in `rows`, is the one place that writes to the platform's tables.
"""

from handler.database import Session
from handler.deadline import Deadline
from handler.registry.debts import Debts
from handler.registry.fleet import Fleet, Memory, Selection
from handler.registry.holds import Holds
from handler.registry.lease import Lease
from handler.registry.rights import check_rights
from handler.registry.rows import Flipped, Rows, Terms

__all__ = ["Debts", "Fleet", "Flipped", "Holds", "Lease", "Memory", "Registry", "Rows", "Selection", "Terms"]


class Registry:
    """The database as one cycle sees it. Every method of its parts raises RegistryError."""

    def __init__(self, session: Session, cycle_id: str) -> None:
        """Act in the name of `cycle_id`, a UUID."""
        self._session = session
        self.lease = Lease(session, cycle_id)
        self.fleet = Fleet(session, self.lease)
        self.rows = Rows(session, cycle_id, self.lease)
        self.debts = Debts(session, cycle_id, self.lease)
        self.holds = Holds(session)

    def check_rights(self, deadline: Deadline, *, to_apply: bool) -> None:
        """Raise SchemaMissingError or RightsMissingError if a cycle would stumble half-way."""
        check_rights(self._session, deadline, to_apply=to_apply)
