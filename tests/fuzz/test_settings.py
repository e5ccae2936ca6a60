"""Any environment, and any secret, at the entry point."""

import json
import re
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.errors import ConnectionLostError, ReconcilerError, SecretError, SettingsError
from handler.net.aws import Aws
from tests.fuzz.anything import CANARY, Nobody, any_json, examples, nearly
from tests.support.events import DRY_RUN
from tests.support.invoke import Invoke
from tests.support.stage import recorded

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:reconciler-AbCdEf"
ROLE = "arn:aws:iam::210987654321:role/reconciler"
DATABASE = f"postgresql://reconciler:{CANARY}@127.0.0.1:1/platform?sslmode=disable"
RIGHT = {
    "AWS_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "sandbox",
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "DATABASE_URL": DATABASE,
    "PROBE": "control_plane",
    "EC2_TARGETS": json.dumps([{"region": "eu-west-1", "role_arn": ROLE, "external_id": CANARY}]),
    "MODE": "dry-run",
    "DATABASE_AUTH": "password",
    "DATABASE_SSLMODE": "disable",
    "CP_BASE_URL": "https://cp.example:8443/x",
    "CP_SHARED_SECRET": CANARY,
    "CP_ADMIN_TOKEN": CANARY,
    "PLATFORM_BASE_URL": "http://[::1]",
    "PLATFORM_TOKEN": CANARY,
    "PLATFORM_ORG_ID": CANARY,
    "CYCLE_DEADLINE_SECONDS": "1",
    "PROBE_CONCURRENCY": "64",
    "BREAKER_MAX_DEAD_FRACTION": "0.5",
    "ABSENT_SIGHTINGS": "3",
}
NAMES = (
    *RIGHT,
    *("DATABASE_SECRET_ARN", "CP_SECRET_ARN", "PLATFORM_SECRET_ARN", "DATABASE_HOST", "DATABASE_PORT", "DATABASE_NAME"),
    *("DATABASE_CA_FILE", "HTTPS_CA_FILE", "DATABASE_USER", "CANDIDATE_LIMIT", "HEARTBEAT_FRESH_SECONDS"),
)
# What an environment may hold: no NUL, and half characters only for bytes that are not UTF-8.
any_value = st.text(
    st.characters(min_codepoint=1, exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)
words = st.sampled_from(
    ["", "ec2", "iam", "require", "verify-full", "nan", "inf", "1e400", "-0", "٣", "0x10", "1_0", ARN]
)


@st.composite
def environments(draw: st.DrawFn) -> dict[str, str]:
    """Return a right environment in which up to four variables are unset, changed, or set."""
    environment = dict(RIGHT)
    for _ in range(draw(st.integers(0, 4))):
        name, value = draw(st.sampled_from(NAMES)), draw(any_value | words)
        at = draw(st.integers(0, 60))
        old = environment.get(name, "")
        environment[name] = draw(st.sampled_from(["", value, old[:at] + value + old[at:], old * 50]))
    return environment


@given(environments())
@example(RIGHT | {"DATABASE_AUTH": "iam", "DATABASE_URL": DATABASE.replace("disable", "require"), "AWS_REGION": "é ü"})
@example(RIGHT | {"DATABASE_URL": f"postgresql://x:{CANARY}@{'y' * 5000}/z"})
@examples(1)
def test_any_environment_is_accepted_or_refused_by_a_variables_name(
    nobody: Nobody, environment: dict[str, str]
) -> None:
    nobody.asked = 0
    invoke = Invoke(environment)
    with recorded() as output, pytest.raises(ReconcilerError) as error:
        invoke(DRY_RUN)
    invoke.cold()
    message = str(error.value)
    if isinstance(error.value, SettingsError):
        assert nobody.asked == 0
        assert re.match(r"[A-Z_0-9]+(, [A-Z_]+)*(\[\d+\](\.[a-z_]+)?)?: ", message)
        assert re.split(r"[:,\[]", message)[0] in NAMES
    assert len(message) < 300
    assert "\n" not in message
    assert CANARY not in message + output.getvalue()


SECRETS: list[dict[str, Any]] = [
    {"username": "reconciler", "password": CANARY, "host": "127.0.0.1", "port": 1, "dbname": "platform"},
    {"username": "reconciler", "password": CANARY},
    {"shared_secret": CANARY, "admin_token": CANARY, "token": CANARY},
]
BY_SECRET = {
    "AWS_REGION": "eu-central-1",
    "DATABASE_SECRET_ARN": ARN,
    "DATABASE_HOST": "127.0.0.1",
    "DATABASE_NAME": "platform",
    "DATABASE_SSLMODE": "disable",
    "CYCLE_DEADLINE_SECONDS": "1",
}


@given((any_json | nearly(SECRETS, any_json)).map(json.dumps) | st.text())
@example(json.dumps(SECRETS[0] | {"port": "9" * 100_000}))
@example("[" * 100_000)
@example(json.dumps(SECRETS[0] | {"host": "x" * 100_000}))
@example(json.dumps(SECRETS[0] | {"host": "two\nlines"}))
@example(json.dumps(SECRETS[0] | {"username": "\ud800", "password": "\ud800"}))
@examples(1)
def test_any_secret_is_used_or_refused_by_its_variable(nobody: Nobody, text: str) -> None:
    nobody.asked = 0
    invoke = Invoke(BY_SECRET)
    with (
        recorded() as output,
        patch.object(Aws, "secret_text", lambda *_: text),
        pytest.raises(ReconcilerError) as error,
    ):
        invoke(DRY_RUN)
    invoke.cold()
    message = str(error.value)
    assert isinstance(error.value, SecretError | ConnectionLostError)
    assert message.startswith(("DATABASE_SECRET_ARN: ", "no connection to the database at "))
    assert len(message) < 300
    assert message.isprintable()
    assert CANARY not in message + output.getvalue()
