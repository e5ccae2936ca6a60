"""Act, first half: probe again what looks dead, and flip at once what still does."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from handler.deadline import Deadline
from handler.domain.decide import confirms
from handler.domain.model import FOUND, Restart, Sighting, SkipReason
from handler.domain.report import Flip
from handler.errors import LeaseLostError, ReconcilerError, RowLockedError, UnfitDatabaseError
from handler.probes import Probe
from handler.settings import Settings
from handler.store import Flipped, FlipPolicy, Flips
from handler.telemetry import CycleLog

# Small batches, so each flip closely follows its second probe.
BATCH = 200

# `Flips.flip` or `Flips.would_flip`. A SkipReason says why the workspace is not flipped.
Attempt = Callable[[Deadline, Sighting, FlipPolicy], Flipped | SkipReason]


@dataclass(frozen=True, slots=True)
class Attempted:
    """The outcome for one workspace. The sighting is the second one, or the first if no time was left for another."""

    sighting: Sighting
    outcome: Flipped | SkipReason


@dataclass(frozen=True, slots=True)
class FlipResults:
    """The outcome for every workspace that was to be flipped."""

    attempts: tuple[Attempted, ...] = ()

    @property
    def flips(self) -> tuple[Flip, ...]:
        """The workspaces that were flipped, or that a dry run would flip."""
        return tuple(
            Flip(one.sighting.workspace.id, one.sighting.workspace.instance_id, one.sighting.state)
            for one in self.attempts
            if isinstance(one.outcome, Flipped)
        )

    @property
    def skipped(self) -> Counter[SkipReason]:
        """How many workspaces were not flipped, by reason."""
        return Counter(one.outcome for one in self.attempts if isinstance(one.outcome, SkipReason))

    @property
    def out_of_time(self) -> list[str]:
        """The ids of the workspaces for which no time was left."""
        return [one.sighting.workspace.id for one in self.attempts if one.outcome is SkipReason.OUT_OF_TIME]

    @property
    def found_again(self) -> list[str]:
        """The ids of the workspaces whose instance the second probe found: their absences are to be forgotten."""
        return [
            one.sighting.workspace.id
            for one in self.attempts
            if one.outcome is SkipReason.NOT_CONFIRMED and one.sighting.verdict in FOUND
        ]

    @property
    def superseded(self) -> list[Restart]:
        """The older restarts that the flips cancelled."""
        return [
            restart for one in self.attempts if isinstance(one.outcome, Flipped) for restart in one.outcome.superseded
        ]


class Flipper:
    """Flips the workspaces of one cycle."""

    def __init__(self, store: Flips, probe: Probe, settings: Settings, selected_at: str, log: CycleLog) -> None:
        """Flip candidates that were selected at `selected_at`, a time in the database's own text."""
        self._store = store
        self._probe = probe
        self._policy = FlipPolicy(selected_at, settings.heartbeat_fresh_seconds, settings.crash_loop)
        self._timeout_s = settings.reconfirm_timeout_seconds
        self._log = log

    def flip(self, sightings: Sequence[Sighting], deadline: Deadline) -> FlipResults:
        """Flip the workspaces whose death a second probe confirms, as far as time allows."""
        return self._run(sightings, self._store.flip, "workspace flipped", deadline)

    def rehearse(self, sightings: Sequence[Sighting], deadline: Deadline) -> FlipResults:
        """Return what `flip` would do, and write nothing."""
        return self._run(sightings, self._store.would_flip, "would flip", deadline)

    def _run(self, sightings: Sequence[Sighting], attempt: Attempt, message: str, deadline: Deadline) -> FlipResults:
        attempts = []
        for attempted in self._attempts(sightings, attempt, deadline):
            self._log_outcome(attempted, message)
            attempts.append(attempted)
        self._log.the_rest()
        return FlipResults(tuple(attempts))

    def _attempts(self, sightings: Sequence[Sighting], attempt: Attempt, deadline: Deadline) -> Iterator[Attempted]:
        remaining = iter(sightings)
        while batch := {one.workspace.id: one for one in islice(remaining, BATCH)}:
            for second in self._probe.sightings([one.workspace for one in batch.values()], deadline):
                first = batch.pop(second.workspace.id)
                if confirms(first, second):
                    yield Attempted(second, self._flip_one(attempt, second, deadline))
                else:
                    yield Attempted(second, SkipReason.NOT_CONFIRMED)
            for first in batch.values():
                yield Attempted(first, SkipReason.OUT_OF_TIME)

    def _flip_one(self, attempt: Attempt, sighting: Sighting, deadline: Deadline) -> Flipped | SkipReason:
        if deadline.over():
            return SkipReason.OUT_OF_TIME
        try:
            return attempt(deadline.within(self._timeout_s), sighting, self._policy)
        except RowLockedError:
            return SkipReason.ROW_LOCKED
        except LeaseLostError:  # it outlasts the cycle, so the time is over
            return SkipReason.OUT_OF_TIME
        except UnfitDatabaseError:
            raise
        except ReconcilerError as error:
            self._log.flip_failed(sighting, error)
            return SkipReason.OUT_OF_TIME if deadline.over() else SkipReason.RECONFIRM_ERROR

    def _log_outcome(self, attempted: Attempted, message: str) -> None:
        sighting, outcome = attempted.sighting, attempted.outcome
        if isinstance(outcome, SkipReason):
            self._log.sighting_capped("flip skipped", sighting, outcome)
            return
        self._log.sighting(message, sighting, f"{sighting.state}, confirmed by a second probe")
        if outcome.crash_loop.backoff_s:
            self._log.backing_off(sighting, outcome.crash_loop)
        for restart in outcome.superseded:
            self._log.restart("restart cancelled", restart, "the workspace was online again", attempt=restart.attempts)
