"""Secrets, fetched when needed and cached for five minutes; for an hour while Secrets Manager is away.

A secret may be rotated while the process is warm, so a caller whose login is refused asks for a `fresh` one.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import botocore.exceptions

from handler.deadline import Deadline
from handler.errors import ReconcilerError, SecretError
from handler.net.aws_errors import code_of, is_server_error, is_throttling
from handler.net.bounded import CallError
from handler.net.limits import is_shallow_json
from handler.settings import Remote, header_safe
from handler.telemetry import logger

CACHED_SECONDS = 300
# So long after its last fetch a secret serves on if Secrets Manager cannot be reached. It is asked again now and then,
# and must not use up the cycle's time.
KEPT_SECONDS = 3600
RETRY_SECONDS = 60
RETRY_TIMEOUT_SECONDS = 2.0

# Fetches the text of a secret by its ARN, within the deadline.
Fetch = Callable[[str, Deadline], str]


@dataclass(frozen=True, slots=True)
class _Cached:
    """A secret, when it was fetched, and when and why the last attempt to fetch it anew did not get through."""

    secret: Mapping[str, Any]
    fetched_at: float
    failed_at: float = float("-inf")
    failure: str = ""


class _AwayError(SecretError):
    """Secrets Manager could not be asked, or could not answer: that says nothing about the secret."""


class Secrets:
    """The secrets of one process, by ARN."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `fetch` for secrets that are not cached, and `clock` (in seconds) for the age of those that are."""
        self._fetch = fetch
        self._clock = clock
        self._cached: dict[str, _Cached] = {}

    def read(self, arn: str, variable: str, deadline: Deadline, *, fresh: bool = False) -> Mapping[str, Any]:
        """Return the JSON object in the secret `arn`; with `fresh`, never the cached one.

        Raises SecretError. It names the setting `variable` that the ARN came from, and never shows the content.
        """
        now, cached = self._clock(), self._cached.get(arn)
        if cached is None or now - cached.fetched_at >= KEPT_SECONDS:
            return self._fetched(arn, variable, deadline)
        if now - cached.fetched_at < CACHED_SECONDS and not fresh:
            return cached.secret
        if now - cached.failed_at >= RETRY_SECONDS:
            try:
                return self._fetched(arn, variable, deadline.within(RETRY_TIMEOUT_SECONDS))
            except _AwayError as error:
                cached = replace(cached, failed_at=self._clock(), failure=str(error))
                self._cached[arn] = cached
                logger.warning("secret not renewed", reason="the last one serves on", error=str(error))
        if fresh:
            raise SecretError(cached.failure)
        return cached.secret

    def _fetched(self, arn: str, variable: str, deadline: Deadline) -> Mapping[str, Any]:
        """Fetch a secret and keep it. Forget the last one, unless Secrets Manager is away. Raises SecretError."""
        try:
            text = self._fetch(arn, deadline)
        except botocore.exceptions.ClientError as error:
            why = code_of(error) or "an error without a proper code"
            refusal = f"{variable}: the secret cannot be fetched: {why}"
            if is_throttling(error) or is_server_error(error):
                raise _AwayError(refusal) from None
            self._cached.pop(arn, None)
            raise SecretError(refusal) from None
        except ReconcilerError:
            raise
        except Exception as error:  # noqa: BLE001 - botocore's own, and what it trips over in an answer that is none
            why = error.cause if isinstance(error, CallError) else type(error).__name__
            raise _AwayError(f"{variable}: the secret cannot be fetched: {why}") from None
        secret = _parsed(text)
        if secret is None:
            self._cached.pop(arn, None)
            raise SecretError(f"{variable}: the secret is not text that holds a JSON object")
        self._cached[arn] = _Cached(secret, self._clock())
        return secret


def _parsed(text: Any) -> dict[str, Any] | None:
    """Return the JSON object in a secret's text, or None. What Secrets Manager says is text need not be."""
    if not isinstance(text, str) or not is_shallow_json(text):
        return None
    try:
        secret = json.loads(text)
    except ValueError:
        return None
    return secret if isinstance(secret, dict) else None


class Tokens:
    """The tokens of an HTTP system for one cycle, from its secret or from the environment."""

    def __init__(self, remote: Remote, variable: str, secrets: Secrets) -> None:
        """Read the tokens of `remote`. Errors name the setting `variable`, which refers to its secret."""
        self._remote = remote
        self._variable = variable
        self._secrets = secrets
        self._renewing = threading.Lock()
        self._renewed: Mapping[str, str] | None = None

    def renew(self, refused: Mapping[str, str], deadline: Deadline) -> Mapping[str, str]:
        """Return the tokens to use instead of the refused ones: the same, if there are no others.

        The secret is fetched again only once, no matter how many calls are refused.
        """
        with self._renewing:
            if self._renewed is None:
                self._renewed = refused
                with contextlib.suppress(SecretError):
                    self._renewed = self.read(deadline, fresh=True)
            return self._renewed

    def read(self, deadline: Deadline, *, fresh: bool = False) -> Mapping[str, str]:
        """Return the tokens by field, without the empty ones. Raises SecretError."""
        if self._remote.secret_arn is None:
            return self._remote.tokens
        secret = self._secrets.read(self._remote.secret_arn, self._variable, deadline, fresh=fresh)
        tokens = {}
        for field in self._remote.fields:
            token = text_field(secret, field, self._variable)
            if token is not None and not header_safe(token):
                raise SecretError(f"{self._variable}: the field {field} of the secret cannot stand in an HTTP header")
            if token is not None:
                tokens[field] = token
        return tokens


def text_field(secret: Mapping[str, Any], field: str, variable: str) -> str | None:
    """Return a field of a secret as text, or None if it is missing or empty. Raises SecretError."""
    value = secret.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise SecretError(f"{variable}: the field {field} of the secret is not a string")
    return value
