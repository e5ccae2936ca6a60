"""All parts of the sandbox together, with a fleet on them."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from sandbox import cast
from sandbox.cast import Role
from sandbox.control_plane import ControlPlane
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.platform import Platform
from sandbox.postgres import Database, PostgresServer

# Shows what is being set up, as long as the context lasts.
Step = Callable[[str], AbstractContextManager[None]]

_STOP_S = 0.1
_BOOT_S = 0.3


@dataclass(frozen=True, slots=True)
class World:
    """What the reconciler meets: its database, EC2, the control plane and the platform."""

    database: Database
    ec2: MotoEc2
    control_plane: ControlPlane
    platform: Platform
    fleet: Fleet

    def environment(self, probe: str) -> dict[str, str]:
        """Return the settings of a reconciler in this world that asks `ec2` or `control_plane`."""
        settings = {"DATABASE_URL": self.database.url, **self.ec2.environment, **self.platform.environment}
        return settings | self.control_plane.environment if probe == "control_plane" else settings

    def populate(self, roles: list[Role]) -> None:
        """Launch an instance for each role, bring it to its state, and record it in a row."""
        launched = iter(self.ec2.launch(sum(role.instance != cast.NONE for role in roles)))
        instance_ids = [None if role.instance == cast.NONE else next(launched) for role in roles]
        in_state: dict[str, list[str]] = defaultdict(list)
        for role, instance_id in zip(roles, instance_ids, strict=True):
            if instance_id is not None:
                in_state[role.instance].append(instance_id)
        for state, ids in in_state.items():
            self._bring_to(state, ids)
        self.fleet.insert(
            {
                "id": cast.workspace_id(number),
                "name": role.name,
                "status": role.status,
                "runtime": role.runtime,
                "instance_id": instance_id,
                "heartbeat_age_s": role.heartbeat_age_s,
            }
            for number, (role, instance_id) in enumerate(zip(roles, instance_ids, strict=True), start=1)
        )

    def reprovision_while_probed(self, workspace_id: str, probe: str) -> None:
        """Have a workspace get a new instance after the next cycle's SELECT, and before the old one is told of."""
        new = self.ec2.launch()[0]

        def reprovision(_: object) -> None:
            self.fleet.update(workspace_id, instance_id=new)

        if probe == "control_plane":
            self.control_plane.script.before(reprovision, nth=1, workspace_id=workspace_id)
        else:
            self.ec2.script.before(reprovision, nth=1, service="ec2")

    def _bring_to(self, state: str, instance_ids: list[str]) -> None:
        match state:
            case "running":
                pass
            case "stopped":
                self.ec2.stop_instances(instance_ids)
            case "terminated":
                self.ec2.terminate(instance_ids)
            case cast.UNKNOWN:
                for one in instance_ids:
                    self.ec2.forget(one)
            case _:
                for one in instance_ids:
                    self.ec2.set_state(one, state)


@contextmanager
def world(step: Step) -> Iterator[World]:
    """Start every part, showing each as a step, and yield the world they make; in the end nothing is left of it."""
    with step("PostgreSQL"):
        server = PostgresServer.start()
    with server, MotoEc2() as ec2:
        with step("the platform's tables and the reconciler's schema"):
            database = server.create_database()
        with (
            ControlPlane(ec2.state_of) as control_plane,
            Platform(
                database,
                terminate=lambda old: ec2.terminate([old]),
                launch=lambda: ec2.launch()[0],
                org_id="sandbox-org",
                stop_s=_STOP_S,
                boot_s=_BOOT_S,
            ) as platform,
        ):
            yield World(database, ec2, control_plane, platform, Fleet(database))
