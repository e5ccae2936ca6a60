"""EC2's state-change events: what is read from one, what is refused, and what counts of several."""

import re
from typing import Any

import pytest

from handler.domain.state_changes import StateChange, latency_s, merged
from handler.errors import RequestError
from handler.request import Request, look_at, parse, state_change
from sandbox.state_changes import state_change as event
from tests.unit.builders import instance

I1, I2 = instance(1), instance(2)
AT = 1767225600.0  # 2026-01-01T00:00:00Z
EVENT = event(I1, at_s=AT)
LONG = "x" * 10_000


def nested(depth: int = 5_000) -> Any:
    inner: Any = []
    for _ in range(depth):
        inner = [inner]
    return inner


# --- one event ---


@pytest.mark.parametrize(
    ("time", "at"),
    [
        ("2026-01-01T00:00:00Z", AT),
        ("2026-01-01T01:00:00+01:00", AT),
        ("2025-12-31T19:00:00-05:00", AT),
        ("2026-01-01t00:00:00z", AT),
        ("2026-01-01T00:00:00.25Z", AT + 0.25),
        ("2026-01-01T00:00:00.250000000Z", AT + 0.25),
        pytest.param(None, None, id="none"),
        ("", None),
        ("now", None),
        ("2026-01-01", None),
        ("2026-01-01 00:00:00Z", None),
        ("2026-01-01T00:00:00", None),
        ("2026-01-01T00:00:00Z ", None),
        ("2026-01-01T00:00:00Z\n", None),
        ("20260101T000000Z", None),
        ("2026-02-30T00:00:00Z", None),
        ("2026-01-01T24:00:01Z", None),
        ("2026-01-01T00:00:60Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("2026-01-01T00:00:00+99:99", None),
        ("\u0662\u0660\u0662\u0666-01-01T00:00:00Z", None),
        pytest.param(LONG, None, id="long"),
        pytest.param(f"2026-01-01T00:00:00.{'0' * 10_000}Z", None, id="a long fraction"),
        (1767225600, None),
        (1767225600.0, None),
        (True, None),
        (["2026-01-01T00:00:00Z"], None),
        ({}, None),
        pytest.param(nested(), None, id="nested"),
    ],
)
def test_a_time_that_cannot_be_read_is_no_error(time: Any, at: float | None) -> None:
    assert state_change(EVENT | {"time": time}) == StateChange(I1, "terminated", at)


def test_the_first_and_the_last_year_are_read() -> None:
    for time in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"):
        assert state_change(EVENT | {"time": time}).instance_id == I1


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"source": None}, "source", "nothing", "aws.ec2"),
    ({"source": "aws.s3"}, "source", "'aws.s3'", "aws.ec2"),
    ({"source": ["aws.ec2"]}, "source", "a list", "aws.ec2"),
    ({"detail-type": "Scheduled Event"}, "detail-type", "'Scheduled Event'", "EC2 Instance State-change"),
    ({"detail-type": {}}, "detail-type", "a dict", "EC2 Instance State-change"),
    ({"detail": None}, "detail", "nothing", "an object"),
    ({"detail": "{}"}, "detail", "'{}'", "an object"),
    ({"detail": [{}]}, "detail", "a list", "an object"),
    ({"detail": {}}, "detail.instance-id", "nothing", "an EC2 instance id"),
    *(
        ({"detail": {"instance-id": one, "state": "stopped"}}, "detail.instance-id", "", "an EC2 instance id")
        for one in ("", "i-*", "i-0123456", I1.upper(), f"{I1}\n", f" {I1}", LONG, f"{I1}{LONG}", 5, 10**5000, [I1])
    ),
    ({"detail": {"instance-id": I1}}, "detail.state", "nothing", "an instance's state"),
    ({"detail": {"instance-id": I1, "state": ["stopped"]}}, "detail.state", "a list", "an instance's state"),
    ({"detail": {"instance-id": I1, "state": True}}, "detail.state", "True", "an instance's state"),
    ({"detail": {"instance-id": nested(), "state": "stopped"}}, "detail.instance-id", "a list", "an EC2"),
]


@pytest.mark.parametrize(
    ("changes", "field", "found", "expected"), REFUSED, ids=[f"{number} {one[1]}" for number, one in enumerate(REFUSED)]
)
def test_what_is_no_state_change_is_refused_by_its_field(
    changes: dict[str, Any], field: str, found: str, expected: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        state_change(EVENT | changes)
    message = str(refusal.value)
    assert message.startswith(f"event field {field}: found {found}")
    assert f"; expected {expected}" in message
    assert len(message) < 300
    assert message.isprintable()


@pytest.mark.parametrize("event", [None, [], "{}", 5, [EVENT], LONG])
def test_what_is_no_object_is_refused(event: Any) -> None:
    with pytest.raises(RequestError, match=r"^event field event: found .*; expected a JSON object"):
        state_change(event)


@pytest.mark.parametrize("option", ["mode", "workspace_ids", "limit", "override_breaker", "adopt", "hold", "shard"])
def test_an_option_beside_a_state_change_is_refused(option: str) -> None:
    """Ignored, it would apply what a person meant for a dry run."""
    for read in (state_change, parse):
        with pytest.raises(RequestError, match=f"event field {option}: .* no such field in a state-change event"):
            read(EVENT | {option: "dry-run"})


@pytest.mark.parametrize("state", ["pending", "running", "", LONG, "\ud800"])
def test_a_state_of_any_name_is_read(state: str) -> None:
    assert state_change(event(I1, state)).state == state


# --- the request ---


def test_the_bare_event_asks_for_a_cycle_over_its_instance() -> None:
    assert parse(EVENT) == Request("apply", state_changes={I1: StateChange(I1, "terminated", AT)})


def test_such_a_cycle_is_narrowed_applied_and_not_scheduled() -> None:
    request = parse(EVENT)
    assert (request.narrowed, request.applies, request.scheduled) == (True, True, False)
    assert (request.workspace_ids, request.limit, request.override_breaker, request.adopt) == (None, None, False, False)


def test_the_setting_makes_it_a_dry_run() -> None:
    assert parse(EVENT, ceiling="dry-run") == look_at([state_change(EVENT)], ceiling="dry-run")
    assert not parse(EVENT, ceiling="dry-run").applies


# --- several events for one instance ---


def change(at: float | None, state: str = "terminated", instance_id: str = I1) -> StateChange:
    return StateChange(instance_id, state, at)


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        pytest.param([change(5.0)], 5.0, id="one"),
        pytest.param([change(5.0), change(9.0)], 9.0, id="the later one counts"),
        pytest.param([change(9.0), change(5.0)], 9.0, id="in any order"),
        pytest.param([change(5.0), change(5.0)], 5.0, id="doubled"),
        pytest.param([change(5.0, "stopped"), change(9.0)], 9.0, id="stopped, then terminated"),
        *(
            pytest.param(order, None, id=f"{name} {number}")
            for name, other in (("unreadable", change(None)), ("running", change(1.0, "running")))
            for number, order in enumerate(
                ([change(5.0), other], [other, change(5.0)], [change(5.0), other, change(9.0)], [other]), 1
            )
        ),
    ],
)
def test_of_several_events_the_latest_time_counts_if_all_tell_of_a_death_at_some_time(
    changes: list[StateChange], at: float | None
) -> None:
    assert {one: change.at for one, change in merged(changes).items()} == {I1: at}


def test_each_instance_has_its_own() -> None:
    both = merged([change(5.0), change(9.0, instance_id=I2), change(None, instance_id=I2)])
    assert {one: change.at for one, change in both.items()} == {I1: 5.0, I2: None}


# --- the latency ---


@pytest.mark.parametrize(
    ("at", "committed_at", "latency"),
    [(100.0, 103.5, 3.5), (100.0, 100.0, 0.0), (None, 103.5, None), (100.0, 99.0, None), (100.0, 1000.5, None)],
)
def test_only_a_usable_time_has_a_latency(at: float | None, committed_at: float, latency: float | None) -> None:
    assert latency_s(change(at), committed_at) == latency


def test_no_refusal_shows_a_long_value() -> None:
    with pytest.raises(RequestError) as refusal:
        state_change(EVENT | {"source": LONG})
    assert re.search("x{61}", str(refusal.value)) is None
