"""The growing waits before a restart."""

import pytest

from handler.domain.backoff import CrashLoop, crash_loop, retry_backoff
from handler.domain.policy import CrashLoopPolicy

# --- after refusals ---


@pytest.mark.parametrize(
    ("refusals", "retry_s", "expected_s"),
    [
        *[(0, 60, 60), (1, 60, 120), (2, 60, 240), (3, 60, 480), (4, 60, 900), (5, 60, 900), (10_000, 60, 900)],
        *[(0, 0, 0), (9, 0, 0), (0, 900, 900), (0, 3600, 3600), (5, 3600, 3600)],
    ],
)
def test_the_wait_doubles_with_each_refusal(refusals: int, retry_s: float, expected_s: float) -> None:
    """It grows up to fifteen minutes, or to the setting if that is longer."""
    assert retry_backoff(refusals, retry_s) == expected_s


# --- in a crash loop ---

BY_DEFAULT = CrashLoopPolicy(backoff_s=300, reset_s=3600)


def loop(restarts: int | None, up_s: float | None = 0.0, policy: CrashLoopPolicy = BY_DEFAULT) -> CrashLoop:
    """Return the crash loop of a workspace after so many restarts, which has been up for `up_s` seconds since."""
    return crash_loop(restarts, up_s, policy)


def test_a_workspace_that_was_never_restarted_is_in_no_loop() -> None:
    assert loop(None, None) == CrashLoop(0, 0)


@pytest.mark.parametrize(
    ("restarts", "backoff_s"),
    [(0, 0), (1, 0), (2, 0), (3, 300), (4, 600), (5, 1200), (6, 2400), (7, 4800), (8, 9600), (9, 14_400), (10, 14_400)],
)
def test_the_back_off_doubles_from_the_fourth_restart_on(restarts: int, backoff_s: float) -> None:
    """Three restarts follow at once. The back-off grows up to four hours."""
    assert loop(restarts) == CrashLoop(restarts, backoff_s)


@pytest.mark.parametrize(
    ("up_s", "expected"), [(-1, CrashLoop(3, 300)), (3599.9, CrashLoop(3, 300)), (3600, CrashLoop(0, 0))]
)
def test_a_long_time_up_ends_a_loop(up_s: float, expected: CrashLoop) -> None:
    assert loop(3, up_s) == expected


@pytest.mark.parametrize("restarts", [34, 35, 36, 1000, 100_000])
def test_the_longest_loop_has_the_longest_back_off(restarts: int) -> None:
    assert loop(restarts) == CrashLoop(restarts, 14_400)


@pytest.mark.parametrize("restarts", [0, 3, 4, 1000])
def test_a_back_off_of_zero_only_counts_the_restarts(restarts: int) -> None:
    assert loop(restarts, policy=CrashLoopPolicy(0, 3600)) == CrashLoop(restarts, 0)


def test_no_setting_exceeds_the_longest_back_off() -> None:
    assert loop(3, policy=CrashLoopPolicy(86_400, 3600)) == CrashLoop(3, 14_400)


def test_a_reset_after_zero_seconds_allows_no_loop() -> None:
    assert loop(100, 0.0, CrashLoopPolicy(300, 0)) == CrashLoop(0, 0)
