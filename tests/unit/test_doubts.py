"""What a cycle remembers of the workspaces that are neither alive nor flipped, and what it forgets."""

from dataclasses import replace

import pytest

from handler.domain.doubts import MOST_OF_ONE_CAUSE, DoubtChanges, Known, KnownDoubts, absences, doubt_changes
from handler.domain.model import Cause, Failure, Sighting, Verdict, unknown
from tests.unit.builders import instance, saw, uuid, workspace

WITNESS = saw("running", 99)


def known(kind: Verdict, *, of: int = 1, sightings: int = 1, age_s: float = 90, seen_s: float = 60) -> KnownDoubts:
    return {(uuid(1), kind): Known(instance(of), sightings, age_s, seen_s)}


def changed(
    *seen: Sighting, doubts: KnownDoubts | None = None, full: bool = True, counts: bool = True, by_hand: bool = False
) -> DoubtChanges:
    return doubt_changes(seen, doubts or {}, absence_counts=counts, full=full, by_hand=by_hand)


def written(changes: DoubtChanges) -> list[tuple[Verdict, str]]:
    return [(one.kind, one.reason) for one in (*changes.new, *changes.again)]


@pytest.mark.parametrize(
    ("sighting", "doubt"),
    [
        pytest.param(saw("terminated"), (Verdict.DEAD, "terminated"), id="dead"),
        pytest.param(saw("not_found"), (Verdict.ABSENT, "not_found"), id="absent"),
        pytest.param(saw("shutting-down"), (Verdict.TRANSITION, "shutting-down"), id="in transition"),
        pytest.param(
            unknown(workspace(), Failure(Cause.HTTP_STATUS, "503")), (Verdict.UNKNOWN, "http_503"), id="no answer"
        ),
    ],
)
def test_whatever_is_not_alive_is_a_doubt(sighting: Sighting, doubt: tuple[Verdict, str]) -> None:
    assert written(changed(sighting, WITNESS)) == [doubt]


def test_a_living_instance_is_none_and_ends_all_doubts_about_its_workspace() -> None:
    assert changed(saw("running")) == DoubtChanges((), (), (), (), {})
    both = {**known(Verdict.DEAD), **known(Verdict.UNKNOWN)}
    assert changed(saw("running"), doubts=both).alive == (uuid(1),)


@pytest.mark.parametrize("kind", [Verdict.DEAD, Verdict.TRANSITION, Verdict.UNKNOWN])
def test_a_known_doubt_is_refreshed_every_ten_minutes(kind: Verdict) -> None:
    state = {Verdict.DEAD: "stopped", Verdict.TRANSITION: "stopping", Verdict.UNKNOWN: "no such word"}[kind]
    assert written(changed(saw(state), doubts=known(kind, seen_s=599))) == []
    assert [kind for kind, _ in written(changed(saw(state), doubts=known(kind, seen_s=600)))] == [kind]


def test_every_absence_is_written() -> None:
    assert written(changed(saw("not_found"), WITNESS, doubts=known(Verdict.ABSENT, seen_s=1))) != []


def test_another_instance_is_a_new_doubt() -> None:
    assert len(changed(saw("stopped"), doubts=known(Verdict.DEAD, of=2)).new) == 1


@pytest.mark.parametrize(("state", "found"), [("stopping", True), ("stopped", True), ("no such word", False)])
def test_an_instance_that_is_found_was_not_absent(state: str, found: bool) -> None:
    changes = changed(saw(state), doubts=known(Verdict.ABSENT))
    assert changes.found == ((uuid(1),) if found else ())
    assert changes.alive == ()


def test_new_doubts_about_the_dead_come_first() -> None:
    changes = changed(saw("stopping", 1), saw("stopped", 2), saw("pending", 3), saw("not_found", 4))
    assert [one.kind for one in changes.new] == [Verdict.DEAD, Verdict.ABSENT, Verdict.TRANSITION, Verdict.TRANSITION]


def test_an_absence_that_proves_nothing_is_an_unknown() -> None:
    assert written(changed(saw("not_found"), counts=False)) == [(Verdict.UNKNOWN, "nothing_found")]


# --- one cause for very many ---


def no_answers(count: int, cause: Cause = Cause.TIMEOUT) -> list[Sighting]:
    return [unknown(workspace(number), Failure(cause)) for number in range(1, count + 1)]


def test_a_thousand_unknowns_are_a_thousand_doubts() -> None:
    changes = changed(*no_answers(MOST_OF_ONE_CAUSE))
    assert (len(changes.new), changes.sources) == (1000, {})


def test_more_with_one_cause_are_one_doubt_about_the_source() -> None:
    other = unknown(workspace(5000), Failure(Cause.NOT_JSON))
    changes = changed(*no_answers(MOST_OF_ONE_CAUSE + 1), other, saw("stopped", 5001))
    assert changes.sources == {"timeout": 1001}
    assert [one.workspace.id for one in changes.new] == [uuid(5001), uuid(5000)]


def test_nothing_found_at_all_can_be_a_doubt_about_the_source_too() -> None:
    absent = [saw("not_found", number) for number in range(1, 1002)]
    assert changed(*absent, counts=False).sources == {"nothing_found": 1001}


# --- narrowed cycles ---


def test_a_narrowed_cycle_counts_no_absence_and_says_nothing_of_sources() -> None:
    changes = changed(saw("not_found", 1), saw("stopped", 2), *no_answers(1001), full=False)
    assert [one.kind for one in changes.new[:1]] == [Verdict.DEAD]
    assert Verdict.ABSENT not in {one.kind for one in changes.new}
    assert changes.sources is None


@pytest.mark.parametrize("state", ["stopped", "not_found"])
def test_an_event_has_an_offline_row_remembered(state: str) -> None:
    offline = replace(saw(state), workspace=replace(workspace(1), offline=True))
    kind = offline.verdict
    (new,) = changed(offline, full=False, by_hand=True).new
    assert (new.kind, new.by_hand, new.counts) == (kind, True, kind is Verdict.DEAD)
    (again,) = changed(offline, doubts=known(kind), full=False, by_hand=True).again
    assert (again.by_hand, again.counts) == (True, kind is Verdict.DEAD)


def test_an_event_says_nothing_of_rows_that_are_up() -> None:
    (new,) = changed(saw("stopped"), full=False, by_hand=True).new
    assert not new.by_hand


# --- absences of earlier cycles ---


@pytest.mark.parametrize(
    ("doubts", "counted"),
    [
        pytest.param({}, (0, 0), id="none"),
        pytest.param(known(Verdict.ABSENT, sightings=2, age_s=130), (2, 130), id="two"),
        pytest.param(known(Verdict.ABSENT, sightings=2, of=2), (0, 0), id="of another instance"),
        pytest.param(known(Verdict.ABSENT, sightings=0, age_s=130), (0, 0), id="it was found since"),
        pytest.param(known(Verdict.ABSENT, sightings=9, seen_s=3601), (0, 0), id="more than an hour ago"),
        pytest.param(known(Verdict.DEAD, sightings=9), (0, 0), id="another doubt"),
    ],
)
def test_absences_are_added_up_for_one_instance(doubts: KnownDoubts, counted: tuple[int, float]) -> None:
    earlier = absences(doubts, workspace(1))
    assert (earlier.sightings, earlier.age_s) == counted
