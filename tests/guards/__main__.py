"""Removes each guard in a copy of the project, and checks that the guard's test fails.

`make guards` checks all of them, which takes minutes. ARGS="breaker 'row lock'" checks those whose name contains one of
these. ARGS=--write only writes the table in docs/safety.md.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.guards.listed import GUARDS, Guard
from tests.guards.removal import removed

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "safety.md"
START, END = "<!-- guards:start -->", "<!-- guards:end -->"
_COPIED = ("handler", "tests", "sandbox", "infra", "events", "docs", "pyproject.toml", "README.md")
_ALL_PASSED, _SOME_FAILED = 0, 1
_REASON = re.compile(r"^(?:FAILED|ERROR) \S.*? - (.*)$", re.MULTILINE)


def table() -> str:
    """Return the guards as a Markdown table."""
    rows = [f"| {one.name} | `{one.file}` `{one.function}` | {one.prevents} | `{one.test}` |" for one in GUARDS]
    return "\n".join(["| guard | where | without it | the test that fails |", "|---|---|---|---|", *rows])


def page_with_table(page: str) -> str:
    """Return the page with the current table between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> int:
    """Do what the command line says. Return 1 if a guard can disappear unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("words", nargs="*", help="check only guards whose name contains one of these")
    parser.add_argument("--write", action="store_true", help="only write the table in docs/safety.md")
    arguments = parser.parse_args()
    if arguments.write:
        PAGE.write_text(page_with_table(PAGE.read_text()))
        return 0
    guards = [one for one in GUARDS if not arguments.words or any(word in one.name for word in arguments.words)]
    if not guards:
        parser.error("no guard has such a name")
    with tempfile.TemporaryDirectory(prefix="reconciler-guards-") as directory:
        copy = Path(directory)
        _copy(copy)
        for file in {guard.file for guard in guards}:
            # As a removal lays it out, so that nothing but the missing guard can fail a test.
            (copy / file).write_text(ast.unparse(ast.parse((copy / file).read_text())))
        code, output = _run(copy, *sorted({guard.test for guard in guards}))
        if code != _ALL_PASSED:
            print(output)
            print("a test fails with all guards in place: see above")
            return 1
        unnoticed = [guard for guard in guards if not _is_noticed(copy, guard)]
    print(f"{len(guards)} guards, {len(unnoticed)} of which can disappear unnoticed")
    return 1 if unnoticed else 0


def _is_noticed(copy: Path, guard: Guard) -> bool:
    """Remove the guard, run its test, print the result, and return whether the test failed."""
    path, began_at = copy / guard.file, time.monotonic()
    whole = path.read_text()
    path.write_text(removed(whole, guard.function, guard.removal))
    try:
        code, output = _run(copy, "--exitfirst", guard.test)
    finally:
        path.write_text(whole)
    reason = _REASON.search(output)
    noticed = code == _SOME_FAILED
    said = f"fails: {reason[1] if reason else ''}" if noticed else f"does not fail (pytest's exit code {code})"
    print(
        f"{'ok ' if noticed else 'BAD'} {guard.name}: {guard.test} {said} ({time.monotonic() - began_at:.0f} s)",
        flush=True,
    )
    return noticed


def _run(copy: Path, *arguments: str) -> tuple[int, str]:
    options = ("-q", "--no-cov", "--tb=line", "-p", "no:cacheprovider", "-n", "0")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=copy,
        # Python would use stale bytecode for a file that changes twice within a second.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
    )
    return done.returncode, done.stdout + done.stderr


def _copy(to: Path) -> None:
    to.chmod(0o755)
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)


if __name__ == "__main__":
    sys.exit(main())
