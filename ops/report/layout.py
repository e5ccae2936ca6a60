"""Lays out whatever a file or an answer holds."""

from ops.report import cycle, day, explanation, holding
from ops.report.document import Document
from ops.report.reading import Cycle, Explanation, Holding, UnreadableError, read


def document_of(text: str, source: str) -> Document:
    """Lay out one answer, or several cycles. Raises UnreadableError if it is neither; `source` says whence it is."""
    answers = read(text, source)
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
