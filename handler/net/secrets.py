"""Secrets, fetched when needed and cached for five minutes at most.

A secret may be rotated while the process is warm, so a caller whose login is refused asks for a `fresh` one.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import botocore.exceptions

from handler.deadline import Deadline
from handler.errors import SecretError
from handler.net.bounded import CallError
from handler.settings import Remote, header_safe

CACHED_SECONDS = 300
# Only such error codes are shown: whoever answers may not be AWS.
ERROR_CODE = re.compile(r"[A-Za-z.]{1,60}")

# Fetches the text of a secret by its ARN, within the deadline.
Fetch = Callable[[str, Deadline], str]


class Secrets:
    """The secrets of one process, by ARN."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `fetch` for secrets that are not cached, and `clock` (in seconds) for the age of those that are."""
        self._fetch = fetch
        self._clock = clock
        self._cached: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def read(self, arn: str, variable: str, deadline: Deadline, *, fresh: bool = False) -> Mapping[str, Any]:
        """Return the JSON object in the secret `arn`; with `fresh`, never the cached one.

        Raises SecretError. It names the setting `variable` that the ARN came from, and never shows the content.
        """
        if not fresh and arn in self._cached:
            fetched_at, cached = self._cached[arn]
            if self._clock() - fetched_at < CACHED_SECONDS:
                return cached
        try:
            secret: Any = json.loads(self._fetch(arn, deadline))
        except botocore.exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code") or "")
            why = code if ERROR_CODE.fullmatch(code) else "an error without a proper code"
            raise SecretError(f"{variable}: the secret cannot be fetched: {why}") from None
        except (botocore.exceptions.BotoCoreError, CallError) as error:
            why = error.cause if isinstance(error, CallError) else type(error).__name__
            raise SecretError(f"{variable}: the secret cannot be fetched: {why}") from None
        except (ValueError, RecursionError):
            secret = None
        if not isinstance(secret, dict):
            raise SecretError(f"{variable}: the secret is not text that holds a JSON object")
        self._cached[arn] = (self._clock(), secret)
        return secret


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
