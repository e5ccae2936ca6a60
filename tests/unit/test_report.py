"""The report of a cycle."""

from dataclasses import asdict, replace

from handler.domain.model import SkipReason
from handler.domain.report import Report, RestartCounts

FIELDS = (
    *("mode", "probe", "outcome", "candidates", "checked", "running", "transition", "dead", "absent", "unknown"),
    *("impaired", "flipped", "adopted", "completed_pass", "skipped", "deferred", "deadline_hit", "breaker_open"),
    *("restarts", "on_hold", "oldest_doubt_seconds", "unrecorded", "offline_unowed"),
    *("targets_failed", "targets_empty", "duration_ms", "flips"),
)
SKIPPED = (
    *("row_gone", "status_moved", "instance_cleared", "instance_changed", "row_locked", "on_hold", "fresh_heartbeat"),
    *("reconfirm_error", "not_confirmed", "breaker_open", "out_of_time"),
)
RESTARTS = ("accepted", "cancelled", "refused", "uncertain", "blocked", "pending", "backing_off", "unrecovered")


def test_a_report_has_its_fields_in_their_order() -> None:
    report = asdict(Report("apply", "ec2"))
    assert tuple(report) == FIELDS
    assert tuple(report["skipped"]) == SKIPPED
    assert tuple(report["restarts"]) == RESTARTS


def test_a_new_report_counts_nothing() -> None:
    report = asdict(Report("apply", "ec2"))
    assert report.pop("skipped") == dict.fromkeys([reason.value for reason in SkipReason], 0)
    assert set(report.pop("restarts").values()) == {0}
    assert {key: value for key, value in report.items() if value} == {
        "mode": "apply",
        "probe": "ec2",
        "outcome": "completed",
    }


def test_reports_share_no_counts() -> None:
    one, other = Report("apply", "ec2"), Report("apply", "ec2")
    one.skipped[SkipReason.ROW_GONE] += 1
    assert other.skipped["row_gone"] == 0
    assert replace(one, restarts=RestartCounts(accepted=1)).restarts.accepted == 1
    assert (one.restarts.accepted, other.restarts.accepted) == (0, 0)
