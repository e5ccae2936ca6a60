"""EC2, the control plane and the platform, each in a process of its own, so that no contestant is charged for them."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from typing import Any, TypeVar

from bench.conditions import Distance, Https, https
from sandbox.control_plane import ControlPlane
from sandbox.http_server import Answer, HttpStandIn, Reply, Request
from sandbox.limited_ec2 import DescribeCall, LimitedEc2
from sandbox.regions import Regions

StandIn = TypeVar("StandIn", bound=HttpStandIn)


class Ec2:
    """An account behind EC2's limits: 100 calls at once, then 20 a second."""

    def __init__(self, latency_s: float, certified: Https | None) -> None:
        self._certified = certified
        self._server = _started(LimitedEc2(latency_s=latency_s), certified)
        self._others: _OtherTools | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables that have a process call this API."""
        return self._server.environment | _trust(self._certified)

    def fill(self, ours: int, *, foreign: int, dead_every: int) -> None:
        """Add our instances among foreign ones, every nth of ours terminated (0: none)."""
        fill(self._server, ours, foreign=foreign, dead_every=dead_every)

    def kill(self, instance_ids: list[str]) -> None:
        """Have these instances terminated."""
        for one in instance_ids:
            self._server.set_state(one, "terminated")

    def begin(self, *, others_per_s: float = 0.0) -> None:
        """Start a new log with a full bucket, from which other tools take that many calls a second."""
        begin(self._server)
        self._others = _OtherTools(self._server, others_per_s) if others_per_s else None

    def figures(self) -> dict[str, Any]:
        """Return what was called since `begin`."""
        calls: list[DescribeCall] = list(self._server.calls)
        figures = {
            "calls": len(calls),
            "throttled": self._server.throttled,
            "by_action": dict(Counter(call.action for call in calls)),
            "span_s": calls[-1].at - calls[0].at if calls else 0.0,
        }
        if self._others is not None:
            figures |= self._others.stop()
        return figures


class Ec2Regions:
    """One account in several Regions, each behind limits of its own."""

    def __init__(self, latency_s: float, certified: Https | None) -> None:
        self._certified = certified
        self._latency_s = latency_s
        self._server = _started(Regions(), certified)
        self._regions: list[LimitedEc2] = []

    def environment(self) -> dict[str, str]:
        """Return the variables that have a process call these APIs."""
        return self._server.environment | _trust(self._certified)

    def fill(self, regions: list[str], ours: int, *, foreign: int, dead_every: int) -> None:
        """Add as many of our instances to each Region, spread among foreign ones, every nth of ours terminated."""
        for number, region in enumerate(regions):
            account = self._server.add(region, first=1 + number * (ours + foreign) // len(regions))
            account.latency_s = self._latency_s
            fill(account, ours // len(regions), foreign=foreign // len(regions), dead_every=dead_every)
            self._regions.append(account)

    def begin(self, *, others_per_s: float = 0.0) -> None:  # noqa: ARG002 - nobody else calls here
        """Start a new log with full buckets."""
        for account in self._regions:
            begin(account)

    def figures(self) -> dict[str, Any]:
        """Return what was called since `begin`."""
        calls = [len(account.calls) for account in self._regions]
        return {"calls": sum(calls), "throttled": sum(account.throttled for account in self._regions)}


def fill(account: LimitedEc2, ours: int, *, foreign: int, dead_every: int) -> None:
    """Add our instances among foreign ones, every nth of ours terminated (0: none)."""
    ids = account.add(ours + foreign)
    own = [ids[number * len(ids) // ours] for number in range(ours)]
    for one in own[dead_every - 1 :: dead_every] if dead_every else ():
        account.set_state(one, "terminated")


def begin(account: LimitedEc2) -> None:
    """Start a new log with a full bucket."""
    account.calls.clear()
    account.throttled = 0
    account.bucket._tokens = account.bucket.capacity  # noqa: SLF001 - as if nobody had called for a while


class _OtherTools:
    """The account's other tools, which take from the same bucket, whether there is enough for them or not."""

    def __init__(self, server: LimitedEc2, calls_per_s: float) -> None:
        self._server = server
        self._interval_s = 1 / calls_per_s
        self._served = self._refused = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def _call(self) -> None:
        while not self._stopping.wait(self._interval_s):
            if self._server.bucket.take():
                self._served += 1
            else:
                self._refused += 1

    def stop(self) -> dict[str, int]:
        self._stopping.set()
        self._thread.join()
        return {"others_served": self._served, "others_refused": self._refused}


class Cp:
    """A control plane for which every instance runs, unless it was killed."""

    def __init__(self, latency_s: float, certified: Https | None) -> None:
        self._certified = certified
        self._dead: set[str] = set()
        control_plane = ControlPlane(lambda one: "terminated" if one in self._dead else "running", latency_s=latency_s)
        self._server = _started(control_plane, certified)

    def environment(self) -> dict[str, str]:
        """Return the settings that have the reconciler ask this control plane."""
        return self._server.environment | _trust(self._certified)

    def kill(self, instance_ids: list[str]) -> None:
        """Have these instances terminated."""
        self._dead.update(instance_ids)

    def fail_after(self, answers: int) -> None:
        """Answer that many checks well, and every later one with 503, as slowly."""
        served = iter(range(answers))
        failure = Answer(503, delay_s=self._server.latency_s)
        self._server.script.reply(lambda _: None if next(served, None) is not None else failure)

    def figures(self) -> dict[str, Any]:
        """Return how much was asked for, how much of it at once, and when: seconds since the first check."""
        times = [request.at for request in self._server.requests]
        return {
            "calls": len(times),
            "connections": self._server.connections,
            "peak_in_flight": self._server.peak_in_flight,
            "at_s": [round(at - times[0], 3) for at in times],
        }


class Platform:
    """A platform that takes every restart, each in a while, and carries none out."""

    def __init__(self, latency_s: float, certified: Https | None) -> None:
        self._certified = certified
        self._server = _started(_TakesAll(latency_s), certified)

    def environment(self) -> dict[str, str]:
        """Return the settings that have the reconciler ask this platform, in the cycle that flips."""
        settings = {"PLATFORM_BASE_URL": self._server.url, "PLATFORM_TOKEN": "bench", "RESTART_GRACE_SECONDS": "0"}
        return settings | _trust(self._certified)

    def figures(self) -> dict[str, Any]:
        """Return how many restarts were asked for since the last look, and how many at once."""
        figures = {"restarts": self._server.taken, "peak_in_flight": self._server.peak_in_flight}
        self._server.taken = 0
        return figures


class _TakesAll(HttpStandIn):
    def __init__(self, latency_s: float) -> None:
        super().__init__()
        self._answer = Answer(delay_s=latency_s)
        self.taken = 0

    def handle(self, request: Request) -> Reply:  # noqa: ARG002 - whatever it is
        self.taken += 1
        return self._answer


def _started(stand_in: StandIn, certified: Https | None) -> StandIn:
    """Start a stand-in, with HTTPS or without."""
    stand_in.tls = None if certified is None else certified.context()
    return stand_in.start()


def _trust(certified: Https | None) -> dict[str, str]:
    return {} if certified is None else certified.environment()


class _Manager(BaseManager):
    """Starts a process and makes one of these in it; calls go there and their results come back."""


_OFFERED = {
    Ec2: ("environment", "fill", "kill", "begin", "figures"),
    Ec2Regions: ("environment", "fill", "begin", "figures"),
    Cp: ("environment", "fail_after", "kill", "figures"),
    Platform: ("environment", "figures"),
    Distance: ("to",),
}
for kind, methods in _OFFERED.items():
    _Manager.register(kind.__name__, kind, exposed=methods)


@contextmanager
def hosted(kind: type, latency_s: float, *, plain: bool = False) -> Iterator[Any]:
    """Make a stand-in in a process of its own, and yield what calls its methods there. Not `plain`: with HTTPS."""
    manager = _Manager(ctx=get_context("spawn"))
    manager.start(_end_with, (os.getpid(),))
    arguments = () if kind is Distance else (None if plain else https(),)
    try:
        yield getattr(manager, kind.__name__)(latency_s, *arguments)
    finally:
        manager.shutdown()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however it went."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
