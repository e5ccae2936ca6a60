"""`make verify`: does a deployed stack do what it should? Pass or fail, point by point. It changes nothing."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.exceptions

from ops import checklist, queries
from ops.checklist import Result
from ops.command import ROOT, answers_of, parser, run
from ops.console import Console, OpsError
from ops.plan import ENABLED, SCHEDULE
from ops.stack import Deployed, Stack, stack_of
from ops.trial import dry_run, show

_QUERY_PERIOD_S = 3600
_RUNS_PERIOD = timedelta(minutes=15)


class Verification:
    """The checks of one deployed stack."""

    def __init__(self, stack: Stack, deployed: Deployed, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._account = stack.account
        self._stack = stack
        self._deployed = deployed
        self._sleep = sleep

    def results(self) -> Iterator[Result]:
        """Yield every result. What cannot be asked fails with the reason, and the others go on."""
        yield Result(
            "the stack's last change succeeded",
            self._deployed.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"),
            self._deployed.status,
        )
        for check in (
            self._queries,
            self._alarms,
            self._subscription,
            self._queues,
            self._runs,
            self._state_changes,
            self._dry_run,
        ):
            try:
                yield from check()
            except (OpsError, botocore.exceptions.ClientError) as error:
                yield Result(check.__name__.strip("_").replace("_", " "), passed=False, reason=str(error))

    def _queries(self) -> Iterator[Result]:
        logs, prefix = self._account.client("logs"), f"{self._stack.name}/"
        listed = logs.describe_query_definitions(queryDefinitionNamePrefix=prefix)["queryDefinitions"]
        expected = self._stack.resources("AWS::Logs::QueryDefinition")
        if len(listed) < len(expected):
            yield Result("saved queries", passed=False, reason=f"{len(listed)} of {len(expected)} are there")
        started = [
            (
                query["name"],
                queries.start(self._account, query["logGroupNames"], query["queryString"], since_s=_QUERY_PERIOD_S),
            )
            for query in listed
        ]
        for name, query_id in started:
            status, _ = queries.results(self._account, query_id, sleep=self._sleep)
            yield Result(
                f"saved query {name.removeprefix(prefix)}", status == "Complete", "" if status == "Complete" else status
            )

    def _alarms(self) -> Iterator[Result]:
        alarms = self._stack.alarms()
        listed = [one for one in alarms.values() if one is not None]
        if len(listed) < len(alarms):
            yield Result("alarms", passed=False, reason=f"{len(listed)} of {len(alarms)} are there")
        for alarm in listed:
            missing = [metric for metric in _metrics(alarm) if not self._has(metric)]
            said = f"{alarm['StateValue']}, no metric {', '.join(one['MetricName'] for one in missing)} yet"
            name = f"alarm {alarm['AlarmName'].removeprefix(self._stack.name + '-')}"
            # A metric of Lambda's or SQS's exists once there was something to count.
            own = [one for one in missing if not one["Namespace"].startswith("AWS/")]
            yield Result(name, alarm["StateValue"] != "ALARM" and not own, said if missing else alarm["StateValue"])

    def _has(self, metric: dict[str, Any]) -> bool:
        found = self._account.client("cloudwatch").list_metrics(**metric)["Metrics"]
        return bool(found)

    def _subscription(self) -> Iterator[Result]:
        topics = self._stack.resources("AWS::SNS::Topic")
        if not topics:
            yield Result(
                "alarms reach somebody",
                bool(self._deployed.parameters.get("AlarmTopicArn")),
                self._deployed.parameters.get("AlarmTopicArn") or "neither AlarmEmail nor AlarmTopicArn is set",
            )
        for topic in topics.values():
            listed = self._account.pages("sns", "list_subscriptions_by_topic", "Subscriptions", TopicArn=topic)
            confirmed = [one for one in listed if one["SubscriptionArn"].startswith("arn:")]
            yield Result(
                "alarms reach somebody", bool(confirmed), "" if confirmed else "the link in AWS's mail was not clicked"
            )

    def _queues(self) -> Iterator[Result]:
        for name in ("FailedQueueUrl", "UndeliveredQueueUrl", "DeadLetterQueueUrl"):
            url = self._deployed.outputs.get(name)
            if url is None:
                continue
            attribute = "ApproximateNumberOfMessages"
            answer = self._account.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=[attribute])
            count = int(answer["Attributes"][attribute])
            yield Result(f"{name.removesuffix('Url')} is empty", count == 0, f"{count} messages" if count else "")

    def _runs(self) -> Iterator[Result]:
        if self._deployed.parameters.get(SCHEDULE) != ENABLED:
            yield Result("the schedule runs", passed=False, reason="it is disabled: no cycle runs by itself")
            return
        runs, errors, said = self._lately("ReconcilerName")
        yield Result("the schedule runs", runs > 0 and errors == 0, said)

    def _state_changes(self) -> Iterator[Result]:
        """Check the way of a state-change event: rules, queue, function. There need not have been any lately."""
        if "StateChangesName" not in self._deployed.outputs:
            return
        for name, mapping in self._stack.resources("AWS::Lambda::EventSourceMapping").items():
            state = str(self._account.client("lambda").get_event_source_mapping(UUID=mapping)["State"])
            yield Result(f"state changes: Lambda takes them from the queue ({name})", state == "Enabled", state)
        wanted = self._deployed.parameters.get(SCHEDULE)
        for name, rule in self._stack.resources("AWS::Events::Rule").items():
            bus, _, rule_name = rule.rpartition("|")  # CloudFormation's id of a rule on a bus of its own
            arguments = {"Name": rule_name, **({"EventBusName": bus} if bus else {})}
            state = str(self._account.client("events").describe_rule(**arguments)["State"])
            yield Result(f"state changes: the rule {name}", state == wanted == ENABLED, state)
        _, errors, said = self._lately("StateChangesName")
        yield Result("state changes: no batch fails", errors == 0, said)

    def _lately(self, function: str) -> tuple[float, float, str]:
        """Return a function's latest invocations and errors, and a sentence about them."""
        runs, errors = (self._sum(metric, function) for metric in ("Invocations", "Errors"))
        minutes = int(_RUNS_PERIOD.total_seconds() / 60)
        return runs, errors, f"{runs:.0f} invocations and {errors:.0f} errors in {minutes} minutes"

    def _sum(self, metric: str, function: str) -> float:
        now = datetime.now(UTC)
        answer = self._account.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/Lambda",
            MetricName=metric,
            Dimensions=[{"Name": "FunctionName", "Value": self._deployed.outputs[function]}],
            StartTime=now - _RUNS_PERIOD,
            EndTime=now,
            Period=60,
            Statistics=["Sum"],
        )
        return float(sum(point["Sum"] for point in answer["Datapoints"]))

    def _dry_run(self) -> Iterator[Result]:
        yield Result("a dry run succeeds", passed=True)
        for result in dry_run(self._stack, self._deployed):
            yield Result(f"dry run: {result.name}", result.passed, result.reason)


def _metrics(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics that an alarm watches."""
    if "MetricName" in alarm:
        found = [alarm]
    else:
        found = [one["MetricStat"]["Metric"] for one in alarm.get("Metrics", []) if "MetricStat" in one]
    return [{key: one[key] for key in ("Namespace", "MetricName", "Dimensions")} for one in found]


def verify(console: Console, arguments: argparse.Namespace, *, root: Path) -> None:
    """Check a deployed stack. Raises OpsError if anything fails."""
    stack = stack_of(answers_of(root, arguments))
    results = []
    console.headline(f"The stack {stack.name} in {stack.account.region}")
    for result in Verification(stack, stack.require()).results():
        show(console, [result])
        results.append(result)
    if not checklist.passed(results):
        raise OpsError(f"{sum(not result.passed for result in results)} of {len(results)} checks failed")


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Check the environment that the command line names."""
    parsed = parser("Check a deployed stack.").parse_args(arguments)
    return run(lambda console: verify(console, parsed, root=root), on_failure="It changed nothing.")


if __name__ == "__main__":
    sys.exit(main())
