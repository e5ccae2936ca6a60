"""What answers in the database's place may be no PostgreSQL, or not answer at all."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from handler.deadline import Deadline
from handler.errors import StoreError
from handler.net.secrets import Secrets
from handler.settings import Settings
from handler.store.session import Session

READY = b"Z\0\0\0\5I"
LOGGED_IN = b"R\0\0\0\x08\0\0\0\0" + READY
ONE_ROW = b"".join(
    kind + struct.pack("!i", len(body) + 4) + body
    for kind, body in [
        (b"T", b"\0\1n\0" + struct.pack("!ihihih", 0, 0, 23, 4, -1, 0)),
        (b"D", b"\0\1" + struct.pack("!i", 6) + b"canary"),
        (b"C", b"SELECT 1\0"),
    ]
)


@contextmanager
def database(*answers: bytes) -> Iterator[Session]:
    """Yield a session with a server that gives one answer for each message that it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in answers:
                connection.recv(65536)
                connection.sendall(answer)

    serving = threading.Thread(target=serve)
    serving.start()
    port = listener.getsockname()[1]
    environment = {"DATABASE_URL": f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable", "AWS_REGION": "eu-central-1"}
    session = Session(Settings.from_env(environment).database, Secrets(lambda *_: ""), lambda *_: "")
    yield session
    session.close()
    serving.join()
    listener.close()


@pytest.mark.parametrize(
    "answer", [ONE_ROW + READY, b"D\0\0\0\6\0\1", b"?\0\0\0\4", b"T\xff\xff\xff\xff", b"E\0\0\0\x0bCcanary"]
)
def test_an_answer_that_makes_no_sense_is_an_error_without_a_word_of_it(answer: bytes) -> None:
    with database(LOGGED_IN, answer) as session, pytest.raises(StoreError) as raised, session.transaction(Deadline(5)):
        pass
    assert "canary" not in str(raised.value)
