"""The command line of every command here, and how each of them ends."""

import argparse
from collections.abc import Callable

from ops import answers as answering
from ops.account import explaining
from ops.console import Abandoned, Console, OpsError


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with what all commands take."""
    commands = argparse.ArgumentParser(description=description)
    options(commands)
    return commands


def options(commands: argparse.ArgumentParser) -> None:
    """Add what all commands take."""
    commands.add_argument("--env", default=answering.DEFAULT, help="the environment, a section of samconfig.toml")
    commands.add_argument("--region", default="", help="the Region, if samconfig.toml does not name it")
    commands.add_argument("--yes", action="store_true", help="do not ask before going on")


def run(command: Callable[[Console], None], *, on_failure: str = "") -> int:
    """Run a command; return its exit status. `on_failure` says how things stand if it did not get to its end."""
    console = Console()
    try:
        with explaining():
            command(console)
    except OpsError as error:
        console.say(f"error: {error}", "red")
        console.say(on_failure)
        return 1
    except Abandoned as said:
        console.say(str(said))
        return 1
    except KeyboardInterrupt:
        console.say()
        console.say(f"Stopped. {on_failure}")
        return 130
    return 0
