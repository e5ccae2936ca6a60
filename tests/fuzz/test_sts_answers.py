"""Any bytes as STS's answer."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.deadline import Deadline
from handler.domain.model import Verdict, Workspace
from handler.process import Process
from sandbox.http_server import Answer
from sandbox.limited_ec2 import LimitedEc2
from sandbox.regions import Issued, Regions, Trust
from tests.fuzz.anything import CANARY, broken, examples
from tests.support.stage import recorded

pytestmark = pytest.mark.no_cover  # many times the same lines; the other tests measure coverage

REGION, ACCOUNT = "eu-west-1", "210987654321"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/reconciler"
KEY = "ASIA0000000000000000"
# What STS says, in our own words or in an error code of the proper form.
REASON = re.compile(r"(role_not_assumed_)?(?!unexpected)([a-z_]+|refused_[A-Za-z.]{1,60}|aws_[A-Za-z]+Error)")

RIGHT = (
    '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
    f"<AccessKeyId>{KEY}</AccessKeyId><SecretAccessKey>{CANARY}</SecretAccessKey>"
    f"<SessionToken>{CANARY}</SessionToken><Expiration>2126-11-28T12:34:56Z</Expiration>"
    "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
).encode()
inserts = st.binary(max_size=8) | st.sampled_from(
    [
        *sorted(set(re.findall(rb"</?\w+>", RIGHT))),
        *(
            KEY.encode(),
            CANARY.encode(),
            b"\n",
            b"\r\nX: y",
            "é".encode(),
            b"&#10;",
            b"9" * 5000,
            b"1970",
            b"0001-01-01",
        ),
    ]
)


@pytest.fixture(scope="module")
def regions() -> Iterator[Regions]:
    with Regions() as server:
        server.add()
        server.targets[REGION, ACCOUNT] = LimitedEc2()
        server.roles[ROLE] = Trust()
        server.issued[KEY] = Issued(ACCOUNT)
        yield server


@pytest.fixture(scope="module")
def process(regions: Regions) -> Iterator[Process]:
    targets = json.dumps([{"region": REGION, "role_arn": ROLE, "external_id": CANARY}])
    environment = {**regions.environment, "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z", "EC2_TARGETS": targets}
    with ExitStack() as stack:
        stack.enter_context(patch.dict("os.environ", environment))
        process = Process(environment)
        stack.callback(process.close)
        yield process


@given(broken(RIGHT, inserts), st.sampled_from([200, 200, 200, 400, 403, 500, 503]))
@example(b"", 200)
@example(RIGHT.replace(b"2126-11-28T12:34:56Z", b"9999-99-99T99:99:99Z"), 200)
@example(RIGHT.replace(b"2126-11-28T12:34:56Z", b"0001-01-01T00:00:00Z"), 200)
@example(RIGHT.replace(f"<SessionToken>{CANARY}".encode(), b"<SessionToken>a&#13;&#10;X: y"), 200)
@example(RIGHT.replace(f"<SessionToken>{CANARY}".encode(), "<SessionToken>é".encode()), 200)
@example(RIGHT.replace(KEY.encode(), b"another"), 200)
@example(RIGHT.replace(KEY.encode(), b""), 200)
@examples(2)
def test_whatever_sts_answers_nobody_is_dead_and_nothing_is_shown(
    regions: Regions, process: Process, body: bytes, status: int
) -> None:
    instance = regions.targets[REGION, ACCOUNT].add(state="running")[0]
    regions.script.clear()
    regions.script.reply(Answer(status, body, {"Content-Type": "text/xml", "X": CANARY}))
    for role in process._roles.values():  # noqa: SLF001 - as if each example were the first cycle
        role.kept = None
    with recorded() as output:
        (seen,) = process.parts().probe(Deadline(10)).sightings([Workspace("w", instance, None)], Deadline(10))
    assert seen.verdict in (Verdict.RUNNING, Verdict.UNKNOWN)
    assert seen.verdict is Verdict.RUNNING or REASON.fullmatch(seen.reason)
    assert CANARY not in seen.reason + output.getvalue()
