"""Lays out whatever a file holds."""

from collections.abc import Sequence

from ops.report import cycle, day, explanation, holding
from ops.report.document import Document
from ops.report.reading import Answer, Cycle, Explanation, Holding, UnreadableError


def document_of(answers: Sequence[Answer], source: str) -> Document:
    """Lay out one answer, or several cycles. Raises UnreadableError if they do not go together."""
    match answers:
        case [Cycle() as one]:
            return cycle.document(one)
        case [Holding() as one]:
            return holding.document(one)
        case [Explanation() as one]:
            return explanation.document(one)
    cycles = [one for one in answers if isinstance(one, Cycle)]
    if len(cycles) < len(answers):
        raise UnreadableError(f"{source}: several answers have to be reports of cycles, all of them")
    return day.document(cycles)
