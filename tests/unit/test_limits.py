"""What a parser is shown: plain and shallow answers only."""

import json
import time

import pytest

from handler.domain.model import Cause
from handler.net.bounded import CallError
from handler.net.limits import DEEPEST, check, is_plain_xml, is_shallow_json
from sandbox import ec2_xml
from sandbox.ec2_xml import Instance

SOME = [Instance("i-0000000000000000a", "running", "eu-central-1a", 1)]
PLAIN = {
    "instances": ec2_xml.instances(SOME, "more", request_id="r"),
    "statuses": ec2_xml.statuses(SOME, "more", request_id="r"),
    "an error": ec2_xml.error("InternalError", "sorry", request_id="r"),
    "an error of STS": b'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error/></ErrorResponse>\n',
    "nothing but a root": b"<a/>",
    "blanks": b' \n<?xml version="1.0"?>\n<a >\n  <b />\n</a >\n',
    "references": b"<a>&lt;b&gt; &#65;</a>",
    "what looks like an end": b"<a><b>/></b></a>",
    "any language": "<a>\u4e2d</a>".encode(),
}
NOT_PLAIN = {
    "nothing": b"",
    "no XML": b"sorry",
    "an attribute": b'<a><b c="d"/></a>',
    "an attribute without quotes": b"<a><b c/></a>",
    "many attributes at the root": b'<a b="1" c="2"/>',
    "a namespace below": b'<a><b xmlns="c"/></a>',
    "a prefix": b"<a><b:c/></a>",
    "a comment": b"<a><!-- b --></a>",
    "CDATA": b"<a><![CDATA[<b>]]></a>",
    "an instruction": b"<a><?b c?></a>",
    "a document type": b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    "a document type after the declaration": b'<?xml version="1.0"?><!DOCTYPE a><a/>',
    "a page": b'<!doctype html><html lang="en"></html>',
    "a lone <": b"<a> < </a>",
    "a tag without end": b"<a><b",
    "a tag that opens and closes": b"<a></b/></a>",
    "UTF-16": "<a><b/></a>".encode("utf-16"),
    "UTF-16 without a mark": "<a><b/></a>".encode("utf-16-be"),
    "a NUL": b"<a>\0</a>",
    "a byte order mark": b"\xef\xbb\xbf<a/>",
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_aws_sends_is_plain(name: str) -> None:
    assert is_plain_xml(PLAIN[name])


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_parsers_could_make_much_of_is_not_plain(name: str) -> None:
    assert not is_plain_xml(NOT_PLAIN[name])


def nested(depth: int, between: bytes = b"") -> bytes:
    return (b"<a>" + between) * depth + b"</a>" * depth


@pytest.mark.parametrize("between", [b"", b"/>", b"<b/>", b"<b></b>", b"text &lt;/a>"])
def test_xml_has_a_greatest_depth(between: bytes) -> None:
    assert is_plain_xml(nested(DEEPEST - 2, between))
    assert not is_plain_xml(nested(DEEPEST, between))


@pytest.mark.parametrize("begin", ["[", '{"a":', '["]",', '["\\"]",', "[[],"])
def test_json_has_a_greatest_depth(begin: str) -> None:
    end = "]" if begin.startswith("[") else "}"
    assert is_shallow_json(begin * (DEEPEST - 2) + "0" + end * (DEEPEST - 2))
    assert not is_shallow_json(begin * DEEPEST + "0" + end * DEEPEST)


@pytest.mark.parametrize("value", ["[" * 1_000, "]" * 1_000, "[]{}" * 1_000, '"[\\'])
def test_brackets_in_strings_and_side_by_side_are_not_deep(value: str) -> None:
    assert is_shallow_json(json.dumps([value, *([{}] * 1_000)]))


@pytest.mark.parametrize("text", ['"' + '\\"' * 32_000, "[" * 100 + '"\\' * 32_000, '"[' * 32_000, "\\" * 64_000])
def test_what_is_no_json_is_looked_at_once(text: str) -> None:
    began_at = time.monotonic()
    is_shallow_json("[" * DEEPEST + text)
    assert time.monotonic() - began_at < 1


@pytest.mark.parametrize(
    "body", [b"<" * 1_000_000, b"<a" * 500_000, b"<a>" + b"<b " * 400_000, b" " * 1_000_000 + b"<"]
)
def test_what_is_no_xml_is_looked_at_once(body: bytes) -> None:
    began_at = time.monotonic()
    assert not is_plain_xml(body)
    assert time.monotonic() - began_at < 1


class Operation:
    """As much of botocore's model as is looked at."""

    def __init__(self, protocol: str) -> None:
        self.service_model = self
        self.resolved_protocol = protocol


TOO_MUCH = {
    "elements": ("ec2", b"<a>" + b"<b/>" * 200_000 + b"</a>"),
    "elements within": ("query", b"<a>" * 200_000 + b"</a>" * 200_000),
    "lines": ("ec2", b"<a>" + b"\n" * 500_000 + b"</a>"),
    "other lines": ("ec2", b"<a>" + b"\r" * 500_000 + b"</a>"),
    "references": ("ec2", b"<a>" + b"&lt;" * 500_000 + b"</a>"),
    "lists": ("json", b"[" + b"[]," * 300_000 + b"[]]"),
    "objects": ("json", b"[" + b"{}," * 300_000 + b"{}]"),
    "numbers": ("json", b"[" + b"0," * 500_000 + b"0]"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_would_fill_the_memory_is_refused(name: str) -> None:
    protocol, body = TOO_MUCH[name]
    with pytest.raises(CallError) as refused:
        check({"body": body}, Operation(protocol))
    assert (refused.value.cause, refused.value.sent) == (Cause.OVERSIZE, True)


@pytest.mark.parametrize("protocol", ["ec2", "query"])
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_no_parser_sees_what_is_not_plain(name: str, protocol: str) -> None:
    answer = {"body": NOT_PLAIN[name]}
    check(answer, Operation(protocol))
    assert answer["body"] == b""


def test_no_parser_sees_json_that_is_deep() -> None:
    with pytest.raises(CallError) as refused:
        check({"body": b"[" * DEEPEST}, Operation("json"))
    assert (refused.value.cause, refused.value.sent) == (Cause.GARBLED_ANSWER, True)


@pytest.mark.parametrize("count", [200, 1_000])
def test_pages_of_aws_are_seen_as_they_are(count: int) -> None:
    """One call asks for at most 200 instances, and lists the states of 1,000."""
    many = [Instance(f"i-{n:017x}", "running", "eu-central-1a", n) for n in range(count)]
    pages = [ec2_xml.statuses(many, "more", request_id="r"), ec2_xml.instances(many[:500], "more", request_id="r")]
    for page in pages:
        answer = {"body": page}
        check(answer, Operation("ec2"))
        assert answer["body"] == page
