"""`python -m ops status|explain|hold|release|override-breaker` on a deployed stack in moto."""

from pathlib import Path
from typing import Any

from ops.report.reading import read
from tests.ops.reports import HOSTILE, INSTANCE, explanation, flips, holding, poisoned, report, workspace
from tests.ops.terminal import WITH_A_REGION, Played, play
from tests.ops.test_deploy import PARAMETERS, STACK

DEPLOY = ["deploy", *PARAMETERS]
ONE, OTHER = workspace(3), workspace(4)
LOST, SHARED = "i-0a1b2c3d4e5f60000", "i-0a1b2c3d4e5f61111"
LOGGED = {INSTANCE: [ONE], LOST: [], SHARED: [ONE, OTHER]}
ANSWERS: dict[str, Any] = {
    "workspace_id": explanation(),
    "hold": holding(),
    "release": holding(outcome="released", holds=[], on_hold=0, in_flight=[]),
}
# The stack's own checks take the report of a small fleet; this one is complete.
DRY_REPORT = report("dry-run", checked=20, candidates=20, duration_ms=900)


def order(root: Path, *runs: list[str], answers: list[tuple[str, str]] | None = None, **scenario: Any) -> Played:
    """Deploy, and then run these commands of `ops`; or break the function."""
    given = {"function_answers": ANSWERS, "dry_run": DRY_REPORT, "logged": LOGGED} | scenario
    if answers is not None:
        (root / "samconfig.toml").write_text(WITH_A_REGION)
    return play(root, [DEPLOY, *(run if run[0] == "break" else ["ops", *run] for run in runs)], answers or (), **given)


def sent(played: Played) -> list[Any]:
    """Return the events since the deploy."""
    return [one for one in played["invoked"] if "install" not in one][1:]


def test_a_workspace_is_explained_by_its_id_or_its_instance_s(tmp_path: Path) -> None:
    kept = tmp_path / "answer.json"
    played = order(
        tmp_path,
        ["explain", ONE.upper(), "--json", str(kept)],
        ["explain", INSTANCE],
        ["explain", LOST],
        ["explain", SHARED],
        ["explain", "../../admin"],
    )
    assert played["statuses"] == [0, 0, 0, 1, 1, 1], played.screen
    assert sent(played) == [{"mode": "explain", "workspace_id": ONE}] * 2
    for said in (
        "The next cycle would ask the platform for its restart",
        "its disk is replaced",
        f"{INSTANCE} was recorded by the workspace {ONE}.",
        f"no cycle has logged anything about {LOST} in 30 days",
        f"{SHARED} was recorded by several workspaces, so name one: {ONE}, {OTHER}",
        "../../admin is neither a workspace's id nor an instance's",
    ):
        assert said in played.screen, said
    assert read(kept.read_text(), "kept")


def test_what_changes_something_is_asked_first_and_without_a_terminal_needs_yes(tmp_path: Path) -> None:
    played = order(
        tmp_path,
        ["hold", ONE, "--reason", "its disk is replaced"],
        ["hold", ONE, INSTANCE, "--reason", "its disk is replaced", "--for", "2d", "--yes"],
        ["hold", "--all", "--reason", "look first", "--yes"],
        ["release", ONE, "--yes"],
        ["release", "--all", "--yes"],
        ["release", "--yes"],
        ["release", "--all", ONE, "--yes"],
        ["override-breaker"],
        ["override-breaker", "--yes"],
    )
    assert played["statuses"] == [0, 1, 0, 0, 0, 0, 1, 1, 1, 0], played.screen
    override = {"mode": "dry-run", "override_breaker": True}
    assert sent(played) == [
        {
            "mode": "apply",
            "hold": {"workspace_ids": [ONE, ONE], "reason": "its disk is replaced", "seconds": 172_800},
        },
        {"mode": "apply", "hold": {"all": True, "reason": "look first", "seconds": 3600}},
        {"mode": "apply", "release": [ONE]},
        {"mode": "apply", "release": "all"},
        override,
        override,
        {"mode": "apply", "override_breaker": True},
    ]
    assert played.screen.count("there is no terminal to ask on: give --yes") == 2
    assert played.screen.count("name workspaces, or give --all, and not both") == 2


def test_a_person_may_say_no(tmp_path: Path) -> None:
    played = order(
        tmp_path,
        ["hold", "--all", "--reason", "look first", "--for", "30m"],
        ["override-breaker"],
        ["override-breaker"],
        answers=[
            ("Go on", "y"),
            ("Put everything on hold for 30m (y/n) [n]", "n"),
            ("Flip these now", "n"),
            ("Flip these now", "y"),
        ],
        report={"flips": flips(3)},
    )
    assert played["statuses"] == [0, 1, 1, 0], played.screen
    assert played.screen.count("Nothing was changed.") == 2
    assert "3 workspaces would be taken offline" in played.screen
    assert sent(played)[-1] == {"mode": "apply", "override_breaker": True}


def test_status_hostile_texts_and_a_function_that_fails(tmp_path: Path) -> None:
    release = holding(outcome="unchanged", holds=[{"workspace_id": None, "reason": HOSTILE, "ends_at": "infinity"}])
    poison = poisoned(explanation()) | {"workspace_id": ONE}
    played = order(
        tmp_path,
        ["status"],
        ["explain", ONE],
        ["break", HOSTILE],
        ["explain", ONE],
        ["status"],
        alarms={"Loud": "ALARM", "Fine": "OK"},
        function_answers={"release": release, "workspace_id": poison},
    )
    assert played["statuses"] == [0, 0, 0, 1, 1], played.screen
    assert sent(played)[:2] == [{"mode": "dry-run", "release": "all"}, {"mode": "dry-run"}]
    for said in (f"The stack {STACK}", "mode      dry-run", "alarms    Loud", "everything until infinity: <script>"):
        assert said in played.screen, said
    assert "An applied cycle would take no workspace offline" in played.screen
    for harmful in ("\x1b]0;", "\x1b[2J", "\u202e", "\u200b", "\x00"):
        assert harmful not in played.screen, ascii(harmful)


def test_an_order_that_changed_nothing_fails(tmp_path: Path) -> None:
    """The stack's mode is dry-run."""
    unchanged = holding(mode="dry-run", outcome="unchanged", holds=[], on_hold=0, in_flight=[])
    played = order(
        tmp_path,
        ["hold", ONE, "--reason", "x", "--yes"],
        ["override-breaker", "--yes"],
        mode="dry-run",
        function_answers={"hold": unchanged},
    )
    assert played["statuses"] == [0, 1, 1], played.screen
    assert played.screen.count("nothing was changed: the stack's mode is dry-run") == 2
