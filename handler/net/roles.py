"""Clients with the credentials of roles in other accounts: kept from cycle to cycle, and renewed before they expire."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types_boto3_ec2 import EC2Client

RENEWED_EARLY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Assumed:
    """A client with a role's credentials, and when they expire, in seconds since 1970."""

    client: "EC2Client"
    expires_at: float


class RoleError(Exception):
    """A role cannot be assumed; `cause` says why."""

    def __init__(self, cause: Exception) -> None:
        """Take what the call to STS raised."""
        super().__init__("a role cannot be assumed")
        self.cause = cause


class RoleClient:
    """The client of one role, for all cycles of this process."""

    def __init__(self, assume: Callable[[], Assumed], *, clock: Callable[[], float] = time.time) -> None:
        """Assume the role with `assume`, when a client is needed. `clock` tells the seconds since 1970."""
        self.assume = assume
        self.clock = clock
        self.kept: Assumed | None = None
        self.lock = threading.Lock()

    def for_cycle(self, lasts_s: float) -> "RoleInCycle":
        """Return the role's client for one cycle, which lasts at most `lasts_s` seconds."""
        return RoleInCycle(self, lasts_s)


class RoleInCycle:
    """The client of one role, for one cycle, in which the role is assumed twice at most."""

    def __init__(self, role: RoleClient, lasts_s: float) -> None:
        """Take what is kept from earlier cycles."""
        self._role = role
        self._lasts_s = lasts_s
        self._made: Assumed | None = None
        self._failure: Exception | None = None
        self._renewed = False

    def __call__(self) -> "EC2Client":
        """Return the client, with credentials that are good for this cycle. Raises RoleError.

        One that has to be made takes a call to STS, within the deadline of the call that needs it.
        """
        role = self._role
        with role.lock:
            kept = role.kept
            left_s = 0.0 if kept is None else kept.expires_at - role.clock()
            # What this cycle has got is good for it, whatever our clock says: EC2 refuses it when it has expired.
            if kept is not None and (kept is self._made or left_s > RENEWED_EARLY_SECONDS):
                return kept.client
            if self._failure is None:
                try:
                    role.kept = self._made = role.assume()
                except Exception as error:  # noqa: BLE001 - whatever it is, the caller says what it means
                    self._failure = error
                else:
                    return role.kept.client
            if kept is not None and left_s > self._lasts_s:
                return kept.client
            raise RoleError(self._failure)

    def renew(self, client: "EC2Client") -> bool:
        """Drop a client whose credentials were refused as expired; tell whether to try again with another.

        Once a cycle: what is refused again, is refused for another reason.
        """
        role = self._role
        with role.lock:
            if role.kept is None or role.kept.client is not client:
                return True  # another call was refused before, and has dropped it
            if self._renewed:
                return False
            self._renewed, role.kept = True, None
            return True
