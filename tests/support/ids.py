"""Workspace ids in a known order."""


def in_order(count: int, *, beginning: int = 1) -> list[str]:
    """Return ids in the order in which a first cycle takes them."""
    return [f"00000000-0000-4000-8000-{number:012d}" for number in range(beginning, beginning + count)]
