"""EC2's state-change events: bare, as EventBridge sends them, and in an SQS batch, as Lambda gets it."""

import json
from datetime import UTC, datetime
from typing import Any


def rfc3339(at_s: float) -> str:
    """Return a time as EventBridge writes it: in whole seconds."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def state_change(instance_id: str, state: str = "terminated", time: str | None = "2026-01-01T00:00:00Z") -> Any:
    """Return the event that EC2 sends; with None, without a time."""
    event = {
        "version": "0",
        "id": "7bf73129-1428-4cd3-a780-95db273d1602",
        "detail-type": "EC2 Instance State-change Notification",
        "source": "aws.ec2",
        "account": "123456789012",
        "time": time,
        "region": "eu-central-1",
        "resources": [f"arn:aws:ec2:eu-central-1:123456789012:instance/{instance_id}"],
        "detail": {"instance-id": instance_id, "state": state},
    }
    return {name: value for name, value in event.items() if value is not None}


def message(body: Any, message_id: str = "m-1") -> dict[str, Any]:
    """Return an SQS message as Lambda gets it. A body that is no text is sent as JSON."""
    return {
        "messageId": message_id,
        "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {},
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:state-changes",
        "awsRegion": "eu-central-1",
    }


def batch(*bodies: Any) -> dict[str, Any]:
    """Return a batch with these bodies; the ids of the messages are m-1, m-2 and so on."""
    return {"Records": [message(body, f"m-{number}") for number, body in enumerate(bodies, 1)]}


def returned(answer: Any) -> list[str]:
    """Return the ids of the messages that have to come again."""
    return [one["itemIdentifier"] for one in answer["batchItemFailures"]]
