"""The store in memory: the methods of handler/store, one transaction each, over `Tables`.

tests/contract runs the same tests on it and on the real one. Each transaction is one step, except the flip and the
claim: others may act between what these read under their locks and what they write.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Concatenate, ParamSpec, TypeVar, cast

from handler.deadline import Deadline
from handler.domain.backoff import LONGEST_CRASH_LOOP_BACKOFF_S, CrashLoop, crash_loop
from handler.domain.coverage import Progress
from handler.domain.decide import CANDIDATE_STATUSES, EXTERNAL, OFFLINE, Fleet, Memory, objection
from handler.domain.doubts import ABSENCES_ADD_UP_SECONDS, Doubt, DoubtChanges, Known
from handler.domain.evidence import Confirmed, DatabaseClock, expiry
from handler.domain.model import CurrentRow, Hold, Restart, Sighting, SkipReason, Verdict, Workspace
from handler.domain.report import FleetGauges, Gauges
from handler.domain.restarts import RECOVERY_SECONDS, Owed, RestartDecision, Step, Watched
from handler.domain.shards import WHOLE, Shard
from handler.domain.state_changes import HEARTBEAT_ARRIVES_SECONDS, OLDEST_EVENT_SECONDS
from handler.errors import ConnectionLostError, LeaseLostError, RequestError, RowLockedError, StoreError
from handler.store import ActiveHolds, FlipOutcomes, Selection, Store
from handler.store.candidates import UNOWED_SECONDS, selection
from handler.store.flip import Flipped, FlipPolicy
from handler.store.holds import MOST_SHOWN
from handler.store.lease import LONGEST_SECONDS, MARGIN_SECONDS
from handler.store.memory import KEPT_DAYS, UNUSED_DAYS
from handler.store.restarts import Judge, answered_before
from handler.store.shards import RESTED_SECONDS
from handler.store.times import HAPPENED, TOLERANCE_SECONDS, WAITS
from tests.fakes.tables import (
    StoredCoverage,
    StoredDoubt,
    StoredHold,
    StoredRestart,
    StoredSource,
    StoredStop,
    Tables,
    contains,
    is_within,
    overlap,
)

IDLE_GRACE_SECONDS = 1.0  # how long after its deadline the server ends an idle transaction
_DAY_S = 86_400.0


class Watch:
    """Watches a cycle use the database, and may interfere. This one does not."""

    def before(self, call: str) -> None:
        """A call begins, and has had no effect yet."""

    def inside(self, call: str) -> None:
        """A flip or a claim has locked and judged its rows, and is about to write."""

    def wrote(self, call: str, subject: object = None) -> None:
        """A call writes, and is going to commit."""

    def after(self, call: str) -> None:
        """A call has committed, and its answer is on its way."""


@dataclass
class Ends:
    """When a cycle without a lease ends."""

    at: float = -math.inf


class Part:
    """A part of the store, as one cycle of a shard sees it. Without a lease, it may write until it `ends`."""

    def __init__(
        self, tables: Tables, cycle_id: str, watch: Watch, ends: Ends | None = None, shard: Shard = WHOLE
    ) -> None:
        self.tables, self.cycle_id, self.watch, self.ends, self.shard = tables, cycle_id, watch, ends, shard

    def our_set_rests(self) -> bool:
        """Tell whether our set of shards was not used for long, while another one was."""

        def used_at(*, ours: bool) -> float:
            found = [one.used_at for of, one in self.tables.shards.items() if (of.of == self.shard.of) is ours]
            return max([at for at in found if at is not None], default=-math.inf)

        return used_at(ours=True) < min(self.tables.now - RESTED_SECONDS, used_at(ours=False))

    def is_mine(self, workspace_id: str) -> bool:
        """Tell whether the workspace belongs to the shard."""
        return contains(self.shard, workspace_id)

    def lease_is_ours(self) -> bool:
        if self.ends is not None:
            return self.tables.now < self.ends.at
        lease = self.tables.leases.get(self.shard)
        return lease is not None and lease[0] == self.cycle_id and lease[1] > self.tables.now

    def require_lease(self) -> None:
        if not self.lease_is_ours():
            raise LeaseLostError("the lease has expired or is another's")

    def _unlocked(self, ids: Iterable[int]) -> list[StoredRestart]:
        """Return the restarts with these ids that nobody has locked."""
        wanted = set(ids)
        return [one for one in self.tables.restarts if one.id in wanted and one.locked_by is None]

    def may_write(self, workspace_id: str, not_after: float) -> SkipReason | None:
        """Return what has come between the reading and the writing of a flip or a claim, if anything has."""
        if not self.lease_is_ours():
            return SkipReason.OUT_OF_TIME
        if self.tables.is_on_hold(workspace_id):
            return SkipReason.ON_HOLD
        return SkipReason.OUT_OF_TIME if self.tables.now > not_after else None

    def stop_and_go_on(self, call: str, deadline: Deadline) -> None:
        """Let others act between two statements. Fail if that takes longer than the server keeps idle transactions."""
        began_at, may_last_s = self.tables.now, deadline.remaining() + IDLE_GRACE_SECONDS
        self.watch.inside(call)
        if self.tables.now - began_at > may_last_s:
            raise ConnectionLostError("the server has ended the session")
        if deadline.over():
            raise StoreError("no time is left for the statement")


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
        others = [lease for one, lease in self.tables.leases.items() if overlap(one, self.shard)]
        if any(one[0] != self.cycle_id and 0 < one[1] - self.tables.now <= LONGEST_SECONDS for one in others):
            return False
        if "lease" in self.tables.locked:
            return False
        self.watch.wrote("acquire")
        self.tables.leases[self.shard] = (self.cycle_id, self.tables.now + lasts_s + MARGIN_SECONDS)
        return True

    @_transaction
    def release(self, _: Deadline) -> None:
        lease = self.tables.leases.get(self.shard)
        if lease is not None and lease[0] == self.cycle_id:
            if "lease" in self.tables.locked:
                raise RowLockedError("the lease is locked")
            self.watch.wrote("release")
            del self.tables.leases[self.shard]


class Expiry(Part):
    """See handler.store.lease.Expiry."""

    @_transaction
    def acquire(self, _: Deadline, *, lasts_s: float) -> bool:
        assert self.ends is not None
        self.ends.at = self.tables.now + lasts_s + MARGIN_SECONDS
        return True

    def release(self, _: Deadline) -> None:
        pass


class Candidates(Part):
    """See handler.store.candidates.Candidates."""

    @_transaction
    def select(
        self,
        deadline: Deadline,
        *,
        limit: int,
        workspace_ids: Sequence[str] | None,
        adopt: bool = True,
        by_hand: bool = False,
    ) -> Selection:
        tables, coverage = self.tables, self.tables.coverage_of(self.shard)
        named = workspace_ids if by_hand and workspace_ids is not None else []

        def select(those: Sequence[str] | None, most: int) -> dict[str, Workspace]:
            found = [
                one
                for one, row in tables.workspaces.items()
                if (row.is_up or (row.is_offline and self._may_be_adopted(one, adopt=adopt, by_hand=one in named)))
                and (those is None or one in those)
                and self.is_mine(one)
            ]
            return {one: self._workspace(one) for one in sorted(found, key=coverage.place)[:most]}

        first = [one for one in coverage.brought_forward if workspace_ids is None or one in workspace_ids]
        clock = DatabaseClock(tables.now, deadline.now())
        in_turn, brought_forward = select(workspace_ids, limit + 1), select(first, len(first))
        return selection(in_turn, brought_forward, limit, repr(tables.now), clock, coverage)

    @_transaction
    def recording(self, deadline: Deadline, instance_ids: Sequence[str], *, limit: int) -> Selection:
        tables, coverage = self.tables, self.tables.coverage_of(self.shard)
        found = [one for one, row in tables.workspaces.items() if row.is_up and row.instance_id in instance_ids]
        in_turn = {one: self._workspace(one) for one in sorted(found, key=coverage.place)[: limit + 1]}
        clock = DatabaseClock(tables.now, deadline.now())
        return selection(in_turn, {}, limit, repr(tables.now), clock, coverage)

    def _may_be_adopted(self, workspace_id: str, *, adopt: bool, by_hand: bool) -> bool:
        tables = self.tables
        if by_hand and not tables.is_restarting(workspace_id, by_hand=True):
            return True
        return any(
            (adopt or doubt.by_hand)
            and tables.remembers_dead(doubt)
            and doubt.instance_id == tables.workspaces[workspace_id].instance_id
            and not tables.is_restarting(workspace_id, by_hand=doubt.by_hand)
            for doubt in tables.doubts_of(workspace_id)
        )

    def _workspace(self, workspace_id: str) -> Workspace:
        row, on_hold = self.tables.workspaces[workspace_id], self.tables.is_on_hold(workspace_id)
        return Workspace(workspace_id, row.instance_id or "", _text(row.heartbeat_at), on_hold, row.is_offline)


class Doubts(Part):
    """See handler.store.Doubts."""

    @_transaction
    def tend(self, _: Deadline) -> None:
        self.require_lease()
        self.watch.wrote("tend")
        tables = self.tables
        ours = [one for one in tables.doubts.values() if self.is_mine(one.workspace_id)]
        tables.forget([one for one in ours if not self._is_still_recorded(one)])
        for doubt in ours:
            row = tables.workspaces.get(doubt.workspace_id)
            is_offline = row is not None and row.status == OFFLINE
            if (doubt.offline_since is None) == is_offline and doubt.locked_by is None:
                doubt.offline_since = tables.now if is_offline else None

    def _is_still_recorded(self, doubt: StoredDoubt) -> bool:
        row = self.tables.workspaces.get(doubt.workspace_id)
        return (
            row is not None
            and row.instance_id == doubt.instance_id
            and row.status in (*CANDIDATE_STATUSES, OFFLINE)
            and row.runtime != EXTERNAL
            and not (row.status == OFFLINE and self._is_flipped(doubt))
        )

    def _is_flipped(self, doubt: StoredDoubt) -> bool:
        return any(
            one.is_open and (one.workspace_id, one.instance_id) == (doubt.workspace_id, doubt.instance_id)
            for one in self.tables.restarts
        )

    @_transaction
    def recall(self, _: Deadline, *, breaker_window_s: float, as_if_tended: bool = False) -> Memory:
        tables, now = self.tables, self.tables.now
        known = {
            key: Known(one.instance_id, one.sightings, now - one.since, now - one.last_seen_at)
            for key, one in tables.doubts.items()
            if one.workspace_id in tables.workspaces and self.is_mine(one.workspace_id)
            if one.offline_since is None or tables.remembers_dead(one)
        }
        return Memory(known, self._fleet(breaker_window_s, as_if_tended=as_if_tended))

    @_transaction
    def fleet(self, _: Deadline, *, breaker_window_s: float) -> Fleet:
        return self._fleet(breaker_window_s)

    def _fleet(self, breaker_window_s: float, *, as_if_tended: bool = False) -> Fleet:
        tables, now = self.tables, self.tables.now
        remembered = {
            one.workspace_id
            for one in tables.doubts.values()
            if tables.remembers_dead(one) and (not as_if_tended or self._is_still_recorded(one))
        }
        acted_on = set()
        for one in tables.restarts:
            is_kept_back = one.is_open and one.kept_back_at is not None and not one.released
            if one.flipped_at > now - breaker_window_s or is_kept_back:
                acted_on.add(one.workspace_id)
        up = {one for one, row in tables.workspaces.items() if row.is_up and not tables.is_on_hold(one)}

        def free(those: set[str]) -> dict[str, bool]:
            return {one: one in up for one in those if not tables.is_on_hold(one)}

        return Fleet(len(up), free(remembered - acted_on), free(acted_on))

    def save(self, deadline: Deadline, changes: DoubtChanges) -> None:
        """Save in two transactions, like the real one for few doubts."""
        self._forget(deadline, changes)
        if changes.new or changes.again:
            self._save(deadline, (*changes.new, *changes.again))

    @_transaction
    def _forget(self, _: Deadline, changes: DoubtChanges) -> None:
        self.require_lease()
        self.watch.wrote("forget", changes)
        tables = self.tables
        tables.forget([one for one in tables.doubts.values() if one.workspace_id in changes.alive])
        for one in changes.found:
            absent = tables.doubts.get((one, Verdict.ABSENT))
            if absent is not None and absent.locked_by is None:
                absent.sightings = 0
        if changes.sources is not None:
            self._save_sources(changes.sources)

    def _save_sources(self, sources: Mapping[str, int]) -> None:
        tables, shard, earlier = self.tables, self.shard, self.tables.sources
        tables.sources = {
            (cause, of): one
            for (cause, of), one in earlier.items()
            if not (is_within(of, shard) and cause not in sources)
            and (of.of == shard.of or one.last_seen_at >= tables.now - RESTED_SECONDS)
        }
        for cause, count in sources.items():
            own = earlier.get((cause, shard))
            others = [one.since for (other, of), one in earlier.items() if other == cause and overlap(of, shard)]
            since = min([*others, tables.now]) if own is None else own.since
            tables.sources[cause, shard] = StoredSource(count, since, tables.now)

    @_transaction
    def _save(self, _: Deadline, doubts: Iterable[Doubt]) -> None:
        self.require_lease()
        tables, now = self.tables, self.tables.now
        for seen in doubts:
            self.watch.wrote("save", seen)
            key, instance_id = (seen.workspace.id, seen.kind), seen.workspace.instance_id
            known = tables.doubts.get(key)
            if known is None:
                tables.doubts[key] = StoredDoubt(*key, instance_id, seen.reason, now, now, by_hand=seen.by_hand)
            elif known.locked_by is None:
                same = known.instance_id == instance_id
                recent = known.last_seen_at > now - ABSENCES_ADD_UP_SECONDS
                adds_up = same and (seen.kind is not Verdict.ABSENT or (known.sightings > 0 and recent))
                known.offline_since = known.offline_since if same and known.last_seen_at > now - _DAY_S else None
                known.instance_id, known.reason, known.last_seen_at = instance_id, seen.reason, now
                known.sightings = (known.sightings if adds_up else 0) + (seen.counts or (seen.by_hand and not adds_up))
                known.since = known.since if adds_up else now
                known.by_hand = seen.by_hand or (same and known.by_hand)

    @_transaction
    def set_reasons(self, _: Deadline, reasons: Mapping[str, str]) -> None:
        self.require_lease()
        self.watch.wrote("set_reasons")
        for one in self.tables.doubts.values():
            if one.kind in (Verdict.DEAD, Verdict.ABSENT) and one.workspace_id in reasons and one.locked_by is None:
                one.reason = reasons[one.workspace_id]


class CycleMemory(Part):
    """See handler.store.memory.CycleMemory."""

    @_transaction
    def save_coverage(self, _: Deadline, progress: Progress) -> None:
        self.require_lease()
        tables = self.tables
        if "shard_coverage" in tables.locked:
            raise RowLockedError("the coverage is locked")
        self.watch.wrote("save_coverage")
        own = tables.shards.setdefault(self.shard, StoredCoverage(tables.now))
        own.coverage, own.used_at = progress.coverage, tables.now
        own.pass_completed_at = tables.now if progress.completed_pass else own.pass_completed_at

    @_transaction
    def take_up(self, _: Deadline) -> None:
        self.require_lease()
        tables, now = self.tables, self.tables.now
        if "shard_coverage" in tables.locked:
            raise RowLockedError("the coverage is locked")
        self.watch.wrote("take_up")
        has_rested = self.our_set_rests()
        for number in range(self.shard.of):
            own = tables.shards.setdefault(Shard(number, self.shard.of), StoredCoverage(now))
            own.taken_up_at = now if has_rested else own.taken_up_at
        tables.shards[self.shard].used_at = now

    @_transaction
    def take_back_times(self, _: Deadline, *, longest_wait_s: float) -> None:
        self.require_lease()
        self.watch.wrote("take_back_times")
        tables, soon = self.tables, self.tables.now + TOLERANCE_SECONDS
        waits = {**dict.fromkeys(WAITS, longest_wait_s), "backoff_until": LONGEST_CRASH_LOOP_BACKOFF_S}
        if "shard_coverage" not in tables.locked:
            for one in tables.shards.values():
                _take_back(one, HAPPENED["shard_coverage"], soon, tables.now)
        for source in tables.sources.values():
            _take_back(source, HAPPENED["source_doubts"], soon, tables.now)
        for doubt in tables.doubts.values():
            if doubt.locked_by is None:
                _take_back(doubt, HAPPENED["doubts"], soon, tables.now)
        for restart in self._unlocked(one.id for one in tables.restarts):
            _take_back(restart, HAPPENED["restarts"], soon, tables.now)
            for name, wait_s in waits.items():
                _take_back(restart, (name,), tables.now + wait_s, tables.now + wait_s)

    @_transaction
    def purge(self, _: Deadline) -> None:
        self.require_lease()
        self.watch.wrote("purge")
        tables, before = self.tables, self.tables.now - KEPT_DAYS * _DAY_S
        tables.restarts = [
            one for one in tables.restarts if one.closed_at is None or one.closed_at >= before or one.is_watched
        ]
        tables.holds = {one: hold for one, hold in tables.holds.items() if hold.ends_at > before}
        unused_since = tables.now - UNUSED_DAYS * _DAY_S
        used = {of.of for of, one in tables.shards.items() if max(one.taken_up_at, one.used_at or 0.0) >= unused_since}
        tables.shards = {of: one for of, one in tables.shards.items() if of.of in used}


class GaugesOf(Part):
    """See handler.store.gauges."""

    @_transaction
    def gauges(self, _: Deadline) -> Gauges:
        tables, now = self.tables, self.tables.now
        owed = tables.open_restarts()
        blocked = [one for one in owed if one.last_answer == "blocked"]
        waiting = [self._wanted_since(one) for one in owed if one not in blocked]
        since = [
            max(one.taken_up_at, one.pass_completed_at or -math.inf)
            for of, one in tables.shards.items()
            if of.of == self.shard.of
        ]
        doubted = [
            max(one.since, tables.hold_ended_at(one.workspace_id))
            for one in tables.doubts.values()
            if not tables.is_on_hold(one.workspace_id)
        ]
        doubted += [one.since for one in tables.sources.values()]
        return Gauges(
            restarts_pending=len(owed),
            restarts_blocked=len(blocked),
            restarts_backing_off=sum(one.backoff_until is not None and one.backoff_until > now for one in owed),
            restarts_unrecovered=sum(map(self._is_unrecovered, tables.restarts)),
            oldest_restart_age_s=max(0.0, now - min(waiting, default=now)),
            coverage_age_s=0.0 if self.our_set_rests() else max(0.0, now - min(since, default=now)),
            on_hold=len(tables.on_hold()),
            oldest_doubt_s=max(0.0, now - min(doubted, default=now)),
        )

    @_transaction
    def fleet_gauges(self, _: Deadline) -> FleetGauges:
        tables, before = self.tables, self.tables.now - UNOWED_SECONDS
        ours = {one: row for one, row in tables.workspaces.items() if row.runtime != EXTERNAL}
        return FleetGauges(
            unrecorded=sum(row.status in CANDIDATE_STATUSES and not row.instance_id for row in ours.values()),
            offline_unowed=sum(
                row.is_offline
                and (row.updated_at is None or row.updated_at < before)
                and not tables.is_restarting(one, by_hand=False)
                for one, row in ours.items()
            ),
        )

    def _wanted_since(self, owed: StoredRestart) -> float:
        first_due_at = owed.flipped_at if owed.first_due_at is None else owed.first_due_at
        backoff_until = first_due_at if owed.backoff_until is None else owed.backoff_until
        return max(first_due_at, backoff_until, self.tables.hold_ended_at(owed.workspace_id))

    def _is_unrecovered(self, one: StoredRestart) -> bool:
        return (
            one.watched_since is not None
            and one.watched_since < self.tables.now - RECOVERY_SECONDS
            and one.watch_ended_at is None
            and one.up_since is None
            and not self.tables.is_on_hold(one.workspace_id)
        )


class Flips(Part):
    """See handler.store.Flips."""

    @_transaction
    def flip(self, deadline: Deadline, confirmed: Sequence[Confirmed], policy: FlipPolicy) -> FlipOutcomes:
        locked = self.lock([one.second.workspace.id for one in confirmed])
        try:
            rows = {one.second.workspace.id: self._current(one.second.workspace, policy, locked) for one in confirmed}
            outcomes: dict[str, Flipped | SkipReason] = {}
            to_write: list[tuple[Confirmed, CurrentRow]] = []
            for one in confirmed:
                row = rows[one.second.workspace.id]
                reason = objection(row, one.second.workspace)
                if reason is not None or row is None:
                    outcomes[one.second.workspace.id] = reason or SkipReason.ROW_GONE
                else:
                    to_write.append((one, row))
            if to_write:
                self.stop_and_go_on("flip", deadline)
                outcomes |= {one.second.workspace.id: self._write(one, row, policy) for one, row in to_write}
            return outcomes
        finally:
            self._unlock()

    @_transaction
    def would_flip(self, _: Deadline, confirmed: Sequence[Confirmed], policy: FlipPolicy) -> FlipOutcomes:
        outcomes: dict[str, Flipped | SkipReason] = {}
        for workspace in (one.second.workspace for one in confirmed):
            row = self._current(workspace, policy, None)
            loop = CrashLoop(0, 0.0) if row is None else crash_loop(row.restarts, row.up_s, policy.crash_loop)
            outcomes[workspace.id] = objection(row, workspace) or Flipped(loop)
        return outcomes

    def lock(self, workspace_ids: Iterable[str]) -> set[str]:
        """Lock the rows and restarts that nobody else has locked; return the workspaces that are locked completely."""
        tables, locked = self.tables, set()
        for one in workspace_ids:
            row, restart = tables.workspaces.get(one), tables.live_restart(one)
            if row is None or row.locked_by is not None:
                continue
            row.locked_by = self.cycle_id
            if restart is None or restart.locked_by is None:
                locked.add(one)
                if restart is not None:
                    restart.locked_by = self.cycle_id
        return locked

    def _unlock(self) -> None:
        for row in self.tables.workspaces.values():
            row.locked_by = None if row.locked_by == self.cycle_id else row.locked_by
        for restart in self.tables.restarts:
            restart.locked_by = None if restart.locked_by == self.cycle_id else restart.locked_by

    def _current(self, workspace: Workspace, policy: FlipPolicy, locked: set[str] | None) -> CurrentRow | None:
        """Return the row as it is read again; `locked` are the workspaces whose locks we have (None: none needed)."""
        tables, now = self.tables, self.tables.now
        row = tables.workspaces.get(workspace.id)
        if row is None:
            return None
        if locked is not None and row.locked_by != self.cycle_id:
            return CurrentRow(None, None, None, False, locked=True)  # noqa: FBT003
        beat_at = row.heartbeat_at
        fresh = _text(beat_at) != workspace.last_heartbeat_at or (
            beat_at is not None
            and (beat_at > float(policy.selected_at) or beat_at > self._vetoes_after(workspace, policy))
        )
        restarts = up_s = None
        if earlier := tables.restarts_of(workspace.id):
            last = earlier[-1]
            marks = (
                [last.watch_ended_at, last.closed_at, last.asked_at] if last.watched_since is None else [last.up_since]
            )
            restarts = last.streak + (last.asked_at is not None)
            up_s = now - next((at for at in marks if at is not None), now)
        by_hand = any(one.by_hand for one in tables.doubts_of(workspace.id))
        return CurrentRow(
            row.status,
            row.instance_id,
            row.runtime,
            fresh,
            on_hold=tables.is_on_hold(workspace.id),
            restarts=restarts,
            up_s=up_s,
            restarting=tables.is_restarting(workspace.id, by_hand=by_hand),
            locked=locked is not None and workspace.id not in locked,
        )

    def _vetoes_after(self, workspace: Workspace, policy: FlipPolicy) -> float:
        """Return the time after which a heartbeat vetoes the flip, even if it came before the SELECT."""
        now, died_at = self.tables.now, policy.died_at.get(workspace.instance_id)
        if died_at is None or not now - OLDEST_EVENT_SECONDS <= died_at <= now:
            return now - policy.heartbeat_fresh_s
        return died_at + HEARTBEAT_ARRIVES_SECONDS

    def _write(self, one: Confirmed, row: CurrentRow, policy: FlipPolicy) -> Flipped | SkipReason:
        """Write one workspace, if nothing has come between."""
        workspace = one.second.workspace
        came_between = self.may_write(workspace.id, policy.clock.at(expiry(one.second)))
        if came_between is not None:
            return came_between
        self.watch.wrote("adopt" if workspace.offline else "flip", one)
        if not workspace.offline:
            stored = self.tables.workspaces[workspace.id]
            stored.status, stored.updated_at = OFFLINE, self.tables.now
            self.tables.events.append((workspace.id, workspace.instance_id))
        loop = crash_loop(row.restarts, row.up_s, policy.crash_loop)
        return Flipped(loop, self._owe(one.second, loop, policy))

    def _owe(self, second: Sighting, loop: CrashLoop, policy: FlipPolicy) -> Restart | None:
        """Record the restart that is owed; end the older one, and return it if it was open."""
        tables, now, workspace = self.tables, self.tables.now, second.workspace
        older, superseded, watched_since = tables.live_restart(workspace.id), None, None
        if older is not None:
            if older.is_open:
                older.closed_at, older.outcome = now, "cancelled"
                superseded = Restart(older.id, workspace.id, older.instance_id, older.attempts)
            older.watch_ended_at = now
            watched_since = older.watched_since if older.instance_id == workspace.instance_id else None
        doubts = tables.doubts_of(workspace.id)
        is_absent, absent = second.verdict is Verdict.ABSENT, tables.doubts.get((workspace.id, Verdict.ABSENT))
        offline_since = min(
            (one.offline_since for one in doubts if one.offline_since is not None and tables.remembers_dead(one)),
            default=now,
        )
        adopted_due_s = max(0.0, policy.restarts.uncertain_s - (now - offline_since))
        due_at = now + (adopted_due_s if workspace.offline else policy.restarts.grace_s)
        for one in tables.restarts_of(workspace.id):
            if one.instance_id == workspace.instance_id and one.asked_at is not None:
                due_at = max(due_at, one.asked_at + policy.restarts.uncertain_s)
        tables.restarts.append(
            StoredRestart(
                id=_next_id(tables),
                workspace_id=workspace.id,
                instance_id=workspace.instance_id,
                cycle_id=self.cycle_id,
                flipped_at=now,
                due_at=due_at,
                streak=loop.streak,
                backoff_until=now + loop.backoff_s if loop.backoff_s else None,
                adopted=workspace.offline,
                released=policy.released,
                absent_sightings=absent.sightings if is_absent and absent is not None else 0,
                absent_since=(now if absent is None else absent.since) if is_absent else None,
                first_due_at=due_at,
                watched_since=watched_since,
            )
        )
        tables.forget(doubts)
        return superseded


class OwnRestarts(Part):
    """What both of the parts about restarts need."""

    def is_still_owed(self, owed: StoredRestart) -> bool:
        """Tell whether the row is offline with the dead instance."""
        row = self.tables.workspaces.get(owed.workspace_id)
        return row is not None and row.status == OFFLINE and row.instance_id == owed.instance_id

    def _cancel_and_watch(self, owed: StoredRestart) -> None:
        owed.closed_at, owed.outcome = self.tables.now, "cancelled"
        owed.watched_since = self.tables.now if owed.watched_since is None else owed.watched_since
        owed.absent_sightings = 0

    def _count_absence(self, owed: StoredRestart) -> None:
        now = self.tables.now
        owed.absent_since = owed.absent_since if owed.absent_sightings and owed.absent_since is not None else now
        owed.absent_sightings += 1
        owed.due_at = now

    def _restart(self, owed: StoredRestart) -> Restart:
        return Restart(
            owed.id,
            owed.workspace_id,
            owed.instance_id,
            owed.attempts,
            owed.refusals,
            owed.released,
            watched=owed.watched_since is not None,
            absent_sightings=owed.absent_sightings,
            absent_s=0.0 if owed.absent_since is None else self.tables.now - owed.absent_since,
            streak=owed.streak,
            last_answer=owed.last_answer,
        )

    def _is_due(self, owed: StoredRestart, grace_s: float) -> bool:
        after_hold = self.tables.hold_ended_at(owed.workspace_id) + grace_s <= self.tables.now
        return owed.due_at <= self.tables.now and after_hold

    def _is_backing_off(self, owed: StoredRestart) -> bool:
        return owed.backoff_until is not None and owed.backoff_until > self.tables.now

    def _may_be_asked(self, owed: StoredRestart, grace_s: float, workspace_ids: Sequence[str] | None) -> bool:
        return (
            self._is_due(owed, grace_s)
            and not self._is_backing_off(owed)
            and not self.tables.is_on_hold(owed.workspace_id)
            and not self.tables.is_stopped()
            and self.is_named(owed, workspace_ids)
        )

    def is_named(self, owed: StoredRestart, workspace_ids: Sequence[str] | None) -> bool:
        """Tell whether the restart is one of the shard's, and of these workspaces."""
        is_named = workspace_ids is None or owed.workspace_id in workspace_ids
        return is_named and self.is_mine(owed.workspace_id)


class Restarts(OwnRestarts):
    """See handler.store.Restarts."""

    @_transaction
    def any_due(self, _: Deadline, *, grace_s: float, workspace_ids: Sequence[str] | None) -> bool:
        return any(self._may_be_asked(one, grace_s, workspace_ids) for one in self.tables.open_restarts())

    @_transaction
    def due(
        self,
        _: Deadline,
        *,
        refused: bool,
        limit: int,
        released_only: bool,
        fresh_s: float,
        grace_s: float,
        workspace_ids: Sequence[str] | None,
    ) -> list[Owed]:
        due = [
            one
            for one in self.tables.open_restarts()
            if self._may_be_asked(one, grace_s, workspace_ids)
            and (one.refusals > 0) is refused
            and (one.released or not released_only)
        ]
        due.sort(key=lambda one: (one.due_at, one.id))
        return [self._owed(one, fresh_s, grace_s) for one in due[:limit]]

    @_transaction
    def claim(
        self,
        deadline: Deadline,
        looked_at: Sequence[tuple[Restart, Sighting]],
        judge: Judge,
        *,
        clock: DatabaseClock,
        fresh_s: float,
        grace_s: float,
        uncertain_s: float,
        retry_s: float,
    ) -> list[RestartDecision]:
        self.require_lease()
        sightings = {restart.id: sighting for restart, sighting in looked_at}
        locked = {one.id: one for one in self._unlocked(sightings) if one.is_open}
        for one in locked.values():
            one.locked_by = self.cycle_id
        try:
            decisions = [
                judge(self._owed(one, fresh_s, grace_s), sightings[one.id]) for one in sorted(locked.values(), key=_id)
            ]
            if any(one.step is not Step.WAIT for one in decisions):
                self.stop_and_go_on("claim", deadline)
            return [
                self._carry_out(one, locked[one.restart.id], sightings[one.restart.id], clock, uncertain_s, retry_s)
                for one in decisions
            ]
        finally:
            for one in locked.values():
                one.locked_by = None

    def _carry_out(
        self,
        decision: RestartDecision,
        owed: StoredRestart,
        sighting: Sighting,
        clock: DatabaseClock,
        uncertain_s: float,
        retry_s: float,
    ) -> RestartDecision:
        tables, now = self.tables, self.tables.now
        match decision.step:
            case Step.ASK:
                if tables.is_stopped() or self.may_write(owed.workspace_id, clock.at(expiry(sighting))) is not None:
                    reason = "the evidence is too old, or a hold or a stop came between"
                    return RestartDecision(decision.restart, Step.WAIT, reason)
                self.watch.wrote("claim", (decision.restart, sighting))
                owed.attempts += 1
                owed.claimed_by, owed.asked_at, owed.last_answer = self.cycle_id, now, "claimed"
                owed.due_at = now + uncertain_s
                owed.watched_since = now if owed.watched_since is None else owed.watched_since
            case Step.CANCEL | Step.CANCEL_AND_WATCH:
                self.watch.wrote("cancel", decision)
                if decision.step is Step.CANCEL_AND_WATCH:
                    self._cancel_and_watch(owed)
                else:
                    owed.closed_at, owed.outcome = now, "cancelled"
            case Step.PUT_OFF:
                self.watch.wrote("put_off", decision)
                owed.due_at = now + retry_s
                if sighting.verdict is Verdict.TRANSITION:
                    owed.absent_sightings = 0
            case Step.NEXT_CYCLE:
                self.watch.wrote("next cycle", decision)
                self._count_absence(owed)
            case Step.WAIT:
                pass
        return decision

    @_transaction
    def put_off(self, _: Deadline, restarts: Sequence[Restart], *, wait_s: float) -> None:
        self.require_lease()
        self.watch.wrote("put_off")
        for one in self._unlocked(restart.id for restart in restarts):
            if one.is_open:
                one.due_at = self.tables.now + wait_s

    @_transaction
    def accepted(self, _: Deadline, restart: Restart) -> None:
        owed = self._lock(restart)
        if owed is not None:
            self.watch.wrote("accepted", restart)
            owed.closed_at, owed.outcome = self.tables.now, "accepted"

    @_transaction
    def record_answer(
        self, _: Deadline, restart: Restart, answer: str, *, wait_s: float | None, claimed: bool = True
    ) -> None:
        owed = self._lock(restart)
        if owed is None:
            return
        if owed.claimed_by == self.cycle_id if claimed else owed.attempts == restart.attempts:
            self.watch.wrote("record_answer")
            owed.last_answer = str(answer)
            if not restart.watched and wait_s is not None:
                owed.watched_since = None
            if wait_s is not None:
                owed.refusals += 1
                owed.due_at = self.tables.now + wait_s

    @_transaction
    def give_back(self, _: Deadline, restart: Restart) -> None:
        owed = self._lock(restart)
        if owed is not None and owed.claimed_by == self.cycle_id and owed.last_answer == "claimed":
            self.watch.wrote("give_back", restart)
            owed.asked_at = owed.asked_at if owed.attempts > 1 else None
            owed.attempts -= 1
            owed.claimed_by, owed.due_at = None, self.tables.now
            owed.last_answer = answered_before(restart)
            owed.watched_since = owed.watched_since if restart.watched else None

    @_transaction
    def stop(self, _: Deadline, *, lasts_s: float) -> None:
        self.watch.wrote("stop")
        tables = self.tables
        tables.stops = [*filter(tables.is_on, tables.stops), StoredStop(tables.now + lasts_s)]

    def _lock(self, restart: Restart) -> StoredRestart | None:
        """Return the open restart. Raises RowLockedError."""
        owed = next((one for one in self.tables.restarts if one.id == restart.id and one.is_open), None)
        if owed is not None and owed.locked_by is not None:
            raise RowLockedError("the restart is locked")
        return owed

    def _owed(self, owed: StoredRestart, fresh_s: float, grace_s: float) -> Owed:
        tables, row = self.tables, self.tables.workspaces.get(owed.workspace_id)
        beat_at = None if row is None else row.heartbeat_at
        return Owed(
            self._restart(owed),
            self.is_still_owed(owed),
            due=self._is_due(owed, grace_s),
            on_hold=tables.is_on_hold(owed.workspace_id),
            backing_off=self._is_backing_off(owed),
            stopped=tables.is_stopped(),
            heartbeat=beat_at is not None and beat_at > tables.now - fresh_s,
        )


class Watches(OwnRestarts):
    """See handler.store.Watches."""

    @_transaction
    def cancel_moved_on(self, _: Deadline) -> list[Restart]:
        self.require_lease()
        self.watch.wrote("cancel_moved_on")
        closed = []
        for one in self.tables.open_restarts():
            if not self.is_still_owed(one) and one.locked_by is None and self.is_mine(one.workspace_id):
                one.closed_at, one.outcome = self.tables.now, "cancelled"
                closed.append(Restart(one.id, one.workspace_id, one.instance_id, one.attempts))
        return closed

    @_transaction
    def watched(self, _: Deadline) -> list[Watched]:
        tables, found = self.tables, []
        for one in sorted(tables.restarts, key=lambda one: (one.due_at, one.id)):
            if one.is_watched and self.is_mine(one.workspace_id):
                row = tables.workspaces.get(one.workspace_id)
                up_s = None if one.up_since is None else tables.now - one.up_since
                same = row is not None and row.instance_id == one.instance_id
                status, on_hold = None if row is None else row.status, tables.is_on_hold(one.workspace_id)
                found.append(Watched(self._restart(one), status, one.is_open, same, up_s, on_hold))
        return found

    @_transaction
    def note_watch(self, _: Deadline, *, ended: Sequence[int], up: Sequence[int], not_up: Sequence[int]) -> None:
        self.require_lease()
        self.watch.wrote("note_watch")
        now = self.tables.now
        for one in self._unlocked([*ended, *up, *not_up]):
            if one.watch_ended_at is None:
                one.watch_ended_at = now if one.id in ended else None
                if one.id not in ended:
                    one.up_since = (now if one.up_since is None else one.up_since) if one.id in up else None

    @_transaction
    def owe_again(
        self, _: Deadline, loops: Mapping[int, tuple[int, float]], *, released: bool = False
    ) -> list[Restart]:
        tables, now, again = self.tables, self.tables.now, []
        for one in self._unlocked(loops):
            is_free = self.lease_is_ours() and not tables.is_on_hold(one.workspace_id)
            others = any(other.is_open for other in tables.restarts_of(one.workspace_id))
            if not one.is_open and one.watch_ended_at is None and is_free and self.is_still_owed(one) and not others:
                self.watch.wrote("owe_again", one)
                one.watch_ended_at = now
                (streak, backoff_s), last = (
                    loops[one.id],
                    [at for at in (one.asked_at, one.closed_at) if at is not None],
                )
                due_at = max(now, max(last) + RECOVERY_SECONDS)
                owed = StoredRestart(
                    id=_next_id(tables),
                    workspace_id=one.workspace_id,
                    instance_id=one.instance_id,
                    cycle_id=self.cycle_id,
                    flipped_at=one.flipped_at,
                    due_at=due_at,
                    streak=streak,
                    backoff_until=now + backoff_s if backoff_s else None,
                    adopted=one.adopted,
                    released=released,
                    absent_sightings=one.absent_sightings,
                    absent_since=one.absent_since,
                    first_due_at=due_at,
                    watched_since=one.watched_since,
                )
                tables.restarts.append(owed)
                again.append(Restart(owed.id, owed.workspace_id, owed.instance_id))
        return again

    @_transaction
    def keep_back(self, _: Deadline, *, grace_s: float, workspace_ids: Sequence[str] | None) -> None:
        self.require_lease()
        self.watch.wrote("keep_back")
        for one in self.tables.open_restarts():
            is_kept_back = self._may_be_asked(one, grace_s, workspace_ids) and not one.released
            if is_kept_back and one.kept_back_at is None and one.locked_by is None:
                one.kept_back_at = self.tables.now

    @_transaction
    def kept_back(self, _: Deadline, *, workspace_ids: Sequence[str] | None) -> list[Restart]:
        kept_back = [
            (one.kept_back_at, one.id, self._restart(one))
            for one in self.tables.open_restarts()
            if one.kept_back_at is not None
            and not one.released
            and not self.tables.is_on_hold(one.workspace_id)
            and self.is_named(one, workspace_ids)
        ]
        return [restart for *_, restart in sorted(kept_back, key=lambda one: one[:2])]

    @_transaction
    def look_at_kept_back(
        self, _: Deadline, *, running: Sequence[Restart], found: Sequence[Restart], others: Sequence[Restart]
    ) -> list[Restart]:
        self.require_lease()
        self.watch.wrote("look_at_kept_back")
        locked = {one.id: one for one in self._unlocked(one.id for one in (*running, *found, *others)) if one.is_open}
        cancelled = [one for one in running if one.id in locked]
        for restart in cancelled:
            self._cancel_and_watch(locked.pop(restart.id))
        for owed in locked.values():
            owed.kept_back_at = self.tables.now
        for restart in found:
            if restart.id in locked:
                locked[restart.id].absent_sightings = 0
        return cancelled

    @_transaction
    def release(self, _: Deadline, *, workspace_ids: Sequence[str] | None) -> None:
        self.require_lease()
        self.watch.wrote("release restarts")
        for one in self.tables.open_restarts():
            if self.is_named(one, workspace_ids) and one.locked_by is None:
                one.released = True

    @_transaction
    def count_absences(
        self, _: Deadline, absent: Iterable[Restart], *, found: Iterable[Restart] = (), others: Iterable[Restart] = ()
    ) -> None:
        self.require_lease()
        for one in self._unlocked(restart.id for restart in absent):
            self.watch.wrote("count_absences", one)
            self._count_absence(one)
        for one in self._unlocked(restart.id for restart in found):
            one.absent_sightings, one.due_at = 0, self.tables.now
        for one in self._unlocked(restart.id for restart in others):
            one.due_at = self.tables.now


class Holds(Part):
    """See handler.store.Holds. Nobody locks a hold here."""

    @_transaction
    def active(self, _: Deadline, *, most: int = MOST_SHOWN) -> ActiveHolds:
        return self._active(most)

    @_transaction
    def exist(self, _: Deadline, workspace_ids: Sequence[str]) -> bool:
        if not self.tables.workspaces.keys() >= set(workspace_ids):
            raise RequestError("event field hold.workspace_ids: no such workspace")
        return True

    @_transaction
    def place(
        self, _: Deadline, workspace_ids: Sequence[str] | None, *, reason: str, lasts_s: float, most: int = MOST_SHOWN
    ) -> ActiveHolds:
        for one in (None,) if workspace_ids is None else workspace_ids:
            self.tables.holds[one] = StoredHold(reason, self.tables.now + lasts_s)
        return self._active(most)

    @_transaction
    def release(self, _: Deadline, workspace_ids: Sequence[str] | None, *, most: int = MOST_SHOWN) -> ActiveHolds:
        tables = self.tables
        loops = [one for one in tables.restarts if one.workspace_id in (workspace_ids or ())]
        if any(one.locked_by is not None and (one.streak or one.backoff_until is not None) for one in loops):
            raise RowLockedError("somebody else has locked a restart, and keeps it so")
        for whose in (None,) if workspace_ids is None else workspace_ids:
            if whose in tables.holds:
                tables.holds[whose].ends_at = min(tables.holds[whose].ends_at, tables.now)
        if workspace_ids is None:
            tables.stops.clear()
        for owed in loops:
            owed.streak, owed.backoff_until = 0, None
        return self._active(most)

    @_transaction
    def in_flight(self, _: Deadline, workspace_ids: Sequence[str] | None, *, locked: bool) -> list[str]:
        return sorted(
            one.workspace_id
            for one in self.tables.open_restarts()
            if (one.last_answer == "claimed" or (locked and one.locked_by is not None))
            and (workspace_ids is None or one.workspace_id in workspace_ids)
        )

    @_transaction
    def count_all(self, _: Deadline) -> int:
        return len(self.tables.on_hold())

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

    def __init__(self, tables: Tables, cycle_id: str, watch: Watch, *, leased: bool, shard: Shard) -> None:
        parts = (tables, cycle_id, watch, None if leased else Ends(), shard)
        self.lease = Lease(*parts) if leased else Expiry(*parts)
        self.candidates = Candidates(*parts)
        self.doubts = Doubts(*parts)
        self.memory = CycleMemory(*parts)
        self.flips = Flips(*parts)
        self.restarts = Restarts(*parts)
        self.watches = Watches(*parts)
        self.holds = Holds(*parts)
        figures = GaugesOf(*parts)
        self.gauges, self.fleet_gauges = figures.gauges, figures.fleet_gauges
        self._watch = watch

    def check_rights(self, deadline: Deadline, *, to_apply: bool) -> None:  # noqa: ARG002 - all rights are given
        self._watch.before("check_rights")
        if deadline.over():
            raise StoreError("no time is left for the transaction")
        self._watch.after("check_rights")


def fake_store(
    tables: Tables, cycle_id: str, watch: Watch | None = None, *, leased: bool = True, shard: Shard = WHOLE
) -> Store:
    """Return the store in memory for one cycle."""
    return cast("Store", FakeStore(tables, cycle_id, watch or Watch(), leased=leased, shard=shard))


def _take_back(record: object, names: Iterable[str], latest: float, new: float) -> None:
    """Set the times of a record that are later than the latest one to a new one."""
    for name in names:
        at = getattr(record, name)
        if at is not None and at > latest:
            setattr(record, name, new)


def _next_id(tables: Tables) -> int:
    return max((one.id for one in tables.restarts), default=0) + 1


def _id(restart: StoredRestart) -> int:
    return restart.id


def _text(at: float | None) -> str | None:
    return None if at is None else repr(at)
