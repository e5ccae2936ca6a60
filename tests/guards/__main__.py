"""Take each guard away, in a copy of the project, and see that the test which is named for it fails.

`make guards` does it for all of them, in minutes; ARGS="breaker 'row lock'" for those whose names contain a word;
ARGS=--write puts the table into docs/safety.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.guards.listed import GUARDS, Guard

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "safety.md"
START, END = "<!-- guards:start -->", "<!-- guards:end -->"
_COPIED = ("handler", "tests", "sandbox", "infra", "events", "docs", "pyproject.toml", "README.md")
_ALL_PASSED, _SOME_FAILED = 0, 1
_REASON = re.compile(r"^(?:FAILED|ERROR) \S.*? - (.*)$", re.MULTILINE)


def removed(guard: Guard, source: str) -> str:
    """Return the source of the guard's file without the guard. Raises ValueError when it is not there, or twice."""
    if source.count(guard.text) != 1:
        raise ValueError(f"{guard.name}: its text stands {source.count(guard.text)} times in {guard.file}")
    return source.replace(guard.text, guard.without)


def table() -> str:
    """Return the guards as the page shows them."""
    rows = [f"| {one.name} | `{one.file}` `{one.function}` | {one.prevents} | `{one.test}` |" for one in GUARDS]
    return "\n".join(["| guard | where | without it | the test that fails |", "|---|---|---|---|", *rows])


def page_with_table(page: str) -> str:
    """Return the page with today's table between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> int:
    """Do what the command line says; return 1 when a guard can go unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("words", nargs="*", help="only guards whose name contains one of these")
    parser.add_argument("--write", action="store_true", help="only put the table into docs/safety.md")
    arguments = parser.parse_args()
    if arguments.write:
        PAGE.write_text(page_with_table(PAGE.read_text()))
        return 0
    guards = [one for one in GUARDS if not arguments.words or any(word in one.name for word in arguments.words)]
    with tempfile.TemporaryDirectory(prefix="reconciler-guards-") as directory:
        copy = Path(directory)
        _copy(copy)
        code, output = _run(copy, *sorted({guard.test for guard in guards}))
        if code != _ALL_PASSED:
            print(output)
            print("with all guards in place a test fails: see above")
            return 1
        unnoticed = [guard for guard in guards if not _is_missed(copy, guard)]
    print(f"{len(guards)} guards, {len(unnoticed)} of which can go unnoticed")
    return 1 if unnoticed else 0


def _is_missed(copy: Path, guard: Guard) -> bool:
    """Tell whether the guard's test fails without it, and say so."""
    path, began_at = copy / guard.file, time.monotonic()
    whole = path.read_text()
    path.write_text(removed(guard, whole))
    try:
        code, output = _run(copy, "--exitfirst", guard.test)
    finally:
        path.write_text(whole)
    reason = _REASON.search(output)
    missed = code == _SOME_FAILED
    said = f"fails: {reason[1] if reason else ''}" if missed else f"does not fail (pytest's exit code {code})"
    print(
        f"{'ok ' if missed else 'BAD'} {guard.name}: {guard.test} {said} ({time.monotonic() - began_at:.0f} s)",
        flush=True,
    )
    return missed


def _run(copy: Path, *arguments: str) -> tuple[int, str]:
    options = ("-q", "--no-cov", "--tb=line", "-p", "no:cacheprovider", "-n", "0")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=copy,
        # A file that is changed twice within a second would be taken from its bytecode.
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
