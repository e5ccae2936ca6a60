"""What Lambda's two doors, the reconciler's and the installer's, share."""

from typing import Any

# What Lambda needs afterwards to hand the answer, or an error of ours, over.
LAMBDA_RESERVE_SECONDS = 3.0


def seconds_for(most: float, context: Any) -> float:
    """Return `most` seconds, or what Lambda leaves, less a reserve, when that is less."""
    left = getattr(context, "get_remaining_time_in_millis", None)
    return most if left is None else max(0.0, min(most, left() / 1000 - LAMBDA_RESERVE_SECONDS))
