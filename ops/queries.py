"""CloudWatch Logs Insights: starts a query, and waits for its results."""

import time
from collections.abc import Callable, Sequence

from ops.account import Account

TIMEOUT_S = 60
_OVER = ("Complete", "Failed", "Cancelled", "Timeout", "Unknown")

Rows = list[dict[str, str]]


def start(account: Account, groups: Sequence[str], query: str, *, since_s: int) -> str:
    """Start a query over the last `since_s` seconds; return its id."""
    now = int(time.time())
    started = account.client("logs").start_query(
        logGroupNames=list(groups), startTime=now - since_s, endTime=now, queryString=query
    )
    return str(started["queryId"])


def results(account: Account, query_id: str, *, sleep: Callable[[float], None] = time.sleep) -> tuple[str, Rows]:
    """Return how a query ended, in a word of AWS's or of ours, and its rows."""
    for _ in range(TIMEOUT_S):
        answer = account.client("logs").get_query_results(queryId=query_id)
        if answer["status"] in _OVER:
            return str(answer["status"]), [
                {one["field"]: one.get("value", "") for one in row} for row in answer["results"]
            ]
        sleep(1)
    return f"not over after {TIMEOUT_S} s", []
