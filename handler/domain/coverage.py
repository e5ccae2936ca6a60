"""Where the next cycle begins, so that nobody is left out. Pure.

Think of the candidates as a circle, sorted by id. The cursor moves around it: every candidate of this pass up to the
cursor has been checked, and the next cycle continues after it. A pass is complete when the cursor is back where the
pass began. Some workspaces are brought forward by name: those that looked dead when no time was left to act, and the
few whose checks the deadline cut off while others after them were checked.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

BEFORE_ALL = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The cursor, where its pass began, and which workspaces come first. All are workspace ids."""

    cursor: str = BEFORE_ALL
    pass_start: str = BEFORE_ALL
    brought_forward: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """The coverage for the next cycle, and whether this cycle completed a pass."""

    coverage: Coverage
    completed_pass: bool


def advance(
    coverage: Coverage,
    selected: Sequence[str],
    *,
    next_unselected: str | None,
    checked: Collection[str],
    out_of_time: Sequence[str],
    most_first: int,
) -> Progress:
    """Return how far a full cycle got.

    `selected` are the cycle's candidates in their fair order; `next_unselected` is the first one that the limit left
    out. `checked` got a verdict; `out_of_time` are the checked ones that looked dead but were not acted on.
    At most `most_first` of the dead and the cut-off ones are brought forward, so that they cannot crowd out the rest.
    The other dead ones have their turn in the next pass. The cursor stops before the first other cut-off one.

    It is one function because its three rules share one walk around the circle. Without any one of them, the fairness
    tests or the simulation fail: a row that always hangs would stop the cursor (so the cursor may skip a few), a
    skipped row would never complete the pass (so near the end of a pass none is skipped), and many dead rows would
    crowd out the others (so there is a limit).
    """
    brought_forward = set(coverage.brought_forward)
    unchecked = set(selected).difference(checked)
    if next_unselected in brought_forward:  # the limit is so low that it left some of these out, too
        unchecked |= brought_forward.difference(selected)
    still_first = [one for one in coverage.brought_forward if one in unchecked]

    def place(one: str) -> tuple[bool, str]:
        """Return a sort key for the circle, beginning after the old cursor."""
        return one <= coverage.cursor, one

    in_turn = [one for one in selected if one not in brought_forward]
    last_checked = next((one for one in reversed(in_turn) if one not in unchecked), None)
    pass_ends = last_checked is not None and place(last_checked) > place(coverage.pass_start)
    cursor, left = coverage.cursor, next_unselected
    cut_off: list[str] = []
    for one in in_turn:
        if one not in unchecked:
            cursor = one
            continue
        behind_others = last_checked is None or place(one) > place(last_checked)
        needed_for_pass = pass_ends and place(one) <= place(coverage.pass_start)
        if behind_others or needed_for_pass or len(still_first) + len(cut_off) >= most_first:
            left = one
            break
        cut_off.append(one)
    unreached = still_first + cut_off
    first = unreached + [one for one in out_of_time if one not in unchecked]
    first = first[: max(most_first, len(unreached))]

    all_passed = left is None or place(left) > place(coverage.pass_start)
    lacks_any = bool(still_first) or any(place(one) <= place(coverage.pass_start) for one in cut_off)
    completed = all_passed and not lacks_any
    pass_start = cursor if completed else coverage.pass_start
    return Progress(Coverage(cursor, pass_start, tuple(first)), completed)
