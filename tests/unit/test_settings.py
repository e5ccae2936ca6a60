"""The settings: read from the environment and checked."""

import re
import traceback
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import SettingsError
from handler.settings import Database, Server, Settings, database_from, header_safe, role_login_from

# The certificate of an authority that signed nothing, and whose key is gone.
CERTIFICATE = (Path(__file__).parents[1] / "support" / "authority.pem").read_text()

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:name-AbCdEf"
URL = "postgresql://reconciler:s3cret@db.example:6432/workspaces?sslmode=require"
BASE = {"DATABASE_URL": URL}


def read(**variables: str) -> Settings:
    return Settings.from_env(BASE | variables)


def refused(variables: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env(variables)
    return str(refusal.value)


# --- defaults and values ---

NUMBERS = {
    "CYCLE_DEADLINE_SECONDS": (45, 1, 900),
    "PROBE_TIMEOUT_SECONDS": (10, 0.01, 900),
    "RECONFIRM_TIMEOUT_SECONDS": (5, 0.01, 900),
    "BREAKER_MAX_DEAD_FRACTION": (0.5, 0, 1),
    "BREAKER_WINDOW_SECONDS": (600, 0, 86_400),
    "ABSENT_MIN_AGE_SECONDS": (120, 0, 3600),
    "HEARTBEAT_FRESH_SECONDS": (60, 0, 86_400),
    "RESTART_GRACE_SECONDS": (180, 0, 86_400),
    "RESTART_RETRY_SECONDS": (60, 0, 86_400),
    "RESTART_UNCERTAIN_SECONDS": (300, 1, 86_400),
    "CRASH_LOOP_BACKOFF_SECONDS": (300, 0, 86_400),
    "CRASH_LOOP_RESET_SECONDS": (3600, 0, 86_400),
}
WHOLE_NUMBERS = {
    "PROBE_CONCURRENCY": (64, 1, 900),
    "CANDIDATE_LIMIT": (100_000, 1, 10_000_000),
    "BREAKER_MIN_DEAD": (3, 1, 10_000_000),
    "ABSENT_SIGHTINGS": (3, 1, 1000),
    "RESTARTS_PER_CYCLE": (100, 0, 100_000),
}
ALL_NUMBERS = NUMBERS | WHOLE_NUMBERS
# Where the settings of the policies are. Every other one has its variable's name.
PLACES = {
    "BREAKER_MAX_DEAD_FRACTION": "breaker.max_dead_fraction",
    "BREAKER_MIN_DEAD": "breaker.min_dead",
    "BREAKER_WINDOW_SECONDS": "breaker.window_s",
    "ABSENT_SIGHTINGS": "absence.sightings",
    "ABSENT_MIN_AGE_SECONDS": "absence.min_age_s",
    "RESTARTS_PER_CYCLE": "restarts.per_cycle",
    "RESTART_GRACE_SECONDS": "restarts.grace_s",
    "RESTART_RETRY_SECONDS": "restarts.retry_s",
    "RESTART_UNCERTAIN_SECONDS": "restarts.uncertain_s",
    "CRASH_LOOP_BACKOFF_SECONDS": "crash_loop.backoff_s",
    "CRASH_LOOP_RESET_SECONDS": "crash_loop.reset_s",
}


def number(settings: Settings, variable: str) -> float:
    value: float = attrgetter(PLACES.get(variable, variable.lower()))(settings)
    return value


@pytest.mark.parametrize("name", ALL_NUMBERS)
@pytest.mark.parametrize("unset", ["missing", "empty"])
def test_a_missing_number_has_its_default(name: str, unset: str) -> None:
    settings = read() if unset == "missing" else read(**{name: ""})
    assert number(settings, name) == ALL_NUMBERS[name][0]


@pytest.mark.parametrize("name", ALL_NUMBERS)
def test_a_number_may_equal_its_bounds(name: str) -> None:
    _, least, most = ALL_NUMBERS[name]
    for value in (least, most):
        assert number(read(**{name: str(value)}), name) == value


@pytest.mark.parametrize("name", NUMBERS)
def test_a_time_or_share_may_have_a_fraction(name: str) -> None:
    assert number(read(**{name: "1.0e0"}), name) == 1


def test_missing_words_have_their_defaults() -> None:
    settings = read()
    assert (settings.probe, settings.mode, settings.adopt_offline) == ("ec2", "apply", True)
    assert (settings.control_plane, settings.platform, settings.platform_org_id) == (None, None, None)


def test_an_empty_variable_counts_as_unset() -> None:
    empty = (
        "PROBE",
        "MODE",
        "DATABASE_SECRET_ARN",
        "DATABASE_HOST",
        "DATABASE_PORT",
        "DATABASE_SSLMODE",
        "DATABASE_AUTH",
    )
    remotes = (
        "CP_BASE_URL",
        "CP_SECRET_ARN",
        "CP_SHARED_SECRET",
        "PLATFORM_BASE_URL",
        "PLATFORM_TOKEN",
        "PLATFORM_ORG_ID",
    )
    assert read(**dict.fromkeys((*empty, *remotes, "DATABASE_CA_FILE", "HTTPS_CA_FILE", "DATABASE_NAME"), "")) == read()


@pytest.mark.parametrize(("word", "adopts"), [("true", True), ("false", False), ("", True)])
def test_adoption_can_be_switched_off(word: str, adopts: bool) -> None:
    assert read(ADOPT_OFFLINE=word).adopt_offline is adopts


def test_other_variables_are_ignored() -> None:
    assert read(PATH="/bin", PROBE_TIMEOUT="x", cycle_deadline_seconds="x") == read()


def test_mode_and_control_plane_are_read() -> None:
    settings = read(MODE="dry-run", PROBE="control_plane", CP_BASE_URL="https://cp.example/")
    assert (settings.mode, settings.probe) == ("dry-run", "control_plane")
    assert settings.control_plane is not None
    assert settings.control_plane.base_url == "https://cp.example"


@pytest.mark.parametrize(
    ("address", "base_url"),
    [
        ("https://cp.example", "https://cp.example"),
        ("http://cp.example:8080", "http://cp.example:8080"),
        ("https://cp.example/api/v1//", "https://cp.example/api/v1"),
        ("http://127.0.0.1:9/", "http://127.0.0.1:9"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_an_address_loses_its_last_slash(address: str, base_url: str) -> None:
    platform = read(PLATFORM_BASE_URL=address).platform
    assert platform is not None
    assert platform.base_url == base_url


def test_empty_tokens_are_left_out() -> None:
    settings = read(CP_BASE_URL="https://cp.example", CP_SHARED_SECRET="one", CP_ADMIN_TOKEN="")
    assert settings.control_plane is not None
    assert settings.control_plane.tokens == {"shared_secret": "one"}
    assert settings.control_plane.secret_arn is None


def test_a_secret_names_its_fields_of_tokens() -> None:
    settings = read(
        CP_BASE_URL="https://cp.example",
        CP_SECRET_ARN=ARN,
        PLATFORM_BASE_URL="https://platform.example",
        PLATFORM_SECRET_ARN=ARN,
        PLATFORM_ORG_ID="org-1",
    )
    assert settings.control_plane is not None
    assert settings.platform is not None
    assert settings.control_plane.fields == ("shared_secret", "admin_token")
    assert settings.platform.fields == ("token",)
    assert settings.control_plane.secret_arn == settings.platform.secret_arn == ARN
    assert settings.platform_org_id == "org-1"


# --- the database ---


@pytest.mark.parametrize(
    ("url", "server", "user", "password", "sslmode"),
    [
        pytest.param(URL, Server("db.example", 6432, "workspaces"), "reconciler", "s3cret", "require", id="all parts"),
        pytest.param("postgres://u@h/n", Server("h", 5432, "n"), "u", None, "verify-full", id="the least"),
        pytest.param("postgresql://u:@h/n", Server("h", 5432, "n"), "u", "", "verify-full", id="an empty password"),
        pytest.param(
            "postgresql://u%40x:p%2F%3A%40%25@h/n%20m",
            Server("h", 5432, "n m"),
            *("u@x", "p/:@%", "verify-full"),
            id="percent-encoding",
        ),
        pytest.param(
            "postgresql://u:p@[::1]:5/n", Server("::1", 5, "n"), "u", "p", "verify-full", id="an IPv6 address"
        ),
    ],
)
def test_a_database_url_has_its_parts(url: str, server: Server, user: str, password: str | None, sslmode: str) -> None:
    database = database_from({"DATABASE_URL": url})
    assert database == Database(server, user, password, None, "password", sslmode, None)


@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_the_urls_sslmode_wins_over_the_variable(sslmode: str) -> None:
    plain = "postgresql://u:p@h/n"
    assert database_from({"DATABASE_URL": plain, "DATABASE_SSLMODE": sslmode}).sslmode == sslmode
    both = {"DATABASE_URL": f"{plain}?sslmode={sslmode}", "DATABASE_SSLMODE": "require"}
    assert database_from(both).sslmode == sslmode


def test_variables_complete_the_databases_secret() -> None:
    variables = {"DATABASE_SECRET_ARN": ARN, "DATABASE_HOST": "h", "DATABASE_PORT": "6432", "DATABASE_NAME": "n"}
    assert database_from(variables) == Database(
        Server("h", 6432, "n"), None, None, ARN, "password", "verify-full", None
    )
    assert database_from({"DATABASE_SECRET_ARN": ARN}).server == Server(None, 5432, None)


def test_a_file_of_authorities_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "authorities.pem"
    file.write_text(CERTIFICATE)
    assert read(DATABASE_CA_FILE=str(file)).database.ca_file == str(file)
    assert read(HTTPS_CA_FILE=str(file)).https_ca_file == str(file)
    assert read().https_ca_file is None


@pytest.mark.parametrize("level", ["debug", "INFO", "Warning", "ERROR", "CRITICAL", ""])
def test_powertools_log_levels_are_accepted(level: str) -> None:
    read(POWERTOOLS_LOG_LEVEL=level)


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
def test_an_iam_token_travels_encrypted(sslmode: str) -> None:
    variables = {"DATABASE_URL": f"postgresql://u@h/n?sslmode={sslmode}", "DATABASE_AUTH": "iam"}
    assert database_from(variables).auth == "iam"


BY_USER = {"DATABASE_USER": "rec", "DATABASE_AUTH": "iam", "DATABASE_HOST": "h", "DATABASE_NAME": "n"}


def test_iam_authentication_needs_no_secret() -> None:
    assert database_from(BY_USER) == Database(Server("h", 5432, "n"), "rec", None, None, "iam", "verify-full", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"DATABASE_AUTH": ""},
            "DATABASE_AUTH: found password with DATABASE_USER; expected iam, or DATABASE_SECRET_ARN",
        ),
        ({"DATABASE_HOST": ""}, "DATABASE_HOST: not set; expected a value, as there is no secret that could hold it"),
        ({"DATABASE_NAME": ""}, "DATABASE_NAME: not set; expected a value, as there is no secret that could hold it"),
        (
            {"DATABASE_SECRET_ARN": ARN},
            "DATABASE_SECRET_ARN, DATABASE_USER: more than one is set",
        ),
    ],
)
def test_a_user_without_a_secret_needs_the_rest_by_itself(changes: dict[str, str], said: str) -> None:
    assert refused(BY_USER | changes).startswith(said)


def test_the_installer_s_role_logs_in_with_a_secret_or_with_iam_or_is_left_alone() -> None:
    assert role_login_from({}) == (None, None)
    assert role_login_from({"DATABASE_ROLE_AUTH": "password"}) == (None, None)
    assert role_login_from({"DATABASE_ROLE_SECRET_ARN": ARN}) == ("password", ARN)
    assert role_login_from({"DATABASE_ROLE_SECRET_ARN": ARN, "DATABASE_ROLE_AUTH": "iam"}) == ("iam", None)
    with pytest.raises(SettingsError, match="DATABASE_ROLE_AUTH: found 'scram'; expected password or iam"):
        role_login_from({"DATABASE_ROLE_AUTH": "scram"})
    with pytest.raises(SettingsError, match="DATABASE_ROLE_SECRET_ARN: not the ARN of a secret"):
        role_login_from({"DATABASE_ROLE_SECRET_ARN": "db"})


# --- refusals: the variable, what was found, what was expected ---


@pytest.mark.parametrize("name", ALL_NUMBERS)
@pytest.mark.parametrize("value", ["x", " ", "nan", "inf", "-inf", "-1", "1e9", "0x10", "1,5", "5s", "None", "1 2"])
def test_a_malformed_number_is_refused(name: str, value: str) -> None:
    _, least, most = ALL_NUMBERS[name]
    message = refused(BASE | {name: value})
    assert message.startswith(f"{name}: found {value!r}; expected a ")
    assert message.endswith(f"number from {least} to {most}")


@pytest.mark.parametrize("name", ALL_NUMBERS)
def test_a_number_just_out_of_bounds_is_refused(name: str) -> None:
    _, least, most = ALL_NUMBERS[name]
    for value in (least - 1, most + 1, least - 0.001, most + 0.001):
        assert refused(BASE | {name: str(value)}).startswith(f"{name}: found '{value}'; expected a ")


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", ["2.5", "2.", "1e1", "+2", " 2", "2 ", "1_0", "2\n", "٣"], ids=ascii)
def test_a_count_is_a_whole_number_in_plain_digits(name: str, value: str) -> None:
    assert refused(BASE | {name: value}).startswith(f"{name}: found {value!a}; expected a whole number")


@pytest.mark.parametrize("name", ALL_NUMBERS)
def test_a_very_long_number_is_refused_in_few_words(name: str) -> None:
    message = refused(BASE | {name: "1" * 5000})
    assert message.startswith(f"{name}: found '111")
    assert len(message) < 200


@pytest.mark.parametrize(
    ("variables", "subject", "expected"),
    [
        pytest.param({"PROBE": "EC2"}, "PROBE: found 'EC2'", "ec2 or control_plane", id="the probe in capitals"),
        pytest.param({"PROBE": " "}, "PROBE: found ' '", "ec2 or control_plane", id="a blank probe"),
        pytest.param({"PROBE": "control_plane"}, "CP_BASE_URL: not set", "http(s) address", id="no control plane"),
        pytest.param({"MODE": "dry_run"}, "MODE: found 'dry_run'", "apply or dry-run", id="nearly a mode"),
        pytest.param(
            {"DATABASE_SSLMODE": "on"}, "DATABASE_SSLMODE: found 'on'", "verify-full", id="no word of libpq's"
        ),
        pytest.param({"DATABASE_AUTH": "IAM"}, "DATABASE_AUTH: found 'IAM'", "password or iam", id="auth in capitals"),
        pytest.param({"ADOPT_OFFLINE": "no"}, "ADOPT_OFFLINE: found 'no'", "true or false", id="another word"),
        pytest.param({"ADOPT_OFFLINE": "True"}, "ADOPT_OFFLINE: found 'True'", "true or false", id="a capital"),
        pytest.param({"DATABASE_PORT": "0"}, "DATABASE_PORT: found '0'", "from 1 to 65535", id="port zero"),
        pytest.param({"DATABASE_PORT": "65536"}, "DATABASE_PORT: found '65536'", "from 1 to 65535", id="a high port"),
        pytest.param({"DATABASE_PORT": "tcp"}, "DATABASE_PORT: found 'tcp'", "whole number", id="a port of letters"),
        pytest.param(
            {"DATABASE_CA_FILE": "/nowhere/ca.pem"}, "DATABASE_CA_FILE: found '/nowhere/ca.pem'", "a file", id="no file"
        ),
        pytest.param(
            {"DATABASE_CA_FILE": traceback.__file__}, "DATABASE_CA_FILE: found", "a file", id="a file of something else"
        ),
        pytest.param({"HTTPS_CA_FILE": "/nowhere/ca.pem"}, "HTTPS_CA_FILE: found", "a file", id="no file for HTTPS"),
        pytest.param(
            {"POWERTOOLS_LOG_LEVEL": "loud"}, "POWERTOOLS_LOG_LEVEL: found 'loud'", "DEBUG, INFO", id="a level"
        ),
        *(
            pytest.param({"CYCLE_DEADLINE_SECONDS": number}, "CYCLE_DEADLINE_SECONDS", "a number", id=f"{number!a}")
            for number in ("4_5", " 45", "45 ", "٤٥", "+45", "0x2d", "1e999")
        ),
        pytest.param({"DATABASE_CA_FILE": "/"}, "DATABASE_CA_FILE: found '/'", "a file", id="a directory"),
        pytest.param({"DATABASE_CA_FILE": "\0"}, "DATABASE_CA_FILE: found", "a file", id="a NUL for a file"),
        pytest.param(
            {"DATABASE_CA_FILE": "-----BEGIN CERTIFICATE-----\n" + "MIIB" * 500},
            *("DATABASE_CA_FILE: found", "a file"),
            id="the certificates themselves",
        ),
        pytest.param(
            {"DATABASE_URL": ""},
            *("DATABASE_URL, DATABASE_SECRET_ARN, DATABASE_USER: none is set", "exactly one of"),
            id="no login",
        ),
        pytest.param(
            {"DATABASE_SECRET_ARN": ARN},
            "DATABASE_URL, DATABASE_SECRET_ARN: more than one",
            "exactly one",
            id="two logins",
        ),
        pytest.param(
            {"DATABASE_USER": "u"}, "DATABASE_URL, DATABASE_USER: more than one", "exactly one", id="a URL and a user"
        ),
        pytest.param(
            {"DATABASE_USER": "a\0b"}, "DATABASE_USER: found 'a\\x00b'", "a database role", id="no role's name"
        ),
        pytest.param({"DATABASE_SECRET_ARN": "x"}, "DATABASE_SECRET_ARN: not the ARN", "arn:aws", id="no ARN"),
        pytest.param(
            {"DATABASE_AUTH": "iam", "DATABASE_URL": "postgresql://u@h/n?sslmode=prefer"},
            *("DATABASE_SSLMODE: found prefer with DATABASE_AUTH=iam", "verify-full"),
            id="an IAM token in the clear",
        ),
        pytest.param(
            {"CP_SECRET_ARN": ARN, "CP_ADMIN_TOKEN": "x"},
            *("CP_SECRET_ARN, CP_ADMIN_TOKEN: both are set", "one of the two"),
            id="the control plane's tokens twice",
        ),
        pytest.param(
            {"PLATFORM_SECRET_ARN": ARN, "PLATFORM_TOKEN": "x"},
            *("PLATFORM_SECRET_ARN, PLATFORM_TOKEN: both are set", "one of the two"),
            id="the platform's token twice",
        ),
        pytest.param({"PLATFORM_SECRET_ARN": "x"}, "PLATFORM_SECRET_ARN: not the ARN", "arn:aws", id="no platform ARN"),
        pytest.param({"CP_SECRET_ARN": f"{ARN} "}, "CP_SECRET_ARN: not the ARN", "arn:aws", id="a blank after an ARN"),
        pytest.param(
            {"CP_SECRET_ARN": ARN.replace("secretsmanager", "ssm")}, "CP_SECRET_ARN: not", "arn:aws", id="SSM"
        ),
    ],
)
def test_a_bad_setting_is_refused_by_name(variables: dict[str, str], subject: str, expected: str) -> None:
    message = refused(BASE | variables)
    assert message.startswith(subject)
    assert expected in message.partition("expected")[2]
    assert len(message) < 250


@pytest.mark.parametrize("name", ["CP_SHARED_SECRET", "CP_ADMIN_TOKEN", "PLATFORM_TOKEN", "PLATFORM_ORG_ID"])
@pytest.mark.parametrize("value", ["with a blank", "line\r\nX-Injected: 1", "tab\t", "é", "\x7f", "a\0"], ids=ascii)
def test_a_token_unfit_for_a_header_is_refused_and_not_shown(name: str, value: str) -> None:
    message = refused(BASE | {name: value, "CP_BASE_URL": "https://cp.example"})
    assert message.startswith(f"{name}: ")
    assert "HTTP header" in message
    assert value not in message


@pytest.mark.parametrize("name", ["CP_BASE_URL", "PLATFORM_BASE_URL"])
@pytest.mark.parametrize(
    "value",
    [
        *(
            "cp.example",
            "ftp://cp.example",
            "https://",
            "https:///path",
            "https://cp.example:0",
            "https://cp.example:x",
        ),
        *("https://cp.example:99999", "https://user:s3cret@cp.example", "https://cp.example?token=s3cret"),
        *(
            "https://cp.example#s3cret",
            "https://cp example",
            "https://cp.example/\n",
            "https://[::1",
            "//cp.example",
            " ",
        ),
    ],
    ids=ascii,
)
def test_a_bad_address_is_refused_and_not_shown(name: str, value: str) -> None:
    message = refused(BASE | {name: value})
    assert message.startswith(f"{name}: not usable; expected an address like https://host/path")
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("url", "why"),
    [
        pytest.param("x", "not a PostgreSQL address", id="a word"),
        pytest.param("mysql://u:s3cret@h/n", "not a PostgreSQL address", id="another database"),
        pytest.param("postgresql://u:s3cret@h/n#f", "not a PostgreSQL address", id="a fragment"),
        pytest.param("postgresql://u:s3cret@h:0/n", "not a PostgreSQL address", id="port zero"),
        pytest.param("postgresql://u:s3cret@h:99999/n", "not a valid address", id="a high port"),
        pytest.param("postgresql://u:s3cret@h:port/n", "not a valid address", id="a port of letters"),
        pytest.param("postgresql://u:s3cret@[::1/n", "not a valid address", id="half an IPv6 address"),
        pytest.param("postgresql://u:s3cret@h/n?sslmode", "not a valid address", id="an option without a value"),
        pytest.param("postgresql://h/n", "no user", id="no user"),
        pytest.param("postgresql://:s3cret@h/n", "no user", id="a password without a user"),
        pytest.param("postgresql://u:s3cret@/n", "no host", id="no host"),
        pytest.param("postgresql://u:s3cret@h", "no database name", id="no name"),
        pytest.param("postgresql://u:s3cret@h/", "no database name", id="an empty name"),
        pytest.param("postgresql://u:s3cret@h/n?ssl=1", "option other than sslmode", id="another option"),
        pytest.param("postgresql://u:s3cret@h/n?sslmode=s3cret", "sslmode is unknown", id="another sslmode"),
        pytest.param("postgresql://u:s3cret@h/n?sslmode=", "sslmode is unknown", id="an empty sslmode"),
        pytest.param("postgresql://u:s3/cret@h/n", "", id="a slash in the password"),
        pytest.param("postgresql://u:1#s3cret@h/n", "", id="a hash in the password"),
        pytest.param("postgresql://u:1?s3cret@h/n", "", id="a question mark in the password"),
    ],
)
def test_a_bad_database_url_is_refused_and_not_shown(url: str, why: str) -> None:
    message = refused({"DATABASE_URL": url})
    assert message.startswith("DATABASE_URL: ")
    assert why in message
    assert "expected postgresql://user:password@host:port/name" in message or "expected one of" in message
    assert "s3" not in message


# --- any environment ---

TOKENS = ("CP_SHARED_SECRET", "CP_ADMIN_TOKEN", "PLATFORM_TOKEN", "PLATFORM_ORG_ID")
ADDRESSES = ("CP_BASE_URL", "PLATFORM_BASE_URL")
ARNS = ("DATABASE_SECRET_ARN", "CP_SECRET_ARN", "PLATFORM_SECRET_ARN")
WORDS = (
    *("PROBE", "MODE", "ADOPT_OFFLINE", "DATABASE_SSLMODE", "DATABASE_AUTH", "DATABASE_PORT"),
    *("DATABASE_CA_FILE", "HTTPS_CA_FILE"),
)
DATABASE_VARIABLES = ("DATABASE_URL", "DATABASE_USER", "DATABASE_HOST", "DATABASE_NAME", "EC2_TARGETS")
EVERY_VARIABLE = (*ALL_NUMBERS, *WORDS, *ARNS, *ADDRESSES, *TOKENS, *DATABASE_VARIABLES)
SECRET = "Zq7Wx9"

texts = st.text() | st.sampled_from(
    ["1", "ec2", "control_plane", "iam", "dry-run", "require", ARN, URL, "https://x.example"]
)
environments = st.dictionaries(st.sampled_from(EVERY_VARIABLE), texts)


@given(environments)
def test_any_environment_is_read_or_refused_by_a_variables_name(environment: dict[str, str]) -> None:
    for base in ({}, BASE, {"DATABASE_SECRET_ARN": ARN}):
        try:
            Settings.from_env(base | environment)
        except SettingsError as refusal:
            message = str(refusal)
            assert re.split(r"[:,\[]", message)[0] in EVERY_VARIABLE
            assert len(message) < 300
            assert "\n" not in message


around = st.text(st.sampled_from("postgresql://u:p@h/n?sslmode=requie#&%[]: \n\té0"), max_size=30)


@given(st.sampled_from([*TOKENS, *ADDRESSES, *ARNS, "DATABASE_URL"]), around, around, environments)
def test_no_error_shows_a_secret(name: str, before: str, after: str, others: dict[str, str]) -> None:
    shown = ""
    try:
        Settings.from_env(BASE | others | {name: before + SECRET + after})
    except SettingsError as refusal:
        shown = "".join(traceback.format_exception(refusal))
    assert SECRET.lower() not in shown.lower()


@given(st.text(min_size=1))
def test_only_visible_ascii_is_safe_in_a_header(value: str) -> None:
    assert header_safe(value) is all("!" <= character <= "~" for character in value)


def test_an_empty_value_is_not_safe_in_a_header() -> None:
    assert not header_safe("")


@pytest.mark.parametrize("show", [repr, str], ids=["repr", "str"])
def test_settings_are_shown_without_their_secrets(show: type[str]) -> None:
    settings = read(
        CP_BASE_URL="https://cp.example",
        CP_SHARED_SECRET="s3cret",
        CP_ADMIN_TOKEN="s3cret",
        PLATFORM_BASE_URL="https://platform.example",
        PLATFORM_TOKEN="s3cret",
    )
    assert "s3cret" not in show(settings)
    assert "cp.example" in show(settings)
