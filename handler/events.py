"""Lambda's entry point for SQS batches of EC2 state-change events: one batch is one cycle.

Only messages that could not be judged are returned to the queue. The full cycle is the backstop for everything else.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handler import process
from handler.domain.state_changes import StateChange
from handler.errors import ReconcilerError, RequestError, SettingsError, field_refused, shown
from handler.invocation import run_cycle
from handler.net.limits import is_shallow_json
from handler.request import look_at, state_change
from handler.telemetry import batch_failed, logger, messages_dropped

_QUEUE = "aws:sqs"


@dataclass(frozen=True, slots=True)
class _Message:
    """A message about an instance. Without an id (None), it cannot be returned."""

    id: str | None
    change: StateChange


@logger.inject_lambda_context(clear_state=True)
def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Look at the instances that a batch names; return the messages that have to come again.

    Raises RequestError if this is no batch of SQS messages, and SettingsError if the environment is wrong, before any
    connection is opened. A message that is no state change of an instance is dropped.
    """
    began_at = time.monotonic()
    warm = process.current(os.environ)
    messages = _read(_records(event))
    if not messages:
        return _returned([])
    asked = look_at((one.change for one in messages), ceiling=warm.settings.mode)
    try:
        _, result = run_cycle(asked, warm, context, began_at)
    except SettingsError:
        raise
    except ReconcilerError as error:
        batch_failed(error, len(messages))
        return _returned(messages)
    return _returned([one for one in messages if one.change.instance_id in result.events.unjudged])


def _records(event: object) -> list[Mapping[str, Any]]:
    """Return the records of an SQS batch. Raises RequestError."""
    if not isinstance(event, Mapping):
        raise field_refused("event", event, "a batch of SQS messages")
    records = event.get("Records")
    if not isinstance(records, list):
        raise field_refused("Records", records, "a list of SQS messages")
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise field_refused(f"Records[{number}]", record, "an SQS message")
        if record.get("eventSource") != _QUEUE:
            raise field_refused(f"Records[{number}].eventSource", record.get("eventSource"), _QUEUE)
    return records


def _read(records: list[Mapping[str, Any]]) -> list[_Message]:
    """Return the messages that are state changes. The others are dropped, each with its reason."""
    messages, reasons = [], []
    for record in records:
        try:
            change = state_change(_parsed(record.get("body")))
        except RequestError as error:
            reasons.append(str(error))
            continue
        message_id = record.get("messageId")
        messages.append(_Message(message_id if isinstance(message_id, str) and message_id else None, change))
    messages_dropped(reasons)
    return messages


def _parsed(body: object) -> object:
    if not isinstance(body, str):
        raise field_refused("body", body, "JSON")
    try:
        if is_shallow_json(body):
            return json.loads(body)
    except ValueError:
        pass
    raise RequestError(f"event field body: found {shown(len(body))} characters that are no JSON; expected an event")


def _returned(messages: list[_Message]) -> dict[str, Any]:
    ids = dict.fromkeys(one.id for one in messages if one.id is not None)
    return {"batchItemFailures": [{"itemIdentifier": one} for one in ids]}
