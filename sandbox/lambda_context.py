"""The context object that Lambda passes to a handler."""

import time
import uuid

FUNCTION_NAME = "instance-state-reconciler"


class LambdaContext:
    """The context of one invocation, with `remaining_s` seconds left until its timeout."""

    function_name = FUNCTION_NAME
    function_version = "$LATEST"
    invoked_function_arn = f"arn:aws:lambda:eu-central-1:123456789012:function:{FUNCTION_NAME}"
    memory_limit_in_mb = 512
    log_group_name = f"/aws/lambda/{FUNCTION_NAME}"
    log_stream_name = "sandbox"

    def __init__(self, remaining_s: float = 55.0) -> None:
        self.aws_request_id = str(uuid.uuid4())
        self._ends_at = time.monotonic() + remaining_s

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds left, at least 0."""
        return max(0, int((self._ends_at - time.monotonic()) * 1000))
