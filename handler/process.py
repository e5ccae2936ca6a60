"""What stays warm in Lambda's process from one invocation to the next, and how much time an invocation has."""

import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from handler import cycle
from handler.deadline import Deadline
from handler.domain.shards import WHOLE, Shard
from handler.net.aws import Aws
from handler.net.bounded import BoundedPools
from handler.net.roles import RoleClient
from handler.net.secrets import Secrets, Tokens
from handler.probes import Probe
from handler.probes.ec2 import status_pages
from handler.probes.ec2.api import Ec2Api
from handler.probes.ec2.probe import CALLS_AT_ONCE, Ec2Probe
from handler.probes.ec2.targets import TargetsProbe
from handler.restarts import Platform
from handler.settings import CONTROL_PLANE, EC2, Remote, Settings
from handler.store import Store
from handler.store.session import Session
from handler.targets import Target

# Kept free at the end, so that the answer or our own error gets out before Lambda's timeout.
LAMBDA_RESERVE_SECONDS = 3.0
# botocore's model of EC2, reduced to the calls that the handler makes and the fields that it reads. The full model
# takes longer to load than everything else together.
MODELS = Path(__file__).parent / "probes" / "ec2" / "models"
# Lambda's runtime changes this variable for each invocation.
_CHANGES_EACH_TIME = "_X_AMZN_TRACE_ID"


class Process:
    """Everything that invocations share, as long as the environment stays the same."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read the settings; connect to nothing yet. Raises SettingsError."""
        self.environment = dict(environment)
        self.settings = Settings.from_env(environment)
        self._aws = aws(targets=len(self.settings.ec2_targets))
        if self.settings.probe == EC2:
            self._aws.region()
        self._roles = {
            one.name: RoleClient(partial(self._aws.assumed, one.region, one.role_arn, one.external_id))
            for one in self.settings.ec2_targets
            if one.role_arn is not None
        }
        self._found_in: dict[str, int] = {}
        self._secrets = Secrets(self._aws.secret_text)
        self._session = Session(self.settings.database, self._secrets, self._aws.database_token)

    def parts(self, *, leased: bool = True, shard: Shard = WHOLE) -> cycle.Parts:
        """Return what a new cycle of a shard uses of the outside world, and its id.

        `leased`: it takes the lease. Otherwise it works beside whoever has it.
        """
        cycle_id, platform = str(uuid.uuid4()), self.settings.platform
        return cycle.Parts(
            cycle_id=cycle_id,
            store=Store(self._session, cycle_id, leased=leased, shard=shard),
            probe=self._probe,
            platform=None if platform is None else partial(self._platform, platform),
        )

    def sources(self, deadline: Deadline) -> Mapping[str, Probe]:
        """Return each source of truth by its name, to be asked by itself: the targets, or the control plane."""
        if self.settings.probe == EC2:
            return {one.target: one for one in self._ec2_probes()}
        return {CONTROL_PLANE: self._probe(deadline)}

    def rest(self) -> None:
        """Close the idle connections to AWS, which would not survive until the next invocation."""
        self._aws.close()

    def close(self) -> None:
        """Close every connection."""
        self._session.close()
        self._aws.close()

    # requests takes as long to import as boto3, so only a cycle that needs it pays for it.

    def _probe(self, deadline: Deadline) -> Probe:
        settings = self.settings
        if settings.probe == CONTROL_PLANE and settings.control_plane is not None:
            from handler.probes.control_plane.probe import ControlPlaneProbe  # noqa: PLC0415

            return ControlPlaneProbe(
                settings.control_plane.base_url,
                Tokens(settings.control_plane, "CP_SECRET_ARN", self._secrets),
                deadline,
                concurrency=settings.probe_concurrency,
                timeout_s=settings.probe_timeout_seconds,
                ca_file=settings.https_ca_file,
            )
        probes = self._ec2_probes()
        if len(probes) == 1:
            return probes[0]
        return TargetsProbe(probes, timeout_s=settings.probe_timeout_seconds, hints=self._found_in)

    def _ec2_probes(self) -> list[Ec2Probe]:
        return [self._ec2_probe(one) for one in self.settings.ec2_targets or (Target(self._aws.region()),)]

    def _ec2_probe(self, target: Target) -> Ec2Probe:
        timeout_s, within = self.settings.probe_timeout_seconds, self._aws.within
        role = self._roles.get(target.name)
        if role is None:
            api = Ec2Api(partial(self._aws.ec2, target.region), within, timeout_s=timeout_s)
        else:
            client = role.for_cycle(self.settings.cycle_deadline_seconds)
            api = Ec2Api(client, within, timeout_s=timeout_s, renew=client.renew)
        return Ec2Probe(api, timeout_s=timeout_s, target=target.name, may_be_empty=target.may_be_empty)

    def _platform(self, remote: Remote, deadline: Deadline) -> Platform:
        from handler.restarts.platform import HttpPlatform  # noqa: PLC0415

        tokens = Tokens(remote, "PLATFORM_SECRET_ARN", self._secrets)
        settings = self.settings
        return HttpPlatform(remote.base_url, settings.platform_org_id, tokens, deadline, ca_file=settings.https_ca_file)


_process: Process | None = None


def current(environment: Mapping[str, str]) -> Process:
    """Return the warm process, or a new one if the environment has changed. Raises SettingsError."""
    global _process  # noqa: PLW0603 - Lambda gives a process no other place to keep things warm
    present = {name: value for name, value in environment.items() if name != _CHANGES_EACH_TIME}
    if _process is None or _process.environment != present:
        forget()
        _process = Process(present)
    return _process


def forget() -> None:
    """Close the warm process, so that the next invocation starts cold."""
    global _process  # noqa: PLW0603 - see `current`
    if _process is not None:
        _process.close()
        _process = None


def aws(*, targets: int = 1) -> Aws:
    """Return a new set of AWS clients, for so many Regions and accounts. It connects to nothing yet."""
    handlers = {status_pages.EVENT: status_pages.read_instead}
    connections = max(CALLS_AT_ONCE, targets) + 1  # one for the impaired instances
    hosts = targets + 3  # STS, Secrets Manager, and the function's own Region
    return Aws(BoundedPools(connections=connections, hosts=max(10, hosts)), models=MODELS, handlers=handlers)


def seconds_for(most: float, context: Any) -> float:
    """Return `most` seconds, or the time that Lambda leaves minus a reserve, whichever is shorter."""
    left = getattr(context, "get_remaining_time_in_millis", None)
    return most if left is None else max(0.0, min(most, left() / 1000 - LAMBDA_RESERVE_SECONDS))
