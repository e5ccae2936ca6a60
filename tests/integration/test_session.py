"""A session with an error is never used again; a value that cannot be read affects only its own row."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from handler import process
from handler.deadline import Deadline
from handler.errors import ConnectionLostError, ReconcilerError, StoreError
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store.session import Session, Transaction
from sandbox.control_plane import ControlPlane
from sandbox.fleet import Fleet
from sandbox.limited_ec2 import LimitedEc2
from sandbox.postgres import OWNER_ROLE, RECONCILER_ROLE, Database, PostgresServer
from tests.support.events import DRY_RUN
from tests.support.invoke import Invoke

ROOT = Path(__file__).parents[2]
LONG_S = 30.0
MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}


def at_the_end(begin: str) -> str:
    return f"{begin}; SELECT pg_catalog.pg_sleep(60)"


def at_the_start(begin: str) -> str:
    """While a timeout that somebody left in the session still counts."""
    return f"SELECT pg_catalog.pg_sleep(60); {begin}"


def in_between(begin: str) -> str:
    statement = "SET LOCAL lock_timeout"
    assert statement in begin
    return begin.replace(statement, f"SELECT pg_catalog.pg_sleep(0.3); {statement}")


class SlowToBegin(Session):
    """Makes the server slow at beginning a transaction, for a given number of times."""

    slow = 0

    def __init__(self, *arguments: Any, where: Callable[[str], str] = at_the_end) -> None:
        super().__init__(*arguments)
        self.where = where

    def _run(self, deadline: Deadline, sql: str, **parameters: Any) -> list[Any]:
        if self.slow and sql.lstrip().startswith("BEGIN"):
            self.slow -= 1
            sql = self.where(sql)
        return super()._run(deadline, sql, **parameters)


@pytest.fixture
def session(database: Database) -> Iterator[SlowToBegin]:
    """A warm session."""
    session = SlowToBegin(database_from({"DATABASE_URL": database.url}), Secrets(_nothing), _nothing)
    assert_works(session)
    yield session
    session.close()


def _nothing(*_: object) -> str:
    raise AssertionError("nothing is fetched here")


def assert_works(session: Session) -> None:
    """Fail unless each statement gets its own answer."""
    for number in range(3):
        with session.transaction(Deadline(LONG_S)) as transaction:
            assert transaction.run("SELECT CAST(:number AS int)", number=number) == [[number]]
            assert transaction.run("SELECT 'a'") == [["a"]]


def test_a_begin_that_runs_out_of_time_costs_its_transaction_and_no_later_one(session: SlowToBegin) -> None:
    session.slow = 1
    with pytest.raises(StoreError), session.transaction(Deadline(0.1)):
        pytest.fail("it has begun")
    assert_works(session)


def test_a_begin_that_somebody_cancels_is_tried_once_more_on_another_connection(
    session: SlowToBegin, database: Database
) -> None:
    cancelled = session._connection  # noqa: SLF001 - it must not be used again
    session.slow = 1
    cancel_beginning(database)
    assert_works(session)
    assert session._connection is not cancelled  # noqa: SLF001 - likewise


def cancel_beginning(database: Database) -> None:
    """Cancel the statement as soon as the server runs it."""
    cancel = f"""
        SELECT pg_cancel_backend(pid) FROM pg_stat_activity
        WHERE datname = '{database.name}' AND wait_event = 'PgSleep'
    """  # noqa: S608 - a name from the sandbox

    def until_it_is_there() -> None:
        while not database._server.execute(cancel):  # noqa: SLF001 - the owner may not
            pass

    threading.Thread(target=until_it_is_there, daemon=True).start()


@pytest.fixture
def short(database: Database) -> Iterator[None]:
    """Every session begins with a short timeout, as if somebody had left it in each of a pooler's."""
    role = f"ALTER ROLE {RECONCILER_ROLE} IN DATABASE {database.name}"
    database._server.execute(f"{role} SET statement_timeout = '200ms'")  # noqa: SLF001 - the owner may not
    yield
    database._server.execute(f"{role} RESET statement_timeout")  # noqa: SLF001 - likewise


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("slow", [1, 2])
def test_a_begin_that_a_timeout_in_the_session_cancels_is_tried_once_more(session: SlowToBegin, slow: int) -> None:
    session.close()
    session.slow, session.where = slow, at_the_start
    with contextlib.nullcontext() if slow == 1 else pytest.raises(StoreError, match="57014"):
        assert_works(session)
    assert session.slow == 0
    assert_works(session)


@pytest.mark.usefixtures("short")
def test_a_timeout_in_the_session_ends_with_the_first_statements_of_a_begin(session: SlowToBegin) -> None:
    session.close()
    session.slow, session.where = 2, in_between
    assert_works(session)
    assert session.slow == 0


def test_a_cycle_whose_begin_was_cancelled_costs_the_warm_process_no_later_cycle(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LimitedEc2() as ec2:
        fleet = Fleet(database)
        (dead,) = fleet.add_all(ec2.add(1))
        ec2.set_state(str(fleet.row(dead)["instance_id"]), "terminated")
        invoke = Invoke({**ec2.environment, **MOSTLY_DEAD, "DATABASE_URL": database.url})
        monkeypatch.setattr(process, "Session", SlowToBegin)
        invoke(DRY_RUN)
        monkeypatch.setattr(SlowToBegin, "slow", 1)
        with pytest.raises(ReconcilerError):
            invoke.with_remaining(process.LAMBDA_RESERVE_SECONDS + 0.2)()
        assert invoke()["flipped"] == 1
        invoke.cold()


def test_an_error_that_somebody_swallows_ends_the_session_and_commits_nothing(session: SlowToBegin) -> None:
    with pytest.raises(ConnectionLostError), session.transaction(Deadline(LONG_S)) as transaction:
        _go_on_after_an_error(transaction)
    assert_works(session)


def _go_on_after_an_error(transaction: Transaction) -> None:
    with contextlib.suppress(StoreError):
        transaction.run("SELECT 1 / 0")
    transaction.run("SELECT 1")


def test_a_value_that_is_no_text_leaves_no_answer_behind_that_the_next_question_would_get(session: SlowToBegin) -> None:
    with pytest.raises(StoreError, match="no text"), session.transaction(Deadline(LONG_S)) as transaction:
        transaction.run("SELECT CAST(:text AS text)", text="\ud800")
    assert_works(session)


def test_a_statement_with_parameters_takes_one_round_trip(
    session: SlowToBegin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a database in another zone each costs milliseconds, and a flip holds its locks meanwhile."""
    waits: list[object] = []
    wait = pg8000.native.Connection.handle_messages

    def count(connection: Any, context: object) -> None:
        waits.append(context)
        wait(connection, context)

    with session.transaction(Deadline(LONG_S)) as transaction:
        monkeypatch.setattr(pg8000.native.Connection, "handle_messages", count)
        assert transaction.run("SELECT CAST(:one AS integer) + 1", one=1) == [[2]]
        assert len(waits) == 1
        with pytest.raises(StoreError, match="22012"):
            transaction.run("SELECT 1 / CAST(:zero AS integer)", zero=0)
        assert len(waits) == 2
        transaction.run("ROLLBACK")


def test_an_interrupt_in_the_middle_of_an_answer_leaves_nothing_behind_either(
    session: SlowToBegin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session._connection, "send_BIND", _interrupt)  # noqa: SLF001 - at that very moment
    with pytest.raises(_Interrupt), session.transaction(Deadline(LONG_S)) as transaction:
        transaction.run("SELECT CAST(:number AS int)", number=7)
    assert_works(session)


class _Interrupt(BaseException):
    """No KeyboardInterrupt, which would end pytest if it came a second time."""


def _interrupt(*_: object) -> None:
    raise _Interrupt


# --- encodings ---

NUMBERS = itertools.count(1)
# A byte that is no text in UTF-8, and one that WIN1252 has no character for.
UNDECODABLE = {"SQL_ASCII": r"E'i-\xff'", "WIN1252": r"E'i-\x81'"}


@pytest.fixture
def encoded(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database in the given encoding."""
    name = f"encoded_{next(NUMBERS)}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{request.param}' OWNER {OWNER_ROLE}")
    database = Database(name, postgres.url(name), postgres.url(name, user=OWNER_ROLE), postgres)
    postgres.psql(database.owner_url, ROOT / "sandbox" / "platform.sql", status_type="text")
    postgres.psql(database.owner_url, ROOT / "infra" / "schema.sql")
    postgres.psql(database.owner_url, ROOT / "infra" / "grants.sql", role=RECONCILER_ROLE)
    yield database
    database.drop()


@pytest.mark.parametrize("probe", ["ec2", "control_plane"])
@pytest.mark.parametrize("encoded", UNDECODABLE, indirect=True)
def test_an_instance_id_that_cannot_be_decoded_costs_its_row_alone(
    encoded: Database, probe: str, request: pytest.FixtureRequest
) -> None:
    unreadable = UNDECODABLE[request.node.callspec.params["encoded"]]
    with LimitedEc2() as ec2, ControlPlane(ec2.state_of) as control_plane:
        fleet = Fleet(encoded)
        running, dead, broken = fleet.add_all([*ec2.add(2), "i-00000000000000bad"])
        ec2.set_state(str(fleet.row(dead)["instance_id"]), "terminated")
        with contextlib.closing(encoded.connect()) as owner:
            owner.run("SET client_encoding = 'SQL_ASCII'")
            owner.run(f"UPDATE workspaces SET instance_id = {unreadable} WHERE id = '{broken}'")  # noqa: S608
        settings = control_plane.environment if probe == "control_plane" else {}
        invoke = Invoke({**ec2.environment, **settings, **MOSTLY_DEAD, "DATABASE_URL": encoded.url})
        report = invoke()
        assert (report["candidates"], report["unknown"], report["flipped"]) == (3, 1, 1)
        assert fleet.statuses() == {running: "online", dead: "offline", broken: "online"}
        invoke.cold()
