"""What a cycle leaves for the next ones: its doubts, and how far it got. A failure here costs no flip."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from handler.deadline import Deadline
from handler.domain.coverage import Progress
from handler.domain.decide import Plan
from handler.domain.doubts import DoubtChanges
from handler.domain.model import Verdict
from handler.errors import LeaseLostError, ReconcilerError, RowLockedError, UnfitDatabaseError
from handler.flips import FlipResults
from handler.store import Store
from handler.telemetry import CycleLog

# What a cycle can do without must not take long, in seconds.
SAVING_SECONDS = 1.0
PURGE_SECONDS = 1.0


class Remembering:
    """Writes the memory of one applied cycle."""

    def __init__(self, store: Store, closing: Deadline, log: CycleLog) -> None:
        """Write until `closing`, the deadline of writes that happen even at a cycle's end."""
        self._store = store
        self._closing = closing
        self._log = log
        self._saved: Progress | None = None

    def tend(self, *, longest_wait_s: float) -> None:
        """Take back times that lie too far ahead, take up the shard, and forget the doubts whose rows have moved on."""
        take_back = partial(self._store.memory.take_back_times, longest_wait_s=longest_wait_s)
        self._attempt("times not taken back", take_back)
        self._attempt("coverage not taken up", self._store.memory.take_up)
        self._attempt("doubts not tended", self._store.doubts.tend)

    def save_doubts(self, changes: DoubtChanges, *, seconds: float = SAVING_SECONDS) -> None:
        """Save the doubts, the most important ones first, for this many `seconds` at most."""
        self._attempt("doubts not saved", lambda time_left: self._store.doubts.save(time_left, changes), seconds)

    def note_outcomes(self, plan: Plan, changes: DoubtChanges, flips: FlipResults) -> None:
        """Note why what looks dead was not flipped; forget what the second probe found alive."""
        alive = flips.seen_again(Verdict.RUNNING)
        found = flips.seen_again(Verdict.TRANSITION)
        if alive or found:
            self.save_doubts(DoubtChanges((), (), tuple(alive), tuple(found), None))
        written = {one.workspace.id for one in (*changes.new, *changes.again)}
        reasons = {one.sighting.workspace.id: one.skipped for one in plan.decisions if one.skipped} | flips.reasons
        noted = {one: str(reason) for one, reason in reasons.items() if one in written}
        if noted:
            self._attempt("doubts not saved", lambda time_left: self._store.doubts.set_reasons(time_left, noted))

    def save_coverage(self, progress: Progress) -> Progress:
        """Save where the next cycle begins; return the progress. If the row is locked, no pass is completed.

        What was saved before the cycle acted is not written again if nothing has changed by its end.
        """
        if self._saved == progress:
            return progress
        try:
            self._store.memory.save_coverage(self._closing, progress)
        except RowLockedError as error:
            self._log.failure("coverage not saved", error)
            return replace(progress, completed_pass=False)
        self._saved = progress
        return progress

    def purge(self, deadline: Deadline) -> None:
        """Delete a little of what is of no use any more, if there is time."""
        if not deadline.over():
            self._attempt("nothing purged", lambda _: self._store.memory.purge(deadline.within(PURGE_SECONDS)))

    def _attempt(self, failed: str, write: Callable[[Deadline], None], seconds: float = SAVING_SECONDS) -> None:
        try:
            write(self._closing.within(seconds))
        except (UnfitDatabaseError, LeaseLostError):
            raise
        except ReconcilerError as error:
            self._log.failure(failed, error)
