"""A stand-in for the platform: accepts restarts over HTTP, and reprovisions even if the client hangs up."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from sandbox.http_server import Answer, HttpStandIn, Reply, Request
from sandbox.postgres import Database
from sandbox.script import Script

_RESTART_PATH = re.compile(r"/workspaces/([0-9a-f-]{36})/restart")

_PAUSED_ANCESTOR = """
    WITH RECURSIVE ancestors (id, parent_id, status) AS (
        SELECT parent.id, parent.parent_id, parent.status
        FROM workspaces AS child JOIN workspaces AS parent ON parent.id = child.parent_id
        WHERE child.id = CAST(:id AS uuid)
        UNION
        SELECT parent.id, parent.parent_id, parent.status
        FROM ancestors JOIN workspaces AS parent ON parent.id = ancestors.parent_id
    )
    SELECT 1 FROM ancestors WHERE status = 'paused' LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class RestartCall:
    """One restart request with the right credentials. `at` is a monotonic time in seconds."""

    workspace_id: str
    expected_instance_id: str | None
    headers: Mapping[str, str]
    at: float


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart that the platform carried out: the terminated instance (None: there was none) and its successor."""

    workspace_id: str
    old_instance_id: str | None
    new_instance_id: str


class Platform(HttpStandIn):
    """Answers `POST /workspaces/{id}/restart` as the platform does, on its own database connection.

    A restart terminates the recorded instance, writes `provisioning` after `stop_s` seconds and then answers 200. It
    writes a new instance and `online` after `boot_s` more seconds. It continues even if the client hangs up. A wrong
    token gets 401. A wrong organisation and a missing or removed workspace get 404. A paused ancestor gets 409.

    Rules in `instead` reply without a restart. Rules in `afterwards` replace the 200 of a restart. Both may select by
    `workspace_id`. `calls` lists the requests with the right credentials, `restarts` the restarts carried out.
    """

    def __init__(
        self,
        database: Database,
        *,
        terminate: Callable[[str], object],
        launch: Callable[[], str],
        token: str = "sandbox-platform-token",
        org_id: str | None = None,
        stop_s: float = 0.0,
        boot_s: float = 0.0,
    ) -> None:
        super().__init__()
        self.token = token
        self.org_id = org_id
        self.stop_s = stop_s
        self.boot_s = boot_s
        self.instead: Script[RestartCall] = Script()
        self.afterwards: Script[RestartCall] = Script()
        self.calls: list[RestartCall] = []
        self.restarts: list[Restart] = []
        self._database = database
        self._terminate = terminate
        self._launch = launch
        self._stopping = threading.Event()
        self._work: list[threading.Thread] = []

    @property
    def environment(self) -> dict[str, str]:
        """The settings with which the reconciler asks this platform for restarts."""
        return {
            "PLATFORM_BASE_URL": self.url,
            "PLATFORM_TOKEN": self.token,
            "PLATFORM_ORG_ID": self.org_id or "",
        }

    def handle(self, request: Request) -> Reply:
        """Return the answer to a restart, a script's reply instead, or an error for a bad request."""
        path = _RESTART_PATH.fullmatch(request.path)
        if request.method != "POST" or path is None:
            return Answer(HTTPStatus.NOT_FOUND)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return Answer(HTTPStatus.UNAUTHORIZED)
        if self.org_id is not None and request.headers.get("x-molecule-org-id") != self.org_id:
            return Answer(HTTPStatus.NOT_FOUND)
        call = RestartCall(path[1], _expected_instance(request.body), request.headers, request.received_at)
        self.calls.append(call)
        reply = self.instead.play(call)
        if reply is None:
            reply = self._refusal(call.workspace_id)
        if reply is not None:
            return reply
        provisioning = threading.Event()
        worker = threading.Thread(target=self._restart, args=(call.workspace_id, provisioning), daemon=True)
        self._work.append(worker)
        worker.start()
        provisioning.wait()
        return self.afterwards.play(call) or Answer(body=b'{"status": "provisioning"}')

    def settle(self, timeout_s: float = 10.0) -> None:
        """Wait until all running restarts have ended. Raises TimeoutError if one takes longer than `timeout_s`."""
        for worker in list(self._work):
            worker.join(timeout_s)
            if worker.is_alive():
                raise TimeoutError("a restart is still running")

    def stop(self) -> None:
        """Abandon all running restarts and stop answering."""
        self._stopping.set()
        self.settle()
        super().stop()

    def _refusal(self, workspace_id: str) -> Answer | None:
        rows = self._database.query("SELECT status FROM workspaces WHERE id = CAST(:id AS uuid)", id=workspace_id)
        if not rows or rows[0]["status"] == "removed":
            return Answer(HTTPStatus.NOT_FOUND)
        if self._database.query(_PAUSED_ANCESTOR, id=workspace_id):
            return Answer(HTTPStatus.CONFLICT)
        return None

    def _restart(self, workspace_id: str, provisioning: threading.Event) -> None:
        try:
            old = self._recorded_instance(workspace_id)
            if old:
                self._terminate(old)
            if self._stopping.wait(self.stop_s):
                return
            self._write(workspace_id, "status = 'provisioning'")
            provisioning.set()
            new = self._launch()
            self.restarts.append(Restart(workspace_id, old, new))
            if self._stopping.wait(self.boot_s):
                return
            self._write(workspace_id, "status = 'online', instance_id = :new, last_heartbeat_at = now()", new=new)
        finally:
            provisioning.set()

    def _recorded_instance(self, workspace_id: str) -> str | None:
        rows = self._database.query("SELECT instance_id FROM workspaces WHERE id = CAST(:id AS uuid)", id=workspace_id)
        return rows[0]["instance_id"] if rows else None

    def _write(self, workspace_id: str, assignments: str, **parameters: Any) -> None:
        self._database.query(
            f"UPDATE workspaces SET {assignments}, updated_at = now() WHERE id = CAST(:id AS uuid)",  # noqa: S608 - ours
            id=workspace_id,
            **parameters,
        )


def _expected_instance(body: bytes) -> str | None:
    """Return the instance that the body expects. Today's platform ignores it."""
    try:
        value = json.loads(body).get("expected_instance_id")
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None
