"""State-change events on their whole way: EC2, the rule, a real queue, Lambda's event source mapping, the handler."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.ec2 import MotoEc2
from sandbox.event_source import Delivery, EventSourceMapping
from sandbox.invocation import Invocation
from sandbox.queue import StateChangeQueue
from sandbox.state_changes import state_change
from tests.support.events import APPLY
from tests.support.stage import Stage

AWAY = "postgresql://reconciler@127.0.0.1:1/away?sslmode=disable"


@pytest.fixture
def account(cloud: Stage) -> MotoEc2:
    assert cloud.moto is not None
    return cloud.moto


@pytest.fixture
def queue(account: MotoEc2) -> Iterator[StateChangeQueue]:
    with StateChangeQueue(account) as queue:
        yield queue


@pytest.fixture
def workspaces(cloud: Stage) -> list[str]:
    """Ten workspaces on running instances."""
    return cloud.add_all(10, "running")


def handle(cloud: Stage, queue: StateChangeQueue, **settings: str) -> Delivery:
    """Have the handler take the next batch, within milliseconds of its first message."""
    mapping = EventSourceMapping(queue, lambda batch: cloud.invoke.batch(batch, **settings), window_s=0.1)
    delivery = mapping.deliver()
    assert delivery is not None
    return delivery


def flips(cloud: Stage) -> Counter[str]:
    """Count the flips of each workspace, which has left as many events and owed restarts."""
    events = Counter(one["workspace_id"] for one in cloud.fleet.events())
    assert events == Counter(one["workspace_id"] for one in cloud.fleet.restarts())
    return events


def test_a_death_is_flipped_by_its_event_and_the_message_is_gone(
    cloud: Stage, account: MotoEc2, queue: StateChangeQueue, workspaces: list[str]
) -> None:
    account.stop_instances([cloud.instance_of(workspaces[0])])
    account.terminate([cloud.instance_of(workspaces[1])])
    delivery = handle(cloud, queue)
    assert (len(delivery.records), delivery.kept, queue.waiting()) == (2, [], [])
    assert flips(cloud) == dict.fromkeys(workspaces[:2], 1)


def test_doubled_late_and_disordered_events_flip_once(
    cloud: Stage, account: MotoEc2, queue: StateChangeQueue, workspaces: list[str]
) -> None:
    instance_id, now_s = cloud.instance_of(workspaces[0]), time.time()
    account.terminate([instance_id])  # its event comes first
    earlier = [state_change(instance_id, "stopped", now_s - age_s) for age_s in (2, 5, 3_000)]
    queue.send(*earlier, *earlier, *queue.waiting())
    assert len(handle(cloud, queue).records) == 8
    queue.send(*earlier)
    handle(cloud, queue)
    assert queue.waiting() == []
    assert flips(cloud) == {workspaces[0]: 1}


def test_a_lying_event_flips_nothing_and_does_not_come_again(
    cloud: Stage, queue: StateChangeQueue, workspaces: list[str]
) -> None:
    queue.send(*(state_change(cloud.instance_of(one)) for one in workspaces))
    assert handle(cloud, queue).kept == []
    assert (flips(cloud), queue.waiting()) == ({}, [])


def test_what_nobody_can_read_is_dropped_and_keeps_no_good_message_back(
    cloud: Stage, account: MotoEc2, queue: StateChangeQueue, workspaces: list[str]
) -> None:
    queue.send("no JSON", "[]", {"source": "aws.s3"}, state_change("i-nonsense", "stopped"), "x" * 10_000)
    account.terminate([cloud.instance_of(workspaces[0])])
    delivery = handle(cloud, queue)
    assert (len(delivery.records), delivery.error, queue.waiting()) == (6, None, [])
    assert flips(cloud) == {workspaces[0]: 1}


def test_what_could_not_be_judged_comes_again(
    cloud: Stage, account: MotoEc2, queue: StateChangeQueue, workspaces: list[str]
) -> None:
    account.terminate([cloud.instance_of(workspaces[0])])
    queue.send("no JSON")
    failed = handle(cloud, queue, DATABASE_URL=AWAY)
    assert failed.error is None, "one failure each, not one for the batch"
    assert [json.loads(one["body"])["detail"]["state"] for one in failed.kept] == ["terminated"]
    queue.end_visibility()
    again = handle(cloud, queue)
    assert [one["messageId"] for one in again.records] == [one["messageId"] for one in failed.kept]
    assert (again.kept, queue.waiting(), flips(cloud)) == ([], [], {workspaces[0]: 1})


def test_what_is_given_up_is_found_by_the_next_full_cycle(
    cloud: Stage, account: MotoEc2, queue: StateChangeQueue, workspaces: list[str]
) -> None:
    account.terminate([cloud.instance_of(workspaces[0])])
    for _ in range(5):
        handle(cloud, queue, DATABASE_URL=AWAY)
        queue.end_visibility()
    assert EventSourceMapping(queue, cloud.invoke.batch).deliver() is None
    assert (queue.waiting(), len(queue.dead_letters())) == ([], 1)
    assert cloud.glance(APPLY).report["flipped"] == 1
    assert flips(cloud) == {workspaces[0]: 1}


def test_batches_side_by_side_with_the_same_deaths_flip_each_once(
    cloud: Stage, account: MotoEc2, queue: StateChangeQueue, workspaces: list[str]
) -> None:
    cloud.add_all(10, "running")  # so that the breaker stays closed
    dead = [cloud.instance_of(one) for one in workspaces]
    queue.send(*(state_change(one) for one in dead))
    account.terminate(dead)

    def invoke(batch: dict[str, Any]) -> dict[str, Any]:
        with Invocation(batch, cloud.invoke.environment, handler="handler.events") as invocation:
            return invocation.wait(timeout_s=30)

    with EventSourceMapping(queue, invoke, batch=10, window_s=0.5) as mapping:
        while queue.waiting():
            mapping.wait()
    assert sum(len(one.records) for one in mapping.deliveries) == 20
    assert [one.error for one in mapping.deliveries] == [None] * len(mapping.deliveries)
    assert flips(cloud) == dict.fromkeys(workspaces, 1)
