"""The platform's control plane (CP), asked about one workspace at a time, many at once."""

import json
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from handler.credentials import Tokens
from handler.deadline import Deadline
from handler.model import Sighting, Workspace, sighting_of, unknown
from handler.probes import fair_share
from handler.probes.gate import Gate
from handler.transport import SUCCESS, Transport, TransportError

BODY_LIMIT = 64 * 1024
_REFUSED = (401, 403)
# What a control plane answers, or fails to, when it is asked too much.
_OVERLOAD = re.compile("timeout|broken_connection|connection_refused|http_429|http_5..")
_CLOCKS_DIFFER = 0.95  # a wait of ten seconds may end a little early


class ControlPlaneProbe:
    """Asks `GET /cp/workspaces/{id}/status`; anything but a clean answer is UNKNOWN."""

    def __init__(
        self, base_url: str, tokens: Tokens, deadline: Deadline, *, concurrency: int, timeout_s: float
    ) -> None:
        """Ask the CP at `base_url`, at most `concurrency` checks at once, each `timeout_s` in all.

        Fetches the tokens by the deadline; raises SecretError.
        """
        self._base_url = base_url
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._tokens = tokens
        self._used = tokens.read(deadline)
        self._gate = Gate(concurrency)

    def sightings(self, workspaces: Sequence[Workspace], deadline: Deadline) -> Iterator[Sighting]:
        """See Probe. The connections are kept alive between the checks, and closed at the end."""
        todo = iter(workspaces)
        taking = threading.Lock()
        done: queue.SimpleQueue[Sighting | None] = queue.SimpleQueue()
        enough_s = fair_share(self._timeout_s, deadline)
        workers = min(self._concurrency, len(workspaces))
        transport = Transport(connections=workers)

        def work() -> None:
            while self._gate.enter(deadline):
                with taking:
                    workspace = next(todo, None)
                if workspace is None:
                    self._gate.leave(overloaded=None)
                    break
                self._gate.pause(deadline)
                sighting = self._check(transport, workspace, deadline, enough_s)
                overloaded = None if sighting is None else bool(_OVERLOAD.fullmatch(sighting.cause))
                self._gate.leave(overloaded=overloaded, took_s=sighting.took_s if sighting else 0.0)
                if sighting is not None:
                    done.put(sighting)
            done.put(None)

        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        try:
            yield from _until_all_end(done, workers, deadline)
        finally:
            transport.close()

    def _check(
        self, transport: Transport, workspace: Workspace, deadline: Deadline, enough_s: float
    ) -> Sighting | None:
        started = time.monotonic()
        check = deadline.within(self._timeout_s)
        try:
            state = self._state(transport, workspace, check)
        except _NoAnswerError as error:
            had_s = time.monotonic() - started
            begun_too_late = error.cause == "timeout" and had_s < enough_s * _CLOCKS_DIFFER
            return None if begun_too_late else unknown(workspace, error.cause)
        except Exception as error:  # noqa: BLE001 - one check's surprise must not cost the others
            return unknown(workspace, f"unexpected_{type(error).__name__}")
        return sighting_of(workspace, state, time.monotonic() - started)

    def _state(self, transport: Transport, workspace: Workspace, check: Deadline) -> str:
        query = urlencode({"instance_id": workspace.instance_id})
        url = f"{self._base_url}/cp/workspaces/{workspace.id}/status?{query}"
        used = self._used
        status, body = self._get(transport, url, used, check)
        if status in _REFUSED and (renewed := self._tokens.renew(used, check)) != used:
            self._used = renewed
            status, body = self._get(transport, url, renewed, check)
        if status not in SUCCESS or status == HTTPStatus.PARTIAL_CONTENT:
            raise _NoAnswerError(f"http_{status}")
        return _parsed(body)

    def _get(self, transport: Transport, url: str, tokens: Mapping[str, str], check: Deadline) -> tuple[int, bytes]:
        try:
            answer = transport.call("GET", url, headers=_headers(tokens), deadline=check, body_limit=BODY_LIMIT)
        except TransportError as error:
            raise _NoAnswerError(error.cause) from error
        if answer.headers.get("Content-Encoding", "identity") != "identity":  # which nobody asked for
            raise _NoAnswerError("encoded")
        return answer.status, answer.body


class _NoAnswerError(Exception):
    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def _headers(tokens: Mapping[str, str]) -> dict[str, str]:
    headers = {"Accept": "application/json"}
    if shared_secret := tokens.get("shared_secret"):
        headers["Authorization"] = f"Bearer {shared_secret}"
    if admin_token := tokens.get("admin_token"):
        headers["X-Molecule-Admin-Token"] = admin_token
    return headers


def _until_all_end(done: "queue.SimpleQueue[Sighting | None]", workers: int, deadline: Deadline) -> Iterator[Sighting]:
    """Yield what the workers put, until each has put its None, or a moment after the deadline.

    The workers end by the deadline of themselves, but for a name lookup, which nothing can cut
    short: such a one is left behind, and can neither send nor report anything any more.
    """
    moment_s = 0.2
    while workers:
        try:
            sighting = done.get(timeout=deadline.remaining() + moment_s)
        except queue.Empty:
            return
        if sighting is None:
            workers -= 1
        else:
            yield sighting


def _parsed(body: bytes) -> str:
    try:
        answer = json.loads(body.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _NoAnswerError("not_json") from error
    state = answer.get("state") if isinstance(answer, dict) else None
    if not isinstance(state, str):
        raise _NoAnswerError("no_state")
    return state


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    answer = dict(pairs)
    if len(answer) != len(pairs):
        raise ValueError("a key stands twice")
    return answer
