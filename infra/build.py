"""Fill a directory with what runs in Lambda: the handler, its SQL and its dependencies, and nothing else.

`sam build` calls this through the Makefile, once for each function; all get the same artifact.
"""

import argparse
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAMBDA_ROOT = "/var/task"

# The project's own files.
SOURCES = ("handler/**/*.py", "handler/**/*.json", "infra/*.sql", "infra/ca/*.pem")

# The AWS services that the handler calls. botocore brings the models of 400.
SERVICES = ("ec2", "rds", "secretsmanager", "sts")
# The parts of Powertools' utilities that Logger, Metrics and the event data classes import.
POWERTOOLS_UTILITIES = ("data_classes", "jmespath_utils", "typing")

# What else can be left out: patterns under the artifact, each with its reason.
SUPERFLUOUS = (
    ".lock",  # uv's
    "bin",  # command-line scripts
    "boto3/data",  # resources, boto3's older interface; the handler uses clients
    "boto3/dynamodb",  # boto3's additions to resources, and to clients that the handler never makes
    "boto3/ec2",
    "boto3/s3",  # but s3transfer stays: `import boto3` imports it
    "boto3/examples",  # documentation
    "botocore/data/*/*/examples-1.json",  # documentation
    "botocore/data/*/*/waiters-2.json",  # the handler waits for nothing
    "botocore/data/ec2/*/service-2.json.gz",  # the handler brings a model of the operations that it calls
    "aws_lambda_powertools/event_handler",  # routing for HTTP APIs, with a web page of 1.5 MB
    "charset_normalizer/*.so",  # compiled for one processor; the same modules are there in Python
    "dateutil/zoneinfo",  # a second copy of the system's time zones; botocore needs UTC alone
    "*.dist-info/RECORD",  # no longer correct; the other metadata stays, for scanners and for pg8000's version
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
)


def main() -> None:
    """Build into the directory that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="the directory to fill")
    parser.add_argument("--python", help="a Python 3.13, to compile the bytecode with")
    arguments = parser.parse_args()
    artifact: Path = arguments.artifact.resolve()
    artifact.mkdir(parents=True, exist_ok=True)

    install_dependencies(artifact)
    whole = zipped_size(artifact)
    for path in superfluous(artifact):
        remove(path)
    copy_sources(artifact)
    pruned = zipped_size(artifact)
    report = f"{megabytes(whole)} of dependencies, {megabytes(pruned)} pruned and with the handler"
    if arguments.python:
        compile_bytecode(artifact, arguments.python)
        report += f", {megabytes(zipped_size(artifact))} with bytecode"
    print(f"Artifact, zipped: {report}.")
    if not arguments.python:
        print("No Python 3.13 here: the bytecode is not compiled, and a cold start takes some 0.4 s longer.")
        print("`uv python install 3.13` brings one.")


def install_dependencies(artifact: Path) -> None:
    """Install the pinned requirements as Lambda's processor and Python need them."""
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet"),
            *("--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.13", "--only-binary", ":all:"),
            *("--require-hashes", "--no-deps", "--requirement", str(ROOT / "requirements" / "runtime.txt")),
            # Copies, not links: what is removed or compiled here must stay as it is in uv's cache.
            *("--link-mode", "copy", "--target", str(artifact)),
        ],
        check=True,
    )


def superfluous(artifact: Path) -> Iterator[Path]:
    """Yield the paths that the handler never reads."""
    for pattern in SUPERFLUOUS:
        yield from artifact.glob(pattern)
    data = artifact / "botocore" / "data"
    yield from others(directories(data), SERVICES)
    for service in SERVICES:
        yield from sorted(directories(data / service))[:-1]  # versions of the API, by date: the latest is used
    yield from others(directories(artifact / "aws_lambda_powertools" / "utilities"), POWERTOOLS_UTILITIES)


def directories(parent: Path) -> list[Path]:
    """Return the directories in a directory."""
    return [path for path in parent.iterdir() if path.is_dir()]


def others(paths: Iterable[Path], kept: tuple[str, ...]) -> list[Path]:
    """Return the paths whose names are not in `kept`."""
    return [path for path in paths if path.name not in kept]


def remove(path: Path) -> None:
    """Remove a file or a whole directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_sources(artifact: Path) -> None:
    """Add the handler, the installer's SQL, and the authorities that database, control plane and platform may need."""
    for pattern in SOURCES:
        for source in sorted(ROOT.glob(pattern)):
            target = artifact / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def compile_bytecode(artifact: Path, python: str) -> None:
    """Compile the bytecode with `python`, so that a cold start does not have to.

    It is not checked against the sources, because Lambda unpacks them with other times, and its copy is read-only.
    """
    subprocess.run(
        [
            *(python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"),
            *("-s", str(artifact), "-p", LAMBDA_ROOT, str(artifact)),
        ],
        check=True,
    )


def zipped_size(artifact: Path) -> int:
    """Return the artifact's size in bytes, zipped, as Lambda's limits count it."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in artifact.rglob("*"):
            archive.write(path, path.relative_to(artifact))
    return package.tell()


def megabytes(size: int) -> str:
    """Return a size in bytes as text in decimal megabytes."""
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
