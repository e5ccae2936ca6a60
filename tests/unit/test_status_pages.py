"""A status page is read as botocore reads it, or left to botocore."""

import json
import re
from typing import Any

import pytest
from botocore.model import ServiceModel
from botocore.parsers import ResponseParserError, create_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from handler.probes.ec2 import status_pages
from handler.process import MODELS
from sandbox import ec2_xml
from sandbox.ec2_xml import STATE_CODES, Instance

_MODEL = ServiceModel(json.loads((MODELS / "ec2" / "2016-11-15" / "service-2.json").read_text()), "ec2")
_SHAPE = _MODEL.operation_model("DescribeInstanceStatus").output_shape


def read_by_botocore(page: bytes) -> Any:
    """Return what botocore makes of a page, or None if it refuses the page."""
    try:
        answer = create_parser("ec2").parse({"body": page, "headers": {}, "status_code": 200}, _SHAPE)  # type: ignore[arg-type]
    except (ResponseParserError, ValueError, AttributeError, TypeError):  # it stumbles over some odd documents
        return None
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def page(*states: str, token: str | None = None) -> bytes:
    listed = [Instance(f"i-{n:017x}", state, "eu-central-1a", n) for n, state in enumerate(states)]
    return ec2_xml.statuses(listed, token, request_id="3be1508e-c444-4fef-89cc-0b1223c4f02f")


def indented(document: bytes) -> bytes:
    """Return a document with a line for each tag, as AWS writes it."""
    return re.sub(rb">(?=<)", b">\n    ", document)


# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceStatus.html
IN_TROUBLE = b"""<?xml version="1.0" encoding="UTF-8"?>
<DescribeInstanceStatusResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
    <requestId>3be1508e-c444-4fef-89cc-0b1223c4f02fEXAMPLE</requestId>
    <instanceStatusSet>
        <item>
            <instanceId>i-1283f9f2</instanceId>
            <availabilityZone>us-east-1d</availabilityZone>
            <outpostArn/>
            <eventsSet>
                <item>
                    <instanceEventId>instance-event-0d59937288b749b32</instanceEventId>
                    <code>instance-retirement</code>
                    <description>The instance is running on "degraded" hardware (today's)</description>
                    <notBefore>2026-01-15T10:30:00.000Z</notBefore>
                </item>
            </eventsSet>
            <instanceState>
                <code>16</code>
                <name>running</name>
            </instanceState>
            <systemStatus>
                <status>impaired</status>
                <details>
                    <item>
                        <name>reachability</name>
                        <status>failed</status>
                        <impairedSince>2026-01-14T10:30:00.000Z</impairedSince>
                    </item>
                </details>
            </systemStatus>
            <instanceStatus>
                <status>ok</status>
                <details><item><name>reachability</name><status>passed</status></item></details>
            </instanceStatus>
            <attachedEbsStatus>
                <status>not-applicable</status>
            </attachedEbsStatus>
        </item>
    </instanceStatusSet>
    <nextToken>eyJ2IjoiMiIsImMiOiJ+/=</nextToken>
</DescribeInstanceStatusResponse>
"""

RUNS = page("running")
SYSTEM = re.search(rb"<systemStatus>.*?</systemStatus>", RUNS)[0]  # type: ignore[index]
ID, OTHER_ID = b"<instanceId>i-00000000000000000</instanceId>", b"<instanceId>i-00000000000000001</instanceId>"
STATE = b"<instanceState><code>16</code><name>running</name>"

PAGES = {
    "as the sandbox writes it": page("running", "running", token="token-2"),
    "the last one": page("running"),
    "of nobody": page(),
    "of all states": page(*STATE_CODES),
    "with a line for each tag": indented(page("running", "stopped", token="a+/=")),
    "with an instance in trouble": IN_TROUBLE,
    "without a system status": RUNS.replace(SYSTEM, b""),
    "with a system status without details": RUNS.replace(SYSTEM, b"<systemStatus><status>ok</status></systemStatus>"),
    "with another instance in one": RUNS.replace(ID, ID + b"<item>" + OTHER_ID + STATE + b"</instanceState></item>"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_plain_page_is_read_as_botocore_reads_it(name: str) -> None:
    read = status_pages.read(PAGES[name])
    assert read is not None
    assert read == read_by_botocore(PAGES[name])


def test_ids_states_and_the_token_are_read() -> None:
    assert status_pages.read(page("running", "pending", token="token-2")) == {
        "InstanceStatuses": [
            {
                "InstanceId": "i-00000000000000000",
                "InstanceState": {"Name": "running"},
                "SystemStatus": {"Status": "ok"},
            },
            {
                "InstanceId": "i-00000000000000001",
                "InstanceState": {"Name": "pending"},
                "SystemStatus": {"Status": "ok"},
            },
        ],
        "NextToken": "token-2",
    }


ODD = {
    "nothing": b"",
    "an error": ec2_xml.error("InternalError", "An internal error has occurred", request_id="r-1"),
    "a page cut off": RUNS[:-1],
    "a page cut off after an item": RUNS[: RUNS.index(b"</item></inst") + 7],
    "another page after it": RUNS + RUNS,
    "a byte order mark": b"\xef\xbb\xbf" + RUNS,
    "another encoding": RUNS.replace(b"UTF-8", b"UTF-7"),
    "UTF-16": RUNS.decode().encode("utf-16"),
    "another namespace": RUNS.replace(b"2016-11-15", b"2099-01-01"),
    "a document type": RUNS.replace(b"?>", b'?><!DOCTYPE a [<!ENTITY b "running">]>', 1),
    "a prefix": RUNS.replace(b"instanceId>", b"a:instanceId>"),
    "an attribute": RUNS.replace(b"<item>", b'<item nil="true">', 1),
    "a comment around an instance": RUNS.replace(b"<item>", b"<!-- <item>", 1).replace(
        b"</instanceS", b"--></instanceS"
    ),
    "a comment in an id": RUNS.replace(ID, ID.replace(b"0000<", b"0000<!-- -->1<")),
    "CDATA that holds an instance": RUNS.replace(b"<availabilityZone>", b"<availabilityZone><![CDATA[<item>]]>"),
    "a reference in an id": RUNS.replace(ID, ID.replace(b"0000<", b"000&#49;<")),
    "a control character": RUNS.replace(b"eu-central-1a", b"eu-central\x00-1a"),
    "a description beyond ASCII": RUNS.replace(b"eu-central-1a", "eu-zürich-1a".encode()),
    "a description that is not UTF-8": RUNS.replace(b"eu-central-1a", b"eu-z\xfcrich-1a"),
    "an id with a space": RUNS.replace(ID, ID.replace(b">i-", b"> i-")),
    "an id that is none": RUNS.replace(ID, ID.replace(b"i-", b"mi-")),
    "no id": RUNS.replace(ID, b""),
    "two ids": RUNS.replace(ID, ID + ID),
    "a second id at the end": RUNS.replace(b"</item></inst", ID + b"</item></inst"),
    "an empty second id": RUNS.replace(ID, ID + b"<instanceId/>"),
    "no state": RUNS.replace(STATE + b"</instanceState>", b""),
    "a state without a name": RUNS.replace(b"<name>running</name></instanceState>", b"</instanceState>"),
    "two states": RUNS.replace(STATE, STATE.replace(b"running", b"stopped") + b"</instanceState>" + STATE),
    "two system statuses": RUNS.replace(SYSTEM, SYSTEM * 2),
    "a system status before the state": RUNS.replace(SYSTEM, b"").replace(STATE, SYSTEM + STATE),
    "two words in a system status": RUNS.replace(SYSTEM, SYSTEM.replace(b"<details>", b"<status>ok</status><details>")),
    "an empty system status": RUNS.replace(SYSTEM, b"<systemStatus/>"),
    "two names": RUNS.replace(b"running</name>", b"running</name><name>stopped</name>"),
    "an instance beside the set": RUNS.replace(b"<instanceStatusSet>", b"<instanceStatusSet></instanceStatusSet>"),
    "two sets": RUNS.replace(b"</instanceStatusSet>", b"</instanceStatusSet><instanceStatusSet></instanceStatusSet>"),
    "tags that cross": RUNS.replace(b"</details></systemStatus>", b"</systemStatus></details>", 1),
    "a tag that is never closed": RUNS.replace(b"</availabilityZone>", b""),
    "two tokens": page("running", token="a").replace(b"</nextToken>", b"</nextToken><nextToken>b</nextToken>"),
    "a token with a space": page("running", token="a b"),
    "a token with a reference": page("running", token="a&amp;b"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_page_is_left_to_botocore(name: str) -> None:
    assert ODD[name] not in (RUNS, page("running", token="a")), "nothing odd was put into it"
    assert status_pages.read(ODD[name]) is None


def test_an_odd_page_is_found_out_in_one_reading() -> None:
    """A pattern that tried again at each element would outlast the test's timeout."""
    broad = b"<a><b>%b</b></a>" % (b"<c>d</c>" * 50)
    nested = b"<a>%b</a>" % (b"<b>%b</b>" % (b"<c>%b</c>" % (b"<d/>" * 50) * 50) * 50)
    deep = b"<a>" * 20_000
    for odd in (broad * 49, nested, deep, b"<a/>" * 1_000, b" " * 100_000):
        assert status_pages.read(RUNS.replace(ID, ID + odd + b"!")) is None


# --- any page ---

SNIPPETS = [
    *(b"<item>", b"</item>", b"<item/>", ID, STATE, b"</instanceState>", b"<instanceState/>", b"<name>running</name>"),
    *(SYSTEM, b"<systemStatus>", b"</systemStatus>", b"<status>impaired</status>", b"<status/>", b"<details/>"),
    *(b"<instanceStatusSet>", b"</instanceStatusSet>", b"<nextToken>a</nextToken>", b"<nextToken/>"),
    *(b"<a>b</a>", b"<a>", b"</a>", b"<a/>", b"<a b='c'/>", b"<a:b/>", b"< a/>", b"<a />", b"</a >", b"<1/>"),
    *(b"<!--", b"-->", b"<![CDATA[", b"]]>", b"<?a?>", b"<!DOCTYPE a>", b"&amp;", b"&lt;item&gt;", b"&#105;", b"&a;"),
    *(b"<", b">", b"&", b"/", b"\x00", b"\x0b", b"\x7f", b"\r", b"\n", b" ", b"\xc3\xa9", b"\xff", b"]]>", b"i-1"),
    *(b"stopped", b"running", b"<code>80</code>", IN_TROUBLE, RUNS, RUNS[80:-60]),
]
whole_pages = st.sampled_from([one for one in PAGES.values() if len(one) < 10_000])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a page in which parts are replaced by others, or by odd pieces of XML."""
    document = draw(whole_pages)
    for _ in range(draw(st.integers(1, 3))):
        # Most edits begin or end at a tag. Any other hardly ever leaves a document whole.
        edges = [0, len(document)] + [at.start() for at in re.finditer(rb"<|(?<=>)", document)]
        places = st.sampled_from(edges) if draw(st.integers(0, 3)) else st.integers(0, len(document))
        begin, end = sorted((draw(places), draw(places)))
        new = draw(st.sampled_from([b"", document[begin:end] * 2, *SNIPPETS]) | st.binary(max_size=3))
        keep = draw(st.booleans())
        document = document[:begin] + new + document[begin if keep else end :]
    return document


names = st.sampled_from(
    ["a", "item", "name", "status", "instanceId", "instanceState", "instanceStatus", "systemStatus", "code", "x:a"]
)
texts = st.sampled_from(["", " ", "running", "i-1", "a>b", "&lt;", "<!-- a -->", "<![CDATA[<item>]]>", "é", "\r\n"])
elements = st.recursive(
    st.builds("<{0}>{1}</{0}>".format, names, texts) | st.builds("<{}/>".format, names),
    lambda inner: st.builds("<{0}>{1}{2}</{0}>".format, names, texts, st.lists(inner, max_size=3).map("".join)),
    max_leaves=8,
)
ids = st.sampled_from(["i-1", "i-0123456789abcdef0", " i-1", "i-", "I-1", ""]).map("<instanceId>{}</instanceId>".format)
states = st.sampled_from([*STATE_CODES, "Running", "", " running"]).map(
    "<instanceState><code>16</code><name>{}</name></instanceState>".format
)
items = st.builds(
    lambda id_, rest: f"<item>{id_}{''.join(rest)}</item>",
    ids,
    st.tuples(elements | st.just(""), states, elements | st.just("")).flatmap(st.permutations),
)
composed = st.lists(items | elements, max_size=3).map(
    lambda inside: (
        RUNS[: RUNS.index(b"<item>")] + "".join(inside).encode() + RUNS[RUNS.index(b"</instanceStatusSet>") :]
    )
)


@settings(max_examples=800)
@given(mutated() | composed)
def test_no_page_is_read_differently_from_botocore(document: bytes) -> None:
    read = status_pages.read(document)
    assert read is None or read == read_by_botocore(document)


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([*STATE_CODES]), max_size=30), st.none() | st.from_regex(r"[!-%'-;=?-~]+", fullmatch=True)
)
def test_every_plain_page_is_read(states_listed: list[str], token: str | None) -> None:
    for document in (page(*states_listed, token=token), indented(page(*states_listed, token=token))):
        read = status_pages.read(document)
        assert read is not None
        assert read == read_by_botocore(document)
