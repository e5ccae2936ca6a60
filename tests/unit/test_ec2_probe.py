"""The EC2 probe: whole, broken and paged answers, and what they prove."""

import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.deadline import Deadline
from handler.domain.model import VERDICT_OF_STATE, Cause, Failure, Sighting, Verdict, Workspace
from handler.net.aws import Call
from handler.net.bounded import CallError
from handler.probes.ec2 import api as ec2_api
from handler.probes.ec2 import probe as ec2_probe
from handler.probes.ec2.api import ATTEMPTS, Ec2Api, Ec2Error
from handler.probes.ec2.probe import BISECTING_CALLS, LIST_ABOVE, ZONES_ABOVE, Ec2Probe
from tests.unit.builders import Clock, Log, instance, number_of, uuid, workspace

if TYPE_CHECKING:
    from types_boto3_ec2 import EC2Client

Failing = Callable[[], BaseException]


def refusal(code: str, status: int = 400) -> Failing:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return lambda: botocore.exceptions.ClientError(answer, "Describe")


def broken(cause: Cause) -> Failing:
    return lambda: CallError(cause, sent=True)


INSTANCES, STATUS, ZONES = "describe_instances", "describe_instance_status", "describe_availability_zones"

THROTTLED = refusal("RequestLimitExceeded", 503)
SERVER_ERROR = refusal("InternalError", 500)
DENIED = refusal("UnauthorizedOperation", 403)


class Within:
    """Bounds the calls of each thread, as `Aws.within` does."""

    def __init__(self) -> None:
        self._calls = threading.local()

    @contextlib.contextmanager
    def __call__(self, deadline: Deadline) -> Iterator[Call]:
        self._calls.now = Call(deadline)
        try:
            yield self._calls.now
        finally:
            del self._calls.now

    @property
    def call(self) -> Call:
        """The call that is under way. Raises AttributeError outside of it."""
        call: Call = self._calls.now
        return call


class Account:
    """An EC2 client that answers for its instances, in pages, with scripted failures."""

    def __init__(self, states: dict[str, str], *, page: int = 1000, clock: Clock | None = None) -> None:
        self.states = states
        self.page = page
        self.clock = clock or Clock()
        self.within = Within()
        self.takes_s = 0.0
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.deadlines: list[float] = []
        self.failures: list[Failing | None] = []
        self.failure: Callable[[str, dict[str, Any]], Failing | None] = lambda *_: None
        self.impaired: set[str] = set()
        self.reading_takes_s = 0.0
        self.zones: list[str] = ["a", "b"]
        self.statuses: Callable[[dict[str, Any]], Any] = self._statuses
        self._lock = threading.Lock()

    def describe_instances(self, **query: Any) -> Any:
        return self._answer(INSTANCES, query, self._instances)

    def describe_instance_status(self, **query: Any) -> Any:
        return self._answer(STATUS, query, self.statuses)

    def describe_availability_zones(self, **query: Any) -> Any:
        return self._answer(ZONES, query, self._zones)

    def asked(self, operation: str = INSTANCES) -> list[dict[str, Any]]:
        return [query for called, query in self.calls if called == operation]

    def _answer(self, operation: str, query: dict[str, Any], answer: Callable[[dict[str, Any]], Any]) -> Any:
        call = self.within.call
        deadline = call.deadline
        with self._lock:
            self.calls.append((operation, query))
            self.deadlines.append(deadline.remaining())
            if self.takes_s >= deadline.remaining():
                self.clock.sleep(deadline.remaining())
                raise CallError(Cause.TIMEOUT, sent=True)
            self.clock.sleep(self.takes_s)
            call.answered_at = self.clock()
            self.clock.sleep(self.reading_takes_s)
            failure = self.failures.pop(0) if self.failures else self.failure(operation, query)
            if failure is not None:
                raise failure()
            return answer(query)

    def _instances(self, query: dict[str, Any]) -> Any:
        ((name, ids),) = [(one["Name"], one["Values"]) for one in query["Filters"]]
        assert name == "instance-id"
        assert len(ids) <= 200
        found = [{"InstanceId": one, "State": {"Name": self.states[one]}} for one in ids if one in self.states]
        page, rest = self._cut(found, query)
        return {"Reservations": [{"Instances": [one]} for one in page], **rest}

    def _statuses(self, query: dict[str, Any]) -> Any:
        wanted = {one["Name"]: one["Values"] for one in query.get("Filters", ())}
        running = [
            {
                "InstanceId": one,
                "InstanceState": {"Name": state},
                "SystemStatus": {"Status": "impaired" if one in self.impaired else "ok"},
            }
            for number, (one, state) in enumerate(self.states.items())
            if state == "running"
            and self.zones[number % len(self.zones)] in wanted.get("availability-zone", self.zones)
            and (one in self.impaired or "system-status.status" not in wanted)
        ]
        page, rest = self._cut(running, query)
        return {"InstanceStatuses": page, **rest}

    def _zones(self, query: dict[str, Any]) -> Any:
        assert query == {}
        return {"AvailabilityZones": [{"ZoneName": zone} for zone in self.zones]}

    def _cut(self, rows: Sequence[Any], query: dict[str, Any]) -> tuple[Sequence[Any], dict[str, str]]:
        begin = int(query.get("NextToken", "0"))
        end = begin + min(query["MaxResults"], self.page)
        return rows[begin:end], {"NextToken": str(end)} if end < len(rows) else {}


class Answering:
    """An EC2 client that answers every question for instances alike: by `answer`, without a question."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.within = Within()
        self._answer = answer

    def describe_instances(self, **_: Any) -> Any:
        assert self.within.call is not None
        return self._answer()


Client = Account | Answering


def always(answer: Any) -> Answering:
    return Answering(lambda: answer)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ec2_probe, "time", SimpleNamespace(monotonic=clock))
    return clock


def api(client: Client, clock: Clock, *, timeout_s: float = 10) -> Ec2Api:
    return Ec2Api(lambda: cast("EC2Client", client), client.within, timeout_s=timeout_s, clock=clock, sleep=clock.sleep)


def probe(client: Client, clock: Clock, *, timeout_s: float = 10) -> Ec2Probe:
    return Ec2Probe(api(client, clock, timeout_s=timeout_s), timeout_s=timeout_s, target="eu-central-1")


def look(client: Client, clock: Clock, workspaces: Sequence[Workspace], seconds: float = 30) -> dict[str, Sighting]:
    """Return the sightings by workspace id; fail if a workspace has two."""
    seen = list(probe(client, clock).sightings(workspaces, Deadline(seconds, clock=clock)))
    assert max(Counter(one.workspace.id for one in seen).values(), default=0) <= 1
    return {one.workspace.id: one for one in seen}


def found(seen: dict[str, Sighting]) -> dict[int, str]:
    """Return each workspace's state by its number, or why there is none."""
    return {number_of(id_): one.state or one.reason for id_, one in seen.items()}


def some(count: int) -> list[Workspace]:
    return [workspace(number) for number in range(1, count + 1)]


def all_of(count: int, state: str = "running") -> dict[str, str]:
    return {instance(number): state for number in range(1, count + 1)}


# --- whole answers ---


def test_an_instance_that_is_not_listed_is_not_found(clock: Clock) -> None:
    states = {instance(number): state for number, state in enumerate(VERDICT_OF_STATE, start=1) if state != "not_found"}
    seen = look(Account(states), clock, some(len(states) + 1))
    assert found(seen) == {**dict(enumerate(states.values(), start=1)), len(states) + 1: "not_found"}


@pytest.mark.parametrize("state", ["hovering", "not_found"])
def test_a_new_state_of_ec2_is_unknown(clock: Clock, state: str) -> None:
    seen = look(Account({instance(1): state}), clock, some(1))
    assert found(seen) == {1: "unrecognised_state"}


def test_a_filter_asks_for_two_hundred_ids_at_a_time(clock: Clock) -> None:
    account = Account(all_of(450, "stopped"))
    assert found(look(account, clock, some(450))) == dict.fromkeys(range(1, 451), "stopped")
    assert sorted(len(query["Filters"][0]["Values"]) for query in account.asked()) == [50, 200, 200]
    asked = Counter(one for query in account.asked() for one in query["Filters"][0]["Values"])
    assert asked == Counter(all_of(450).keys())
    assert all(query["MaxResults"] <= 1000 and "InstanceIds" not in query for query in account.asked())


def test_a_listing_is_read_to_its_last_page(clock: Clock) -> None:
    account = Account(all_of(10, "stopped"), page=3)
    assert found(look(account, clock, some(10))) == dict.fromkeys(range(1, 11), "stopped")
    assert len(account.asked()) == 4


def test_an_instance_of_two_workspaces_is_asked_for_once(clock: Clock) -> None:
    account = Account({instance(1): "stopped"})
    seen = look(account, clock, [workspace(1), workspace(2, instance(1))])
    assert found(seen) == {1: "stopped", 2: "stopped"}
    assert account.asked()[0]["Filters"][0]["Values"] == [instance(1)]


@pytest.mark.parametrize(
    "instance_id",
    [
        *("x", "i-", "i-123", "i-*", "i-0123456?", "I-01234567", "i-0123456G", "i-0123456789abcde", "*", "mi-01234567"),
        *("i-01234567\n", " i-01234567", "i-01234567,i-89abcdef", "i-0123456789abcdef01", "i-٠١٢٣٤٥٦٧"),
    ],
    ids=ascii,
)
def test_a_malformed_id_is_unknown_and_never_asked_for(clock: Clock, instance_id: str) -> None:
    account = Account({instance(2): "stopped"})
    seen = look(account, clock, [workspace(1, instance_id), workspace(2)])
    assert found(seen) == {1: "malformed_instance_id", 2: "stopped"}
    assert account.asked()[0]["Filters"][0]["Values"] == [instance(2)]


def test_a_short_id_is_asked_for(clock: Clock) -> None:
    assert found(look(Account({"i-0123abcd": "running"}), clock, [workspace(1, "i-0123abcd")])) == {1: "running"}


def test_no_candidates_means_no_calls(clock: Clock) -> None:
    account = Account({})
    assert look(account, clock, []) == {}
    assert account.calls == []


def instances(*states: tuple[int, Any]) -> dict[str, Any]:
    listed = [{"InstanceId": instance(number), "State": {"Name": state}} for number, state in states]
    return {"Reservations": [{"Instances": listed}]}


def test_an_instance_that_nobody_asked_for_is_ignored(clock: Clock) -> None:
    answer = instances((99, "terminated"), (1, "running"), (98, "stopped"))
    assert found(look(always(answer), clock, some(2))) == {1: "running", 2: "not_found"}


# --- broken answers ---


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="nothing"),
        pytest.param([], id="a list"),
        pytest.param("<xml/>", id="text"),
        pytest.param({}, id="no reservations"),
        pytest.param({"Reservations": None}, id="reservations of null"),
        pytest.param({"Reservations": [None]}, id="a reservation of null"),
        pytest.param({"Reservations": [{}]}, id="no instances"),
        pytest.param({"Reservations": [{"Instances": None}]}, id="instances of null"),
        pytest.param({"Reservations": [{"Instances": [{}]}]}, id="an instance without an id"),
        pytest.param({"Reservations": [{"Instances": [{"InstanceId": instance(1)}]}]}, id="no state"),
        pytest.param({"Reservations": [{"Instances": [{"InstanceId": instance(1), "State": {}}]}]}, id="no name"),
        pytest.param(
            {"Reservations": [{"Instances": [{"InstanceId": instance(1), "State": None}]}]}, id="null for a state"
        ),
        pytest.param(
            {"Reservations": [{"Instances": [{"InstanceId": [1], "State": {"Name": "stopped"}}]}]},
            id="a list for an id",
        ),
        pytest.param(instances((1, None)), id="null for a state's name"),
        pytest.param(instances((1, "")), id="an empty name"),
        pytest.param(instances((1, 80)), id="a state's number"),
        pytest.param(instances((1, ["stopped"])), id="a list of states"),
    ],
)
def test_a_garbled_answer_proves_nothing(clock: Clock, answer: Any) -> None:
    seen = look(always(answer), clock, some(1))
    assert [one.verdict for one in seen.values()] == [Verdict.UNKNOWN]


def test_the_part_of_an_answer_before_its_error_counts(clock: Clock) -> None:
    answer = instances((1, "stopped"))
    answer["Reservations"].append({"Instances": [{"InstanceId": instance(2)}]})
    assert found(look(always(answer), clock, some(3))) == {
        1: "stopped",
        2: "garbled_answer",
        3: "garbled_answer",
    }


def test_a_listing_in_circles_proves_no_absence(clock: Clock) -> None:
    page = instances((1, "running")) | {"NextToken": "again"}
    assert found(look(always(page), clock, some(2))) == {1: "running", 2: "garbled_answer"}


def test_a_listing_in_larger_circles_ends_with_the_time(clock: Clock) -> None:
    pages = itertools.cycle([instances((1, "running")) | {"NextToken": token} for token in "AB"])
    seen = look(Answering(lambda: next(pages)), clock, some(2))
    assert found(seen)[1] == "running"
    assert seen.get(uuid(2)) is None or seen[uuid(2)].verdict is Verdict.UNKNOWN
    assert sum(clock.slept) < 31


# --- failures ---


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        pytest.param(DENIED, "refused_UnauthorizedOperation", id="denied"),
        pytest.param(refusal("AuthFailure", 401), "refused_AuthFailure", id="wrong credentials"),
        pytest.param(refusal("InvalidInstanceID.NotFound"), "refused_InvalidInstanceID.NotFound", id="unknown id"),
        pytest.param(refusal("s3cret: " + "x" * 100), "refused", id="a code that is no code"),
        pytest.param(refusal(""), "refused", id="no code"),
        pytest.param(lambda: botocore.exceptions.ClientError({}, "Describe"), "refused", id="an empty refusal"),
        pytest.param(broken(Cause.TIMEOUT), "timeout", id="a timeout"),
        pytest.param(broken(Cause.TLS_FAILED), "tls_failed", id="TLS"),
        pytest.param(botocore.exceptions.NoCredentialsError, "aws_NoCredentialsError", id="no credentials"),
        pytest.param(lambda: RuntimeError("s3cret"), "garbled_answer", id="a surprise"),
    ],
)
def test_a_lasting_failure_is_not_retried_and_proves_no_absence(clock: Clock, failure: Failing, reason: str) -> None:
    account = Account({}, clock=clock)
    account.failure = lambda *_: failure
    assert found(look(account, clock, some(3))) == dict.fromkeys([1, 2, 3], reason)
    assert len(account.calls) == 1


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(broken(Cause.BROKEN_CONNECTION), id="a broken connection"),
        pytest.param(broken(Cause.CONNECTION_REFUSED), id="a refused connection"),
        pytest.param(SERVER_ERROR, id="a server error"),
        pytest.param(THROTTLED, id="throttling"),
    ],
)
def test_a_passing_failure_is_retried_after_a_back_off(clock: Clock, failure: Failing) -> None:
    account = Account(all_of(3), clock=clock)
    account.failures = [failure, failure]
    assert found(look(account, clock, some(3))) == dict.fromkeys([1, 2, 3], "running")
    assert len(account.calls) == 3
    first, second = (slept_s for slept_s in clock.slept if slept_s > 0.2)
    assert 0.5 <= first <= 1 <= second <= 2


@pytest.mark.parametrize("code", ["RequestLimitExceeded", "EC2ThrottledException", "ThrottlingException"])
def test_each_of_awss_words_for_throttling_is_waited_out(clock: Clock, code: str) -> None:
    account = Account(all_of(3), clock=clock)
    account.failures = [refusal(code)] * (ATTEMPTS + 1)
    assert found(look(account, clock, some(3))) == dict.fromkeys([1, 2, 3], "running")


def test_the_back_off_doubles_up_to_four_seconds_with_jitter(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    account = Account(all_of(3), clock=clock)
    account.failures = [THROTTLED] * 6
    look(account, clock, some(3), seconds=100)
    assert [slept_s for slept_s in clock.slept if slept_s > 0.2] == [1, 2, 4, 8, 8, 8]


def test_a_broken_connection_is_retried_a_limited_number_of_times(clock: Clock) -> None:
    account = Account(all_of(3), clock=clock)
    account.failure = lambda *_: broken(Cause.BROKEN_CONNECTION)
    assert found(look(account, clock, some(3))) == dict.fromkeys([1, 2, 3], "broken_connection")
    assert len(account.calls) == ATTEMPTS


def test_the_pages_before_a_failed_one_count(clock: Clock) -> None:
    account = Account(all_of(6, "stopped"), page=2, clock=clock)
    account.failures = [None, None, DENIED]
    reason = "refused_UnauthorizedOperation"
    expected = {**dict.fromkeys([1, 2, 3, 4], "stopped"), 5: reason, 6: reason}
    assert found(look(account, clock, some(6))) == expected


def test_a_retried_page_goes_on_where_the_listing_was(clock: Clock) -> None:
    account = Account(all_of(6, "stopped"), page=2, clock=clock)
    account.failures = [None, THROTTLED, broken(Cause.BROKEN_CONNECTION)]
    assert found(look(account, clock, some(6))) == dict.fromkeys(range(1, 7), "stopped")
    assert [query.get("NextToken") for query in account.asked()] == [None, "2", "2", "2", "4"]


def test_a_failed_batch_costs_only_its_own_ids(clock: Clock) -> None:
    account = Account(all_of(600, "stopped"), clock=clock)
    account.failure = lambda operation, query: (
        DENIED if operation == INSTANCES and instance(300) in query["Filters"][0]["Values"] else None
    )
    states = found(look(account, clock, some(600)))
    assert Counter(states.values()) == {"stopped": 400, "refused_UnauthorizedOperation": 200}
    assert states[300] == "refused_UnauthorizedOperation"


# --- one id that makes its whole batch fail ---


@pytest.mark.parametrize("poison", [1, 2, 100, 199, 200])
def test_an_id_that_fails_its_batch_costs_only_itself(clock: Clock, poison: int) -> None:
    account = Account(all_of(200), clock=clock)
    account.failure = lambda _, query: SERVER_ERROR if instance(poison) in query["Filters"][0]["Values"] else None
    states = found(look(account, clock, some(200), seconds=60))
    assert states.pop(poison) == "server_error"
    assert Counter(states.values()) == {"running": 199}


def test_the_search_for_failing_ids_has_a_limit(clock: Clock) -> None:
    account = Account(all_of(200), clock=clock)
    account.failure = lambda *_: SERVER_ERROR
    states = found(look(account, clock, some(200), seconds=600))
    assert Counter(states.values()) == {"server_error": 200}
    assert len(account.calls) <= ATTEMPTS + BISECTING_CALLS


def test_a_search_that_was_cut_off_counts_if_it_had_its_time(
    clock: Clock,
) -> None:
    account = Account(all_of(200), clock=clock)
    account.takes_s = 8
    account.failure = lambda *_: SERVER_ERROR
    states = found(look(account, clock, some(200), seconds=30))
    assert len(states) == 200


# --- throttling, pace and time ---


def test_throttling_is_waited_out_while_there_is_time(clock: Clock) -> None:
    account = Account(all_of(3), clock=clock)
    account.failure = lambda *_: THROTTLED if clock.now < 1020 else None
    assert found(look(account, clock, some(3))) == dict.fromkeys([1, 2, 3], "running")


def test_endless_throttling_is_unknown(clock: Clock) -> None:
    account = Account({}, clock=clock)
    account.failure = lambda *_: THROTTLED
    assert found(look(account, clock, some(3))) == dict.fromkeys([1, 2, 3], "throttled")
    assert sum(clock.slept) <= 30


@pytest.mark.parametrize(
    ("took_s", "expected"),
    [
        pytest.param(10, {1: "timeout", 2: "timeout"}, id="as long as a call may take"),
        pytest.param(9.9, {}, id="hardly less"),
    ],
)
def test_a_call_that_was_cut_off_counts_if_it_had_its_time(
    clock: Clock, took_s: float, expected: dict[int, str]
) -> None:
    deadline = Deadline(30, clock=clock)

    def time_out() -> Any:
        clock.sleep(took_s)
        deadline.shorten(0)
        raise CallError(Cause.TIMEOUT, sent=True)

    seen = probe(Answering(time_out), clock).sightings(some(2), deadline)
    assert found({one.workspace.id: one for one in seen}) == expected


def test_half_of_a_short_deadline_is_enough_time(clock: Clock) -> None:
    account = Account(all_of(3), clock=clock)
    account.takes_s = 1000
    assert found(look(account, clock, some(3), seconds=8)) == dict.fromkeys([1, 2, 3], "timeout")


def test_every_call_ends_by_its_timeout_and_by_the_deadline(clock: Clock) -> None:
    account = Account(all_of(3), clock=clock)
    account.failures = [THROTTLED] * 8
    look(account, clock, some(3), seconds=30)
    assert max(account.deadlines) == pytest.approx(10)
    assert account.deadlines[-1] < 10


def test_nothing_is_asked_after_the_deadline(clock: Clock) -> None:
    account = Account(all_of(3), clock=clock)
    assert look(account, clock, some(3), seconds=0) == {}
    assert account.calls == []


def test_after_a_burst_ten_calls_go_out_a_second(clock: Clock) -> None:
    paced = api(Account({}, clock=clock), clock)
    deadline = Deadline(600, clock=clock)
    for _ in range(50):
        paced.zones(deadline)
    assert sum(clock.slept) == 0
    for _ in range(100):
        paced.zones(deadline)
    assert sum(clock.slept) == pytest.approx(10, abs=0.2)


def test_a_throttled_call_ends_the_burst_for_all(clock: Clock) -> None:
    account = Account({instance(1): "running"}, clock=clock)
    paced = api(account, clock)
    account.failures = [THROTTLED]
    (page,) = paced.states([instance(1)], Deadline(600, clock=clock))
    assert list(page.named) == [(instance(1), "running")]
    clock.slept.clear()
    for _ in range(50):
        paced.zones(Deadline(600, clock=clock))
    assert sum(clock.slept) >= 3


def test_the_call_after_a_throttled_one_waits_for_its_token(clock: Clock) -> None:
    pace = ec2_api._Pace(clock)  # noqa: SLF001 - a throttled call backs off for a random time before it comes here
    assert pace.turn() == 0
    pace.slow_down()
    assert pace.turn() == pytest.approx(0.1)
    clock.sleep(0.2)
    assert pace.turn() == 0


def test_a_call_whose_turn_comes_too_late_is_not_made(clock: Clock) -> None:
    account = Account({}, clock=clock)
    paced = api(account, clock)
    for _ in range(50):
        paced.zones(Deadline(600, clock=clock))
    with pytest.raises(Ec2Error, match="paced") as failure:
        paced.zones(Deadline(0.05, clock=clock))
    assert failure.value.failure == Failure(Cause.PACED)
    assert failure.value.cut_off
    assert len(account.calls) == 50


# --- listings of what runs ---

MANY = LIST_ABOVE + 1
VERY_MANY = ZONES_ABOVE + 1
FAILURE_NAMES = ["denied", "server error", "timeout", "throttled"]


def test_a_few_instances_are_asked_for_by_their_ids(clock: Clock) -> None:
    account = Account(all_of(LIST_ABOVE), clock=clock)
    assert len(look(account, clock, some(LIST_ABOVE))) == LIST_ABOVE
    assert account.asked(STATUS) == []


@pytest.mark.parametrize(
    ("count", "zones"),
    [pytest.param(MANY, [None], id="in one listing"), pytest.param(VERY_MANY, ["a", "b"], id="zone by zone")],
)
def test_many_instances_are_listed_and_only_the_rest_is_asked_for(
    clock: Clock, count: int, zones: list[str | None]
) -> None:
    states = all_of(count) | {instance(1): "stopped", instance(2): "terminated"}
    del states[instance(3)]
    account = Account(states, clock=clock)
    seen = found(look(account, clock, some(count)))
    assert {number: seen.pop(number) for number in (1, 2, 3)} == {1: "stopped", 2: "terminated", 3: "not_found"}
    assert Counter(seen.values()) == {"running": count - 3}
    listed = {one.get("Filters", [{"Values": [None]}])[0]["Values"][0] for one in account.asked(STATUS)}
    assert listed == set(zones)
    asked = {one for query in account.asked() for one in query["Filters"][0]["Values"]}
    assert asked == {instance(1), instance(2), instance(3)}


def test_what_looks_dead_is_asked_for_by_its_ids(clock: Clock) -> None:
    """A listing of what runs would not have it."""
    account = Account(all_of(MANY, "stopped"), clock=clock)
    probing = probe(account, clock)
    for _ in range(2):
        account.calls.clear()
        assert len(list(probing.sightings(some(MANY), Deadline(30, clock=clock)))) == MANY
    assert account.asked(STATUS) == []


def test_a_listing_of_what_runs_is_read_page_by_page(clock: Clock) -> None:
    account = Account(all_of(MANY), page=150, clock=clock)
    look(account, clock, some(MANY))
    assert [one.get("NextToken") for one in account.asked(STATUS)] == [None, "150"]
    assert account.asked() == []


def test_a_listed_instance_of_two_workspaces_runs_for_both(clock: Clock) -> None:
    account = Account(all_of(MANY), clock=clock)
    seen = look(account, clock, [*some(MANY), workspace(MANY + 1, instance(1))])
    assert len(seen) == MANY + 1
    assert {one.state for one in seen.values()} == {"running"}


@pytest.mark.parametrize("failure", [DENIED, SERVER_ERROR, broken(Cause.TIMEOUT), THROTTLED], ids=FAILURE_NAMES)
def test_a_failed_listing_costs_nobody_anything(clock: Clock, failure: Failing) -> None:
    account = Account(all_of(MANY, "stopped"), clock=clock)
    account.failure = lambda called, _: failure if called == STATUS else None
    seen = found(look(account, clock, some(MANY), seconds=60))
    assert Counter(seen.values()) == {"stopped": MANY}


@pytest.mark.parametrize("failure", [DENIED, SERVER_ERROR, broken(Cause.TIMEOUT)], ids=FAILURE_NAMES[:3])
def test_without_the_zones_everything_is_one_listing(clock: Clock, failure: Failing) -> None:
    account = Account(all_of(VERY_MANY), clock=clock)
    account.failures = [failure]
    seen = found(look(account, clock, some(VERY_MANY), seconds=60))
    assert Counter(seen.values()) == {"running": VERY_MANY}
    assert all("Filters" not in query for query in account.asked(STATUS))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({}, id="empty"),
        pytest.param({"InstanceStatuses": [{}]}, id="no id"),
        pytest.param({"InstanceStatuses": [{"InstanceId": instance(1), "InstanceState": {}}]}, id="no state"),
        pytest.param({"InstanceStatuses": None}, id="statuses of null"),
        pytest.param(None, id="nothing"),
    ],
)
def test_a_garbled_listing_costs_nobody_anything(clock: Clock, answer: Any) -> None:
    account = Account(all_of(MANY, "stopped"), clock=clock)
    account.statuses = lambda _: answer
    seen = found(look(account, clock, some(MANY), seconds=60))
    assert Counter(seen.values()) == {"stopped": MANY}


def test_a_listing_proves_only_that_an_instance_runs(clock: Clock) -> None:
    account = Account(all_of(MANY, "stopped"), clock=clock)
    listed = [{"InstanceId": instance(number), "InstanceState": {"Name": "terminated"}} for number in range(1, 10)]
    account.statuses = lambda _: {"InstanceStatuses": listed}
    assert Counter(found(look(account, clock, some(MANY), seconds=60)).values()) == {"stopped": MANY}


def test_a_listing_of_mostly_foreign_instances_is_given_up(
    clock: Clock,
) -> None:
    foreign = {instance(number): "running" for number in range(100_000, 120_000)}
    account = Account(foreign | all_of(MANY, "stopped"), clock=clock)
    assert Counter(found(look(account, clock, some(MANY), seconds=60)).values()) == {"stopped": MANY}
    assert len(account.asked(STATUS)) <= MANY // 200 + 1


def foreign(count: int) -> dict[str, str]:
    return {instance(number): "running" for number in range(100_000, 100_000 + count)}


def test_a_listing_ends_once_all_wanted_ids_are_found(clock: Clock) -> None:
    account = Account(all_of(2_500) | foreign(20_000), clock=clock)
    assert Counter(found(look(account, clock, some(2_500))).values()) == {"running": 2_500}
    assert len(account.asked(STATUS)) == 3
    assert account.asked() == []


@pytest.mark.parametrize(("count", "pages_read"), [(MANY, 1), (1_999, 1), (4_000, 2), (8_000, 4)])
def test_a_listing_may_waste_a_page_for_two_thousand_wanted_ids(clock: Clock, count: int, pages_read: int) -> None:
    account = Account(foreign(20_000) | all_of(count), clock=clock)
    account.zones = ["a"]
    assert Counter(found(look(account, clock, some(count), seconds=60)).values()) == {"running": count}
    assert len(account.asked(STATUS)) == pages_read


def test_early_savings_allow_no_later_waste(clock: Clock) -> None:
    account = Account(all_of(3_000) | foreign(20_000) | {instance(3_001): "stopped"}, clock=clock)
    seen = found(look(account, clock, some(3_001)))
    assert seen.pop(3_001) == "stopped"
    assert Counter(seen.values()) == {"running": 3_000}
    assert len(account.asked(STATUS)) == 3 + 1


def test_a_listing_goes_on_while_its_pages_save_calls(clock: Clock) -> None:
    others = iter(foreign(9_000))
    mixed = {one: "running" for ours in all_of(3_000) for one in (ours, *(next(others) for _ in range(3)))}
    account = Account(mixed | {instance(3_001): "stopped"}, clock=clock)
    assert len(look(account, clock, some(3_001))) == 3_001
    assert len(account.asked(STATUS)) == 12
    assert len(account.asked()) == 1


def test_time_spent_on_a_listing_counts_against_nobody(clock: Clock) -> None:
    account = Account(all_of(MANY), page=MANY - 1, clock=clock)

    def hang_after_the_first_page(operation: str, query: dict[str, Any]) -> Failing | None:
        if operation == STATUS and "NextToken" not in query:
            return None
        clock.sleep(account.deadlines[-1])
        return broken(Cause.TIMEOUT)

    account.failure = hang_after_the_first_page
    seen = found(look(account, clock, some(MANY), seconds=10))
    assert [takes for takes in account.deadlines if takes < 10] == [6, 6, 4]
    assert seen.pop(MANY) == "timeout"
    assert Counter(seen.values()) == {"running": MANY - 1}


# --- how old an answer is ---


def test_a_sighting_is_as_old_as_the_page_that_names_it(clock: Clock) -> None:
    """Reading a page takes CPU time, and so do the pages after it. Meanwhile the answer grows older."""
    account = Account(all_of(4, "stopped"), page=2, clock=clock)
    account.takes_s, account.reading_takes_s = 1.0, 0.5
    seen = look(account, clock, some(5))
    assert [seen[uuid(number)].answered_at for number in range(1, 5)] == [1001.0, 1001.0, 1002.5, 1002.5]
    assert {one.target for one in seen.values()} == {"eu-central-1"}


def test_an_absence_is_as_old_as_the_first_page_of_its_call(clock: Clock) -> None:
    account = Account(all_of(4, "stopped"), page=2, clock=clock)
    account.takes_s = 1.0
    absent = look(account, clock, some(5))[uuid(5)]
    assert (absent.verdict, absent.answered_at) == (Verdict.ABSENT, 1001.0)


def test_an_instance_on_two_pages_is_as_old_as_the_first(clock: Clock) -> None:
    pages = iter([instances((1, "stopped")) | {"NextToken": "more"}, instances((1, "stopped"), (2, "stopped"))])

    def answer() -> Any:
        clock.sleep(1.0)
        client.within.call.answered_at = clock()
        return next(pages)

    client = Answering(answer)
    seen = look(client, clock, some(2))
    assert (seen[uuid(1)].answered_at, seen[uuid(2)].answered_at) == (1001.0, 1002.0)


def test_what_a_listing_found_is_as_old_as_its_page(clock: Clock) -> None:
    account = Account(all_of(MANY), page=200, clock=clock)
    account.takes_s = 1.0
    seen = look(account, clock, some(MANY))
    assert {one.answered_at for one in seen.values()} == {1001.0, 1002.0}
    assert {one.target for one in seen.values()} == {"eu-central-1"}


# --- impaired instances ---


def test_impaired_instances_cost_one_call_whatever_the_fleets_size(clock: Clock) -> None:
    account = Account(all_of(5_000), clock=clock)
    account.impaired = {instance(7), instance(4_000), instance(6_000)}
    assert probe(account, clock).impaired(some(4_500), Deadline(30, clock=clock))() == 2
    assert [operation for operation, _ in account.calls] == [STATUS]
    assert account.asked(STATUS)[0]["Filters"] == [{"Name": "system-status.status", "Values": ["impaired"]}]


def test_a_few_pages_of_impaired_instances_are_read(clock: Clock) -> None:
    account = Account(all_of(50), page=10, clock=clock)
    account.impaired = set(all_of(50))
    assert probe(account, clock).impaired(some(50), Deadline(30, clock=clock))() == 30
    assert len(account.asked(STATUS)) == 3


def test_who_answers_without_the_filter_finds_nobody_else_impaired(clock: Clock) -> None:
    account = Account(all_of(3), clock=clock)
    account.impaired = {instance(2)}
    everybody = {"MaxResults": 1000}
    account.statuses = lambda _: account._statuses(everybody)  # noqa: SLF001 - as if it did not know the filter
    assert probe(account, clock).impaired(some(3), Deadline(30, clock=clock))() == 1


@pytest.mark.parametrize(
    ("failing", "reason"),
    [
        (DENIED, "refused_UnauthorizedOperation"),
        (SERVER_ERROR, "server_error"),
        (THROTTLED, "throttled"),
        (broken(Cause.TIMEOUT), "timeout"),
        (lambda: RuntimeError("s3cret"), "garbled_answer"),
    ],
)
def test_a_failed_call_counts_nobody_and_is_one_line_in_the_log(
    clock: Clock, log: Log, failing: Failing, reason: str
) -> None:
    account = Account(all_of(3), clock=clock)
    account.impaired, account.failures = set(all_of(3)), [failing]
    assert probe(account, clock).impaired(some(3), Deadline(30, clock=clock))() == 0
    (line,) = log.lines("impaired instances not counted")
    assert (line["level"], line["error"]) == ("WARNING", reason)
    assert len(account.calls) == 1


def test_a_garbled_page_counts_nobody(clock: Clock, log: Log) -> None:
    account = Account(all_of(1), clock=clock)
    account.statuses = lambda _: {"InstanceStatuses": [{"InstanceId": instance(1)}]}
    assert probe(account, clock).impaired(some(1), Deadline(30, clock=clock))() == 0
    assert len(log.lines("impaired instances not counted")) == 1


def test_nobody_is_asked_about_an_empty_fleet(clock: Clock) -> None:
    account = Account({}, clock=clock)
    assert probe(account, clock).impaired([], Deadline(30, clock=clock))() == 0
    assert account.calls == []


class Slow(Account):
    """An account that tells which instances are impaired when it is allowed to."""

    def __init__(self, states: dict[str, str], clock: Clock) -> None:
        super().__init__(states, clock=clock)
        self.may_answer = threading.Event()

    def describe_instance_status(self, **query: Any) -> Any:
        assert self.may_answer.wait(60)
        return super().describe_instance_status(**query)


def test_the_impaired_instances_are_asked_for_beside_the_sightings(clock: Clock) -> None:
    account = Slow(all_of(3), clock)
    account.impaired = {instance(2)}
    probing, deadline = probe(account, clock), Deadline(30, clock=clock)
    count = probing.impaired(some(3), deadline)
    assert len(list(probing.sightings(some(3), deadline))) == 3
    account.may_answer.set()
    assert count() == 1


def test_nobody_waits_long_for_the_impaired_instances(clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ec2_probe, "IMPAIRED_WAIT_S", 0.0)
    account = Slow(all_of(3), clock)
    assert probe(account, clock).impaired(some(3), Deadline(30, clock=clock))() == 0
    account.may_answer.set()
    (line,) = log.lines("impaired instances not counted")
    assert line["error"] == "timeout"


# --- any failures ---

failures = st.sampled_from(
    [
        *(
            THROTTLED,
            SERVER_ERROR,
            DENIED,
            broken(Cause.TIMEOUT),
            broken(Cause.BROKEN_CONNECTION),
            broken(Cause.CONNECTION_REFUSED),
        ),
        lambda: RuntimeError("surprise"),
    ]
)
states_of_20 = st.dictionaries(
    st.integers(1, 20).map(instance), st.sampled_from([*list(VERDICT_OF_STATE)[:-1], "hovering"])
)


@given(
    states_of_20,
    st.lists(st.none() | failures, max_size=30),
    st.integers(1, 8),
    st.floats(0, 3),
    st.floats(0, 40),
)
def test_no_failure_changes_what_an_instance_is(
    states: dict[str, str], to_come: Iterable[Failing | None], page: int, takes_s: float, seconds: float
) -> None:
    clock = Clock()
    account = Account(states, page=page, clock=clock)
    account.failures, account.takes_s = list(to_come), takes_s
    for id_, sighting in look(account, clock, some(20), seconds).items():
        truth = states.get(instance(number_of(id_)), "not_found")
        assert sighting.verdict in (VERDICT_OF_STATE.get(truth), Verdict.UNKNOWN)
    assert clock.now - 1000 <= seconds + 1e-6
