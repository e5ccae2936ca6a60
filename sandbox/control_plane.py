"""A stand-in for the control plane: reports instance states over HTTP, or fails in every way a server can."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from sandbox.http_server import Answer, HttpStandIn, Reply, Request
from sandbox.script import Script

_STATUS_PATH = re.compile(r"/cp/workspaces/([^/]+)/status")


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """One status request from the reconciler. `at` is a monotonic time in seconds."""

    workspace_id: str
    instance_id: str
    headers: Mapping[str, str]
    at: float


class ControlPlane(HttpStandIn):
    """Answers `GET /cp/workspaces/{workspace_id}/status?instance_id=…` from `state_of`, after `latency_s` seconds.

    `state_of` returns EC2's word for an instance's state, or None if EC2 does not know the instance. `script` holds
    rules for faults and hooks, which may select by `workspace_id` or `instance_id`. `requests` lists the requests that
    had the right credentials; all others get 401.
    """

    def __init__(
        self,
        state_of: Callable[[str], str | None],
        *,
        shared_secret: str = "sandbox-shared-secret",
        admin_token: str = "sandbox-admin-token",
        latency_s: float = 0.0,
    ) -> None:
        super().__init__()
        self.shared_secret = shared_secret
        self.admin_token = admin_token
        self.latency_s = latency_s
        self.script: Script[StatusRequest] = Script()
        self.requests: list[StatusRequest] = []
        self._state_of = state_of

    @property
    def environment(self) -> dict[str, str]:
        """The settings with which the reconciler uses this control plane."""
        return {
            "PROBE": "control_plane",
            "CP_BASE_URL": self.url,
            "CP_SHARED_SECRET": self.shared_secret,
            "CP_ADMIN_TOKEN": self.admin_token,
        }

    def handle(self, request: Request) -> Reply:
        """Return the state, the script's reply instead, or an error for a bad request."""
        path = _STATUS_PATH.fullmatch(request.path)
        if request.method != "GET" or path is None:
            return Answer(HTTPStatus.NOT_FOUND)
        if not self._is_authorised(request.headers):
            return Answer(HTTPStatus.UNAUTHORIZED)
        status_request = StatusRequest(
            workspace_id=path[1],
            instance_id=request.query.get("instance_id", ""),
            headers=request.headers,
            at=request.received_at,
        )
        self.requests.append(status_request)
        if (scripted := self.script.play(status_request)) is not None:
            return scripted
        return state_answer(self._state_of(status_request.instance_id) or "not_found", delay_s=self.latency_s)

    def _is_authorised(self, headers: Mapping[str, str]) -> bool:
        """Tell whether both headers are right. A header whose credential is empty has to be absent."""
        expected = {
            "authorization": f"Bearer {self.shared_secret}" if self.shared_secret else None,
            "x-molecule-admin-token": self.admin_token or None,
        }
        return all(headers.get(name) == value for name, value in expected.items())


def state_answer(state: str, *, delay_s: float = 0.0) -> Answer:
    """Return the control plane's regular answer for a state."""
    return Answer(body=json.dumps({"state": state}).encode(), delay_s=delay_s)
