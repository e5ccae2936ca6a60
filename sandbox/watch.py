"""`make demo ARGS=--watch`: instances die, and state-change events and full cycles find out.

The events take the way that they take in the stack: EC2, a queue (moto's SQS), Lambda's event source mapping (played by
`sandbox.event_source`), the handler.
"""

import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

from sandbox.event_source import EventSourceMapping
from sandbox.invocation import Invocation, InvocationError
from sandbox.queue import StateChangeQueue
from sandbox.show import log_line, short
from sandbox.snapshot import Snapshot
from sandbox.terminal import headline, say, styled
from sandbox.world import World

# Between two kills. Longer than it takes from an event to its flip.
_BETWEEN_KILLS_S = 5.0
_KILLS_BETWEEN_CYCLES = 3
# What the template gives to the function for state changes.
_EVENTS_TIMEOUT_S = 30.0

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
    """Kill instances until Ctrl-C, with a full cycle after some of them. Raises InvocationError."""
    headline("Watching: an instance dies every few seconds, and EC2 tells of it; a full cycle comes now and then.")
    say(styled(f"  settings: {', '.join(f'{name}={value}' for name, value in _SHORT_TIMES.items())}", "dim"))
    say(styled("  Ctrl-C ends it.", "dim"))
    watching = _Watching(world, event, {**environment, **_SHORT_TIMES})
    try:
        watching.cycle()
        with StateChangeQueue(world.ec2) as queue, EventSourceMapping(queue, watching.events):
            while True:
                for _ in range(_KILLS_BETWEEN_CYCLES):
                    watching.kill_one()
                    time.sleep(_BETWEEN_KILLS_S)
                watching.cycle()
                world.platform.settle()
    except KeyboardInterrupt:
        say()
        say(f"  {watching.summary()}")


class _Watching:
    """What has happened so far. `events` is called from other threads."""

    def __init__(self, world: World, event: Any, environment: Mapping[str, str]) -> None:
        self._world = world
        self._event = event
        self._environment = environment
        self._mode = ""
        self._died_at: dict[str, float] = {}
        self._latencies_s: list[float] = []
        self._cycles = self._batches = self._killed = 0

    def cycle(self) -> None:
        """Run a full cycle, and show its lines about single workspaces and its totals."""
        with Invocation(self._event, self._environment) as invocation:
            self._show(invocation)
            report = invocation.wait()
        self._cycles += 1
        self._mode = report["mode"]
        say(
            f"  {_clock()}      cycle finished      {report['running']} of {report['candidates']} running, "
            f"{report['dead']} dead, {report['flipped']} flipped, {report['restarts']['accepted']} restarts accepted, "
            f"{report['duration_ms']} ms"
        )

    def events(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Invoke the handler for state changes with a batch from the queue, in the mode of the cycles."""
        environment = {**self._environment, "MODE": self._mode}
        self._batches += 1
        with Invocation(batch, environment, handler="handler.events", remaining_s=_EVENTS_TIMEOUT_S) as invocation:
            self._show(invocation)
            try:
                return invocation.wait()
            except InvocationError as error:
                say(styled(f"  {_clock()}      The batch failed, and comes again: {error.last_line}", "red"))
                raise

    def kill_one(self) -> None:
        """Stop or terminate a random workspace's instance, if one is running."""
        snapshot = Snapshot.of(self._world)
        alive = [row for row in snapshot.rows if row["status"] == "online" and snapshot.states[row["id"]] == "running"]
        if not alive:
            return
        row = random.choice(alive)  # noqa: S311 - any will do
        instance_id = row["instance_id"]
        self._died_at[instance_id] = time.monotonic()
        kill = random.choice([self._world.ec2.stop_instances, self._world.ec2.terminate])  # noqa: S311
        kill([instance_id])
        self._killed += 1
        message = f"instance dies       {short(row['id'])}  {instance_id}  {self._world.ec2.state_of(instance_id)}"
        say(styled(f"  {_clock()}      {message}", "yellow"))

    def summary(self) -> str:
        """Say in a sentence what has happened."""
        flips = len(self._latencies_s)
        within = f", within {statistics.median(self._latencies_s):.1f} s (median)" if flips else ""
        return (
            f"{self._killed} instances killed, {flips} of their workspaces flipped{within}, "
            f"{len(self._world.platform.restarts)} restarted; {self._batches} batches of events, {self._cycles} cycles."
        )

    def _show(self, invocation: Invocation) -> None:
        for line in invocation:
            if isinstance(line, str):
                log_line(line)
            elif "workspace_id" in line:
                log_line(line, self._latency(line))

    def _latency(self, line: Mapping[str, Any]) -> str:
        """Return how long after its instance's death a workspace was flipped, if the line says that it was."""
        died_at = self._died_at.get(str(line.get("instance_id")))
        if line.get("message") != "workspace flipped" or died_at is None:
            return ""
        self._latencies_s.append(time.monotonic() - died_at)
        return styled(f"  {self._latencies_s[-1]:.1f} s after its death", "green")


def _clock() -> str:
    return time.strftime("%H:%M:%S", time.gmtime())
