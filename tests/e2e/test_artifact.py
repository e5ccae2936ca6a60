"""What is deployed, run as Lambda runs it: the built artifact under AWS's own runtime client."""

import json
from pathlib import Path
from typing import Any

import pytest

from handler.telemetry import LOG_KEYS, METRIC_NAMES
from sandbox.control_plane import ControlPlane
from sandbox.postgres import RECONCILER_ROLE
from tests.e2e.conftest import INSTALLER, STATE_CHANGES, Start, World
from tests.support import accounts
from tests.support.runtime_api import InitError
from tests.support.tools import ROOT

EVENTS = {path.name: json.loads(path.read_text()) for path in (ROOT / "events").glob("*.json")}
SAMPLE = "00000000-0000-4000-8000-000000000001"  # the workspace that events/one-workspace.json names

# What docs/reference.md says each event answers, in a fleet of one running, two terminated (one of them the sample).
ANSWERS: dict[str, dict[str, Any]] = {
    "scheduled.json": {"mode": "apply", "candidates": 3, "running": 1, "dead": 2, "flipped": 2},
    "scheduled-rule.json": {"mode": "apply", "candidates": 3, "running": 1, "dead": 2, "flipped": 2},
    "apply.json": {"mode": "apply", "candidates": 3, "running": 1, "dead": 2, "flipped": 2},
    "shard.json": {"mode": "apply", "candidates": 3, "running": 1, "dead": 2, "flipped": 2},
    "override-breaker.json": {"mode": "apply", "candidates": 3, "running": 1, "dead": 2, "flipped": 2},
    "dry-run.json": {"mode": "dry-run", "candidates": 3, "running": 1, "dead": 2, "flipped": 0},
    "dry-run-override.json": {"mode": "dry-run", "candidates": 3, "running": 1, "dead": 2, "flipped": 0},
    "one-workspace.json": {"mode": "dry-run", "candidates": 1, "running": 0, "dead": 1, "flipped": 0},
    "adopt.json": {"mode": "apply", "candidates": 1, "running": 0, "dead": 1, "flipped": 1},
}
# … and what it says of those that are no cycle, one after the other.
HOLDS: dict[str, dict[str, Any]] = {
    "hold.json": {"mode": "apply", "outcome": "held", "on_hold": 1},
    "release.json": {"mode": "apply", "outcome": "released", "on_hold": 0},
}
HOLDS_ON_EVERYTHING: dict[str, dict[str, Any]] = {
    "hold-all.json": {"mode": "apply", "outcome": "held", "on_hold": 3},
    "release-all.json": {"mode": "apply", "outcome": "released", "on_hold": 0},
}
# … and those of EC2's, about instances that these stand for.
STATE_CHANGE_EVENTS = ("ec2-state-change.json", "sqs-state-changes.json")
SAMPLE_INSTANCES = ("i-0123456789abcdef0", "i-0123456789abcdef1")
POWERTOOLS_KEYS = {
    "level",
    "location",
    "message",
    "timestamp",
    "service",
    "xray_trace_id",
    "exception",
    "exception_name",
}


@pytest.fixture
def alive_and_gone(world: World) -> tuple[str, list[str]]:
    """Return the workspace whose instance runs, and the two whose instances are terminated."""
    running, *terminated = world.ec2.launch(3)
    world.ec2.terminate(terminated)
    alive = world.fleet.add(running, id=SAMPLE[:-1] + "2")
    return alive, [world.fleet.add(terminated[0], id=SAMPLE), world.fleet.add(terminated[1], id=SAMPLE[:-1] + "3")]


@pytest.mark.parametrize("name", ANSWERS)
def test_each_event_is_answered_as_the_docs_say(
    name: str, world: World, alive_and_gone: tuple[str, list[str]], start: Start
) -> None:
    alive, gone = alive_and_gone
    outcome = start(world.settings()).invoke(EVENTS[name])
    assert not outcome.failed, outcome.value
    expected = ANSWERS[name]
    assert {key: outcome.value[key] for key in expected} == expected
    assert outcome.value["outcome"] == "completed"
    flips = {flip["workspace_id"] for flip in outcome.value["flips"]}
    assert flips == ({SAMPLE} if expected["candidates"] == 1 else set(gone))
    world.platform.settle()
    assert world.fleet.statuses()[alive] == "online"
    asked = {call.workspace_id for call in world.platform.calls}
    assert asked == (flips if expected["mode"] == "apply" else set())


def test_there_is_an_expectation_for_every_event() -> None:
    others = {*HOLDS, *HOLDS_ON_EVERYTHING, *STATE_CHANGE_EVENTS, "install.json", "explain.json"}
    assert EVENTS.keys() == ANSWERS.keys() | others


@pytest.mark.usefixtures("alive_and_gone")
def test_a_workspace_is_explained_as_the_docs_say(world: World, start: Start) -> None:
    answer = start(world.settings()).invoke(EVENTS["explain.json"]).value
    assert answer["workspace_id"] == SAMPLE
    assert answer["would"] == {"action": "flip", "reason": "its instance is terminated, confirmed by a second probe"}


def about(name: str, world: World, workspace_ids: list[str]) -> Any:
    """Return an event of EC2's, about these workspaces' instances."""
    text = json.dumps(EVENTS[name])
    for sample, workspace_id in zip(SAMPLE_INSTANCES, workspace_ids, strict=False):
        text = text.replace(sample, world.fleet.row(workspace_id)["instance_id"])
    return json.loads(text)


def test_a_state_change_event_is_answered_as_the_docs_say(
    world: World, alive_and_gone: tuple[str, list[str]], start: Start
) -> None:
    _, gone = alive_and_gone
    function = start(world.settings())
    nobody_s = function.invoke(EVENTS["ec2-state-change.json"]).value
    assert (nobody_s["mode"], nobody_s["candidates"]) == ("apply", 0)
    assert not [call for call in world.ec2.calls if call.action.startswith("Describe")]
    answer = function.invoke(about("ec2-state-change.json", world, gone)).value
    assert [answer[key] for key in ("mode", "candidates", "dead", "flipped")] == ["apply", 1, 1, 1]
    assert [flip["workspace_id"] for flip in answer["flips"]] == gone[:1]
    assert world.platform.calls == [], "the next full cycle asks"


def test_a_batch_of_state_changes_is_answered_as_the_docs_say(
    world: World, alive_and_gone: tuple[str, list[str]], start: Start
) -> None:
    alive, gone = alive_and_gone
    function = start(world.state_change_settings(), STATE_CHANGES)
    assert function.invoke(EVENTS["sqs-state-changes.json"]).value == {"batchItemFailures": []}
    outcome = function.invoke(about("sqs-state-changes.json", world, gone))
    assert (outcome.failed, outcome.value) == (False, {"batchItemFailures": []})
    assert world.fleet.statuses() == {alive: "online"} | dict.fromkeys(gone, "offline")
    (metrics,) = (line for line in function.log_lines() if line.get("EventFlips") in (2, [2]))
    assert metrics["service"] == "blue"
    assert world.platform.calls == []


def test_an_instance_in_another_account_is_found_dead_with_an_assumed_role(world: World, start: Start) -> None:
    """The artifact has all that botocore needs to call STS."""
    with accounts.elsewhere(world.ec2) as clients:
        theirs = accounts.launched(clients[f"{accounts.WEST}/{accounts.ACCOUNT}"], 2)
        clients[f"{accounts.WEST}/{accounts.ACCOUNT}"].terminate_instances(InstanceIds=theirs[:1])
        gone, alive = (world.fleet.add(one) for one in theirs)
        near, west = (
            world.fleet.add(world.ec2.launch()[0]),
            world.fleet.add(accounts.launched(clients[accounts.WEST], 1)[0]),
        )
        outcome = start(world.settings(EC2_TARGETS=accounts.TARGETS)).invoke(EVENTS["apply.json"])
        world.platform.settle()
    assert not outcome.failed, outcome.value
    assert (outcome.value["running"], outcome.value["targets_failed"], outcome.value["targets_empty"]) == (3, [], [])
    assert [flip["workspace_id"] for flip in outcome.value["flips"]] == [gone]
    assert [world.fleet.statuses()[one] for one in (near, west, alive)] == ["online"] * 3


def test_the_function_for_state_changes_refuses_what_is_no_batch(world: World, start: Start) -> None:
    function = start(world.state_change_settings(), STATE_CHANGES)
    for name in ("scheduled.json", "ec2-state-change.json", "install.json"):
        outcome = function.invoke(EVENTS[name])
        assert (outcome.failed, outcome.value["errorType"]) == (True, "RequestError")


@pytest.mark.usefixtures("alive_and_gone")
def test_a_workspace_is_put_on_hold_and_released_as_the_docs_say(world: World, start: Start) -> None:
    function = start(world.settings())
    flipped = []
    for name, expected in HOLDS.items():
        answer = function.invoke(EVENTS[name]).value
        assert {key: answer[key] for key in expected} == expected
        assert [one["workspace_id"] for one in answer["holds"]] == [SAMPLE] * expected["on_hold"]
        flipped.append(function.invoke(EVENTS["apply.json"]).value["flipped"])
    assert flipped == [1, 1]


@pytest.mark.usefixtures("alive_and_gone")
def test_everything_is_put_on_hold_and_released_as_the_docs_say(world: World, start: Start) -> None:
    function = start(world.settings())
    flipped = []
    for name, expected in HOLDS_ON_EVERYTHING.items():
        answer = function.invoke(EVENTS[name]).value
        assert {key: answer[key] for key in expected} == expected
        assert [one["workspace_id"] for one in answer["holds"]] == [None] * (expected["outcome"] == "held")
        flipped.append(function.invoke(EVENTS["apply.json"]).value["flipped"])
    assert flipped == [0, 2]


def test_the_stack_s_dry_run_overrules_every_event(
    world: World, alive_and_gone: tuple[str, list[str]], start: Start
) -> None:
    _, gone = alive_and_gone
    function = start(world.settings(MODE="dry-run"))
    for name in ANSWERS:
        outcome = function.invoke(EVENTS[name])
        assert (outcome.value["mode"], outcome.value["flipped"]) == ("dry-run", 0), name
    for name in HOLDS | HOLDS_ON_EVERYTHING:
        answer = function.invoke(EVENTS[name]).value
        assert (answer["mode"], answer["outcome"], answer["on_hold"]) == ("dry-run", "unchanged", 0)
    assert {world.fleet.statuses()[one] for one in gone} == {"online"}
    assert world.platform.calls == []


@pytest.mark.usefixtures("alive_and_gone")
def test_a_warm_invocation_keeps_process_secrets_and_connection(world: World, start: Start) -> None:
    function = start(world.settings())
    first = function.invoke(EVENTS["scheduled.json"])
    process_id = function.process_id
    world.platform.settle()
    fetched = [call.action for call in world.ec2.calls if call.service == "secretsmanager"]
    assert fetched.count("GetSecretValue") == 2, "the database's and the platform's"
    world.ec2.calls.clear()
    world.ec2.terminate([instance.new_instance_id for instance in world.platform.restarts[:1]])
    for workspace_id in world.fleet.statuses():
        world.fleet.heartbeat(workspace_id, age_s=300)

    second = function.invoke(EVENTS["scheduled.json"])
    assert (first.value["flipped"], second.value["flipped"]) == (2, 1)
    assert function.process_id == process_id
    assert "GetSecretValue" not in [call.action for call in world.ec2.calls]
    cold, warm = (one["duration_ms"] for one in function.log_lines() if one.get("message") == "cycle finished")
    assert warm < cold


def test_a_warm_process_goes_on_after_the_password_was_rotated(world: World, start: Start) -> None:
    function = start(world.settings())
    assert not function.invoke(EVENTS["scheduled.json"]).failed
    world.postgres.change_password(RECONCILER_ROLE, "rotated")
    world.secret_for(RECONCILER_ROLE)
    world.database.terminate_sessions()
    assert not function.invoke(EVENTS["scheduled.json"]).failed


@pytest.mark.usefixtures("alive_and_gone")
def test_the_log_is_json_with_known_keys_and_one_line_of_metrics(world: World, start: Start) -> None:
    function = start(world.settings())
    outcome = function.invoke(EVENTS["scheduled.json"])
    lines = function.log_lines()
    (metrics,) = (line for line in lines if "_aws" in line)
    (directive,) = metrics["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "InstanceStateReconciler"
    assert directive["Dimensions"] == [["service"]]
    assert metrics["service"] == "blue"
    assert {metric["Name"] for metric in directive["Metrics"]} == set(METRIC_NAMES)

    # At level INFO, which Lambda sets for all loggers, the SDK tells once what it found in the environment.
    assert {line["logger"] for line in lines if "logger" in line} <= {"botocore.credentials", "botocore.configprovider"}
    told = [line for line in lines if "_aws" not in line and "logger" not in line]
    assert {line["message"] for line in told} >= {"workspace flipped", "restart accepted", "cycle finished"}
    for line in told:
        assert line.keys() <= POWERTOOLS_KEYS | set(LOG_KEYS)
        assert (line["service"], line["mode"], line["function_request_id"]) == ("blue", "apply", outcome.request_id)


@pytest.mark.usefixtures("alive_and_gone")
def test_the_control_plane_is_asked_with_the_secret_that_the_arn_names(world: World, start: Start) -> None:
    with ControlPlane(world.ec2.state_of) as control_plane:
        tokens = {"shared_secret": control_plane.shared_secret, "admin_token": control_plane.admin_token}
        function = start(
            world.settings(
                PROBE="control_plane",
                CP_BASE_URL=control_plane.url,
                CP_SECRET_ARN=world.ec2.put_secret("cp", tokens),
            )
        )
        outcome = function.invoke(EVENTS["scheduled.json"])
    assert (outcome.value["probe"], outcome.value["dead"], outcome.value["flipped"]) == ("control_plane", 2, 2)
    assert not [call for call in world.ec2.calls if call.action.startswith("Describe")]


def test_the_installer_prepares_a_database_for_the_reconciler(world: World, start: Start) -> None:
    database = world.postgres.create_bare_database()
    world.postgres.psql(database.owner_url, ROOT / "sandbox" / "platform.sql", status_type="enum")
    reconciler = start(world.settings(DATABASE_NAME=database.name))
    before = reconciler.invoke(EVENTS["dry-run.json"])
    assert before.value["errorType"] == "SchemaMissingError"

    installer = start(world.installer_settings(DATABASE_NAME=database.name), INSTALLER)
    first, second = installer.invoke(EVENTS["install.json"]), installer.invoke(EVENTS["install.json"])
    assert first.value["applied"] == ["infra/schema.sql", "infra/grants.sql"]
    assert first.value["role"] == RECONCILER_ROLE
    assert first.value["created"]
    assert (second.value["created"], second.value["granted"]) == ([], [])

    after = reconciler.invoke(EVENTS["dry-run.json"])
    assert (after.failed, after.value["outcome"]) == (False, "completed")
    database.drop()


def test_the_installer_refuses_the_reconciler_s_events_and_the_reconciler_the_installer_s(
    world: World, start: Start
) -> None:
    for handler, name in ((INSTALLER, "scheduled.json"), ("handler.app.lambda_handler", "install.json")):
        outcome = start(world.installer_settings(), handler).invoke(EVENTS[name])
        assert (outcome.failed, outcome.value["errorType"]) == (True, "RequestError")


def test_a_bad_setting_fails_the_invocation_by_name_and_the_process_lives_on(world: World, start: Start) -> None:
    function = start(world.settings(PROBE="crystal-ball"))
    world.ec2.calls.clear()
    for _ in range(2):
        outcome = function.invoke(EVENTS["scheduled.json"])
        assert (outcome.failed, outcome.value["errorType"]) == (True, "SettingsError")
        assert outcome.value["errorMessage"].startswith("PROBE: found 'crystal-ball'")
    assert world.ec2.calls == [], "refused before any connection is opened"


def test_a_secret_that_is_not_there_fails_the_invocation_by_the_variable_s_name(world: World, start: Start) -> None:
    missing = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:gone-AbCdEf"
    outcome = start(world.settings(DATABASE_SECRET_ARN=missing)).invoke(EVENTS["scheduled.json"])
    assert (outcome.failed, outcome.value["errorType"]) == (True, "SecretError")
    assert outcome.value["errorMessage"].startswith("DATABASE_SECRET_ARN: ")


def test_an_artifact_with_a_part_missing_is_an_error_of_its_init(
    world: World, start: Start, artifact: Path, tmp_path: Path
) -> None:
    incomplete = tmp_path / "incomplete"
    incomplete.mkdir()
    for part in artifact.iterdir():
        if part.name != "pg8000":
            (incomplete / part.name).symlink_to(part)
    function = start(world.settings(), artifact=incomplete)
    with pytest.raises(InitError, match="No module named 'pg8000'"):
        function.invoke(EVENTS["scheduled.json"])


def test_every_module_comes_from_the_artifact(world: World, start: Start, artifact: Path, tmp_path: Path) -> None:
    """Without the runtime client's own directory, nothing outside the artifact and Python itself is on the path."""
    witness = tmp_path / "witness"
    witness.mkdir()
    for part in artifact.iterdir():
        (witness / part.name).symlink_to(part)
    (witness / "witness.py").write_text(
        "import sys\n"
        "import handler.app, handler.events, handler.install, handler.process\n"
        "import handler.probes.control_plane.probe, handler.restarts.platform\n"
        "def lambda_handler(event, context):\n"
        "    aws = handler.process.aws()\n"
        "    for make_client in (aws.ec2, aws.rds, aws.secrets_manager):\n"
        "        make_client()\n"
        "    files = [getattr(module, '__file__', None) for module in list(sys.modules.values())]\n"
        "    return [file for file in files if file and 'site-packages' in file]\n"
    )
    outcome = start(world.settings(), "witness.lambda_handler", artifact=witness).invoke({})
    assert not outcome.failed, outcome.value
    of_the_client = ("awslambdaric", "runtime_client", "simplejson", "snapshot_restore_py")
    assert [file for file in outcome.value if not any(part in file for part in of_the_client)] == []
