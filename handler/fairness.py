"""Where the next cycle begins, so that nobody is left out. Pure.

The candidates stand in a circle, in the order of their ids. The cursor is the last one up to which
all were checked; the next cycle goes on behind it, and round past the end. A pass is complete when
the cursor has come round to where the pass began. Workspaces that looked dead, and for which there
was no time left to act, are remembered by name and come first of all; so do the few whose checks the
deadline cut off, though others behind them had been checked.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

BEFORE_ALL = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Sweep:
    """The cursor, where its pass began, and who comes first; all are workspace ids."""

    cursor: str = BEFORE_ALL
    pass_began_at: str = BEFORE_ALL
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """The sweep for the next cycle, and whether a pass was completed with this one."""

    sweep: Sweep
    completed_pass: bool


def advance(
    sweep: Sweep,
    selected: Sequence[str],
    *,
    next_unselected: str | None,
    checked: Collection[str],
    out_of_time: Sequence[str],
    most_first: int,
) -> Progress:
    """Return how far a full cycle got.

    `selected` are the cycle's candidates in their fair order, and `next_unselected` the one that a
    limit left out first. `checked` got a verdict; `out_of_time` of those looked dead and were not
    acted on. At most `most_first` of these and of those cut off are remembered by name, so that they
    cannot crowd out the rest. The other dead have their turn again in the next pass; before the others
    that were cut off the cursor stops.
    """
    brought_forward = set(sweep.first)
    unchecked = set(selected).difference(checked)
    if next_unselected in brought_forward:  # the limit is so low that not even these were all selected
        unchecked |= brought_forward.difference(selected)
    still_first = [one for one in sweep.first if one in unchecked]

    def place(one: str) -> tuple[bool, str]:
        """Return its place in the circle that begins behind the old cursor."""
        return one <= sweep.cursor, one

    in_turn = [one for one in selected if one not in brought_forward]
    last_checked = next((one for one in reversed(in_turn) if one not in unchecked), None)
    # With the end of a pass in sight the cursor passes nobody over who belongs to it, or it would never be complete.
    ends = last_checked is not None and place(last_checked) > place(sweep.pass_began_at)
    cursor, left = sweep.cursor, next_unselected
    cut_off: list[str] = []
    for one in in_turn:
        if one not in unchecked:
            cursor = one
            continue
        behind_others = last_checked is None or place(one) > place(last_checked)
        is_needed = ends and place(one) <= place(sweep.pass_began_at)
        if behind_others or is_needed or len(still_first) + len(cut_off) >= most_first:
            left = one
            break
        cut_off.append(one)
    unreached = still_first + cut_off
    first = unreached + [one for one in out_of_time if one not in unchecked]
    first = first[: max(most_first, len(unreached))]

    all_passed = left is None or place(left) > place(sweep.pass_began_at)
    lacks_any = bool(still_first) or any(place(one) <= place(sweep.pass_began_at) for one in cut_off)
    completed = all_passed and not lacks_any
    began_at = cursor if completed else sweep.pass_began_at
    return Progress(Sweep(cursor, began_at, tuple(first)), completed)
