"""The values that a cycle works with: what an instance's state means, and the words for the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.model import NOT_FOUND, VERDICT_OF_STATE, Cause, Failure, Verdict, sighting_of, unknown
from tests.unit.builders import instance, restart, uuid, workspace


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
def test_each_state_of_ec2_has_its_verdict(state: str, verdict: Verdict) -> None:
    sighting = sighting_of(workspace(), state, took_s=1.5)
    assert (sighting.verdict, sighting.state, sighting.took_s) == (verdict, state, 1.5)
    assert (sighting.failure, sighting.reason) == (None, "")


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
def test_any_other_word_is_unknown_and_not_repeated(state: str) -> None:
    if state not in VERDICT_OF_STATE:
        sighting = sighting_of(workspace(), state)
        assert (sighting.verdict, sighting.state) == (Verdict.UNKNOWN, "")
        assert (sighting.failure, sighting.reason) == (Failure(Cause.UNRECOGNISED_STATE), "unrecognised_state")


def test_an_unknown_instance_has_a_reason() -> None:
    sighting = unknown(workspace(), Failure(Cause.TIMEOUT))
    assert (sighting.verdict, sighting.state, sighting.reason) == (Verdict.UNKNOWN, "", "timeout")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(Cause.TIMEOUT), "timeout"),
        (Failure(Cause.HTTP_STATUS, "503"), "http_503"),
        (Failure(Cause.REFUSED), "refused"),
        (Failure(Cause.REFUSED, "AuthFailure"), "refused_AuthFailure"),
        (Failure(Cause.SDK_FAILED, "NoCredentialsError"), "aws_NoCredentialsError"),
        (Failure(Cause.UNEXPECTED, "RuntimeError"), "unexpected_RuntimeError"),
    ],
    ids=str,
)
def test_a_failure_is_logged_as_its_cause_and_its_detail(failure: Failure, words: str) -> None:
    assert str(failure) == words


def test_a_restart_is_probed_as_its_workspace_and_instance() -> None:
    candidate = restart(7).as_candidate()
    assert (candidate.id, candidate.instance_id) == (uuid(7), instance(7))


def test_not_found_is_the_control_planes_word() -> None:
    assert NOT_FOUND == "not_found"
