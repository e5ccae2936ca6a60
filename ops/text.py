"""Texts of others, as they are shown: rows, names, answers and errors may hold anything."""


def visible(text: str) -> str:
    """Return a text that nothing can come of when it is shown: control and invisible characters as they are written.

    A line's end stays.
    """
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)
