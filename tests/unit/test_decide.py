"""The decisions about what a cycle saw."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.domain.decide import Action, Fleet, Memory, Plan, confirms, decide, objection
from handler.domain.doubts import Known, KnownDoubts, doubt_changes
from handler.domain.model import VERDICT_OF_STATE, CurrentRow, Sighting, SkipReason, Verdict
from handler.domain.policy import AbsencePolicy, BreakerPolicy
from tests.unit.builders import instance, number_of, saw, uuid, workspace

NO_ANSWER = "a word that EC2 does not have"


BREAKER = BreakerPolicy(max_dead_fraction=0.5, min_dead=3, window_s=600)
ABSENCE = AbsencePolicy(sightings=3, min_age_s=120)


def absent(number: int, sightings: int, age_s: float, of: int | None = None) -> dict[tuple[str, Verdict], Known]:
    """Return the doubt that workspace `number`'s instance was absent so often, for so long."""
    recorded = instance(number if of is None else of)
    return {(uuid(number), Verdict.ABSENT): Known(recorded, sightings, age_s, 60)}


def planned(
    sightings: Iterable[Sighting],
    doubts: KnownDoubts | None = None,
    flipped: Iterable[int] = (),
    breaker: BreakerPolicy = BREAKER,
    absence: AbsencePolicy = ABSENCE,
    *,
    up: int | None = None,
    override: bool = False,
    full: bool = True,
) -> Plan:
    """Return the plan for a fleet of which everybody was checked, or which has so many rows that are up."""
    seen = list(sightings)
    acted_on = {uuid(number): False for number in flipped}
    memory = Memory(doubts or {}, Fleet(len(seen) if up is None else up, acted_on=acted_on))
    in_turn = {one.workspace.id for one in seen} if full else None
    return decide(seen, memory, breaker, absence, in_turn=in_turn, override_breaker=override)


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
    assert planned([saw(state)], absent(1, 1000, 3000)).decisions == ()


def test_a_cycle_that_saw_nothing_decides_nothing() -> None:
    assert planned([]) == Plan((), planned([]).breaker, absence_counts=False)
    assert not planned([]).breaker.open


states = st.sampled_from([*VERDICT_OF_STATE, NO_ANSWER])
sighted = st.lists(states, max_size=12).map(lambda words: [saw(word, n) for n, word in enumerate(words, start=1)])
remembered = st.dictionaries(
    st.tuples(st.integers(1, 12).map(uuid), st.sampled_from([Verdict.ABSENT, Verdict.DEAD])),
    st.builds(Known, st.integers(1, 12).map(instance), st.integers(0, 9), st.floats(0, 3600), st.floats(0, 7200)),
    max_size=12,
)
dead_ids = st.dictionaries(st.integers(1, 20).map(uuid), st.booleans())
memories = st.builds(Memory, remembered, st.builds(Fleet, st.integers(12, 40), dead_ids, dead_ids))
breakers = st.builds(BreakerPolicy, st.floats(0, 1), st.integers(1, 5), st.just(600))
absence_policies = st.builds(AbsencePolicy, st.integers(1, 5), st.floats(0, 3600))


@given(sighted, memories, breakers, absence_policies, st.booleans(), st.booleans(), st.booleans())
def test_every_doubt_ends_in_not_flipping(
    sightings: list[Sighting],
    memory: Memory,
    breaker: BreakerPolicy,
    absence: AbsencePolicy,
    override: bool,
    full: bool,
    offline: bool,
) -> None:
    sightings = [replace(one, workspace=replace(one.workspace, offline=offline)) for one in sightings]
    in_turn = {one.workspace.id for one in sightings} if full else None
    plan = decide(sightings, memory, breaker, absence, in_turn=in_turn, override_breaker=override)
    verdicts = [one.verdict for one in sightings]
    for decision in plan.decisions:
        verdict, workspace = decision.sighting.verdict, decision.sighting.workspace
        assert verdict in (Verdict.DEAD, Verdict.ABSENT)
        if decision.action is not Action.FLIP:
            continue
        assert not plan.breaker.open
        of_this = {kind: memory.doubts.get((workspace.id, kind)) for kind in (Verdict.ABSENT, Verdict.DEAD)}
        known = {kind: one for kind, one in of_this.items() if one and one.instance_id == workspace.instance_id}
        if verdict is Verdict.ABSENT:
            assert {Verdict.RUNNING, Verdict.TRANSITION, Verdict.DEAD} & set(verdicts)
            earlier = known.get(Verdict.ABSENT, Known("", 0, 0.0, 0.0))
            recent = earlier.seen_s <= 3600
            assert (earlier.sightings if recent else 0) + full >= absence.sightings
            assert (earlier.age_s if recent and earlier.sightings else 0) >= absence.min_age_s
        if offline:
            assert known
    decided = [one.sighting for one in plan.decisions]
    assert decided == [one for one in sightings if one.verdict in (Verdict.DEAD, Verdict.ABSENT)]
    assert plan.to_flip == [one.sighting for one in plan.decisions if one.action is Action.FLIP]


@given(sighted, memories, breakers, absence_policies, st.booleans())
def test_an_unknown_instance_changes_nothing_for_the_others(
    sightings: list[Sighting], memory: Memory, breaker: BreakerPolicy, absence: AbsencePolicy, override: bool
) -> None:
    answered = [one for one in sightings if one.verdict is not Verdict.UNKNOWN]
    in_turn = {one.workspace.id for one in sightings}
    plans = [
        decide(seen, memory, breaker, absence, in_turn=in_turn, override_breaker=override)
        for seen in (sightings, answered)
    ]
    assert plans[0] == plans[1]


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
    assert planned(seen, up=1000).breaker.open is is_open  # whatever else there is
    dead = [one for one in plan.decisions if one.sighting.verdict is Verdict.DEAD]
    assert {one.action for one in dead} <= {Action.STOP if is_open else Action.FLIP}


def test_an_open_breaker_says_how_many_of_how_many_look_dead() -> None:
    plan = planned(fleet(terminated=3, running=1, unknown=9))
    assert (plan.breaker.dead, plan.breaker.of) == (3, 4)
    assert all("3 of 4" in one.reason and "terminated" in one.reason for one in plan.decisions)


def test_absences_still_count_while_the_breaker_is_open() -> None:
    plan = planned(fleet(stopped=3, not_found=1))
    assert actions(plan) == {1: Action.STOP, 2: Action.STOP, 3: Action.STOP, 4: Action.WAIT}


def test_an_open_breaker_stops_an_absence_that_is_due() -> None:
    assert actions(planned(fleet(stopped=3, not_found=1), absent(4, 2, 500)))[4] is Action.STOP


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


def second_rule(
    seen: list[Sighting], *, up: int, remembered: Iterable[int] = (), acted_on: Iterable[int] = (), full: bool = False
) -> tuple[int, int, bool]:
    """Return how many of how many look dead, and whether that opens the breaker. The numbered ones are not up."""
    fleet = Fleet(up, dict.fromkeys(map(uuid, remembered), False), dict.fromkeys(map(uuid, acted_on), False))
    in_turn = {one.workspace.id for one in seen} if full else None
    breaker = decide(seen, Memory({}, fleet), BREAKER, ABSENCE, in_turn=in_turn, override_breaker=False).breaker
    return breaker.dead, breaker.of, breaker.open


@pytest.mark.parametrize(
    ("seen", "counted", "is_open"),
    [
        pytest.param({"seen": fleet(stopped=1), "up": 300, "acted_on": [101, 102]}, (3, 302), False, id="one by hand"),
        pytest.param({"seen": fleet(stopped=5), "up": 200}, (5, 200), False, id="five of 200 by hand"),
        pytest.param({"seen": fleet(stopped=1), "up": 1}, (1, 1), False, id="a fleet of one"),
        pytest.param({"seen": fleet(stopped=2, running=2), "up": 4, "acted_on": [101, 102]}, (4, 6), True, id="flips"),
        pytest.param({"seen": fleet(running=4), "up": 4, "remembered": [101, 102, 103, 104]}, (4, 8), False, id="half"),
        pytest.param({"seen": fleet(running=3), "up": 3, "remembered": [101, 102, 103, 104]}, (4, 7), True, id="more"),
        pytest.param({"seen": [], "up": 3, "acted_on": [101, 102, 103, 104]}, (4, 7), True, id="kept back, none seen"),
        pytest.param({"seen": fleet(running=2), "up": 4, "remembered": [1, 2, 101]}, (1, 5), False, id="alive again"),
        pytest.param({"seen": fleet(running=2), "up": 4, "acted_on": [1, 2, 101]}, (3, 7), False, id="flipped, alive"),
        pytest.param({"seen": fleet(unknown=3), "up": 3, "remembered": [101, 102]}, (2, 5), False, id="no answer"),
    ],
)
def test_the_second_rule_counts_the_whole_fleet(seen: dict[str, Any], counted: tuple[int, int], is_open: bool) -> None:
    assert second_rule(**seen) == (*counted, is_open)


def test_under_partial_coverage_the_first_rule_counts_what_was_checked_in_turn() -> None:
    """Of 400 rows a cycle checks 40, among them ten of the dead that were brought forward."""
    forward = [saw("stopped", number) for number in range(1, 11)]
    in_turn = [saw("stopped" if number < 19 else "running", number) for number in range(11, 41)]
    memory = Memory({}, Fleet(400))
    plan = decide(
        [*forward, *in_turn],
        memory,
        BREAKER,
        ABSENCE,
        in_turn={one.workspace.id for one in in_turn},
        override_breaker=False,
    )
    assert not plan.breaker.open
    assert len(plan.to_flip) == 18


def test_rows_on_hold_and_adopted_rows_count_in_no_first_rule() -> None:
    seen = fleet(stopped=4, running=2)
    on_hold = [replace(one, workspace=replace(one.workspace, on_hold=True)) for one in seen[:2]]
    assert not planned([*on_hold, *seen[2:]], up=4).breaker.open
    adopted = [replace(one, workspace=replace(one.workspace, offline=True)) for one in seen[:2]]
    assert not planned([*adopted, *seen[2:]], up=9).breaker.open


def test_a_workspace_on_hold_is_not_flipped() -> None:
    on_hold = replace(saw("stopped"), workspace=replace(workspace(1), on_hold=True))
    assert actions(planned([on_hold, WITNESS], override=True)) == {1: Action.HOLD}


def test_no_more_than_half_of_the_fleet_is_flipped_in_small_steps() -> None:
    alive, flipped = set(range(1, 101)), set[int]()
    for _ in range(20):  # each cycle finds ten more dead; nothing leaves the window
        dead = set(sorted(alive)[:10])
        plan = planned([saw("stopped" if n in dead else "running", n) for n in alive], flipped=flipped)
        gone = {n for n, action in actions(plan).items() if action is Action.FLIP}
        alive, flipped = alive - gone, flipped | gone
    assert len(flipped) == 50


# --- adoption ---


def offline(state: str) -> Sighting:
    return replace(saw(state), workspace=replace(workspace(1), offline=True))


@pytest.mark.parametrize("kind", [Verdict.DEAD, Verdict.ABSENT])
def test_an_offline_row_is_adopted_if_a_cycle_saw_the_instance_dead_before(kind: Verdict) -> None:
    known = {(uuid(1), kind): Known(instance(1), 2, 300, 60)}
    assert actions(planned([offline("stopped"), WITNESS], known)) == {1: Action.FLIP}


@pytest.mark.parametrize(
    "known",
    [
        {},
        {(uuid(1), Verdict.UNKNOWN): Known(instance(1), 9, 900, 60)},
        {(uuid(1), Verdict.TRANSITION): Known(instance(1), 9, 900, 60)},
        {(uuid(1), Verdict.DEAD): Known(instance(2), 9, 900, 60)},
        {(uuid(2), Verdict.DEAD): Known(instance(1), 9, 900, 60)},
    ],
    ids=["nothing is remembered", "unknown", "in transition", "another instance", "another workspace"],
)
def test_an_offline_row_that_no_cycle_saw_dead_is_not_adopted(known: KnownDoubts) -> None:
    assert actions(planned([offline("stopped"), WITNESS], known)) == {1: Action.WAIT}


# --- absences ---


class Absences:
    """Remembers absences from cycle to cycle, as the database does."""

    def __init__(self) -> None:
        self.now = 0.0
        self._known: dict[str, tuple[str, int, float]] = {}

    def cycle(self, at: float, *sightings: Sighting) -> Plan:
        self.now = at
        plan = planned(sightings, self.remembered())
        changes = doubt_changes(sightings, self.remembered(), absence_counts=plan.absence_counts, full=True)
        for workspace_id in (*changes.alive, *changes.found):
            self._known.pop(workspace_id, None)
        for doubt in (*changes.new, *changes.again):
            if doubt.kind is Verdict.ABSENT:
                instance_id = doubt.workspace.instance_id
                recorded, count, since = self._known.get(doubt.workspace.id, (instance_id, 0, at))
                if recorded != instance_id:
                    count, since = 0, at
                self._known[doubt.workspace.id] = (instance_id, count + 1, since)
        return plan

    def remembered(self) -> dict[tuple[str, Verdict], Known]:
        return {
            (id_, Verdict.ABSENT): Known(of, count, self.now - since, 60)
            for id_, (of, count, since) in self._known.items()
        }


GONE = saw("not_found", 1)
WITNESS = saw("running", 99)


def test_an_absence_must_be_seen_often_enough_for_long_enough() -> None:
    absences = Absences()
    assert actions(absences.cycle(0, GONE, WITNESS)) == {1: Action.WAIT}
    assert actions(absences.cycle(60, GONE, WITNESS)) == {1: Action.WAIT}
    assert actions(absences.cycle(120, GONE, WITNESS)) == {1: Action.FLIP}


def test_the_first_sighting_of_an_absence_is_number_one() -> None:
    for known in ({}, absent(1, 5, 500, of=2)):  # of the instance before
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
    assert absences.remembered() == absent(1, 1, 180)
    assert actions(absences.cycle(240, GONE, WITNESS)) == {1: Action.WAIT}


@pytest.mark.parametrize("state", ["running", "pending", "stopping", "shutting-down", "stopped", "terminated"])
def test_any_other_instance_makes_an_absence_credible(state: str) -> None:
    assert actions(planned([GONE, saw(state, 2)], absent(1, 2, 120)))[1] is Action.FLIP


def test_an_absence_alone_proves_nothing() -> None:
    assert actions(planned([GONE], absent(1, 9, 900))) == {1: Action.WAIT}


def test_a_narrowed_cycle_does_not_count_its_own_look() -> None:
    assert actions(planned([GONE, WITNESS], absent(1, 2, 120), full=False)) == {1: Action.WAIT}
    assert actions(planned([GONE, WITNESS], absent(1, 3, 120), full=False)) == {1: Action.FLIP}


def test_absences_that_lie_too_far_apart_are_not_added_up() -> None:
    known = {(uuid(1), Verdict.ABSENT): Known(instance(1), 9, 9000, 3601)}
    assert actions(planned([GONE, WITNESS], known)) == {1: Action.WAIT}


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
    locked: bool = False,
    restarting: bool = False,
) -> CurrentRow:
    return CurrentRow(status, instance_id, runtime, fresh, on_hold, locked=locked, restarting=restarting)


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


def test_a_row_that_somebody_else_has_locked_is_not_flipped() -> None:
    assert objection(row(locked=True), workspace(1)) is SkipReason.ROW_LOCKED


OFFLINE = replace(workspace(1), offline=True)


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        pytest.param(row("offline"), None, id="it is still offline"),
        pytest.param(row("online"), SkipReason.STATUS_MOVED, id="it is online again"),
        pytest.param(row("provisioning"), SkipReason.STATUS_MOVED, id="the platform restarts it"),
        pytest.param(row("offline", restarting=True), SkipReason.STATUS_MOVED, id="somebody is at it"),
        pytest.param(row("offline", instance_id=instance(2)), SkipReason.INSTANCE_CHANGED, id="another instance"),
        pytest.param(row("offline", fresh=True), SkipReason.FRESH_HEARTBEAT, id="a heartbeat came"),
        pytest.param(row("offline", on_hold=True), SkipReason.ON_HOLD, id="a hold was placed"),
    ],
)
def test_an_offline_row_is_adopted_only_while_nobody_is_at_it(current: CurrentRow, reason: SkipReason | None) -> None:
    assert objection(current, OFFLINE) is reason


def test_a_restart_under_way_does_not_protect_a_row_that_is_up() -> None:
    assert objection(row(restarting=True), workspace(1)) is None
