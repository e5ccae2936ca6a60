"""Rules for a stand-in: at which call it fails, or runs a hook."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sandbox.http_server import Reply

Call = TypeVar("Call")


@dataclass(slots=True)
class _Rule(Generic[Call]):
    having: dict[str, object]
    nth: int | None
    times: int | None
    reply: Reply | Callable[[Call], Reply | None] | None = None
    hook: Callable[[Call], object] | None = None
    seen: int = field(default=0)

    def applies_to(self, call: Call) -> bool:
        """Count a call that the rule selects; tell whether the rule applies to it."""
        if any(getattr(call, name) != value for name, value in self.having.items()):
            return False
        self.seen += 1
        if self.nth is not None:
            return self.seen == self.nth
        return self.times is None or self.seen <= self.times


class Script(Generic[Call]):
    """The rules that a test or the demo gives to a stand-in. Safe to use from many threads.

    `having`, such as `workspace_id=…`, selects calls by their attributes; without it, a rule selects every call. Of
    these calls, a rule applies to the `nth` (counted from 1), to the first `times`, or to all.
    """

    def __init__(self) -> None:
        self._rules: list[_Rule[Call]] = []
        self._lock = threading.Lock()

    def reply(
        self,
        reply: Reply | Callable[[Call], Reply | None],
        *,
        nth: int | None = None,
        times: int | None = None,
        **having: object,
    ) -> None:
        """Answer with `reply`, or with what it returns for the call (None: the usual answer).

        If several rules apply, the first one that replies wins.
        """
        self._add(_Rule(having, nth, times, reply=reply))

    def before(
        self, hook: Callable[[Call], object], *, nth: int | None = None, times: int | None = None, **having: object
    ) -> None:
        """Run `hook` before the stand-in works out its answer to the call."""
        self._add(_Rule(having, nth, times, hook=hook))

    def clear(self) -> None:
        """Forget every rule."""
        with self._lock:
            self._rules.clear()

    def play(self, call: Call) -> Reply | None:
        """Run the hooks for this call; return the reply for it, or None for the usual answer."""
        with self._lock:
            applying = [rule for rule in self._rules if rule.applies_to(call)]
        for rule in applying:
            if rule.hook is not None:
                rule.hook(call)
        for rule in applying:
            reply = rule.reply(call) if callable(rule.reply) else rule.reply
            if reply is not None:
                return reply
        return None

    def _add(self, rule: _Rule[Call]) -> None:
        with self._lock:
            self._rules.append(rule)
