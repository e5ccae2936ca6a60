"""Where the next cycle begins, so that nobody is left out. Pure.

Think of the candidates as a circle, sorted by id. The cursor moves around it: every candidate of this pass up to the
cursor has been checked, and the next cycle continues after it. Those are the checks in turn. A pass is complete when
the cursor is back where the pass began.

Some workspaces are brought forward by name: those that looked dead when no time was left to act, and the few whose
checks the deadline cut off while others after them were checked. However far a cycle gets, at least half of its checks
are in turn, so nobody waits longer than it takes to go round at half the speed.

Ids are lower-case text, which sorts in the same order as the bytes that PostgreSQL compares.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

# At most this many workspaces are brought forward, since they are stored by name. They get half of the checks at most.
MOST_FIRST = 1000
BEFORE_ALL = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The cursor, where its pass began, and who is brought forward. All are workspace ids."""

    cursor: str = BEFORE_ALL
    pass_start: str = BEFORE_ALL
    brought_forward: tuple[str, ...] = ()

    def place(self, one: str) -> tuple[bool, str]:
        """Return the place in the circle that begins behind the cursor."""
        return one <= self.cursor, one


@dataclass(frozen=True, slots=True)
class Progress:
    """The coverage for the next cycle, and whether this cycle completed a pass."""

    coverage: Coverage
    completed_pass: bool


@dataclass(frozen=True, slots=True)
class Queues:
    """Who may be checked: the candidates in turn, at least one more than a limit lets in, and those brought forward.

    Someone brought forward is in both if it is near enough to the cursor.
    """

    in_turn: Sequence[str]
    brought_forward: Sequence[str] = ()

    @property
    def only_in_turn(self) -> set[str]:
        """The candidates in turn, without those that were brought forward."""
        return set(self.in_turn).difference(self.brought_forward)

    def fair_order(self) -> list[str]:
        """Return everybody once, by turns the next one of either queue, beginning with the one in turn."""
        pairs = zip_longest(self.in_turn, self.brought_forward)
        return list(dict.fromkeys(one for pair in pairs for one in pair if one is not None))


def advance(
    coverage: Coverage, queues: Queues, *, checked: Collection[str], out_of_time: Sequence[str], most_first: int
) -> Progress:
    """Return how far a full cycle got.

    `checked` got a verdict; `out_of_time` are the checked ones that looked dead but were not acted on. The cursor skips
    those whose checks were cut off and brings them forward, unless more than `most_first` would come first then, or the
    pass would end without them. The room that is left goes to those that ran out of time.
    """
    place, earlier = coverage.place, set(coverage.brought_forward)
    waiting = [one for one in queues.brought_forward if one not in checked]
    reached = [place(one) for one in queues.in_turn if one in checked and one not in earlier]
    last, end = max(reached, default=(False, "")), place(coverage.pass_start)

    cursor, left = coverage.cursor, None
    cut_off: list[str] = []
    for one in queues.in_turn:
        if one in checked:
            cursor = one
        elif place(one) > last or last > end >= place(one):
            left = one
            break
        elif one not in waiting:
            if len(waiting) + len(cut_off) >= most_first:
                left = one
                break
            cut_off.append(one)

    first = waiting + cut_off
    lacking = bool(waiting) or any(place(one) <= end for one in cut_off)
    completed = not lacking and (left is None or place(left) > end)
    first += out_of_time[: max(0, most_first - len(first))]
    return Progress(Coverage(cursor, cursor if completed else coverage.pass_start, tuple(first)), completed)
