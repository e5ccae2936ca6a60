"""The artifact that `make build` makes for Lambda."""

import filecmp
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.tools import ROOT

BUILD = ROOT / ".aws-sam" / "build"


@pytest.fixture(scope="module")
def artifact() -> Path:
    path = BUILD / "Reconciler"
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: run `make test` or `make build`")
    return path


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_the_artifact_contains_the_current_handler_and_sql(artifact: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("handler/**/*.py", "handler/**/*.json", "infra/*.sql", "infra/ca/*.pem")
        for path in ROOT.glob(pattern)
    }
    found = {path for path in files(artifact) if path.startswith(("handler/", "infra/")) and "__pycache__" not in path}
    assert found == expected
    assert [path for path in sorted(expected) if not filecmp.cmp(ROOT / path, artifact / path, shallow=False)] == []


def test_the_artifact_contains_exactly_the_pinned_requirements(artifact: Path) -> None:
    pinned = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    expected = {f"{name.replace('-', '_')}-{version}.dist-info" for name, version in pinned}
    assert {path.name for path in artifact.glob("*.dist-info")} == expected
    packages = {"handler", "infra", "asn1crypto", "aws_lambda_powertools", "boto3", "botocore", "certifi"}
    packages |= {"charset_normalizer", "dateutil", "idna", "jmespath", "pg8000", "requests", "s3transfer"}
    packages |= {"scramp", "six.py", "typing_extensions.py", "urllib3"}
    assert {path.name for path in artifact.iterdir()} - expected - {"__pycache__"} == packages


def test_the_artifact_contains_no_machine_code(artifact: Path) -> None:
    """So it runs here just as it runs on Lambda's arm64."""
    assert [path for path in files(artifact) if path.endswith((".so", ".dylib", ".pyd"))] == []


def test_the_sdk_knows_only_the_services_that_the_handler_calls(artifact: Path) -> None:
    data = artifact / "botocore" / "data"
    assert {path.name for path in data.iterdir() if path.is_dir()} == {"ec2", "rds", "secretsmanager", "sts"}
    for service in data.iterdir():
        if service.is_dir():
            assert len(list(service.iterdir())) == 1, f"{service.name} has more than one version of its API"


def test_every_module_has_bytecode_that_python_does_not_check_again(artifact: Path) -> None:
    compiled = {path for path in files(artifact) if path.endswith(".pyc")}
    if not compiled:
        pytest.skip("no Python 3.13 on this machine, so nothing was compiled")
    modules = {path for path in files(artifact) if path.endswith(".py")}
    assert len(compiled) == len(modules)
    unchecked_hash = (0b01).to_bytes(4, "little")  # PEP 552: the bytecode has a hash that Python does not check
    assert all((artifact / path).read_bytes()[4:8] == unchecked_hash for path in compiled)
    assert all(".cpython-313." in path for path in compiled)


def test_tracebacks_show_paths_as_they_are_in_lambda(artifact: Path) -> None:
    compiled = list((artifact / "handler" / "__pycache__").glob("*.pyc"))
    for path in compiled:
        assert b"/var/task/handler/" in path.read_bytes()
        assert str(ROOT).encode() not in path.read_bytes()


@pytest.mark.parametrize("function", ["StateChanges", "Installer"])
def test_all_functions_get_the_same_artifact(function: str, artifact: Path) -> None:
    other = BUILD / function
    assert files(artifact) == files(other)
    assert [path for path in files(artifact) if (artifact / path).read_bytes() != (other / path).read_bytes()] == []


def test_the_artifact_is_small(artifact: Path, tmp_path: Path) -> None:
    package = tmp_path / "artifact.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files(artifact):
            archive.write(artifact / path, path)
    assert package.stat().st_size < 5_000_000


def test_certificate_authorities_in_infra_ca_go_into_the_artifact(tmp_path: Path) -> None:
    """Builds from a copy, so that the test leaves nothing behind in the project."""
    project = tmp_path / "project"
    for source in (*ROOT.glob("handler/**/*.*"), *ROOT.glob("infra/*.*"), ROOT / "requirements" / "runtime.txt"):
        target = project / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (project / "infra" / "ca").mkdir()
    (project / "infra" / "ca" / "bundle.pem").write_text("PEM")
    (project / "infra" / "ca" / "notes.txt").write_text("not for Lambda")
    built = tmp_path / "artifact"
    output = subprocess.run(
        [sys.executable, str(project / "infra" / "build.py"), str(built), "--python", ""],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert files(built / "infra") == {"ca/bundle.pem", "schema.sql", "grants.sql"}
    assert "the bytecode is not compiled" in output
