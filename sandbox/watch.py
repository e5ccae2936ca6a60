"""The demo that goes on: cycle after cycle, while instances keep dying."""

import random
import time
from collections.abc import Mapping
from typing import Any

from sandbox.invocation import Invocation
from sandbox.show import log_line, short
from sandbox.snapshot import Snapshot
from sandbox.terminal import headline, say, styled
from sandbox.world import World

_PAUSE_S = 3.0

# Minutes have to pass in seconds.
_HURRIED = {
    "HEARTBEAT_FRESH_SECONDS": "2",
    "ABSENT_MIN_AGE_SECONDS": "5",
    "BREAKER_WINDOW_SECONDS": "10",
    "RESTART_LOOP_PAUSE_SECONDS": "5",
    "RESTART_LOOP_HEALTHY_SECONDS": "30",
}


def watch(world: World, event: Any, environment: Mapping[str, str]) -> None:
    """Run cycles until Ctrl-C, stopping or terminating an instance between any two. Raises InvocationError."""
    headline("Watching: a cycle every few seconds, and an instance dies before each. Ctrl-C ends it.")
    say(styled(f"  in a hurry: {', '.join(f'{name}={value}' for name, value in _HURRIED.items())}", "dim"))
    cycles = killed = flipped = 0
    try:
        while True:
            flipped += _cycle(event, {**environment, **_HURRIED})["flipped"]
            cycles += 1
            world.platform.settle()
            time.sleep(_PAUSE_S)
            killed += _kill_one(world)
    except KeyboardInterrupt:
        restarted = len(world.platform.restarts)
        say()
        say(f"  {cycles} cycles, {killed} instances killed, {flipped} workspaces flipped, {restarted} restarted.")


def _cycle(event: Any, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run one cycle, show what it says of single workspaces and its sum, and return its report."""
    with Invocation(event, environment) as invocation:
        for line in invocation:
            if isinstance(line, str) or "workspace_id" in line:
                log_line(line)
        report = invocation.wait()
    say(
        f"  {_clock()}      cycle finished      {report['running']} of {report['candidates']} run, "
        f"{report['dead']} dead, {report['flipped']} flipped, {report['restarts']['requested']} restarts requested, "
        f"{report['duration_ms']} ms"
    )
    return report


def _kill_one(world: World) -> int:
    """Stop or terminate some workspace's instance; return how many could be killed: 1, or 0 if none is left."""
    snapshot = Snapshot.of(world)
    alive = [row for row in snapshot.rows if row["status"] == "online" and snapshot.states[row["id"]] == "running"]
    if not alive:
        return 0
    row = random.choice(alive)  # noqa: S311 - any will do
    kill = random.choice([world.ec2.stop_instances, world.ec2.terminate])  # noqa: S311
    kill([row["instance_id"]])
    message = f"instance dies       {short(row['id'])}  {row['instance_id']}  {world.ec2.state_of(row['instance_id'])}"
    say(styled(f"  {_clock()}      {message}", "yellow"))
    return 1


def _clock() -> str:
    return time.strftime("%H:%M:%S", time.gmtime())
