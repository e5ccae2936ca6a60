"""EC2's state-change events, as EventBridge sends them."""

import time
import uuid
from datetime import UTC, datetime
from typing import Any

from sandbox.ec2 import ACCOUNT_ID, REGION


def state_change(instance_id: str, state: str = "terminated", at_s: float | None = None) -> dict[str, Any]:
    """Return the event that an instance has come to a state: now, or `at_s`, in seconds since 1970."""
    at = datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC)
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "EC2 Instance State-change Notification",
        "source": "aws.ec2",
        "account": ACCOUNT_ID,
        "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),  # whole seconds, as EC2's
        "region": REGION,
        "resources": [f"arn:aws:ec2:{REGION}:{ACCOUNT_ID}:instance/{instance_id}"],
        "detail": {"instance-id": instance_id, "state": state},
    }
