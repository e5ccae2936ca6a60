"""The sandbox's queue and event source mapping keep what SQS and Lambda promise, on moto's SQS over HTTP."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox.ec2 import MotoEc2
from sandbox.event_source import Delivery, EventSourceMapping
from sandbox.queue import StateChangeQueue
from sandbox.state_changes import state_change
from tests.support.events import event

Answer = Callable[[dict[str, Any]], Any]


@pytest.fixture
def queue(ec2: MotoEc2) -> Iterator[StateChangeQueue]:
    with StateChangeQueue(ec2) as queue:
        yield queue


def delivered(queue: StateChangeQueue, answer: Answer, **options: Any) -> Delivery:
    delivery = EventSourceMapping(queue, answer, **({"window_s": 0.2} | options)).deliver()
    assert delivery is not None
    return delivery


def bodies(records: list[dict[str, Any]]) -> list[str]:
    return [one["body"] for one in records]


def returning(*failed: str) -> Answer:
    """Return a handler that returns the messages with these bodies."""
    return lambda sent: {
        "batchItemFailures": [{"itemIdentifier": one["messageId"]} for one in sent["Records"] if one["body"] in failed]
    }


def test_instances_that_stop_or_terminate_leave_an_event_each_and_no_other_does(
    ec2: MotoEc2, queue: StateChangeQueue
) -> None:
    stopped, terminated, running = ec2.launch(3)
    ec2.stop_instances([stopped])
    ec2.stop_instances([stopped])
    ec2.start_instances([stopped, running])
    ec2.terminate([terminated])
    ec2.terminate([terminated])
    sent = [json.loads(one) for one in queue.waiting()]
    assert [one["detail"] for one in sent] == [
        {"instance-id": stopped, "state": "stopped"},
        {"instance-id": terminated, "state": "terminated"},
    ]
    assert all(one.keys() == event("ec2-state-change").keys() for one in sent)


def test_a_record_looks_like_lambda_s(queue: StateChangeQueue) -> None:
    queue.send(state_change("i-0123456789abcdef0", "stopped"))
    (record,) = delivered(queue, returning()).records
    (sample, _) = event("sqs-state-changes")["Records"]
    assert record.keys() == sample.keys()
    assert record["attributes"].keys() >= sample["attributes"].keys()
    assert json.loads(record["body"]).keys() == json.loads(sample["body"]).keys()


def test_what_the_handler_does_not_return_is_deleted_and_the_rest_comes_again(queue: StateChangeQueue) -> None:
    queue.send("good", "bad", "good too")
    first = delivered(queue, returning("bad"))
    assert sorted(bodies(first.records)) == ["bad", "good", "good too"]
    assert (bodies(first.kept), queue.waiting()) == (["bad"], ["bad"])
    assert EventSourceMapping(queue, returning()).deliver() is None, "nobody sees it meanwhile"
    queue.end_visibility()
    again = delivered(queue, returning())
    assert again.records[0]["attributes"]["ApproximateReceiveCount"] == "2"
    assert (bodies(again.records), queue.waiting()) == (["bad"], [])


def test_a_handler_that_raises_keeps_the_whole_batch(queue: StateChangeQueue) -> None:
    def raises(_: Any) -> Any:
        raise RuntimeError("the database is away")

    queue.send("one", "two")
    delivery = delivered(queue, raises)
    assert isinstance(delivery.error, RuntimeError)
    assert sorted(queue.waiting()) == ["one", "two"]


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": None}, {"batchItemFailures": []}])
def test_an_answer_without_failures_is_a_success(answer: Any, queue: StateChangeQueue) -> None:
    queue.send("one")
    assert delivered(queue, lambda _: answer).kept == []


@pytest.mark.parametrize("failure", [{}, {"itemIdentifier": None}, {"itemIdentifier": ""}, {"itemIdentifier": "x"}])
def test_an_answer_that_makes_no_sense_keeps_the_whole_batch(failure: Any, queue: StateChangeQueue) -> None:
    queue.send("one", "two")
    delivery = delivered(queue, lambda _: {"batchItemFailures": [failure]})
    assert sorted(bodies(delivery.kept)) == ["one", "two"]


def test_what_fails_five_times_becomes_a_dead_letter(queue: StateChangeQueue) -> None:
    queue.send("bad")
    for _ in range(5):
        assert queue.dead_letters() == []
        delivered(queue, returning("bad"))
        queue.end_visibility()
    assert EventSourceMapping(queue, returning("bad")).deliver() is None
    assert (queue.waiting(), queue.dead_letters()) == ([], ["bad"])


def test_a_batch_has_at_most_its_size_and_the_rest_is_the_next_one(queue: StateChangeQueue) -> None:
    queue.send(*(str(number) for number in range(130)))
    first = delivered(queue, returning(), window_s=30)
    second = delivered(queue, returning(), batch=30, window_s=30)
    assert [len(one.records) for one in (first, second)] == [100, 30]
    assert queue.waiting() == []


def test_a_message_within_the_window_is_in_the_same_batch(queue: StateChangeQueue) -> None:
    queue.send("first")
    late = threading.Timer(0.05, queue.send, ["second"])
    late.start()
    delivery = delivered(queue, returning(), batch=2, window_s=30)
    late.join()
    assert bodies(delivery.records) == ["first", "second"]


def test_as_many_batches_are_under_way_as_the_concurrency_says_and_no_more(queue: StateChangeQueue) -> None:
    under_way, most, both = 0, 0, threading.Barrier(2)
    lock = threading.Lock()

    def count(_: Any) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        both.wait(10)
        with lock:
            under_way -= 1

    queue.send(*(str(number) for number in range(6)))
    with EventSourceMapping(queue, count, batch=1, window_s=0.0) as mapping:
        for _ in range(6):
            mapping.wait()
    assert most == 2
    assert [one.error for one in mapping.deliveries] == [None] * 6
