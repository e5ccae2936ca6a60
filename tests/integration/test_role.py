"""The installer creates the reconciler's role, on a real PostgreSQL. A plain role `rds_iam` stands in for RDS's."""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pg8000.exceptions
import pytest

from handler.errors import RightsMissingError, SecretError, StoreError
from handler.install import lambda_handler
from handler.store.roles import verifier
from sandbox.ec2 import MotoEc2
from sandbox.lambda_context import LambdaContext
from sandbox.postgres import OWNER_ROLE, Database, PostgresServer
from tests.integration.test_other_servers import POSTGRES_15

ROOT = Path(__file__).parents[2]
PASSWORD = "a password that appears nowhere else: 8f2c"
NUMBERS = itertools.count(1)


@dataclass
class Site:
    """A platform's database, its server, and the installer with some login."""

    server: PostgresServer
    database: Database
    ec2: MotoEc2
    environment: pytest.MonkeyPatch
    role: str
    made: list[str] = field(default_factory=list)

    def login(self, name: str, attributes: str = "") -> str:
        """Create a role that logs in; return the URL for it."""
        self.server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw' {attributes}")
        self.made.append(name)
        return self.server.url(self.database.name, user=name, password="pw")

    def install(self, url: str, *, iam: bool = False, secret: dict[str, Any] | None = None) -> dict[str, Any]:
        """Invoke the installer as the template would configure it."""
        arn = self.ec2.put_secret(self.role, secret or {"username": self.role, "password": PASSWORD})
        settings = {"DATABASE_URL": url, "DATABASE_ROLE": self.role}
        settings |= {"DATABASE_ROLE_AUTH": "iam"} if iam else {"DATABASE_ROLE_SECRET_ARN": arn}
        for name in ("DATABASE_SECRET_ARN", "DATABASE_ROLE_AUTH", "DATABASE_ROLE_SECRET_ARN"):
            self.environment.delenv(name, raising=False)
        for name, value in (self.ec2.environment | settings).items():
            self.environment.setenv(name, value)
        return lambda_handler({"install": True}, LambdaContext())

    def may_log_in(self, password: str = PASSWORD) -> bool:
        """Try the role's login."""
        try:
            pg8000.native.Connection(
                self.role,
                *("127.0.0.1", self.database.name, self.server.port, password),
                ssl_context=False,
            ).close()
        except pg8000.exceptions.DatabaseError:
            return False
        return True

    def exists(self) -> bool:
        return bool(self.server.execute(f"SELECT FROM pg_roles WHERE rolname = '{self.role}'"))

    def stored_password(self) -> str | None:
        """Return what the server keeps of the role's password."""
        ((stored,),) = self.server.execute(
            f"SELECT rolpassword FROM pg_authid WHERE rolname = '{self.role}'"  # noqa: S608 - a name of this module's
        )
        return None if stored is None else str(stored)

    def is_iam_member(self) -> bool:
        return bool(
            self.server.execute(
                f"SELECT FROM pg_auth_members WHERE roleid = 'rds_iam'::regrole AND member = '{self.role}'::regrole"
            )
        )


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server, with RDS's role."""
    postgres.execute("CREATE ROLE rds_iam")
    yield postgres
    postgres.execute("DROP ROLE rds_iam")


@pytest.fixture(scope="module")
def server_15() -> Iterator[PostgresServer]:
    """PostgreSQL 15, where CREATEROLE alone is enough for every role that is no superuser."""
    if not POSTGRES_15.is_dir():
        pytest.skip("PostgreSQL 15 is not installed")
    with PostgresServer.start(POSTGRES_15) as server:
        server.execute("CREATE ROLE rds_iam")
        yield server


@pytest.fixture
def site(server: PostgresServer, ec2: MotoEc2, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from site_on(server, ec2, monkeypatch)


@pytest.fixture
def site_15(server_15: PostgresServer, ec2: MotoEc2, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from site_on(server_15, ec2, monkeypatch)


def site_on(server: PostgresServer, ec2: MotoEc2, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    database = server.create_bare_database()
    server.psql(database.owner_url, ROOT / "sandbox" / "platform.sql", status_type="enum")
    site = Site(server, database, ec2, monkeypatch, f"rec_{os.getpid()}_{next(NUMBERS)}")
    yield site
    database.drop()
    for role in (site.role, *site.made):
        server.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def master(site: Site) -> str:
    """The URL of a login like RDS's master user: it may create roles, owns no table, and is a member of who does."""
    url = site.login(f"master_{site.role}", "CREATEROLE NOINHERIT")
    site.server.execute(f"GRANT {OWNER_ROLE} TO master_{site.role}")
    site.server.execute(f"GRANT rds_iam TO master_{site.role} WITH ADMIN OPTION")
    return url


def assert_a_stranger_is_told_whose_the_tables_are(site: Site) -> None:
    """Fail unless a login that is no member of the tables' owner is told who that is, and makes nothing."""
    url = site.login(f"stranger_{site.role}", "CREATEROLE")
    site.server.execute(f"GRANT CREATE ON DATABASE {site.database.name} TO stranger_{site.role}")
    with pytest.raises(RightsMissingError, match=rf"they are {OWNER_ROLE}'s, of which it has to be a member"):
        site.install(url)
    assert not site.exists()


def test_the_role_is_created_with_the_password_in_its_secret(site: Site, master: str) -> None:
    report = site.install(master)
    assert report["login"] == "created"
    assert site.may_log_in()
    assert report["warnings"] == []
    json.dumps(report)


def test_the_second_time_nothing_changes(site: Site, master: str) -> None:
    site.install(master)
    before = site.stored_password()
    report = site.install(master)
    assert (report["login"], report["created"], report["granted"]) == ("unchanged", [], [])
    assert site.stored_password() == before


def test_with_iam_the_role_has_no_password_and_is_a_member_of_rds_s_role(site: Site, master: str) -> None:
    assert site.install(master, iam=True)["login"] == "created"
    assert site.is_iam_member()
    assert site.stored_password() is None
    assert site.install(master, iam=True)["login"] == "unchanged"


def test_a_role_of_the_installer_s_follows_its_secret_and_its_authentication(site: Site, master: str) -> None:
    """As after an undeploy, when the next deploy generates another secret."""
    site.install(master)
    other = {"username": site.role, "password": "another"}
    assert site.install(master, secret=other)["login"] == "changed"
    assert site.may_log_in("another")
    assert site.install(master, iam=True)["login"] == "changed"
    assert site.is_iam_member()
    assert not site.may_log_in("another")
    assert site.install(master)["login"] == "changed"
    assert site.may_log_in()
    assert not site.is_iam_member()


@pytest.mark.parametrize("iam", [True, False])
def test_a_role_that_somebody_else_created_keeps_its_login(site: Site, master: str, iam: bool) -> None:
    """Other programs may log in with it: DatabaseRole may name the platform's own role by mistake."""
    site.server.execute(f"CREATE ROLE {site.role} LOGIN PASSWORD 'somebody''s'")
    with pytest.raises(StoreError, match=f"the role {site.role} cannot log in .*, and is left as it is"):
        site.install(master, iam=iam)
    assert site.may_log_in("somebody's")
    assert not site.is_iam_member()
    site.server.execute(f"COMMENT ON ROLE {site.role} IS 'instance-state-reconciler'")
    site.server.execute(f"GRANT {site.role} TO master_{site.role} WITH ADMIN OPTION")
    assert site.install(master, iam=iam)["login"] == "changed"


def test_a_server_without_rds_s_role_is_told_so_and_no_role_is_left(site: Site, master: str) -> None:
    site.server.execute("ALTER ROLE rds_iam RENAME TO rds_iam_elsewhere")
    try:
        with pytest.raises(StoreError, match="the server has no role rds_iam: IAM authentication needs RDS or Aurora"):
            site.install(master, iam=True)
    finally:
        site.server.execute("ALTER ROLE rds_iam_elsewhere RENAME TO rds_iam")
    assert not site.exists()


def test_on_postgresql_15_the_role_is_created_and_follows_its_authentication(site_15: Site) -> None:
    url = site_15.login(f"master_{site_15.role}", "CREATEROLE NOINHERIT")
    site_15.server.execute(f"GRANT {OWNER_ROLE} TO master_{site_15.role}")
    assert site_15.install(url)["login"] == "created"
    assert site_15.may_log_in()
    report = site_15.install(url)
    assert (report["login"], report["created"], report["granted"]) == ("unchanged", [], [])
    assert site_15.install(url, iam=True)["login"] == "changed"
    assert site_15.is_iam_member()
    assert site_15.install(url, iam=True)["login"] == "unchanged"
    assert site_15.install(url)["login"] == "changed"
    assert site_15.may_log_in()


def test_on_postgresql_15_a_login_that_is_no_member_of_the_owner_is_told_whose_the_tables_are(site_15: Site) -> None:
    assert_a_stranger_is_told_whose_the_tables_are(site_15)


def test_a_role_with_other_rights_keeps_them_and_the_report_warns(site: Site, master: str) -> None:
    site.server.execute(f"CREATE ROLE {site.role} LOGIN CREATEDB PASSWORD '{PASSWORD}'")
    report = site.install(master)
    assert report["login"] == "unchanged"
    assert any("may create databases" in warning for warning in report["warnings"])


def test_a_role_that_can_log_in_already_needs_no_right_to_create_roles(site: Site) -> None:
    site.server.execute(f"CREATE ROLE {site.role} LOGIN PASSWORD '{PASSWORD}'")
    report = site.install(site.database.owner_url)
    assert report["login"] == "unchanged"
    assert "UPDATE (status) on workspaces" in report["granted"]


def test_a_login_that_may_not_create_roles_is_told_so_and_nothing_is_installed(site: Site) -> None:
    with pytest.raises(RightsMissingError, match=r"the role .*: permission denied to create role: .* \(CREATEROLE\)"):
        site.install(site.database.owner_url)
    assert not site.exists()


def test_a_login_that_may_not_grant_rds_iam_is_told_so_and_no_role_is_left(site: Site) -> None:
    url = site.login(f"creator_{site.role}", "CREATEROLE")
    site.server.execute(f"GRANT {OWNER_ROLE} TO creator_{site.role}")
    with pytest.raises(RightsMissingError, match="ADMIN OPTION on rds_iam"):
        site.install(url, iam=True)
    assert not site.exists()


def test_the_password_reaches_no_statement(site: Site, master: str) -> None:
    """Not even a server that logs every statement sees it."""
    name = site.database.name
    site.server.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")
    site.install(master)
    log = (site.server._directory / "log").read_text(errors="replace")  # noqa: SLF001
    assert f'CREATE ROLE "{site.role}" LOGIN PASSWORD' in log
    assert PASSWORD not in log


def test_what_the_installer_makes_belongs_to_the_owner_of_the_tables(site: Site, master: str) -> None:
    site.install(master)
    rows = site.database.query(
        "SELECT DISTINCT relowner::regrole::text AS owner FROM pg_class"
        " WHERE relnamespace = 'reconciler'::regnamespace UNION SELECT nspowner::regrole::text FROM pg_namespace"
        " WHERE nspname = 'reconciler'"
    )
    assert rows == [{"owner": OWNER_ROLE}]


def test_the_owner_need_not_be_allowed_to_create_schemas_if_the_master_is(site: Site, master: str) -> None:
    site.server.execute(f"ALTER DATABASE {site.database.name} OWNER TO master_{site.role}")
    assert "reconciler.lease" in site.install(master)["created"]


def test_a_login_that_is_no_member_of_the_owner_is_told_whose_the_tables_are(site: Site) -> None:
    assert_a_stranger_is_told_whose_the_tables_are(site)


def test_the_reconciler_s_role_cannot_be_the_installer_s_own(site: Site) -> None:
    url = site.login(site.role, "CREATEROLE")
    with pytest.raises(StoreError, match="is the installer's own login"):
        site.install(url)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ({"username": "somebody", "password": "x"}, "its username is not the role "),
        ({"password": "x"}, "its username is not the role "),
        ({"username": True, "password": "x"}, "the field username of the secret is not a string"),
    ],
)
def test_a_secret_of_somebody_else_s_is_refused(site: Site, master: str, secret: dict[str, Any], said: str) -> None:
    with pytest.raises(SecretError, match=f"DATABASE_ROLE_SECRET_ARN: {said}"):
        site.install(master, secret=secret)


def test_a_secret_without_a_password_is_refused(site: Site, master: str) -> None:
    with pytest.raises(SecretError, match="DATABASE_ROLE_SECRET_ARN: the secret has no password"):
        site.install(master, secret={"username": site.role})


def test_a_password_that_scram_forbids_is_refused_without_being_shown() -> None:
    with pytest.raises(StoreError, match="characters that no password may have") as refusal:
        verifier("\u0007bell")
    assert "bell" not in str(refusal.value)
