"""Act, first half: probe what looks dead a second time, and flip what is still dead at once."""

from collections.abc import Callable

from handler.deadline import Deadline
from handler.decide import Action, CrashLoop, Plan, confirms
from handler.errors import LeaseLostError, ReconcilerError, RowLockedError
from handler.model import FOUND, Flip, Report, Sighting, SkipReason
from handler.probes import Probe
from handler.registry import Flipped, Rows, Terms
from handler.settings import Settings
from handler.telemetry import Story

# So few at a time that the flip follows the second probe within moments.
CONFIRMED_AT_ONCE = 200

# `Rows.flip` or `Rows.would_flip`: returns why not, if not.
Attempt = Callable[[Deadline, Sighting, Terms], Flipped | SkipReason]


class Flips:
    """The flips of one cycle."""

    def __init__(
        self,
        rows: Rows,
        probe: Probe,
        settings: Settings,
        selected_at: str,
        report: Report,
        story: Story,
    ) -> None:
        """Act on candidates that were selected at `selected_at` (the database's text for it)."""
        self._rows = rows
        self._probe = probe
        self._settings = settings
        self._terms = Terms(
            selected_at,
            settings.heartbeat_fresh_seconds,
            CrashLoop(settings.restart_loop_pause_seconds, settings.restart_loop_healthy_seconds),
        )
        self._report = report
        self._story = story
        self.out_of_time: list[str] = []
        # Not found at first, and alive right before the flip: what was counted of their absence is void.
        self.found_again: list[str] = []

    def carry_out(self, plan: Plan, deadline: Deadline) -> None:
        """Flip what the plan says, as far as the time goes."""
        self._each_confirmed(plan, deadline, self._rows.flip, "workspace flipped")
        self._report.flipped = len(self._report.flips)

    def rehearse(self, plan: Plan, deadline: Deadline) -> None:
        """Find out what `carry_out` would do, and write nothing."""
        self._each_confirmed(plan, deadline, self._rows.would_flip, "would flip")

    def _each_confirmed(self, plan: Plan, deadline: Deadline, attempt: Attempt, message: str) -> None:
        to_flip = [one.sighting for one in plan.decisions if one.action is Action.FLIP]
        for start in range(0, len(to_flip), CONFIRMED_AT_ONCE):
            unconfirmed = {one.workspace.id: one for one in to_flip[start : start + CONFIRMED_AT_ONCE]}
            workspaces = [one.workspace for one in unconfirmed.values()]
            for second in self._probe.sightings(workspaces, deadline):
                first = unconfirmed.pop(second.workspace.id)
                if confirms(first, second):
                    self._attempt(attempt, message, second, deadline)
                else:
                    self._skip(second, SkipReason.NOT_CONFIRMED)
                    if second.verdict in FOUND:
                        self.found_again.append(second.workspace.id)
            for first in unconfirmed.values():
                self._skip(first, SkipReason.OUT_OF_TIME)

    def _attempt(self, attempt: Attempt, message: str, sighting: Sighting, deadline: Deadline) -> None:
        if deadline.over():
            self._skip(sighting, SkipReason.OUT_OF_TIME)
            return
        try:
            outcome = attempt(deadline.within(self._settings.reconfirm_timeout_seconds), sighting, self._terms)
        except RowLockedError:
            outcome = SkipReason.ROW_LOCKED
        except LeaseLostError:
            outcome = SkipReason.OUT_OF_TIME
        except ReconcilerError as error:
            outcome = SkipReason.OUT_OF_TIME if deadline.over() else SkipReason.RECONFIRM_ERROR
            self._story.trouble("re-read or flip failed", error)
        if isinstance(outcome, SkipReason):
            self._skip(sighting, outcome)
            return
        self._report.flips.append(Flip(sighting.workspace.id, sighting.workspace.instance_id, sighting.state))
        self._story.tell(message, sighting, f"{sighting.state}, confirmed by a second probe")
        if outcome.loop.pause_s:
            self._story.restart_paused(sighting, outcome.loop)
        for debt in outcome.superseded:
            self._report.restarts.void += 1
            self._story.restart("restart void", debt, "the workspace was online again", attempt=debt.attempts)

    def _skip(self, sighting: Sighting, reason: SkipReason) -> None:
        self._report.skipped[reason] += 1
        if reason is SkipReason.OUT_OF_TIME:
            self.out_of_time.append(sighting.workspace.id)
        self._story.tell("flip skipped", sighting, reason)
