"""Act, first half: probe again what looks dead, and flip or adopt at once what still does."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from handler.deadline import Deadline
from handler.domain.decide import confirms
from handler.domain.evidence import Confirmed
from handler.domain.model import Sighting, SkipReason, Verdict
from handler.domain.report import Flip
from handler.errors import ReconcilerError, RowLockedError, StoreError, UnfitDatabaseError
from handler.parallel import gathered
from handler.probes import Probe
from handler.settings import Settings
from handler.store import FlipOutcomes, Flipped, FlipPolicy, Flips
from handler.store.sqlstate import concerns_a_row
from handler.telemetry import CycleLog

# Workspaces that are flipped together.
SET = 200
# This many sets are probed together, and then flipped one after the other. Few, so that each flip closely follows its
# second probe: even if every set takes as long as it may, the last one begins in time.
SETS_PROBED = 3
# A set closes when its oldest evidence is this old, however few there are.
OLDEST_IN_SET_SECONDS = 2.0
# The platform's rows are locked for no longer than this: it may want them.
LONGEST_LOCK_SECONDS = 1.0
# If this many rows fail alike at the very beginning, the others probably would, too: until a set succeeds, no further
# one is split.
MOST_FAILURES_ALIKE = 5

_WILL_PASS = (SkipReason.OUT_OF_TIME, SkipReason.RECONFIRM_ERROR)

# `Flips.flip` or `Flips.would_flip`. A SkipReason says why a workspace is not flipped.
Attempt = Callable[[Deadline, Sequence[Confirmed], FlipPolicy], FlipOutcomes]


@dataclass(frozen=True, slots=True)
class Attempted:
    """The outcome for one workspace. The sighting is the second one, or the first if no time was left for another.

    `at` is when the outcome was known, by the deadline's clock.
    """

    sighting: Sighting
    outcome: Flipped | SkipReason
    at: float


@dataclass(frozen=True, slots=True)
class FlipResults:
    """The outcome for every workspace that was to be flipped or adopted."""

    attempts: tuple[Attempted, ...] = ()

    @property
    def flips(self) -> tuple[Flip, ...]:
        """The workspaces that were flipped or adopted, or that a dry run would flip or adopt."""
        return tuple(
            Flip(workspace.id, workspace.instance_id, one.sighting.state, adopted=workspace.offline)
            for one in self.attempts
            if isinstance(one.outcome, Flipped)
            for workspace in [one.sighting.workspace]
        )

    @property
    def skipped(self) -> Counter[SkipReason]:
        """How many workspaces were not flipped, by reason."""
        return Counter(self.reasons.values())

    @property
    def reasons(self) -> dict[str, SkipReason]:
        """Why workspaces, by id, were not flipped."""
        return {one.sighting.workspace.id: one.outcome for one in self.attempts if isinstance(one.outcome, SkipReason)}

    @property
    def out_of_time(self) -> list[str]:
        """The ids of the workspaces for which no time was left."""
        return [one for one, reason in self.reasons.items() if reason is SkipReason.OUT_OF_TIME]

    @property
    def cancelled(self) -> int:
        """How many older restarts the flips cancelled."""
        return sum(isinstance(one.outcome, Flipped) and one.outcome.superseded is not None for one in self.attempts)

    @property
    def unjudged(self) -> set[str]:
        """The ids of the workspaces that may well be dead, but could not be flipped for a reason that will pass."""
        unknown = self.seen_again(Verdict.UNKNOWN)
        return {*unknown, *(one for one, reason in self.reasons.items() if reason in _WILL_PASS)}

    def seen_again(self, *verdicts: Verdict) -> list[str]:
        """Return the ids of the workspaces that the second probe saw with such a verdict, so that they were skipped."""
        return [
            one.sighting.workspace.id
            for one in self.attempts
            if one.outcome is SkipReason.NOT_CONFIRMED and one.sighting.verdict in verdicts
        ]


class Flipper:
    """Flips and adopts the workspaces of one cycle."""

    def __init__(self, store: Flips, probe: Probe, policy: FlipPolicy, settings: Settings, log: CycleLog) -> None:
        """Judge the rows by `policy`. A set's transaction may take a second at most."""
        self._store = store
        self._probe = probe
        self._policy = policy
        self._timeout_s = min(settings.reconfirm_timeout_seconds, LONGEST_LOCK_SECONDS)
        self._log = log
        self._set_size = SET
        self._failed_alike = ("", 0)
        self._succeeded = False
        self._with_others: set[str] = set()  # failed as a part of their set, which may have been another row's fault

    def flip(self, sightings: Sequence[Sighting], deadline: Deadline) -> FlipResults:
        """Flip or adopt the workspaces whose death a second probe confirms, as far as time allows."""
        return self._run(
            sightings, self._store.flip, deadline, flipped="workspace flipped", adopted="workspace adopted"
        )

    def rehearse(self, sightings: Sequence[Sighting], deadline: Deadline, *, logged: bool = True) -> FlipResults:
        """Return what `flip` would do, and write nothing."""
        if not logged:
            return FlipResults(tuple(self._attempts(sightings, self._store.would_flip, deadline)))
        return self._run(sightings, self._store.would_flip, deadline, flipped="would flip", adopted="would adopt")

    def _run(
        self, sightings: Sequence[Sighting], attempt: Attempt, deadline: Deadline, *, flipped: str, adopted: str
    ) -> FlipResults:
        attempts = []
        for attempted in self._attempts(sightings, attempt, deadline):
            self._log_outcome(attempted, adopted if attempted.sighting.workspace.offline else flipped)
            attempts.append(attempted)
        self._log.the_rest()
        return FlipResults(tuple(attempts))

    def _attempts(self, sightings: Sequence[Sighting], attempt: Attempt, deadline: Deadline) -> Iterator[Attempted]:
        """Attempt every flip; and once more those that came too late, or failed with others in their set."""
        again: dict[str, Attempted] = {}
        for one in self._attempts_once(sightings, attempt, deadline):
            if one.outcome is SkipReason.OUT_OF_TIME or one.sighting.workspace.id in self._with_others:
                again[one.sighting.workspace.id] = one
            else:
                yield one
        if self._hopeless or deadline.over():
            yield from again.values()
        else:
            yield from self._attempts_once([one for one in sightings if one.workspace.id in again], attempt, deadline)

    def _attempts_once(
        self, sightings: Sequence[Sighting], attempt: Attempt, deadline: Deadline
    ) -> Iterator[Attempted]:
        remaining = iter(sightings)
        # Sets become smaller when they take too long. Fewer than one whole set are not worth a call.
        while batch := {one.workspace.id: one for one in islice(remaining, max(SET, SETS_PROBED * self._set_size))}:
            seconds = self._probe.sightings([one.workspace for one in batch.values()], deadline)
            in_sets = gathered(seconds, deadline, most=SET, longest_s=OLDEST_IN_SET_SECONDS, leave_s=self._timeout_s)
            for together in in_sets:
                seen_twice = [(batch.pop(second.workspace.id), second) for second in together]
                yield from self._attempted(seen_twice, attempt, deadline)
            for first in batch.values():
                yield Attempted(first, SkipReason.OUT_OF_TIME, deadline.now())

    def _attempted(
        self, seen_twice: Sequence[tuple[Sighting, Sighting]], attempt: Attempt, deadline: Deadline
    ) -> Iterator[Attempted]:
        """Attempt to flip those that the second sighting confirms, in sets that are small enough to end in time."""
        confirmed = []
        for first, second in seen_twice:
            if confirms(first, second):
                confirmed.append(Confirmed(first, second))
            else:
                cut_off = second.verdict is Verdict.UNKNOWN and deadline.over()
                reason = SkipReason.OUT_OF_TIME if cut_off else SkipReason.NOT_CONFIRMED
                yield Attempted(second, reason, deadline.now())
        while confirmed:
            part, confirmed = confirmed[: self._set_size], confirmed[self._set_size :]
            for one, outcome in zip(part, self._outcomes(part, attempt, deadline), strict=True):
                yield Attempted(one.second, outcome, deadline.now())

    def _outcomes(
        self, confirmed: Sequence[Confirmed], attempt: Attempt, deadline: Deadline
    ) -> list[Flipped | SkipReason]:
        """Flip a set, and return the outcomes in its order. An error of a single row splits it."""
        evidence_s = min(one.expires_at for one in confirmed) - deadline.now()
        if deadline.over() or evidence_s <= 0.0:
            return [SkipReason.OUT_OF_TIME] * len(confirmed)
        try:
            outcomes = attempt(deadline.within(min(self._timeout_s, evidence_s)), confirmed, self._policy)
        except UnfitDatabaseError:
            raise
        except ReconcilerError as error:
            return self._failed(error, confirmed, attempt, deadline)
        self._succeeded = True
        return [outcomes[one.second.workspace.id] for one in confirmed]

    def _failed(
        self, error: ReconcilerError, confirmed: Sequence[Confirmed], attempt: Attempt, deadline: Deadline
    ) -> list[Flipped | SkipReason]:
        half = len(confirmed) // 2
        of_a_row = isinstance(error, StoreError) and concerns_a_row(error)
        if half and of_a_row and not self._hopeless:
            parts = (confirmed[:half], confirmed[half:])
            return [outcome for part in parts for outcome in self._outcomes(part, attempt, deadline)]
        if half:
            self._with_others.update(one.second.workspace.id for one in confirmed)
            if not of_a_row:  # it took too long, or the connection broke: the next set is smaller
                self._set_size = half
        else:
            kind, (same, count) = self._log.kind_of(error), self._failed_alike
            self._failed_alike = (kind, count + 1 if kind == same else 1)
        if isinstance(error, RowLockedError):
            return [SkipReason.ROW_LOCKED] * len(confirmed)
        for one in confirmed:
            self._log.flip_failed(one.second, error)
        return [SkipReason.OUT_OF_TIME if deadline.over() else SkipReason.RECONFIRM_ERROR] * len(confirmed)

    @property
    def _hopeless(self) -> bool:
        return not self._succeeded and self._failed_alike[1] >= MOST_FAILURES_ALIKE

    def _log_outcome(self, attempted: Attempted, message: str) -> None:
        sighting, outcome = attempted.sighting, attempted.outcome
        if isinstance(outcome, SkipReason):
            self._log.sighting_capped("flip skipped", sighting, outcome)
            return
        self._log.sighting_capped(message, sighting, f"{sighting.state}, confirmed by a second probe")
        if outcome.crash_loop.backoff_s:
            self._log.backing_off(sighting, outcome.crash_loop)
        if outcome.superseded is not None:
            self._log.restart("restart cancelled", outcome.superseded, "the workspace was online again")
