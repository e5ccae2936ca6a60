"""Asks the platform for the restarts that are due.

`handler.domain.restarts` decides. Here its facts are gathered, in the order that makes a call safe: probe the instance;
connect to the platform; claim the restart and read everything again in one transaction; commit; send at once. After a
crash, a claimed restart is left alone for a while. So no restart is lost, and none is asked for twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, zip_longest

from handler.deadline import Deadline
from handler.domain.backoff import retry_backoff
from handler.domain.evidence import DatabaseClock, expiry
from handler.domain.model import LOOKS_DEAD, Cause, Failure, Restart, Sighting
from handler.domain.restarts import Circumstances, Owed, RestartDecision, Step, before_asking, before_probing
from handler.errors import ReconcilerError
from handler.parallel import gathered, in_parallel
from handler.probes import Probe
from handler.restarts import Answer, Connection, Platform, Reply
from handler.settings import Settings
from handler.store import Restarts
from handler.telemetry import CycleLog

CALLS_AT_ONCE = 8
# The platform may take minutes, and goes on when the client hangs up. After this time the restart is uncertain; a later
# cycle sees in the row what became of it.
CALL_SECONDS = 10.0
CONNECT_SECONDS = 3.0
# Restarts that are looked at in addition to those that may be asked for, because some are cancelled or put off.
LOOKED_AT_BESIDES = 100
# Probing must leave time to ask.
PROBING_SHARE = 0.5
# Evidence waits this long for that of others, in seconds, before it is used.
TOGETHER_SECONDS = 0.5
# A call that would be cut off at once does not begin: it would only make its restart uncertain.
SHORTEST_CALL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Ready:
    """A claimed restart, the connection to ask for it on, and when the evidence expires, by the deadlines' clock."""

    restart: Restart
    connection: Connection
    not_after: float


def list_due(
    store: Restarts,
    deadline: Deadline,
    *,
    settings: Settings,
    now: Circumstances,
    most: int,
    refused: bool,
    workspace_ids: Sequence[str] | None = None,
) -> list[Owed]:
    """Return the due restarts that a cycle looks at which asks for `most`: those that were refused before, or not.

    `workspace_ids` narrows them to these; None: all. Raises StoreError.
    """
    return store.due(
        deadline,
        refused=refused,
        limit=most + LOOKED_AT_BESIDES,
        released_only=now.breaker_open,
        fresh_s=settings.heartbeat_fresh_seconds,
        grace_s=settings.restarts.grace_s,
        workspace_ids=workspace_ids,
    )


def in_turn(*lists: Iterable[Owed]) -> Iterable[Owed]:
    """Return due restarts in the order in which they are asked for: by turns one of each list.

    Somebody may have changed one between the two lists, so that it is in both.
    """
    pairs = zip_longest(*lists)
    return {one.restart.workspace_id: one for one in chain.from_iterable(pairs) if one is not None}.values()


class Asking:
    """Asks for the due restarts of one cycle.

    `answers` counts the platform's answers, `cancelled` the restarts that turned out to be needed no more.
    """

    def __init__(
        self,
        store: Restarts,
        probe: Probe,
        settings: Settings,
        *,
        clock: DatabaseClock,
        now: Circumstances,
        workspace_ids: Sequence[str] | None,
        most: int,
        log: CycleLog,
    ) -> None:
        """Take the restarts from `store`: those of these workspaces, or (None) all. Ask for `most` at most."""
        self.answers: Counter[Answer] = Counter()
        self.cancelled = 0
        self._store = store
        self._probe = probe
        self._policy = settings.restarts
        self._fresh_s = settings.heartbeat_fresh_seconds
        self._timeout_s = settings.reconfirm_timeout_seconds
        self._clock = clock
        self._now = now
        self._most = most
        self._list_due = partial(list_due, store, settings=settings, now=now, most=most, workspace_ids=workspace_ids)
        self._log = log
        self._stopped_s = 0.0  # from the platform's Retry-After

    def ask_for_the_due(
        self, make_platform: Callable[[Deadline], Platform], deadline: Deadline, closing: Deadline
    ) -> Iterator[None]:
        """Ask for the due restarts, a group at a time, as far as time allows; yield after each group.

        What happened may be recorded until `closing`.
        """
        due = iter(self._due(deadline, closing))
        platform, calls = None, 0
        while calls < self._most and not self._stopped_s and deadline.remaining() > SHORTEST_CALL_SECONDS:
            group = list(islice(due, min(CALLS_AT_ONCE, self._most - calls)))
            if not group:
                return
            platform = platform or make_platform(deadline)
            calls += self._ask_for(group, platform, deadline, closing)
            yield

    def _due(self, deadline: Deadline, closing: Deadline) -> list[Restart]:
        """Return the due restarts that need a probe, in turn."""
        lists = (self._list_due(self._one_look(deadline), refused=refused) for refused in (False, True))
        put_off, to_probe = [], []
        for one in in_turn(*lists):
            decision = before_probing(one, self._now)
            if decision is None or decision.step is Step.CANCEL:  # that is decided again under its lock
                to_probe.append(one.restart)
            elif decision.step is Step.PUT_OFF:
                put_off.append(one.restart)
                self._log.restart("restart put off", one.restart, decision.reason)
        if put_off:
            self._store.put_off(closing, put_off, wait_s=self._policy.retry_s)
        return to_probe

    def _ask_for(self, group: Sequence[Restart], platform: Platform, deadline: Deadline, closing: Deadline) -> int:
        """Probe a few restarts' instances, and ask for those that are still dead; return how many calls were made."""
        unanswered: dict[int, Restart] = {}
        calls = 0

        def claimed() -> Iterator[Ready]:
            for ready in self._claimed(group, platform, deadline, closing):
                unanswered[ready.restart.id] = ready.restart
                yield ready

        def ask(ready: Ready) -> tuple[Restart, Reply]:
            restart, connection = ready.restart, ready.connection
            try:
                time_left = deadline.within(CALL_SECONDS)
                reply = connection.restart(
                    restart.workspace_id, restart.instance_id, time_left, not_after=ready.not_after
                )
            except Exception as error:  # noqa: BLE001 - an unexpected error must cost only its own call
                reply = Reply(Answer.UNCERTAIN, Failure(Cause.UNEXPECTED, type(error).__name__))
            finally:
                connection.close()
            return restart, reply

        for restart, reply in in_parallel(ask, claimed(), deadline, at_once=CALLS_AT_ONCE):
            del unanswered[restart.id]
            if reply.answer is Answer.REFUSED and reply.reason.cause is not Cause.HTTP_STATUS:  # nothing was sent
                self._give_back(restart, closing)
            else:
                calls += 1
                self._settle(restart, reply, closing)
        for restart in unanswered.values():
            self._settle(restart, Reply(Answer.UNCERTAIN, Failure(Cause.OUT_OF_TIME)), closing)
        return calls + len(unanswered)

    def _claimed(
        self, group: Sequence[Restart], platform: Platform, deadline: Deadline, closing: Deadline
    ) -> Iterator[Ready]:
        """Probe, connect and claim; yield each restart right after its claim. One that was not reached is put off."""
        unreached = {one.workspace_id: one for one in group}
        probing = deadline.within(deadline.remaining() * PROBING_SHARE)
        sightings = self._probe.sightings([one.as_candidate() for one in group], probing)
        for together in gathered(sightings, probing, most=CALLS_AT_ONCE, longest_s=TOGETHER_SECONDS):
            seen = [(unreached.pop(one.workspace.id), one) for one in together]
            if deadline.remaining() < SHORTEST_CALL_SECONDS:
                return
            to_connect = [restart for restart, sighting in seen if sighting.verdict in LOOKS_DEAD]
            connections = self._connected(platform, to_connect, deadline, closing)
            # One that looks dead is claimed with a connection or not at all; the others only need a decision.
            decidable = [one for one in seen if one[0] not in to_connect or one[0].id in connections]
            try:
                yield from self._decided(decidable, connections, deadline)
            finally:
                for connection in connections.values():
                    connection.close()
        if unreached:
            self._store.put_off(closing, unreached.values(), wait_s=self._policy.retry_s)

    def _connected(
        self, platform: Platform, restarts: Iterable[Restart], deadline: Deadline, closing: Deadline
    ) -> dict[int, Connection]:
        """Return a connection for each restart, by its id. Where there is none, the platform has refused."""
        time_left = deadline.within(CONNECT_SECONDS)

        def connect(restart: Restart) -> tuple[Restart, Connection | Reply]:
            try:
                return restart, platform.connect(time_left)
            except Exception as error:  # noqa: BLE001 - an unexpected error must cost only its own call
                return restart, Reply(Answer.REFUSED, Failure(Cause.UNEXPECTED, type(error).__name__))

        connections: dict[int, Connection] = {}
        for restart, made in in_parallel(connect, iter(restarts), time_left, at_once=CALLS_AT_ONCE):
            if isinstance(made, Reply):
                self._settle(restart, made, closing, claimed=False)
            else:
                connections[restart.id] = made
        return connections

    def _decided(
        self, seen: Sequence[tuple[Restart, Sighting]], connections: dict[int, Connection], deadline: Deadline
    ) -> Iterator[Ready]:
        """Decide about the restarts under their locks; yield those that are claimed."""
        not_after = {restart.id: expiry(sighting) for restart, sighting in seen}

        def judge(owed: Owed, sighting: Sighting) -> RestartDecision:
            return before_asking(owed, sighting, self._now)

        try:
            decisions = self._store.claim(
                self._one_look(deadline),
                seen,
                judge,
                clock=self._clock,
                fresh_s=self._fresh_s,
                grace_s=self._policy.grace_s,
                uncertain_s=self._policy.uncertain_s,
                retry_s=self._policy.retry_s,
            )
        except ReconcilerError as error:
            self._log.failure("restarts left for the next cycle", error)
            return
        for one in decisions:
            if one.step is Step.ASK:
                yield Ready(one.restart, connections.pop(one.restart.id), not_after[one.restart.id])
            elif one.step in (Step.CANCEL, Step.CANCEL_AND_WATCH):
                self._cancelled(one.restart, one.reason)
            elif one.step in (Step.PUT_OFF, Step.NEXT_CYCLE):
                self._log.restart("restart put off", one.restart, one.reason)

    def _settle(self, restart: Restart, reply: Reply, closing: Deadline, *, claimed: bool = True) -> None:
        """Record the platform's answer."""
        self.answers[reply.answer] += 1
        wait_s = None if reply.answer is Answer.UNCERTAIN else retry_backoff(restart.refusals, self._policy.retry_s)
        attempt = restart.attempts + claimed
        self._log.restart(f"restart {reply.answer}", restart, str(reply.reason), attempt=attempt)
        if reply.retry_after_s is not None and reply.retry_after_s > self._stopped_s:
            self._stop(reply.retry_after_s, closing)
        try:
            if reply.answer is Answer.ACCEPTED:
                self._store.accepted(closing, restart)
            else:
                self._store.record_answer(closing, restart, reply.answer, wait_s=wait_s, claimed=claimed)
        except ReconcilerError as error:  # the claim still keeps others from asking
            self._log.failure("platform's answer not recorded", error)

    def _give_back(self, restart: Restart, closing: Deadline) -> None:
        """Undo a claim: nothing was sent after all."""
        try:
            self._store.give_back(closing, restart)
        except ReconcilerError as error:  # then it counts as uncertain
            self._log.failure("claim not given back", error)

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
        self.cancelled += 1
        self._log.restart("restart cancelled", restart, reason)
