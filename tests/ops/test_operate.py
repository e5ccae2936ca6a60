"""`make mode`, `make verify` and `make undeploy` on a deployed stack in moto."""

from pathlib import Path

from tests.ops.terminal import WITH_A_REGION, play
from tests.ops.test_deploy import PARAMETERS, STACK

DEPLOY = ["deploy", *PARAMETERS]


def test_the_mode_changes_in_the_stack_and_in_the_file(tmp_path: Path) -> None:
    played = play(tmp_path, [DEPLOY, ["mode", "apply"]])
    assert played["statuses"] == [0, 0], played.screen
    assert played["stacks"][STACK]["Mode"] == "apply"
    assert 'Mode = "apply"' in played.config()
    assert played["happened"] == ["build", "package", "deploy DISABLED -"], "no build, no upload"


def test_apply_needs_a_checklist_that_passes(tmp_path: Path) -> None:
    runs = [DEPLOY, ["mode", "apply"], ["fix"], ["mode", "apply"]]
    played = play(tmp_path, runs, report={"unknown": 9})
    assert played["statuses"] == [0, 1, 0], played.screen
    assert "the checklist did not pass: the mode stays dry-run" in played.screen


def test_somebody_at_a_terminal_may_apply_all_the_same(tmp_path: Path) -> None:
    answers = [("Go on", "y"), ("all the same", "n"), ("all the same", "y")]
    runs = [DEPLOY, ["deploy"], ["mode", "apply"], ["mode", "apply"]]
    (tmp_path / "samconfig.toml").write_text(WITH_A_REGION)
    played = play(tmp_path, runs, [("Go on", "y"), *answers], report={"unknown": 9})
    assert played["statuses"] == [0, 0, 1, 0], played.screen
    assert played["stacks"][STACK]["Mode"] == "apply"


def test_dry_run_needs_nothing_and_the_file_is_never_the_bolder_one(tmp_path: Path) -> None:
    runs = [DEPLOY, ["mode", "apply"], ["mode", "dry-run"], ["mode", "dry-run"]]
    played = play(tmp_path, runs)
    assert played["statuses"] == [0, 0, 0, 0], played.screen
    assert played["stacks"][STACK]["Mode"] == "dry-run"
    assert 'Mode = "dry-run"' in played.config()
    assert played["invoked"].count({"mode": "dry-run"}) == 2, "none for dry-run"


def test_a_command_without_a_stack_says_so(tmp_path: Path) -> None:
    played = play(tmp_path, [["mode", "apply"], ["verify"], ["undeploy", "--yes"]])
    assert played["statuses"] == [1, 1, 0], played.screen
    assert played.screen.count(f"there is no stack {STACK} in eu-central-1: run `make deploy` first") == 2


def test_undeploy_removes_stack_and_secrets_and_names_what_stays(tmp_path: Path) -> None:
    played = play(tmp_path, [DEPLOY, ["undeploy"], ["undeploy", "--yes"], DEPLOY, ["undeploy", "--yes"]])
    assert played["statuses"] == [0, 1, 0, 0, 0], played.screen
    assert played["stacks"] == {}
    assert f"{STACK}/database" not in played["secrets"]
    assert "parameters" not in played.config()
    for named in ("the log group ", "DROP SCHEMA reconciler CASCADE", "aws-sam-cli-managed-default"):
        assert named in played.screen


def test_undeploy_asks_for_the_stack_s_name(tmp_path: Path) -> None:
    answers = [("Go on", "y"), ("Type the stack", "yes"), ("Please type", ""), ("Type the stack", STACK)]
    (tmp_path / "samconfig.toml").write_text(WITH_A_REGION)
    played = play(tmp_path, [DEPLOY, ["undeploy"], ["undeploy"]], answers)
    assert played["statuses"] == [0, 1, 0], played.screen
    assert played["stacks"] == {}


def test_verify_fails_point_by_point(tmp_path: Path) -> None:
    """No cycle ever ran in moto."""
    alarms = {"Fine": "OK", "Loud": "ALARM", "NeverSeen": "INSUFFICIENT_DATA", "Young": "INSUFFICIENT_DATA"}
    report = {"flips": [{"instance_id": "i-0123456789abcdef0"}]}
    played = play(tmp_path, [DEPLOY, ["verify"]], report=report, alarms=alarms)
    assert played["statuses"] == [0, 1], played.screen
    for said in (
        "pass  the stack's last change succeeded",
        "pass  saved query What went wrong",
        "pass  alarm Fine: OK",
        "FAIL  alarm Loud: ALARM",
        "FAIL  alarm NeverSeen: INSUFFICIENT_DATA, no metric NeverSeen yet",
        "pass  alarm Young: INSUFFICIENT_DATA",
        "pass  FailedQueue is empty",
        "FAIL  alarms reach somebody: neither AlarmEmail nor AlarmTopicArn is set",
        "FAIL  the schedule runs: 0 invocations and 0 errors in 15 minutes",
        "pass  state changes: Lambda takes them from the queue",
        "pass  state changes: the rule StateChangesRule: ENABLED",
        "pass  state changes: no batch fails: 0 invocations and 0 errors in 15 minutes",
        "pass  a dry run succeeds",
        "FAIL  dry run: EC2, asked again,",
        "i-0123456789abcdef0 is not found",
    ):
        assert said in played.screen, said


def test_a_second_environment_beside_the_first_shares_nothing_with_it(tmp_path: Path) -> None:
    staging = ["--env", "staging"]
    runs = [DEPLOY, [*DEPLOY, *staging], ["mode", "apply", *staging], ["undeploy", "--yes", *staging], ["deploy"]]
    played = play(tmp_path, runs)
    assert played["statuses"] == [0] * 5, played.screen
    assert set(played["stacks"]) == {STACK}
    assert played["stacks"][STACK].get("Mode", "dry-run") == "dry-run"
    assert f"{STACK}/database" in played["secrets"]
    assert f"{STACK}-staging/database" not in played["secrets"]
    assert "There is nothing to do." in played.screen
