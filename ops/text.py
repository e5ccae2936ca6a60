"""Text from elsewhere, made harmless. It needs no package, so that tests and reports have it, too."""


def shown(text: str) -> str:
    """Escape what does more to a terminal than to appear on it: names and tags from AWS may be anybody's."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
