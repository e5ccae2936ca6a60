"""What the project is compared with. Each peer does the least that it can: no second probe, no event, no restart owed.

They take their environment as the handler does, and an event of which only `limit` counts: how many rows to look at.
Each leaves its clients and its connection open for the next event.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import islice
from typing import Any
from urllib.parse import urlencode, urlsplit

import boto3
import pg8000.native
import urllib3

# The loop that the project replaces: the rows that were updated last, one check after another, until the time is up.
LOOP_ROWS = 200
LOOP_SECONDS = 45.0
# https://github.com/kubernetes/cloud-provider-aws and https://github.com/aws/karpenter-provider-aws
BATCH = 500
LARGEST_BATCH = 1000
AT_ONCE = 8
IDS_IN_A_FILTER = 200

_CANDIDATES = (
    "SELECT id::text, instance_id FROM workspaces WHERE status IN ('online', 'degraded')"
    " AND instance_id <> '' AND COALESCE(runtime, '') <> 'external'"
)
_DEAD = ("stopped", "terminated")


def loop(event: dict[str, Any]) -> dict[str, Any]:
    """Ask the control plane about one workspace after another."""
    return _looped(event, _ask_control_plane)


def loop_ec2(event: dict[str, Any]) -> dict[str, Any]:
    """Ask EC2 about one workspace after another."""
    return _looped(event, lambda _, instance_id: _described([instance_id])[instance_id])


def batches(event: dict[str, Any]) -> dict[str, Any]:
    """Ask EC2 about 500 instances after another."""
    rows = _rows(event)
    states = [_described([row[1] for row in batch]) for batch in _batched(rows, BATCH)]
    return _flip_dead(rows, states)


def batches_at_once(event: dict[str, Any]) -> dict[str, Any]:
    """Ask EC2 about 1,000 instances a call, with 8 calls at once."""
    rows = _rows(event)
    _ec2()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        states = list(pool.map(lambda batch: _described([row[1] for row in batch]), _batched(rows, LARGEST_BATCH)))
    return _flip_dead(rows, states)


def bare_calls(event: dict[str, Any]) -> dict[str, Any]:
    """Run the bare SELECT, and the bare calls by filter, 200 ids each, 8 at once; judge and write nothing."""
    rows = _rows(event)
    ec2 = _ec2()

    def describe(batch: Sequence[Any]) -> int:
        ids = [row[1] for row in batch]
        answer = ec2.describe_instances(Filters=[{"Name": "instance-id", "Values": ids}], MaxResults=1000)
        return sum(len(reservation["Instances"]) for reservation in answer["Reservations"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {"checked": sum(pool.map(describe, _batched(rows, IDS_IN_A_FILTER))), "flipped": 0}


def bare_call(event: dict[str, Any]) -> dict[str, Any]:
    """Run the bare SELECT, and the bare calls by 1,000 ids, one after another; judge and write nothing."""
    states = [_described([row[1] for row in batch]) for batch in _batched(_rows(event), LARGEST_BATCH)]
    return {"checked": sum(map(len, states)), "flipped": 0}


def _looped(event: dict[str, Any], ask: Callable[[str, str], str]) -> dict[str, Any]:
    ends_at = time.monotonic() + LOOP_SECONDS
    limit = min(event.get("limit", LOOP_ROWS), LOOP_ROWS)
    checked, states = [], {}
    for workspace_id, instance_id in _database().run(f"{_CANDIDATES} ORDER BY updated_at DESC LIMIT :most", most=limit):
        if time.monotonic() >= ends_at:
            break
        states[instance_id] = ask(workspace_id, instance_id)
        checked.append((workspace_id, instance_id))
    return _flip_dead(checked, [states])


def _rows(event: dict[str, Any]) -> list[Any]:
    rows: list[Any] = _database().run(f"{_CANDIDATES} LIMIT :most", most=event.get("limit"))
    return rows


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    every = iter(rows)
    return iter(lambda: list(islice(every, size)), [])


def _described(ids: Sequence[str]) -> dict[str, str]:
    answer = _ec2().describe_instances(InstanceIds=ids)
    return {
        instance["InstanceId"]: instance["State"]["Name"]
        for reservation in answer["Reservations"]
        for instance in reservation["Instances"]
    }


def _flip_dead(rows: Sequence[Any], answers: Iterable[dict[str, str]]) -> dict[str, Any]:
    states = {instance_id: state for answer in answers for instance_id, state in answer.items()}
    dead = [workspace_id for workspace_id, instance_id in rows if states.get(instance_id) in _DEAD]
    for workspace_id in dead:
        _database().run("UPDATE workspaces SET status = 'offline', updated_at = now() WHERE id = :id", id=workspace_id)
    return {"checked": len(states), "flipped": len(dead)}


def _ask_control_plane(workspace_id: str, instance_id: str) -> str:
    url = f"{os.environ['CP_BASE_URL']}/cp/workspaces/{workspace_id}/status?{urlencode({'instance_id': instance_id})}"
    answer = _http()("GET", url, timeout=10.0)
    return str(json.loads(answer.data)["state"])


@cache
def _ec2() -> Any:
    return boto3.client("ec2", region_name=os.environ["AWS_REGION"])


@cache
def _http() -> Callable[..., urllib3.BaseHTTPResponse]:
    headers = {
        "Authorization": f"Bearer {os.environ['CP_SHARED_SECRET']}",
        "X-Molecule-Admin-Token": os.environ["CP_ADMIN_TOKEN"],
    }
    return partial(urllib3.PoolManager().request, headers=headers)


@cache
def _database() -> Any:
    url = urlsplit(os.environ["DATABASE_URL"])
    return pg8000.native.Connection(
        str(url.username), url.hostname or "", url.path[1:], url.port or 0, url.password, ssl_context=False
    )
