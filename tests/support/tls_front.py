"""A server with TLS: a proxy that speaks TLS, in front of PostgreSQL or a web server, which do not.

The embedded server is built without OpenSSL. To a client, the front looks like PostgreSQL: it agrees to the request for
TLS, shows a certificate, and passes on everything else.
https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
"""

import contextlib
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from typing import Self

from sandbox.certificates import Certificate

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_CHUNK = 65536


class TlsFront:
    """Listens on 127.0.0.1 and `port` within its `with` block, and passes on to the server on port `behind`.

    That is a PostgreSQL, or with `https` a web server.
    """

    def __init__(self, certificate: Certificate, behind: int, *, https: bool = False) -> None:
        self._behind = behind
        self._https = https
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with tempfile.NamedTemporaryFile() as file:  # the ssl module reads from files only
            Path(file.name).write_bytes(certificate.certificate + certificate.key)
            self._context.load_cert_chain(file.name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:  # a client that refuses the certificate hangs up
            if not self._https:
                if plain.recv(len(_SSL_REQUEST), socket.MSG_WAITALL) != _SSL_REQUEST:
                    return
                plain.sendall(b"S")
            with (
                self._context.wrap_socket(plain, server_side=True) as client,
                socket.create_connection(("127.0.0.1", self._behind)) as server,
            ):
                answering = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
                answering.start()
                _pass_on(client, server)
                answering.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until one side hangs up, and then hang up on the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
