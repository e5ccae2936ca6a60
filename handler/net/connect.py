"""Connections to a name, by whichever of its addresses answers."""

import socket
import threading
from concurrent.futures import Future
from typing import Any

from handler.deadline import Deadline

_Addresses = list[tuple[Any, ...]]


def connected(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Return a socket that is connected to the first address of the name that answers; its timeout is the caller's.

    What is left of the time is shared among the addresses that have not been tried, so that one which swallows packets
    leaves some to the others.

    Raises OSError: gaierror if the name has no address, TimeoutError, or how the last address refused.
    """
    if deadline.over():
        raise TimeoutError("no time is left to connect")
    addresses = _looked_up(host, port, deadline)
    refusal = OSError("the name has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        left_s = deadline.remaining()
        if left_s <= 0.0:
            raise TimeoutError("no time is left to connect") from refusal
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(left_s / (len(addresses) - tried))
            sock.connect(address)
        except OSError as error:
            sock.close()
            refusal = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise refusal


def _looked_up(host: str, port: int, deadline: Deadline) -> _Addresses:
    """Return the name's addresses. A lookup obeys no timeout, so one that takes too long is left behind on its thread.

    Raises gaierror, TimeoutError, or UnicodeError for what is no name.
    """
    addresses: Future[_Addresses] = Future()

    def look_up() -> None:
        try:
            addresses.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            addresses.set_exception(error)

    looking = threading.Thread(target=look_up, daemon=True)
    looking.start()
    looking.join(deadline.remaining())
    return addresses.result(timeout=0.0)
