"""Looks after restarts without asking for any: cancels, releases, keeps back, watches, and owes them again.

`handler.domain.restarts` decides.
"""

from collections.abc import Sequence

from handler.deadline import Deadline
from handler.domain.backoff import crash_loop
from handler.domain.model import FOUND, Restart, Verdict
from handler.domain.restarts import Circumstances, Step, Watched, WatchStep, owed_again, watch, while_kept_back
from handler.probes import Probe
from handler.settings import Settings
from handler.store import Watches
from handler.telemetry import CycleLog

# Probing must leave time to write.
PROBING_SHARE = 0.5


class Watching:
    """Looks after the restarts of one cycle. `cancelled` counts those that it cancelled."""

    def __init__(
        self,
        store: Watches,
        probe: Probe,
        settings: Settings,
        *,
        now: Circumstances,
        workspace_ids: Sequence[str] | None,
        log: CycleLog,
    ) -> None:
        """Take the restarts from `store`: those of these workspaces, or (None) everybody's."""
        self.cancelled = 0
        self._store = store
        self._probe = probe
        self._crash_loop = settings.crash_loop
        self._grace_s = settings.restarts.grace_s
        self._timeout_s = settings.reconfirm_timeout_seconds
        self._now = now
        self._workspace_ids = workspace_ids
        self._log = log

    def note(self, deadline: Deadline, *, release: bool) -> list[Watched]:
        """Cancel what has moved on, and note what becomes of the others; return those whose instance is to be probed.

        With `release`, an open breaker does not stop the open restarts any more. Only a full cycle cancels and watches.
        """
        if self._now.full:
            for restart in self._store.cancel_moved_on(self._one_look(deadline)):
                self._cancelled(restart, "the row has moved on")
        if release:
            self._store.release(self._one_look(deadline), workspace_ids=self._workspace_ids)
        if self._now.breaker_open:
            self._store.keep_back(self._one_look(deadline), grace_s=self._grace_s, workspace_ids=self._workspace_ids)
        return self._note_watch(deadline) if self._now.full else []

    def owe_again(self, watched: Sequence[Watched], deadline: Deadline, closing: Deadline, *, released: bool) -> None:
        """Owe a restart once more where the row is offline and the instance still dead: nothing has come of it."""
        by_id = {one.restart.workspace_id: one.restart for one in watched}
        loops, absent, found, others = {}, [], [], []
        probing = deadline.within(deadline.remaining() * PROBING_SHARE)
        for sighting in self._probe.sightings([one.as_candidate() for one in by_id.values()], probing):
            restart = by_id[sighting.workspace.id]
            if owed_again(restart, sighting, self._now):
                loop = crash_loop(restart.streak + 1, 0.0, self._crash_loop)
                loops[restart.id] = (loop.streak, loop.backoff_s)
            elif sighting.verdict is Verdict.ABSENT and self._now.absence_counts:
                absent.append(restart)
            elif sighting.verdict in FOUND and restart.absent_sightings:
                found.append(restart)
            else:
                others.append(restart)
        if len(loops) + len(absent) + len(found) + len(others) == len(by_id):
            others = []  # nobody is left out, so it does not matter whose turn is next
        if absent or found or others:
            self._store.count_absences(closing, absent, found=found, others=others)
        if loops:
            for restart in self._store.owe_again(closing, loops, released=released):
                self._log.restart("restart owed again", restart, "the workspace is offline, its instance still dead")

    def look_at_kept_back(self, deadline: Deadline, closing: Deadline) -> None:
        """Cancel restarts that the open breaker keeps back though their instance runs again."""
        listed = self._store.kept_back(self._one_look(deadline), workspace_ids=self._workspace_ids)
        kept_back = {one.workspace_id: one for one in listed}
        running, found, others = [], [], []
        probing = deadline.within(deadline.remaining() * PROBING_SHARE)
        for sighting in self._probe.sightings([one.as_candidate() for one in kept_back.values()], probing):
            restart = kept_back[sighting.workspace.id]
            if while_kept_back(sighting) is Step.CANCEL_AND_WATCH:
                running.append(restart)
            elif sighting.verdict in FOUND:
                found.append(restart)
            else:
                others.append(restart)
        if running or found or others:
            for restart in self._store.look_at_kept_back(closing, running=running, found=found, others=others):
                self._cancelled(restart, "the instance is running")

    def _note_watch(self, deadline: Deadline) -> list[Watched]:
        """Note what became of the restarted workspaces; return those whose instance has to be probed."""
        by_step: dict[WatchStep, list[Watched]] = {step: [] for step in WatchStep}
        for one in self._store.watched(self._one_look(deadline)):
            by_step[watch(one)].append(one)
        ended, up, not_up = (
            [one.restart.id for one in by_step[step]] for step in (WatchStep.END, WatchStep.IS_UP, WatchStep.IS_NOT_UP)
        )
        not_up += [one.restart.id for one in by_step[WatchStep.PROBE]]
        if ended or up or not_up:
            self._store.note_watch(self._one_look(deadline), ended=ended, up=up, not_up=not_up)
        return by_step[WatchStep.PROBE]

    def _one_look(self, deadline: Deadline) -> Deadline:
        """Return the deadline for one call to the database: a locked table must not delay the cycle."""
        return deadline.within(self._timeout_s)

    def _cancelled(self, restart: Restart, reason: str) -> None:
        self.cancelled += 1
        self._log.restart("restart cancelled", restart, reason)
