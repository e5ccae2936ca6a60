"""Invokes the handler: in this process, warm or cold, or in a separate one."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from handler import app, events, process
from sandbox.invocation import Invocation
from sandbox.lambda_context import LambdaContext
from tests.support.events import APPLY

# What a process needs to run at all.
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG")


class Invoke:
    """`invoke(event, NAME="value")` calls the handler and returns its report.

    The environment is complete and clean: `environment` and the call's own variables (None removes one), and nothing
    from the machine. Calls with the same variables find the process warm, as in Lambda; `cold` starts afresh.
    """

    def __init__(self, environment: Mapping[str, str], *, remaining_s: float = 55.0) -> None:
        self.environment = dict(environment)
        self._remaining_s = remaining_s

    def __call__(self, event: Any = APPLY, /, **changes: str | None) -> dict[str, Any]:
        with self._in_environment(changes):
            return app.lambda_handler(event, LambdaContext(self._remaining_s))

    def batch(self, event: Any, /, **changes: str | None) -> dict[str, Any]:
        """Call the handler of SQS batches, and return its answer."""
        with self._in_environment(changes):
            return events.lambda_handler(event, LambdaContext(self._remaining_s))

    def with_remaining(self, seconds: float) -> "Invoke":
        """Return the same, with this many seconds left until Lambda's timeout."""
        return Invoke(self.environment, remaining_s=seconds)

    def in_process(self, event: Any = APPLY, /, **changes: str | None) -> Invocation:
        """Start the same in a separate process, which can be killed or run beside others."""
        return Invocation(event, self._changed(changes), remaining_s=self._remaining_s)

    def cold(self) -> None:
        """Forget everything that stays warm between invocations."""
        process.forget()

    def _changed(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        merged = {**self.environment, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    @contextmanager
    def _in_environment(self, changes: Mapping[str, str | None]) -> Iterator[None]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with patch.dict(os.environ, {**kept, **self._changed(changes)}, clear=True):
            yield
