"""A cycle of another process, kept in the middle."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.stage import Stage

TIMEOUT_S = 30.0


@contextmanager
def under_way(stage: Stage, event: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """Keep another process in the middle of its cycle, waiting for the control plane's first answer.

    Yields a function that lets it finish, and returns its report.
    """
    waiting, go_on = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        waiting.set()
        go_on.wait(TIMEOUT_S)

    def finish() -> dict[str, Any]:
        go_on.set()
        return other.wait(TIMEOUT_S)

    stage.control_plane.script.before(wait, nth=1)
    with stage.invoke.in_process(event, **stage.settings("control_plane")) as other:
        try:
            assert waiting.wait(TIMEOUT_S)
            yield finish
        finally:
            go_on.set()
