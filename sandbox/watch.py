"""`make demo ARGS=--watch`: runs cycle after cycle while instances die."""

import random
import time
from collections.abc import Mapping
from typing import Any

from sandbox.invocation import Invocation
from sandbox.show import log_line, short
from sandbox.snapshot import Snapshot
from sandbox.terminal import headline, say, styled
from sandbox.world import World

_BETWEEN_CYCLES_S = 3.0

# Seconds instead of minutes, so that a viewer sees every effect.
_SHORT_TIMES = {
    "HEARTBEAT_FRESH_SECONDS": "2",
    "RESTART_GRACE_SECONDS": "2",
    "ABSENT_MIN_AGE_SECONDS": "5",
    "BREAKER_WINDOW_SECONDS": "10",
    "CRASH_LOOP_BACKOFF_SECONDS": "5",
    "CRASH_LOOP_RESET_SECONDS": "30",
}


def watch(world: World, event: Any, environment: Mapping[str, str]) -> None:
    """Run cycles until Ctrl-C, and kill one instance after each. Raises InvocationError."""
    headline("Watching: a cycle every few seconds, with an instance dying in between. Ctrl-C ends it.")
    say(styled(f"  settings: {', '.join(f'{name}={value}' for name, value in _SHORT_TIMES.items())}", "dim"))
    cycles = killed = flipped = 0
    try:
        while True:
            flipped += _cycle(event, {**environment, **_SHORT_TIMES})["flipped"]
            cycles += 1
            world.platform.settle()
            time.sleep(_BETWEEN_CYCLES_S)
            killed += _kill_one(world)
    except KeyboardInterrupt:
        restarted = len(world.platform.restarts)
        say()
        say(f"  {cycles} cycles, {killed} instances killed, {flipped} workspaces flipped, {restarted} restarted.")


def _cycle(event: Any, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run one cycle, show its lines about single workspaces and its totals, and return its report."""
    with Invocation(event, environment) as invocation:
        for line in invocation:
            if isinstance(line, str) or "workspace_id" in line:
                log_line(line)
        report = invocation.wait()
    say(
        f"  {_clock()}      cycle finished      {report['running']} of {report['candidates']} running, "
        f"{report['dead']} dead, {report['flipped']} flipped, {report['restarts']['accepted']} restarts accepted, "
        f"{report['duration_ms']} ms"
    )
    return report


def _kill_one(world: World) -> int:
    """Stop or terminate a random workspace's instance; return 1, or 0 if no instance is running."""
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
