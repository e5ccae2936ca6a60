"""Any bytes as EC2's answer."""

import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import patch
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.cycle import Parts
from handler.deadline import Deadline
from handler.domain.model import Verdict, Workspace
from handler.probes.ec2 import api
from handler.process import Process
from sandbox import ec2_xml
from sandbox.ec2_xml import STATE_CODES, Instance
from sandbox.http_server import Answer
from sandbox.limited_ec2 import LimitedEc2
from tests.fuzz.anything import CANARY, broken, examples
from tests.support.stage import recorded

pytestmark = pytest.mark.no_cover  # many times the same lines; the other tests measure coverage

STATES = {"i-0000000000000000a": "running", "i-0000000000000000b": "terminated", "i-0000000000000000c": "stopping"}
WORKSPACES = [
    Workspace(f"00000000-0000-4000-8000-{n:012d}", instance_id, None)
    for n, instance_id in enumerate([*STATES, "i-0000000000000000d"])
]
# EC2's error codes are logged, whatever they are. All other reasons are the project's own words. None may be
# `unexpected_…`, which stands for an error that nobody foresaw.
REASON = re.compile(r"(?!unexpected)[a-z_]+|refused_[A-Za-z.]{1,60}|aws_[A-Za-z]+Error")

WHOLE = ec2_xml.instances(
    [Instance(one, state, "eu-central-1a", n) for n, (one, state) in enumerate(STATES.items())], None, request_id="r"
)
# The same without anything that is not read, so that most breaks matter.
SHORT = (
    b'<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet>'
    + b"".join(
        f"<item><instancesSet><item><instanceId>{one}</instanceId><instanceState><code>0</code><name>{state}</name>"
        "</instanceState></item></instancesSet></item>".encode()
        for one, state in STATES.items()
    )
    + b"</reservationSet></DescribeInstancesResponse>"
)
PIECES = sorted(set(re.findall(rb"</?\w+>", SHORT)))
inserts = st.binary(max_size=8) | st.sampled_from(
    [
        *PIECES,
        *(one.encode() for one in STATES),
        *(state.encode() for state in STATE_CODES),
        b"<nextToken>more</nextToken>",
        b"<name>terminated</name>",
        b"<instanceState><name>terminated</name></instanceState>",
        b"<instanceId>i-0000000000000000a</instanceId>",
        b"<!--",
        b"-->",
        b"<![CDATA[",
        b"]]>",
        b'<!DOCTYPE x [<!ENTITY running "terminated">]>',
        b"&running;",
        b"&#x74;",
        b"\xff\xfe",
        CANARY.encode(),
    ]
)


@pytest.fixture(scope="module")
def ec2() -> Iterator[LimitedEc2]:
    with LimitedEc2() as server:
        yield server


@pytest.fixture(scope="module")
def parts(ec2: LimitedEc2) -> Iterator[Parts]:
    environment = {**ec2.environment, "DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z"}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(api, "FIRST_BACKOFF_S", 0.0)
        stack.enter_context(patch.dict("os.environ", environment))
        process = Process(environment)
        stack.callback(process.close)
        yield process.parts()


def read(page: bytes) -> ET.Element:
    """Return a page's root with names that have no namespace. Raises ParseError."""
    root = ET.fromstring(page, ET.XMLParser(encoding="utf-8"))  # noqa: S314 - pages of this test's own making
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def said(root: ET.Element) -> set[tuple[str | None, str | None]]:
    """Return every pair of instance and state that some reading of a page may find."""
    return {
        (one.text, name.text)
        for item in root.iter()
        for one in item.findall("instanceId")
        for name in item.findall("instanceState/name")
    }


def listed(root: ET.Element) -> set[str | None]:
    """Return the instances that a page names in the proper place."""
    return {one.text for one in root.findall("reservationSet/*/instancesSet/*/instanceId")}


@st.composite
def rearranged(draw: st.DrawFn) -> bytes:
    """Return XML in which up to four elements are gone, doubled, moved, renamed, or hold something else."""
    root = ET.fromstring(SHORT)  # noqa: S314 - a page of this test's own making
    for _ in range(draw(st.integers(1, 4))):
        places = [(parent, child) for parent in root.iter() for child in parent]
        if not places:
            break
        parent, child = draw(st.sampled_from(places))
        match draw(st.sampled_from(["remove", "double", "move", "rename", "fill", "fill", "empty"])):
            case "remove":
                parent.remove(child)
            case "double":
                parent.append(copy.deepcopy(child))
            case "move":
                parent.remove(child)
                draw(st.sampled_from(list(root.iter()))).append(child)
            case "rename":
                child.tag = draw(st.sampled_from(places))[1].tag
            case "fill":
                child.text = draw(st.sampled_from([*STATES, *STATE_CODES, CANARY, "", " terminated "]))
            case _:
                child.clear()
    return ET.tostring(root)


pages = rearranged() | rearranged() | st.sampled_from([WHOLE, SHORT]).flatmap(lambda page: broken(page, inserts))


@given(pages, st.sampled_from([200, 200, 200, 400]))
@example(b"", 200)
@example(b"", 204)
@example(b"<a>" * 100_000, 200)
@example(SHORT.replace(b"<name>", b"<name><name>"), 200)
@example(ec2_xml.error(CANARY + "-" * 70, CANARY, request_id=CANARY), 400)
@example(ec2_xml.error("InternalError", CANARY, request_id=CANARY), 500)
@example(b'{"__type": "x"}', 500)
@examples(3)
def test_an_instance_has_only_a_state_that_the_page_gives_it(
    ec2: LimitedEc2, parts: Parts, page: bytes, status: int
) -> None:
    ec2.script.clear()
    ec2.script.reply(Answer(status, page, {"Content-Type": "text/xml;charset=UTF-8", "X": CANARY}))
    with recorded() as output:
        seen = list(parts.probe(Deadline(10)).sightings(WORKSPACES, Deadline(10)))
    assert sorted(one.workspace.id for one in seen) == [one.id for one in WORKSPACES]
    try:
        root = read(page)
    except ET.ParseError:
        assert {one.verdict for one in seen} == {Verdict.UNKNOWN}
        root = ET.Element("nothing")
    for one in seen:
        if one.verdict is Verdict.UNKNOWN:
            assert REASON.fullmatch(one.reason)
        elif one.verdict is Verdict.ABSENT:
            assert one.workspace.instance_id not in listed(root)
        else:
            assert (one.workspace.instance_id, one.state) in said(root)
        assert status == 200 or one.verdict is Verdict.UNKNOWN
        assert CANARY not in one.reason
    assert CANARY not in output.getvalue()


def test_a_whole_page_is_believed(ec2: LimitedEc2, parts: Parts) -> None:
    for page in (WHOLE, SHORT):
        ec2.script.clear()
        ec2.script.reply(Answer(200, page))
        seen = parts.probe(Deadline(10)).sightings(WORKSPACES, Deadline(10))
        assert {one.workspace.instance_id: one.state for one in seen} == STATES | {"i-0000000000000000d": "not_found"}
