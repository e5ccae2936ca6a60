"""The stack's `LogLevel`, with Lambda's own level as tests/infra/test_template.py requires it."""

import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.control_plane import ControlPlane
from sandbox.postgres import RECONCILER_ROLE
from tests.e2e.conftest import Start, World
from tests.integration.test_leaks import ECHOES, Echo, leaks
from tests.support.events import SCHEDULED

# The stack's LogLevel, and Lambda's application log level.
LEVELS = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "INFO", "ERROR": "INFO"}
SEVERITY = ("DEBUG", "INFO", "WARNING", "ERROR")


def levels(stack_s: str) -> dict[str, str]:
    return {"POWERTOOLS_LOG_LEVEL": stack_s, "AWS_LAMBDA_LOG_LEVEL": LEVELS[stack_s]}


@pytest.fixture
def trouble(world: World) -> None:
    """A fleet that gives a cycle something to say at INFO, at WARNING and at ERROR."""
    instances = world.ec2.launch(4)
    world.ec2.terminate(instances)
    for instance in instances:
        world.fleet.add(instance)
    world.database.query("ALTER TABLE structure_events ADD COLUMN tenant TEXT NOT NULL")


@pytest.mark.usefixtures("trouble")
@pytest.mark.parametrize("level", LEVELS)
def test_lines_below_the_stack_s_level_are_left_out_and_metrics_never(level: str, world: World, start: Start) -> None:
    function = start(world.settings(**levels(level), BREAKER_MAX_DEAD_FRACTION="1"))
    function.invoke(SCHEDULED)
    function.invoke(SCHEDULED)
    lines = function.log_lines()
    assert sum("_aws" in line for line in lines) == 2
    own = [line for line in lines if line.get("service") == "blue" and "_aws" not in line]
    wanted = SEVERITY[SEVERITY.index(level) :]
    assert {line["level"] for line in own} <= set(wanted)
    assert ("re-read or flip failed" in {line["message"] for line in own}) is ("WARNING" in wanted)
    assert ("cycle finished" in {line["message"] for line in own}) is ("INFO" in wanted)


@pytest.mark.usefixtures("trouble")
def test_an_error_passes_at_level_error(world: World, start: Start) -> None:
    function = start(world.settings(**levels("ERROR")))
    function.invoke(SCHEDULED)
    own = [line for line in function.log_lines() if line.get("service") == "blue" and "_aws" not in line]
    assert [(line["level"], line["message"]) for line in own] == [("ERROR", "breaker open")]


def secrets_of(world: World, control_plane: ControlPlane) -> list[str]:
    return [
        world.postgres.password(RECONCILER_ROLE),
        world.platform.token,
        control_plane.shared_secret,
        control_plane.admin_token,
    ]


@pytest.fixture
def witness(artifact: Path, tmp_path: Path) -> Path:
    """The artifact, with a handler that logs at DEBUG itself, as a library and as the project's own code.

    Before the project's code is loaded, Lambda's runtime prints what libraries log.
    """
    directory = tmp_path / "witness"
    directory.mkdir()
    for part in artifact.iterdir():
        (directory / part.name).symlink_to(part)
    (directory / "witness.py").write_text(
        "import logging\n"
        "logging.getLogger('a library').debug('seen')\n"
        "import handler.app\n"
        "def lambda_handler(event, context):\n"
        "    logging.getLogger('a library').error('seen')\n"
        "    handler.app.logger.debug('seen')\n"
        "    return handler.app.lambda_handler(event, context)\n"
    )
    return directory


@pytest.mark.usefixtures("trouble")
@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
def test_no_secret_is_in_the_log_at_debug(probe: str, world: World, start: Start, witness: Path) -> None:
    """At DEBUG the AWS SDK would log requests and answers, Secrets Manager's included."""
    with ControlPlane(world.ec2.state_of) as control_plane:
        tokens = {"shared_secret": control_plane.shared_secret, "admin_token": control_plane.admin_token}
        settings: dict[str, Any] = {
            "PROBE": probe,
            "CP_BASE_URL": control_plane.url,
            "CP_SECRET_ARN": world.ec2.put_secret("cp", tokens),
            "BREAKER_MAX_DEAD_FRACTION": "1",
        }
        function = start(world.settings(**levels("DEBUG"), **settings), "witness.lambda_handler", artifact=witness)
        world.database.query("ALTER TABLE structure_events ALTER COLUMN tenant SET DEFAULT 'ours'")
        assert function.invoke(SCHEDULED).value["restarts"]["accepted"] == 4
        secrets = secrets_of(world, control_plane)
    seen = [line for line in function.log_lines() if line.get("message") == "seen"]
    assert [(line["level"], line.get("logger", "our own")) for line in seen] == [
        ("DEBUG", "a library"),
        ("DEBUG", "our own"),
    ]
    assert all(secrets)
    text = function.log()
    assert [one for one in secrets if one in text or json.dumps(one)[1:-1] in text] == []


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_no_token_that_a_gateway_sends_back_is_in_the_log(level: str, world: World, start: Start) -> None:
    for instance in world.ec2.launch(len(ECHOES)):
        world.fleet.add(instance)
    tokens = {"shared_secret": "canary-shared-secret", "admin_token": "canary-admin-token"}
    with Echo() as echo:
        settings = {
            "PROBE": "control_plane",
            "CP_BASE_URL": echo.url,
            "CP_SECRET_ARN": world.ec2.put_secret("cp", tokens),
        }
        function = start(world.settings(**levels(level), **settings))
        assert function.invoke(SCHEDULED).value["unknown"] == len(ECHOES)
    assert [line["level"] for line in function.log_lines() if line.get("message") == "instance unknown"]
    assert leaks(function.log()) == []
