"""The guards that docs/safety.md lists are in the code, and so are the tests that prove them."""

import ast
import re
from functools import cache

import pytest

from tests.guards.__main__ import PAGE, ROOT, page_with_table
from tests.guards.listed import GUARDS, Guard
from tests.guards.removal import Arguments, Code, Removal, Sql, removed

MODULE = '''
LIMIT = 3
QUERY = f"""
SELECT status,
       'no {{placeholder}}'
FROM workspaces   WHERE id = :id AND {LIMIT} > 0
                    AND NOT {on_hold("workspaces.id")}
""" + " FOR UPDATE"

class Flips:
    def flip(self, row):
        if row.on_hold or not row.id: return "skipped"
        self.check(row)
        self.write(row, dry_run=False)

def other(row):
    if row.on_hold:
        return 1
    return 2 if row.on_hold else 3
'''

pytestmark = pytest.mark.no_cover  # nothing here runs the handler


@cache
def source_of(file: str) -> str:
    return (ROOT / file).read_text()


@cache
def reformatted(file: str) -> str:
    return ast.unparse(ast.parse(source_of(file)))


@cache
def names_of(file: str) -> list[str]:
    """Return the names of a file's tests: functions, and classes of them."""
    body = ast.parse(source_of(file)).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_in_its_function_and_can_be_removed(guard: Guard) -> None:
    without = removed(source_of(guard.file), guard.function, guard.removal)
    compile(without, guard.file, "exec")
    assert without != reformatted(guard.file)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_found_after_a_reformat(guard: Guard) -> None:
    found = removed(reformatted(guard.file), guard.function, guard.removal)
    assert found == removed(source_of(guard.file), guard.function, guard.removal)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guards_test_exists(guard: Guard) -> None:
    file, _, name = guard.test.partition("::")
    assert names_of(file).count(name) == 1


def test_guards_have_different_names() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)


@pytest.mark.parametrize(
    ("function", "removal", "old", "new"),
    [
        ("Flips.flip", Code("row.on_hold", "False"), "if row.on_hold or", "if False or"),
        ("Flips.flip", Code("self.check(row)", "None"), "self.check(row)", "None"),
        (
            "Flips.flip",
            Code("self.check(row)\nself.write(row,\n  dry_run = False)", "pass"),
            "self.check(row)\n        self.write(row, dry_run=False)",
            "pass",
        ),
        ("Flips.flip", Arguments("dry_run = False", "dry_run=True"), "dry_run=False", "dry_run=True"),
        ("LIMIT", Code("3", "4"), "LIMIT = 3", "LIMIT = 4"),
        ("QUERY", Sql("FOR  UPDATE", ""), "FOR UPDATE", ""),
        ("QUERY", Sql("FROM workspaces WHERE", "WHERE"), "FROM workspaces   WHERE", "WHERE"),
        ("QUERY", Sql("AND {LIMIT} > 0 AND", "AND"), "AND {LIMIT} > 0\n                    AND", "AND"),
        ("QUERY", Sql("'no {placeholder}'", "NULL"), "'no {{placeholder}}'", "NULL"),
    ],
    ids=str,
)
def test_a_removal_changes_one_place(function: str, removal: Removal, old: str, new: str) -> None:
    expected = MODULE.replace(old, new, 1)
    assert ast.dump(ast.parse(removed(MODULE, function, removal))) == ast.dump(ast.parse(expected))


@pytest.mark.parametrize(
    ("function", "removal", "message"),
    [
        ("other", Code("row.on_hold", "False"), "contains it 2 times: row.on_hold"),
        ("other", Code("row.on_hold or not row.id", "False"), "contains it 0 times"),
        ("Flips.flip", Code("self.write(row)", "None"), "contains it 0 times"),
        ("Flips.flip", Arguments("dry_run=None", ""), "contains it 0 times"),
        ("QUERY", Sql("AND", ""), "contains it 2 times"),
        ("QUERY", Sql("AND NOT {on_hold('other')}", ""), "contains it 0 times"),
        ("Flips.lock", Code("row.on_hold", "False"), "lock is defined 0 times"),
    ],
    ids=str,
)
def test_a_missing_or_ambiguous_guard_is_an_error(function: str, removal: Removal, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        removed(MODULE, function, removal)


def test_the_page_shows_the_guards() -> None:
    page = PAGE.read_text()
    assert page == page_with_table(page), "run: make guards ARGS=--write"


def test_the_page_names_existing_files_and_names() -> None:
    page = PAGE.read_text()
    for file in re.findall(r"`([\w/]+\.(?:py|sql))", page):
        assert any((ROOT / place / file).is_file() for place in ("", "handler", "tests/integration")), file
    sources = "".join(path.read_text() for path in (ROOT / "handler").rglob("*.py"))
    for name in re.findall(r"`(_?[A-Z][A-Za-z_]+|_[a-z_]+)`", page):
        assert name in sources, name
