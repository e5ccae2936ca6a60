"""Two databases that look the same to a test: one in memory, and PostgreSQL."""

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from uuid import UUID

from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store import Store
from handler.store.session import Session
from sandbox.fleet import Fleet
from sandbox.postgres import Database
from tests.fakes.store import fake_store
from tests.fakes.tables import Row, StoredAbsence, StoredHold, StoredRestart, StoredStop, Tables

# The columns of a restart that tests compare. Its times show only in what may be done with it.
RESTART_COLUMNS = ("id", "workspace_id", "instance_id", "attempts", "refusals", "last_answer", "outcome", "streak")
Restarts = list[tuple[Any, ...]]
CYCLES = [str(UUID(int=number)) for number in (0xA, 0xB)]

_EMPTY = """
    TRUNCATE workspaces, structure_events, reconciler.lease, reconciler.coverage, reconciler.absences,
             reconciler.restarts, reconciler.restart_stops, reconciler.holds RESTART IDENTITY;
    INSERT INTO reconciler.coverage DEFAULT VALUES
"""

_TIMES = (
    *("first_cycle_at", "pass_completed_at", "first_seen_at", "last_seen_at", "ends_at"),
    *("flipped_at", "due_at", "asked_at", "closed_at", "backoff_until", "watch_ended_at"),
)


class Subject(Protocol):
    """A database with workspaces, and what everybody else does there. Ids are UUIDs."""

    def store(self, cycle: int = 0) -> Store:
        """Return the store of the first cycle or the second one."""
        ...

    def add(self, workspace_id: str, instance_id: str | None, **columns: Any) -> None:
        """Add a workspace, online and with an old heartbeat unless `columns` (`heartbeat_age_s`) say otherwise."""
        ...

    def update(self, workspace_id: str, **columns: str | None) -> None:
        """Set `status`, `instance_id` or `runtime`, or have the heartbeat be None with `last_heartbeat_at`."""
        ...

    def heartbeat(self, workspace_id: str, *, age_s: float) -> None:
        """Record a heartbeat of that age."""
        ...

    def delete(self, workspace_id: str) -> None:
        """Delete a row."""
        ...

    def locked(self, workspace_id: str) -> AbstractContextManager[None]:
        """Lock a row, as somebody else."""
        ...

    def age(self, seconds: float) -> None:
        """Move the reconciler's own times that far into the past."""
        ...

    def rows(self) -> dict[str, tuple[str | None, str | None]]:
        """Return status and instance of each workspace."""
        ...

    def events(self) -> list[tuple[str, str]]:
        """Return workspace and instance of each event, in their order."""
        ...

    def restarts(self) -> Restarts:
        """Return the restarts, in their order: RESTART_COLUMNS."""
        ...


class InMemory:
    """See Subject."""

    def __init__(self) -> None:
        self.tables = Tables()

    def store(self, cycle: int = 0) -> Store:
        return fake_store(self.tables, CYCLES[cycle])

    def add(self, workspace_id: str, instance_id: str | None, **columns: Any) -> None:
        age_s = columns.pop("heartbeat_age_s", 300.0)
        beat_at = None if age_s is None else self.tables.now - age_s
        self.tables.workspaces[workspace_id] = Row(instance_id, heartbeat_at=beat_at, **columns)

    def update(self, workspace_id: str, **columns: str | None) -> None:
        for name, value in columns.items():
            setattr(self.tables.workspaces[workspace_id], name.replace("last_heartbeat_at", "heartbeat_at"), value)

    def heartbeat(self, workspace_id: str, *, age_s: float) -> None:
        self.tables.workspaces[workspace_id].heartbeat_at = self.tables.now - age_s

    def delete(self, workspace_id: str) -> None:
        del self.tables.workspaces[workspace_id]

    @contextmanager
    def locked(self, workspace_id: str) -> Iterator[None]:
        self.tables.workspaces[workspace_id].locked_by = "somebody else"
        yield
        self.tables.workspaces[workspace_id].locked_by = None

    def age(self, seconds: float) -> None:
        tables = self.tables
        if tables.lease is not None:
            tables.lease = (tables.lease[0], tables.lease[1] - seconds)
        records: list[Tables | StoredAbsence | StoredRestart | StoredStop | StoredHold] = [
            tables,
            *tables.absences.values(),
            *tables.restarts,
            *tables.stops,
            *tables.holds.values(),
        ]
        for record in records:
            for name in (one.name for one in dataclasses.fields(record) if one.name in _TIMES):
                at = getattr(record, name)
                setattr(record, name, None if at is None else at - seconds)

    def rows(self) -> dict[str, tuple[str | None, str | None]]:
        return {one: (row.status, row.instance_id) for one, row in self.tables.workspaces.items()}

    def events(self) -> list[tuple[str, str]]:
        return list(self.tables.events)

    def restarts(self) -> Restarts:
        return [tuple(getattr(one, name) for name in RESTART_COLUMNS) for one in self.tables.restarts]


class InPostgres:
    """See Subject."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fleet = Fleet(database)
        self._session = Session(database_from({"DATABASE_URL": database.url}), Secrets(_never), _never)
        database.query(_EMPTY)

    def close(self) -> None:
        """Hang up."""
        self._session.close()

    def store(self, cycle: int = 0) -> Store:
        return Store(self._session, CYCLES[cycle])

    def add(self, workspace_id: str, instance_id: str | None, **columns: Any) -> None:
        self._fleet.add(instance_id, id=workspace_id, **columns)

    def update(self, workspace_id: str, **columns: str | None) -> None:
        self._fleet.update(workspace_id, **columns)

    def heartbeat(self, workspace_id: str, *, age_s: float) -> None:
        self._fleet.heartbeat(workspace_id, age_s=age_s)

    def delete(self, workspace_id: str) -> None:
        self._fleet.delete(workspace_id)

    def locked(self, workspace_id: str) -> AbstractContextManager[None]:
        return self._fleet.locked(workspace_id)

    def age(self, seconds: float) -> None:
        self._fleet.age_everything(seconds)

    def rows(self) -> dict[str, tuple[str | None, str | None]]:
        rows = self._database.query("SELECT id::text AS id, status::text AS status, instance_id FROM workspaces")
        return {row["id"]: (row["status"], row["instance_id"]) for row in rows}

    def events(self) -> list[tuple[str, str]]:
        return [(one["workspace_id"], one["payload"]["instance_id"]) for one in self._fleet.events()]

    def restarts(self) -> Restarts:
        return [tuple(one[name] for name in RESTART_COLUMNS) for one in self._fleet.restarts()]


def _never(*_: object) -> str:
    raise AssertionError("a secret is asked for")
