"""Asks the platform's control plane (CP): one request for each workspace, many at once."""

import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from handler.deadline import Deadline
from handler.domain.model import LONGEST_INSTANCE_ID, Cause, Failure, Sighting, Workspace, sighting_of, unknown
from handler.net.bounded import SUCCESS, Answer, CallError
from handler.net.http import HttpClient
from handler.net.limits import is_shallow_json
from handler.net.secrets import Tokens
from handler.parallel import HANDOVER_SECONDS
from handler.probes import TargetTroubles, fair_share
from handler.probes.control_plane.limiter import ConcurrencyLimiter

BODY_LIMIT = 64 * 1024
TARGET = "control_plane"
# Only caches send an Age: for how many seconds an answer has lain in them (RFC 9111, 5.1).
_AGE_OF_NOW = re.compile("0+")
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
# An overloaded control plane fails in these ways, or answers 429 or 5xx.
_OVERLOAD = (Cause.TIMEOUT, Cause.BROKEN_CONNECTION, Cause.CONNECTION_REFUSED)
_OVERLOAD_STATUS = (str(HTTPStatus.TOO_MANY_REQUESTS.value), *map(str, range(500, 600)))
_CLOCKS_DIFFER = 0.95  # a wait of ten seconds may end a little early


class ControlPlaneProbe:
    """Asks `GET /cp/workspaces/{id}/status`; anything but a clean answer is UNKNOWN."""

    def __init__(
        self,
        base_url: str,
        tokens: Tokens,
        deadline: Deadline,
        *,
        concurrency: int,
        timeout_s: float,
        ca_file: str | None = None,
    ) -> None:
        """Ask the CP at `base_url`, with at most `concurrency` checks at once and `timeout_s` seconds for each.

        Fetches the tokens by the deadline; raises SecretError. The authorities in `ca_file` are trusted, too.
        """
        self._base_url = base_url
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._ca_file = ca_file
        self._tokens = tokens
        self._used = tokens.read(deadline)
        self._limiter = ConcurrencyLimiter(concurrency)

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See Probe. The connections are kept alive between the checks, and closed at the end."""
        todo = iter(workspaces)
        taking = threading.Lock()
        done: queue.SimpleQueue[Sighting | None] = queue.SimpleQueue()
        enough_s = fair_share(self._timeout_s, deadline)
        workers = min(self._concurrency, len(workspaces))
        client = HttpClient(connections=workers, ca_file=self._ca_file)

        def work() -> None:
            while self._limiter.enter(deadline):
                with taking:
                    workspace = next(todo, None)
                if workspace is None:
                    self._limiter.leave(overloaded=None)
                    break
                self._limiter.pause(deadline)
                sighting = self._check(client, workspace, deadline, enough_s)
                if sighting is None:
                    self._limiter.leave(overloaded=None)
                else:
                    self._limiter.leave(overloaded=_overloaded(sighting.failure), took_s=sighting.took_s)
                    done.put(sighting)
            done.put(None)

        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        try:
            yield from _until_all_end(done, workers, deadline)
        finally:
            client.close()

    def impaired(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Callable[[], int]:  # noqa: ARG002 - see Probe
        """See Probe. The control plane says nothing about status checks."""
        return lambda: 0

    def troubles(self) -> TargetTroubles:
        """See Probe. The control plane says nothing about Regions and accounts."""
        return TargetTroubles()

    def _check(self, client: HttpClient, workspace: Workspace, deadline: Deadline, enough_s: float) -> Sighting | None:
        """Return the sighting, or None if the check began too late to count."""
        started = time.monotonic()
        check = deadline.within(self._timeout_s)
        try:
            state, answered_at = self._state(client, workspace, check)
        except _NoAnswerError as error:
            had_s = time.monotonic() - started
            begun_too_late = error.failure.cause is Cause.TIMEOUT and had_s < enough_s * _CLOCKS_DIFFER
            return None if begun_too_late else unknown(workspace, error.failure)
        except Exception as error:  # noqa: BLE001 - an unexpected error must cost only its own check
            return unknown(workspace, Failure(Cause.UNEXPECTED, type(error).__name__))
        took_s = time.monotonic() - started
        return sighting_of(workspace, state, answered_at=answered_at, target=TARGET, took_s=took_s)

    def _state(self, client: HttpClient, workspace: Workspace, check: Deadline) -> tuple[str, float]:
        """Return the state, and when it arrived."""
        if len(workspace.instance_id.encode(errors="surrogateescape")) > LONGEST_INSTANCE_ID:
            raise _NoAnswerError(Failure(Cause.MALFORMED_INSTANCE_ID))
        used = self._used
        answer = self._get(client, workspace, used, check)
        if answer.status in _REFUSED and (renewed := self._tokens.renew(used, check)) != used:
            self._used = renewed
            answer = self._get(client, workspace, renewed, check)
        if answer.status not in SUCCESS or answer.status == HTTPStatus.PARTIAL_CONTENT:
            raise _NoAnswerError(Failure(Cause.HTTP_STATUS, str(answer.status)))
        if not _AGE_OF_NOW.fullmatch(answer.headers.get("Age", "0")):
            raise _NoAnswerError(Failure(Cause.CACHED))
        return _parsed(answer.body, workspace.instance_id), answer.began_at

    def _get(self, client: HttpClient, workspace: Workspace, tokens: Mapping[str, str], check: Deadline) -> Answer:
        try:
            answer = client.get(
                f"{self._base_url}/cp/workspaces/{workspace.id}/status",
                params={"instance_id": workspace.instance_id},
                headers=_headers(tokens),
                deadline=check,
                body_limit=BODY_LIMIT,
            )
        except CallError as error:
            raise _NoAnswerError(Failure(error.cause)) from error
        if answer.headers.get("Content-Encoding", "identity") != "identity":  # we asked for identity
            raise _NoAnswerError(Failure(Cause.ENCODED))
        return answer


class _NoAnswerError(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def _overloaded(failure: Failure | None) -> bool:
    if failure is None:
        return False
    if failure.cause is Cause.HTTP_STATUS:
        return failure.detail in _OVERLOAD_STATUS
    return failure.cause in _OVERLOAD


def _headers(tokens: Mapping[str, str]) -> dict[str, str]:
    headers = {"Accept": "application/json", "Cache-Control": "no-cache"}
    if shared_secret := tokens.get("shared_secret"):
        headers["Authorization"] = f"Bearer {shared_secret}"
    if admin_token := tokens.get("admin_token"):
        headers["X-Molecule-Admin-Token"] = admin_token
    return headers


def _until_all_end(done: "queue.SimpleQueue[Sighting | None]", workers: int, deadline: Deadline) -> Iterator[Sighting]:
    """Yield the workers' sightings until each has put its None, or until a moment after the deadline.

    Workers end by the deadline on their own. One that is late all the same is left behind: it can no longer send or
    report anything.
    """
    while workers:
        try:
            sighting = done.get(timeout=deadline.remaining() + HANDOVER_SECONDS)
        except queue.Empty:
            return
        if sighting is None:
            workers -= 1
        else:
            yield sighting


def _parsed(body: bytes, instance_id: str) -> str:
    try:
        text = body.decode("utf-8")
        if not is_shallow_json(text):
            raise _NoAnswerError(Failure(Cause.NOT_JSON))
        answer = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_number)
    except ValueError as error:
        raise _NoAnswerError(Failure(Cause.NOT_JSON)) from error
    state = answer.get("state") if isinstance(answer, dict) else None
    if not isinstance(state, str):
        raise _NoAnswerError(Failure(Cause.NO_STATE))
    if answer.get("instance_id", instance_id) != instance_id:
        raise _NoAnswerError(Failure(Cause.OTHER_INSTANCE))
    return state


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    answer = dict(pairs)
    if len(answer) != len(pairs):
        raise ValueError("a key stands twice")
    return answer
