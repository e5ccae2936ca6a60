"""The decisions about what a cycle saw."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.decide import Absence, Action, Memory, Plan, confirms, decide, objection, outdated_absences
from handler.domain.model import VERDICT_OF_STATE, CurrentRow, Sighting, SkipReason, Verdict
from handler.domain.policy import AbsencePolicy, BreakerPolicy
from tests.unit.builders import instance, number_of, saw, uuid, workspace

NO_ANSWER = "a word that EC2 does not have"


BREAKER = BreakerPolicy(max_dead_fraction=0.5, min_dead=3, window_s=600)
ABSENCE = AbsencePolicy(sightings=3, min_age_s=120)


def planned(
    sightings: Iterable[Sighting],
    absences: dict[str, Absence] | None = None,
    flipped: Iterable[int] = (),
    breaker: BreakerPolicy = BREAKER,
    absence: AbsencePolicy = ABSENCE,
    *,
    override: bool = False,
) -> Plan:
    memory = Memory(absences or {}, frozenset(uuid(number) for number in flipped))
    return decide(sightings, memory, breaker, absence, override_breaker=override)


def fleet(**states: int) -> list[Sighting]:
    """Return so many sightings of each state. `_` stands for EC2's hyphen, `unknown` for no answer."""
    words = {"unknown": NO_ANSWER, "not_found": "not_found"}
    names = [words.get(state, state.replace("_", "-")) for state, count in states.items() for _ in range(count)]
    return [saw(state, number) for number, state in enumerate(names, start=1)]


def actions(plan: Plan) -> dict[int, Action]:
    return {number_of(one.sighting.workspace.id): one.action for one in plan.decisions}


# --- verdicts ---


@pytest.mark.parametrize("state", ["stopped", "terminated"])
def test_a_dead_instance_is_flipped_with_ec2s_word_as_reason(state: str) -> None:
    (decision,) = planned([saw(state), *fleet(running=3)[1:]]).decisions
    assert decision.action is Action.FLIP
    assert state in decision.reason


@pytest.mark.parametrize("state", ["running", "pending", "stopping", "shutting-down", NO_ANSWER, ""])
def test_no_other_state_leads_to_a_decision(state: str) -> None:
    remembered = {uuid(1): Absence(instance(1), 1000, 3000)}
    assert planned([saw(state)], remembered).decisions == ()


def test_a_cycle_that_saw_nothing_decides_nothing() -> None:
    assert planned([]) == Plan((), planned([]).breaker, (), (), absence_counts=True)
    assert not planned([]).breaker.open


states = st.sampled_from([*VERDICT_OF_STATE, NO_ANSWER])
sighted = st.lists(states, max_size=12).map(lambda words: [saw(word, n) for n, word in enumerate(words, start=1)])
remembered = st.dictionaries(
    st.integers(1, 12), st.tuples(st.integers(1, 12), st.integers(1, 9), st.floats(0, 3600)), max_size=12
).map(lambda known: {uuid(n): Absence(instance(of), seen, age) for n, (of, seen, age) in known.items()})
memories = st.builds(Memory, remembered, st.frozensets(st.integers(1, 20).map(uuid)))
breakers = st.builds(BreakerPolicy, st.floats(0, 1), st.integers(1, 5), st.just(600))
absence_policies = st.builds(AbsencePolicy, st.integers(1, 5), st.floats(0, 3600))


@given(sighted, memories, breakers, absence_policies, st.booleans())
def test_every_doubt_ends_in_not_flipping(
    sightings: list[Sighting], memory: Memory, breaker: BreakerPolicy, absence: AbsencePolicy, override: bool
) -> None:
    plan = decide(sightings, memory, breaker, absence, override_breaker=override)
    verdicts = [one.verdict for one in sightings]
    for decision in plan.decisions:
        verdict = decision.sighting.verdict
        assert verdict in (Verdict.DEAD, Verdict.ABSENT)
        if decision.action is Action.FLIP:
            assert not plan.breaker.open
            if verdict is Verdict.ABSENT:
                assert {Verdict.RUNNING, Verdict.TRANSITION, Verdict.DEAD} & set(verdicts)
                known = memory.absences.get(decision.sighting.workspace.id)
                recorded = decision.sighting.workspace.instance_id
                if known is None or known.instance_id != recorded:
                    known = Absence(recorded, 0, 0.0)
                assert known.sightings + 1 >= absence.sightings
                assert known.age_s >= absence.min_age_s
    decided = [one.sighting for one in plan.decisions]
    assert decided == [one for one in sightings if one.verdict in (Verdict.DEAD, Verdict.ABSENT)]
    assert plan.to_flip == [one.sighting for one in plan.decisions if one.action is Action.FLIP]


@given(sighted, memories, breakers, absence_policies, st.booleans())
def test_an_unknown_instance_changes_nothing_for_the_others(
    sightings: list[Sighting], memory: Memory, breaker: BreakerPolicy, absence: AbsencePolicy, override: bool
) -> None:
    answered = [one for one in sightings if one.verdict is not Verdict.UNKNOWN]
    policies = (memory, breaker, absence)
    assert decide(sightings, *policies, override_breaker=override) == decide(
        answered, *policies, override_breaker=override
    )


# --- the breaker ---


@pytest.mark.parametrize(
    ("seen", "is_open"),
    [
        pytest.param(fleet(stopped=2), False, id="all dead, but fewer than the least"),
        pytest.param(fleet(stopped=3), True, id="all dead, and the least"),
        pytest.param(fleet(stopped=3, running=3), False, id="exactly the fraction"),
        pytest.param(fleet(stopped=3, running=2), True, id="more than the fraction"),
        pytest.param(fleet(stopped=2, not_found=1, running=2), True, id="the absent look dead too"),
        pytest.param(fleet(not_found=3), True, id="nothing but the absent"),
        pytest.param(fleet(stopped=3, running=2, unknown=95), True, id="no answer does not count as alive"),
        pytest.param(fleet(stopped=3, running=3, unknown=95), False, id="no answer does not count as dead"),
        pytest.param(fleet(stopped=3, pending=1, stopping=1, shutting_down=1), False, id="transitions are alive"),
        pytest.param(fleet(running=5), False, id="all alive"),
        pytest.param(fleet(unknown=5), False, id="no answer at all"),
    ],
)
def test_the_breaker_opens_when_too_many_look_dead(seen: list[Sighting], is_open: bool) -> None:
    plan = planned(seen)
    assert plan.breaker.open is is_open
    dead = [one for one in plan.decisions if one.sighting.verdict is Verdict.DEAD]
    assert {one.action for one in dead} <= {Action.STOP if is_open else Action.FLIP}


def test_an_open_breaker_says_how_many_of_how_many_look_dead() -> None:
    plan = planned(fleet(terminated=3, running=1, unknown=9))
    assert (plan.breaker.dead, plan.breaker.answered) == (3, 4)
    assert all("3 of 4" in one.reason and "terminated" in one.reason for one in plan.decisions)


def test_absences_still_count_while_the_breaker_is_open() -> None:
    plan = planned(fleet(stopped=3, not_found=1))
    assert actions(plan) == {1: Action.STOP, 2: Action.STOP, 3: Action.STOP, 4: Action.WAIT}
    assert [one.id for one in plan.absent] == [uuid(4)]


def test_an_open_breaker_stops_an_absence_that_is_due() -> None:
    due = {uuid(4): Absence(instance(4), 2, 500)}
    assert actions(planned(fleet(stopped=3, not_found=1), due))[4] is Action.STOP


@pytest.mark.parametrize(
    ("fraction", "seen", "is_open"),
    [
        pytest.param(0, fleet(stopped=3, running=97), True, id="no share at all is allowed"),
        pytest.param(1, fleet(stopped=9), False, id="the whole fleet is allowed"),
    ],
)
def test_the_breakers_fraction_may_be_nothing_or_everything(
    fraction: float,
    seen: list[Sighting],
    is_open: bool,
) -> None:
    assert planned(seen, breaker=BreakerPolicy(fraction, 3, 600)).breaker.open is is_open


def test_the_override_keeps_the_breaker_closed() -> None:
    plan = planned(fleet(stopped=5), override=True)
    assert not plan.breaker.open
    assert set(actions(plan).values()) == {Action.FLIP}


def test_the_override_does_not_shorten_an_absence() -> None:
    assert actions(planned(fleet(running=1, not_found=1), override=True)) == {2: Action.WAIT}


def test_recent_flips_count_as_dead() -> None:
    plan = planned(fleet(stopped=1, running=2), flipped=[101, 102, 103])
    assert (plan.breaker.dead, plan.breaker.answered, plan.breaker.open) == (4, 6, True)


def test_recent_flips_count_as_if_they_were_of_this_cycle() -> None:
    one_cycle = planned(fleet(stopped=6, running=4)).breaker
    after_two_flips = planned(fleet(stopped=4, running=4), flipped=[101, 102]).breaker
    assert one_cycle == after_two_flips


def test_a_recent_flip_that_is_alive_again_counts_once_and_as_dead() -> None:
    plan = planned(fleet(running=4), flipped=[1, 2])
    assert (plan.breaker.dead, plan.breaker.answered) == (2, 4)


def test_a_recent_flip_that_is_dead_again_counts_once() -> None:
    plan = planned(fleet(stopped=2, running=2), flipped=[1])
    assert (plan.breaker.dead, plan.breaker.answered) == (2, 4)


def test_a_recent_flip_without_an_answer_counts_once_and_as_dead() -> None:
    plan = planned(fleet(unknown=1, running=2), flipped=[1])
    assert (plan.breaker.dead, plan.breaker.answered) == (1, 3)


def test_no_more_than_half_of_the_fleet_is_flipped_in_small_steps() -> None:
    alive, flipped = set(range(1, 101)), set[int]()
    for _ in range(20):  # each cycle finds ten more dead; nothing leaves the window
        dead = set(sorted(alive)[:10])
        plan = planned([saw("stopped" if n in dead else "running", n) for n in alive], flipped=flipped)
        gone = {n for n, action in actions(plan).items() if action is Action.FLIP}
        alive, flipped = alive - gone, flipped | gone
    assert len(flipped) == 50


# --- absences ---


class Absences:
    """Remembers absences from cycle to cycle, as the database does."""

    def __init__(self) -> None:
        self.now = 0.0
        self._known: dict[str, tuple[str, int, float]] = {}

    def cycle(self, at: float, *sightings: Sighting) -> Plan:
        self.now = at
        plan = planned(sightings, self.remembered())
        for workspace_id in plan.found_again:
            del self._known[workspace_id]
        for absent in plan.absent:
            recorded, count, since = self._known.get(absent.id, (absent.instance_id, 0, at))
            if recorded != absent.instance_id:
                count, since = 0, at
            self._known[absent.id] = (absent.instance_id, count + 1, since)
        return plan

    def remembered(self) -> dict[str, Absence]:
        return {id_: Absence(of, count, self.now - since) for id_, (of, count, since) in self._known.items()}


GONE = saw("not_found", 1)
WITNESS = saw("running", 99)


def test_an_absence_must_be_seen_often_enough_for_long_enough() -> None:
    absences = Absences()
    assert actions(absences.cycle(0, GONE, WITNESS)) == {1: Action.WAIT}
    assert actions(absences.cycle(60, GONE, WITNESS)) == {1: Action.WAIT}
    assert actions(absences.cycle(120, GONE, WITNESS)) == {1: Action.FLIP}


def test_the_first_sighting_of_an_absence_is_number_one() -> None:
    absences = {uuid(1): Absence(instance(2), 5, 500)}  # of the instance before
    for known in ({}, absences):
        decision, *_ = planned([GONE, WITNESS], known).decisions
        assert decision.reason == "not found: sighting 1 of 3, over 0 of 120 s"


def test_many_sightings_in_a_short_time_are_not_enough() -> None:
    absences = Absences()
    for at in range(10):
        assert actions(absences.cycle(at, GONE, WITNESS)) == {1: Action.WAIT}


def test_two_sightings_over_a_long_time_are_not_enough() -> None:
    absences = Absences()
    absences.cycle(0, GONE, WITNESS)
    assert actions(absences.cycle(1000, GONE, WITNESS)) == {1: Action.WAIT}


def test_the_reason_tells_an_absences_sightings_and_age() -> None:
    absences = Absences()
    absences.cycle(0, GONE, WITNESS)
    (decision,) = absences.cycle(60, GONE, WITNESS).decisions
    assert "sighting 2 of 3" in decision.reason
    assert "over 60 of 120 s" in decision.reason


@pytest.mark.parametrize("state", ["running", "pending", "stopping", "shutting-down", "stopped"])
def test_finding_the_instance_resets_its_absence(state: str) -> None:
    absences = Absences()
    absences.cycle(0, GONE, WITNESS)
    absences.cycle(60, GONE, WITNESS)
    absences.cycle(90, saw(state, 1), WITNESS)
    assert absences.remembered() == {}
    assert actions(absences.cycle(120, GONE, WITNESS)) == {1: Action.WAIT}


def test_another_instance_starts_a_new_count() -> None:
    absences = Absences()
    absences.cycle(0, GONE, WITNESS)
    absences.cycle(60, GONE, WITNESS)
    other = saw("not_found", 1, instance(2))
    assert actions(absences.cycle(120, other, WITNESS)) == {1: Action.WAIT}
    assert actions(absences.cycle(180, other, WITNESS)) == {1: Action.WAIT}
    assert actions(absences.cycle(240, other, WITNESS)) == {1: Action.FLIP}


def test_no_answer_neither_counts_nor_resets_an_absence() -> None:
    absences = Absences()
    absences.cycle(0, GONE, WITNESS)
    absences.cycle(30, saw(NO_ANSWER, 1), WITNESS)
    assert actions(absences.cycle(60, GONE, WITNESS)) == {1: Action.WAIT}
    assert actions(absences.cycle(120, GONE, WITNESS)) == {1: Action.FLIP}


def test_absences_do_not_count_when_nothing_at_all_is_found() -> None:
    absences = Absences()
    absences.cycle(0, GONE, WITNESS)
    for at in (60, 120, 180):
        plan = absences.cycle(at, GONE, saw("not_found", 2), saw(NO_ANSWER, 3))
        assert set(actions(plan).values()) == {Action.WAIT}
        assert {one.reason for one in plan.decisions} == {
            "no instance at all was found in this cycle: account, Region or credentials?"
        }
        assert plan.absent == ()
    assert absences.remembered() == {uuid(1): Absence(instance(1), 1, 180)}
    assert actions(absences.cycle(240, GONE, WITNESS)) == {1: Action.WAIT}


@pytest.mark.parametrize("state", ["running", "pending", "stopping", "shutting-down", "stopped", "terminated"])
def test_any_other_instance_makes_an_absence_credible(state: str) -> None:
    due = {uuid(1): Absence(instance(1), 2, 120)}
    assert actions(planned([GONE, saw(state, 2)], due))[1] is Action.FLIP


def test_only_remembered_absences_are_reset() -> None:
    plan = planned(fleet(running=3), {uuid(2): Absence(instance(2), 1, 10)})
    assert plan.found_again == (uuid(2),)


def test_one_sighting_is_enough_if_the_policy_says_so() -> None:
    assert actions(planned([GONE, WITNESS], absence=AbsencePolicy(sightings=1, min_age_s=0))) == {1: Action.FLIP}


# --- the second probe ---

ONE_OF_EACH = {
    Verdict.RUNNING: "running",
    Verdict.TRANSITION: "stopping",
    Verdict.DEAD: "stopped",
    Verdict.ABSENT: "not_found",
    Verdict.UNKNOWN: NO_ANSWER,
}


@pytest.mark.parametrize("second", Verdict)
@pytest.mark.parametrize("first", [Verdict.DEAD, Verdict.ABSENT])
def test_a_second_probe_confirms_only_what_is_still_dead_or_absent(first: Verdict, second: Verdict) -> None:
    confirmed = confirms(saw(ONE_OF_EACH[first]), saw(ONE_OF_EACH[second]))
    assert confirmed is ((first, second) in CONFIRMED)


CONFIRMED = {(Verdict.DEAD, Verdict.DEAD), (Verdict.ABSENT, Verdict.DEAD), (Verdict.ABSENT, Verdict.ABSENT)}


@pytest.mark.parametrize(
    ("first", "second"),
    [("stopped", "terminated"), ("terminated", "stopped"), ("not_found", "terminated")],
)
def test_the_second_probe_may_see_another_dead_state(first: str, second: str) -> None:
    assert confirms(saw(first), saw(second))


# --- the locked row ---


def row(
    status: str | None = "online",
    instance_id: str | None = instance(1),
    runtime: str | None = "langgraph",
    *,
    fresh: bool = False,
    on_hold: bool = False,
) -> CurrentRow:
    return CurrentRow(status, instance_id, runtime, fresh, on_hold)


@pytest.mark.parametrize("runtime", ["langgraph", "", None], ids=repr)
@pytest.mark.parametrize("status", ["online", "degraded"])
def test_a_row_that_has_not_changed_is_flipped(status: str, runtime: str | None) -> None:
    assert objection(row(status, runtime=runtime), workspace(1)) is None


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        pytest.param(None, SkipReason.ROW_GONE, id="the row is gone"),
        *(
            pytest.param(row(status), SkipReason.STATUS_MOVED, id=f"the row is {status}")
            for status in (
                *("provisioning", "offline", "failed", "removed", "paused", "hibernated", "hibernating"),
                *("awaiting_agent", "Online", "a status of tomorrow", "", None),
            )
        ),
        pytest.param(row(runtime="external"), SkipReason.STATUS_MOVED, id="the runtime became external"),
        pytest.param(row(instance_id=None), SkipReason.INSTANCE_CLEARED, id="the instance is NULL"),
        pytest.param(row(instance_id=""), SkipReason.INSTANCE_CLEARED, id="the instance is empty"),
        pytest.param(row(instance_id=instance(2)), SkipReason.INSTANCE_CHANGED, id="another instance"),
        pytest.param(row(instance_id=f"{instance(1)} "), SkipReason.INSTANCE_CHANGED, id="nearly the instance"),
        pytest.param(row(on_hold=True), SkipReason.ON_HOLD, id="a hold was placed"),
        pytest.param(row(on_hold=True, fresh=True), SkipReason.ON_HOLD, id="a hold was placed and a heartbeat came"),
        pytest.param(row(fresh=True), SkipReason.FRESH_HEARTBEAT, id="a heartbeat came"),
        pytest.param(row("paused", None, fresh=True, on_hold=True), SkipReason.STATUS_MOVED, id="everything at once"),
    ],
)
def test_a_row_that_has_moved_on_is_not_flipped(current: CurrentRow | None, reason: SkipReason) -> None:
    assert objection(current, workspace(1)) is reason


# --- outdated absences ---

REMEMBERED = {uuid(n): Absence(instance(n), 2, 60) for n in (1, 2, 3)}


def test_an_absence_is_outdated_when_the_row_records_another_instance() -> None:
    selected = [workspace(1), replace(workspace(2), instance_id=instance(22)), workspace(4)]
    assert outdated_absences(REMEMBERED, selected, all_selected=False) == [uuid(2)]


def test_an_absence_is_outdated_when_the_workspace_is_no_candidate() -> None:
    assert outdated_absences(REMEMBERED, [workspace(1)], all_selected=True) == [uuid(2), uuid(3)]
    assert outdated_absences(REMEMBERED, [workspace(1)], all_selected=False) == []
