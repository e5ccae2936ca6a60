"""The environment, read and checked once: frozen values, or one error that names the variable."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from handler.domain.policy import AbsencePolicy, BreakerPolicy, CrashLoopPolicy, RestartPolicy
from handler.errors import SettingsError, shown
from handler.request import APPLY, DRY_RUN
from handler.targets import VARIABLE as EC2_TARGETS
from handler.targets import Target, targets_from

EC2 = "ec2"
CONTROL_PLANE = "control_plane"
PASSWORD = "password"  # noqa: S105 - the word that the setting takes, not a password
IAM = "iam"

# https://www.postgresql.org/docs/current/libpq-ssl.html, weakest first
SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ENCRYPTED = ("require", "verify-ca", "verify-full")

# Each check has a connection, and Lambda gives a process 1,024 descriptors.
MOST_CHECKS_AT_ONCE = 900

_SECRET_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@!-]+")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_ROLE_BYTES = 63  # PostgreSQL cuts longer names off
# GRANT treats these as keywords, even in quotes: "public" would be everybody.
_RESERVED_ROLES = ("public", "none")
A_ROLE = f"the name of a database role, of 1 to {_ROLE_BYTES} bytes"
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,2})?")
# CloudFormation passes a Number on as it was typed, such as 64.0.
_WHOLE_NUMBER = re.compile(r"([0-9]{1,15})(?:\.0{1,15})?")


@dataclass(frozen=True, slots=True)
class Server:
    """Where the database is. What is None here has to be in the secret."""

    host: str | None
    port: int
    name: str | None


@dataclass(frozen=True, slots=True)
class Database:
    """How to reach the platform's database: with the login given here, or with one from a secret."""

    server: Server
    user: str | None
    password: str | None
    secret_arn: str | None
    auth: str
    sslmode: str
    ca_file: str | None

    def __repr__(self) -> str:
        """Leave the login out."""
        return f"Database(server={self.server!r}, sslmode={self.sslmode!r})"


@dataclass(frozen=True, slots=True)
class Remote:
    """An HTTP system: its base address and its tokens, or the secret that contains them in the given `fields`."""

    base_url: str
    secret_arn: str | None
    fields: tuple[str, ...]
    tokens: Mapping[str, str]

    def __repr__(self) -> str:
        """Leave the tokens out."""
        return f"Remote(base_url={self.base_url!r})"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, with times in seconds. Each policy is passed unchanged to the code that decides by it.

    Without `ec2_targets`, the function's own Region and account are asked.
    """

    probe: str
    mode: str
    database: Database
    ec2_targets: tuple[Target, ...]
    control_plane: Remote | None
    platform: Remote | None
    platform_org_id: str | None
    https_ca_file: str | None
    cycle_deadline_seconds: float
    probe_timeout_seconds: float
    reconfirm_timeout_seconds: float
    probe_concurrency: int
    candidate_limit: int
    heartbeat_fresh_seconds: float
    adopt_offline: bool
    breaker: BreakerPolicy
    absence: AbsencePolicy
    restarts: RestartPolicy
    crash_loop: CrashLoopPolicy

    @staticmethod
    def from_env(environment: Mapping[str, str]) -> "Settings":
        """Read the variables of the environment; an empty one counts as unset.

        Raises SettingsError, which names the variable and what was expected of it.
        """
        env = _Environment(environment)
        env.check_log_level("POWERTOOLS_LOG_LEVEL")  # Powertools reads it
        probe = env.word("PROBE", (EC2, CONTROL_PLANE), EC2)
        control_plane = env.remote("CP", {"shared_secret": "CP_SHARED_SECRET", "admin_token": "CP_ADMIN_TOKEN"})
        if probe == CONTROL_PLANE and control_plane is None:
            raise SettingsError("CP_BASE_URL: not set; expected an http(s) address, as PROBE is control_plane")
        listed = env.text(EC2_TARGETS)
        return Settings(
            probe=probe,
            mode=env.word("MODE", (APPLY, DRY_RUN), APPLY),
            database=database_from(environment),
            ec2_targets=targets_from(listed) if listed else (),
            control_plane=control_plane,
            platform=env.remote("PLATFORM", {"token": "PLATFORM_TOKEN"}),
            platform_org_id=env.header_value("PLATFORM_ORG_ID"),
            https_ca_file=env.file("HTTPS_CA_FILE"),
            cycle_deadline_seconds=env.number("CYCLE_DEADLINE_SECONDS", 45, 1, 900),
            probe_timeout_seconds=env.number("PROBE_TIMEOUT_SECONDS", 10, 0.01, 900),
            reconfirm_timeout_seconds=env.number("RECONFIRM_TIMEOUT_SECONDS", 5, 0.01, 900),
            probe_concurrency=env.whole("PROBE_CONCURRENCY", 64, 1, MOST_CHECKS_AT_ONCE),
            candidate_limit=env.whole("CANDIDATE_LIMIT", 100_000, 1, 10_000_000),
            heartbeat_fresh_seconds=env.number("HEARTBEAT_FRESH_SECONDS", 60, 0, 86_400),
            adopt_offline=env.word("ADOPT_OFFLINE", ("true", "false"), "true") == "true",
            breaker=BreakerPolicy(
                max_dead_fraction=env.number("BREAKER_MAX_DEAD_FRACTION", 0.5, 0, 1),
                min_dead=env.whole("BREAKER_MIN_DEAD", 3, 1, 10_000_000),
                window_s=env.number("BREAKER_WINDOW_SECONDS", 600, 0, 86_400),
            ),
            absence=AbsencePolicy(
                sightings=env.whole("ABSENT_SIGHTINGS", 3, 1, 1000),
                min_age_s=env.number("ABSENT_MIN_AGE_SECONDS", 120, 0, 3600),
            ),
            restarts=RestartPolicy(
                per_cycle=env.whole("RESTARTS_PER_CYCLE", 100, 0, 100_000),
                grace_s=env.number("RESTART_GRACE_SECONDS", 180, 0, 86_400),
                retry_s=env.number("RESTART_RETRY_SECONDS", 60, 0, 86_400),
                uncertain_s=env.number("RESTART_UNCERTAIN_SECONDS", 300, 1, 86_400),
            ),
            crash_loop=CrashLoopPolicy(
                backoff_s=env.number("CRASH_LOOP_BACKOFF_SECONDS", 300, 0, 86_400),
                reset_s=env.number("CRASH_LOOP_RESET_SECONDS", 3600, 0, 86_400),
            ),
        )


def database_from(environment: Mapping[str, str]) -> Database:
    """Read the DATABASE_* variables alone. Raises SettingsError, which names the variable."""
    env = _Environment(environment)
    url, secret_arn, user = env.text("DATABASE_URL"), env.secret_arn("DATABASE_SECRET_ARN"), env.role("DATABASE_USER")
    logins = {"DATABASE_URL": url, "DATABASE_SECRET_ARN": secret_arn, "DATABASE_USER": user}
    given = [name for name, value in logins.items() if value is not None]
    if len(given) != 1:
        found = f"{', '.join(given)}: more than one is set" if given else f"{', '.join(logins)}: none is set"
        raise SettingsError(f"{found}; expected exactly one of {', '.join(logins)}")
    sslmode = env.word("DATABASE_SSLMODE", SSLMODES, "verify-full")
    password = None
    server = Server(
        host=env.text("DATABASE_HOST"),
        port=env.whole("DATABASE_PORT", 5432, 1, 65535),
        name=env.text("DATABASE_NAME"),
    )
    if url is not None:
        server, user, password, sslmode = _parsed_url(url, sslmode)
    auth = env.word("DATABASE_AUTH", (PASSWORD, IAM), PASSWORD)
    if auth == IAM and sslmode not in _ENCRYPTED:
        expected = f"{', '.join(_ENCRYPTED)} (a token must not travel in the clear)"
        raise SettingsError(f"DATABASE_SSLMODE: found {sslmode} with DATABASE_AUTH=iam; expected {expected}")
    if given == ["DATABASE_USER"]:
        _check_login_without_secret(auth, server)
    return Database(server, user, password, secret_arn, auth, sslmode, env.file("DATABASE_CA_FILE"))


def role_login_from(environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return how the role that the installer creates shall log in, and the secret with its password.

    Both are None if the installer shall create no role. Raises SettingsError.
    """
    env = _Environment(environment)
    auth = env.word("DATABASE_ROLE_AUTH", (PASSWORD, IAM), PASSWORD)
    secret_arn = env.secret_arn("DATABASE_ROLE_SECRET_ARN")
    return (IAM, None) if auth == IAM else (PASSWORD if secret_arn else None, secret_arn)


def _check_login_without_secret(auth: str, server: Server) -> None:
    """Refuse a DATABASE_USER that comes without what a secret would hold."""
    if auth != IAM:
        raise SettingsError("DATABASE_AUTH: found password with DATABASE_USER; expected iam, or DATABASE_SECRET_ARN")
    for name, value in (("DATABASE_HOST", server.host), ("DATABASE_NAME", server.name)):
        if value is None:
            raise SettingsError(f"{name}: not set; expected a value, as there is no secret that could hold it")


def _parsed_url(url: str, sslmode: str) -> tuple[Server, str, str | None, str]:
    """Parse a DATABASE_URL. It holds a password, so no error shows any part of it."""
    expected = "postgresql://user:password@host:port/name?sslmode=…"
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname, parts.port, parts.username
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise SettingsError(f"DATABASE_URL: not a valid address; expected {expected}") from None
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in ("postgresql", "postgres") or port == 0 or parts.fragment:
        raise SettingsError(f"DATABASE_URL: not a PostgreSQL address; expected {expected}")
    for part, found in (("user", user), ("host", host), ("database name", name)):
        if not found:
            raise SettingsError(f"DATABASE_URL: it has no {part}; expected {expected}")
    if options.keys() - {"sslmode"}:
        raise SettingsError(f"DATABASE_URL: it has an option other than sslmode; expected {expected}")
    sslmode = options.get("sslmode", sslmode)
    if sslmode not in SSLMODES:
        raise SettingsError(f"DATABASE_URL: its sslmode is unknown; expected one of {', '.join(SSLMODES)}")
    password = None if parts.password is None else unquote(parts.password)
    return Server(host, port or 5432, name), unquote(user or ""), password, sslmode


def is_role(name: object) -> bool:
    """Tell whether this can be the name of one database role."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= _ROLE_BYTES
        and not _CONTROL_CHARACTER.search(name)
        and name not in _RESERVED_ROLES
    )


def header_safe(value: str) -> bool:
    """Tell whether a value may travel in an HTTP header: visible ASCII, no blanks (RFC 9110, 5.5)."""
    return bool(_HEADER_VALUE.fullmatch(value))


class _Environment:
    """Variables by name. Each method takes one kind of value. An empty variable counts as unset."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str) -> str | None:
        """Return a variable as it is, or None if it is unset."""
        return self._environment.get(name) or None

    def word(self, name: str, words: tuple[str, ...], default: str) -> str:
        """Return one of the words that the variable may hold."""
        value = self.text(name) or default
        if value not in words:
            raise SettingsError(f"{name}: found {shown(value)}; expected {' or '.join(words)}")
        return value

    def check_log_level(self, name: str) -> None:
        """Refuse what is no log level, in capitals or not."""
        value = self.text(name)
        if value is not None and value.upper() not in LOG_LEVELS:
            raise SettingsError(f"{name}: found {shown(value)}; expected one of {', '.join(LOG_LEVELS)}")

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """Return a number within its bounds."""
        value = self.text(name)
        if value is None:
            return default
        if not _NUMBER.fullmatch(value) or not least <= float(value) <= most:
            raise SettingsError(f"{name}: found {shown(value)}; expected a number from {least} to {most}")
        return float(value)

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """Return a whole number within its bounds."""
        value = self.text(name)
        if value is None:
            return default
        found = _WHOLE_NUMBER.fullmatch(value)
        if not found or not least <= int(found[1]) <= most:
            raise SettingsError(f"{name}: found {shown(value)}; expected a whole number from {least} to {most}")
        return int(found[1])

    def file(self, name: str) -> str | None:
        """Return the path of a file, which must hold certificates."""
        value = self.text(name)
        try:
            if value is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=value)
        except (OSError, ValueError):  # no file, no certificates in it, or no path at all
            raise SettingsError(f"{name}: found {shown(value)}; expected a file of certificates (PEM)") from None
        return value

    def secret_arn(self, name: str) -> str | None:
        """Return the ARN of a secret."""
        value = self.text(name)
        if value is not None and not _SECRET_ARN.fullmatch(value):
            raise SettingsError(f"{name}: not the ARN of a secret; expected arn:aws:secretsmanager:…:secret:…")
        return value

    def role(self, name: str) -> str | None:
        """Return the name of a database role."""
        value = self.text(name)
        if value is not None and not is_role(value):
            raise SettingsError(f"{name}: found {shown(value)}; expected {A_ROLE}")
        return value

    def header_value(self, name: str) -> str | None:
        """Return a value for an HTTP header. It may be a secret, so no error shows it."""
        value = self.text(name)
        if value is not None and not header_safe(value):
            raise SettingsError(f"{name}: it has a blank or a character that no HTTP header may hold")
        return value

    def remote(self, prefix: str, token_variables: Mapping[str, str]) -> Remote | None:
        """Return a system's address and its tokens. Each token has its own variable, or all are in one secret."""
        secret_arn = self.secret_arn(f"{prefix}_SECRET_ARN")
        tokens = {field: self.header_value(name) for field, name in token_variables.items()}
        given = [token_variables[field] for field, token in tokens.items() if token]
        if secret_arn and given:
            raise SettingsError(f"{prefix}_SECRET_ARN, {', '.join(given)}: both are set; expected one of the two")
        base_url = self._address(f"{prefix}_BASE_URL")
        if base_url is None:
            return None
        given_tokens = {field: token for field, token in tokens.items() if token}
        return Remote(base_url, secret_arn, tuple(token_variables), given_tokens)

    def _address(self, name: str) -> str | None:
        value = self.text(name)
        if value is None:
            return None
        expected = "an address like https://host/path, without user, query or fragment"
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or "@" in value or "?" in value or "#" in value or not header_safe(value):
            raise SettingsError(f"{name}: not usable; expected {expected}")
        return value.rstrip("/")
