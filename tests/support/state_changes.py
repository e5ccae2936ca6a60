"""SQS batches of EC2's state-change events, as Lambda gets them; `sandbox.state_changes` has the bare event."""

import json
from typing import Any


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
