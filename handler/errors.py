"""Everything that makes a cycle impossible, one tree.

ReconcilerError
├── RequestError            the event asks for something that is not understood
├── SettingsError           an environment variable is missing or wrong
├── SecretError             a secret cannot be fetched, or does not hold what it should
└── RegistryError           the platform's database cannot be used
    ├── LoginRefusedError   it refuses the user or the password
    ├── ConnectionLostError it cannot be reached, or hung up in mid-statement
    ├── SchemaMissingError  a table or column is not there
    ├── RightsMissingError  the role may not do what a cycle has to do
    ├── RowLockedError      somebody else holds the lock
    └── LeaseLostError      this cycle's time is over: it must not act any more

A message never holds a password, a token, or text that came from a remote's body.
"""


class ReconcilerError(Exception):
    """A cycle cannot be run, or not go on."""


class RequestError(ReconcilerError):
    """The event is not one of those that the function takes."""


class SettingsError(ReconcilerError):
    """An environment variable is missing or wrong; the message names it."""


class SecretError(ReconcilerError):
    """A secret cannot be read; the message names the variable that refers to it."""


class RegistryError(ReconcilerError):
    """A statement failed in the platform's database."""


class LoginRefusedError(RegistryError):
    """The database refuses the user or the password."""


class ConnectionLostError(RegistryError):
    """The database cannot be reached, or the session broke."""


class SchemaMissingError(RegistryError):
    """A table or a column is missing; the message names the file that makes it."""


class RightsMissingError(RegistryError):
    """The role lacks a right; the message names it, and the file that grants it."""


class RowLockedError(RegistryError):
    """Somebody else holds a lock that was asked for without waiting."""


class LeaseLostError(RegistryError):
    """The lease of this cycle has expired or went to another cycle."""


_SHOWN_CHARACTERS = 60
_SHOWN_BITS = 128


def shown(found: object) -> str:
    """Show in an error what was found: a scalar, cut short; of anything else only its type."""
    if found is None:
        return "nothing"
    if isinstance(found, int) and found.bit_length() > _SHOWN_BITS:
        return "a huge number"
    if isinstance(found, str | int | float):
        text = ascii(found)
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return f"a {type(found).__name__}"
