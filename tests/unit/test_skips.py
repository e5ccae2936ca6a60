"""Skipped tests, here and in CI."""

import pytest

from tests.support.skips import fail_if_skipped


def skipped_report() -> pytest.TestReport:
    why = ("test_it.py", 1, "Skipped: no browser on this machine")
    return pytest.TestReport("test_it", ("test_it.py", 1, "test_it"), {}, "skipped", why, "setup")


def test_a_skip_fails_in_ci_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    report = skipped_report()
    fail_if_skipped(report)
    assert (report.outcome, report.longrepr) == ("failed", "A skip fails in CI. Skipped: no browser on this machine")


def test_a_skip_is_a_skip_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    report = skipped_report()
    fail_if_skipped(report)
    assert report.outcome == "skipped"


def test_an_expected_failure_is_no_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    report = skipped_report()
    report.wasxfail = "a bug of pytest's own"
    fail_if_skipped(report)
    assert report.outcome == "skipped"
