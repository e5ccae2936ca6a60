"""Lambda's door: event → request, environment → parts, one cycle, metrics and report."""

import dataclasses
import os
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from handler import cycle, exemptions, request
from handler.aws import Aws
from handler.credentials import Secrets, Tokens
from handler.database import Session
from handler.deadline import Deadline
from handler.door import seconds_for
from handler.probes import Probe
from handler.probes.control_plane import ControlPlaneProbe
from handler.probes.ec2 import CALLS_AT_ONCE, Ec2Probe
from handler.probes.ec2_api import Ec2Api
from handler.registry import Registry
from handler.restarts import Platform
from handler.settings import CONTROL_PLANE, EC2, Remote, Settings
from handler.telemetry import cycle_finished, emit_metrics, logger
from handler.transport import Transport

FLIPS_REPORTED = 100
# Lambda's runtime sets it anew for each invocation.
_CHANGES_EACH_TIME = "_X_AMZN_TRACE_ID"


class Warm:
    """What stays from one invocation to the next, as long as the environment says the same."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read the settings; connect to nothing yet. Raises SettingsError."""
        self.environment = dict(environment)
        self.settings = Settings.from_env(environment)
        self.aws = Aws(Transport(connections=CALLS_AT_ONCE))
        if self.settings.probe == EC2:
            self.aws.require_region()
        self.secrets = Secrets(self.aws.secret_text)
        self.session = Session(self.settings.database, self.secrets, self.aws.database_token)

    def close(self) -> None:
        """Hang up everywhere."""
        self.session.close()
        self.aws.close()

    def parts(self, cycle_id: str) -> cycle.Parts:
        """Return the outside world for one cycle."""
        platform = self.settings.platform
        return cycle.Parts(
            registry=Registry(self.session, cycle_id),
            probe=self._probe,
            platform=None if platform is None else partial(self._platform, platform),
        )

    def _probe(self, deadline: Deadline) -> Probe:
        settings = self.settings
        if settings.probe == CONTROL_PLANE and settings.control_plane is not None:
            return ControlPlaneProbe(
                settings.control_plane.base_url,
                Tokens(settings.control_plane, "CP_SECRET_ARN", self.secrets),
                deadline,
                concurrency=settings.probe_concurrency,
                timeout_s=settings.probe_timeout_seconds,
            )
        api = Ec2Api(partial(self.aws.call, "ec2"), timeout_s=settings.probe_timeout_seconds)
        return Ec2Probe(api, timeout_s=settings.probe_timeout_seconds)

    def _platform(self, remote: Remote, deadline: Deadline) -> Platform:
        tokens = Tokens(remote, "PLATFORM_SECRET_ARN", self.secrets)
        return Platform(remote.base_url, self.settings.platform_org_id, tokens, deadline)


_warm: Warm | None = None


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Run the cycle that the event asks for, and return its report.

    Raises ReconcilerError, before any connection is opened, when the event or the environment is
    not understood, and later when a cycle cannot be run.
    """
    began_at = time.monotonic()
    warm = _warmed_up(os.environ)
    order = request.parse(event, ceiling=warm.settings.mode)
    cycle_id = str(uuid.uuid4())
    logger.append_keys(cycle_id=cycle_id, mode=order.mode, function_request_id=getattr(context, "aws_request_id", None))
    deadline = Deadline(seconds_for(warm.settings.cycle_deadline_seconds, context))
    parts = warm.parts(cycle_id)
    try:
        if order.hold or order.release:
            return exemptions.carry_out(order, parts.registry, deadline)
        report, gauges = cycle.run(order, warm.settings, parts, deadline)
    finally:
        deadline.close()
        warm.aws.close()
    report.duration_ms = round((time.monotonic() - began_at) * 1000)
    if order.mode == request.APPLY and not order.narrowed:
        emit_metrics(report, gauges)
    answer = dataclasses.asdict(report)
    answer["flips"] = answer["flips"][:FLIPS_REPORTED]
    cycle_finished(answer)
    return answer


def _warmed_up(environment: Mapping[str, str]) -> Warm:
    global _warm  # noqa: PLW0603 - Lambda gives a process no other place to keep things warm
    present = {name: value for name, value in environment.items() if name != _CHANGES_EACH_TIME}
    if _warm is None or _warm.environment != present:
        if _warm is not None:
            _warm.close()
            _warm = None
        _warm = Warm(present)
    return _warm
