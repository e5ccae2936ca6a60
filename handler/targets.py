"""The setting EC2_TARGETS: which Regions and accounts are asked about instances."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from handler.errors import SettingsError, shown

VARIABLE = "EC2_TARGETS"
MOST_TARGETS = 1000

_FIELDS = ("region", "role_arn", "external_id", "may_be_empty")
_EXAMPLE = '[{"region": "eu-west-1"}, …]'
_REGION = re.compile(r"[a-z]{2,8}(?:-[a-z]{1,16}){1,3}-[0-9]{1,2}")
# https://docs.aws.amazon.com/IAM/latest/APIReference/API_Role.html
_ROLE_ARN = re.compile(
    r"arn:aws(?:-cn|-us-gov)?:iam::(?P<account>[0-9]{12}):role/(?:[\x21-\x7e]{1,510}/)?[A-Za-z0-9_+=,.@-]{1,64}"
)
# https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
_EXTERNAL_ID = re.compile(r"[A-Za-z0-9_+=,.@:/-]{2,1224}")


@dataclass(frozen=True, slots=True)
class Target:
    """One Region of one account: the function's own, or the one in which it assumes the role.

    Unless it `may_be_empty`, a cycle in which no instance is found there believes nobody to be absent.
    """

    region: str
    role_arn: str | None = None
    external_id: str | None = field(default=None, repr=False)
    may_be_empty: bool = False

    @property
    def name(self) -> str:
        """What log, doubts and report call it: the Region, and the account if it is another one."""
        return self.region if self.role_arn is None else f"{self.region}/{self.role_arn.split(':')[4]}"


def targets_from(text: str) -> tuple[Target, ...]:
    """Read the variable's value. Raises SettingsError, which names the place in the list and what was expected."""
    listed = _parsed(text)
    expected = f"a list of 1 to {MOST_TARGETS} targets"
    if not isinstance(listed, list):
        raise _refusal("", shown(listed), expected)
    if not 1 <= len(listed) <= MOST_TARGETS:
        raise _refusal("", f"{len(listed)} targets", expected)
    targets: dict[str, Target] = {}
    for place, one in enumerate(listed):
        target = _target(f"[{place}]", one)
        if target.name in targets:
            raise _refusal(f"[{place}]", f"{target.name} again", "each Region and account once")
        targets[target.name] = target
    return tuple(targets.values())


def _parsed(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise SettingsError(f"{VARIABLE}: not JSON; expected a list like {_EXAMPLE}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _target(place: str, found: object) -> Target:
    if not isinstance(found, dict):
        raise _refusal(place, shown(found), 'an object like {"region": "eu-west-1"}')
    for name in found:
        if name not in _FIELDS:
            raise _refusal(place, f"the field {shown(name)}", f"none but {', '.join(_FIELDS)}")
    region, may_be_empty = found.get("region"), found.get("may_be_empty", False)
    if not isinstance(region, str) or not _REGION.fullmatch(region):
        raise _refusal(f"{place}.region", shown(region), "a Region like eu-west-1")
    if not isinstance(may_be_empty, bool):
        raise _refusal(f"{place}.may_be_empty", shown(may_be_empty), "true or false")
    return Target(region, _role_arn(place, found), _external_id(place, found), may_be_empty)


def _role_arn(place: str, found: dict[str, Any]) -> str | None:
    if "role_arn" not in found:
        return None
    arn = found["role_arn"]
    if not isinstance(arn, str) or not _ROLE_ARN.fullmatch(arn):
        raise _refusal(f"{place}.role_arn", shown(arn), "a role like arn:aws:iam::123456789012:role/name")
    return arn


def _external_id(place: str, found: dict[str, Any]) -> str | None:
    """Return the external id, which no error shows: some treat it as a secret."""
    if "external_id" not in found:
        return None
    if "role_arn" not in found:
        raise _refusal(f"{place}.external_id", "without role_arn", "it only beside the role that asks for it")
    external_id = found["external_id"]
    if not isinstance(external_id, str) or not _EXTERNAL_ID.fullmatch(external_id):
        raise _refusal(f"{place}.external_id", "what STS does not take", "2 to 1224 letters, digits or _+=,.@:/-")
    return external_id


def _refusal(place: str, found: str, expected: str) -> SettingsError:
    return SettingsError(f"{VARIABLE}{place}: found {found}; expected {expected}")
