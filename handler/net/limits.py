"""What an answer may be made of before a parser sees it: parsers make 300 bytes of an element that is four bytes long.

Real answers stay far below these limits. A `DescribeInstances` answer has 3.4 KB and 100 elements for each instance,
ten levels deep. One call asks for 200, so 0.7 MB and 20,000 elements. The limits leave room for five times that, and
what needs more is asked for in smaller batches. With eight such answers at once, a process stays below the function's
512 MB (tests/integration/test_large_answers.py).
"""

import re
from itertools import accumulate
from typing import Any

from handler.domain.model import Cause
from handler.net.bounded import CallError

# botocore's own handlers use this event in the same way. Handlers of a single operation come first.
EVENT = "before-parse"

_JSON_PROTOCOLS = ("json", "rest-json")  # the others that botocore would use for our services are XML

DEEPEST = 64
MOST_MEMORY = 32 * 1024 * 1024
# Measured with Python 3.13: an element with a name of its own; and each piece of a text, which every line break and
# every reference splits.
_BYTES_PER_ELEMENT = 300
_BYTES_PER_PIECE = 90

# Only plain XML: no attributes below the root, which has its namespace, and no prefixes, comments, CDATA, processing
# instructions, or document types, whose entities grow. AWS sends none of these. Without them each `<` begins a tag.
_XML_ROOT = re.compile(
    rb'\s*+(?:<\?xml [^<>]{1,100}\?>)?+\s*+<[A-Za-z][0-9A-Za-z]*+(?: xmlns="[^"<>]{1,200}")?+[\t\n\r ]*+(?P<empty>/?+)>'
)
_XML_TAG = re.compile(rb"<(/?+)[A-Za-z][0-9A-Za-z_.-]*+[\t\n\r ]*+(/?+)>")
_XML_STEPS = {(b"", b""): 1, (b"/", b""): -1, (b"", b"/"): 0, (b"/", b"/"): DEEPEST}  # the last one is no tag

# A string without an end reaches to the end of the text. To look for another from each of its quotes takes minutes.
_JSON_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)
_JSON_BRACKET = re.compile(r"[\[\]{}]")
_JSON_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def is_plain_xml(body: bytes) -> bool:
    """Tell whether this is XML that every parser reads alike, and that is not too deep."""
    root = _XML_ROOT.match(body)
    if root is None or b"\0" in body:  # UTF-16 has a NUL in each tag
        return False
    tags = _XML_TAG.findall(body, root.end())
    if len(tags) != body.count(b"<", root.end()):
        return False
    depths = accumulate((_XML_STEPS[tag] for tag in tags), initial=0 if root["empty"] else 1)
    return max(depths) < DEEPEST


def is_shallow_json(text: str) -> bool:
    """Tell whether JSON is not too deep for the stack of any thread. It need not be JSON."""
    if text.count("[") + text.count("{") < DEEPEST:
        return True
    brackets = _JSON_BRACKET.findall(_JSON_STRING.sub("", text))
    return max(accumulate((_JSON_STEPS[one] for one in brackets), initial=0)) < DEEPEST


def check(response_dict: dict[str, Any], operation_model: Any, **_: Any) -> None:
    """Handle EVENT. botocore gets an empty body instead of XML that is not plain: it treats that as no answer.

    Raises CallError.
    """
    body: bytes = response_dict["body"]
    if operation_model.service_model.resolved_protocol in _JSON_PROTOCOLS:
        _check_json(body)
        return
    elements = body.count(b"<") - body.count(b"</")
    pieces = body.count(b"\n") + body.count(b"\r") + body.count(b"&")
    if elements * _BYTES_PER_ELEMENT + pieces * _BYTES_PER_PIECE > MOST_MEMORY:
        raise CallError(Cause.OVERSIZE, sent=True)
    if not is_plain_xml(body):
        response_dict["body"] = b""


def _check_json(body: bytes) -> None:
    if sum(body.count(one) for one in (b"[", b"{", b",")) * _BYTES_PER_PIECE > MOST_MEMORY:
        raise CallError(Cause.OVERSIZE, sent=True)
    if not is_shallow_json(body.decode("utf-8", "replace")):
        raise CallError(Cause.GARBLED_ANSWER, sent=True)
