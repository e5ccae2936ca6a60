"""Unexpected values: any text, JSON and bytes, and right values with something wrong in them."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis
from hypothesis import strategies as st

# Put into every secret and into every answer of a remote. It must never be shown.
CANARY = "Zq7Wx9"


def examples(share: float) -> hypothesis.settings:
    """Return settings for `share` times as many examples as the profile has: slow tests need fewer."""
    profile = hypothesis.settings()
    return hypothesis.settings(
        max_examples=max(1, int(profile.max_examples * share)),
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    )


class Nobody:
    """A network that refuses every connection, and counts the attempts."""

    def __init__(self) -> None:
        self.asked = 0

    def refuse(self, *_: object, **__: object) -> None:
        self.asked += 1
        raise ConnectionRefusedError


# Half characters are among them: JSON may hold them, and no encoding has them.
_any_text = st.text(st.characters(), max_size=20)
any_text = _any_text | st.builds(lambda text, times: text * times, _any_text, st.sampled_from([100, 10_000]))
any_number = st.integers() | st.floats() | st.integers(64, 4000).map(lambda digits: 10**digits)
any_json = st.recursive(
    st.none() | st.booleans() | any_number | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=10,
)


@st.composite
def nearly(draw: st.DrawFn, right: Sequence[Any], values: st.SearchStrategy[Any]) -> Any:
    """Return one of the right JSON values after one to three changes anywhere in it."""
    root = [copy.deepcopy(draw(st.sampled_from(right)))]
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(_places(root))))
        change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap"]))
        if change == "replace" or container is root:
            container[key] = draw(values)
        elif change == "remove":
            del container[key]
        elif change == "rename" and isinstance(container, dict):
            container[draw(any_text)] = container.pop(key)
        else:
            container[key] = [container[key]]
    return root[0]


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    keys = container if isinstance(container, dict) else range(len(container))
    for key in list(keys):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


@st.composite
def broken(draw: st.DrawFn, whole: bytes, inserts: st.SearchStrategy[bytes]) -> bytes:
    """Return the bytes after up to four cuts, doublings, swaps and insertions anywhere in them."""
    for _ in range(draw(st.integers(0, 4))):
        a, b = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
        match draw(st.sampled_from(["cut out", "cut off", "double", "swap", "insert", "overwrite"])):
            case "cut out":
                whole = whole[:a] + whole[b:]
            case "cut off":
                whole = whole[:a]
            case "double":
                whole = whole[:b] + whole[a:b] + whole[b:]
            case "swap":
                whole = whole[b:] + whole[a:b] + whole[:a]
            case "insert":
                whole = whole[:a] + draw(inserts) + whole[a:]
            case _:
                piece = draw(inserts)
                whole = whole[:a] + piece + whole[a + len(piece) :]
    return whole
