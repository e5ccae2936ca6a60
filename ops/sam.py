"""SAM and make, as programs: building, uploading, deploying."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ops.answers import FILE, Answers
from ops.console import OpsError

BUILT = ".aws-sam/build/template.yaml"
PACKAGED = ".aws-sam/packaged.yaml"
_PARAMETERS = ".aws-sam/parameters.yaml"  # JSON is YAML, too; SAM goes by the ending


class Sam:
    """SAM's command line, in the project's directory. It prints its own progress."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def build(self) -> None:
        """Build the artifact, if it is not up to date."""
        self._run([os.environ.get("MAKE", "make"), "--no-print-directory", "build"], "the build failed")

    def package(self, answers: Answers) -> str:
        """Upload the artifact, unless it is there; return the template that refers to it."""
        self._sam("package", answers, "--template-file", BUILT, "--output-template-file", PACKAGED, "--no-progressbar")
        return (self._root / PACKAGED).read_text()

    def deploy(self, answers: Answers, parameters: Mapping[str, str]) -> None:
        """Create or update the stack from the packaged template, and wait."""
        file = self._root / _PARAMETERS  # a file, so that no value has to be quoted
        file.write_text(json.dumps(dict(parameters)))
        self._sam(
            *("deploy", answers, "--template-file", PACKAGED, "--stack-name", answers.stack),
            *("--capabilities", "CAPABILITY_IAM", "--parameter-overrides", f"file://{file}"),
            *("--no-confirm-changeset", "--no-fail-on-empty-changeset"),
        )

    def _sam(self, command: str, answers: Answers, *arguments: str) -> None:
        bucket = ["--s3-bucket", answers.bucket] if answers.bucket else ["--resolve-s3"]
        program = str(Path(sys.executable).with_name("sam"))
        options = [
            "--region",
            answers.region,
            "--config-file",
            str(self._root / FILE),
            "--config-env",
            answers.environment,
        ]
        self._run([program, command, *arguments, *bucket, *options], f"`sam {command}` failed; it says why above")

    def _run(self, command: Sequence[str], failure: str) -> None:
        environment = {**os.environ, "SAM_CLI_TELEMETRY": "0"}
        # S603: the project's own programs, with arguments that no shell reads
        done = subprocess.run(command, cwd=self._root, env=environment, check=False)  # noqa: S603
        if done.returncode != 0:
            raise OpsError(failure)
