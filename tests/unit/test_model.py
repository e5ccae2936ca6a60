"""What an instance's state means."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.model import NOT_FOUND, VERDICT_OF_STATE, SkipReason, Verdict, sighting_of, unknown
from handler.domain.report import Report
from tests.unit.builders import debt, instance, uuid, workspace


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("running", Verdict.RUNNING),
        ("pending", Verdict.TRANSITION),
        ("stopping", Verdict.TRANSITION),
        ("shutting-down", Verdict.TRANSITION),
        ("stopped", Verdict.DEAD),
        ("terminated", Verdict.DEAD),
        ("not_found", Verdict.ABSENT),
    ],
)
def test_each_of_ec2s_words_has_its_verdict(state: str, verdict: Verdict) -> None:
    sighting = sighting_of(workspace(), state, took_s=1.5)
    assert (sighting.verdict, sighting.state, sighting.cause, sighting.took_s) == (verdict, state, "", 1.5)


@pytest.mark.parametrize(
    "state",
    [
        "",
        " ",
        "Running",
        "TERMINATED",
        "terminated ",
        "terminated\n",
        "dead",
        "not found",
        "notfound",
        "unknown",
        "null",
    ],
    ids=repr,
)
def test_a_word_that_is_nearly_ec2s_is_unknown(state: str) -> None:
    assert sighting_of(workspace(), state).verdict is Verdict.UNKNOWN


@given(st.text())
def test_whatever_else_is_said_is_unknown_and_not_repeated(state: str) -> None:
    if state not in VERDICT_OF_STATE:
        sighting = sighting_of(workspace(), state)
        assert (sighting.verdict, sighting.state, sighting.cause) == (Verdict.UNKNOWN, "", "unrecognised_state")


def test_no_answer_is_unknown_and_says_why() -> None:
    sighting = unknown(workspace(), "timeout")
    assert (sighting.verdict, sighting.state, sighting.cause) == (Verdict.UNKNOWN, "", "timeout")


def test_a_debt_is_probed_as_the_workspace_and_the_instance_that_it_is_for() -> None:
    candidate = debt(7).as_candidate()
    assert (candidate.id, candidate.instance_id) == (uuid(7), instance(7))


def test_a_new_report_says_that_nothing_happened() -> None:
    report = asdict(Report("apply", "ec2"))
    assert report.pop("skipped") == dict.fromkeys([reason.value for reason in SkipReason], 0)
    assert set(report.pop("restarts").values()) == {0}
    named = {"mode": "apply", "probe": "ec2", "outcome": "completed", "flips": []}
    assert {key: value for key, value in report.items() if value} == {k: v for k, v in named.items() if v}


def test_two_reports_do_not_share_their_counts() -> None:
    one, other = Report("apply", "ec2"), Report("apply", "ec2")
    one.skipped[SkipReason.ROW_GONE] += 1
    one.restarts.requested += 1
    assert other.skipped["row_gone"] == 0
    assert other.restarts.requested == 0


def test_not_found_is_the_word_that_the_control_plane_uses() -> None:
    assert NOT_FOUND == "not_found"
