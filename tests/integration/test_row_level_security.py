"""Row-level security: a row that a policy hides is never taken for one that is gone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from handler.deadline import Deadline
from handler.errors import RowSecurityError
from handler.install import install
from handler.net.secrets import Secrets
from handler.settings import database_from
from handler.store.session import Session
from sandbox.postgres import RECONCILER_ROLE, PostgresServer
from tests.support.events import APPLY, DRY_RUN
from tests.support.postgres_proxy import PostgresProxy
from tests.support.stage import Snapshot, Stage, opened

MOSTLY_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}
HOLD = {"hold": {"workspace_ids": ["00000000-0000-4000-8000-000000000001"], "reason": "its disk", "seconds": 60}}
EVENTS = {"apply": APPLY, "dry run": DRY_RUN, "hold": {"mode": "apply", **HOLD}}

ENABLE = "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
BOTH_TABLES = ("workspaces", "structure_events")
OWN_TABLES = (
    *("schema_version", "lease", "coverage", "shard_coverage", "doubts", "source_doubts", "restarts"),
    *("restart_stops", "holds"),
)


@pytest.fixture
def stage(postgres: PostgresServer) -> Iterator[Stage]:
    """A separate stage, whose database may be left in any state."""
    with opened(postgres) as stage:
        stage.add("running")
        yield stage


def enable(stage: Stage, *tables: str) -> None:
    for table in tables:
        stage.database.query(ENABLE.format(table=table))


def assert_refused(stage: Stage, event: Any = APPLY, **settings: str) -> str:
    """Fail unless the error names both remedies, and nothing has changed; return its message."""
    before = Snapshot.of(stage.database)
    with pytest.raises(RowSecurityError) as raised:
        stage.invoke(event, **MOSTLY_DEAD, **settings)
    assert Snapshot.of(stage.database) == before
    assert stage.platform.calls == []
    message = str(raised.value)
    assert "BYPASSRLS" in message
    assert "CREATE POLICY" in message
    return message


def owe_a_restart(stage: Stage) -> str:
    """Flip a workspace whose restart stays owed; return its id."""
    dead = stage.add("terminated")
    stage.cycle(PLATFORM_BASE_URL=None, PLATFORM_TOKEN=None, **MOSTLY_DEAD).assert_only_owed(dead)
    return dead


# --- it applies, and hides ---


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())
def test_without_a_policy_an_empty_fleet_is_an_error_and_no_restart_is_cancelled(stage: Stage, event: Any) -> None:
    owe_a_restart(stage)
    enable(stage, "workspaces")
    assert "SELECT on workspaces" in assert_refused(stage, event)


HIDING = {
    "some rows only": "FOR ALL TO {role} USING (tier > 0) WITH CHECK (true)",
    "true in effect, but nobody can tell": "FOR ALL TO {role} USING (id = id) WITH CHECK (true)",
    "another role's": "FOR ALL TO platform USING (true) WITH CHECK (true)",
    "nothing to write": "FOR SELECT TO {role} USING (true)",
    "what is written is checked": "FOR ALL TO {role} USING (true) WITH CHECK (tier > 0)",
    "a restrictive one": "AS RESTRICTIVE FOR SELECT TO {role} USING (true)",
}


@pytest.mark.parametrize("policy", HIDING.values(), ids=HIDING.keys())
def test_a_policy_that_may_hide_a_row_is_refused(stage: Stage, policy: str) -> None:
    stage.add("terminated")
    enable(stage, "workspaces")
    if "RESTRICTIVE" in policy:
        stage.database.query("CREATE POLICY everything ON workspaces USING (true)")
    stage.database.query(f"CREATE POLICY one ON workspaces {policy.format(role=RECONCILER_ROLE)}")
    assert "on workspaces" in assert_refused(stage)


def test_a_dry_run_needs_only_to_see_every_row(stage: Stage) -> None:
    dead = stage.add("terminated")
    enable(stage, *BOTH_TABLES)
    stage.database.query(f"CREATE POLICY one ON workspaces FOR SELECT TO {RECONCILER_ROLE} USING (true)")
    report = stage.invoke(DRY_RUN, **MOSTLY_DEAD)
    assert [flip["workspace_id"] for flip in report["flips"]] == [dead]
    assert "(INSERT on structure_events, UPDATE on workspaces)" in assert_refused(stage)


@pytest.mark.parametrize("table", OWN_TABLES)
def test_a_policy_on_a_table_of_our_own_is_refused_too(stage: Stage, table: str) -> None:
    """A hidden hold would exempt nothing."""
    stage.add("terminated")
    enable(stage, f"reconciler.{table}")
    assert f"SELECT on reconciler.{table}" in assert_refused(stage)


# --- it hides nothing ---


def through_one_policy(stage: Stage, _: PostgresServer) -> None:
    for table in BOTH_TABLES:
        stage.database.query(f"CREATE POLICY one ON {table} TO {RECONCILER_ROLE} USING (true)")


def through_one_policy_for_each_command(stage: Stage, _: PostgresServer) -> None:
    stage.database.query(f"CREATE POLICY one ON workspaces FOR SELECT TO {RECONCILER_ROLE} USING (true)")
    stage.database.query(f"CREATE POLICY two ON workspaces FOR UPDATE TO {RECONCILER_ROLE} USING (true)")
    stage.database.query(f"CREATE POLICY one ON structure_events FOR INSERT TO {RECONCILER_ROLE} WITH CHECK (true)")


def through_a_policy_beside_narrower_ones(stage: Stage, postgres: PostgresServer) -> None:
    through_one_policy(stage, postgres)
    stage.database.query("CREATE POLICY tenants ON workspaces USING (tier = 7)")
    stage.database.query("CREATE POLICY others ON workspaces AS RESTRICTIVE TO platform USING (false)")


def through_a_policy_for_everybody(stage: Stage, _: PostgresServer) -> None:
    for table in BOTH_TABLES:
        stage.database.query(f"CREATE POLICY one ON {table} USING (true) WITH CHECK (true)")


WAYS_THROUGH = (
    through_one_policy,
    through_one_policy_for_each_command,
    through_a_policy_beside_narrower_ones,
    through_a_policy_for_everybody,
)


@pytest.mark.parametrize("way", WAYS_THROUGH)
def test_with_policies_that_let_every_row_through_all_goes_on(
    stage: Stage, postgres: PostgresServer, way: Callable[[Stage, PostgresServer], None]
) -> None:
    dead = stage.add("terminated")
    enable(stage, *BOTH_TABLES)
    way(stage, postgres)
    stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})


def test_a_policy_for_a_role_that_ours_is_a_member_of_counts(stage: Stage, postgres: PostgresServer) -> None:
    dead = stage.add("terminated")
    enable(stage, *BOTH_TABLES)
    postgres.execute("CREATE ROLE readers")
    try:
        for table in BOTH_TABLES:
            stage.database.query(f"CREATE POLICY one ON {table} TO readers USING (true)")
        assert_refused(stage)
        postgres.execute(f"GRANT readers TO {RECONCILER_ROLE}")
        stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})
    finally:
        stage.invoke.cold()
        stage.database.drop()
        postgres.execute("DROP ROLE readers")


def test_a_role_that_no_policy_applies_to_sees_everything(stage: Stage, postgres: PostgresServer) -> None:
    dead = stage.add("terminated")
    enable(stage, *BOTH_TABLES)
    with bypassing(postgres):
        stage.cycle(**MOSTLY_DEAD).assert_only_flipped({dead: "terminated"})


@contextmanager
def bypassing(postgres: PostgresServer) -> Iterator[None]:
    postgres.execute(f"ALTER ROLE {RECONCILER_ROLE} BYPASSRLS")
    try:
        yield
    finally:
        postgres.execute(f"ALTER ROLE {RECONCILER_ROLE} NOBYPASSRLS")


# --- it changes meanwhile ---

MOMENTS = {
    "before the candidates": b"AND COALESCE(runtime, '') <> 'external'",
    "before the flip's re-read": b"FOR NO KEY UPDATE SKIP LOCKED",
}
# Once a transaction has read a table, whoever wants to change its policies has to wait until it is over.
CHANGES = {"enabled": "enabled", "a policy dropped": "dropped"}


def to_be_hidden(stage: Stage, change: str) -> Callable[[], object]:
    """Return a change that hides every row, and that a transaction does not expect."""
    if change == "enabled":
        return lambda: enable(stage, "workspaces")
    enable(stage, *BOTH_TABLES)
    for table in BOTH_TABLES:
        stage.database.query(f"CREATE POLICY one ON {table} USING (true)")
    return lambda: stage.database.query("DROP POLICY one ON workspaces")


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_in_the_middle_of_a_transaction_is_noticed_in_it(stage: Stage, moment: bytes, change: str) -> None:
    stage.add("terminated")
    with PostgresProxy(stage.database) as proxy:
        proxy.before(moment, to_be_hidden(stage, change))
        assert_refused(stage, DATABASE_URL=proxy.url)
        stage.invoke.cold()


@pytest.mark.parametrize("table", ["structure_events", "reconciler.lease"])
def test_what_is_enabled_right_before_a_flip_is_written_is_noticed(stage: Stage, table: str) -> None:
    """The triggers' functions run with row_security on, but the flip itself does not."""
    stage.add("terminated")
    with PostgresProxy(stage.database) as proxy:
        proxy.before(b"WITH asked AS MATERIALIZED", lambda: enable(stage, table))
        assert_refused(stage, DATABASE_URL=proxy.url)
        stage.invoke.cold()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_right_before_restarts_are_cancelled_cancels_none(stage: Stage, change: str) -> None:
    owe_a_restart(stage)
    with PostgresProxy(stage.database) as proxy:
        proxy.before(b"SET closed_at = now(), outcome = 'cancelled'", to_be_hidden(stage, change))
        assert_refused(stage, DATABASE_URL=proxy.url)
        stage.invoke.cold()


# --- the installer ---


def test_the_installer_is_not_concerned(stage: Stage) -> None:
    """It reads none of the platform's rows, so a policy that also applies to the owner hides nothing from it."""
    stage.database.query("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    session = Session(database_from({"DATABASE_URL": stage.database.owner_url}), Secrets(_nothing), _nothing)
    try:
        assert install(session, RECONCILER_ROLE, Deadline(30.0))["granted"] == []
    finally:
        session.close()


def test_what_is_hidden_from_the_installer_itself_is_named(stage: Stage) -> None:
    stage.database.query("ALTER TABLE reconciler.schema_version ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    session = Session(database_from({"DATABASE_URL": stage.database.owner_url}), Secrets(_nothing), _nothing)
    try:
        with pytest.raises(RowSecurityError, match=r'"schema_version" .*BYPASSRLS'):
            install(session, RECONCILER_ROLE, Deadline(30.0))
    finally:
        session.close()


def _nothing(*_: object) -> str:
    raise AssertionError("nothing is fetched here")
