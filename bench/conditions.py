"""Production's conditions: HTTPS, a database in another zone, and a third of a processor."""

import contextlib
import functools
import os
import queue
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import certifi

from bench.figures import LAMBDA_SHARE
from sandbox.certificates import Authority

# Between two zones of a Region.
ZONE_DISTANCE_S = 0.001
_PERIOD_S = 0.1
_LOOK_S = 0.002
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Https:
    """Files (PEM) for HTTPS: a server's key and certificate; the system's authorities, and the one that signed it."""

    server: str
    authorities: str

    def environment(self) -> dict[str, str]:
        """Return the variables that have a process trust all the authorities, and load them as it would in production.

        The second one is for botocore, which has authorities of its own otherwise.
        """
        return {"SSL_CERT_FILE": self.authorities, "AWS_CA_BUNDLE": self.authorities}

    def context(self) -> ssl.SSLContext:
        """Return what a server speaks HTTPS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        return context


@functools.cache
def https() -> Https:
    """Return the files that the whole bench uses. They last as long as this process."""
    authority = Authority()
    certificate = authority.issue(["127.0.0.1"])
    system = Path(ssl.get_default_verify_paths().cafile or certifi.where())
    server, authorities = Path(_files().name, "server.pem"), Path(_files().name, "authorities.pem")
    server.write_bytes(certificate.certificate + certificate.key)
    authorities.write_bytes(system.read_bytes() + authority.certificate)
    return Https(str(server), str(authorities))


@functools.cache
def _files() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="bench-https-")


@contextmanager
def limited(pid: int, share: float = LAMBDA_SHARE) -> Iterator[None]:
    """Let a process use only this share of a processor while the `with` block lasts.

    It is stopped for the rest of each 100 ms in which it has used up its part, as Linux does with a quota.
    """
    ended = threading.Event()

    def watch() -> None:
        clock = (~pid << 3) | 2  # the clock of another process's CPU time: clock_getcpuclockid(3)
        with contextlib.suppress(ProcessLookupError, OSError):
            while not ended.is_set():
                ends_at = time.monotonic() + _PERIOD_S
                used_up_at = time.clock_gettime(clock) + share * _PERIOD_S
                while time.monotonic() < ends_at and not ended.is_set():
                    if time.clock_gettime(clock) >= used_up_at:
                        os.kill(pid, signal.SIGSTOP)
                        time.sleep(max(0.0, ends_at - time.monotonic()))
                        break
                    time.sleep(_LOOK_S)
                os.kill(pid, signal.SIGCONT)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Distance:
    """A way to a server that takes some milliseconds in each direction. Made in a process of its own."""

    def __init__(self, latency_s: float) -> None:
        """Delay every byte by `latency_s` seconds each way."""
        self._latency_s = latency_s

    def to(self, url: str) -> str:
        """Return the address at which the server of a `DATABASE_URL` can be reached the long way."""
        address = urlsplit(url)
        listener = socket.create_server(("127.0.0.1", 0))
        behind = (address.hostname or "", address.port or 0)
        threading.Thread(target=self._accept, args=(listener, behind), daemon=True).start()
        return url.replace(f"{address.hostname}:{address.port}", f"127.0.0.1:{listener.getsockname()[1]}")

    def _accept(self, listener: socket.socket, behind: tuple[str, int]) -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(behind)
            for source, target in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                on_the_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=self._receive, args=(source, on_the_way), daemon=True).start()
                threading.Thread(target=self._deliver, args=(target, on_the_way), daemon=True).start()

    def _receive(self, source: socket.socket, on_the_way: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        data = b"?"
        while data:
            try:
                data = source.recv(_CHUNK)
            except OSError:
                data = b""
            on_the_way.put((time.monotonic() + self._latency_s, data))

    @staticmethod
    def _deliver(target: socket.socket, on_the_way: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        while True:
            arrives_at, data = on_the_way.get()
            time.sleep(max(0.0, arrives_at - time.monotonic()))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return
