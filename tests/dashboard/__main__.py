"""Plays the night and prints what the dashboard shows of it. `tests.dashboard.drawing` makes a picture of that."""

import json
import sys

from sandbox.ec2 import MotoEc2
from sandbox.postgres import PostgresServer
from sandbox.queue import StateChangeQueue
from tests.dashboard.night import MINUTES, PARAMETERS, Night
from tests.dashboard.panels import panels
from tests.support.cloudformation import Stack
from tests.support.rehearsal import Rehearsal
from tests.support.stage import opened
from tests.support.tools import run, tool

_STACK = {
    "Mode": "apply",
    "DatabaseSecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:database-AbCdEf",
    "PlatformBaseUrl": "https://platform.example",
}


def main() -> int:
    """Play it; return the process's exit code."""
    parameters = _STACK | PARAMETERS
    command = [tool("deploy", "python"), "tests/infra/tools/translate.py"]
    (template,) = json.loads(run(command, stdin=json.dumps([parameters])))
    stack = Stack(template, parameters)
    with (
        PostgresServer.start() as postgres,
        MotoEc2() as ec2,
        opened(postgres) as stage,
        StateChangeQueue(ec2) as queue,
    ):
        now = Rehearsal(stage, stack, queue)
        Night(now).play()
        json.dump(panels(now, MINUTES), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
