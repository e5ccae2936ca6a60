"""EC2's state-change events on their way to the handler: EventBridge's rule, and the queue that it fills.

The queue is moto's SQS. Its times are the template's unless a test wants others.
"""

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Self

from moto.backends import get_backend
from moto.sqs.models import Message, SQSBackend

from sandbox.ec2 import ACCOUNT_ID, REGION, MotoEc2
from sandbox.state_changes import state_change

RETENTION_S = 3600
VISIBILITY_S = 182
RECEIVES = 5

# What the template's rule passes on.
_STATES = ("stopped", "terminated")
# SQS takes and gives no more at once.
_AT_ONCE = 10
_RECORD = {"messageAttributes": {}, "eventSource": "aws:sqs", "awsRegion": REGION}


class StateChangeQueue:
    """The queue of state-change events and its dead letters, from `with` to its end.

    While it is there, it gets an event for each instance that stops or terminates in `ec2`. `send` adds anything else.
    """

    def __init__(self, ec2: MotoEc2, *, visibility_s: int = VISIBILITY_S, receives: int = RECEIVES) -> None:
        self._ec2 = ec2
        self._sqs = ec2.client("sqs")
        self._name = f"state-changes-{uuid.uuid4()}"
        self._dead_letters = self._sqs.create_queue(QueueName=f"{self._name}-dead-letters")["QueueUrl"]
        redrive = {"deadLetterTargetArn": self._arn(f"{self._name}-dead-letters"), "maxReceiveCount": receives}
        attributes = {
            "VisibilityTimeout": str(visibility_s),
            "MessageRetentionPeriod": str(RETENTION_S),
            "RedrivePolicy": json.dumps(redrive),
        }
        self._url = self._sqs.create_queue(QueueName=self._name, Attributes=attributes)["QueueUrl"]

    def __enter__(self) -> Self:
        self._ec2.on_state_change = self._rule
        return self

    def __exit__(self, *_: object) -> None:
        self._ec2.on_state_change = None
        self._sqs.close()

    def send(self, *messages: Any) -> None:
        """Add messages: text as it is, anything else as JSON."""
        texts = iter([one if isinstance(one, str) else json.dumps(one) for one in messages])
        while some := list(islice(texts, _AT_ONCE)):
            entries = [{"Id": str(number), "MessageBody": text} for number, text in enumerate(some)]
            self._sqs.send_message_batch(QueueUrl=self._url, Entries=entries)

    def receive(self, most: int, *, wait_s: int = 0) -> list[dict[str, Any]]:
        """Take some messages, as records of Lambda's event. Others do not see them until their visibility ends."""
        answer = self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=min(most, _AT_ONCE),
            WaitTimeSeconds=wait_s,
            AttributeNames=["All"],
        )
        return [self._record(message) for message in answer.get("Messages", [])]

    def delete(self, records: Iterable[dict[str, Any]]) -> None:
        """Delete messages that were received."""
        rest = iter(records)
        while some := list(islice(rest, _AT_ONCE)):
            entries = [{"Id": str(number), "ReceiptHandle": one["receiptHandle"]} for number, one in enumerate(some)]
            self._sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)

    def end_visibility(self) -> None:
        """Let the messages that were received and not deleted appear again, as if their time were over."""
        for message in self._messages(self._name):
            message.visible_at = 0.0

    def passes(self, seconds: float) -> None:
        """Make all messages that much older, as if time had passed."""
        for name in (self._name, f"{self._name}-dead-letters"):
            for message in self._messages(name):
                message.sent_timestamp -= round(seconds * 1000)  # type: ignore[operator,assignment]  # it was sent
                message.visible_at -= seconds * 1000

    def oldest_s(self) -> float:
        """Return how long ago the oldest message that is not deleted was sent."""
        return max((time.time() - message.sent_timestamp / 1000 for message in self._messages(self._name)), default=0.0)  # type: ignore[operator]  # likewise

    def purge(self) -> None:
        """Delete all messages, those that were given up, too."""
        for url in (self._url, self._dead_letters):
            self._sqs.purge_queue(QueueUrl=url)

    def waiting(self) -> list[str]:
        """Return the bodies of all messages that are not deleted."""
        return [message.body for message in self._messages(self._name)]

    def dead_letters(self) -> list[str]:
        """Return the bodies of the messages that were given up."""
        return [message.body for message in self._messages(f"{self._name}-dead-letters")]

    def _rule(self, instance_id: str, state: str) -> None:
        if state in _STATES:
            self.send(state_change(instance_id, state))

    def _record(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "md5OfBody": message["MD5OfBody"],
            "eventSourceARN": self._arn(self._name),
            **_RECORD,
        }

    def _messages(self, name: str) -> Sequence[Message]:
        queue = get_backend("sqs")[ACCOUNT_ID][REGION].queues[name]
        return list(queue._messages)  # noqa: SLF001 - moto shows only those that are visible

    def _arn(self, name: str) -> str:
        return f"arn:aws:sqs:{REGION}:{ACCOUNT_ID}:{name}"


def _is_kept(backend: Any, queue_name: str, message: Any) -> bool:
    kept_s: float = backend.queues[queue_name].message_retention_period
    sent_at: float = message.sent_timestamp / 1000
    return time.time() - sent_at < kept_s


# moto's own way counts the whole queue, three times for each message that it hands out: half a minute for 500.
SQSBackend.is_message_valid_based_on_retention_period = _is_kept  # type: ignore[method-assign,assignment]
