"""The database roles behind a deploy: the reconciler's own, which the installer creates, and the owner it acts as."""

import base64
from collections.abc import Callable
from dataclasses import dataclass

import scramp

from handler.errors import RightsMissingError, StoreError
from handler.store.transaction import Transaction

# RDS lets members of this role log in with IAM tokens, and with nothing else.
IAM_ROLE = "rds_iam"
# By this comment the installer knows a role that it created. It changes the login of no other.
COMMENT = "instance-state-reconciler"

# What became of the role's login.
CREATED, CHANGED, UNCHANGED = "created", "changed", "unchanged"


@dataclass(frozen=True, slots=True)
class RoleLogin:
    """How the reconciler's role shall log in: with this password, or with IAM tokens if it is None.

    `works` tries that password.
    """

    password: str | None
    works: Callable[[], bool]

    def __repr__(self) -> str:
        """Leave the password out."""
        return f"RoleLogin(iam={self.password is None})"


def require_role(transaction: Transaction, role: str) -> None:
    """Raise StoreError unless the role exists."""
    if not transaction.run("SELECT FROM pg_roles WHERE rolname = :role", role=role):
        raise StoreError(f"the database has no role {role}: create it, with LOGIN")


def settle_login(transaction: Transaction, role: str, login: RoleLogin) -> str:
    """Create the role, or give it its login if it is ours and has another. Returns what became of it.

    A role that somebody else created is never changed: other programs may log in with it. Raises StoreError.
    """
    rows = transaction.run(
        """
        SELECT rolcanlogin, COALESCE(shobj_description(oid, 'pg_authid'), '') = :comment, rolname = session_user,
               EXISTS (SELECT FROM pg_auth_members JOIN pg_roles AS granted ON granted.oid = roleid
                       WHERE member = pg_roles.oid AND granted.rolname = :iam)
        FROM pg_roles WHERE rolname = :role
        """,
        role=role,
        comment=COMMENT,
        iam=IAM_ROLE,
    )
    if not rows:
        _create(transaction, role, login)
        return CREATED
    ((may_log_in, is_ours, is_installer, by_iam),) = rows
    if is_installer:
        raise StoreError(f"the role {role} is the installer's own login: the reconciler needs a role of its own")
    if may_log_in and by_iam == (login.password is None) and (login.password is None or login.works()):
        return UNCHANGED
    if not is_ours:
        wanted = f"as a member of {IAM_ROLE}" if login.password is None else "with the password in its secret"
        raise StoreError(
            f"the role {role} cannot log in {wanted}, and is left as it is, because the installer did not create it:"
            f" correct it, choose another role, or say that it is the reconciler's alone:"
            f" COMMENT ON ROLE {quoted(role)} IS '{COMMENT}'"
        )
    _change(transaction, role, login, by_iam=by_iam)
    return CHANGED


def _create(transaction: Transaction, role: str, login: RoleLogin) -> None:
    why = "create it (CREATEROLE)"
    if login.password is None:
        _run(transaction, role, why, f"CREATE ROLE {quoted(role)} LOGIN")
        _grant_iam(transaction, role)
    else:
        _run(transaction, role, why, f"CREATE ROLE {quoted(role)} LOGIN PASSWORD '{verifier(login.password)}'")
    _run(transaction, role, "comment on it", f"COMMENT ON ROLE {quoted(role)} IS '{COMMENT}'")


def _change(transaction: Transaction, role: str, login: RoleLogin, *, by_iam: bool) -> None:
    why = "change it (CREATEROLE, and from PostgreSQL 16 on ADMIN OPTION on the role)"
    if login.password is None:
        _run(transaction, role, why, f"ALTER ROLE {quoted(role)} LOGIN PASSWORD NULL")
        if not by_iam:
            _grant_iam(transaction, role)
        return
    if by_iam:
        _run(transaction, role, why, f"REVOKE {IAM_ROLE} FROM {quoted(role)}")
    _run(transaction, role, why, f"ALTER ROLE {quoted(role)} LOGIN PASSWORD '{verifier(login.password)}'")


def _grant_iam(transaction: Transaction, role: str) -> None:
    if not transaction.run("SELECT FROM pg_roles WHERE rolname = :iam", iam=IAM_ROLE):
        raise StoreError(f"the server has no role {IAM_ROLE}: IAM authentication needs RDS or Aurora")
    why = f"let it log in with IAM (ADMIN OPTION on {IAM_ROLE}, which RDS's master user has)"
    _run(transaction, role, why, f"GRANT {IAM_ROLE} TO {quoted(role)}")


def _run(transaction: Transaction, role: str, why: str, statement: str) -> None:
    try:
        transaction.run(statement)
    except RightsMissingError as error:
        raise RightsMissingError(
            f"the role {role}: {error.server_message}: the installer's login has to have the right to {why}"
        ) from error


def verifier(password: str) -> str:
    """Return what PostgreSQL stores in place of a password, so that the password itself appears in no log of its.

    https://www.postgresql.org/docs/current/catalog-pg-authid.html
    """
    try:
        salt, stored_key, server_key, iterations = scramp.ScramMechanism("SCRAM-SHA-256").make_auth_info(password)
    except scramp.ScramException:
        raise StoreError("the password for the role has characters that no password may have (RFC 4013)") from None
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def act_as_owner(transaction: Transaction) -> str | None:
    """Act as the owner of the platform's tables, if the login is only a member of that role.

    A login that inherits the owner's rights, or is a superuser, goes on as itself. So does one that may not act as the
    owner; then this returns the owner's name, for the error that is likely to follow.
    """
    rows = transaction.run(
        """
        SELECT owner.rolname::text, pg_has_role(owner.oid, 'USAGE'),
               pg_has_role(owner.oid, CASE WHEN current_setting('server_version_num')::integer >= 160000
                                           THEN 'SET' ELSE 'MEMBER' END),
               has_database_privilege(owner.oid, current_database(), 'CREATE'),
               has_database_privilege(current_database(), 'CREATE'), to_regnamespace('reconciler') IS NOT NULL
        FROM pg_class JOIN pg_roles AS owner ON owner.oid = relowner
        WHERE pg_class.oid = to_regclass(:table)
        """,
        table=transaction.located("workspaces"),
    )
    if not rows:
        return None  # infra/grants.sql says so
    ((owner, inherits, may_act, may_create, login_may_create, has_schema),) = rows
    if inherits:
        return None
    if not may_act:
        return str(owner)
    if not has_schema and login_may_create and not may_create:
        transaction.run(f"CREATE SCHEMA reconciler AUTHORIZATION {quoted(owner)}")
    transaction.run(f"SET LOCAL ROLE {quoted(owner)}")
    return None


def quoted(name: str) -> str:
    """Quote an identifier, as psql's `:"name"` does."""
    return '"' + name.replace('"', '""') + '"'
