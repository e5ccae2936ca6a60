"""The fleet at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.world import World


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rows, ordered by id, and EC2's state of each recorded instance, by workspace id."""

    rows: list[Mapping[str, Any]]
    states: Mapping[str, str | None]

    @classmethod
    def of(cls, world: World) -> "Snapshot":
        """Return the fleet as it is now."""
        rows = world.database.query(
            "SELECT id::text AS id, name, status::text AS status, runtime, instance_id FROM workspaces ORDER BY id"
        )
        states = world.ec2.states()
        return cls(list(rows), {row["id"]: states.get(row["instance_id"]) for row in rows})
