"""Secrets: fetched when needed, cached for a while, never shown."""

import json
import traceback
from typing import Any

import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.deadline import Deadline
from handler.domain.model import Cause
from handler.errors import SecretError
from handler.net.bounded import CallError
from handler.net.secrets import CACHED_SECONDS, KEPT_SECONDS, Secrets, Tokens, text_field
from handler.settings import Remote
from tests.unit.builders import Clock, Log

ARN, OTHER = "arn:of-one", "arn:of-another"
SOON = Deadline(10, clock=Clock())


class Vault:
    """Holds the texts of secrets, or the errors of fetching them, and records every fetch."""

    def __init__(self, **texts: object) -> None:
        self.texts: dict[str, object] = {ARN: '{"token": "first"}', OTHER: '{"token": "another"}', **texts}
        self.fetched: list[tuple[str, float]] = []  # and how many seconds it may take

    def fetch(self, arn: str, deadline: Deadline) -> str:
        self.fetched.append((arn, deadline.remaining()))
        text = self.texts[arn]
        if isinstance(text, Exception):
            raise text
        return str(text)


@pytest.fixture
def vault() -> Vault:
    return Vault()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secrets(vault: Vault, clock: Clock) -> Secrets:
    return Secrets(vault.fetch, clock)


def token(secrets: Secrets, arn: str = ARN, *, fresh: bool = False) -> Any:
    return secrets.read(arn, "CP_SECRET_ARN", SOON, fresh=fresh)["token"]


# --- the cache ---


def test_a_secret_is_fetched_when_first_needed(secrets: Secrets, vault: Vault) -> None:
    assert vault.fetched == []
    assert token(secrets) == "first"
    assert vault.fetched == [(ARN, 10)]


def test_a_secret_is_cached_for_five_minutes(secrets: Secrets, vault: Vault, clock: Clock) -> None:
    assert CACHED_SECONDS == 300
    token(secrets)
    vault.texts[ARN] = '{"token": "rotated"}'
    clock.sleep(299)
    assert token(secrets) == "first"
    clock.sleep(1)
    assert token(secrets) == "rotated"
    assert len(vault.fetched) == 2


def test_reading_a_secret_does_not_prolong_its_time(secrets: Secrets, vault: Vault, clock: Clock) -> None:
    for _ in range(4):
        token(secrets)
        clock.sleep(100)
    assert len(vault.fetched) == 2


def test_a_fresh_secret_replaces_the_cached_one(secrets: Secrets, vault: Vault) -> None:
    token(secrets)
    vault.texts[ARN] = '{"token": "rotated"}'
    assert token(secrets, fresh=True) == "rotated"
    assert token(secrets) == "rotated"
    assert len(vault.fetched) == 2


def test_each_secret_is_cached_on_its_own(secrets: Secrets, vault: Vault) -> None:
    assert [token(secrets, ARN), token(secrets, OTHER), token(secrets, ARN)] == ["first", "another", "first"]
    assert [arn for arn, _ in vault.fetched] == [ARN, OTHER]


def test_a_failure_is_not_cached(secrets: Secrets, vault: Vault) -> None:
    vault.texts[ARN] = CallError(Cause.TIMEOUT, sent=True)
    with pytest.raises(SecretError):
        token(secrets)
    vault.texts[ARN] = '{"token": "back"}'
    assert token(secrets) == "back"


def test_the_cached_secret_survives_a_failed_fresh_fetch(secrets: Secrets, vault: Vault) -> None:
    token(secrets)
    vault.texts[ARN] = CallError(Cause.TIMEOUT, sent=True)
    with pytest.raises(SecretError):
        token(secrets, fresh=True)
    assert token(secrets) == "first"


# --- Secrets Manager is away ---


def refusal_of_aws(code: object, status: int = 400) -> botocore.exceptions.ClientError:
    response = {"Error": {"Code": code, "Message": "s3cret"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "GetSecretValue")  # type: ignore[arg-type]


AWAY = {
    "no answer": CallError(Cause.TIMEOUT, sent=True),
    "no way there": CallError(Cause.NAME_LOOKUP_FAILED, sent=False),
    "throttled": refusal_of_aws("ThrottlingException"),
    "429": refusal_of_aws("whatever", 429),
    "a fault of its own": refusal_of_aws("InternalServiceError", 500),
    "503": refusal_of_aws("503", 503),
    "no credentials": botocore.exceptions.NoCredentialsError(),
}
DENIED = {
    "access denied": refusal_of_aws("AccessDeniedException"),
    "deleted": refusal_of_aws("ResourceNotFoundException"),
    "about to be deleted": refusal_of_aws("InvalidRequestException"),
    "its key refused": refusal_of_aws("DecryptionFailure"),
    "a secret that is none": "no object",
}


@pytest.mark.parametrize("why", AWAY)
def test_while_secrets_manager_is_away_the_last_secret_serves_for_an_hour(
    secrets: Secrets, vault: Vault, clock: Clock, why: str
) -> None:
    assert KEPT_SECONDS == 3600
    token(secrets)
    vault.texts[ARN] = AWAY[why]
    clock.sleep(3599)
    assert token(secrets) == "first"
    clock.sleep(1)
    with pytest.raises(SecretError, match="CP_SECRET_ARN: the secret cannot be fetched"):
        token(secrets)
    vault.texts[ARN] = '{"token": "back"}'
    assert token(secrets) == "back"


def test_an_hour_counts_from_the_last_fetch(secrets: Secrets, vault: Vault, clock: Clock) -> None:
    token(secrets)
    clock.sleep(3000)
    token(secrets)
    vault.texts[ARN] = AWAY["no answer"]
    clock.sleep(3000)
    assert token(secrets) == "first"


def test_one_that_is_away_is_asked_once_a_minute_for_two_seconds(secrets: Secrets, vault: Vault, clock: Clock) -> None:
    token(secrets)
    vault.texts[ARN] = AWAY["no answer"]
    clock.sleep(CACHED_SECONDS)
    for _ in range(180):
        token(secrets)
        clock.sleep(1)
    tries = vault.fetched[1:]
    assert len(tries) == 3
    assert [seconds for _, seconds in tries] == [2, 2, 2]


def test_one_that_is_back_is_noticed_within_a_minute(secrets: Secrets, vault: Vault, clock: Clock) -> None:
    token(secrets)
    vault.texts[ARN] = AWAY["503"]
    clock.sleep(CACHED_SECONDS)
    token(secrets)
    vault.texts[ARN] = '{"token": "back"}'
    clock.sleep(59)
    assert token(secrets) == "first"
    clock.sleep(1)
    assert token(secrets) == "back"


def test_a_login_that_is_refused_meanwhile_is_an_error(secrets: Secrets, vault: Vault, clock: Clock) -> None:
    """The last secret is the one that was refused."""
    token(secrets)
    vault.texts[ARN] = AWAY["no answer"]
    clock.sleep(10)
    for _ in range(2):
        with pytest.raises(SecretError, match="CP_SECRET_ARN: the secret cannot be fetched: timeout"):
            token(secrets, fresh=True)
    assert len(vault.fetched) == 2
    vault.texts[ARN] = '{"token": "rotated"}'
    clock.sleep(60)
    assert token(secrets, fresh=True) == "rotated"


@pytest.mark.parametrize("why", DENIED)
@pytest.mark.parametrize("away_before", [False, True])
def test_a_secret_that_is_denied_or_deleted_serves_no_longer(
    secrets: Secrets, vault: Vault, clock: Clock, why: str, away_before: bool
) -> None:
    token(secrets)
    clock.sleep(CACHED_SECONDS)
    if away_before:
        vault.texts[ARN] = AWAY["no answer"]
        token(secrets)
        clock.sleep(60)
    vault.texts[ARN] = DENIED[why]
    with pytest.raises(SecretError):
        token(secrets)
    vault.texts[ARN] = AWAY["no answer"]
    with pytest.raises(SecretError):
        token(secrets)


def test_the_first_fetch_has_all_the_time_there_is(secrets: Secrets, vault: Vault) -> None:
    token(secrets)
    assert vault.fetched == [(ARN, 10)]


def test_each_attempt_that_fails_is_logged(secrets: Secrets, vault: Vault, clock: Clock, log: Log) -> None:
    token(secrets)
    vault.texts[ARN] = AWAY["503"]
    clock.sleep(CACHED_SECONDS)
    for _ in range(90):
        token(secrets)
        clock.sleep(1)
    errors = [line["error"] for line in log.lines("secret not renewed")]
    assert errors == ["CP_SECRET_ARN: the secret cannot be fetched: an error without a proper code"] * 2


# --- errors ---


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        pytest.param(refusal_of_aws("AccessDeniedException"), "AccessDeniedException", id="AWS refuses"),
        pytest.param(
            botocore.exceptions.ClientError({}, "GetSecretValue"),
            "without a proper code",
            id="AWS refuses without a code",
        ),
        pytest.param(refusal_of_aws("x" * 500), "without a proper code", id="AWS refuses in many words"),
        pytest.param(botocore.exceptions.NoCredentialsError(), "NoCredentialsError", id="no credentials"),
        pytest.param(CallError(Cause.TIMEOUT, sent=True), "timeout", id="no answer"),
        pytest.param("", "JSON object", id="an empty or binary secret"),
        pytest.param("s3cret", "JSON object", id="a bare password"),
        pytest.param('{"token": "s3cret"', "JSON object", id="half an object"),
        pytest.param('["s3cret"]', "JSON object", id="a list"),
        pytest.param('"s3cret"', "JSON object", id="a string"),
        pytest.param("null", "JSON object", id="null"),
        pytest.param("[" * 100_000, "JSON object", id="a very deep list"),
        pytest.param("1" * 5000, "JSON object", id="a very long number"),
    ],
)
def test_an_error_names_the_variable_and_shows_no_content(failure: object, why: str) -> None:
    with pytest.raises(SecretError) as refusal:
        token(Secrets(Vault(**{ARN: failure}).fetch, Clock()))
    message = str(refusal.value)
    assert message.startswith("CP_SECRET_ARN: ")
    assert why in message
    assert "s3cret" not in "".join(traceback.format_exception(refusal.value))
    assert len(message) < 200


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.text() | values.map(json.dumps) | st.dictionaries(st.sampled_from(["token", "x"]), values).map(json.dumps))
def test_any_secret_is_read_or_refused(text: str) -> None:
    tokens = Tokens(
        Remote("https://platform.example", ARN, ("token",), {}),
        "PLATFORM_SECRET_ARN",
        Secrets(Vault(**{ARN: text}).fetch, Clock()),
    )
    message, read = "", {}
    try:
        read = dict(tokens.read(SOON))
    except SecretError as refusal:
        message = str(refusal)
    assert not message or message.startswith("PLATFORM_SECRET_ARN: ")
    assert read.keys() <= {"token"}
    assert all(value.isascii() and value.isprintable() and " " not in value for value in read.values())


# --- fields ---


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "x"), (5432, "5432"), (0, "0"), ("", None), (None, None), (" ", " ")],
    ids=repr,
)
def test_a_field_is_a_string_or_a_whole_number(value: object, text: str | None) -> None:
    assert text_field({"field": value}, "field", "V") == text


def test_a_missing_field_is_none() -> None:
    assert text_field({}, "field", "V") is None


@pytest.mark.parametrize("value", [True, False, 1.5, ["s3cret"], {"s3cret": 1}], ids=repr)
def test_a_field_of_another_type_is_refused_by_name(value: object) -> None:
    with pytest.raises(SecretError) as refusal:
        text_field({"password": value}, "password", "DATABASE_SECRET_ARN")
    assert str(refusal.value) == "DATABASE_SECRET_ARN: the field password of the secret is not a string"


# --- tokens ---


def tokens_of(secrets: Secrets, arn: str | None = ARN, **given_tokens: str) -> Tokens:
    fields = ("shared_secret", "admin_token")
    return Tokens(Remote("https://cp.example", arn, fields, given_tokens), "CP_SECRET_ARN", secrets)


def test_tokens_in_variables_need_no_fetch(secrets: Secrets, vault: Vault) -> None:
    tokens = tokens_of(secrets, None, shared_secret="one")
    assert tokens.read(SOON) == tokens.read(SOON, fresh=True) == {"shared_secret": "one"}
    assert vault.fetched == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            '{"shared_secret": "a", "admin_token": "b"}', {"shared_secret": "a", "admin_token": "b"}, id="both"
        ),
        pytest.param('{"shared_secret": "a", "admin_token": ""}', {"shared_secret": "a"}, id="one empty"),
        pytest.param('{"shared_secret": null, "admin_token": "b"}', {"admin_token": "b"}, id="one null"),
        pytest.param('{"shared_secret": "a", "other": "s3cret"}', {"shared_secret": "a"}, id="others are left out"),
        pytest.param("{}", {}, id="none"),
    ],
)
def test_empty_tokens_of_a_secret_are_left_out(
    secrets: Secrets, vault: Vault, text: str, expected: dict[str, str]
) -> None:
    vault.texts[ARN] = text
    assert tokens_of(secrets).read(SOON) == expected


@pytest.mark.parametrize("value", ["s3cret\n", "s3 cret", "s3cret\r\nX: 1", "s3cr\u00e9t"], ids=ascii)
def test_a_token_unfit_for_a_header_is_refused_and_not_shown(secrets: Secrets, vault: Vault, value: str) -> None:
    vault.texts[ARN] = json.dumps({"admin_token": value})
    with pytest.raises(SecretError, match=r"CP_SECRET_ARN: the field admin_token .* HTTP header") as refusal:
        tokens_of(secrets).read(SOON)
    assert "s3" not in str(refusal.value)


def test_fresh_tokens_come_from_a_fresh_secret(secrets: Secrets, vault: Vault) -> None:
    tokens = tokens_of(secrets)
    vault.texts[ARN] = '{"admin_token": "old"}'
    tokens.read(SOON)
    vault.texts[ARN] = '{"admin_token": "new"}'
    assert tokens.read(SOON) == {"admin_token": "old"}
    assert tokens.read(SOON, fresh=True) == {"admin_token": "new"}
