"""The guards that docs/safety.md lists: each is still in the code, and each test that is named for one exists."""

import ast
import re

import pytest

from tests.guards.__main__ import PAGE, ROOT, page_with_table, removed
from tests.guards.listed import GUARDS, Guard


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_where_the_page_says_and_can_be_taken_away(guard: Guard) -> None:
    source = (ROOT / guard.file).read_text()
    changed = removed(guard, source)
    compile(changed, guard.file, "exec")
    assert changed != source
    line = source[: source.index(guard.text)].count("\n") + 1
    assert guard.function in _enclosing(source, line), f"it stands in {_enclosing(source, line)}"


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_the_test_that_proves_a_guard_exists(guard: Guard) -> None:
    file, _, name = guard.test.partition("::")
    functions = [node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions.count(name) == 1


def test_no_guard_stands_twice() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)


def test_the_page_shows_the_guards_as_they_are() -> None:
    page = PAGE.read_text()
    assert page == page_with_table(page), "run: make guards ARGS=--write"


def test_every_file_and_every_name_that_the_page_mentions_exists() -> None:
    page = PAGE.read_text()
    for file in re.findall(r"`([\w/]+\.(?:py|sql))", page):
        assert any((ROOT / place / file).is_file() for place in ("", "handler", "tests/integration")), file
    sources = "".join(path.read_text() for path in (ROOT / "handler").rglob("*.py"))
    for name in re.findall(r"`(_?[A-Z][A-Za-z_]+|_[a-z_]+)`", page):
        assert name in sources, name


def _enclosing(source: str, line: int) -> list[str]:
    """Return the names of what a line is part of at the top of a module, with those of a class's functions."""
    names = []
    for node in ast.parse(source).body:
        if node.lineno <= line <= (node.end_lineno or 0):
            match node:
                case ast.ClassDef():
                    names += [
                        f"{node.name}.{one.name}"
                        for one in node.body
                        if isinstance(one, ast.FunctionDef) and one.lineno <= line <= (one.end_lineno or 0)
                    ]
                case ast.FunctionDef():
                    names.append(node.name)
                case ast.Assign(targets=[ast.Name(id=name)]):
                    names.append(name)
    return names
