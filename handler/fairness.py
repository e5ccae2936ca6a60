"""Where the next cycle begins, so that nobody is left out. Pure.

The candidates stand in a circle, in the order of their ids. The cursor is the last one up to which
all were checked; the next cycle goes on behind it, and round past the end. A pass is complete when
the cursor has come round to where the pass began. Workspaces that looked dead, and for which there
was no time left to act, are remembered by name and come first of all.
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
    acted on. At most `most_first` of these are remembered by name, so that they cannot crowd out
    the rest; the others have their turn again in the next pass.
    """
    brought_forward = set(sweep.first)
    unchecked = set(selected).difference(checked)
    if next_unselected in brought_forward:  # the limit is so low that not even these were all selected
        unchecked |= brought_forward.difference(selected)
    still_first = [one for one in sweep.first if one in unchecked]
    first = still_first + [one for one in out_of_time if one not in unchecked]
    first = first[: max(most_first, len(still_first))]

    cursor, left = sweep.cursor, next_unselected
    for one in selected:
        if one in brought_forward:
            continue
        if one in unchecked:
            left = one
            break
        cursor = one

    def place(one: str) -> tuple[bool, str]:
        """Return its place in the circle that begins behind the old cursor."""
        return one <= sweep.cursor, one

    all_passed = left is None or place(left) > place(sweep.pass_began_at)
    completed = all_passed and not still_first
    began_at = cursor if completed else sweep.pass_began_at
    return Progress(Sweep(cursor, began_at, tuple(first)), completed)
