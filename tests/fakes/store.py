"""The store in memory: the methods of handler/store, one transaction each, over `Tables`.

tests/contract runs the same tests on it and on the real one. Each transaction is one step, except the flip: others may
act between its locked re-read and its write.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Concatenate, ParamSpec, TypeVar, cast

from handler.deadline import Deadline
from handler.domain.backoff import crash_loop
from handler.domain.coverage import Progress
from handler.domain.decide import Absence, Memory, objection
from handler.domain.model import CurrentRow, Hold, Restart, Sighting, SkipReason, Workspace
from handler.domain.report import Gauges
from handler.errors import ConnectionLostError, LeaseLostError, RequestError, RowLockedError, StoreError
from handler.store import ActiveHolds, Claim, Selection, Store
from handler.store.candidates import selection
from handler.store.flip import Flipped, FlipPolicy
from handler.store.gauges import RECOVERY_SECONDS
from handler.store.lease import LONGEST_SECONDS, MARGIN_SECONDS
from handler.store.memory import ABSENCE_KEPT_SECONDS
from tests.fakes.tables import Row, StoredAbsence, StoredHold, StoredRestart, StoredStop, Tables

IDLE_GRACE_SECONDS = 1.0  # how long after its deadline the server ends an idle transaction
_EXTERNAL, _CANDIDATES = "external", ("online", "degraded")
_SETTLED = ("online", "removed", "paused", "hibernating", "hibernated", None)


class Watch:
    """Watches a cycle use the database, and may interfere. This one does not."""

    def before(self, call: str) -> None:
        """A call begins, and has had no effect yet."""

    def inside(self) -> None:
        """A flip has locked and judged the row, and is about to write."""

    def wrote(self, call: str, subject: object = None) -> None:
        """A call writes, and is going to commit."""

    def after(self, call: str) -> None:
        """A call has committed, and its answer is on its way."""


class Part:
    """A part of the store, as one cycle sees it."""

    def __init__(self, tables: Tables, cycle_id: str, watch: Watch) -> None:
        self.tables, self.cycle_id, self.watch = tables, cycle_id, watch

    def require_lease(self) -> None:
        if (
            self.tables.lease is None
            or self.tables.lease[0] != self.cycle_id
            or self.tables.lease[1] <= self.tables.now
        ):
            raise LeaseLostError("the lease has expired or is another's")

    def restart(self, owed: StoredRestart) -> Restart:
        of_this_cycle = owed.cycle_id == self.cycle_id
        return Restart(owed.id, owed.workspace_id, owed.instance_id, owed.attempts, owed.refusals, of_this_cycle)


Self = TypeVar("Self", bound=Part)
P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate[Self, Deadline, P], R]


def _transaction(method: Method[Self, P, R]) -> Method[Self, P, R]:
    """Make a method a watched transaction, which fails without time left."""
    name = method.__name__

    def watched(self: Self, deadline: Deadline, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.watch.before(name)
        if deadline.over():
            raise StoreError("no time is left for the transaction")
        result = method(self, deadline, *args, **kwargs)
        self.watch.after(name)
        return result

    return watched


class Lease(Part):
    """See handler.store.lease.Lease."""

    @_transaction
    def acquire(self, _: Deadline, *, lasts_s: float) -> bool:
        held = self.tables.lease
        ahead_s = 0.0 if held is None else held[1] - self.tables.now
        if held is not None and held[0] != self.cycle_id and 0 < ahead_s <= LONGEST_SECONDS:
            return False
        self.watch.wrote("acquire")
        self.tables.lease = (self.cycle_id, self.tables.now + lasts_s + MARGIN_SECONDS)
        return True

    @_transaction
    def release(self, _: Deadline) -> None:
        if self.tables.lease is not None and self.tables.lease[0] == self.cycle_id:
            self.watch.wrote("release")
            self.tables.lease = None


class Candidates(Part):
    """See handler.store.candidates.Candidates."""

    @_transaction
    def select(self, _: Deadline, *, limit: int, workspace_ids: Sequence[str] | None) -> Selection:
        tables, coverage = self.tables, self.tables.coverage
        candidates = {
            one: self._workspace(one)
            for one in sorted(tables.workspaces, key=coverage.place)
            if (row := tables.workspaces[one]).status in _CANDIDATES
            and row.instance_id
            and row.runtime != _EXTERNAL
            and not tables.is_on_hold(one)
            and (workspace_ids is None or one in workspace_ids)
        }
        in_turn = dict(islice(candidates.items(), limit + 1))
        brought_forward = {one: candidates[one] for one in coverage.brought_forward if one in candidates}
        return selection(in_turn, brought_forward, limit, repr(tables.now), coverage)

    def _workspace(self, workspace_id: str) -> Workspace:
        row = self.tables.workspaces[workspace_id]
        return Workspace(workspace_id, row.instance_id or "", _text(row.heartbeat_at))


class CycleMemory(Part):
    """See handler.store.memory.CycleMemory."""

    @_transaction
    def recall(self, _: Deadline, *, breaker_window_s: float) -> Memory:
        now = self.tables.now
        absences = {
            one: Absence(known.instance_id, known.sightings, now - known.first_seen_at)
            for one, known in self.tables.absences.items()
            if known.last_seen_at > now - ABSENCE_KEPT_SECONDS
        }
        flipped = {one.workspace_id for one in self.tables.restarts if one.flipped_at > now - breaker_window_s}
        return Memory(absences, frozenset(flipped))

    @_transaction
    def remember_absences(self, _: Deadline, absent: Iterable[Workspace], forgotten: Iterable[str]) -> None:
        self.require_lease()
        self.watch.wrote("remember_absences")
        now, gone = self.tables.now, set(forgotten)
        known = {
            one: seen
            for one, seen in self.tables.absences.items()
            if one not in gone and seen.last_seen_at > now - ABSENCE_KEPT_SECONDS
        }
        for one in absent:
            earlier = known.get(one.id)
            if earlier is None or earlier.instance_id != one.instance_id:
                known[one.id] = StoredAbsence(one.instance_id, 1, now, now)
            else:
                known[one.id] = StoredAbsence(one.instance_id, earlier.sightings + 1, earlier.first_seen_at, now)
        self.tables.absences = known

    @_transaction
    def save_coverage(self, _: Deadline, progress: Progress) -> None:
        self.require_lease()
        self.watch.wrote("save_coverage")
        tables = self.tables
        tables.coverage = progress.coverage
        tables.first_cycle_at = tables.now if tables.first_cycle_at is None else tables.first_cycle_at
        tables.pass_completed_at = tables.now if progress.completed_pass else tables.pass_completed_at

    @_transaction
    def purge(self, _: Deadline) -> None:
        """Purge nothing: nothing here lasts for 30 days."""
        self.require_lease()
        self.watch.wrote("purge")


class GaugesOf(Part):
    """See handler.store.gauges."""

    @_transaction
    def gauges(self, _: Deadline) -> Gauges:
        tables, now = self.tables, self.tables.now
        owed = tables.open_restarts()
        backing_off = [one for one in owed if one.backoff_until is not None and one.backoff_until > now]
        blocked = [one for one in owed if one.last_answer == "blocked"]
        waiting = [self._wanted_since(one) for one in owed if one not in blocked]
        since = tables.first_cycle_at if tables.pass_completed_at is None else tables.pass_completed_at
        return Gauges(
            restarts_pending=len(owed),
            restarts_blocked=len(blocked),
            restarts_backing_off=len(backing_off),
            restarts_unrecovered=sum(map(self._is_unrecovered, tables.restarts)),
            oldest_restart_age_s=max(0.0, now - min(waiting, default=now)),
            coverage_age_s=0.0 if since is None else now - since,
            on_hold=len(tables.on_hold_singly()),
        )

    def _wanted_since(self, owed: StoredRestart) -> float:
        waits_until = [owed.backoff_until, self.tables.hold_ended_at(owed.workspace_id)]
        return max([owed.flipped_at, *(at for at in waits_until if at is not None)])

    def _is_unrecovered(self, one: StoredRestart) -> bool:
        if one.outcome != "accepted" or one.watch_ended_at is not None or one.closed_at is None:
            return False
        if self.tables.is_on_hold(one.workspace_id):
            return False
        later = any(other.workspace_id == one.workspace_id and other.id > one.id for other in self.tables.restarts)
        return one.closed_at < self.tables.now - RECOVERY_SECONDS and not later


class Flips(Part):
    """See handler.store.Flips."""

    @_transaction
    def flip(self, deadline: Deadline, sighting: Sighting, policy: FlipPolicy) -> Flipped | SkipReason:
        workspace = sighting.workspace
        row = self.tables.workspaces.get(workspace.id)
        if row is None:
            return SkipReason.ROW_GONE
        self.lock(row)
        try:
            current = self._current(row, workspace, policy)
            reason = objection(current, workspace)
            if reason is not None:
                return reason
            self._stop_and_go_on(deadline)
            self.require_lease()
            self.watch.wrote("flip", sighting)
            loop = crash_loop(current, policy.crash_loop)
            superseded = self._write(row, workspace, loop.streak, loop.backoff_s)
            return Flipped(loop, superseded)
        finally:
            row.locked_by = None

    @_transaction
    def would_flip(self, _: Deadline, sighting: Sighting, policy: FlipPolicy) -> Flipped | SkipReason:
        workspace = sighting.workspace
        row = self.tables.workspaces.get(workspace.id)
        if row is None:
            return SkipReason.ROW_GONE
        current = self._current(row, workspace, policy)
        return objection(current, workspace) or Flipped(crash_loop(current, policy.crash_loop))

    def lock(self, row: Row) -> None:
        """Take the row's lock, or fail at once."""
        if row.locked_by is not None:
            raise RowLockedError("the row is locked")
        row.locked_by = self.cycle_id

    def _stop_and_go_on(self, deadline: Deadline) -> None:
        """Let others act between two statements. Fail if that takes longer than the server keeps idle transactions."""
        began_at, may_last_s = self.tables.now, deadline.remaining() + IDLE_GRACE_SECONDS
        self.watch.inside()
        if self.tables.now - began_at > may_last_s:
            raise ConnectionLostError("the server has ended the session")
        if deadline.over():
            raise StoreError("no time is left for the statement")

    def _current(self, row: Row, workspace: Workspace, policy: FlipPolicy) -> CurrentRow:
        now, beat_at = self.tables.now, row.heartbeat_at
        fresh = _text(beat_at) != workspace.last_heartbeat_at or (
            beat_at is not None and (beat_at > float(policy.selected_at) or beat_at > now - policy.heartbeat_fresh_s)
        )
        earlier = [one for one in self.tables.restarts if one.workspace_id == workspace.id]
        restarts = up_s = None
        if earlier:
            last = earlier[-1]
            marks = [last.watch_ended_at] if last.outcome == "accepted" else [last.closed_at, last.asked_at]
            restarts = last.streak + (last.asked_at is not None)
            up_s = now - next((at for at in marks if at is not None), now)
        on_hold = self.tables.is_on_hold(workspace.id)
        return CurrentRow(row.status, row.instance_id, row.runtime, fresh, on_hold, restarts, up_s)

    def _write(self, row: Row, workspace: Workspace, streak: int, backoff_s: float) -> tuple[Restart, ...]:
        tables, now = self.tables, self.tables.now
        row.status = "offline"
        tables.events.append((workspace.id, workspace.instance_id))
        superseded = [one for one in tables.open_restarts() if one.workspace_id == workspace.id]
        for older in superseded:
            older.closed_at, older.outcome = now, "cancelled"
        not_before = [
            one.due_at
            for one in tables.restarts
            if (one.workspace_id, one.instance_id) == (workspace.id, workspace.instance_id) and one.asked_at is not None
        ]
        owed = StoredRestart(
            id=len(tables.restarts) + 1,
            workspace_id=workspace.id,
            instance_id=workspace.instance_id,
            cycle_id=self.cycle_id,
            flipped_at=now,
            due_at=max([now, *not_before]),
            streak=streak,
            backoff_until=now + backoff_s if backoff_s else None,
        )
        tables.restarts.append(owed)
        return tuple(
            Restart(one.id, one.workspace_id, one.instance_id, one.attempts, one.refusals, of_this_cycle=False)
            for one in superseded
        )


class Restarts(Part):
    """See handler.store.Restarts."""

    @_transaction
    def cancel_moved_on(self, _: Deadline, *, own_only: bool) -> list[Restart]:
        self.require_lease()
        self.watch.wrote("cancel_moved_on")
        now, closed = self.tables.now, []
        for one in self.tables.restarts:
            row = self.tables.workspaces.get(one.workspace_id)
            if one.outcome == "accepted" and one.watch_ended_at is None and (row is None or row.status in _SETTLED):
                one.watch_ended_at = now
            if self._may_be_looked_at(one, own_only=own_only) and not _is_owed(one, row):
                one.closed_at, one.outcome = now, "cancelled"
                closed.append(self.restart(one))
        return closed

    @_transaction
    def due(self, _: Deadline, *, limit: int, own_only: bool) -> list[Restart]:
        due = [
            one for one in self.tables.restarts if self._may_be_looked_at(one, own_only=own_only) and self._is_free(one)
        ]
        due.sort(key=lambda one: (one.due_at, one.id))
        return [self.restart(one) for one in due[:limit]]

    @_transaction
    def claim(self, _: Deadline, restart: Restart, *, uncertain_s: float, heartbeat_fresh_s: float) -> Claim:
        self.require_lease()
        owed = self._find(restart)
        if owed is None or not self._may_be_looked_at(owed, own_only=False) or not self._is_free(owed):
            return Claim.TAKEN
        if not _is_owed(owed, self.tables.workspaces.get(owed.workspace_id)):
            self.watch.wrote("cancel", restart)
            owed.closed_at, owed.outcome = self.tables.now, "cancelled"
            return Claim.CANCELLED
        beat_at = self.tables.workspaces[owed.workspace_id].heartbeat_at
        if beat_at is not None and beat_at > max(owed.flipped_at, self.tables.now - heartbeat_fresh_s):
            return Claim.HEARTBEAT
        self.watch.wrote("claim", restart)
        owed.attempts += 1
        owed.claimed_by, owed.asked_at, owed.last_answer = self.cycle_id, self.tables.now, "claimed"
        owed.due_at = self.tables.now + uncertain_s
        return Claim.CLAIMED

    @_transaction
    def cancel(self, _: Deadline, restart: Restart) -> bool:
        self.require_lease()
        return self._close(restart, "cancelled")

    @_transaction
    def accepted(self, _: Deadline, restart: Restart) -> None:
        self._close(restart, "accepted")

    @_transaction
    def put_off(self, _: Deadline, restarts: Sequence[Restart], *, wait_s: float) -> None:
        self.require_lease()
        self.watch.wrote("put_off")
        ids = {restart.id for restart in restarts}
        for one in self.tables.restarts:
            if one.id in ids and self._may_be_looked_at(one, own_only=False):
                one.due_at = self.tables.now + wait_s

    @_transaction
    def record_answer(self, _: Deadline, restart: Restart, answer: str, *, wait_s: float | None) -> None:
        owed = self._find(restart)
        if owed is None or owed.closed_at is not None or owed.claimed_by != self.cycle_id:
            return
        self.watch.wrote("record_answer")
        owed.last_answer = str(answer)
        if wait_s is not None:
            owed.refusals += 1
            owed.due_at = self.tables.now + wait_s

    @_transaction
    def stop(self, _: Deadline, *, lasts_s: float) -> None:
        self.watch.wrote("stop")
        tables = self.tables
        tables.stops = [*filter(tables.is_on, tables.stops), StoredStop(tables.now + lasts_s)]

    def _find(self, restart: Restart) -> StoredRestart | None:
        return next((one for one in self.tables.restarts if one.id == restart.id), None)

    def _close(self, restart: Restart, outcome: str) -> bool:
        owed = self._find(restart)
        if owed is None or owed.closed_at is not None:
            return False
        self.watch.wrote(outcome, restart)
        owed.closed_at, owed.outcome = self.tables.now, outcome
        return True

    def _may_be_looked_at(self, owed: StoredRestart, *, own_only: bool) -> bool:
        is_due = owed.closed_at is None and owed.due_at <= self.tables.now
        return is_due and (owed.cycle_id == self.cycle_id or not own_only)

    def _is_free(self, owed: StoredRestart) -> bool:
        is_backing_off = owed.backoff_until is not None and owed.backoff_until > self.tables.now
        return not is_backing_off and not self.tables.is_on_hold(owed.workspace_id) and not self.tables.is_stopped()


class Holds(Part):
    """See handler.store.Holds. Nobody locks a hold or a restart here."""

    @_transaction
    def active(self, _: Deadline, *, most: int) -> ActiveHolds:
        return self._active(most)

    @_transaction
    def exist(self, _: Deadline, workspace_ids: Sequence[str]) -> bool:
        if not self.tables.workspaces.keys() >= set(workspace_ids):
            raise RequestError("event field hold.workspace_ids: no such workspace")
        return True

    @_transaction
    def place(
        self, _: Deadline, workspace_ids: Sequence[str] | None, *, reason: str, lasts_s: float, most: int
    ) -> ActiveHolds:
        for one in (None,) if workspace_ids is None else workspace_ids:
            self.tables.holds[one] = StoredHold(reason, self.tables.now + lasts_s)
        return self._active(most)

    @_transaction
    def release(self, _: Deadline, workspace_ids: Sequence[str] | None, *, most: int) -> ActiveHolds:
        tables = self.tables
        for one in (None,) if workspace_ids is None else workspace_ids:
            if one in tables.holds:
                tables.holds[one].ends_at = min(tables.holds[one].ends_at, tables.now)
        if workspace_ids is None:
            tables.stops.clear()
        for owed in tables.restarts:
            if owed.workspace_id in (workspace_ids or ()):
                owed.streak, owed.backoff_until = 0, None
        return self._active(most)

    @_transaction
    def in_flight(self, _: Deadline, workspace_ids: Sequence[str] | None, *, locked: bool) -> list[str]:  # noqa: ARG002
        return sorted(
            one.workspace_id
            for one in self.tables.open_restarts()
            if one.last_answer == "claimed" and (workspace_ids is None or one.workspace_id in workspace_ids)
        )

    @_transaction
    def count_all(self, _: Deadline) -> int:
        candidates = {
            one
            for one, row in self.tables.workspaces.items()
            if row.status in _CANDIDATES and row.instance_id and row.runtime != _EXTERNAL
        }
        return len(candidates | self.tables.on_hold_singly())

    def _active(self, most: int) -> ActiveHolds:
        holds, now = self.tables.holds, self.tables.now
        ending = sorted((hold.ends_at, one or "~", one) for one, hold in holds.items() if hold.ends_at > now)
        shown = [
            Hold(one, holds[one].reason, datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            for at, _, one in ending[:most]
        ]
        return ActiveHolds(shown, len(self.tables.on_hold_singly()), self.tables.is_on_hold(None))


class FakeStore:
    """See handler.store.Store."""

    def __init__(self, tables: Tables, cycle_id: str, watch: Watch) -> None:
        self.lease = Lease(tables, cycle_id, watch)
        self.candidates = Candidates(tables, cycle_id, watch)
        self.memory = CycleMemory(tables, cycle_id, watch)
        self.flips = Flips(tables, cycle_id, watch)
        self.restarts = Restarts(tables, cycle_id, watch)
        self.holds = Holds(tables, cycle_id, watch)
        self.gauges = GaugesOf(tables, cycle_id, watch).gauges
        self._watch = watch

    def check_rights(self, deadline: Deadline, *, to_apply: bool) -> None:  # noqa: ARG002 - all rights are given
        self._watch.before("check_rights")
        if deadline.over():
            raise StoreError("no time is left for the transaction")
        self._watch.after("check_rights")


def fake_store(tables: Tables, cycle_id: str, watch: Watch | None = None) -> Store:
    """Return the store in memory for one cycle."""
    return cast("Store", FakeStore(tables, cycle_id, watch or Watch()))


def _is_owed(owed: StoredRestart, row: Row | None) -> bool:
    return row is not None and row.status == "offline" and row.instance_id == owed.instance_id


def _text(at: float | None) -> str | None:
    return None if at is None else repr(at)
