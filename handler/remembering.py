"""What a cycle leaves for the next ones: its doubts, and how far it got. A failure here costs no flip."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from handler.deadline import Deadline
from handler.domain.coverage import Progress
from handler.domain.decide import Action, Plan
from handler.domain.doubts import DoubtChanges
from handler.domain.model import SkipReason, Verdict
from handler.errors import LeaseLostError, ReconcilerError, RowLockedError, UnfitDatabaseError
from handler.flips import FlipResults
from handler.store import Store
from handler.telemetry import CycleLog

# What a cycle can do without must not take long, in seconds.
SAVING_SECONDS = 1.0
PURGE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Remembering:
    """Writes the memory of one applied cycle. `closing` is the deadline of writes that happen even at its end."""

    store: Store
    closing: Deadline
    log: CycleLog
    _saved: list[Progress] = field(default_factory=list)

    def tend(self, *, longest_wait_s: float) -> None:
        """Take back times that lie too far ahead, and forget the doubts whose rows have moved on."""
        take_back = partial(self.store.memory.take_back_times, longest_wait_s=longest_wait_s)
        self._attempt("times not taken back", take_back)
        self._attempt("doubts not tended", self.store.doubts.tend)

    def save_doubts(self, changes: DoubtChanges, *, seconds: float = SAVING_SECONDS) -> None:
        """Save the doubts, the most important ones first, for so many seconds."""
        self._attempt("doubts not saved", lambda time_left: self.store.doubts.save(time_left, changes), seconds)

    def note_outcomes(self, plan: Plan, changes: DoubtChanges, flips: FlipResults) -> None:
        """Note why what looks dead was not flipped; forget what the second probe found alive."""
        alive = flips.seen_again(Verdict.RUNNING)
        found = flips.seen_again(Verdict.TRANSITION)
        if alive or found:
            self.save_doubts(DoubtChanges((), (), tuple(alive), tuple(found), None))
        written = {one.workspace.id for one in (*changes.new, *changes.again)}
        reasons = {one.sighting.workspace.id: reason for one in plan.decisions if (reason := _REASON.get(one.action))}
        reasons |= flips.reasons
        noted = {one: str(reason) for one, reason in reasons.items() if one in written}
        if noted:
            self._attempt("doubts not saved", lambda time_left: self.store.doubts.set_reasons(time_left, noted))

    def save_coverage(self, progress: Progress) -> Progress:
        """Save where the next cycle begins; return how far this one got, of which a locked row leaves nothing.

        In a quiet cycle nothing has changed by its end, and what was saved before it acted is not written again.
        """
        if self._saved == [progress]:
            return progress
        try:
            self.store.memory.save_coverage(self.closing, progress)
        except RowLockedError as error:
            self.log.failure("coverage not saved", error)
            return replace(progress, completed_pass=False)
        self._saved[:] = [progress]
        return progress

    def purge(self, deadline: Deadline) -> None:
        """Delete a little of what is of no use any more, if there is time."""
        if not deadline.over():
            self._attempt("nothing purged", lambda _: self.store.memory.purge(deadline.within(PURGE_SECONDS)))

    def _attempt(self, failed: str, write: Callable[[Deadline], None], seconds: float = SAVING_SECONDS) -> None:
        try:
            write(self.closing.within(seconds))
        except (UnfitDatabaseError, LeaseLostError):
            raise
        except ReconcilerError as error:
            self.log.failure(failed, error)


_REASON = {Action.STOP: SkipReason.BREAKER_OPEN, Action.HOLD: SkipReason.ON_HOLD}
