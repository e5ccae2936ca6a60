"""Answers that are far larger for a parser than on the wire: they cost their own instances, never the function."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from handler.net.limits import MOST_MEMORY
from handler.probes.ec2.probe import IDS_PER_CALL
from sandbox import ec2_xml
from sandbox.ec2_xml import Instance
from sandbox.http_server import Answer
from sandbox.limited_ec2 import DescribeCall
from sandbox.postgres import PostgresServer
from tests.support.events import APPLY
from tests.support.stage import Stage, opened

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
# The function has 512 MB, and its runtime takes a part.
MOST_MB = 450

AND_SAY_HOW_MUCH = f"""
import sys
from pathlib import Path
from sandbox.invoke import main
code = main(sys.argv[1:])
print(Path("{STATUS}").read_text().partition("VmHWM:")[2].split()[0], file=sys.stderr)
sys.exit(code)
"""

MOST_ELEMENTS = MOST_MEMORY // 300 - 10
PAGE = b'<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">%b</DescribeInstancesResponse>'
BOMBS: Mapping[str, bytes] = {
    "nested, 9 MB": PAGE % (b"<a>" * 1_300_000 + b"</a>" * 1_300_000),
    "nested, 3 MB": PAGE % (b"<a>" * 450_000 + b"</a>" * 450_000),
    "as large as is read": PAGE % b"".join(b"<a%06x/>" % number for number in range(MOST_ELEMENTS)),
    "a text of many lines": PAGE % ("\u0100\n".encode() * 1_300_000),
    "attributes": PAGE % (b"<a" + b"".join(b' b%x=""' % number for number in range(300_000)) + b"/>"),
    "entities": b'<!DOCTYPE a [<!ENTITY b "'
    + b"b" * 30_000
    + b'"><!ENTITY c "'
    + b"&b;" * 50
    + b'">]>'
    + PAGE % (b"&c;" * 100_000),
}


def most_mb(stage: Stage) -> float:
    """Run a cycle in a process of its own, over all rows; return how much memory it took."""
    done = subprocess.run(
        [sys.executable, "-c", AND_SAY_HOW_MUCH, "-"],
        input=json.dumps(APPLY),
        env={"PATH": os.environ["PATH"], **stage.invoke.environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (finished,) = [
        line for line in map(json.loads, done.stdout.splitlines()) if line.get("message") == "cycle finished"
    ]
    assert finished["unknown"] == finished["candidates"] == finished["checked"] > 0
    return int(done.stderr.split()[-1]) / 1024


@pytest.fixture(scope="module")
def fleet(postgres: PostgresServer) -> Iterator[Stage]:
    """As many instances as eight calls ask about."""
    with opened(postgres) as stage:
        stage.add_all(8 * IDS_PER_CALL, "running")
        yield stage


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("bomb", "status"), [*((bomb, 200) for bomb in BOMBS), ("as large as is read", 400), ("nested, 9 MB", 503)]
)
def test_an_answer_in_ec2_s_place_does_not_fill_the_memory(fleet: Stage, bomb: str, status: int) -> None:
    """Eight calls run at once, and botocore reads errors with the same parser."""
    fleet.ec2.script.clear()
    fleet.ec2.script.reply(Answer(status, BOMBS[bomb]))
    assert most_mb(fleet) < MOST_MB


def test_instances_that_are_too_much_for_one_answer_are_asked_about_in_smaller_batches(stage: Stage) -> None:
    """Each has 500 tags, which AWS does not even allow."""
    dead = stage.add("terminated")
    stage.add_all(150, "running")
    tags = b"<tagSet>%b</tagSet>" % (b"<item><key>k</key><value>v</value></item>" * 500)

    def with_tags(call: DescribeCall) -> Answer:
        (ids,) = call.filters.values()
        asked_for = [Instance(one, stage.ec2.state_of(one) or "", "eu-central-1a", 0) for one in ids]
        page = ec2_xml.instances(asked_for, None, request_id="r")
        return Answer(body=page.replace(b"<hypervisor>", tags + b"<hypervisor>"))

    stage.ec2.script.reply(with_tags, action="DescribeInstances")
    outcome = stage.cycle()
    assert (outcome.report["running"], outcome.flipped) == (150, {dead})
