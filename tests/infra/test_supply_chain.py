"""What is installed, and what is known about it: wheels with hashes alone, licences, a bill of materials."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.sbom import KNOWN, Package, bill, packages, table, with_table
from tests.support.tools import ROOT, run, tool

ARTIFACT = ROOT / ".aws-sam" / "build" / "Reconciler"
INSTALLING = re.compile(
    r"\bpip\b\W+\b(install|compile|sync|wheel|download)\b|\buv\b\W+\b(sync|run|tool|add)\b|\b(pipx|uvx)\b"
)


def commands() -> list[str]:
    """Return the commands in what makes, tests and builds the project that may install something."""
    files = [ROOT / "Makefile", *(ROOT / ".ci").iterdir(), *(ROOT / "infra").glob("*.py"), ROOT / "infra/template.yaml"]
    files += [path for directory in ("ops", "sandbox", "bench", "tests") for path in (ROOT / directory).rglob("*.py")]
    found = []
    for path in files:
        text = path.read_text().replace("\\\n", " ")
        # A list of words in Python, or a line of a shell's.
        pieces = (
            re.findall(r"subprocess\.run\(.*?check=", text, re.DOTALL) if path.suffix == ".py" else text.splitlines()
        )
        found += [
            f"{path.relative_to(ROOT)}: {' '.join(piece.split())}" for piece in pieces if INSTALLING.search(piece)
        ]
    return found


def test_whatever_is_installed_comes_as_a_wheel_with_a_hash() -> None:
    """Building a package would run what it requires for that, and no lock file has hashes of those."""
    found = commands()
    assert {command.partition(":")[0] for command in found} == {"Makefile", "infra/build.py"}
    assert len(found) == 4, "the environment, the tools, the lock files, the artifact"
    for command in found:
        assert re.search(r"--only-binary[\W]+:all:", command), command
        assert "--require-hashes" in command or "--generate-hashes" in command, command


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.stem)
def test_a_lock_file_pins_everything_by_hash_and_names_no_other_place(path: Path) -> None:
    for requirement in re.split(r"\n(?=\S)", path.read_text()):
        if not requirement.startswith("#"):
            assert re.match(r"[a-z0-9-]+==[^\s\\]+( ; [^\\]+)? \\\n", requirement), requirement
            assert re.search(r"^    --hash=sha256:[0-9a-f]{64}", requirement, re.MULTILINE), requirement


# --- licences ---


def test_every_licence_that_is_shipped_is_listed() -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    assert page == with_table(page, table(packages(ARTIFACT))), "run `make licences`"


def test_every_package_brings_its_licence_s_text() -> None:
    for metadata in ARTIFACT.glob("*.dist-info"):
        assert [path for path in metadata.rglob("*") if path.name.upper().startswith("LICEN") and path.is_file()], (
            metadata
        )


def test_every_known_licence_is_shipped() -> None:
    assert {package.licence for package in packages(ARTIFACT)} == KNOWN


@pytest.mark.parametrize("said", ["License: AGPL-3.0", "License-Expression: MIT AND SSPL-1.0", "Author: nobody"])
def test_a_licence_that_nobody_has_read_stops_the_build(tmp_path: Path, said: str) -> None:
    (tmp_path / "new-1.0.dist-info").mkdir()
    (tmp_path / "new-1.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: new\nVersion: 1.0\n{said}\n"
    )
    with pytest.raises(SystemExit, match=r"new: infra/sbom.py does not know the licence"):
        packages(tmp_path)


# --- the bill of materials ---


@pytest.fixture(scope="module")
def built() -> Any:
    """The bill that `make build` made."""
    return json.loads((ROOT / ".aws-sam" / "build" / "sbom.cdx.json").read_text())


def test_the_bill_is_valid_cyclonedx(built: Any) -> None:
    assert run([tool("checkov", "python"), "tests/infra/tools/validate_sbom.py"], stdin=json.dumps(built)) == ""
    broken = json.dumps(built | {"version": "one"})
    assert run([tool("checkov", "python"), "tests/infra/tools/validate_sbom.py"], stdin=broken) != ""


def test_the_bill_lists_what_is_shipped_and_what_needs_what(built: Any) -> None:
    pinned = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    assert [(one["name"], one["version"]) for one in built["components"]] == sorted(pinned)
    references = {one["bom-ref"] for one in (*built["components"], built["metadata"]["component"])}
    needs = {one["ref"]: one["dependsOn"] for one in built["dependencies"]}
    assert needs.keys() == references
    reached, left = set(), [built["metadata"]["component"]["bom-ref"]]
    while left:
        reached.add(one := left.pop())
        left += [other for other in needs[one] if other not in reached]
    assert reached == references, "nothing is shipped that nothing needs"


def test_the_bill_of_one_artifact_is_the_same_everywhere_and_always(built: Any, tmp_path: Path) -> None:
    for name in ("one", "other"):
        command = [sys.executable, str(ROOT / "infra" / "sbom.py"), str(ARTIFACT), "--bill", str(tmp_path / name)]
        subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert json.loads((tmp_path / "one").read_text()) == built


def test_another_content_has_another_number() -> None:
    names = ("aws-lambda-powertools", "boto3", "botocore", "pg8000", "requests", "scramp")
    needed = [Package(name, "1", "MIT", ()) for name in names]
    numbers = {bill([*needed, Package("urllib3", version, "MIT", ())])["serialNumber"] for version in ("1", "2", "2")}
    assert len(numbers) == 2
