"""`make deploy` on a terminal and without one, against an account in moto."""

import json
from pathlib import Path

import pytest

from tests.ops.terminal import CTRL_C, CTRL_D, play

STACK = "instance-state-reconciler"
TOKEN = "a-token-for-nobody"
# What a first deploy asks, with right answers.
ANSWERS = (
    ("AWS Region", ""),
    ("Which one", "1"),
    ("Name of the database", ""),
    ("Log in with IAM", "y"),
    ("Let the functions in", "y"),
    ("Address of its API", "https://platform.example"),
    ("Its token", TOKEN),
    ("Organization id", ""),
    ("Mail address", "ops@example.com"),
)
GO = ("Go on", "y")


def test_a_first_deploy_leads_from_questions_to_a_running_schedule(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"]], [*ANSWERS, GO])
    assert played["statuses"] == [0], played.screen
    parameters = played["stacks"][STACK]
    assert parameters["ScheduleState"] == "ENABLED"
    assert parameters["Mode"] == "dry-run"
    assert (parameters["DatabaseAuth"], parameters["DatabaseSecretArn"]) == ("iam", "")
    assert parameters["DatabaseName"] == "molecule"
    assert played["happened"] == ["build", "package", "deploy DISABLED -"]
    assert played["invoked"] == [{"install": True}, {"mode": "dry-run"}]
    assert json.loads(played["secrets"][f"{STACK}/platform"]) == {"token": TOKEN}
    assert len(played["rules"]) == 1, "one rule at the database's security group"
    assert (tmp_path / "infra/ca/global-bundle.pem").exists()
    assert "SHA-256 " in played.screen
    assert TOKEN not in played.screen + played.config()


def test_run_again_it_changes_nothing_and_asks_only_whether_to_go_on(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"], ["deploy"], ["deploy", "--plan"]], [*ANSWERS, GO, GO])
    assert played["statuses"] == [0, 0, 0], played.screen
    assert played["happened"] == ["build", "package", "deploy DISABLED -", "build", "package"]
    assert played["invoked"] == [{"install": True}, {"mode": "dry-run"}]
    assert "There is nothing to do." in played.screen


def test_an_upgrade_runs_the_installer_before_the_schedule_goes_on(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"], ["new version"], ["deploy"]], [*ANSWERS, GO, GO])
    assert played["statuses"] == [0, 0], played.screen
    assert played["happened"][-1] == "deploy DISABLED -"
    assert played.screen.count("Disable the schedule") == 1
    assert played["invoked"] == [{"install": True}, {"mode": "dry-run"}] * 2
    assert played["stacks"][STACK]["ScheduleState"] == "ENABLED"


def test_wrong_answers_are_asked_again_with_the_reason(tmp_path: Path) -> None:
    answers = [
        ("AWS Region", "Frankfurt"),
        ("That is not a Region", "eu-central-1"),
        ("Which one", "9"),
        ("a number from 1 to 3", "2"),
        ("Name of the database", ""),
        ("Log in with IAM", "maybe"),
        ("Please answer y or n", "n"),
        ("Let the functions in", "n"),
        ("Address of its API", "platform.example"),
        ("not an address like", "https://platform.example/"),
        ("Its token", "two words"),
        ("no HTTP header may hold", TOKEN),
        ("Organization id", "org-1"),
        ("Mail address", "ops"),
        ("not a mail address", ""),
        GO,
    ]
    played = play(tmp_path, [["deploy"]], answers, databases=["other", "platform"])
    assert played["statuses"] == [0], played.screen
    parameters = played["stacks"][STACK]
    assert parameters["PlatformBaseUrl"] == "https://platform.example"
    assert parameters["DatabaseAuth"] == "password"
    login = json.loads(played["secrets"][f"{STACK}/database"])
    assert login["username"] == "reconciler"
    assert len(login["password"]) > 30
    assert login["password"] not in played.screen + played.config()
    assert played["rules"] == []
    assert "only once sg-" in played.screen


@pytest.mark.parametrize("key", [CTRL_C, CTRL_D])
def test_whoever_stops_at_any_question_leaves_everything_as_it_was(tmp_path: Path, key: str) -> None:
    questions = [*ANSWERS, GO]
    stopped = [[*questions[:at], (questions[at][0], key)] for at in range(len(questions))]
    played = play(tmp_path, [["deploy"]] * len(questions), [answer for answers in stopped for answer in answers])
    assert played["statuses"] == [130] * len(questions), played.screen
    assert played.screen.count("the same command goes on from there") == len(questions)
    assert (played["stacks"], played["happened"], played.config()) == ({}, [], "")
    assert not [name for name in played["secrets"] if name.startswith(STACK)]


def test_a_no_to_the_plan_leaves_everything_as_it_was(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"]], [*ANSWERS, ("Go on", "n")])
    assert (played["statuses"], played["stacks"], played.config()) == ([1], {}, "")


def test_each_denied_call_is_named_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Each operation is denied once, so each run comes further than the one before."""
    denied = {  # with what has been asked by then
        "DescribeStacks": [*ANSWERS],
        "GetCallerIdentity": ANSWERS[:1],
        "DescribeDBSubnetGroups": ANSWERS[:1],
        "DescribeDBInstances": ANSWERS[:1],
        "DescribeSubnets": ANSWERS[:4],
        "CreateSecret": [*ANSWERS, GO],
        "Invoke": [GO],
    }
    order = ["GetCallerIdentity", "DescribeDBSubnetGroups", "DescribeDBInstances", "DescribeSubnets", "DescribeStacks"]
    order += ["CreateSecret"]
    answers = [answer for operation in order for answer in denied[operation]]
    answers += [*ANSWERS, GO, GO]  # denied at the installer, and then to the end
    played = play(tmp_path, [["deploy"]] * (len(denied) + 1), answers, denied=list(denied))
    assert played["statuses"] == [1] * len(denied) + [0], played.screen
    assert [operation for operation in denied if f"AWS denied {operation}" not in played.screen] == []
    assert played["stacks"][STACK]["ScheduleState"] == "ENABLED"
    assert json.loads(played["secrets"][f"{STACK}/platform"]) == {"token": TOKEN}


def test_each_step_of_sam_s_that_fails_is_taken_up_by_the_next_run(tmp_path: Path) -> None:
    steps = ["build", "package", "deploy"]
    played = play(tmp_path, [["deploy"]] * 4, [*ANSWERS, GO, GO, GO, GO], sam_fails=steps)
    assert played["statuses"] == [1, 1, 1, 0], played.screen
    assert played["stacks"][STACK]["ScheduleState"] == "ENABLED"


def test_an_installer_that_fails_leaves_the_schedule_disabled(tmp_path: Path) -> None:
    runs = [["deploy"], ["fix"], ["deploy"]]
    played = play(tmp_path, runs, [*ANSWERS, GO, GO], installer_fails="the role lacks CREATEROLE")
    assert played["statuses"] == [1, 0], played.screen
    assert "the installer failed, and changed nothing: the role lacks CREATEROLE" in played.screen
    assert played["happened"] == ["build", "package", "deploy DISABLED -", "build", "package"]
    assert played["invoked"] == [{"install": True}, {"install": True}, {"mode": "dry-run"}]


# --- without a terminal ---

PARAMETERS = [
    f"--parameter={name}={value}"
    for name, value in {
        "DatabaseHost": "db.example",
        "DatabaseName": "molecule",
        "InstallerSecretArn": "SECRET_ARN",
    }.items()
]


def test_without_a_terminal_nothing_is_asked(tmp_path: Path) -> None:
    runs = [["deploy", *PARAMETERS], ["deploy"], ["deploy", "--env", "staging", *PARAMETERS]]
    played = play(tmp_path, runs)
    assert played["statuses"] == [0, 0, 0], played.screen
    assert set(played["stacks"]) == {STACK, f"{STACK}-staging"}
    assert {f"{STACK}/database", f"{STACK}-staging/database"} <= played["secrets"].keys()
    assert "[staging.deploy.parameters]" in played.config()
    assert played.screen.count("There is nothing to do.") == 1


def test_without_a_terminal_and_without_answers_it_says_what_is_missing(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"], ["deploy", "--plan"]])
    assert (played["statuses"], played["stacks"]) == ([1, 1], {})
    assert played.screen.count("the environment default lacks answers") == 2
    assert "A plan changes nothing." in played.screen


def test_a_plan_makes_nothing(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy", "--plan", *PARAMETERS]])
    assert (played["statuses"], played["stacks"], played.config()) == ([0], {}, "")
    assert "create the stack in mode dry-run, with the schedule disabled" in played.screen


def test_a_stack_applies_for_the_first_time_only_after_the_checklist_passed(tmp_path: Path) -> None:
    runs = [["deploy", "--parameter=Mode=apply", *PARAMETERS], ["deploy"], ["fix"], ["deploy"]]
    played = play(tmp_path, runs, report={"absent": 20, "breaker_open": True})
    assert played["statuses"] == [1, 1, 0], played.screen
    assert "FAIL  absent is near 0" in played.screen
    assert "the checklist did not pass: the schedule stays disabled" in played.screen
    assert played["stacks"][STACK]["ScheduleState"] == "ENABLED"


def test_answers_that_sam_kept_are_read(tmp_path: Path) -> None:
    """`sam deploy --guided` writes one line of parameters."""
    (tmp_path / "samconfig.toml").write_text(
        'version = 0.1\n[default.deploy.parameters]\nstack_name = "blue"\nregion = "eu-central-1"\n'
        'parameter_overrides = "DatabaseAuth=\\"iam\\" DatabaseResourceId=\\"db-A\\" DatabaseHost=\\"h\\"'
        ' DatabaseName=\\"n\\" ScheduleExpression=\\"rate(1 minute)\\""\n[default.build.parameters]\ncached = true\n'
    )
    played = play(tmp_path, [["deploy"]])
    assert played["statuses"] == [0], played.screen
    assert played["stacks"]["blue"]["ScheduleExpression"] == "rate(1 minute)"
    assert "there is no installer" in played.screen
    assert "[default.build.parameters]\ncached = true" in played.config()
