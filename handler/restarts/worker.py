"""Act, second half: ask the platform for the restarts that are owed.

A claim is committed before each call. After a crash, the claimed restart is left alone for a while and then checked
again. So no restart is lost, and none is asked for twice.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from handler.deadline import Deadline
from handler.domain.backoff import retry_backoff
from handler.domain.model import Cause, Failure, Restart, Verdict
from handler.errors import ReconcilerError, UnfitDatabaseError
from handler.parallel import in_parallel
from handler.probes import Probe
from handler.restarts import Answer, Platform, Reply
from handler.settings import Settings
from handler.store import Claim, Restarts
from handler.telemetry import CycleLog

CALLS_AT_ONCE = 8
# The platform may take minutes, and goes on when the client hangs up. After this time the restart is uncertain; a later
# cycle sees in the row what became of it.
CALL_SECONDS = 10.0
# Restarts that are probed in addition to those that may be asked for, because some are cancelled or put off.
PROBED_BESIDES = 100
# Probing older restarts must leave time to ask for them.
PROBING_SHARE = 0.5
# A call that would be cut off at once does not begin: it would only make its restart uncertain.
SHORTEST_CALL_SECONDS = 0.5
_MOVED_ON = "the row has moved on"


@dataclass(slots=True)
class RestartResults:
    """What one cycle did about owed restarts."""

    answers: Counter[Answer] = field(default_factory=Counter)
    cancelled: int = 0


class RestartWorker:
    """Asks for the restarts of one cycle."""

    def __init__(self, store: Restarts, probe: Probe, settings: Settings, log: CycleLog) -> None:
        """Take the restarts from `store`; `probe` tells whether an older one's instance is still dead."""
        self._store = store
        self._probe = probe
        self._policy = settings.restarts
        self._heartbeat_fresh_s = settings.heartbeat_fresh_seconds
        self._timeout_s = settings.reconfirm_timeout_seconds
        self._log = log
        self._results = RestartResults()
        self._stopped_s = 0.0  # from the platform's Retry-After

    def run(
        self,
        platform: Callable[[Deadline], Platform] | None,
        deadline: Deadline,
        closing: Deadline,
        *,
        own_only: bool,
        absence_counts: bool,
    ) -> RestartResults:
        """Ask for the due restarts, as far as time allows; with `own_only`, only for those of this cycle's flips.

        Without a platform (None), nothing is asked for. `absence_counts` tells whether an instance that is not found
        counts as dead. Writes that record what happened may take until `closing`. An error is logged, and leaves the
        rest for the next cycle.
        """
        if deadline.over():
            return self._results
        try:
            for restart in self._store.cancel_moved_on(self._one_look(deadline), own_only=own_only):
                self._cancelled(restart, _MOVED_ON)
            if platform is None:
                return self._results
            most = self._policy.per_cycle + PROBED_BESIDES
            due = self._store.due(self._one_look(deadline), limit=most, own_only=own_only)
            if due:
                dead = self._still_dead(due, deadline, closing, absence_counts=absence_counts)
                self._ask_for(dead, platform(deadline), deadline, closing)
        except UnfitDatabaseError:
            raise
        except ReconcilerError as error:
            self._log.failure("restarts left for the next cycle", error)
        return self._results

    def _still_dead(
        self, due: Sequence[Restart], deadline: Deadline, closing: Deadline, *, absence_counts: bool
    ) -> list[Restart]:
        """Return the restarts whose instance is still dead. Cancel those whose instance runs; put off the undecided.

        This cycle's own flips need no further probe: they have just been probed twice.
        """
        old = {restart.workspace_id: restart for restart in due if restart.attempts or not restart.of_this_cycle}
        dead, cancelled = set(), set()
        probing = deadline.within(deadline.remaining() * PROBING_SHARE)
        for sighting in self._probe.sightings([restart.as_candidate() for restart in old.values()], probing):
            restart = old[sighting.workspace.id]
            if sighting.verdict is Verdict.DEAD or (sighting.verdict is Verdict.ABSENT and absence_counts):
                dead.add(restart.id)
            elif sighting.verdict is Verdict.RUNNING:
                cancelled.add(restart.id)
                if self._store.cancel(closing, restart):
                    self._cancelled(restart, "the instance is running")
        undecided = [restart for restart in old.values() if restart.id not in dead | cancelled]
        if undecided:
            self._store.put_off(closing, undecided, wait_s=self._policy.retry_s)
        return [restart for restart in due if restart.workspace_id not in old or restart.id in dead]

    def _ask_for(self, restarts: Sequence[Restart], platform: Platform, deadline: Deadline, closing: Deadline) -> None:
        """Claim and ask for the restarts, a few at once, and record each answer."""
        unanswered: dict[int, Restart] = {}

        def claimed() -> Iterator[Restart]:
            for restart in self._claimed(restarts, deadline):
                unanswered[restart.id] = restart
                yield restart

        def ask(restart: Restart) -> tuple[Restart, Reply]:
            try:
                return restart, platform.restart(restart, deadline.within(CALL_SECONDS))
            except Exception as error:  # noqa: BLE001 - an unexpected error must cost only its own call
                return restart, Reply(Answer.UNCERTAIN, Failure(Cause.UNEXPECTED, type(error).__name__))

        for restart, reply in in_parallel(ask, claimed(), deadline, at_once=CALLS_AT_ONCE):
            del unanswered[restart.id]
            self._settle(restart, reply, closing)
        for restart in unanswered.values():
            self._settle(restart, Reply(Answer.UNCERTAIN, Failure(Cause.OUT_OF_TIME)), closing)

    def _claimed(self, restarts: Sequence[Restart], deadline: Deadline) -> Iterator[Restart]:
        """Claim restarts one by one, up to the limit of a cycle; yield each right after its claim."""
        calls = 0
        for restart in restarts:
            all_used = calls >= self._policy.per_cycle
            if all_used or self._stopped_s or deadline.remaining() < SHORTEST_CALL_SECONDS:
                return
            try:
                claim = self._store.claim(
                    self._one_look(deadline),
                    restart,
                    uncertain_s=self._policy.uncertain_s,
                    heartbeat_fresh_s=self._heartbeat_fresh_s,
                )
            except ReconcilerError as error:
                self._log.failure("restarts left for the next cycle", error)
                return
            match claim:
                case Claim.CLAIMED:
                    calls += 1
                    yield restart
                case Claim.CANCELLED:
                    self._cancelled(restart, _MOVED_ON)
                case Claim.HEARTBEAT:
                    reason = "a heartbeat came after the flip"
                    self._log.restart("restart put off", restart, reason, attempt=restart.attempts)
                case Claim.TAKEN:
                    pass
                case _:
                    assert_never(claim)

    def _settle(self, restart: Restart, reply: Reply, closing: Deadline) -> None:
        """Record the platform's answer."""
        self._results.answers[reply.answer] += 1
        wait_s: float | None = retry_backoff(restart.refusals, self._policy.retry_s)
        if reply.answer is Answer.UNCERTAIN:
            wait_s = None  # the wait that the claim set goes on
        self._log.restart(f"restart {reply.answer}", restart, str(reply.reason), attempt=restart.attempts + 1)
        if reply.retry_after_s is not None and reply.retry_after_s > self._stopped_s:
            self._stop(reply.retry_after_s, closing)
        try:
            if reply.answer is Answer.ACCEPTED:
                self._store.accepted(closing, restart)
            else:
                self._store.record_answer(closing, restart, reply.answer, wait_s=wait_s)
        except ReconcilerError as error:  # the claim still keeps others from asking
            self._log.failure("platform's answer not recorded", error)

    def _stop(self, lasts_s: float, closing: Deadline) -> None:
        """Ask for nothing more, and have no other cycle do so: the platform said for how long."""
        self._stopped_s = lasts_s
        self._log.restarts_stopped(lasts_s)
        try:
            self._store.stop(self._one_look(closing), lasts_s=lasts_s)
        except ReconcilerError as error:  # this cycle obeys all the same
            self._log.failure("stop not recorded", error)

    def _one_look(self, deadline: Deadline) -> Deadline:
        """Return the deadline for one call to the database: a locked table must not delay the cycle."""
        return deadline.within(self._timeout_s)

    def _cancelled(self, restart: Restart, reason: str) -> None:
        self._results.cancelled += 1
        self._log.restart("restart cancelled", restart, reason, attempt=restart.attempts)
