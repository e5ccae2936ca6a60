"""The tree of errors, and what a message shows of a value."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler import errors


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, "nothing"),
        ("a word", "'a word'"),
        ("", "''"),
        ("line\nbreak\x1b[31m", "'line\\nbreak\\x1b[31m'"),
        ("é", "'\\xe9'"),
        (5, "5"),
        (1.5, "1.5"),
        (True, "True"),
        (float("nan"), "nan"),
        (2**128 - 1, str(2**128 - 1)),
        pytest.param(2**128, "a huge number", id="one bit too many"),
        (10**5000, "a huge number"),
        ({"password": "x"}, "a dict"),
        (["x"], "a list"),
        (b"x", "a bytes"),
    ],
    ids=errors.shown,
)
def test_only_scalars_are_shown(found: object, expected: str) -> None:
    assert errors.shown(found) == expected


@given(st.text() | st.integers() | st.floats() | st.binary() | st.lists(st.text()))
def test_what_is_shown_is_one_short_line(found: object) -> None:
    text = errors.shown(found)
    assert len(text) <= 61
    assert text.isprintable()


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    assert errors.__doc__ is not None
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(kind, errors.ReconcilerError)
        assert name in errors.__doc__


def test_an_error_of_the_database_carries_what_the_server_said() -> None:
    error = errors.RightsMissingError("for the log", server_message="permission denied", sqlstate="42501")
    assert (str(error), error.server_message, error.sqlstate) == ("for the log", "permission denied", "42501")
    assert (errors.StoreError("no answer").server_message, errors.StoreError("no answer").sqlstate) == (None, None)
