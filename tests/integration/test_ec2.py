"""EC2's API as the source of truth: read to the end, within its limits, and believed only as far as it is complete."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

import pytest

from handler.probes.ec2.probe import CALLS_AT_ONCE
from sandbox import ec2_xml
from sandbox.ec2_xml import Instance
from sandbox.http_server import Answer, Hang, Raw, Reply, Reset, drip_body, drip_headers
from sandbox.limited_ec2 import ZONES, ApiError, DescribeCall, LimitedEc2, TokenBucket
from tests.support.events import APPLY, DRY_RUN
from tests.support.stage import Outcome, Stage, Stages

REFUSED = ApiError("UnauthorizedOperation", "You are not authorized to perform this operation.", 403).as_answer()
THROTTLED = ApiError("RequestLimitExceeded", "Request limit exceeded.", 503).as_answer()
BROKEN = ApiError("InternalError", "An internal error has occurred", 500).as_answer()

DESCRIBE, LIST, ZONES_OF = "DescribeInstances", "DescribeInstanceStatus", "DescribeAvailabilityZones"
PER_FILTER = 200


@pytest.fixture
def stage(stage: Stage) -> Iterator[Stage]:
    yield stage
    assert_within_limits(stage.ec2)


def assert_within_limits(ec2: LimitedEc2) -> None:
    """Fail if a call broke one of AWS's rules, or if there were too many calls at once."""
    assert ec2.peak_in_flight <= CALLS_AT_ONCE
    for call in ec2.calls:
        assert not call.instance_ids, "explicit ids fail all together"
        for values in call.filters.values():
            assert 1 <= len(values) <= PER_FILTER
        if call.action != ZONES_OF:
            assert 5 <= int(call.parameters["MaxResults"]) <= 1000


def asked_for(ec2: LimitedEc2) -> Counter[str]:
    """Return how often each instance was asked for by its id."""
    return Counter(one for call in ec2.calls for one in call.filters.get("instance-id", ()))


def verdicts(outcome: Outcome) -> dict[str, int]:
    return {name: outcome.report[name] for name in ("running", "transition", "dead", "absent", "unknown", "deferred")}


def stopped(instance_ids: list[str]) -> bytes:
    """Return an answer that says that all these instances have stopped."""
    page = [Instance(one, "stopped", ZONES[0], number) for number, one in enumerate(instance_ids)]
    return ec2_xml.instances(page, None, request_id="r-1")


# --- few instances ---


def test_a_small_fleet_costs_two_calls_and_the_log_says_how_it_was_asked(stage: Stage) -> None:
    """One asks for the instances, the other, beside it, for those that fail EC2's status check."""
    stage.add_all(20, "running")
    stage.instances(300, "running")  # somebody else's
    outcome = stage.cycle()
    assert {call.action for call in stage.ec2.calls} == {DESCRIBE, LIST}
    assert len(stage.ec2.calls) == 2
    (plan,) = outcome.lines("plan chosen")
    assert (plan["count"], plan["reason"]) == (20, "ask for each id")
    assert outcome.report["running"] == outcome.report["candidates"] == 20


def test_a_dead_instance_costs_two_more_calls_that_ask_for_it_alone(stage: Stage) -> None:
    stage.add_all(20, "running")
    workspace = stage.add("terminated")
    dead = stage.instance_of(workspace)
    stage.cycle().assert_only_flipped({workspace: "terminated"})
    assert {call.action for call in stage.ec2.calls[:2]} == {DESCRIBE, LIST}
    assert [call.action for call in stage.ec2.calls[2:]] == [DESCRIBE, DESCRIBE]
    for before_flip_or_restart in stage.ec2.calls[2:]:
        assert before_flip_or_restart.filters["instance-id"] == {dead}


def test_a_running_instance_that_fails_ec2s_status_check_is_counted_and_never_flipped(stage: Stage) -> None:
    impaired, _ = stage.add_all(2, "running")
    for one in (stage.instance_of(impaired), stage.instances(1, "running")[0]):  # the other is somebody else's
        stage.ec2.impair(one)
    outcome = stage.cycle()
    outcome.assert_only_flipped({})
    assert (outcome.report["impaired"], outcome.report["running"]) == (1, 2)


def test_status_checks_that_ec2_does_not_tell_cost_a_line_in_the_log(stage: Stage) -> None:
    stage.ec2.impair(stage.instance_of(stage.add("running")))
    dead = stage.add("stopped")
    stage.ec2.script.reply(REFUSED, action=LIST)
    outcome = stage.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.report["impaired"] == 0
    (line,) = outcome.lines("impaired instances not counted")
    assert line["error"] == "refused_UnauthorizedOperation"


def test_an_instance_of_several_workspaces_is_asked_for_once(stage: Stage) -> None:
    stage.fleet.add_all(stage.instances(2, "running") * 3)
    assert stage.cycle().report["running"] == 6
    assert set(asked_for(stage.ec2).values()) == {1}


@pytest.mark.parametrize(
    "malformed",
    [
        *("i-", "i-0123456", "i-00000000000000001x", " i-00000000000000001", "i-00000000000000001\n", " ", "none"),
        *(
            "i-*",
            "*",
            "i-0000000000000000?",
            "I-00000000000000001",
            "i-0000000000000000A",
            "i-\u0660123456",
            "x" * 9_999,
        ),
    ],
    ids=ascii,
)
def test_a_malformed_id_is_unknown_never_sent_and_affects_nobody_else(stage: Stage, malformed: str) -> None:
    stage.add("running")
    dead = stage.add("stopped")
    workspace = stage.fleet.add(malformed)
    outcome = stage.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.causes == {workspace: "malformed_instance_id"}
    assert malformed not in asked_for(stage.ec2)


def test_ids_that_ec2_does_not_know_affect_nobody_else(stage: Stage) -> None:
    stage.add_all(5, "running")
    stage.add_all(3, None)
    dead = stage.add("terminated")
    outcome = stage.cycle()
    outcome.assert_only_flipped({dead: "terminated"})
    assert (outcome.report["running"], outcome.report["absent"], outcome.report["unknown"]) == (5, 3, 0)


def test_a_state_that_ec2_did_not_have_yesterday_is_unknown(stage: Stage) -> None:
    workspaces = stage.add_all(3, "running")
    answer = stopped([stage.instance_of(one) for one in workspaces]).replace(b"stopped", b"quiescing")
    stage.ec2.script.reply(Answer(body=answer))
    outcome = stage.cycle()
    outcome.assert_only_flipped({})
    assert outcome.causes == dict.fromkeys(workspaces, "unrecognised_state")


# --- pages ---


def paged(
    stage: Stage, *, fails_at: int | None = None, circles_at: int | None = None
) -> Callable[[DescribeCall], Reply]:
    """Return a reply that answers in pages of two, of which one fails, or names itself as the next page."""

    def page(call: DescribeCall) -> Reply:
        start = int(call.parameters.get("NextToken", "0"))
        if start == fails_at:
            return REFUSED
        ids = sorted(call.filters["instance-id"])
        states = [(one, stage.ec2.state_of(one)) for one in ids[start : start + 2]]
        instances = [Instance(one, state, ZONES[0], 1) for one, state in states if state]
        more = str(start if start == circles_at else start + 2) if start + 2 < len(ids) else None
        return Answer(body=ec2_xml.instances(instances, more, request_id="r-1"))

    return page


def test_an_answer_in_pages_is_read_to_its_last_one(stage: Stage) -> None:
    stage.add_all(6, "running")
    dead = stage.add("stopped")
    stage.ec2.script.reply(paged(stage), action=DESCRIBE)
    outcome = stage.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    assert outcome.report["running"] == 6


@pytest.mark.parametrize("trouble", [{"fails_at": 4}, {"circles_at": 4}], ids=["fails", "goes in circles"])
def test_the_pages_of_a_broken_listing_count_and_nobody_is_missed(stage: Stage, trouble: Mapping[str, int]) -> None:
    instances = sorted(stage.instances(10, "running"))
    stage.ec2.set_state(instances[0], "stopped")
    dead = stage.fleet.add_all(instances)[0]
    stage.ec2.script.reply(paged(stage, **trouble), action=DESCRIBE)
    outcome = stage.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    came = 4 if "fails_at" in trouble else 6
    expected = {"running": came - 1, "transition": 0, "dead": 1, "absent": 0, "unknown": 10 - came, "deferred": 0}
    assert verdicts(outcome) == expected


# --- answers that are none ---

# Each replaces the answer about 200 instances. Most of them say that all these instances have stopped.
TROUBLES: Mapping[str, Callable[[list[str]], Reply]] = {
    "garbage": lambda _: Answer(body=b"\x00\xff stopped \x00"),
    "nothing": lambda _: Answer(),
    "a page": lambda _: Answer(body=b"<html><body>stopped</body></html>", headers={"Content-Type": "text/html"}),
    "JSON": lambda _: Answer(body=b'{"Reservations": []}'),
    "XML that ends too soon": lambda ids: Answer(body=stopped(ids)[:-1_000]),
    "less than promised": lambda ids: Raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(stopped(ids)) + 1) + stopped(ids)
    ),
    "XML and more": lambda ids: Answer(body=stopped(ids) + b"<more/>"),
    "another call's answer": lambda _: Answer(body=ec2_xml.zones(ZONES, request_id="r-1")),
    "instances without a state": lambda ids: Answer(body=stopped(ids).replace(b"instanceState>", b"instanceMood>")),
    "204": lambda _: Answer(204),
    "a redirect": lambda ids: Answer(302, stopped(ids), {"Location": "http://127.0.0.1:9/"}),
    "a refusal": lambda _: REFUSED,
    "a refusal without a word": lambda _: Answer(400),
    "an error that says stopped": lambda ids: Answer(404, stopped(ids)),
    "a reset": lambda _: Reset(),
    "silence": lambda _: Hang(),
    "headers that drip": lambda _: drip_headers(0.05),
    "a body that drips": lambda ids: drip_body(stopped(ids), 0.05),
}


@dataclass(frozen=True, slots=True)
class Troubled:
    """A cycle over many workspaces. Each call asks for 200 of their instances, and meets its own trouble."""

    outcome: Outcome
    dead: Mapping[str | None, str]
    touched: int
    reached: int


@pytest.fixture(scope="module")
def troubled(stages: Stages) -> Troubled:
    with stages.borrowed() as stage:
        poisons: dict[str, str] = {}
        dead: dict[str | None, str] = {}
        rows: list[dict[str, str]] = []
        for name in (*TROUBLES, None, None):
            # Nothing is running, so a listing of what runs answers for nobody.
            instances = [*stage.instances(1, "stopped"), *stage.instances(PER_FILTER - 1, "stopping")]
            if name:
                poisons[instances[0]] = name
            ids = [str(UUID(int=len(rows) + number + 1)) for number in range(PER_FILTER)]
            dead[name] = ids[0]
            rows += [{"id": one, "instance_id": instance} for one, instance in zip(ids, instances, strict=True)]
        stage.fleet.insert(rows)
        touched: set[str] = set()

        def trouble(call: DescribeCall) -> Reply | None:
            ids = call.filters["instance-id"]
            name = next((poisons[one] for one in ids if one in poisons), None)
            if name is None:
                return None
            touched.update(ids)
            return TROUBLES[name](sorted(ids))

        stage.ec2.script.reply(trouble, action=DESCRIBE)
        outcome = stage.cycle(APPLY | {"override_breaker": True}, PROBE_TIMEOUT_SECONDS="4")
        assert_within_limits(stage.ec2)
        return Troubled(outcome, dead, len(touched), len(rows) - len(touched))


@pytest.mark.parametrize("name", TROUBLES)
def test_an_unusable_answer_takes_nobody_offline(troubled: Troubled, name: str) -> None:
    troubled.outcome.assert_untouched(troubled.dead[name])


def test_an_unusable_answer_makes_only_its_own_instances_unknown(troubled: Troubled) -> None:
    report = troubled.outcome.report
    assert (report["unknown"], report["absent"]) == (troubled.touched, 0)
    assert report["dead"] + report["transition"] == troubled.reached
    troubled.outcome.assert_flipped(troubled.dead[None], "stopped")


def test_an_id_on_which_ec2_stumbles_costs_only_itself(stage: Stage) -> None:
    workspaces = stage.add_all(150, "running")
    dead = stage.add("stopped")
    poison = stage.instance_of(workspaces[70])
    stage.ec2.script.reply(lambda call: BROKEN if poison in call.filters["instance-id"] else None, action=DESCRIBE)
    outcome = stage.cycle()
    outcome.assert_only_flipped({dead: "stopped"})
    assert (outcome.report["running"], outcome.causes) == (149, {workspaces[70]: "server_error"})


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        pytest.param({"AWS_REGION": "no such region!"}, "aws_InvalidRegionError", id="a malformed Region"),
        pytest.param({"AWS_ENDPOINT_URL_EC2": "no address"}, "garbled_answer", id="a malformed endpoint"),
        pytest.param({"AWS_SECRET_ACCESS_KEY": None}, "aws_PartialCredentialsError", id="half of the credentials"),
    ],
)
def test_an_account_that_cannot_be_asked_makes_everybody_unknown(
    stage: Stage, variables: Mapping[str, str | None], cause: str
) -> None:
    suspect = stage.add("stopped")
    outcome = stage.cycle(APPLY, **variables)
    outcome.assert_untouched(suspect)
    assert outcome.causes == {suspect: cause}


def test_an_api_that_is_down_takes_nobody_offline(stage: Stage) -> None:
    stage.add_all(5, "stopped")
    stage.ec2.stop()
    outcome = stage.cycle()
    outcome.assert_only_flipped({})
    assert set(outcome.causes.values()) == {"connection_refused"}
    assert outcome.report["unknown"] == 5


# --- throttling ---


def test_a_throttled_call_is_made_again(stage: Stage) -> None:
    stage.add_all(3, "running")
    dead = stage.add("stopped")
    stage.ec2.script.reply(THROTTLED, nth=1, action=DESCRIBE)
    stage.cycle().assert_only_flipped({dead: "stopped"})


@pytest.mark.parametrize("served", [0, 2], ids=["at the first look", "at the second look"])
def test_an_account_that_throttles_without_end_takes_nobody_offline_and_holds_nobody_up(
    stage: Stage, served: int
) -> None:
    """Beside the first look, the impaired instances are asked for."""
    stage.add_all(3, "running")
    stage.add_all(2, "stopped")
    stage.ec2.bucket = TokenBucket(capacity=served, refill_per_s=0)
    outcome = stage.cycle(CYCLE_DEADLINE_SECONDS="2")
    outcome.assert_only_flipped({})
    report = outcome.report
    if served == 0:
        assert report["unknown"] + report["deferred"] == 5
    else:
        assert sum(outcome.skips[one] for one in ("not_confirmed", "out_of_time") if one in outcome.skips) == 2
    assert report["duration_ms"] < 5000
    assert 1 <= stage.ec2.throttled <= 10


@pytest.mark.parametrize(
    "error",
    [
        ApiError("EC2ThrottledException", "too many", 503),
        ApiError("RequestThrottledException", "too many", 400),
        ApiError("Whatever", "too many", 429),
    ],
    ids=lambda error: f"{error.code} {error.status}",
)
def test_throttling_in_any_word_slows_the_pace_and_splits_no_batch(stage: Stage, error: ApiError) -> None:
    """Taken for an error of one instance's, it would make more calls while the account has none left."""
    stage.add_all(199, "running")
    stage.ec2.script.reply(error.as_answer())
    outcome = stage.cycle(CYCLE_DEADLINE_SECONDS="4")
    assert outcome.report["unknown"] + outcome.report["deferred"] == 199
    assert 1 <= len(stage.ec2.calls) <= 5


# --- many instances ---

MANY, VERY_MANY = 1_200, 5_100
OTHERS = {"stopped": 3, "terminated": 2, "pending": 2, "stopping": 1, None: 2}


@dataclass(frozen=True, slots=True)
class Crowd:
    """A large fleet, most of it running, in an account with instances of others."""

    stage: Stage
    dead: dict[str, str]
    expected: dict[str, int]
    running: list[str]
    not_running: set[str]

    def look(self) -> Outcome:
        """Run a cycle that changes nothing, so that the next test finds the crowd as it was."""
        return self.stage.glance(DRY_RUN)

    def again(self) -> None:
        """Forget the rules and the calls."""
        self.stage.ec2.script.clear()
        self.stage.ec2.calls.clear()
        self.stage.ec2.bucket = TokenBucket(capacity=100, refill_per_s=20)


def crowd_of(stage: Stage, running: int) -> Crowd:
    instances = stage.instances(running, "running")
    stage.fleet.add_all(instances)
    others = {state: stage.add_all(count, state) for state, count in OTHERS.items()}
    stage.instances(300, "running")
    dead = {one: state for state in ("stopped", "terminated") for one in others[state]}
    expected = {"running": running, "transition": 3, "dead": 5, "absent": 2, "unknown": 0, "deferred": 0}
    not_running = {stage.instance_of(one) for ids in others.values() for one in ids}
    return Crowd(stage, dead, expected, instances, not_running)


@pytest.fixture(scope="module")
def many_module(stages: Stages) -> Iterator[Crowd]:
    with stages.borrowed() as stage:
        yield crowd_of(stage, MANY)


@pytest.fixture(scope="module")
def very_many_module(stages: Stages) -> Iterator[Crowd]:
    with stages.borrowed() as stage:
        yield crowd_of(stage, VERY_MANY)


@pytest.fixture
def many(many_module: Crowd) -> Iterator[Crowd]:
    many_module.again()
    yield many_module
    assert_within_limits(many_module.stage.ec2)


@pytest.fixture
def very_many(very_many_module: Crowd) -> Iterator[Crowd]:
    very_many_module.again()
    yield very_many_module
    assert_within_limits(very_many_module.stage.ec2)


def assert_seen_rightly(crowd: Crowd, outcome: Outcome) -> None:
    assert verdicts(outcome) == crowd.expected
    assert {flip["workspace_id"]: flip["instance_state"] for flip in outcome.report["flips"]} == crowd.dead


def test_in_a_large_fleet_what_runs_is_listed_and_only_the_rest_is_asked_for(many: Crowd) -> None:
    outcome = many.look()
    assert_seen_rightly(many, outcome)
    assert asked_for(many.stage.ec2).keys() == many.not_running
    # Two pages of what runs, a question about the rest, one about status checks, one about the dead.
    assert len(many.stage.ec2.calls) == 5
    assert [line["reason"] for line in outcome.lines("plan chosen")] == ["list what runs, ask for the rest"]


LISTING_TROUBLES: Mapping[str, Callable[[DescribeCall], Reply | None]] = {
    "it names nobody": lambda _: Answer(body=ec2_xml.statuses([], None, request_id="r-1")),
    "it is refused": lambda _: REFUSED,
    "it is refused in the middle": lambda call: REFUSED if "NextToken" in call.parameters else None,
    "it is garbage": lambda _: Answer(body=b"<html/>"),
    "it is garbage in the middle": lambda call: Answer(body=b"") if "NextToken" in call.parameters else None,
    "it goes in circles": lambda _: Answer(body=ec2_xml.statuses([], "token-1", request_id="r-1")),
    "it names others only": lambda _: Answer(
        body=ec2_xml.statuses(
            [Instance(f"i-{n:017x}", "running", ZONES[0], n) for n in range(9**9, 9**9 + 500)], None, request_id="r"
        )
    ),
}


@pytest.mark.parametrize("name", LISTING_TROUBLES)
def test_instances_missing_from_a_listing_are_asked_about_and_not_taken_for_dead(many: Crowd, name: str) -> None:
    many.stage.ec2.script.reply(LISTING_TROUBLES[name], action=LIST)
    assert_seen_rightly(many, many.look())


def test_a_listing_of_what_runs_is_believed_only_where_it_says_running(many: Crowd) -> None:
    page = [Instance(one, "stopped", ZONES[0], 1) for one in many.not_running]
    page += [Instance(one, "terminated", ZONES[0], 1) for one in many.running[:500]]
    many.stage.ec2.script.reply(Answer(body=ec2_xml.statuses(page, None, request_id="r-1")), action=LIST)
    assert_seen_rightly(many, many.look())


def in_zone(zone: str, reply: Reply) -> Callable[[DescribeCall], Reply | None]:
    return lambda call: reply if zone in call.filters.get("availability-zone", ()) else None


ZONE_TROUBLES: Mapping[str, tuple[str, Reply | Callable[[DescribeCall], Reply | None]] | None] = {
    "everything is well": None,
    "a zone is disrupted": (LIST, in_zone(ZONES[1], REFUSED)),
    "the zones are not told": (ZONES_OF, REFUSED),
}


@pytest.mark.parametrize("name", ZONE_TROUBLES)
def test_a_very_large_fleet_is_seen_rightly_whatever_becomes_of_its_zones(very_many: Crowd, name: str) -> None:
    trouble = ZONE_TROUBLES[name]
    if trouble:
        action, reply = trouble
        very_many.stage.ec2.script.reply(reply, action=action)
    assert_seen_rightly(very_many, very_many.look())
    assert very_many.stage.ec2.throttled == 0
    assert len(very_many.stage.ec2.calls) < 50


def test_a_disrupted_zone_that_cannot_be_asked_about_costs_only_its_own(stage: Stage) -> None:
    here = stage.ec2.add(250, zone=ZONES[0])
    there = stage.ec2.add(250, zone=ZONES[1])
    for one in (here[0], there[0]):
        stage.ec2.set_state(one, "stopped")
    rows = [{"id": str(UUID(int=number + 1)), "instance_id": one} for number, one in enumerate([*here, *there])]
    stage.fleet.insert(rows)
    disrupted = set(there)
    stage.ec2.script.reply(Answer(body=ec2_xml.statuses([], None, request_id="r-1")), action=LIST)
    stage.ec2.script.reply(
        lambda call: REFUSED if disrupted & call.filters.get("instance-id", frozenset()) else None, action=DESCRIBE
    )
    outcome = stage.cycle()
    outcome.assert_only_flipped({rows[0]["id"]: "stopped"})
    assert outcome.report["absent"] == 0
    assert 250 <= outcome.report["unknown"] <= 300


def test_cycles_in_quick_succession_find_what_a_minute_refills(stage: Stage) -> None:
    """The stage lets EC2's bucket see a minute between cycles. On a quick machine, 60 cycles in one test emptied it."""
    stage.add("running")
    stage.ec2.bucket = TokenBucket(capacity=10, refill_per_s=1, clock=lambda: 0.0)
    outcomes = [stage.glance() for _ in range(10)]
    assert [outcome.report["unknown"] for outcome in outcomes] == [0] * 10
    assert stage.ec2.throttled == 0
