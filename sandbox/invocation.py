"""Runs `sandbox.invoke` in a process of its own, and reads its output and its report."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

_CHECKOUT = Path(__file__).parent.parent


class Invocation:
    """A running invocation. Its process gets `environment` and this process's PATH, nothing else.

    Iterating yields the handler's stdout line by line: JSON objects as dictionaries, anything else as strings. End it
    with `wait` or `kill`; leaving the `with` block kills it if it still runs.
    """

    def __init__(
        self, event: Any, environment: Mapping[str, str], *, handler: str = "handler.app", remaining_s: float = 55.0
    ) -> None:
        reading, writing = os.pipe()
        self._report = os.fdopen(reading, "rb")
        try:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "sandbox.invoke", "-"),
                    *("--handler", handler, "--report", f"/dev/fd/{writing}", "--remaining", str(remaining_s)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[writing],
                cwd=_CHECKOUT,
                start_new_session=True,  # so that Ctrl-C reaches only the process that started it
                env={"PATH": os.environ.get("PATH", os.defpath), **environment},
                text=True,
            )
        finally:
            os.close(writing)
        if self.process.stdin is not None:
            self.process.stdin.write(json.dumps(event))
            self.process.stdin.close()
            self.process.stdin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._report.closed:
            self.kill()

    def __iter__(self) -> Iterator[dict[str, Any] | str]:
        for line in self.process.stdout or ():
            yield _parsed(line.rstrip("\n"))

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait for the end and return the report.

        Raises InvocationError if the handler raised, subprocess.TimeoutExpired if it took longer than `timeout_s`.
        """
        with self._report:
            _, errors = self.process.communicate(timeout=timeout_s)
            report = self._report.read()
        if self.process.returncode != 0:
            raise InvocationError(self.process.returncode, errors)
        result: dict[str, Any] = json.loads(report)
        return result

    def kill(self) -> None:
        """Kill the process at once (SIGKILL), like a crash."""
        self.process.kill()
        self.process.communicate()
        self._report.close()


class InvocationError(Exception):
    """The handler raised, or its process was killed; `errors` is its stderr."""

    def __init__(self, exit_code: int, errors: str) -> None:
        super().__init__(f"the invocation ended with {exit_code}:\n{errors}")
        self.exit_code = exit_code
        self.errors = errors

    @property
    def last_line(self) -> str:
        """The exception, without its traceback."""
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else str(self)


def _parsed(line: str) -> dict[str, Any] | str:
    try:
        value = json.loads(line)
    except ValueError:
        return line
    return value if isinstance(value, dict) else line
