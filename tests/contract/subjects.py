"""Two databases that look the same to a test: one in memory, and PostgreSQL."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from uuid import UUID

from handler.domain.shards import WHOLE, Shard
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store import Store
from handler.store.session import Session
from sandbox.fleet import Fleet
from sandbox.postgres import Database
from tests.fakes.store import fake_store
from tests.fakes.tables import (
    Row,
    StoredCoverage,
    StoredDoubt,
    StoredHold,
    StoredRestart,
    StoredSource,
    StoredStop,
    Tables,
)

# The columns of a restart that tests compare. Its times show only in what may be done with it.
RESTART_COLUMNS = ("id", "workspace_id", "instance_id", "attempts", "refusals", "last_answer", "outcome", "streak")
# What else there is, the times only as whether they are set.
MORE_COLUMNS = (
    "adopted",
    "released",
    "absent_sightings",
    "watched_since",
    "watch_ended_at",
    "up_since",
    "kept_back_at",
)
DOUBT_COLUMNS = ("workspace_id", "kind", "instance_id", "reason", "sightings", "by_hand", "offline_since")
Restarts = list[tuple[Any, ...]]
CYCLES = [str(UUID(int=number)) for number in (0xA, 0xB)]

_EMPTY = """
    TRUNCATE workspaces, structure_events, reconciler.lease, reconciler.coverage, reconciler.shard_coverage,
             reconciler.doubts, reconciler.source_doubts, reconciler.restarts, reconciler.restart_stops,
             reconciler.holds RESTART IDENTITY;
    INSERT INTO reconciler.coverage DEFAULT VALUES
"""

_TIMES = (
    *("taken_up_at", "used_at", "pass_completed_at", "since", "last_seen_at", "offline_since", "ends_at"),
    *("flipped_at", "due_at", "asked_at", "closed_at", "backoff_until", "watch_ended_at"),
    *("kept_back_at", "absent_since", "first_due_at", "watched_since", "up_since"),
)


class Subject(Protocol):
    """A database with workspaces, and what everybody else does there. Ids are UUIDs."""

    def store(self, cycle: int = 0, *, leased: bool = True, shard: Shard = WHOLE) -> Store:
        """Return the store of the first cycle or the second one; with `leased=False`, of one that needs no lease."""
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

    def locked_own(self, table: str, workspace_id: str | None = None) -> AbstractContextManager[None]:
        """Lock, as somebody else, all rows of one of our own tables, or those of a workspace."""
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

    def more(self) -> Restarts:
        """Return what else there is to say about the restarts: MORE_COLUMNS."""
        ...

    def doubts(self) -> Restarts:
        """Return the doubts: DOUBT_COLUMNS."""
        ...


class InMemory:
    """See Subject."""

    def __init__(self) -> None:
        self.tables = Tables()

    def store(self, cycle: int = 0, *, leased: bool = True, shard: Shard = WHOLE) -> Store:
        return fake_store(self.tables, CYCLES[cycle], leased=leased, shard=shard)

    def add(self, workspace_id: str, instance_id: str | None, **columns: Any) -> None:
        age_s = columns.pop("heartbeat_age_s", 300.0)
        beat_at = None if age_s is None else self.tables.now - age_s
        updated_at = self.tables.now - columns.pop("updated_age_s", 0.0)
        self.tables.workspaces[workspace_id] = Row(instance_id, heartbeat_at=beat_at, updated_at=updated_at, **columns)

    def update(self, workspace_id: str, **columns: str | None) -> None:
        row = self.tables.workspaces[workspace_id]
        row.updated_at = self.tables.now
        for name, value in columns.items():
            setattr(row, name.replace("last_heartbeat_at", "heartbeat_at"), value)

    def heartbeat(self, workspace_id: str, *, age_s: float) -> None:
        row = self.tables.workspaces[workspace_id]
        row.heartbeat_at, row.updated_at = self.tables.now - age_s, self.tables.now

    def delete(self, workspace_id: str) -> None:
        del self.tables.workspaces[workspace_id]

    @contextmanager
    def locked(self, workspace_id: str) -> Iterator[None]:
        self.tables.workspaces[workspace_id].locked_by = "somebody else"
        yield
        self.tables.workspaces[workspace_id].locked_by = None

    @contextmanager
    def locked_own(self, table: str, workspace_id: str | None = None) -> Iterator[None]:
        rows: dict[str, list[Any]] = {
            "restarts": self.tables.restarts,
            "doubts": list(self.tables.doubts.values()),
        }
        those = [one for one in rows.get(table, []) if workspace_id in (None, one.workspace_id)]
        for one in those:
            one.locked_by = "somebody else"
        self.tables.locked.add(table)
        yield
        self.tables.locked.discard(table)
        for one in those:
            one.locked_by = None

    def age(self, seconds: float) -> None:
        tables = self.tables
        tables.leases = {of: (holder, ends_at - seconds) for of, (holder, ends_at) in tables.leases.items()}
        records: list[StoredCoverage | StoredDoubt | StoredSource | StoredRestart | StoredStop | StoredHold] = [
            *tables.shards.values(),
            *tables.doubts.values(),
            *tables.sources.values(),
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

    def more(self) -> Restarts:
        return [_without_times(dataclasses.asdict(one), MORE_COLUMNS) for one in self.tables.restarts]

    def doubts(self) -> Restarts:
        doubts = sorted(self.tables.doubts.values(), key=lambda one: (one.workspace_id, one.kind))
        return [_without_times(dataclasses.asdict(one), DOUBT_COLUMNS) for one in doubts]


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

    def store(self, cycle: int = 0, *, leased: bool = True, shard: Shard = WHOLE) -> Store:
        return Store(self._session, CYCLES[cycle], leased=leased, shard=shard)

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

    @contextmanager
    def locked_own(self, table: str, workspace_id: str | None = None) -> Iterator[None]:
        connection = self._database.connect()
        those = "" if workspace_id is None else f" WHERE workspace_id = '{workspace_id}'"
        try:
            connection.run("BEGIN")
            connection.run(f"SELECT FROM reconciler.{table}{those} FOR UPDATE")
            yield
            connection.run("ROLLBACK")
        finally:
            connection.close()

    def age(self, seconds: float) -> None:
        self._fleet.age_everything(seconds)

    def rows(self) -> dict[str, tuple[str | None, str | None]]:
        rows = self._database.query("SELECT id::text AS id, status::text AS status, instance_id FROM workspaces")
        return {row["id"]: (row["status"], row["instance_id"]) for row in rows}

    def events(self) -> list[tuple[str, str]]:
        return [(one["workspace_id"], one["payload"]["instance_id"]) for one in self._fleet.events()]

    def restarts(self) -> Restarts:
        return [tuple(one[name] for name in RESTART_COLUMNS) for one in self._fleet.restarts()]

    def more(self) -> Restarts:
        return [_without_times(one, MORE_COLUMNS) for one in self._fleet.restarts()]

    def doubts(self) -> Restarts:
        return [_without_times(one, DOUBT_COLUMNS) for one in self._fleet.doubts()]


def _without_times(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[Any, ...]:
    return tuple(row[name] is not None if name in _TIMES else row[name] for name in columns)


def _never(*_: object) -> str:
    raise AssertionError("a secret is asked for")
