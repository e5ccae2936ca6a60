"""The growing waits before a restart: after refusals, and in a crash loop. Pure."""

from dataclasses import dataclass

from handler.domain.policy import CrashLoopPolicy

LONGEST_RETRY_BACKOFF_S = 900.0
# This many restarts in a row come at once. Each further one has to wait.
RESTARTS_WITHOUT_BACKOFF = 3
LONGEST_CRASH_LOOP_BACKOFF_S = 4 * 3600.0
# A streak is counted no further: it must never be too large for its column.
LONGEST_STREAK = 1_000_000
# Enough to get from a microsecond to the longest wait, and few enough for a float.
_MOST_DOUBLINGS = 32


def retry_backoff(refusals: int, retry_s: float) -> float:
    """Return how many seconds to wait after a refusal. Each of the `refusals` before it doubles the wait."""
    longest = max(LONGEST_RETRY_BACKOFF_S, retry_s)
    return min(retry_s * 2.0 ** min(refusals, _MOST_DOUBLINGS), longest)


@dataclass(frozen=True, slots=True)
class CrashLoop:
    """How many restarts in a row came before, without a healthy stretch, and how many seconds the next one waits."""

    streak: int
    backoff_s: float


def crash_loop(restarts: int | None, up_s: float | None, policy: CrashLoopPolicy) -> CrashLoop:
    """Return the crash loop of a workspace that has just died. Its streak is 0 if it is in none.

    `restarts` in a row were asked for, and it was up for `up_s` seconds since the last one; None if there was none.
    """
    if restarts is None or up_s is None or up_s >= policy.reset_s:
        return CrashLoop(0, 0.0)
    doublings = min(restarts - RESTARTS_WITHOUT_BACKOFF, _MOST_DOUBLINGS)
    wait_s = 0.0 if doublings < 0 else min(policy.backoff_s * 2.0**doublings, LONGEST_CRASH_LOOP_BACKOFF_S)
    return CrashLoop(min(restarts, LONGEST_STREAK), wait_s)
