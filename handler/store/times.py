"""Our own times, in case the database's clock was far ahead for a while.

A time that lies in the future for that reason would hold back what waits for it, and no age would show it. So each full
cycle takes such times back. Leases, and stops of the platform's, are ignored where they are read. Holds stay: whoever
places one sees when it ends, and may release it.
"""

from handler.domain.backoff import LONGEST_CRASH_LOOP_BACKOFF_S
from handler.store.doubts import SEEN_LATELY
from handler.store.tables import IS_OPEN_OR_WATCHED

# What happened lies no further ahead than this: transactions that began later, and the clocks of two servers, make out
# far less.
TOLERANCE_SECONDS = 60.0
# A cycle takes back no more rows of a table; the others follow in the next ones.
MOST_AT_ONCE = 5000

# When something happened, by table. It becomes now.
HAPPENED = {
    "shard_coverage": ("taken_up_at", "used_at", "pass_completed_at"),
    "doubts": ("since", "last_seen_at", "offline_since"),
    "source_doubts": ("since", "last_seen_at"),
    "restarts": (
        *("flipped_at", "asked_at", "closed_at", "kept_back_at", "absent_since"),
        *("watched_since", "up_since", "watch_ended_at"),
    ),
}
# When a restart is due. It becomes the longest wait from now, because nobody knows how much of its own has passed.
WAITS = {
    "due_at": "CAST(:longest_wait_s AS double precision)",
    "first_due_at": "CAST(:longest_wait_s AS double precision)",
    "backoff_until": f"{LONGEST_CRASH_LOOP_BACKOFF_S}",
}


def _is_ahead(name: str) -> str:
    return f"{name} > now() + make_interval(secs => {WAITS.get(name, TOLERANCE_SECONDS)})"


def _take_back(table: str) -> str:
    columns = (*HAPPENED[table], *(WAITS if table == "restarts" else ()))
    assignments = [
        f"{one} = CASE WHEN {_is_ahead(one)} THEN now() + make_interval(secs => {WAITS.get(one, 0)}) ELSE {one} END"
        for one in columns
    ]
    return f"""
    UPDATE reconciler.{table} SET {", ".join(assignments)}
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM reconciler.{table}
        WHERE {_READ.get(table, "true")} AND ({" OR ".join(map(_is_ahead, columns))})
        LIMIT {MOST_AT_ONCE} FOR UPDATE SKIP LOCKED
    ))"""  # noqa: S608 - put together from constants


# Only what somebody reads is looked for, and that by indexes.
_READ = {
    "doubts": f"""({_is_ahead("since")}
        OR kind IN ('absent', 'dead') AND {SEEN_LATELY})""",
    "restarts": f"""({IS_OPEN_OR_WATCHED} OR {_is_ahead("flipped_at")} OR {_is_ahead("closed_at")})""",
}
# One statement, because each costs a round trip. Parameter: `longest_wait_s`.
TAKE_BACK_TIMES = f"WITH {', '.join(f'in_{table} AS ({_take_back(table)})' for table in HAPPENED)} SELECT"
