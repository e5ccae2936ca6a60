"""HTTP calls through requests. Each is bounded as a whole: its time from first to last byte, and its body's length.

requests has the session and builds the requests. The connections below it come from `net.bounded`, so they obey the
call's deadline. Whatever requests would do beyond the one call is turned off: it follows no redirect and does not read
its body, retries nothing, keeps no cookies, and uses neither proxies nor netrc.
"""

from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.net import bounded
from handler.net.bounded import Answer, BoundedPools, CallError, call_within, read_body

USER_AGENT = "instance-state-reconciler"


class HttpClient:
    """A session for one remote. Its connections are kept alive until `close`."""

    def __init__(self, *, connections: int, ca_file: str | None = None) -> None:
        """Keep up to `connections` idle connections to each host. Trust the authorities in `ca_file`, too."""
        self._session = _Session()
        self._session.trust_env = False
        self._session.headers.clear()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._adapter = _BoundedAdapter(connections, ca_file)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._adapter)

    def get(
        self, url: str, *, params: Mapping[str, str], headers: Mapping[str, str], deadline: Deadline, body_limit: int
    ) -> Answer:
        """Send a GET and read its whole answer, of at most `body_limit` bytes, by the deadline.

        If its connection was stale, it is sent once more (RFC 9110, 9.2.2). Raises CallError.
        """
        try:
            response = self._send("GET", url, deadline, headers=headers, params=params)
        except CallError as error:
            if not error.stale:
                raise
            response = self._send("GET", url, deadline, headers=headers, params=params)
        began_at = deadline.now()
        return Answer(response.status_code, response.headers, read_body(response.raw, body_limit), began_at)

    def connect(self, url: str, deadline: Deadline) -> None:
        """Open the connection for the next request to the URL's host by the deadline. Raises CallError."""
        with call_within(deadline, _cause_of):
            self._adapter.connect(self._session.prepare_request(requests.Request("GET", url)))

    def post(
        self,
        url: str,
        *,
        json: Mapping[str, Any],
        headers: Mapping[str, str],
        deadline: Deadline,
        connected: bool = False,
    ) -> Answer:
        """Send a POST once, and return its answer by the deadline, with an empty body: the body is not read.

        If it has to be `connected`, and the connection has ended meanwhile, nothing is sent. Raises CallError.
        """
        response = self._send("POST", url, deadline, may_connect=not connected, headers=headers, json=json)
        began_at = deadline.now()
        response.close()
        return Answer(response.status_code, response.headers, b"", began_at)

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()

    def _send(
        self, method: str, url: str, deadline: Deadline, *, may_connect: bool = True, **request: Any
    ) -> requests.Response:
        with call_within(deadline, _cause_of, may_connect=may_connect) as timeout:
            prepared = self._session.prepare_request(requests.Request(method, url, **request))
            # requests passes urllib3's timeout on unchanged, although its types allow only numbers.
            options: Any = {"timeout": timeout}
            return self._session.send(prepared, stream=True, allow_redirects=False, **options)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - no answer has one
        """Return None: otherwise `Session.send` reads a redirect's whole body, even if it does not follow it."""
        return None


class _BoundedAdapter(HTTPAdapter):
    def __init__(self, connections: int, ca_file: str | None) -> None:
        self._connections, self._ca_file = connections, ca_file
        super().__init__(max_retries=urllib3.Retry(total=False))

    def init_poolmanager(self, *_: object, **__: object) -> None:
        """Use the bounded pools instead of requests' own."""
        self.poolmanager = BoundedPools(connections=self._connections, ca_file=self._ca_file)

    def connect(self, request: requests.PreparedRequest) -> None:
        """Open the connection that this request would be sent on."""
        pool: Any = self.get_connection_with_tls_context(request, verify=True)
        pool.connect()

    def cert_verify(self, *_: object, **__: object) -> None:
        """Leave the pools' TLS context alone: requests would load certifi's authorities for each connection."""


def _cause_of(error: Exception) -> Cause:
    """Return the cause for an exception from requests, or from urllib3, some of which requests passes on."""
    match error:
        case requests.exceptions.SSLError():
            return Cause.TLS_FAILED
        case requests.exceptions.Timeout():
            return Cause.TIMEOUT
        case requests.exceptions.RequestException():
            return Cause.BROKEN_CONNECTION
        case _:
            return bounded.cause_of(error)
