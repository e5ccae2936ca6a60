"""The tools in environments of their own, which `make test` sets up."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Without the developer's account: nothing here may reach AWS.
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "SAM_CLI_TELEMETRY": "0",
}


def tool(environment: str, name: str) -> str:
    """Return the path of a program in .venv-`environment`."""
    path = ROOT / f".venv-{environment}" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run `make test`, or `make .venv-{environment}/.installed`")
    return str(path)


def run(command: Sequence[str], *, stdin: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run a tool from the project's root; return its output. If it fails, the failure shows all output."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **_ENVIRONMENT, **(environment or {})},
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout
