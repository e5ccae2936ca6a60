"""What stays warm in Lambda's process from one invocation to the next, and what Lambda leaves of its time."""

import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from handler import cycle
from handler.deadline import Deadline
from handler.net.aws import Aws
from handler.net.bounded import BoundedPools
from handler.net.secrets import Secrets, Tokens
from handler.probes import Probe
from handler.probes.ec2 import status_pages
from handler.probes.ec2.api import Ec2Api
from handler.probes.ec2.probe import CALLS_AT_ONCE, Ec2Probe
from handler.restarts import Platform
from handler.settings import CONTROL_PLANE, EC2, Remote, Settings
from handler.store import Store
from handler.store.session import Session

# What Lambda needs at the end to hand over the answer, or an error of ours.
LAMBDA_RESERVE_SECONDS = 3.0
# botocore's description of EC2, cut down to the calls that are made here and what is read of their answers: the whole
# one takes longer to load than everything else together.
MODELS = Path(__file__).parent / "probes" / "ec2" / "models"
# Lambda's runtime sets it anew for each invocation.
_CHANGES_EACH_TIME = "_X_AMZN_TRACE_ID"


class Process:
    """What stays from one invocation to the next, as long as the environment stays the same."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read the settings; connect to nothing yet. Raises SettingsError."""
        self.environment = dict(environment)
        self.settings = Settings.from_env(environment)
        self._aws = aws()
        if self.settings.probe == EC2:
            self._aws.require_region()
        self._secrets = Secrets(self._aws.secret_text)
        self._session = Session(self.settings.database, self._secrets, self._aws.database_token)

    def parts(self) -> cycle.Parts:
        """Return the outside world for a new cycle."""
        cycle_id, platform = str(uuid.uuid4()), self.settings.platform
        return cycle.Parts(
            cycle_id=cycle_id,
            store=Store(self._session, cycle_id),
            probe=self._probe,
            platform=None if platform is None else partial(self._platform, platform),
        )

    def rest(self) -> None:
        """Close what would not survive until the next invocation: the idle connections to AWS."""
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
        api = Ec2Api(self._aws.ec2, self._aws.within, timeout_s=settings.probe_timeout_seconds)
        return Ec2Probe(api, timeout_s=settings.probe_timeout_seconds)

    def _platform(self, remote: Remote, deadline: Deadline) -> Platform:
        from handler.restarts.platform import HttpPlatform  # noqa: PLC0415

        tokens = Tokens(remote, "PLATFORM_SECRET_ARN", self._secrets)
        settings = self.settings
        return HttpPlatform(remote.base_url, settings.platform_org_id, tokens, deadline, ca_file=settings.https_ca_file)


_process: Process | None = None


def current(environment: Mapping[str, str]) -> Process:
    """Return the process as it is kept warm, or a new one if the environment has changed. Raises SettingsError."""
    global _process  # noqa: PLW0603 - Lambda gives a process no other place to keep things warm
    present = {name: value for name, value in environment.items() if name != _CHANGES_EACH_TIME}
    if _process is None or _process.environment != present:
        forget()
        _process = Process(present)
    return _process


def forget() -> None:
    """Close what is kept warm, and begin cold the next time."""
    global _process  # noqa: PLW0603 - see `current`
    if _process is not None:
        _process.close()
        _process = None


def aws() -> Aws:
    """Return the way to AWS for a process."""
    handlers = {status_pages.EVENT: status_pages.read_instead}
    return Aws(BoundedPools(connections=CALLS_AT_ONCE), models=MODELS, handlers=handlers)


def seconds_for(most: float, context: Any) -> float:
    """Return `most` seconds, or what Lambda leaves, less a reserve, if that is less."""
    left = getattr(context, "get_remaining_time_in_millis", None)
    return most if left is None else max(0.0, min(most, left() / 1000 - LAMBDA_RESERVE_SECONDS))
