"""When the database refuses every flip, a metric raises an alarm, and a log line says why."""

from collections.abc import Iterator

import pytest

from sandbox.postgres import RECONCILER_ROLE, PostgresServer
from tests.support.events import SCHEDULED
from tests.support.stage import Stage, opened
from tests.support.tools import ROOT

FAILED = "re-read or flip failed"
ALL_MAY_BE_DEAD = {"BREAKER_MAX_DEAD_FRACTION": "1"}

RAISING_TRIGGER = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION '{message}' USING DETAIL = 'a detail'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON structure_events EXECUTE FUNCTION refuse()
"""
# What somebody does to the platform's event log, the error that every flip meets then, and the cure.
REFUSALS = {
    "partitioned, without today's partition": (
        """
        ALTER TABLE structure_events RENAME TO structure_events_before;
        CREATE TABLE structure_events (LIKE structure_events_before INCLUDING DEFAULTS) PARTITION BY RANGE (created_at);
        CREATE TABLE structure_events_2020 PARTITION OF structure_events
            FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')
        """,
        ("23514", 'no partition of relation "structure_events" found for row'),
        "CREATE TABLE structure_events_others PARTITION OF structure_events DEFAULT",
    ),
    "a new column that must not be NULL": (
        "ALTER TABLE structure_events ADD COLUMN tenant TEXT NOT NULL",
        ("23502", 'null value in column "tenant" of relation "structure_events" violates not-null constraint'),
        "ALTER TABLE structure_events ALTER COLUMN tenant SET DEFAULT 'ours'",
    ),
    "a trigger that raises": (
        RAISING_TRIGGER.format(message="no events today"),
        ("P0001", "no events today"),
        "DROP TRIGGER refuse ON structure_events",
    ),
}


@pytest.fixture
def own(postgres: PostgresServer) -> Iterator[Stage]:
    """A stage whose tables the test may change."""
    with opened(postgres) as stage:
        stage.invoke.environment |= ALL_MAY_BE_DEAD
        yield stage


def change(stage: Stage, postgres: PostgresServer, sql: str) -> None:
    """Change the platform's tables, as its owner; a new one needs the rights of the old one."""
    for statement in sql.split(";\n"):
        stage.database.query(statement)
    postgres.psql(stage.database.owner_url, ROOT / "infra" / "grants.sql", role=RECONCILER_ROLE)


@pytest.mark.parametrize(("sql", "error", "cure"), REFUSALS.values(), ids=REFUSALS.keys())
def test_an_event_log_that_takes_no_events_is_measured_and_its_error_is_logged_once_a_cycle(
    own: Stage, postgres: PostgresServer, sql: str, error: tuple[str, str], cure: str
) -> None:
    change(own, postgres, sql)
    dead = own.add_all(4, "terminated")
    code, message = error
    for _ in range(2):
        outcome = own.cycle(SCHEDULED)
        outcome.assert_untouched(*dead)
        assert outcome.skips == {"reconfirm_error": 4}
        assert [line["FlipErrors"] for line in outcome.metrics()] == [[4]]
        (line,) = outcome.lines(FAILED)
        assert line["error"] == f"the database refused: {message} ({code})"
        assert (line["reason"], line["instance_id"]) == (code, own.instance_of(line["workspace_id"]))
        assert [(more["what"], more["reason"], more["count"]) for more in outcome.lines("more of the same")] == [
            (FAILED, code, 3)
        ]
    own.database.query(cure)
    outcome = own.cycle(SCHEDULED)
    assert outcome.flipped == set(dead)
    assert [line["FlipErrors"] for line in outcome.metrics()] == [[0]]


def test_hundreds_of_refusals_do_not_fill_the_log(own: Stage, postgres: PostgresServer) -> None:
    change(own, postgres, RAISING_TRIGGER.format(message="no events today"))
    own.add_all(250, "terminated")
    outcome = own.glance(SCHEDULED)
    assert len(outcome.lines(FAILED)) == 1
    skipped = outcome.lines("flip skipped")
    more = {line["what"]: line["count"] for line in outcome.lines("more of the same")}
    assert len(skipped) == 100
    assert sum(line["count"] for line in skipped) + more["flip skipped"] == 250
    assert more[FAILED] == 249
    assert outcome.skips == {"reconfirm_error": 250}
    assert len(outcome.log) < 110


def test_one_row_s_error_hides_no_other(own: Stage, postgres: PostgresServer) -> None:
    """The first error of each kind is logged: one row's own trouble comes first, and then the trouble of all."""
    odd, *others = own.add_all(3, "terminated")
    refuses = f"IF NEW.id = '{odd}' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '23503'; END IF; RETURN NEW"
    own.database.query(f"CREATE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refuses}; END $$")
    own.database.query("CREATE TRIGGER refuse BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION refuse_one()")
    change(own, postgres, RAISING_TRIGGER.format(message="no events today"))
    lines = {line["reason"]: line for line in own.cycle(SCHEDULED).lines(FAILED)}
    assert lines.keys() == {"23503", "P0001"}
    assert lines["23503"]["workspace_id"] == odd
    assert lines["P0001"]["workspace_id"] in others


def test_a_trigger_s_long_message_is_cut_short_and_its_detail_left_out(own: Stage, postgres: PostgresServer) -> None:
    change(own, postgres, RAISING_TRIGGER.format(message="ü" + "x" * 5_000))
    own.add("terminated")
    outcome = own.cycle(SCHEDULED)
    (line,) = outcome.lines(FAILED)
    assert line["error"].startswith("the database refused: \\xfcxxx")
    assert len(line["error"]) < 600
    assert "a detail" not in outcome.output


# --- triggers that keep an audit table ---

AUDIT = """
    CREATE TABLE audit (note text);
    GRANT INSERT ON audit TO {role};
    ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
    CREATE POLICY notes ON audit TO {role} WITH CHECK ({condition});
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.audit VALUES (NEW.id::text); RETURN NEW; END $$;
    CREATE TRIGGER note {time} UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION note()
"""


def audited(stage: Stage, time: str, condition: str) -> None:
    """Have every change of a workspace noted in a table with row-level security, under a condition."""
    for statement in AUDIT.format(role=RECONCILER_ROLE, time=time, condition=condition).split(";\n    "):
        stage.database.query(statement)


@pytest.mark.parametrize("time", ["BEFORE", "AFTER"])
def test_a_trigger_may_write_to_a_table_with_policies_of_its_own(own: Stage, time: str) -> None:
    audited(own, time, "true")
    dead = own.add("terminated")
    own.cycle().assert_only_flipped({dead: "terminated"})
    assert [row["note"] for row in own.database.query("SELECT note FROM audit")] == [dead]


@pytest.mark.parametrize("time", ["BEFORE", "AFTER"])
def test_a_policy_that_refuses_what_a_trigger_writes_costs_that_row_alone(own: Stage, time: str) -> None:
    odd, dead = own.add_all(2, "terminated")
    audited(own, time, f"note <> '{odd}'")
    outcome = own.cycle()
    outcome.assert_only_flipped({dead: "terminated"})
    assert outcome.skips == {"reconfirm_error": 1}
    (line,) = outcome.lines(FAILED)
    assert (line["workspace_id"], line["reason"]) == (odd, "42501")
    assert "run infra/grants.sql" not in line["error"]


def test_a_trigger_that_meets_a_read_only_server_costs_its_row_alone(own: Stage) -> None:
    """A trigger may write to another server (postgres_fdw), whose codes arrive here as if they were ours."""
    odd, dead = own.add_all(2, "terminated")
    refuses = f"IF NEW.id = '{odd}' THEN RAISE EXCEPTION 'read only' USING ERRCODE = '25006'; END IF; RETURN NEW"
    own.database.query(f"CREATE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refuses}; END $$")
    own.database.query("CREATE TRIGGER refuse BEFORE UPDATE ON workspaces FOR EACH ROW EXECUTE FUNCTION refuse_one()")
    outcome = own.cycle()
    outcome.assert_only_flipped({dead: "terminated"})
    assert outcome.skips == {"reconfirm_error": 1}
    (line,) = outcome.lines(FAILED)
    assert (line["workspace_id"], line["reason"]) == (odd, "25006")
    assert "standby" not in line["error"]
