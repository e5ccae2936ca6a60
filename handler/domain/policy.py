"""The settings that decisions rest on. Each policy is read from the environment once, in `handler.settings`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When too much of the fleet looks dead to believe it.

    The breaker opens if at least `min_dead` workspaces look dead, and more than `max_dead_fraction` (0 to 1) of those
    that got an answer. Flips of the last `window_s` seconds count as dead.
    """

    max_dead_fraction: float
    min_dead: int
    window_s: float


@dataclass(frozen=True, slots=True)
class AbsencePolicy:
    """How often, and over how many seconds, an instance must be "not found" to count as dead."""

    sightings: int
    min_age_s: float


@dataclass(frozen=True, slots=True)
class CrashLoopPolicy:
    """How long a workspace that dies again and again waits for its restart.

    The first back-off is `backoff_s` seconds, and each further one is twice as long. Once the workspace has been up for
    `reset_s` seconds, the count starts again.
    """

    backoff_s: float
    reset_s: float


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How many restarts one cycle asks for, and when a restart is asked for again.

    `retry_s` is the wait after a first refusal, `uncertain_s` the wait after a request without an answer, in seconds.
    """

    per_cycle: int
    retry_s: float
    uncertain_s: float
