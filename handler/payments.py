"""Act, second half: have the platform restart what is owed a restart.

A claim is committed before each call. A crash after it leaves a debt that nobody touches for a
while, and then looks at anew: nothing is lost, and nothing is asked for twice.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import assert_never

from handler.deadline import Deadline
from handler.errors import ReconcilerError
from handler.model import Debt, Report, Verdict
from handler.parallel import in_parallel
from handler.probes import Probe
from handler.registry import Debts
from handler.restarts import CALL_SECONDS, CALLS_AT_ONCE, Answer, Platform, Reply, pause
from handler.settings import Settings
from handler.telemetry import Story

# More are looked at than may be asked for, since some turn out void or have to be left.
LOOKED_AT_BESIDES = 100
# Looking again at old debts must not eat the time to pay any.
PROBING_SHARE = 0.5
# A call that would be cut off at once is not begun: it would only make its debt uncertain.
SHORTEST_CALL_SECONDS = 0.5
_MOVED_ON = "the row has moved on"

_WORDS = {
    Answer.PAID: "requested",
    Answer.REFUSED: "failed",
    Answer.BLOCKED: "blocked",
    Answer.UNCERTAIN: "uncertain",
}


class Payments:
    """The restarts that one cycle asks for."""

    def __init__(self, debts: Debts, probe: Probe, settings: Settings, report: Report, story: Story) -> None:
        """Pay `debts`; `probe` tells whether an instance has come alive meanwhile."""
        self._debts = debts
        self._probe = probe
        self._settings = settings
        self._report = report
        self._story = story
        self._told_to_wait_s: float | None = None

    def pay(
        self,
        platform: Callable[[Deadline], Platform] | None,
        deadline: Deadline,
        closing: Deadline,
        *,
        own_only: bool,
        absence_counts: bool,
    ) -> None:
        """Ask for what is due, as far as the time goes; `own_only` leaves other cycles' debts alone.

        `absence_counts` tells whether an instance that is not found is to be believed to be gone.
        """
        if deadline.over():
            return
        try:
            for debt in self._debts.follow_rows(self._briefly(deadline), own_only=own_only):
                self._void(debt, _MOVED_ON)
            if platform is None:
                return
            most = self._settings.restarts_per_cycle + LOOKED_AT_BESIDES
            due = self._debts.due(self._briefly(deadline), limit=most, own_only=own_only)
            if due:
                dead = self._still_dead(due, deadline, closing, absence_counts=absence_counts)
                self._ask_for(dead, platform(deadline), deadline, closing)
        except ReconcilerError as error:
            self._story.trouble("restarts left for the next cycle", error)

    def _still_dead(
        self, due: Iterable[Debt], deadline: Deadline, closing: Deadline, *, absence_counts: bool
    ) -> list[Debt]:
        """Return the debts whose instance is dead for all that is known; void those of the living."""
        due = list(due)
        old = {debt.workspace_id: debt for debt in due if debt.attempts or not debt.of_this_cycle}
        dead, voided = set(), set()
        probing = deadline.within(deadline.remaining() * PROBING_SHARE)
        for sighting in self._probe.sightings([debt.as_candidate() for debt in old.values()], probing):
            debt = old[sighting.workspace.id]
            if sighting.verdict is Verdict.DEAD or (sighting.verdict is Verdict.ABSENT and absence_counts):
                dead.add(debt.id)
            elif sighting.verdict is Verdict.RUNNING:
                voided.add(debt.id)
                self._debts.void(closing, debt)
                self._void(debt, "the instance is running")
        left = [debt for debt in old.values() if debt.id not in dead | voided]
        if left:
            self._debts.leave(closing, left, pause_s=self._settings.restart_retry_seconds)
        return [debt for debt in due if debt.workspace_id not in old or debt.id in dead]

    def _ask_for(self, debts: Sequence[Debt], platform: Platform, deadline: Deadline, closing: Deadline) -> None:
        asked: set[int] = set()
        unanswered: dict[int, Debt] = {}

        def claimed() -> Iterator[Debt]:
            for debt in self._claimed(debts, deadline):
                asked.add(debt.id)
                unanswered[debt.id] = debt
                yield debt

        def ask(debt: Debt) -> tuple[Debt, Reply]:
            try:
                return debt, platform.restart(debt, deadline.within(CALL_SECONDS))
            except Exception as error:  # noqa: BLE001 - one call's surprise must not cost the others
                return debt, Reply(Answer.UNCERTAIN, f"unexpected_{type(error).__name__}")

        for debt, reply in in_parallel(ask, claimed(), deadline, at_once=CALLS_AT_ONCE):
            del unanswered[debt.id]
            self._settle(debt, reply, closing)
        for debt in unanswered.values():
            self._settle(debt, Reply(Answer.UNCERTAIN, "out_of_time"), closing)
        if self._told_to_wait_s is not None:
            unasked = [debt for debt in debts if debt.id not in asked]
            self._debts.leave(closing, unasked, pause_s=self._told_to_wait_s)

    def _claimed(self, debts: Iterable[Debt], deadline: Deadline) -> Iterator[Debt]:
        """Yield debts right after claiming each, as many as one cycle may ask for."""
        calls = 0
        for debt in debts:
            full = calls >= self._settings.restarts_per_cycle
            if full or self._told_to_wait_s is not None or deadline.remaining() < SHORTEST_CALL_SECONDS:
                return
            try:
                uncertain_s = self._settings.restart_uncertain_seconds
                fresh_s = self._settings.heartbeat_fresh_seconds
                claim = self._debts.claim(
                    self._briefly(deadline), debt, uncertain_s=uncertain_s, heartbeat_fresh_s=fresh_s
                )
            except ReconcilerError as error:
                self._story.trouble("restarts left for the next cycle", error)
                return
            if claim == "claimed":
                calls += 1
                yield debt
            elif claim == "void":
                self._void(debt, _MOVED_ON)
            elif claim == "alive":
                self._story.restart("restart put off", debt, "a heartbeat came after the flip", attempt=debt.attempts)

    def _settle(self, debt: Debt, reply: Reply, closing: Deadline) -> None:
        counts = self._report.restarts
        pause_s: float | None = pause(debt.refusals, self._settings.restart_retry_seconds)
        match reply.answer:
            case Answer.PAID:
                counts.requested += 1
            case Answer.REFUSED:
                counts.failed += 1
            case Answer.BLOCKED:
                pass  # it is counted at the end, with those of earlier cycles
            case Answer.UNCERTAIN:
                counts.uncertain += 1
                pause_s = None  # as the claim said
            case _:
                assert_never(reply.answer)
        if reply.retry_after_s is not None:
            pause_s = self._told_to_wait_s = reply.retry_after_s
        self._story.restart(f"restart {_WORDS[reply.answer]}", debt, reply.reason, attempt=debt.attempts + 1)
        try:
            if reply.answer is Answer.PAID:
                self._debts.paid(closing, debt)
            else:
                self._debts.postpone(closing, debt, reply.answer, pause_s=pause_s)
        except ReconcilerError as error:  # the claim keeps it safe
            self._story.trouble("answer of the platform not noted", error)

    def _briefly(self, deadline: Deadline) -> Deadline:
        """Return the time for one look at the database: a table that somebody locks must not hold the cycle."""
        return deadline.within(self._settings.reconfirm_timeout_seconds)

    def _void(self, debt: Debt, reason: str) -> None:
        self._report.restarts.void += 1
        self._story.restart("restart void", debt, reason, attempt=debt.attempts)
