"""What goes wrong around `make deploy`: a stack that is stuck, calls denied one by one, odd networks, hostile names."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ops.terminal import CTRL_C, CTRL_D, WITH_A_REGION, play
from tests.ops.test_deploy import ANSWERS, GO, PARAMETERS, STACK, TOKEN

DEPLOY = ["deploy", *PARAMETERS]
BY_HAND = (
    ("AWS Region", ""),
    ("Which one", "2"),
    ("Host", "database.example"),
    ("Port", ""),
    ("Name of the database", "molecule"),
    ("certificate authorities", ""),
    ("Its resource id", ""),
    ("ARN of the secret", ""),
    ("User", "owner"),
    ("Password", "a-password-for-nobody"),
    ("Subnets", ""),
    ("Address of its API", ""),
    ("Mail address", ""),
)


# --- the state of the stack ---


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback --stack-name instance-state-reconciler"),
        ("DELETE_FAILED", "run `make undeploy`, which goes on with that"),
        ("UPDATE_IN_PROGRESS", "somebody else deploys, or a run that was broken off goes on there"),
        ("ROLLBACK_IN_PROGRESS", "is changing just now"),
    ],
)
def test_a_stack_that_cannot_be_changed_is_left_alone_with_words_on_how_to_go_on(
    tmp_path: Path, status: str, said: str
) -> None:
    runs = [DEPLOY, ["new version"], ["status", STACK, status], ["deploy"], ["mode", "apply"]]
    played = play(tmp_path, [*runs, ["status", STACK, "UPDATE_COMPLETE"], ["deploy"]])
    assert played["statuses"] == [0, 1, 1, 0], played.screen
    assert played.screen.count(said) == 2
    assert played.screen.count(f"the stack {STACK} is in {status}") + played.screen.count(f"({status})") == 2


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "CREATE_FAILED"])
def test_what_is_left_of_a_first_deploy_is_deleted_and_made_anew(tmp_path: Path, status: str) -> None:
    runs = [DEPLOY, ["status", STACK, status], ["deploy", "--plan"], ["mode", "apply"], ["deploy"]]
    played = play(tmp_path, runs)
    assert played["statuses"] == [0, 0, 1, 0], played.screen
    assert f"delete the stack first: it is in {status}, so it was never in use" in played.screen
    assert f"was never created ({status}): `make deploy` deletes what is left" in played.screen
    assert played["stacks"][STACK]["ScheduleState"] == "ENABLED"


@pytest.mark.parametrize(
    ("status", "ended"), [("DELETE_FAILED", 0), ("UPDATE_ROLLBACK_FAILED", 0), ("UPDATE_IN_PROGRESS", 1)]
)
def test_undeploy_goes_on_with_what_is_stuck_and_waits_for_others(tmp_path: Path, status: str, ended: int) -> None:
    played = play(tmp_path, [DEPLOY, ["status", STACK, status], ["undeploy", "--yes"]])
    assert played["statuses"] == [0, ended], played.screen
    assert (STACK in played["stacks"]) == bool(ended)


# --- each call denied, each step broken off ---


def test_broken_off_at_each_call_a_first_deploy_goes_on(tmp_path: Path) -> None:
    calls = ["DescribeStacks", "DescribeSecret", "GetCallerIdentity", "CreateSecret", "Invoke", "UpdateStack"]
    played = play(tmp_path, [DEPLOY, *[["deploy", *PARAMETERS]] * len(calls)], denied=calls)
    assert played["statuses"] == [1] * len(calls) + [0], played.screen
    assert [call for call in calls if f"AWS denied {call}: User: " not in played.screen] == []
    assert "ops/deployer-policy.json has every right" in played.screen
    assert played["stacks"][STACK]["ScheduleState"] == "ENABLED"
    assert played["happened"].count("deploy DISABLED -") == 1


def test_broken_off_at_each_call_an_upgrade_goes_on_and_no_cycle_runs_meanwhile(tmp_path: Path) -> None:
    """The last run but one is denied the call that would enable the schedule."""
    calls = ["DescribeStacks", "GetCallerIdentity", "GetTemplate", "UpdateStack", "Invoke", "UpdateStack"]
    runs = [DEPLOY, ["new version"], *[part for call in calls for part in (["deny", call], ["deploy"])]]
    runs += [["deny", "UpdateStack"], ["deploy"]]
    played = play(tmp_path, runs)
    assert played["statuses"] == [0, *[1] * len(calls), 1], played.screen
    assert played["stacks"][STACK]["ScheduleState"] == "DISABLED"
    again = tmp_path / "again"
    again.mkdir()
    played = play(again, [*runs, ["deploy"]])
    assert played["statuses"][-1] == 0, played.screen
    assert played["stacks"][STACK]["ScheduleState"] == "ENABLED"
    assert played["happened"].count("deploy DISABLED -") == 2, "the first deploy and the upgrade"


def test_an_upgrade_whose_installer_fails_leaves_the_schedule_disabled_and_says_how_to_go_on(tmp_path: Path) -> None:
    played = play(tmp_path, [DEPLOY], installer_fails="permission denied")
    assert (played["statuses"], played["stacks"][STACK]["ScheduleState"]) == ([1], "DISABLED"), played.screen
    assert "The schedule stays disabled, so no cycle runs" in played.screen
    assert "run the same command again" in played.screen


def test_broken_off_at_each_call_mode_and_undeploy_go_on(tmp_path: Path) -> None:
    mode = ["DescribeStacks", "Invoke", "UpdateStack"]
    gone = ["DescribeStacks", "DescribeSecret", "GetCallerIdentity", "DescribeLogGroups", "DeleteStack", "DeleteSecret"]
    runs: list[list[str]] = [DEPLOY]
    for call in mode:
        runs += [["deny", call], ["mode", "apply"]]
    runs += [["mode", "apply"]]
    for call in gone:
        runs += [["deny", call], ["undeploy", "--yes"]]
    runs += [["undeploy", "--yes"]]
    groups = [f"{STACK}-LogGroup-Of1st", f"{STACK}-staging-LogGroup-Of2nd"]
    played = play(tmp_path, runs, log_groups=groups)
    assert played["statuses"] == [0, 1, 1, 1, 0, *[1] * len(gone), 0], played.screen
    assert [call for call in (*mode, *gone) if f"AWS denied {call}: User: " not in played.screen] == []
    assert (played["stacks"], f"{STACK}/database" in played["secrets"]) == ({}, False)
    named = played.screen.rpartition("What stays")[2]
    assert f"aws logs delete-log-group --log-group-name {groups[0]}" in named, "although the stack is gone"
    assert groups[1] not in named


def test_somebody_who_deploys_at_the_same_time_is_waited_for(tmp_path: Path) -> None:
    """Between the look at the stack and the change of it."""
    changing = f"UpdateStack=ValidationError:Stack:{STACK} is in UPDATE_IN_PROGRESS state and can not be updated."
    runs = [DEPLOY, ["deny", changing], ["mode", "apply"], ["new version"], ["deny", changing], ["deploy"], ["deploy"]]
    played = play(tmp_path, runs)
    assert played["statuses"] == [0, 1, 1, 0], played.screen
    assert played.screen.count("Wait until that is over, then run the same command again") == 2


def test_verify_goes_on_when_a_call_is_denied(tmp_path: Path) -> None:
    calls = ["StartQuery", "GetEventSourceMapping", "GetQueueAttributes", "GetMetricStatistics"]
    played = play(tmp_path, [DEPLOY, ["deny", *calls], ["verify"]])
    assert played["statuses"] == [0, 1], played.screen
    assert [call for call in calls if f"when calling the {call} operation" not in played.screen] == []
    assert "pass  a dry run succeeds" in played.screen


# --- the mode and its file ---


@pytest.mark.parametrize(("mode", "other"), [("apply", "dry-run"), ("dry-run", "apply")])
def test_a_mode_that_only_the_stack_could_take_on_says_so(tmp_path: Path, mode: str, other: str) -> None:
    runs = [DEPLOY, ["mode", other], ["block", "samconfig.toml.new"], ["mode", mode]]
    played = play(tmp_path, runs)
    assert played["statuses"][-1] == 1, played.screen
    assert played["stacks"][STACK]["Mode"] == mode
    assert f"the stack is in mode {mode}, but samconfig.toml could not be changed" in played.screen
    assert f"would set the mode to {other} again" in played.screen


def test_a_dry_run_that_the_stack_refuses_says_that_it_may_still_act(tmp_path: Path) -> None:
    played = play(tmp_path, [DEPLOY, ["mode", "apply"], ["deny", "UpdateStack"], ["mode", "dry-run"]])
    assert played["statuses"] == [0, 0, 1], played.screen
    assert "the stack's mode was apply, and may still be. samconfig.toml says dry-run" in played.screen
    assert "Stop acting" in played.screen


def test_a_mode_says_that_the_schedule_is_disabled(tmp_path: Path) -> None:
    runs = [DEPLOY, ["mode", "apply"]]
    played = play(tmp_path, runs, installer_fails="permission denied")
    assert played["statuses"] == [1, 0], played.screen
    assert "the schedule is disabled, so no cycle runs by itself" in played.screen


# --- databases and networks ---


def test_a_cluster_is_offered_once_by_its_writer(tmp_path: Path) -> None:
    answers = [ANSWERS[0], ("1  fleet  cluster, PostgreSQL ", "1"), *ANSWERS[2:], GO]
    played = play(tmp_path, [["deploy"]], answers, databases=[], clusters=["fleet"])
    assert played["statuses"] == [0], played.screen
    parameters = played["stacks"][STACK]
    assert parameters["DatabaseHost"].startswith("fleet.cluster-")
    assert parameters["DatabaseResourceId"].startswith("cluster-")
    assert parameters["DatabaseName"] == "molecule"
    assert "fleet-1" not in played.screen


def test_a_key_of_one_s_own_on_the_master_s_secret_becomes_a_parameter(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"]], [*ANSWERS, GO], own_key=True)
    assert played["statuses"] == [0], played.screen
    assert played["stacks"][STACK]["SecretsKmsKeyArns"].startswith("arn:aws:kms:eu-central-1:123456789012:key/")


def test_a_database_that_rds_does_not_list_is_entered_by_hand(tmp_path: Path) -> None:
    answers = list(BY_HAND)
    answers[2:2] = [("Host", "no/host")]
    answers[3] = ("DatabaseHost: found", "database.example")
    answers[4:5] = [("Port", "70000"), ("from 1 to 65535", "5433")]
    answers[7:8] = [("certificate authorities", "infra/ca/ours.pem"), ("There is no file", "")]
    answers[9:10] = [("Its resource id", "database"), ("must be a resource id", "")]
    at = answers.index(("Subnets", ""))
    answers[at : at + 1] = [("Subnets", "here"), ("must be subnet ids", "subnet-0123"), ("EC2 does not know them", "")]
    played = play(tmp_path, [["deploy"]], [*answers, GO])
    assert played["statuses"] == [0], played.screen
    parameters = played["stacks"][STACK]
    assert (parameters["DatabaseHost"], parameters["DatabasePort"]) == ("database.example", "5433")
    assert json.loads(played["secrets"][f"{STACK}/owner"]) == {"username": "owner", "password": "a-password-for-nobody"}
    assert "a-password-for-nobody" not in played.screen + played.config()


def test_a_database_by_hand_in_a_vpc_gets_the_stack_s_own_group_and_one_rule(tmp_path: Path) -> None:
    """The subnets are known from before; Enter keeps them."""
    first = [*DEPLOY, "--yes", "--parameter=VpcSubnetIds=SUBNETS", "--parameter=VpcId=VPC"]
    (tmp_path / "samconfig.toml").write_text(WITH_A_REGION)
    answers = [*BY_HAND[:2], *[(question, "") for question, _ in BY_HAND[2:8]], ("Subnets", "")]
    answers += [("security group", "group"), ("DatabaseSecurityGroupId: found", "sg-0123456789abcdef0"), *BY_HAND[-2:]]
    played = play(tmp_path, [first, ["deploy", "--ask", "--plan"]], answers)
    assert played["statuses"] == [0, 0], played.screen
    plan = played.screen.rpartition("The plan")[2]
    assert "DatabaseSecurityGroupId: - → sg-0123456789abcdef0" in plan
    assert "VpcSubnetIds" not in plan, "as before"


@pytest.mark.parametrize("key", [CTRL_C, CTRL_D])
def test_whoever_stops_at_any_question_about_a_database_by_hand_leaves_everything_as_it_was(
    tmp_path: Path, key: str
) -> None:
    stopped = [[*BY_HAND[:at], (BY_HAND[at][0], key)] for at in range(2, len(BY_HAND))]
    played = play(tmp_path, [["deploy"]] * len(stopped), [answer for answers in stopped for answer in answers])
    assert played["statuses"] == [130] * len(stopped), played.screen
    assert (played["stacks"], played["happened"], played.config()) == ({}, [], "")
    assert not [name for name in played["secrets"] if name.startswith(STACK)]


def test_whoever_stops_at_the_other_commands_questions_is_told_how_things_stand(tmp_path: Path) -> None:
    """A checklist that fails has `make mode` ask."""
    (tmp_path / "samconfig.toml").write_text(WITH_A_REGION)
    runs = [DEPLOY, ["mode", "apply"], ["undeploy"]]
    answers = [GO, ("all the same", CTRL_C), ("Type the stack", CTRL_C)]
    played = play(tmp_path, runs, answers, report={"unknown": 9})
    assert played["statuses"] == [0, 130, 130], played.screen
    assert "The same command again brings the stack and samconfig.toml together." in played.screen
    assert "What was removed is gone" in played.screen
    assert played["stacks"][STACK].get("Mode", "dry-run") == "dry-run"


def test_a_network_that_reaches_no_api_is_a_warning_in_the_plan(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"]], [*ANSWERS, ("Go on", "n")], endpoints=False)
    assert "no NAT, and no endpoint (with private names) for secretsmanager, ec2" in played.screen
    assert "the secret cannot be fetched: timeout" in played.screen
    assert "https://platform.example only if it is inside the VPC" in played.screen


def test_asked_again_it_keeps_the_security_groups_and_secrets_that_somebody_chose(tmp_path: Path) -> None:
    chosen = {"VpcId": "", "VpcSecurityGroupIds": "sg-0123456789abcdef0", "DatabaseSecurityGroupId": ""}
    again = [*ANSWERS[:4], *ANSWERS[5:], GO]
    runs = [["deploy"], ["deploy", "--yes", *[f"--parameter={name}={value}" for name, value in chosen.items()]]]
    played = play(tmp_path, [*runs, ["deploy", "--ask"]], [*ANSWERS, GO, *again])
    assert played["statuses"] == [0, 0, 0], played.screen
    assert {name: played["stacks"][STACK][name] for name in chosen} == chosen
    assert "The functions keep their security groups: sg-0123456789abcdef0" in played.screen


# --- RDS's authorities ---


@pytest.mark.parametrize(
    ("published", "said"),
    [
        ("refused", "RDS's authorities cannot be fetched from https://truststore.pki.rds.amazonaws.com/"),
        ("half", "is not a whole file of certificates (PEM)"),
        ("a page", "is not a whole file of certificates (PEM)"),
    ],
)
def test_authorities_that_cannot_be_fetched_are_asked_for_again(tmp_path: Path, published: str, said: str) -> None:
    played = play(tmp_path, [["deploy"], ["fix"], ["deploy"]], [*ANSWERS, GO, GO], authorities=published)
    assert played["statuses"] == [1, 0], played.screen
    assert said in played.screen
    assert len(list((tmp_path / "infra" / "ca").iterdir())) == 1, "no half of a file"


# --- without a terminal ---


def test_what_is_missing_is_listed(tmp_path: Path) -> None:
    played = play(tmp_path, [["deploy"], ["deploy", "--parameter=DatabaseAuth=iam", "--parameter=DatabaseName=n"]])
    first, second = played.screen.split("[deploy ended with 1]")[:2]
    for name in ("DatabaseHost", "DatabaseName", "InstallerSecretArn"):
        assert f"\n  - {name}: " in first
    assert "\n  - DatabaseHost: " in second
    assert "\n  - DatabaseResourceId: " in second
    assert "InstallerSecretArn" not in second
    assert (played["statuses"], played["stacks"], played.config()) == ([1, 1], {}, "")


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("Databasehost=db", "Databasehost: the template has no such parameter"),
        ("Mode=on", "Mode: found 'on', expected one of dry-run, apply"),
        ("VpcSubnetIds=here", "VpcSubnetIds: found 'here'. must be subnet ids separated by commas"),
        ("MemorySize=nan", "MemorySize: found 'nan', expected a number (least: 256, most: 10240)"),
        ("Mode", "--parameter Mode: expected Name=value"),
    ],
)
def test_a_parameter_that_the_template_refuses_is_refused_before_anything_is_made(
    tmp_path: Path, parameter: str, said: str
) -> None:
    played = play(tmp_path, [[*DEPLOY, f"--parameter={parameter}"]])
    assert (played["statuses"], played["happened"], played.config()) == ([1], [], "")
    assert said in played.screen


def test_what_another_version_needed_stays_in_the_file_and_changes_nothing(tmp_path: Path) -> None:
    played = play(tmp_path, [DEPLOY])
    file = tmp_path / "samconfig.toml"
    file.write_text(played.config() + 'OfAnotherVersion = "1"\n')
    again = play(tmp_path, [DEPLOY, ["deploy"]])
    assert again["statuses"] == [0, 0], again.screen
    assert "samconfig.toml has OfAnotherVersion" in again.screen
    assert "There is nothing to do." in again.screen
    assert "OfAnotherVersion" in again.config()


def test_a_plan_says_which_steps_change_nothing(tmp_path: Path) -> None:
    ca = ["--parameter=DatabaseCaFile=infra/ca/global-bundle.pem"]
    played = play(tmp_path, [["deploy", "--plan", *PARAMETERS, *ca], [*DEPLOY, *ca], ["deploy", "--plan"]])
    first, _, last = played.screen.split("[deploy ended with 0]")[:3]
    assert "nothing to do" not in first
    for said in ("authorities: nothing to do", "parameters: nothing to do", "- only then, the installer"):
        assert said in last


# --- hostile words ---

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]x[/bold red] :key: \u202egnp\n  pass  everything"
SHOWN = "\\x1b]0;owned\\x07\\x1b[2J[bold red]x[/bold red] :key: \\u202egnp\\n  pass  everything"


@pytest.mark.parametrize("scenario", [{"installer_fails": HOSTILE}, {"report": {"targets_failed": [HOSTILE]}}])
def test_what_comes_from_elsewhere_is_escaped_on_the_terminal(tmp_path: Path, scenario: dict[str, Any]) -> None:
    played = play(tmp_path, [DEPLOY], **scenario)
    assert SHOWN in played.screen
    assert HOSTILE[:4] not in played.screen


def test_a_secret_is_in_no_file_and_on_no_screen(tmp_path: Path) -> None:
    """Nor in what is said when the call that takes it is refused."""
    answers = [*ANSWERS, GO]
    played = play(tmp_path, [["deploy"], ["deploy"]], [*answers, *answers], denied=["CreateSecret"])
    assert played["statuses"] == [1, 0], played.screen
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "outcome.json"]
    assert files
    assert [file for file in files if TOKEN in file.read_text(errors="replace")] == []
    assert TOKEN not in played.screen


@pytest.mark.parametrize("content", [b"a = [", b"[default]\ndeploy = 3\n", b"\xc3\x28", b"default = 1\n"])
def test_a_file_that_cannot_be_read_is_named_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "samconfig.toml").write_bytes(content)
    played = play(tmp_path, [DEPLOY, ["mode", "dry-run"], ["undeploy", "--yes"]])
    assert played["statuses"] == [1, 1, 1], played.screen
    assert played.screen.count("error: samconfig.toml cannot be read: ") == 3
    assert (tmp_path / "samconfig.toml").read_bytes() == content


def test_an_environment_s_name_has_to_do_for_a_stack(tmp_path: Path) -> None:
    played = play(tmp_path, [[*DEPLOY, "--env", "my_staging"], [*DEPLOY, "--env", "version"]])
    assert played["statuses"] == [2, 2], played.screen
    assert "is no name for an environment" in played.screen


def test_a_question_that_a_test_does_not_expect_fails_it_at_once_and_shows_the_screen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"asked: .AWS Region .*, expected: 'Which one'\n(.|\n)*A new environment"):
        play(tmp_path, [["deploy"]], [("Which one", "1")])
