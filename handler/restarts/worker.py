"""Act, second half: look after the restarts, and ask the platform for those that are due."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from handler.deadline import Deadline
from handler.domain.evidence import DatabaseClock
from handler.domain.restarts import Circumstances
from handler.errors import ReconcilerError, UnfitDatabaseError
from handler.probes import Probe
from handler.restarts import Answer, Platform
from handler.restarts.asking import Asking
from handler.restarts.watching import Watching
from handler.settings import Settings
from handler.store import Store
from handler.telemetry import CycleLog


@dataclass(frozen=True, slots=True)
class RestartResults:
    """What one cycle did about owed restarts."""

    answers: Counter[Answer] = field(default_factory=Counter)
    cancelled: int = 0


class RestartWorker:
    """Looks after, and asks for, the restarts of one cycle."""

    def __init__(
        self,
        store: Store,
        probe: Probe,
        settings: Settings,
        *,
        clock: DatabaseClock,
        now: Circumstances,
        workspace_ids: Sequence[str] | None,
        most: int,
        log: CycleLog,
    ) -> None:
        """Take the restarts from `store`: those of these workspaces, or (None) all. Ask for `most` at most."""
        self._watching = Watching(store.watches, probe, settings, now=now, workspace_ids=workspace_ids, log=log)
        self._asking = Asking(
            store.restarts, probe, settings, clock=clock, now=now, workspace_ids=workspace_ids, most=most, log=log
        )
        self._now = now
        self._log = log

    def run(
        self,
        platform: Callable[[Deadline], Platform] | None,
        deadline: Deadline,
        closing: Deadline,
        *,
        release: bool,
    ) -> RestartResults:
        """Look after the restarts, and ask for those that are due, as far as time allows.

        Without a platform (None), nothing is asked for. With `release`, an open breaker does not stop the open
        restarts any more. Writes that record what happened may take until `closing`. An error is logged, and leaves the
        rest for the next cycle.
        """
        if deadline.over():
            return RestartResults()
        try:
            self._steps(platform, deadline, closing, release=release)
        finally:
            self._log.the_rest()
        return RestartResults(self._asking.answers, self._asking.cancelled + self._watching.cancelled)

    def _steps(
        self,
        platform: Callable[[Deadline], Platform] | None,
        deadline: Deadline,
        closing: Deadline,
        *,
        release: bool,
    ) -> None:
        """Take one step after the other. An error costs the rest of its own step; of the first one, everything."""
        to_probe = None
        with self._logged():
            to_probe = self._watching.note(deadline, release=release)
        if to_probe is None:
            return
        groups = iter(()) if platform is None else self._asking.ask_for_the_due(platform, deadline, closing)
        with self._logged():
            next(groups, None)  # the cycle has reserved time for these; the others leave some to the watched
        with self._logged():
            if to_probe and not deadline.over():
                self._watching.owe_again(to_probe, deadline, closing, released=release)
        with self._logged():
            if self._now.breaker_open and not deadline.over():
                self._watching.look_at_kept_back(deadline, closing)
        with self._logged():
            for _ in groups:
                pass

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Log an error, which leaves what it concerns for the next cycle."""
        try:
            yield
        except UnfitDatabaseError:
            raise
        except ReconcilerError as error:
            self._log.failure("restarts left for the next cycle", error)
