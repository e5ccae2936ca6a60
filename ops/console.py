"""The person at the terminal, or nobody: text, questions that are asked again with the reason, and Ctrl-C."""

import getpass
import sys
from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest

import rich.box
import rich.console
import rich.table
import rich.text

from ops.text import shown

_LONGEST_ID = 36


class OpsError(Exception):
    """The command cannot go on; the message says why, and what to do, with details in lines of their own."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = details


class Abandoned(Exception):  # noqa: N818 - nothing is wrong: somebody said no, or pressed Ctrl-C
    """Somebody does not want to go on; the message says how things stand."""


class AnswerError(Exception):
    """An answer cannot be used; the message is the reason, shown before the question is asked again."""


# Returns the answer as it is used, or raises AnswerError.
Check = Callable[[str], str]


def anything(answer: str) -> str:
    """Accept any answer."""
    return answer


class Console:
    """Where the commands print and ask. Without a terminal they never ask."""

    def __init__(self, *, interactive: bool | None = None) -> None:
        """Ask only if stdin and stdout are a terminal, unless `interactive` says otherwise."""
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty() if interactive is None else interactive
        self._rich = rich.console.Console(highlight=False, soft_wrap=True)

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line."""
        self._rich.print(shown(text), style=style or None, markup=False, emoji=False)

    def headline(self, text: str) -> None:
        """Print a heading below an empty line."""
        self.say()
        self.say(text, "bold")

    def warn(self, text: str) -> None:
        """Print what somebody should know before going on."""
        self.say(f"! {text}", "yellow")

    def result(self, name: str, reason: str, *, passed: bool) -> None:
        """Print the outcome of a check."""
        self.say(
            f"  {'pass' if passed else 'FAIL'}  {name}" + (f": {reason}" if reason else ""), "" if passed else "red"
        )

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        styles: Sequence[str] = (),
        ids: Collection[str] = (),
    ) -> None:
        """Print rows in aligned columns, each row in its style. The columns `ids` are not broken, to be copied."""
        table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
        for column, texts in zip_longest(header, zip(*rows, strict=True), fillvalue=()):
            longest = min(_LONGEST_ID, max(map(len, texts), default=0))
            table.add_column(column, overflow="fold", min_width=longest if column in ids else None)
        for row, style in zip_longest(rows, styles):
            table.add_row(*(rich.text.Text(shown(text)) for text in row), style=style)
        self._rich.print(table)

    def ask(self, question: str, check: Check = anything, *, default: str = "", hidden: bool = False) -> str:
        """Ask until the answer can be used. Enter alone takes the default, a hyphen nothing instead of it.

        A hidden answer is not echoed.
        """
        while True:
            shown = f" [{default}]" if default else ""
            answer = self._input(f"{question}{shown}: ", hidden=hidden).strip() or default
            if answer == "-" and default:
                answer = ""
            try:
                return check(answer)
            except AnswerError as reason:
                self.say(f"  {reason}", "red")

    def confirm(self, question: str, *, default: bool) -> bool:
        """Ask for yes or no."""

        def yes_or_no(answer: str) -> str:
            if answer.lower() not in ("y", "yes", "n", "no"):
                raise AnswerError("Please answer y or n.")
            return answer.lower()

        return self.ask(f"{question} (y/n)", yes_or_no, default="y" if default else "n").startswith("y")

    def choose(self, question: str, options: Sequence[str]) -> int:
        """Let one option be chosen; return its index."""
        for number, option in enumerate(options, 1):
            self.say(f"  {number}  {option}")

        def number_of(answer: str) -> str:
            if not answer.isdecimal() or not 1 <= int(answer) <= len(options):
                raise AnswerError(f"Please answer with a number from 1 to {len(options)}.")
            return answer

        return int(self.ask(question, number_of, default="1" if len(options) == 1 else "")) - 1

    def _input(self, prompt: str, *, hidden: bool) -> str:
        prompt = shown(prompt)
        if not self.interactive:
            raise OpsError(f"there is no terminal to ask on: {prompt}")
        try:
            if hidden:  # getpass turns the echo off before it prompts; rich would afterwards
                return getpass.getpass(prompt)
            return str(self._rich.input(prompt, markup=False, emoji=False))
        except EOFError:
            raise KeyboardInterrupt from None
