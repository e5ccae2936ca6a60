"""Requests: what an event asks for, and what is refused."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.shards import Shard
from handler.errors import RequestError
from handler.request import HoldRequest, ReleaseRequest, Request, parse
from tests.unit.builders import uuid

EVENTS = Path(__file__).parents[2] / "events"
SCHEDULED = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
SCHEDULER = {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": "{}"}
HOLD = {"workspace_ids": [uuid(1), uuid(2)], "reason": "maintenance", "seconds": 3600}
BESIDE_SHARDS = "no such field beside shard and shards"
SHARDS, SHARD_OF_2 = "a whole number from 1 to 1000, beside shard", "a whole number from 0 to 1, beside shards"
ALL = {"all": True, "reason": "wait", "seconds": 60}
HOLD_FORM = '{"workspace_ids": [UUID, …] or "all": true, "reason": text, "seconds": n}'
REASON_FORM = "a line of 1 to 200 printable characters"
SECONDS_FORM = "a whole number from 1 to 2592000 (30 days)"
BY_SCHEDULE = Request("apply", scheduled=True)
UNSCHEDULED = "no such field in a scheduled event"


# --- accepted events ---


@pytest.mark.parametrize(
    ("event", "request_made"),
    [
        pytest.param(SCHEDULED, BY_SCHEDULE, id="a rule of EventBridge"),
        pytest.param(SCHEDULER, BY_SCHEDULE, id="EventBridge Scheduler"),
        pytest.param(SCHEDULED | {"detail": "{}"}, BY_SCHEDULE, id="a rule, its detail a string"),
        pytest.param(SCHEDULER | {"detail": {}}, BY_SCHEDULE, id="Scheduler, its detail an object"),
        pytest.param(SCHEDULED | {"id": "1", "resources": [], "region": "x"}, BY_SCHEDULE, id="all that a bus adds"),
        pytest.param(
            {"source": "aws.events", "detail-type": "Scheduled Event"}, BY_SCHEDULE, id="a rule without a detail"
        ),
        pytest.param({}, Request("dry-run"), id="nothing"),
        pytest.param({"mode": "dry-run"}, Request("dry-run"), id="a dry run"),
        pytest.param({"mode": "apply"}, Request("apply"), id="an applying cycle"),
        pytest.param({"limit": 1}, Request("dry-run", None, 1), id="a limit alone is a dry run"),
        pytest.param({"mode": "apply", "limit": 10**9}, Request("apply", None, 10**9), id="a huge limit"),
        pytest.param({"override_breaker": True}, Request("dry-run", override_breaker=True), id="the breaker lifted"),
        pytest.param({"override_breaker": False}, Request("dry-run"), id="the breaker not lifted"),
        pytest.param(
            {"mode": "apply", "workspace_ids": [uuid(1), uuid(2)], "limit": 5, "override_breaker": True},
            Request("apply", (uuid(1), uuid(2)), 5, override_breaker=True),
            id="everything at once",
        ),
        pytest.param(
            {"mode": "apply", "hold": HOLD},
            Request("apply", hold=HoldRequest((uuid(1), uuid(2)), "maintenance", 3600)),
            id="a hold",
        ),
        pytest.param(
            {"hold": HOLD | {"reason": "x" * 200, "seconds": 30 * 86_400, "workspace_ids": [uuid(1)]}},
            Request("dry-run", hold=HoldRequest((uuid(1),), "x" * 200, 30 * 86_400)),
            id="the longest hold with the longest reason, as a dry run",
        ),
        pytest.param(
            {"hold": HOLD | {"reason": "Ärger: 日本", "seconds": 1}},
            Request("dry-run", hold=HoldRequest((uuid(1), uuid(2)), "Ärger: 日本", 1)),
            id="the shortest hold, with a reason in other letters",
        ),
        pytest.param(
            {"mode": "apply", "release": [uuid(1)]},
            Request("apply", release=ReleaseRequest((uuid(1),))),
            id="a release",
        ),
        pytest.param(
            {"release": [uuid(1)]}, Request("dry-run", release=ReleaseRequest((uuid(1),))), id="a release as a dry run"
        ),
        pytest.param(
            {"release": "all"}, Request("dry-run", release=ReleaseRequest(None)), id="a release of everything"
        ),
        pytest.param(
            {"mode": "apply", "hold": ALL},
            Request("apply", hold=HoldRequest(None, "wait", 60)),
            id="a hold on everything",
        ),
        pytest.param(
            {"mode": "apply", "workspace_ids": [uuid(1)], "adopt": True},
            Request("apply", (uuid(1),), adopt=True),
            id="an adoption by hand",
        ),
        pytest.param(
            {"workspace_ids": [uuid(1)], "adopt": False}, Request("dry-run", (uuid(1),)), id="no adoption by hand"
        ),
    ],
)
def test_an_event_makes_its_request(event: dict[str, Any], request_made: Request) -> None:
    assert parse(event) == request_made


@pytest.mark.parametrize(
    ("name", "request_made"),
    [
        ("scheduled.json", BY_SCHEDULE),
        ("scheduled-rule.json", BY_SCHEDULE),
        ("apply.json", Request("apply")),
        ("dry-run.json", Request("dry-run")),
        ("dry-run-override.json", Request("dry-run", override_breaker=True)),
        ("one-workspace.json", Request("dry-run", ("00000000-0000-4000-8000-000000000001",))),
        ("override-breaker.json", Request("apply", override_breaker=True)),
        (
            "hold.json",
            Request("apply", hold=HoldRequest(("00000000-0000-4000-8000-000000000001",), "its disk is replaced", 3600)),
        ),
        ("hold-all.json", Request("apply", hold=HoldRequest(None, "the restarts look wrong", 3600))),
        ("release-all.json", Request("apply", release=ReleaseRequest(None))),
        ("shard.json", Request("apply", shard=Shard(0, 8))),
        ("adopt.json", Request("apply", ("00000000-0000-4000-8000-000000000001",), adopt=True)),
        ("release.json", Request("apply", release=ReleaseRequest(("00000000-0000-4000-8000-000000000001",)))),
        ("explain.json", Request("explain", explain="00000000-0000-4000-8000-000000000001")),
    ],
)
def test_the_projects_events_ask_for_what_their_names_say(name: str, request_made: Request) -> None:
    assert parse(json.loads((EVENTS / name).read_text())) == request_made


def test_ids_are_lower_case_and_unique() -> None:
    upper = "ABCDEF01-2345-6789-ABCD-EF0123456789"
    event = {"workspace_ids": [upper, uuid(2), upper.lower(), uuid(2), uuid(1)]}
    expected = (upper.lower(), uuid(2), uuid(1))
    assert parse(event).workspace_ids == expected
    assert parse({"release": event["workspace_ids"]}).release == ReleaseRequest(expected)
    hold = parse({"hold": HOLD | event}).hold
    assert hold is not None
    assert hold.workspace_ids == expected


@pytest.mark.parametrize(
    ("event", "applies"),
    [
        pytest.param(SCHEDULED, True, id="a scheduled event"),
        pytest.param({"mode": "apply"}, True, id="apply"),
        pytest.param({"mode": "dry-run"}, False, id="dry-run"),
        pytest.param({"override_breaker": True}, False, id="an override alone"),
    ],
)
def test_only_the_mode_apply_applies(event: dict[str, Any], applies: bool) -> None:
    assert parse(event).applies is applies


@pytest.mark.parametrize(
    ("event", "narrowed"),
    [
        pytest.param(SCHEDULED, False, id="a scheduled event"),
        pytest.param({"mode": "apply"}, False, id="apply"),
        pytest.param({"override_breaker": True}, False, id="the breaker lifted"),
        pytest.param({"limit": 1_000_000}, True, id="a limit, however large"),
        pytest.param({"workspace_ids": [uuid(1)]}, True, id="chosen workspaces"),
    ],
)
def test_a_request_for_a_part_of_the_fleet_is_narrowed(event: dict[str, Any], narrowed: bool) -> None:
    assert parse(event).narrowed is narrowed


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(SCHEDULED, id="a scheduled event"),
        pytest.param({"mode": "apply"}, id="apply"),
        pytest.param({"mode": "dry-run"}, id="dry-run"),
        pytest.param({"mode": "apply", "hold": HOLD}, id="hold"),
        pytest.param({"mode": "apply", "release": [uuid(1)]}, id="release"),
    ],
)
def test_under_the_ceiling_every_event_is_a_dry_run(event: dict[str, Any]) -> None:
    assert parse(event, ceiling="dry-run").mode == "dry-run"


def test_the_ceiling_changes_only_the_mode() -> None:
    event = {"mode": "apply", "workspace_ids": [uuid(1)], "limit": 5, "override_breaker": True}
    assert parse(event, ceiling="dry-run") == Request("dry-run", (uuid(1),), 5, override_breaker=True)
    for change in ({"hold": HOLD}, {"release": [uuid(1)]}):
        assert parse({"mode": "apply", **change}, ceiling="dry-run") == parse({"mode": "dry-run", **change})


def test_the_ceiling_never_makes_a_dry_run_apply() -> None:
    assert parse({}, ceiling="apply").mode == "dry-run"


# --- refusals: the field, what was found, what was expected ---


@pytest.mark.parametrize(
    ("event", "field", "found", "expected"),
    [
        pytest.param(None, "event", "nothing", "a JSON object", id="no event"),
        pytest.param([], "event", "a list", "a JSON object", id="a list"),
        pytest.param("apply", "event", "'apply'", "a JSON object", id="a string"),
        pytest.param(3, "event", "3", "a JSON object", id="a number"),
        pytest.param({"mode": "Apply"}, "mode", "'Apply'", "apply, dry-run or explain", id="a mode in capitals"),
        pytest.param({"mode": ""}, "mode", "''", "apply, dry-run or explain", id="an empty mode"),
        pytest.param({"mode": None}, "mode", "nothing", "apply, dry-run or explain", id="a mode of null"),
        pytest.param({"mode": True}, "mode", "True", "apply, dry-run or explain", id="a mode of true"),
        pytest.param({"mode": ["apply"]}, "mode", "a list", "apply, dry-run or explain", id="a mode in a list"),
        pytest.param({"mode": {"a": 1}}, "mode", "a dict", "apply, dry-run or explain", id="a mode of an object"),
        pytest.param({"limit": 0}, "limit", "0", "a whole number of 1 or more", id="a limit of zero"),
        pytest.param({"limit": -1}, "limit", "-1", "a whole number of 1 or more", id="a negative limit"),
        pytest.param({"limit": 1.0}, "limit", "1.0", "a whole number of 1 or more", id="a limit with a fraction"),
        pytest.param({"limit": True}, "limit", "True", "a whole number of 1 or more", id="a limit of true"),
        pytest.param({"limit": "5"}, "limit", "'5'", "a whole number of 1 or more", id="a limit in a string"),
        pytest.param({"limit": None}, "limit", "nothing", "a whole number of 1 or more", id="a limit of null"),
        pytest.param(
            {"limit": -(10**5000)}, "limit", "a huge number", "a whole number of 1 or more", id="a limit of 5000 digits"
        ),
        pytest.param({"override_breaker": 1}, "override_breaker", "1", "true or false", id="an override of 1"),
        pytest.param(
            {"override_breaker": "true"}, "override_breaker", "'true'", "true or false", id="an override's word"
        ),
        pytest.param(
            {"override_breaker": None}, "override_breaker", "nothing", "true or false", id="an override of null"
        ),
        pytest.param({"workspace_ids": []}, "workspace_ids", "a list", "a list of one or more UUIDs", id="no ids"),
        pytest.param(
            {"workspace_ids": uuid(1)},
            "workspace_ids",
            uuid(1),
            "a list of one or more UUIDs",
            id="an id without a list",
        ),
        pytest.param(
            {"workspace_ids": None}, "workspace_ids", "nothing", "a list of one or more UUIDs", id="ids of null"
        ),
        pytest.param(
            {"workspace_ids": {uuid(1): 1}},
            "workspace_ids",
            "a dict",
            "a list of one or more UUIDs",
            id="ids in an object",
        ),
        pytest.param({"workspace_ids": [uuid(1), 5]}, "workspace_ids[1]", "5", "a UUID", id="a number among the ids"),
        pytest.param({"workspace_ids": ["x"]}, "workspace_ids[0]", "'x'", "a UUID", id="an id that is none"),
        pytest.param(
            {"workspace_ids": [f"{uuid(1)}\n"]}, "workspace_ids[0]", "", "a UUID", id="a line break after an id"
        ),
        pytest.param(
            {"workspace_ids": [uuid(1).replace("-", "")]}, "workspace_ids[0]", "", "a UUID", id="an id without dashes"
        ),
        pytest.param({"workspace_ids": [f"{{{uuid(1)}}}"]}, "workspace_ids[0]", "", "a UUID", id="an id in braces"),
        pytest.param({"workspace_ids": [None]}, "workspace_ids[0]", "nothing", "a UUID", id="null among the ids"),
        pytest.param(
            {"source": "aws.s3"}, "source", "'aws.s3'", "aws.events or aws.scheduler or aws.ec2", id="another source"
        ),
        pytest.param(
            {"source": None}, "source", "nothing", "aws.events or aws.scheduler or aws.ec2", id="a source of null"
        ),
        pytest.param(
            {"source": ["aws.events"]},
            "source",
            "a list",
            "aws.events or aws.scheduler or aws.ec2",
            id="a source in a list",
        ),
        pytest.param(
            {"detail-type": "Scheduled Event"},
            "source",
            "nothing",
            "aws.events or aws.scheduler or aws.ec2",
            id="no source",
        ),
        pytest.param({"source": "aws.events"}, "detail-type", "nothing", "Scheduled Event", id="no detail-type"),
        pytest.param(
            SCHEDULED | {"detail-type": "x"}, "detail-type", "'x'", "Scheduled Event", id="another detail-type"
        ),
        pytest.param(
            SCHEDULED | {"detail": "{ }"},
            "detail",
            "'{ }'",
            'an object or the string "{}"',
            id="a detail that is another string",
        ),
        pytest.param(
            SCHEDULED | {"detail": None}, "detail", "nothing", 'an object or the string "{}"', id="a detail of null"
        ),
        pytest.param({"shard": 1}, "shards", "nothing", SHARDS, id="a shard without shards"),
        pytest.param({"shards": 2}, "shard", "nothing", SHARD_OF_2, id="shards without a shard"),
        pytest.param({"shard": 0, "shards": 0}, "shards", "0", SHARDS, id="no shards"),
        pytest.param({"shard": 0, "shards": 1001}, "shards", "1001", SHARDS, id="too many shards"),
        pytest.param({"shard": 0, "shards": True}, "shards", "True", SHARDS, id="shards that are true"),
        pytest.param({"shard": 0, "shards": 2.0}, "shards", "2.0", SHARDS, id="shards that are no whole number"),
        pytest.param({"shard": 0, "shards": "2"}, "shards", "'2'", SHARDS, id="shards in words"),
        pytest.param({"shard": 2, "shards": 2}, "shard", "2", SHARD_OF_2, id="a shard beyond the last"),
        pytest.param({"shard": -1, "shards": 2}, "shard", "-1", SHARD_OF_2, id="a shard before the first"),
        pytest.param({"shard": True, "shards": 2}, "shard", "True", SHARD_OF_2, id="a shard that is true"),
        pytest.param({"shard": None, "shards": 2}, "shard", "nothing", SHARD_OF_2, id="a shard of nothing"),
        *(
            pytest.param({"shard": 0, "shards": 1} | more, name, found, BESIDE_SHARDS, id=f"shards and {name}")
            for name, found, more in (
                ("workspace_ids", "a list", {"workspace_ids": [uuid(1)]}),
                ("limit", "1", {"limit": 1}),
            )
        ),
        pytest.param(
            {"hold": HOLD, "shard": 0, "shards": 2}, "shard", "0", "no such field beside hold", id="a hold of a shard"
        ),
        pytest.param(
            {"release": "all", "shards": 2}, "shards", "2", "no such field beside release", id="a release of shards"
        ),
        pytest.param(SCHEDULED | {"mode": "apply"}, "mode", "'apply'", UNSCHEDULED, id="a mode beside a schedule"),
        pytest.param(SCHEDULED | {"hold": {}}, "hold", "a dict", UNSCHEDULED, id="a hold beside a schedule"),
        pytest.param(
            SCHEDULED | {"detail": []}, "detail", "a list", 'an object or the string "{}"', id="a detail in a list"
        ),
        pytest.param({"mode": "hold"}, "mode", "'hold'", "apply, dry-run or explain", id="a mode of hold"),
        *(
            pytest.param({"hold": hold}, "hold", found, HOLD_FORM, id=f"a hold {name}")
            for name, hold, found in (
                ("of null", None, "nothing"),
                ("in a list", [HOLD], "a list"),
                ("of true", True, "True"),
                ("of an id", uuid(1), f"'{uuid(1)}'"),
                ("that is empty", {}, "a dict"),
                ("without a reason", {"workspace_ids": [uuid(1)], "seconds": 1}, "a dict"),
                ("without an end", {"workspace_ids": [uuid(1)], "reason": "x"}, "a dict"),
                ("of nobody", {"reason": "x", "seconds": 1}, "a dict"),
                ("with more than that", HOLD | {"until": "tomorrow"}, "a dict"),
            )
        ),
        *(
            pytest.param({"hold": HOLD | {"reason": reason}}, "hold.reason", found, REASON_FORM, id=name)
            for name, reason, found in (
                ("no reason", "", "''"),
                ("a reason of blanks", "  ", "'  '"),
                ("a reason of null", None, "nothing"),
                ("a reason of a number", 7, "7"),
                ("a reason in a list", ["x"], "a list"),
                ("a reason of two lines", "one\ntwo", "one"),
                ("a reason that paints the terminal", "\x1b[31mred", "red"),
                ("a reason with a zero byte", "x\0", "x"),
                ("a reason that is no Unicode", "\ud800", "ud800"),
                ("a reason that is written backwards", "\u202egnp", "gnp"),
                ("a reason that is too long", "x" * 201, "xxx"),
            )
        ),
        *(
            pytest.param({"hold": HOLD | {"seconds": seconds}}, "hold.seconds", found, SECONDS_FORM, id=name)
            for name, seconds, found in (
                ("no seconds", 0, "0"),
                ("negative seconds", -1, "-1"),
                ("more than 30 days", 30 * 86_400 + 1, "2592001"),
                ("seconds without end", 10**5000, "a huge number"),
                ("seconds with a fraction", 1.0, "1.0"),
                ("seconds of true", True, "True"),
                ("seconds in a string", "60", "'60'"),
                ("seconds of null", None, "nothing"),
            )
        ),
        *(
            pytest.param(event, f"{field}{place}", found, f"{expected}{'' if place else more}", id=f"{field}: {name}")
            for name, ids, place, found, expected in (
                ("no ids", [], "", "a list", "a list of one or more UUIDs"),
                ("null", None, "", "nothing", "a list of one or more UUIDs"),
                ("an id without a list", uuid(1), "", f"'{uuid(1)}'", "a list of one or more UUIDs"),
                ("an id that is none", [uuid(1), "x"], "[1]", "'x'", "a UUID"),
                ("a number among them", [5], "[0]", "5", "a UUID"),
            )
            for field, event, more in (
                ("hold.workspace_ids", {"hold": HOLD | {"workspace_ids": ids}}, ""),
                ("release", {"release": ids}, ' or "all"'),
            )
        ),
        pytest.param({"release": "All"}, "release", "'All'", 'a list of one or more UUIDs or "all"', id="All"),
        pytest.param({"release": True}, "release", "True", 'a list of one or more UUIDs or "all"', id="release: true"),
        pytest.param({"hold": ALL | {"all": False}}, "hold.all", "False", "true", id="a hold on not all"),
        pytest.param({"hold": ALL | {"all": 1}}, "hold.all", "1", "true", id="a hold on all of 1"),
        pytest.param(
            {"hold": HOLD | {"all": True}}, "hold.all", "True", "no such field beside workspace_ids", id="all and some"
        ),
        *(
            pytest.param({**event, "adopt": adopt}, "adopt", found, expected, id=f"adopt: {name}")
            for name, event, adopt, found, expected in (
                ("alone", {}, True, "True", "no such field without workspace_ids"),
                ("false, alone", {}, False, "False", "no such field without workspace_ids"),
                ("with a limit", {"limit": 5}, True, "True", "no such field without workspace_ids"),
                ("1", {"workspace_ids": [uuid(1)]}, 1, "1", "true or false"),
                ("a list", {"workspace_ids": [uuid(1)]}, [uuid(1)], "a list", "true or false"),
            )
        ),
        *(
            pytest.param({change: value, **other}, field, "", f"no such field beside {change}", id=name)
            for change, value in (("hold", HOLD), ("release", [uuid(1)]))
            for field, other, name in (
                ("limit", {"limit": 1}, f"{change} and a limit"),
                ("override_breaker", {"override_breaker": True}, f"{change} and the breaker lifted"),
                ("workspace_ids", {"workspace_ids": [uuid(1)]}, f"{change} and chosen workspaces"),
            )
        ),
        pytest.param(
            {"release": [uuid(1)], "hold": HOLD},
            "release",
            "a list",
            "no such field beside hold",
            id="hold and release",
        ),
        pytest.param(
            {"mode": "Apply", "hold": HOLD}, "mode", "'Apply'", "apply, dry-run or explain", id="a hold in a bad mode"
        ),
    ],
)
def test_a_bad_event_is_refused_by_its_field(event: object, field: str, found: str, expected: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse(event)
    message = str(refusal.value)
    subject, _, rest = message.partition(": ")
    assert subject == (f"event field {field}")
    shown_found, shown_expected = rest.split("; expected ")
    assert found in shown_found
    assert shown_expected == expected


@pytest.mark.parametrize("field", ["Mode", "dryrun", "workspace_id", "", "source ", "x" * 500])
def test_an_unknown_field_is_refused_by_name(field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse({field: "apply"})
    message = str(refusal.value)
    assert ascii(field)[:50] in message
    assert message.endswith(
        "expected one of mode, workspace_ids, limit, override_breaker, adopt, hold, release, shard, shards, or a"
        " scheduled event"
    )
    assert len(message) < 250


@pytest.mark.parametrize(
    "field",
    [
        "mode",
        "workspace_ids",
        "limit",
        "override_breaker",
        "adopt",
        "hold",
        "release",
        "shard",
        "shards",
        "workspace_id",
    ],
)
def test_an_option_in_a_scheduled_event_is_refused(field: str) -> None:
    with pytest.raises(RequestError, match=f"event field {field}: .* scheduled event"):
        parse(SCHEDULED | {field: "dry-run"})


def test_a_shard_may_rehearse_and_lift_the_breaker_and_one_of_one_is_a_full_cycle() -> None:
    assert parse({"shard": 7, "shards": 8}) == Request("dry-run", shard=Shard(7, 8))
    assert parse({"mode": "apply", "shard": 999, "shards": 1000}).narrowed is False
    override = {"mode": "apply", "shard": 1, "shards": 2, "override_breaker": True}
    assert parse(override) == Request("apply", override_breaker=True, shard=Shard(1, 2))
    assert parse({"mode": "apply", "shard": 0, "shards": 1}) == parse({"mode": "apply"})


@pytest.mark.parametrize("ceiling", ["apply", "dry-run"])
def test_an_explanation_names_one_workspace_whatever_the_mode_of_the_stack(ceiling: str) -> None:
    event = {"mode": "explain", "workspace_id": uuid(10).upper()}
    assert parse(event, ceiling=ceiling).explain == uuid(10)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({}, "workspace_id: found nothing; expected a UUID"),
        ({"workspace_id": "i-0123456789abcdef0"}, "workspace_id: found 'i-0123456789abcdef0'; expected a UUID"),
        ({"workspace_id": [uuid(1)]}, "workspace_id: found a list; expected a UUID"),
        (
            {"workspace_id": uuid(1), "limit": 1},
            "limit: found 1; expected no such field beside the mode explain",
        ),
        (
            {"workspace_ids": [uuid(1)]},
            "workspace_ids: found a list; expected no such field beside the mode explain",
        ),
    ],
    ids=["no workspace", "an instance id", "a list", "a limit", "several workspaces"],
)
def test_an_explanation_that_asks_for_anything_else_is_refused(event: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse({"mode": "explain", **event})
    assert str(refusal.value) == f"event field {message}"


# --- holds ---

MONTH_S = 30 * 86_400
HOLD = {"workspace_ids": [uuid(1)], "reason": "maintenance", "seconds": 3600}
HOLD_EXPECTED = '{"workspace_ids": [UUID, …] or "all": true, "reason": text, "seconds": n}'
REASON_EXPECTED = "a line of 1 to 200 printable characters"
SECONDS_EXPECTED = "a whole number from 1 to 2592000 (30 days)"


@pytest.mark.parametrize(
    ("event", "request_made"),
    [
        pytest.param(
            {"hold": HOLD}, Request("dry-run", hold=HoldRequest((uuid(1),), "maintenance", 3600)), id="a hold"
        ),
        pytest.param(
            {"mode": "apply", "hold": HOLD},
            Request("apply", hold=HoldRequest((uuid(1),), "maintenance", 3600)),
            id="a hold that applies",
        ),
        pytest.param(
            {"hold": {"workspace_ids": [uuid(10).upper(), uuid(10), uuid(2)], "reason": "é" * 200, "seconds": 1}},
            Request("dry-run", hold=HoldRequest((uuid(10), uuid(2)), "é" * 200, 1)),
            id="the longest reason and the shortest time",
        ),
        pytest.param(
            {"hold": HOLD | {"reason": "x", "seconds": MONTH_S}},
            Request("dry-run", hold=HoldRequest((uuid(1),), "x", MONTH_S)),
            id="the shortest reason and the longest time",
        ),
        pytest.param({"release": [uuid(1)]}, Request("dry-run", release=ReleaseRequest((uuid(1),))), id="a release"),
        pytest.param(
            {"release": [uuid(2), uuid(1), uuid(2)], "mode": "apply"},
            Request("apply", release=ReleaseRequest((uuid(2), uuid(1)))),
            id="a release that applies",
        ),
    ],
)
def test_holds_and_releases_name_their_workspaces(event: dict[str, Any], request_made: Request) -> None:
    assert parse(event) == request_made


def test_under_the_ceiling_a_hold_is_a_dry_run_too() -> None:
    assert parse({"mode": "apply", "hold": HOLD}, ceiling="dry-run").mode == "dry-run"
    assert parse({"mode": "apply", "release": [uuid(1)]}, ceiling="dry-run").mode == "dry-run"


@pytest.mark.parametrize(
    ("event", "field", "found", "expected"),
    [
        pytest.param({"hold": HOLD, "limit": 5}, "limit", "5", "no such field beside hold", id="a limit"),
        pytest.param(
            {"override_breaker": True, "release": [uuid(1)]},
            "override_breaker",
            "True",
            "no such field beside release",
            id="an override",
        ),
        pytest.param(
            {"release": [uuid(1)], "hold": HOLD}, "release", "a list", "no such field beside hold", id="both at once"
        ),
        pytest.param(
            {"hold": HOLD, "mode": "now"}, "mode", "'now'", "apply, dry-run or explain", id="a mode that is none"
        ),
        pytest.param({"hold": None}, "hold", "nothing", HOLD_EXPECTED, id="no hold"),
        pytest.param({"hold": [uuid(1)]}, "hold", "a list", HOLD_EXPECTED, id="ids alone"),
        pytest.param({"hold": {}}, "hold", "a dict", HOLD_EXPECTED, id="an empty hold"),
        pytest.param({"hold": HOLD | {"until": 1}}, "hold", "a dict", HOLD_EXPECTED, id="a field too many"),
        *(
            pytest.param(
                {"hold": {key: value for key, value in HOLD.items() if key != missing}},
                "hold",
                "a dict",
                HOLD_EXPECTED,
                id=f"no {missing}",
            )
            for missing in HOLD
        ),
        *(
            pytest.param({"hold": HOLD | {"reason": reason}}, "hold.reason", found, REASON_EXPECTED, id=name)
            for reason, found, name in (
                ("", "''", "an empty reason"),
                ("  ", "'  '", "a blank reason"),
                ("two\nlines", "'two\\nlines'", "a reason of two lines"),
                ("x" * 201, "'xxx", "a reason too long"),
                (None, "nothing", "a reason of null"),
                (5, "5", "a reason that is a number"),
                (["x"], "a list", "a reason in a list"),
            )
        ),
        *(
            pytest.param({"hold": HOLD | {"seconds": seconds}}, "hold.seconds", found, SECONDS_EXPECTED, id=name)
            for seconds, found, name in (
                (0, "0", "no time"),
                (-1, "-1", "a negative time"),
                (MONTH_S + 1, "2592001", "more than a month"),
                (True, "True", "a time of true"),
                (60.0, "60.0", "a time with a fraction"),
                ("60", "'60'", "a time in a string"),
                (None, "nothing", "a time of null"),
            )
        ),
        pytest.param(
            {"hold": HOLD | {"workspace_ids": []}},
            "hold.workspace_ids",
            "a list",
            "a list of one or more UUIDs",
            id="a hold of nobody",
        ),
        pytest.param(
            {"hold": HOLD | {"workspace_ids": [uuid(1), "x"]}},
            "hold.workspace_ids[1]",
            "'x'",
            "a UUID",
            id="a hold of an id that is none",
        ),
        pytest.param(
            {"release": []}, "release", "a list", 'a list of one or more UUIDs or "all"', id="a release of nobody"
        ),
        pytest.param({"release": ["x"]}, "release[0]", "'x'", "a UUID", id="a release of an id that is none"),
    ],
)
def test_a_bad_hold_is_refused_by_its_field(event: dict[str, Any], field: str, found: str, expected: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse(event)
    message = str(refusal.value)
    assert message.startswith(f"event field {field}: found {found}")
    assert message.endswith(f"; expected {expected}")
    assert len(message) < 250


# --- any event ---

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
names = st.sampled_from(
    [
        *("mode", "workspace_ids", "limit", "override_breaker", "adopt", "source", "detail-type", "detail"),
        *("hold", "release", "all", "reason", "seconds"),
    ]
)
words = st.sampled_from(["apply", "dry-run", "aws.events", "aws.scheduler", "Scheduled Event", "{}", uuid(1), 60])
anything = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(anything | st.dictionaries(names, words | anything, max_size=5))
def test_any_event_is_accepted_or_refused(event: object) -> None:
    try:
        request = parse(event)
    except RequestError as refusal:
        message = str(refusal)
        assert re.match(r"event field .+: .+; expected .+", message)
        assert message.isascii() or "…" in message
        assert message.isprintable()
        assert len(message) < 300
    else:
        assert isinstance(event, dict)
        assert request.mode in ("apply", "dry-run")
        if request.mode == "apply":
            assert event.get("mode") == "apply" or event.get("detail-type") == "Scheduled Event"
        assert request.limit is None or request.limit >= 1
        assert request.workspace_ids is None or len(request.workspace_ids) >= 1
        for change in (request.hold, request.release):
            assert change is None or change.workspace_ids is None or len(change.workspace_ids) >= 1
        assert (request.hold is not None) is ("hold" in event)
        assert (request.release is not None) is ("release" in event)


@given(anything | st.dictionaries(names, words | anything, max_size=5))
def test_nothing_applies_under_the_ceiling(event: object) -> None:
    with contextlib.suppress(RequestError):
        assert parse(event, ceiling="dry-run").mode == "dry-run"
