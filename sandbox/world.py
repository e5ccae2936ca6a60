"""All parts of the sandbox together, with a fleet."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from sandbox import sample_fleet
from sandbox.control_plane import ControlPlane
from sandbox.ec2 import MotoEc2
from sandbox.fleet import Fleet
from sandbox.platform import Platform
from sandbox.postgres import Database, PostgresServer
from sandbox.sample_fleet import SampleWorkspace

# Shows what is being set up for as long as the context lasts.
Step = Callable[[str], AbstractContextManager[None]]

_STOP_S = 0.1
_BOOT_S = 0.3


@dataclass(frozen=True, slots=True)
class World:
    """Everything the reconciler talks to: its database, EC2, the control plane and the platform."""

    database: Database
    ec2: MotoEc2
    control_plane: ControlPlane
    platform: Platform
    fleet: Fleet

    def environment(self, probe: str) -> dict[str, str]:
        """Return the settings of a reconciler in this world that probes `ec2` or `control_plane`."""
        settings = {"DATABASE_URL": self.database.url, **self.ec2.environment, **self.platform.environment}
        return settings | self.control_plane.environment if probe == "control_plane" else settings

    def populate(self, workspaces: list[SampleWorkspace]) -> None:
        """Launch an instance for each workspace, bring it to its state, and record it in a row."""
        launched = iter(self.ec2.launch(sum(one.instance != sample_fleet.NO_INSTANCE for one in workspaces)))
        instance_ids = [None if one.instance == sample_fleet.NO_INSTANCE else next(launched) for one in workspaces]
        in_state: dict[str, list[str]] = defaultdict(list)
        for workspace, instance_id in zip(workspaces, instance_ids, strict=True):
            if instance_id is not None:
                in_state[workspace.instance].append(instance_id)
        for state, ids in in_state.items():
            self._bring_to(state, ids)
        self.fleet.insert(
            {
                "id": sample_fleet.workspace_id(number),
                "name": workspace.name,
                "status": workspace.status,
                "runtime": workspace.runtime,
                "instance_id": instance_id,
                "heartbeat_age_s": workspace.heartbeat_age_s,
            }
            for number, (workspace, instance_id) in enumerate(zip(workspaces, instance_ids, strict=True), start=1)
        )

    def reprovision_while_probed(self, workspace_id: str, probe: str) -> None:
        """Give a workspace a new instance after the next cycle's SELECT, but before the probe's answer."""
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
            case sample_fleet.NOT_FOUND:
                for one in instance_ids:
                    self.ec2.forget(one)
            case _:
                for one in instance_ids:
                    self.ec2.set_state(one, state)


@contextmanager
def world(step: Step) -> Iterator[World]:
    """Start every part, show each as a step, and yield the world. Leave nothing behind at the end."""
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
