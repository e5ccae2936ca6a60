"""The server is or becomes a standby, or is set to read only: its rows may be history, so nothing is done."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from handler.errors import ReadOnlyError, StandbyError
from sandbox.fleet import Fleet
from sandbox.postgres import RECONCILER_ROLE, Database, PostgresServer
from tests.support.events import APPLY, DRY_RUN
from tests.support.postgres_proxy import PostgresProxy
from tests.support.stage import Snapshot, Stage, Stages, opened
from tests.support.standby import BINARIES, Standby, demote, promote

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
# Longer than any lease.
A_WHILE_S = 120.0


def hold(workspace_id: str) -> Any:
    return {"mode": "apply", "hold": {"workspace_ids": [workspace_id], "reason": "maintenance", "seconds": 60}}


def release(workspace_id: str) -> Any:
    return {"mode": "apply", "release": [workspace_id]}


@dataclass(frozen=True, slots=True)
class Pair:
    """A stage on the primary, the standby's copy of its database, and a name that leads to one of the two."""

    stage: Stage
    copy: Database
    name: PostgresProxy

    @property
    def settings(self) -> dict[str, str]:
        return {"DATABASE_URL": self.name.url, **self.stage.settings("control_plane"), **MOSTLY_DEAD}

    def cycle(self, event: Any = APPLY) -> Any:
        return self.stage.cycle(event, **self.settings)

    def assert_refused(self, event: Any = APPLY) -> None:
        before = Snapshot.of(self.stage.database)
        with pytest.raises(StandbyError, match="standby"):
            self.stage.invoke(event, **self.settings)
        assert Snapshot.of(self.stage.database) == before
        assert self.stage.platform.calls == []

    def fail_over(self, *_: object) -> None:
        """Make the name lead to the standby, and cut the connections to the primary."""
        self.name.lead_to(self.copy)
        self.name.cut()

    def fail_back(self) -> None:
        self.name.lead_to(self.stage.database)
        self.stage.fleet.age_everything(A_WHILE_S)


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    if not BINARIES.is_dir():
        pytest.skip("PostgreSQL 15 is not installed")
    with PostgresServer.start(BINARIES) as server:
        yield server


@pytest.fixture(scope="module")
def standby(primary: PostgresServer) -> Iterator[Standby]:
    primary.create_database().drop()  # makes the template, which the standby then has from the beginning
    with Standby.of(primary) as server:
        yield server


@pytest.fixture(scope="module")
def stages(primary: PostgresServer) -> Iterator[Stages]:
    with Stages(primary) as stages:
        yield stages


@pytest.fixture
def pair(primary: PostgresServer, standby: Standby, stages: Stages) -> Iterator[Pair]:
    with stages.borrowed() as stage, PostgresProxy(stage.database) as name:
        stage.add("running")
        copy = standby.database(stage.database)
        standby.catch_up(primary)
        yield Pair(stage, copy, name)
        stage.invoke.cold()


# --- the name leads to a standby ---


@pytest.mark.parametrize("event", [APPLY, DRY_RUN], ids=["apply", "dry run"])
def test_a_process_that_met_the_standby_goes_on_as_soon_as_the_name_leads_to_the_writer(pair: Pair, event: Any) -> None:
    """The connection to the standby stays open: only the process itself can drop it."""
    dead = pair.stage.add("terminated")
    pair.name.lead_to(pair.copy)
    pair.assert_refused(event)
    pair.name.lead_to(pair.stage.database)
    pair.cycle().assert_only_flipped({dead: "terminated"})


def test_a_connection_to_a_standby_is_made_anew_once(pair: Pair) -> None:
    pair.name.lead_to(pair.copy)
    pair.assert_refused()
    assert pair.name.connections == 2


def test_a_name_that_changes_between_two_connections_costs_no_cycle(pair: Pair) -> None:
    dead = pair.stage.add("terminated")
    pair.name.lead_to(pair.copy)
    pair.name.before(b"BEGIN", lambda: pair.name.lead_to(pair.stage.database))
    pair.cycle().assert_only_flipped({dead: "terminated"})
    assert pair.name.connections == 2


def test_a_hold_is_not_placed_on_a_standby(pair: Pair) -> None:
    workspace = pair.stage.add("running")
    pair.name.lead_to(pair.copy)
    pair.assert_refused(hold(workspace))


# --- it becomes one meanwhile ---


def before_the_flip_s_first_statement(pair: Pair, then: Callable[..., object]) -> None:
    pair.name.before(b"FOR NO KEY UPDATE", then)


def before_the_flip_s_write(pair: Pair, then: Callable[..., object]) -> None:
    pair.name.before(b"INTO public.structure_events", then)


def before_the_second_look(pair: Pair, then: Callable[..., object]) -> None:
    pair.stage.control_plane.script.before(then, nth=5)


def before_the_restarts(pair: Pair, then: Callable[..., object]) -> None:
    pair.name.before(b"SET closed_at = now(), outcome = 'cancelled'", then)


@pytest.mark.parametrize("moment", [before_the_second_look, before_the_flip_s_first_statement, before_the_flip_s_write])
def test_a_writer_that_is_replaced_by_a_standby_in_mid_cycle_ends_the_cycle_and_nothing_is_half_done(
    pair: Pair, moment: Callable[..., None]
) -> None:
    dead = pair.stage.add_all(3, "terminated")
    moment(pair, pair.fail_over)
    pair.assert_refused()
    pair.fail_back()
    pair.cycle().assert_only_flipped(dict.fromkeys(dead, "terminated"))


def test_a_writer_that_becomes_a_standby_is_not_tried_again_for_every_row(pair: Pair) -> None:
    """The server's trouble is the same for every row: one connection finds it, and one more confirms it."""
    pair.stage.add_all(20, "terminated")
    pair.name.before(b"FOR NO KEY UPDATE", pair.fail_over)
    pair.assert_refused()
    beside_the_lease_s_release = 2
    assert pair.name.connections <= 1 + 2 + beside_the_lease_s_release


def test_restarts_that_are_owed_are_neither_asked_for_nor_cancelled_once_the_writer_is_a_standby(pair: Pair) -> None:
    dead = pair.stage.add("terminated")
    before_the_restarts(pair, pair.fail_over)
    with pytest.raises(StandbyError):
        pair.cycle()
    assert pair.stage.platform.calls == []
    assert [one["closed_at"] for one in pair.stage.fleet.restarts(dead)] == [None]
    pair.fail_back()
    pair.cycle()
    assert [call.workspace_id for call in pair.stage.platform.calls] == [dead]


def test_a_standby_that_is_promoted_is_a_writer_and_a_writer_that_is_demoted_is_none(primary: PostgresServer) -> None:
    with opened(primary) as stage:
        running, dead = stage.add("running"), stage.add("terminated")
        with Standby.of(primary) as server:
            copy = server.database(stage.database)
            with pytest.raises(StandbyError):
                stage.invoke(DATABASE_URL=copy.url)
            promote(server)
            assert stage.invoke(DATABASE_URL=copy.url, **MOSTLY_DEAD)["flipped"] == 1
            fleet = Fleet(copy)
            assert fleet.statuses() == {running: "online", dead: "offline"}
            demote(server)
            with pytest.raises(StandbyError):
                stage.invoke(DATABASE_URL=copy.url, **MOSTLY_DEAD)
            promote(server)
            assert stage.invoke(DATABASE_URL=copy.url, **MOSTLY_DEAD)["outcome"] == "completed"
            stage.invoke.cold()


# --- it was told not to be written ---


WHERE = {
    "server": (
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "ALTER SYSTEM RESET default_transaction_read_only",
    ),
    "database": (
        "ALTER DATABASE {database} SET default_transaction_read_only = on",
        "ALTER DATABASE {database} RESET default_transaction_read_only",
    ),
    "role": (
        "ALTER ROLE {role} SET default_transaction_read_only = on",
        "ALTER ROLE {role} RESET default_transaction_read_only",
    ),
}


@contextmanager
def configured(pair: Pair, primary: PostgresServer, where: str) -> Iterator[None]:
    """Give new sessions the setting in the `with` block; the process gets a new session before and after."""
    names = {"database": pair.stage.database.name, "role": RECONCILER_ROLE}
    on, off = (statement.format(**names) for statement in WHERE[where])

    configure(pair, primary, on, "on")
    pair.stage.invoke.cold()
    try:
        yield
    finally:
        configure(pair, primary, off, "off")
        pair.stage.invoke.cold()


def configure(pair: Pair, primary: PostgresServer, statement: str, setting: str) -> None:
    """Run the statement, and wait until new sessions of the role have the setting."""
    primary.execute(statement)
    primary.execute("SELECT pg_reload_conf()")
    while setting != _new_session_has(pair, primary):
        pass


def _new_session_has(pair: Pair, primary: PostgresServer) -> str:
    with contextlib.closing(primary.connect(pair.stage.database.name, user=RECONCILER_ROLE)) as session:
        return str(session.run("SHOW default_transaction_read_only")[0][0])


@pytest.mark.parametrize("where", WHERE)
def test_what_is_configured_to_be_read_only_is_not_written_until_it_is_configured_otherwise(
    pair: Pair, primary: PostgresServer, where: str
) -> None:
    stage = pair.stage
    workspace, dead = stage.add("running"), stage.add("terminated")
    with configured(pair, primary, where):
        before = Snapshot.of(stage.database)
        for event in (APPLY, hold(workspace), release(workspace)):
            with pytest.raises(ReadOnlyError, match=r"default_transaction_read_only .* configured"):
                stage.invoke(event, **MOSTLY_DEAD)
        assert Snapshot.of(stage.database) == before
        report = stage.invoke(DRY_RUN, **MOSTLY_DEAD)
        assert [flip["workspace_id"] for flip in report["flips"]] == [dead]
    stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})


def test_a_server_that_is_told_so_in_mid_cycle_is_written_no_more(pair: Pair, primary: PostgresServer) -> None:
    """A session that is already open also notices, because each transaction asks."""
    dead = pair.stage.add("terminated")
    on, off = WHERE["server"]

    pair.stage.control_plane.script.before(lambda _: configure(pair, primary, on, "on"), nth=3)
    try:
        with pytest.raises(ReadOnlyError):
            pair.stage.invoke(**pair.stage.settings("control_plane"), **MOSTLY_DEAD)
        assert pair.stage.fleet.statuses()[dead] == "online"
    finally:
        configure(pair, primary, off, "off")
