"""The command line of every command here, and how each of them ends."""

import argparse
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ops import answers as answering
from ops.account import Account, explaining
from ops.answers import Answers
from ops.console import Abandoned, Console, OpsError

ROOT = Path(__file__).resolve().parent.parent


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with what all commands take."""
    commands = argparse.ArgumentParser(description=description)
    options(commands)
    return commands


def options(commands: argparse.ArgumentParser) -> None:
    """Add what all commands take."""
    commands.add_argument(
        "--env", type=_environment, default=answering.DEFAULT, help="the environment, a section of samconfig.toml"
    )
    commands.add_argument("--region", default="", help="the Region, if samconfig.toml does not name it")
    commands.add_argument("--yes", action="store_true", help="do not ask before going on")


def _environment(text: str) -> str:
    """Return an environment's name. It becomes part of the stack's, and a section of the file beside `version`."""
    if text == "version" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name for an environment: letters, digits and hyphens")
    return text


def kept_answers(root: Path, arguments: argparse.Namespace) -> tuple[Answers, bool]:
    """Return the environment's answers, and whether a file keeps them; if not, they name the stack and no parameter.

    The Region is the command line's, or else the file's, or else AWS's own; it may be empty.
    """
    kept = answering.read(root / answering.FILE, arguments.env)
    answers = kept or Answers(environment=arguments.env, stack=answering.stack_name(arguments.env))
    return replace(answers, region=arguments.region or answers.region or Account().region), kept is not None


def answers_of(root: Path, arguments: argparse.Namespace) -> Answers:
    """Return the answers of an environment that is deployed already. Raises OpsError if its Region is not known."""
    answers, _ = kept_answers(root, arguments)
    if not answers.region:
        raise OpsError("no Region is known: give ARGS='--region …', or set AWS_REGION")
    return answers


def run(command: Callable[[Console], None], *, on_failure: str = "") -> int:
    """Run a command; return its exit status. `on_failure` says how things stand if it did not get to its end."""
    console = Console()
    before = signal.getsignal(signal.SIGINT)
    try:
        with explaining():
            command(console)
    except OpsError as error:
        console.say(f"error: {error}", "red")
        for detail in error.details:
            console.say(f"  - {detail}", "red")
        _say_how_things_stand(console, on_failure)
        return 1
    except OSError as error:
        console.say(f"error: {error.strerror or error}: {error.filename or 'a file or a program'}", "red")
        _say_how_things_stand(console, on_failure)
        return 1
    except Abandoned as said:
        console.say(str(said))
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would swallow what is said here
        console.say()
        console.say(f"Stopped. {on_failure}".rstrip())
        return 130
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _say_how_things_stand(console: Console, on_failure: str) -> None:
    if on_failure:
        console.say(on_failure)
