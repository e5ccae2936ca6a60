"""The events in events/, which a person may also send."""

import json
from pathlib import Path
from typing import Any

EVENTS = Path(__file__).parents[2] / "events"


def event(name: str) -> Any:
    """Return the event in events/`name`.json."""
    return json.loads((EVENTS / f"{name}.json").read_text())


SCHEDULED = event("scheduled")
APPLY = event("apply")
DRY_RUN = event("dry-run")
