"""The server's errors as ours: what each SQLSTATE means for a cycle, and what to do about it."""

import pg8000.exceptions

from handler.errors import (
    ConnectionLostError,
    LoginRefusedError,
    NotWrittenError,
    RightsMissingError,
    RowLockedError,
    RowSecurityError,
    SchemaMissingError,
    StandbyError,
    StoreError,
)
from handler.store.row_security import REMEDIES
from handler.store.transaction import STANDBY

# A message can name the value that it is about.
LONGEST_MESSAGE = 1000

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_ERROR_OF_SQLSTATE: dict[str, tuple[type[StoreError], str]] = {
    "28000": (LoginRefusedError, ""),
    "28P01": (LoginRefusedError, ""),
    "3F000": (SchemaMissingError, "run infra/schema.sql"),
    "42P01": (SchemaMissingError, "run infra/schema.sql"),
    "42703": (SchemaMissingError, "run infra/schema.sql"),
    "42501": (RightsMissingError, "run infra/grants.sql"),
    "25006": (StandbyError, STANDBY),
    "55P03": (RowLockedError, ""),
    "57P01": (ConnectionLostError, ""),
    "25P02": (ConnectionLostError, ""),
    "25P03": (ConnectionLostError, ""),
}
# BEGIN READ WRITE on a standby.
FEATURE_NOT_SUPPORTED = "0A000"
# By a timeout or by somebody.
QUERY_CANCELED = "57014"
# If a trigger's function cannot find something, that is not our schema's fault.
_NOT_FOUND = ("3F000", "42P01", "42704", "42883")
_BY_SCHEMA = "a trigger's function has to name what it uses by its schema, or SET a search_path of its own"
# infra/schema.sql is a DO block.
_OUR_OWN_BLOCK = "inline_code_block"
_NOT_OURS = "a trigger's function needs this; infra/grants.sql gives only what our own statements need"
# The server's routines that raise an error because of a policy. The message itself may be in any language.
_ROW_SECURITY_ROUTINES = ("check_enable_rls", "ExecWithCheckOptions")


def explained(error: pg8000.exceptions.DatabaseError) -> StoreError:
    """Return the server's error as one of ours: its code and its main message, without details or data."""
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    code, message = fields.get("C", "?"), fields.get("M", "no message")[:LONGEST_MESSAGE]
    kind, remedy = _ERROR_OF_SQLSTATE.get(code, (StoreError, ""))
    where = fields.get("W", "")
    in_function = bool(where) and _OUR_OWN_BLOCK not in where
    if in_function:  # a trigger's, for our own statements call none
        if code in _NOT_FOUND:
            remedy = _BY_SCHEMA
        elif kind is RightsMissingError:
            remedy = _NOT_OURS
        elif kind is StandbyError:  # another server's, to which the function writes
            kind, remedy = StoreError, ""
    elif kind is RightsMissingError and fields.get("R") in _ROW_SECURITY_ROUTINES:
        kind, remedy = RowSecurityError, REMEDIES
    text = f"the database refused: {message} ({code})" + (f": {remedy}" if remedy else "")
    return kind(text, server_message=message, sqlstate=code, in_function=in_function)


# Time-outs and cancellations, lost connections, and a server without resources: none is a row's own fault.
_NOT_A_ROWS = ("08", "25", "28", "40", "53", "55", "57", "58", "XX")
# Unless they are: somebody is inserting the same restart; or a trigger's function talks to another server.
_A_ROWS = ("55P03",)


def concerns_a_row(error: StoreError) -> bool:
    """Tell whether one row may be to blame for an error, through a trigger or a constraint, and not a whole set."""
    if error.sqlstate is None:
        return isinstance(error, NotWrittenError)
    if error.sqlstate in _A_ROWS or (error.in_function and error.sqlstate != QUERY_CANCELED):
        return True
    return not error.sqlstate.startswith(_NOT_A_ROWS)
