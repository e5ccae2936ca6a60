"""What a release offers, and the workflows that make it."""

import re
import zipfile
from pathlib import Path

import pytest

from infra.release import FUNCTIONS, release
from tests.support.tools import ROOT

WORKFLOWS = [*(ROOT / ".github" / "workflows").glob("*.yml"), *(ROOT / "ops" / "ci").glob("*.yml")]


def built(directory: Path, functions: tuple[str, ...] = FUNCTIONS) -> Path:
    """Return a directory like the one that `sam build` fills."""
    artifact = directory / FUNCTIONS[0] / "handler"
    artifact.mkdir(parents=True)
    (artifact / "app.py").write_text("print()\n")
    (directory / "sbom.cdx.json").write_text("{}")
    (directory / "template.yaml").write_text("".join(f"    CodeUri: {function}\n" for function in functions))
    return directory


def test_the_template_of_a_release_refers_to_the_artifact_by_its_content(tmp_path: Path) -> None:
    release(built(tmp_path / "built"), tmp_path / "one")
    (artifact,) = (tmp_path / "one").glob("reconciler-*.zip")
    assert zipfile.ZipFile(artifact).namelist() == ["handler/app.py"]
    assert (tmp_path / "one" / "template.yaml").read_text() == f"    CodeUri: s3://BUCKET/{artifact.name}\n" * 3
    assert (tmp_path / "one" / "sbom.cdx.json").exists()


def test_two_releases_of_one_build_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    source = built(tmp_path / "built")
    for name in ("one", "other"):
        release(source, tmp_path / name)
    one, other = (sorted((tmp_path / name).iterdir()) for name in ("one", "other"))
    assert [(path.name, path.read_bytes()) for path in one] == [(path.name, path.read_bytes()) for path in other]


def test_a_function_that_the_template_has_no_more_stops_the_release(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no CodeUri: Installer"):
        release(built(tmp_path / "built", FUNCTIONS[:2]), tmp_path / "one")


def test_every_function_of_the_template_is_released() -> None:
    template = (ROOT / "infra" / "template.yaml").read_text()
    assert tuple(re.findall(r"^  (\w+):\n    Type: AWS::Serverless::Function", template, re.MULTILINE)) == FUNCTIONS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_pins_every_action_and_has_no_more_rights_than_it_says(path: Path) -> None:
    text = path.read_text()
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{action} without its version"
    assert re.search(r"^permissions:\n  contents: read\n", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["test.yml", "release.yml"])
def test_the_project_s_own_workflows_run_what_has_to_pass_where_all_of_it_can(name: str) -> None:
    """Only as root, and from Debian 12, does .ci/run get PostgreSQL 15. Without it, tests fail there."""
    text = (ROOT / ".github" / "workflows" / name).read_text()
    assert "- run: .ci/run\n" in text
    assert "container: python:3.13-bookworm" in text.partition("- run: .ci/run")[0]
