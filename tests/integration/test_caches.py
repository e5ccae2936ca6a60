"""A cache in front of the control plane: what it still knows of another time, or of another instance, is no answer."""

import json
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import pytest
import urllib3

from sandbox.http_server import Answer, HttpStandIn, Reply, Request
from tests.support.stage import Stage

NO_BREAKER = {"BREAKER_MAX_DEAD_FRACTION": "1"}
KEPT_S = 600.0


class Cache(HttpStandIn):
    """A cache, old enough to be wrong. It keeps every answer for ten minutes; `key` tells which are the same to it.

    It says how old an answer is if it is `honest`, and asks again when it is told `no-cache` if it is `obedient`.
    """

    def __init__(
        self, behind: str, key: Callable[[Request], str], *, honest: bool = True, obedient: bool = True
    ) -> None:
        super().__init__()
        self.honest, self.obedient = honest, obedient
        self._behind, self._key = behind, key
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._ahead_s = 0.0
        self._pool = urllib3.PoolManager()

    def age(self, seconds: float) -> None:
        """Let time pass for what is kept."""
        self._ahead_s += seconds

    def handle(self, request: Request) -> Reply:
        now = time.monotonic() + self._ahead_s
        kept_at, body = self._kept.get(self._key(request), (now - 2 * KEPT_S, b""))
        revalidates = self.obedient and "no-cache" in request.headers.get("cache-control", "")
        if now - kept_at < KEPT_S and not revalidates:
            headers = {"Age": str(int(now - kept_at))} if self.honest else {}
            return Answer(body=body, headers=headers)
        passed_on = {name: value for name, value in request.headers.items() if name != "host"}
        answer = self._pool.request("GET", f"{self._behind}{by_address(request)}", headers=passed_on)
        self._kept[self._key(request)] = (now, answer.data)
        return Answer(answer.status, answer.data)


def by_address(request: Request) -> str:
    return f"{request.path}?{urlencode(request.query)}"


def by_path(request: Request) -> str:
    """As caches do that are told to leave the query out."""
    return request.path


@pytest.fixture
def behind(stage: Stage) -> Iterator[Callable[[Cache], dict[str, str]]]:
    """Return what starts a cache in front of the control plane, and the settings that lead to it."""
    caches: list[Cache] = []

    def started(cache: Cache) -> dict[str, str]:
        caches.append(cache.start())
        return stage.settings("control_plane") | NO_BREAKER | {"CP_BASE_URL": cache.url}

    yield started
    for cache in caches:
        cache.stop()


Behind = Callable[[Cache], dict[str, str]]


def revive(stage: Stage, workspace: str) -> None:
    """Start a workspace's instance again, as its owner might."""
    stage.ec2.set_state(stage.instance_of(workspace), "running")


def test_a_cache_is_told_to_ask_anew(stage: Stage, behind: Behind) -> None:
    cache = Cache(stage.control_plane.url, by_address)
    settings = behind(cache)
    workspace = stage.add("stopped")
    stage.cycle({"mode": "dry-run"}, **settings)
    revive(stage, workspace)
    cache.age(540)
    assert stage.cycle(**settings).report["running"] == 1


def test_what_a_cache_says_of_nine_minutes_ago_is_no_answer(stage: Stage, behind: Behind) -> None:
    cache = Cache(stage.control_plane.url, by_address, obedient=False)
    settings = behind(cache)
    workspace = stage.add("stopped")
    stage.cycle({"mode": "dry-run"}, **settings)
    revive(stage, workspace)
    cache.age(540)
    outcome = stage.cycle(**settings)
    outcome.assert_untouched(workspace)
    assert outcome.causes == {workspace: "cached"}


def test_an_answer_about_another_instance_is_none(stage: Stage, behind: Behind) -> None:
    """The workspace has a new machine since, and the answer says so itself."""
    workspace = stage.add("terminated")

    def also_names_it(request: object) -> Answer:
        instance_id = str(getattr(request, "instance_id", ""))
        return Answer(body=json.dumps({"state": stage.ec2.state_of(instance_id), "instance_id": instance_id}).encode())

    stage.control_plane.script.reply(also_names_it)
    settings = behind(Cache(stage.control_plane.url, by_path, honest=False, obedient=False))
    stage.cycle({"mode": "dry-run"}, **settings)
    stage.fleet.update(workspace, instance_id=stage.instances(1, "running")[0])
    outcome = stage.cycle(**settings)
    outcome.assert_untouched(workspace)
    assert outcome.causes == {workspace: "other_instance"}


@pytest.mark.parametrize("named", [True, False])
def test_an_answer_of_now_about_the_very_instance_counts(stage: Stage, named: bool) -> None:
    workspace = stage.add("terminated")
    body = {"state": "terminated"} | ({"instance_id": stage.instance_of(workspace)} if named else {})
    stage.control_plane.script.reply(Answer(body=json.dumps(body).encode(), headers={"Age": "0"}))
    outcome = stage.cycle(**stage.settings("control_plane"), **NO_BREAKER)
    outcome.assert_only_flipped({workspace: "terminated"})
