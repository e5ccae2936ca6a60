"""The values that a cycle works with."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What an instance's state means for the workspace that records it."""

    RUNNING = "running"
    TRANSITION = "transition"
    DEAD = "dead"
    ABSENT = "absent"
    UNKNOWN = "unknown"


NOT_FOUND = "not_found"

# EC2's have 19 characters. A longer text is no instance id: it is UNKNOWN to every probe, and never sent anywhere.
LONGEST_INSTANCE_ID = 64
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html
INSTANCE_ID = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
# Of a hold, in characters.
LONGEST_REASON = 200

# EC2's own words:
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceState.html
VERDICT_OF_STATE = {
    "running": Verdict.RUNNING,
    "pending": Verdict.TRANSITION,
    "stopping": Verdict.TRANSITION,
    "shutting-down": Verdict.TRANSITION,
    "stopped": Verdict.DEAD,
    "terminated": Verdict.DEAD,
    NOT_FOUND: Verdict.ABSENT,
}

# With these verdicts, the source of truth knows the instance.
FOUND = frozenset({Verdict.RUNNING, Verdict.TRANSITION, Verdict.DEAD})
# With these, the instance may be dead.
LOOKS_DEAD = frozenset({Verdict.DEAD, Verdict.ABSENT})


class Cause(StrEnum):
    """Why a call has no usable answer."""

    # The call itself failed.
    NAME_LOOKUP_FAILED = "name_lookup_failed"
    CONNECTION_REFUSED = "connection_refused"
    TIMEOUT = "timeout"
    TLS_FAILED = "tls_failed"
    BROKEN_CONNECTION = "broken_connection"
    OVERSIZE = "oversize"
    OUT_OF_TIME = "out_of_time"
    UNEXPECTED = "unexpected"  # detail: the exception's type
    # The HTTP answer is not usable.
    HTTP_STATUS = "http"  # detail: the status
    ENCODED = "encoded"
    NOT_JSON = "not_json"
    NO_STATE = "no_state"
    UNRECOGNISED_STATE = "unrecognised_state"
    CACHED = "cached"  # it was true a while ago
    OTHER_INSTANCE = "other_instance"  # it is about another one than was asked about
    # The EC2 probe.
    MALFORMED_INSTANCE_ID = "malformed_instance_id"
    PACED = "paced"
    THROTTLED = "throttled"
    SERVER_ERROR = "server_error"
    REFUSED = "refused"  # detail: the error code, if it has a proper one
    SDK_FAILED = "aws"  # detail: the exception's type
    GARBLED_ANSWER = "garbled_answer"
    # Several Regions and accounts.
    ROLE_NOT_ASSUMED = "role_not_assumed"  # detail: why not
    EMPTY_TARGET = "empty_target"
    TARGETS_DISAGREE = "targets_disagree"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call has no usable answer. No field ever holds text from a remote's body.

    Of several Regions and accounts, `target` names the one that it is about, or those that disagree.
    """

    cause: Cause
    detail: str = ""
    target: str = ""

    def __str__(self) -> str:
        """Return the words for the log, such as `timeout`, `http_503` or `throttled in eu-west-1`."""
        words = f"{self.cause}_{self.detail}" if self.detail else str(self.cause)
        return f"{words} in {self.target}" if self.target else words


class SkipReason(StrEnum):
    """Why a workspace that looked dead was not flipped."""

    ROW_GONE = "row_gone"
    STATUS_MOVED = "status_moved"
    INSTANCE_CLEARED = "instance_cleared"
    INSTANCE_CHANGED = "instance_changed"
    ROW_LOCKED = "row_locked"
    ON_HOLD = "on_hold"
    FRESH_HEARTBEAT = "fresh_heartbeat"
    RECONFIRM_ERROR = "reconfirm_error"
    NOT_CONFIRMED = "not_confirmed"
    BREAKER_OPEN = "breaker_open"
    OUT_OF_TIME = "out_of_time"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A candidate, as the cycle's SELECT saw it. The heartbeat's time is the database's own text.

    An `offline` candidate may be adopted: the platform took the row offline after a cycle had seen its instance dead.
    """

    id: str
    instance_id: str
    last_heartbeat_at: str | None
    on_hold: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """One answer about one candidate's instance.

    `state` is EC2's word or `not_found`. It is empty for UNKNOWN, and `failure` then says why.
    `answered_at` is when the answer arrived, in seconds by the deadline's clock; of several, the earliest.
    `target` names the source that answered, of `several`. `took_s` is how many seconds it took, or 0 if that was not
    measured.
    """

    workspace: Workspace
    verdict: Verdict
    state: str
    failure: Failure | None = None
    answered_at: float = 0.0
    target: str = ""
    took_s: float = 0.0
    several: bool = False

    @property
    def reason(self) -> str:
        """Say why the instance is UNKNOWN; empty for every other verdict."""
        return "" if self.failure is None else str(self.failure)

    @property
    def words(self) -> str:
        """Say what was seen: the state, where it was seen if there are several targets, or why nothing was."""
        return self.reason or (f"{self.state} in {self.target}" if self.several else self.state)


def sighting_of(
    workspace: Workspace,
    state: str,
    *,
    answered_at: float = 0.0,
    target: str = "",
    took_s: float = 0.0,
    several: bool = False,
) -> Sighting:
    """Return the sighting of an instance in `state`. It is UNKNOWN if EC2 has no such state."""
    verdict = VERDICT_OF_STATE.get(state)
    if verdict is None:
        return unknown(workspace, Failure(Cause.UNRECOGNISED_STATE))
    return Sighting(workspace, verdict, state, answered_at=answered_at, target=target, took_s=took_s, several=several)


def unknown(workspace: Workspace, failure: Failure) -> Sighting:
    """Return the UNKNOWN sighting of a workspace without a usable answer."""
    return Sighting(workspace, Verdict.UNKNOWN, "", failure)


@dataclass(frozen=True, slots=True)
class CurrentRow:
    """The workspace's row as the flip re-reads it, and what our own tables say of the workspace.

    The database has already judged the heartbeat. `restarts` counts the restarts in a row that were asked for so far;
    `up_s` is how many seconds the workspace has been up since the last one. Both are None if no restart was ever owed.
    `restarting` tells that a restart is open, or watched. `locked` tells that somebody else has locked it, or the row.
    """

    status: str | None
    instance_id: str | None
    runtime: str | None
    fresh_heartbeat: bool
    on_hold: bool = False
    restarts: int | None = None
    up_s: float | None = None
    restarting: bool = False
    locked: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """A restart that is owed to a flipped or adopted workspace.

    `attempts` counts the claims so far, `refusals` the definite refusals among them. `released` tells that an open
    breaker does not stop it. `watched` tells that it was asked for with effect before. `absent_sightings` cycles in a
    row did not find its instance, for `absent_s` seconds. `streak` restarts in a row came before it. `last_answer` is
    what was recorded last.
    """

    id: int
    workspace_id: str
    instance_id: str
    attempts: int = 0
    refusals: int = 0
    released: bool = False
    watched: bool = False
    absent_sightings: int = 0
    absent_s: float = 0.0
    streak: int = 0
    last_answer: str | None = None

    def as_candidate(self) -> Workspace:
        """Return what a probe needs to look at the instance again."""
        return Workspace(self.workspace_id, self.instance_id, None)


@dataclass(frozen=True, slots=True)
class Hold:
    """A workspace, or everything (None), that is exempt from flips and restarts until `ends_at` (UTC, RFC 3339)."""

    workspace_id: str | None
    reason: str
    ends_at: str
