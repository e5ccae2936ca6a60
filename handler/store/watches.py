"""Restarts that are looked after without being asked for: moved on, kept back, released, watched, owed again.

What becomes of a restart is decided in `handler.domain.restarts`. Here its facts are read, and the steps are written.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from handler.deadline import Deadline
from handler.domain.model import Restart
from handler.domain.restarts import RECOVERY_SECONDS, Watched
from handler.domain.shards import WHOLE, Shard
from handler.store.holds import on_hold
from handler.store.lease import LEASE_IS_OURS, Lease
from handler.store.restarts import (
    CANCEL,
    COUNT_ABSENCE,
    IN_SHARD,
    LOCK_OPEN,
    LOCK_RESTARTS,
    MAY_BE_ASKED,
    NAMED,
    RESTART,
    STILL_OWED,
    restart_and_rest,
)
from handler.store.session import LOCK_WAIT_SECONDS, Session
from handler.store.shards import range_of
from handler.store.tables import IS_WATCHED, short
from handler.store.transaction import ids_or_null

# A cycle cancels no more restarts than this because their rows moved on, and marks no more as kept back; the others
# follow in the next ones.
MOST_AT_ONCE = 5000
# A cycle reads no more watched restarts, ...
MOST_WATCHED = 20_000
# ... and probes no more that the breaker keeps back, which takes a few calls of EC2's.
MOST_KEPT_BACK = 1000

# What somebody else has locked is passed over, here and below: the next cycle sees it again.
_CANCEL_MOVED_ON = f"""
UPDATE reconciler.restarts SET closed_at = now(), outcome = 'cancelled'
WHERE id = ANY (ARRAY(
    SELECT owed.id FROM reconciler.restarts AS owed
    WHERE closed_at IS NULL AND {IN_SHARD}
      AND NOT EXISTS (SELECT FROM platform.workspaces AS current
                      WHERE current.id = owed.workspace_id AND {STILL_OWED})
    LIMIT {MOST_AT_ONCE} FOR UPDATE SKIP LOCKED
))
RETURNING id, workspace_id::text, {short("instance_id")}, attempts
"""  # noqa: S608 - put together from constants
WATCHED = f"""
SELECT {RESTART}, {short("current.status::text")}, closed_at IS NULL,
       COALESCE(current.instance_id = owed.instance_id, false),
       CAST(extract(epoch FROM now() - up_since) AS double precision), {on_hold("owed.workspace_id")}
FROM reconciler.restarts AS owed LEFT JOIN platform.workspaces AS current ON current.id = owed.workspace_id
WHERE {IS_WATCHED}
"""  # noqa: S608 - put together from constants
_WATCHED = f"{WATCHED} AND {IN_SHARD} ORDER BY due_at, owed.id LIMIT {MOST_WATCHED}"
_NOTE_WATCH = """
UPDATE reconciler.restarts SET
    watch_ended_at = CASE WHEN id = ANY (CAST(:ended AS bigint[])) THEN now() END,
    up_since = CASE WHEN id = ANY (CAST(:up AS bigint[])) THEN COALESCE(up_since, now())
                    WHEN id = ANY (CAST(:ended AS bigint[])) THEN up_since END
WHERE id = ANY (ARRAY(
    SELECT id FROM reconciler.restarts
    WHERE id = ANY (CAST(:all AS bigint[])) AND watch_ended_at IS NULL
      AND (id = ANY (CAST(:ended AS bigint[])) OR (id = ANY (CAST(:up AS bigint[]))) = (up_since IS NULL))
    FOR UPDATE SKIP LOCKED
))
"""
_OWE_AGAIN = f"""
WITH again AS (
    SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb))
                  AS again (id bigint, streak integer, backoff_s double precision)
), ended AS (
    UPDATE reconciler.restarts AS owed SET watch_ended_at = now()
    FROM platform.workspaces AS current
    WHERE owed.id IN (SELECT id FROM reconciler.restarts
                      WHERE id IN (SELECT id FROM again) AND closed_at IS NOT NULL AND watch_ended_at IS NULL
                      FOR UPDATE SKIP LOCKED)
      AND current.id = owed.workspace_id AND {STILL_OWED} AND NOT {on_hold("owed.workspace_id")} AND {LEASE_IS_OURS}
      AND NOT EXISTS (SELECT FROM reconciler.restarts AS other
                      WHERE other.workspace_id = owed.workspace_id AND other.closed_at IS NULL)
    RETURNING owed.*
)
INSERT INTO reconciler.restarts (workspace_id, instance_id, cycle_id, flipped_at, adopted, streak, backoff_until,
                                 watched_since, absent_sightings, absent_since, due_at, first_due_at, released)
SELECT workspace_id, instance_id, CAST(:cycle_id AS uuid), flipped_at, adopted, again.streak,
       now() + make_interval(secs => again.backoff_s), watched_since, absent_sightings, absent_since, due.at, due.at,
       :released
FROM ended JOIN again USING (id), LATERAL (
    SELECT GREATEST(now(), GREATEST(asked_at, closed_at) + make_interval(secs => {RECOVERY_SECONDS})) AS at
) AS due
RETURNING id, workspace_id::text, {short("instance_id")}
"""  # noqa: S608 - put together from constants
_KEEP_BACK = f"""
UPDATE reconciler.restarts SET kept_back_at = now()
WHERE id = ANY (ARRAY(
    SELECT owed.id FROM reconciler.restarts AS owed
    WHERE closed_at IS NULL AND kept_back_at IS NULL AND NOT released AND {MAY_BE_ASKED}
    LIMIT {MOST_AT_ONCE} FOR UPDATE SKIP LOCKED
))
"""  # noqa: S608 - put together from constants
# What the breaker counts, the least recently looked at first.
_KEPT_BACK = f"""
SELECT {RESTART} FROM reconciler.restarts AS owed
WHERE closed_at IS NULL AND kept_back_at IS NOT NULL AND NOT released AND NOT {on_hold("owed.workspace_id")} AND {NAMED}
ORDER BY kept_back_at, owed.id LIMIT {MOST_KEPT_BACK}
"""  # noqa: S608 - put together from constants
_STAYS_KEPT_BACK = """
UPDATE reconciler.restarts
SET kept_back_at = now(),
    absent_sightings = CASE WHEN id = ANY (CAST(:found AS bigint[])) THEN 0 ELSE absent_sightings END
WHERE id = ANY (CAST(:ids AS bigint[]))
"""
_RELEASE = f"""
UPDATE reconciler.restarts SET released = true
WHERE id = ANY (ARRAY(
    SELECT owed.id FROM reconciler.restarts AS owed
    WHERE closed_at IS NULL AND NOT released AND {NAMED}
    FOR UPDATE SKIP LOCKED
))
"""  # noqa: S608 - put together from constants
_LOOKED_AT = "UPDATE reconciler.restarts SET due_at = now() WHERE id = ANY (CAST(:ids AS bigint[]))"
_FORGET_ABSENCES = _LOOKED_AT.replace("SET", "SET absent_sightings = 0,")


class Watches:
    """The restarts that one cycle looks after. `workspace_ids` narrows a method to these; None: all of the shard's.

    Every method raises StoreError.
    """

    def __init__(self, session: Session, cycle_id: str, lease: Lease, shard: Shard = WHOLE) -> None:
        """Act for the cycle `cycle_id`, a UUID, on a shard's restarts, as long as the lease is ours."""
        self._session = session
        self._cycle_id = cycle_id
        self._lease = lease
        self._range = range_of(shard)

    def cancel_moved_on(self, deadline: Deadline) -> list[Restart]:
        """Cancel the open restarts whose row is gone, or is no longer offline with the dead instance; return them."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            rows = transaction.run(_CANCEL_MOVED_ON, **self._range)
        return [Restart(*row) for row in rows]

    def watched(self, deadline: Deadline) -> list[Watched]:
        """Return the watched restarts, the least recently looked at first, and what became of their workspaces."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            rows = transaction.run(_WATCHED, **self._range)
        return [Watched(restart, *rest) for restart, rest in map(restart_and_rest, rows)]

    def note_watch(self, deadline: Deadline, *, ended: Sequence[int], up: Sequence[int], not_up: Sequence[int]) -> None:
        """Note which watches are over, and which watched workspaces are up and not up, by their restarts' ids."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_NOTE_WATCH, ended=list(ended), up=list(up), all=[*ended, *up, *not_up])

    def owe_again(
        self, deadline: Deadline, loops: Mapping[int, tuple[int, float]], *, released: bool = False
    ) -> list[Restart]:
        """Owe closed restarts once more whose instance is still dead; return the new ones.

        `loops` has, by a restart's id, the streak and the back-off in seconds of the new one. An open breaker does not
        stop `released` ones.
        """
        rows = [{"id": one, "streak": streak, "backoff_s": wait_s or None} for one, (streak, wait_s) in loops.items()]
        with self._session.transaction(deadline, lock_wait_s=LOCK_WAIT_SECONDS) as transaction:
            again = transaction.run(_OWE_AGAIN, **self._lease.own, rows=json.dumps(rows), released=released)
        return [Restart(*row) for row in again]

    def keep_back(self, deadline: Deadline, *, grace_s: float, workspace_ids: Sequence[str] | None) -> None:
        """Note which restarts the open breaker, and nothing else, keeps from being asked for."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            ids = ids_or_null(workspace_ids)
            transaction.run(_KEEP_BACK, grace_s=grace_s, workspace_ids=ids, **self._range)

    def kept_back(self, deadline: Deadline, *, workspace_ids: Sequence[str] | None) -> list[Restart]:
        """Return restarts that an open breaker keeps back, the least recently looked at first."""
        with self._session.transaction(deadline, read_only=True) as transaction:
            rows = transaction.run(_KEPT_BACK, workspace_ids=ids_or_null(workspace_ids), **self._range)
        return [Restart(*row) for row in rows]

    def look_at_kept_back(
        self, deadline: Deadline, *, running: Sequence[Restart], found: Sequence[Restart], others: Sequence[Restart]
    ) -> list[Restart]:
        """Note that kept back restarts were looked at. Cancel those whose instance is `running`, watch and return them.

        Those `found` in another state were not absent after all.
        """
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            looked_at = [one.id for one in (*running, *found, *others)]
            locked = {one for (one,) in transaction.run(LOCK_OPEN, ids=looked_at)}
            cancelled = [one for one in running if one.id in locked]
            transaction.run(CANCEL, ids=[one.id for one in cancelled], watch=True)
            stay = locked.difference(one.id for one in cancelled)
            transaction.run(_STAYS_KEPT_BACK, ids=list(stay), found=[one.id for one in found])
        return cancelled

    def release(self, deadline: Deadline, *, workspace_ids: Sequence[str] | None) -> None:
        """Have the open restarts pass an open breaker, in this cycle and in any later one."""
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            transaction.run(_RELEASE, workspace_ids=ids_or_null(workspace_ids), **self._range)

    def count_absences(
        self,
        deadline: Deadline,
        absent: Iterable[Restart],
        *,
        found: Iterable[Restart] = (),
        others: Iterable[Restart] = (),
    ) -> None:
        """Count one more cycle in which the instances of watched restarts were `absent`; forget it of those `found`.

        All of these, and the `others`, are behind those that were not looked at.
        """
        steps = ((COUNT_ABSENCE, absent), (_FORGET_ABSENCES, found), (_LOOKED_AT, others))
        with self._session.transaction(deadline) as transaction:
            self._lease.require(transaction)
            for statement, restarts in steps:
                locked = transaction.run(LOCK_RESTARTS, ids=[one.id for one in restarts])
                transaction.run(statement, ids=[one for (one,) in locked])
