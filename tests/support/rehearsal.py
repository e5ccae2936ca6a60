"""A stack of the template, rehearsed: what its functions log and measure while a story happens, and who is alarmed."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sandbox.event_source import EventSourceMapping
from sandbox.queue import StateChangeQueue
from sandbox.state_changes import state_change
from tests.support import insights
from tests.support.cloudformation import Stack
from tests.support.cloudwatch import CloudWatch, Metric, alarms
from tests.support.events import SCHEDULED
from tests.support.stage import Stage, recorded
from tests.support.story import MINUTE_S, Story

# When it begins: a Thursday at three in the morning.
_BEGINS_AT_S = datetime(2026, 1, 15, 3, 0, tzinfo=UTC).timestamp()
_RECONCILER, _STATE_CHANGES = "<LogGroup>", "<StateChangesLogGroup>"
_NEVER_DELIVERED = "UndeliveredQueue"


class Rehearsal:
    """A story with the stack's two functions in it: a full cycle each minute, and before it a batch of events.

    What the handler cannot do itself is done here as AWS does it: an error is logged and counted, its event goes to
    `FailedQueue`; what the schedule cannot deliver goes to `UndeliveredQueue`; with several shards, the workflow fails
    if it cannot invoke those that are `throttled`. `settings` is for what somebody has configured meanwhile. Time is
    passed in: `now_s` says how late it is in the story.
    """

    def __init__(self, stage: Stage, stack: Stack, queue: StateChangeQueue) -> None:
        self.stage = stage
        self.stack = stack
        self.queue = queue
        self.story = Story(stage)
        self.cloudwatch = CloudWatch()
        self.now_s = _BEGINS_AT_S
        self.settings: dict[str, str | None] = {}
        self.is_scheduled = True
        self.shards = int(stack.parameters["Shards"])
        self.throttled: set[int] = set()
        self.messages = {"FailedQueue": 0, _NEVER_DELIVERED: 0}
        self._logs: dict[str, list[dict[str, Any]]] = {_RECONCILER: [], _STATE_CHANGES: []}
        environment = stack.environment("Reconciler")
        names = ("POWERTOOLS_METRICS_NAMESPACE", "POWERTOOLS_SERVICE_NAME")
        self._settings: dict[str, str | None] = {"RESTART_GRACE_SECONDS": None}  # its default
        self._settings |= {name: environment[name] for name in names}
        self._mapping = EventSourceMapping(queue, self._batch, window_s=0)

    def minutes(self, count: int = 1, *, lasts_s: float = MINUTE_S) -> None:
        """Let that many minutes pass, or as many steps of `lasts_s` seconds, each with a cycle at its end."""
        for _ in range(count):
            self.passes(lasts_s)
            self._mapping.deliver()
            if self.is_scheduled:
                self._cycle()
            else:
                self.messages[_NEVER_DELIVERED] += 1
            self._measure_queues()

    def passes(self, seconds: float) -> None:
        """Let time pass without a cycle."""
        self.now_s += seconds
        self.story.passes(seconds)
        self.queue.passes(seconds)

    def happens(self, workspace: str, state: str = "terminated") -> None:
        """Have EC2 tell of a workspace's instance."""
        self.queue.send(state_change(self.stage.instance_of(workspace), state))

    def send(self, event: Any) -> dict[str, Any]:
        """Send the reconciler an event, as the schedule or a person does; return its answer. Raises what it raises."""
        report: dict[str, Any] = self._run("Reconciler", _RECONCILER, lambda: self._invoke(event))
        return report

    def ringing(self) -> set[str]:
        """Return the alarms that are in ALARM now."""
        # A minute's values are complete when it is over.
        return {
            name for name, one in alarms(self.stack).items() if self.cloudwatch.is_in_alarm(one, self.now_s + MINUTE_S)
        }

    def answer(self, query: str, groups: list[str] | None = None) -> list[dict[str, Any]]:
        """Return what CloudWatch Logs Insights answers to a query over these log groups, or over both."""
        found = [line for group in groups or self._logs for line in self._logs[group]]
        return insights.rows(query, sorted(found, key=lambda line: str(line["@timestamp"])))

    def saved(self, title: str) -> list[dict[str, Any]]:
        """Return what a saved query of the stack answers."""
        ((query, groups),) = (
            (one["QueryString"], one["LogGroupNames"])
            for one in self.stack.of_type("AWS::Logs::QueryDefinition").values()
            if one["Name"].split("/", 1)[1] == title
        )
        return self.answer(query, groups)

    def _cycle(self) -> None:
        if self.shards > 1:
            failed = Metric("AWS/States", "ExecutionsFailed", (("StateMachineArn", "<ShardsWorkflow>"),))
            self.cloudwatch.put(self.now_s, failed, int(bool(self.throttled)))
            invoked = [shard for shard in range(self.shards) if shard not in self.throttled]
            events = [{"mode": "apply", "shard": shard, "shards": self.shards} for shard in invoked]
        else:
            events = [SCHEDULED]
        for one in events:
            try:
                self.send(one)
            except Exception:  # noqa: BLE001 - Lambda, too, counts any exception as an error
                self.messages["FailedQueue"] += 1

    def _invoke(self, event: Any) -> dict[str, Any]:
        self.stage.ec2.bucket.pass_time(MINUTE_S)
        with self.stage.meanwhile:
            return self.stage.invoke(event, **{**self._settings, **self.settings})

    def _batch(self, event: dict[str, Any]) -> dict[str, Any]:
        def invoke() -> dict[str, Any]:
            return self.stage.invoke.batch(event, **{**self._settings, **self.settings})

        return self._run("StateChanges", _STATE_CHANGES, invoke)

    def _run(self, function: str, group: str, invoke: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a function once, and keep what it logs and measures."""
        failed = False
        with recorded() as output:
            try:
                return invoke()
            except Exception as error:
                failed = True
                line = {"level": "ERROR", "errorType": type(error).__name__, "errorMessage": str(error)}
                output.write(json.dumps(line) + "\n")
                raise
            finally:
                self.cloudwatch.put(
                    self.now_s, Metric("AWS/Lambda", "Errors", (("FunctionName", f"<{function}>"),)), int(failed)
                )
                for text in output.getvalue().splitlines():
                    self._keep(group, json.loads(text))

    def _keep(self, group: str, line: Mapping[str, Any]) -> None:
        self.cloudwatch.take(self.now_s, line)
        at = datetime.fromtimestamp(self.now_s, UTC).strftime("%Y-%m-%d %H:%M:%S.000")
        self._logs[group].append({**line, "@timestamp": at})

    def _measure_queues(self) -> None:
        counts = {**self.messages, "DeadLetterQueue": len(self.queue.dead_letters())}
        for queue, count in counts.items():
            self.cloudwatch.put(self.now_s, _of_queue("ApproximateNumberOfMessagesVisible", queue), count)
        age = _of_queue("ApproximateAgeOfOldestMessage", "StateChangesQueue")
        self.cloudwatch.put(self.now_s, age, self.queue.oldest_s())


def _of_queue(name: str, queue: str) -> Metric:
    return Metric("AWS/SQS", name, (("QueueName", f"<{queue}.QueueName>"),))
