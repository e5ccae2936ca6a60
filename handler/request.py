"""What an invocation asks for. Anything unknown is refused, with the field's name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from aws_lambda_powertools.utilities.data_classes import EventBridgeEvent

from handler.domain.model import INSTANCE_ID, LONGEST_REASON
from handler.domain.shards import MOST_SHARDS, WHOLE, Shard
from handler.domain.state_changes import StateChange, merged
from handler.errors import RequestError, field_refused, shown

APPLY = "apply"
DRY_RUN = "dry-run"
EXPLAIN = "explain"

_SCHEDULERS = ("aws.events", "aws.scheduler")
_SCHEDULED = "Scheduled Event"
_EC2 = "aws.ec2"
_STATE_CHANGE = "EC2 Instance State-change Notification"
_OPTIONS = ("mode", "workspace_ids", "limit", "override_breaker", "adopt")
_HOLD_CHANGES = ("hold", "release")
_SHARDING = ("shard", "shards")
_NARROWING = ("workspace_ids", "limit", "adopt")
_EXPLAINED = "workspace_id"
# In a hold and in a release: everything, in place of single workspaces.
_ALL = "all"
LONGEST_HOLD_SECONDS = 30 * 86_400
# RFC 3339, 5.6
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})", re.IGNORECASE
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Workspaces, or everything (None), to put on hold for `lasts_s` seconds, and why."""

    workspace_ids: tuple[str, ...] | None
    reason: str
    lasts_s: int


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """Workspaces to release, or None: end the hold on everything."""

    workspace_ids: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Request:
    """One cycle of a shard, by default the whole fleet. It may be `scheduled`.

    `workspace_ids` and `limit` narrow it; None means every candidate.
    With `adopt`, it also takes the named workspaces that are offline. `state_changes`, by instance id, narrow it to the
    workspaces that record these instances. With `hold` or `release` there is no cycle, only that change. Nor is there
    with `explain`, the workspace to explain.
    """

    mode: str
    workspace_ids: tuple[str, ...] | None = None
    limit: int | None = None
    override_breaker: bool = False
    adopt: bool = False
    scheduled: bool = False
    hold: HoldRequest | None = None
    release: ReleaseRequest | None = None
    explain: str | None = None
    state_changes: Mapping[str, StateChange] | None = None
    shard: Shard = WHOLE

    @property
    def applies(self) -> bool:
        """Tell whether anything may be written or asked for; otherwise it is a dry run."""
        return self.mode == APPLY

    @property
    def narrowed(self) -> bool:
        """Tell whether the cycle looks at only some of its shard's candidates."""
        return any(one is not None for one in (self.workspace_ids, self.limit, self.state_changes))

    @property
    def asks_for_restarts(self) -> bool:
        """Tell whether the cycle looks after restarts: everybody's, or those of the workspaces named."""
        return not self.narrowed or self.workspace_ids is not None


def parse(event: object, *, ceiling: str = APPLY) -> Request:
    """Return the request that the event makes.

    `ceiling` is the setting MODE: with `dry-run`, every event becomes a dry run. Raises RequestError, which names the
    field, what was found, and what was expected.
    """
    if not isinstance(event, Mapping):
        raise field_refused("event", event, "a JSON object")
    if event.get("source") == _EC2:
        return look_at([state_change(event)], ceiling=ceiling)
    request = _scheduled(event) if "source" in event or "detail-type" in event else _by_hand(event)
    return replace(request, mode=DRY_RUN) if ceiling == DRY_RUN else request


def look_at(changes: Iterable[StateChange], *, ceiling: str = APPLY) -> Request:
    """Return the request to look at the instances that EC2's events name."""
    return Request(DRY_RUN if ceiling == DRY_RUN else APPLY, state_changes=merged(changes))


def state_change(event: object) -> StateChange:
    """Return what one EC2 state-change event says. Raises RequestError, as `parse` does."""
    if not isinstance(event, Mapping):
        raise field_refused("event", event, "a JSON object")
    for name, expected in (("source", _EC2), ("detail-type", _STATE_CHANGE)):
        if event.get(name) != expected:
            raise field_refused(name, event.get(name), expected)
    _refuse_options(event, "a state-change event")
    detail = event.get("detail")
    if not isinstance(detail, Mapping):
        raise field_refused("detail", detail, "an object")
    instance_id, state = detail.get("instance-id"), detail.get("state")
    if not isinstance(instance_id, str) or not INSTANCE_ID.fullmatch(instance_id):
        raise field_refused("detail.instance-id", instance_id, "an EC2 instance id")
    if not isinstance(state, str):
        raise field_refused("detail.state", state, "an instance's state")
    return StateChange(instance_id, state, _seconds(event.get("time")))


def _seconds(time: object) -> float | None:
    """Return a time in seconds since 1970, or None if it cannot be read."""
    if not isinstance(time, str) or not _TIME.fullmatch(time):
        return None
    try:
        return datetime.fromisoformat(time.upper()).timestamp()
    except (ValueError, OverflowError):  # such as a 30th of February
        return None


def _refuse_options(event: Mapping[str, Any], kind: str) -> None:
    for name in (*_OPTIONS, *_HOLD_CHANGES, *_SHARDING, _EXPLAINED):
        if name in event:  # ignoring it would apply what was not to be applied
            raise field_refused(name, event[name], f"no such field in {kind}")


def _scheduled(event: Mapping[str, Any]) -> Request:
    bus_event = EventBridgeEvent({"source": None, "detail-type": None, "detail": {}} | dict(event))
    if bus_event.source not in _SCHEDULERS:
        raise field_refused("source", bus_event.source, " or ".join((*_SCHEDULERS, _EC2)))
    if bus_event.detail_type != _SCHEDULED:
        raise field_refused("detail-type", bus_event.detail_type, _SCHEDULED)
    _refuse_options(event, "a scheduled event")
    detail: object = bus_event.detail
    if not isinstance(detail, Mapping) and detail != "{}":
        raise field_refused("detail", detail, 'an object or the string "{}"')
    return Request(APPLY, scheduled=True)


def _by_hand(event: Mapping[str, Any]) -> Request:
    if event.get("mode") == EXPLAIN:
        return _explanation(event)
    for name in event:
        if name not in (*_OPTIONS, *_HOLD_CHANGES, *_SHARDING):
            expected = f"one of {', '.join((*_OPTIONS, *_HOLD_CHANGES, *_SHARDING))}, or a scheduled event"
            raise RequestError(f"event field {shown(name)}: unknown; expected {expected}")
    mode = event.get("mode", DRY_RUN)
    if mode not in (APPLY, DRY_RUN):
        raise field_refused("mode", mode, f"{APPLY}, {DRY_RUN} or {EXPLAIN}")
    for name in _HOLD_CHANGES:
        if name in event:
            return _hold_change(name, event, mode)
    if "adopt" in event and "workspace_ids" not in event:
        raise field_refused("adopt", event["adopt"], "no such field without workspace_ids")
    override, adopt = _switch(event, "override_breaker"), _switch(event, "adopt")
    ids = _workspace_ids("workspace_ids", event["workspace_ids"]) if "workspace_ids" in event else None
    return Request(mode, ids, _limit(event), override, adopt, shard=_shard(event))


def _shard(event: Mapping[str, Any]) -> Shard:
    """Return the shard that the event names: both of its fields, or neither."""
    if not any(name in event for name in _SHARDING):
        return WHOLE
    for name in _NARROWING:
        if name in event:
            raise field_refused(name, event[name], "no such field beside shard and shards")
    number, of = (event.get(name) for name in _SHARDING)
    if isinstance(of, bool) or not isinstance(of, int) or not 1 <= of <= MOST_SHARDS:
        raise field_refused("shards", of, f"a whole number from 1 to {MOST_SHARDS}, beside shard")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < of:
        raise field_refused("shard", number, f"a whole number from 0 to {of - 1}, beside shards")
    return Shard(number, of)


def _explanation(event: Mapping[str, Any]) -> Request:
    for name in event:
        if name not in ("mode", _EXPLAINED):
            raise field_refused(name, event[name], f"no such field beside the mode {EXPLAIN}")
    workspace_id = event.get(_EXPLAINED)
    if not isinstance(workspace_id, str) or not _UUID.fullmatch(workspace_id):
        raise field_refused(_EXPLAINED, workspace_id, "a UUID")
    return Request(EXPLAIN, explain=workspace_id.lower())


def _hold_change(name: str, event: Mapping[str, Any], mode: str) -> Request:
    for other in event:
        if other not in (name, "mode"):
            raise field_refused(other, event[other], f"no such field beside {name}")
    if name == "release":
        released = event[name]
        ids = None if released == _ALL else _workspace_ids(name, released, or_else=f' or "{_ALL}"')
        return Request(mode, release=ReleaseRequest(ids))
    hold = event[name]
    expected = '{"workspace_ids": [UUID, …] or "all": true, "reason": text, "seconds": n}'
    if not isinstance(hold, Mapping) or hold.keys() - {"workspace_ids", _ALL} != {"reason", "seconds"}:
        raise field_refused(name, hold, expected)
    if "workspace_ids" not in hold and _ALL not in hold:
        raise field_refused(name, hold, expected)
    if "workspace_ids" in hold and _ALL in hold:
        raise field_refused(f"hold.{_ALL}", hold[_ALL], "no such field beside workspace_ids")
    reason, seconds = hold["reason"], hold["seconds"]
    if not isinstance(reason, str) or not reason.strip() or not reason.isprintable() or len(reason) > LONGEST_REASON:
        raise field_refused("hold.reason", reason, f"a line of 1 to {LONGEST_REASON} printable characters")
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= LONGEST_HOLD_SECONDS:
        raise field_refused("hold.seconds", seconds, f"a whole number from 1 to {LONGEST_HOLD_SECONDS} (30 days)")
    if hold.get(_ALL, True) is not True:
        raise field_refused(f"hold.{_ALL}", hold[_ALL], "true")
    ids = None if _ALL in hold else _workspace_ids("hold.workspace_ids", hold["workspace_ids"])
    return Request(mode, hold=HoldRequest(ids, reason, seconds))


def _switch(event: Mapping[str, Any], name: str) -> bool:
    value = event.get(name, False)
    if not isinstance(value, bool):
        raise field_refused(name, value, "true or false")
    return value


def _workspace_ids(name: str, ids: object, *, or_else: str = "") -> tuple[str, ...]:
    if not isinstance(ids, list) or not ids:
        raise field_refused(name, ids, f"a list of one or more UUIDs{or_else}")
    for position, one in enumerate(ids):
        if not isinstance(one, str) or not _UUID.fullmatch(one):
            raise field_refused(f"{name}[{position}]", one, "a UUID")
    return tuple(dict.fromkeys(one.lower() for one in ids))


def _limit(event: Mapping[str, Any]) -> int | None:
    if "limit" not in event:
        return None
    limit = event["limit"]
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise field_refused("limit", limit, "a whole number of 1 or more")
    return limit
