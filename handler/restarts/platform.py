"""The platform's restart API: it terminates the recorded instance and provisions a new one.

It has no compare-and-set, so nothing here can close the window between the last look at the row and the platform's
own.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from handler.deadline import Deadline
from handler.domain.model import Cause, Failure
from handler.net.bounded import SUCCESS, CallError
from handler.net.http import HttpClient
from handler.net.secrets import Tokens
from handler.restarts import Answer, Connection, Reply

LONGEST_RETRY_AFTER_SECONDS = 86_400.0
# Of these the platform's own come before it has begun (500), or say that it cannot (503). Any other is a gateway's that
# gave up, like 408, while the platform may be at work.
_SERVER_ERRORS = range(500, 600)
_REFUSING_SERVER_ERRORS = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
_MAY_ASK_TO_WAIT = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class HttpPlatform:
    """Asks for restarts over HTTP. Nothing from the platform's answers gets out except as a Reply."""

    def __init__(
        self, base_url: str, org_id: str | None, tokens: Tokens, deadline: Deadline, *, ca_file: str | None = None
    ) -> None:
        """Ask the platform at `base_url`. Fetches the token by the deadline; raises SecretError.

        The authorities in `ca_file` are trusted, too.
        """
        self._base_url = base_url
        self._org_id = org_id
        self._tokens = tokens
        self._ca_file = ca_file
        self._used = tokens.read(deadline)

    def connect(self, deadline: Deadline) -> "Connection | Reply":
        """See Platform."""
        client = self._opened(deadline)
        return client if isinstance(client, Reply) else _HttpConnection(self, client)

    def restart(
        self, client: HttpClient, workspace_id: str, instance_id: str, deadline: Deadline, *, not_after: float
    ) -> Reply:
        """Ask on the connection that `client` has opened; if the token is refused, on another one with a new token."""
        used = self._used
        reply = self._ask(client, workspace_id, instance_id, deadline, used)
        unauthorized = reply.reason == _status(HTTPStatus.UNAUTHORIZED)
        if not unauthorized or (renewed := self._tokens.renew(used, deadline)) == used:
            return reply
        self._used = renewed
        to_send = deadline.within(not_after - deadline.now())
        if to_send.over():
            return reply
        again = self._opened(to_send)
        if isinstance(again, Reply):
            return again
        with closing(again):
            return reply if to_send.over() else self._ask(again, workspace_id, instance_id, deadline, renewed)

    def _opened(self, deadline: Deadline) -> HttpClient | Reply:
        # A new connection for each call: on a kept-alive one that the platform has just closed, a request that was
        # never read would count as uncertain.
        client = HttpClient(connections=1, ca_file=self._ca_file)
        try:
            client.connect(self._base_url, deadline)
        except CallError as error:
            client.close()
            return Reply(Answer.REFUSED, Failure(error.cause))
        return client

    def _ask(
        self, client: HttpClient, workspace_id: str, instance_id: str, deadline: Deadline, tokens: Mapping[str, str]
    ) -> Reply:
        headers = {"Connection": "close"}
        if token := tokens.get("token"):
            headers["Authorization"] = f"Bearer {token}"
        if self._org_id:
            headers["X-Molecule-Org-Id"] = self._org_id
        try:
            answer = client.post(
                f"{self._base_url}/workspaces/{workspace_id}/restart",
                json={"expected_instance_id": instance_id},
                headers=headers,
                deadline=deadline,
                connected=True,
            )
        except CallError as error:
            return Reply(Answer.UNCERTAIN if error.sent else Answer.REFUSED, Failure(error.cause))
        return _reply(answer.status, answer.headers)


class _HttpConnection:
    """See Connection."""

    def __init__(self, platform: HttpPlatform, client: HttpClient) -> None:
        """Ask the platform on the connection that `client` has opened."""
        self._platform = platform
        self._client = client

    def restart(self, workspace_id: str, instance_id: str, deadline: Deadline, *, not_after: float = math.inf) -> Reply:
        """See Connection."""
        if deadline.now() > not_after:
            return Reply(Answer.REFUSED, Failure(Cause.OUT_OF_TIME))
        return self._platform.restart(self._client, workspace_id, instance_id, deadline, not_after=not_after)

    def close(self) -> None:
        """See Connection."""
        self._client.close()


def _status(status: int) -> Failure:
    return Failure(Cause.HTTP_STATUS, str(int(status)))


def _reply(status: int, headers: Mapping[str, str]) -> Reply:
    if status in SUCCESS:
        return Reply(Answer.ACCEPTED, _status(status))
    if status == HTTPStatus.CONFLICT:
        return Reply(Answer.BLOCKED, _status(status))
    if status == HTTPStatus.REQUEST_TIMEOUT or (status in _SERVER_ERRORS and status not in _REFUSING_SERVER_ERRORS):
        return Reply(Answer.UNCERTAIN, _status(status))
    wait_s = _retry_after(headers) if status in _MAY_ASK_TO_WAIT else None
    return Reply(Answer.REFUSED, _status(status), wait_s)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3).

    A date is compared with the platform's own clock, as in the header Date, because ours may differ.
    """
    value = headers.get("Retry-After", "")
    if value.isascii() and value.isdecimal():
        return min(float(value), LONGEST_RETRY_AFTER_SECONDS)
    later, its_now = _date(value), _date(headers.get("Date", "")) or datetime.now(UTC)
    if later is None:
        return None
    return min(max((later - its_now).total_seconds(), 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else None  # "-0000" says that nobody knows the time zone
