"""The platform's restart API: it terminates the recorded instance and provisions a new one.

It knows no compare-and-set, so nothing here can close the window between the last look at the row
and the platform's own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from handler.credentials import Tokens
from handler.deadline import Deadline
from handler.model import Debt
from handler.transport import SUCCESS, Transport, TransportError

CALLS_AT_ONCE = 8
# The platform may take minutes, and goes on when the client hangs up. Longer than this it is not
# waited for: the restart is then uncertain, and the row tells later what became of it.
CALL_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 900.0
LONGEST_RETRY_AFTER_SECONDS = 86_400.0

_UNAUTHORIZED = 401
_CONFLICT = 409
_TOO_MANY = 429


class Answer(StrEnum):
    """What the platform said, as far as the debt is concerned."""

    PAID = "paid"
    REFUSED = "refused"
    BLOCKED = "blocked"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer, why in a word of ours, and the seconds that the platform asked to wait."""

    answer: Answer
    reason: str
    retry_after_s: float | None = None


class Platform:
    """Asks for restarts; what it is told never leaves it but as a Reply."""

    def __init__(self, base_url: str, org_id: str | None, tokens: Tokens, deadline: Deadline) -> None:
        """Ask the platform at `base_url`. Fetches the token by the deadline; raises SecretError."""
        self._base_url = base_url
        self._org_id = org_id
        self._tokens = tokens
        self._used = tokens.read(deadline)

    def restart(self, debt: Debt, deadline: Deadline) -> Reply:
        """Ask once for the restart that is owed, and wait for the answer by the deadline."""
        used = self._used
        reply = self._ask(debt, deadline, used)
        if reply.reason == f"http_{_UNAUTHORIZED}" and (renewed := self._tokens.renew(used, deadline)) != used:
            self._used = renewed
            return self._ask(debt, deadline, renewed)
        return reply

    def _ask(self, debt: Debt, deadline: Deadline, tokens: Mapping[str, str]) -> Reply:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if token := tokens.get("token"):
            headers["Authorization"] = f"Bearer {token}"
        if self._org_id:
            headers["X-Molecule-Org-Id"] = self._org_id
        # A connection of its own: on a kept-alive one that the platform has just closed, a request
        # that was never read would count as uncertain.
        transport = Transport(connections=1)
        try:
            response = transport.open(
                "POST",
                f"{self._base_url}/workspaces/{debt.workspace_id}/restart",
                headers=headers,
                deadline=deadline,
                body=json.dumps({"expected_instance_id": debt.instance_id}).encode(),
            )
        except TransportError as error:
            return Reply(Answer.UNCERTAIN if error.sent else Answer.REFUSED, error.cause)
        else:
            response.close()  # the status is all that is wanted of it
            return _reply(response.status, response.headers)
        finally:
            transport.close()


def _reply(status: int, headers: Mapping[str, str]) -> Reply:
    reason = f"http_{status}"
    if status in SUCCESS:
        return Reply(Answer.PAID, reason)
    if status == _CONFLICT:
        return Reply(Answer.BLOCKED, reason)
    wait_s = _retry_after(headers.get("Retry-After", "")) if status == _TOO_MANY else None
    return Reply(Answer.REFUSED, reason, wait_s)


def _retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3)."""
    if value.isascii() and value.isdecimal():
        return min(float(value), LONGEST_RETRY_AFTER_SECONDS)
    try:
        wait_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_SECONDS)


def pause(refusals: int, retry_s: float) -> float:
    """Return the seconds until the next attempt after `refusals` earlier ones: doubled by each."""
    longest = max(LONGEST_PAUSE_SECONDS, retry_s)
    return min(retry_s * 2.0 ** min(refusals, 60), longest)
