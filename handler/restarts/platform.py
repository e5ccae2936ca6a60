"""The platform's restart API: it terminates the recorded instance and provisions a new one.

It has no compare-and-set, so nothing here can close the window between the last look at the row and the platform's
own.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from handler.deadline import Deadline
from handler.domain.model import Cause, Failure, Restart
from handler.net.bounded import SUCCESS, CallError
from handler.net.http import HttpClient
from handler.net.secrets import Tokens
from handler.restarts import Answer, Reply

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

    def connect(self, deadline):
        me = self

        class C:
            def restart(self, workspace_id, instance_id, deadline):
                return me.restart(Restart(0, workspace_id, instance_id), deadline)

            def close(self):
                pass

        return C()

    def restart(self, restart: Restart, deadline: Deadline) -> Reply:
        """See Platform."""
        used = self._used
        reply = self._ask(restart, deadline, used)
        unauthorized = reply.reason == _status(HTTPStatus.UNAUTHORIZED)
        if unauthorized and (renewed := self._tokens.renew(used, deadline)) != used:
            self._used = renewed
            return self._ask(restart, deadline, renewed)
        return reply

    def _ask(self, restart: Restart, deadline: Deadline, tokens: Mapping[str, str]) -> Reply:
        headers = {"Connection": "close"}
        if token := tokens.get("token"):
            headers["Authorization"] = f"Bearer {token}"
        if self._org_id:
            headers["X-Molecule-Org-Id"] = self._org_id
        # A new connection for each call: on a kept-alive one that the platform has just closed, a request
        # that was never read would count as uncertain.
        client = HttpClient(connections=1, ca_file=self._ca_file)
        try:
            answer = client.post(
                f"{self._base_url}/workspaces/{restart.workspace_id}/restart",
                json={"expected_instance_id": restart.instance_id},
                headers=headers,
                deadline=deadline,
            )
        except CallError as error:
            return Reply(Answer.UNCERTAIN if error.sent else Answer.REFUSED, Failure(error.cause))
        finally:
            client.close()
        return _reply(answer.status, answer.headers)


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
