"""Our errors, as one tree: whatever makes a cycle impossible, or one part of it.

ReconcilerError
├── RequestError            the event asks for something unknown or malformed
├── SettingsError           an environment variable is missing or wrong
├── SecretError             a secret cannot be fetched, or lacks a field
└── StoreError              the platform's database cannot be used
    ├── LoginRefusedError   it refuses the user or the password
    ├── ConnectionLostError it cannot be reached, or hung up in the middle of a statement
    ├── SchemaMissingError  a table or column is missing, or the schema is too old
    ├── RightsMissingError  the role lacks a right that a cycle needs
    ├── RowLockedError      another transaction has the lock
    ├── NotWrittenError     a row was not written, although no error was raised
    ├── LeaseLostError      this cycle's lease is over, so it must not act any more
    └── UnfitDatabaseError  its rows must not be acted on, so the cycle ends
        ├── StandbyError        it is a standby, so its rows may be history
        ├── ReadOnlyError       it is configured to be read only
        └── RowSecurityError    row-level security may hide rows

A message never contains a password, a token, or text from a remote's body.
"""


class ReconcilerError(Exception):
    """A cycle cannot be run, or cannot go on."""


class RequestError(ReconcilerError):
    """The event asks for something unknown or malformed; the message names the field."""


class SettingsError(ReconcilerError):
    """An environment variable is missing or wrong; the message names it."""


class SecretError(ReconcilerError):
    """A secret cannot be read; the message names the variable that refers to it."""


class StoreError(ReconcilerError):
    """A statement failed in the platform's database.

    `server_message` is the server's own main message, without details or data, and `sqlstate` its code; both are None
    if no server answered. `in_function` tells that a trigger's function raised it.
    """

    def __init__(
        self,
        message: str,
        *,
        server_message: str | None = None,
        sqlstate: str | None = None,
        in_function: bool = False,
    ) -> None:
        """Take the message for the log, the server's own, its code, and whether it arose in a trigger's function."""
        super().__init__(message)
        self.server_message = server_message
        self.sqlstate = sqlstate
        self.in_function = in_function


class LoginRefusedError(StoreError):
    """The database refuses the user or the password."""


class ConnectionLostError(StoreError):
    """The database cannot be reached, or the session broke."""


class SchemaMissingError(StoreError):
    """A table or a column is missing, or the schema is too old; the message names the file that creates it."""


class RightsMissingError(StoreError):
    """The role lacks a right; the message names it, and the file that grants it."""


class RowLockedError(StoreError):
    """Another transaction has a lock that was requested without waiting."""


class NotWrittenError(StoreError):
    """A row was not written as it was told to be, although the server raised no error."""


class LeaseLostError(StoreError):
    """The lease of this cycle has expired, or another cycle has it."""


class UnfitDatabaseError(StoreError):
    """The rows of this database must not be acted on. That holds for every row, so the cycle ends."""


class StandbyError(UnfitDatabaseError):
    """The server is a standby. Its rows may be history."""


class ReadOnlyError(UnfitDatabaseError):
    """Somebody configured the server, the database or the role to be read only, so its rows may be history."""


class RowSecurityError(UnfitDatabaseError):
    """Row-level security may hide rows, which then seem to be gone; the message names the remedies."""


_SHOWN_CHARACTERS = 60
_SHOWN_BITS = 128


def shown(found: object) -> str:
    """Return a value as an error message shows it: a scalar cut short, anything else only as its type."""
    if found is None:
        return "nothing"
    if isinstance(found, int) and found.bit_length() > _SHOWN_BITS:
        return "a huge number"
    if isinstance(found, str | int | float):
        text = ascii(found)
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return f"a {type(found).__name__}"


def field_refused(name: str, found: object, expected: str) -> RequestError:
    """Return the error for a field of an event. It shows what was found, cut short."""
    return RequestError(f"event field {name}: found {shown(found)}; expected {expected}")
