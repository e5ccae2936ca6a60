"""What an invocation asks for. What is not understood is refused, with the field's name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handler.errors import RequestError, shown

APPLY = "apply"
DRY_RUN = "dry-run"

_SCHEDULERS = ("aws.events", "aws.scheduler")
_SCHEDULED = "Scheduled Event"
_OPTIONS = ("mode", "workspace_ids", "limit", "override_breaker")
_SHARDING = ("shard", "shards")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """One cycle's order: `workspace_ids` and `limit` narrow it, None means every candidate."""

    mode: str
    workspace_ids: tuple[str, ...] | None = None
    limit: int | None = None
    override_breaker: bool = False

    @property
    def narrowed(self) -> bool:
        """Tell whether the cycle looks at a part of the candidates only."""
        return self.workspace_ids is not None or self.limit is not None


def parse(event: object, *, ceiling: str = APPLY) -> Request:
    """Return the request that the event makes.

    `ceiling` is the setting MODE: with `dry-run` every event becomes a dry run. Raises
    RequestError, naming the field, what was found and what was expected.
    """
    if not isinstance(event, Mapping):
        raise _refusal("event", event, "a JSON object")
    request = _from_bus(event) if "source" in event or "detail-type" in event else _by_hand(event)
    if ceiling == DRY_RUN:
        return Request(DRY_RUN, request.workspace_ids, request.limit, request.override_breaker)
    return request


def _from_bus(event: Mapping[str, Any]) -> Request:
    source, kind = event.get("source"), event.get("detail-type")
    if source == "aws.ec2":
        raise _refusal("source", source, "aws.events or aws.scheduler: EC2 events are not supported yet")
    if source not in _SCHEDULERS:
        raise _refusal("source", source, " or ".join(_SCHEDULERS))
    if kind != _SCHEDULED:
        raise _refusal("detail-type", kind, _SCHEDULED)
    for name in (*_OPTIONS, *_SHARDING):
        if name in event:  # it would be ignored, and the cycle would apply in full
            raise _refusal(name, event[name], "no such field in a scheduled event")
    detail = event.get("detail", {})
    if not isinstance(detail, Mapping) and detail != "{}":
        raise _refusal("detail", detail, 'an object or the string "{}"')
    return Request(APPLY)


def _by_hand(event: Mapping[str, Any]) -> Request:
    for name in event:
        if name in _SHARDING:
            raise _refusal(name, event[name], "no such field: shards are not supported yet")
        if name not in _OPTIONS:
            expected = f"one of {', '.join(_OPTIONS)}, or a scheduled event"
            raise RequestError(f"event field {shown(name)}: unknown; expected {expected}")
    mode = event.get("mode", DRY_RUN)
    if mode not in (APPLY, DRY_RUN):
        raise _refusal("mode", mode, f"{APPLY} or {DRY_RUN}")
    override = event.get("override_breaker", False)
    if not isinstance(override, bool):
        raise _refusal("override_breaker", override, "true or false")
    return Request(mode, _workspace_ids(event), _limit(event), override)


def _workspace_ids(event: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "workspace_ids" not in event:
        return None
    ids = event["workspace_ids"]
    if not isinstance(ids, list) or not ids:
        raise _refusal("workspace_ids", ids, "a list of one or more UUIDs")
    for position, one in enumerate(ids):
        if not isinstance(one, str) or not _UUID.fullmatch(one):
            raise _refusal(f"workspace_ids[{position}]", one, "a UUID")
    return tuple(dict.fromkeys(one.lower() for one in ids))


def _limit(event: Mapping[str, Any]) -> int | None:
    if "limit" not in event:
        return None
    limit = event["limit"]
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise _refusal("limit", limit, "a whole number of 1 or more")
    return limit


def _refusal(name: str, found: object, expected: str) -> RequestError:
    return RequestError(f"event field {name}: found {shown(found)}; expected {expected}")
