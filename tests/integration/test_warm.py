"""A warm process: nothing piles up, and it notices every change between invocations."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handler import process
from handler.errors import SettingsError
from sandbox.control_plane import state_answer
from sandbox.ec2 import MotoEc2
from sandbox.http_server import Answer, Hang, Raw, Reply, Reset, drip_body
from sandbox.platform import RestartCall
from sandbox.postgres import PostgresServer
from tests.support.events import APPLY, DRY_RUN
from tests.support.stage import Stage, opened
from tests.support.warm import WarmProcess

INVOCATIONS = 80
MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}


@pytest.fixture
def stage(postgres: PostgresServer) -> Iterator[Stage]:
    """A stage of its own, whose database nobody else has a session in."""
    with opened(postgres) as stage:
        yield stage


def in_turn(replies: list[Reply | None]) -> Callable[[Any], Reply | None]:
    """Return a function that gives these replies in turn (None: the usual one) to every caller."""
    turn = itertools.cycle(replies)
    return lambda _: next(turn)


def now_and_then(*faults: Reply) -> list[Reply | None]:
    """Return the faults, and after each of them nine answers as usual."""
    return [reply for fault in faults for reply in (fault, *[None] * 9)]


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_after_many_invocations_a_process_holds_no_more_than_after_two(stage: Stage, probe: str) -> None:
    stage.add_all(3, "running")
    stage.add("terminated")
    timeouts_and_garbage: list[Reply] = [Hang(), drip_body(b"{}" * 50, 0.01), Raw(b"garbage\r\n\r\n"), Answer(403)]
    script: Any = stage.control_plane.script if probe == "control_plane" else stage.ec2.script
    script.reply(in_turn([*[None] * 9, *now_and_then(*timeouts_and_garbage * 3, Reset(), Answer(503))]))

    def record_another_dead_instance(call: RestartCall) -> None:
        stage.fleet.update(call.workspace_id, status="online", instance_id=stage.instances(1, "terminated")[0])

    stage.platform.instead.clear()
    stage.platform.instead.before(record_another_dead_instance)
    stage.platform.instead.reply(in_turn([Answer(503), Reset(), Answer(429), Answer(body=b"{}")]))
    settings = {"PROBE_TIMEOUT_SECONDS": "0.05", "CYCLE_DEADLINE_SECONDS": "3", **MOSTLY_DEAD}
    settings |= {"CRASH_LOOP_BACKOFF_SECONDS": "0", "RESTART_RETRY_SECONDS": "0"}
    with WarmProcess(stage.invoke.environment | stage.settings(probe) | settings) as process:
        early = process.invoke(APPLY, 2)
        early_sessions = stage.sessions()
        late = process.invoke(APPLY, INVOCATIONS - 2)
        late_sessions = stage.sessions()
    assert late.outcomes == {"completed": INVOCATIONS - 2}
    assert late.threads <= early.threads
    assert late.descriptors <= early.descriptors
    assert late_sessions == early_sessions == 1
    assert len(stage.platform.calls) > INVOCATIONS / 2, "too few of the cycles had anything to do"


# --- what changes meanwhile ---


def test_a_changed_environment_is_taken_up_by_the_next_invocation(stage: Stage) -> None:
    stage.add_all(3, "running")
    stage.add("terminated")
    assert stage.cycle(DRY_RUN).report["candidates"] == 4
    assert stage.cycle(DRY_RUN, CANDIDATE_LIMIT="2").report["candidates"] == 2
    by_control_plane = stage.cycle(DRY_RUN, **stage.settings("control_plane")).report
    assert (by_control_plane["probe"], by_control_plane["dead"]) == ("control_plane", 1)
    assert len(stage.control_plane.requests) >= 4
    with pytest.raises(SettingsError, match="CANDIDATE_LIMIT"):
        stage.invoke(CANDIDATE_LIMIT="none")
    assert stage.cycle(MODE="dry-run").report["mode"] == "dry-run"
    assert stage.cycle().report["flipped"] == 1


def test_what_an_earlier_environment_needed_is_closed(stage: Stage) -> None:
    stage.add("running")
    for limit in range(1, 6):
        stage.cycle(CANDIDATE_LIMIT=str(limit))
    assert stage.sessions() == 1


# --- secrets ---


def fetched(moto: MotoEc2) -> int:
    """Return how often a secret was fetched so far."""
    return sum(call.action == "GetSecretValue" for call in moto.calls)


def by_secret(cloud: Stage, moto: MotoEc2, shared_secret: str) -> dict[str, str | None]:
    """Put the control plane's credentials into a secret; return the settings that lead to it."""
    cloud.control_plane.script.clear()
    cloud.control_plane.script.reply(state_answer("running"))
    arn = moto.put_secret("cp", {"shared_secret": shared_secret, "admin_token": cloud.control_plane.admin_token})
    own = {"CP_SECRET_ARN": arn, "CP_SHARED_SECRET": None, "CP_ADMIN_TOKEN": None}
    return {**cloud.settings("control_plane"), **own}


def test_a_secret_is_fetched_once_in_five_minutes(cloud: Stage, moto: MotoEc2, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.add("running")
    settings = by_secret(cloud, moto, cloud.control_plane.shared_secret)
    for _ in range(3):
        assert cloud.cycle(**settings).report["running"] == 1
    assert fetched(moto) == 1
    assert process._process is not None  # noqa: SLF001 - what stays from one invocation to the next
    secrets = process._process._secrets  # noqa: SLF001
    now = time.monotonic()
    for minutes, fetches in ((4.9, 1), (5.1, 2), (9.9, 2), (10.2, 3)):
        monkeypatch.setattr(secrets, "_clock", lambda later=now + 60 * minutes: later)
        assert cloud.cycle(**settings).report["running"] == 1
        assert (minutes, fetched(moto)) == (minutes, fetches)


def test_a_rotated_control_plane_secret_costs_one_fetch_and_no_answer(cloud: Stage, moto: MotoEc2) -> None:
    cloud.add_all(20, "running")
    settings = by_secret(cloud, moto, cloud.control_plane.shared_secret)
    cloud.cycle(**settings)
    cloud.control_plane.shared_secret = "rotated"
    by_secret(cloud, moto, "rotated")
    report = cloud.cycle(**settings).report
    assert (report["running"], report["unknown"], fetched(moto)) == (20, 0, 2)
    assert cloud.cycle(**settings).report["running"] == 20
    assert fetched(moto) == 2


def test_a_rotated_platform_secret_costs_one_fetch_and_no_restart(cloud: Stage, moto: MotoEc2) -> None:
    cloud.add_all(3, "running")
    arn = moto.put_secret("platform", {"token": cloud.platform.token})
    settings = {"PLATFORM_SECRET_ARN": arn, "PLATFORM_TOKEN": None}
    cloud.add("terminated")
    assert cloud.cycle(**settings).report["restarts"]["accepted"] == 1
    cloud.platform_is_at_work()
    cloud.platform.token = "rotated"
    moto.put_secret("platform", {"token": "rotated"})
    dead = cloud.add_all(2, "terminated")
    cloud.cycle(**settings).assert_only_flipped(dict.fromkeys(dead, "terminated"))
    assert fetched(moto) == 2
