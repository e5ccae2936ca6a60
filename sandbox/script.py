"""What a stand-in does out of the ordinary, and at which call."""

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

    def takes(self, call: Call) -> bool:
        """Count a call that the rule is about, and say whether it is one to act on."""
        if any(getattr(call, name) != value for name, value in self.having.items()):
            return False
        self.seen += 1
        if self.nth is not None:
            return self.seen == self.nth
        return self.times is None or self.seen <= self.times


class Script(Generic[Call]):
    """The faults and events that a test or the demo has ordered from a stand-in. Safe to use from many threads.

    Both orders take the same narrowing: `nth` (the first is 1) or the first `times` of the calls whose attributes equal
    `having`, such as `workspace_id=…`; without any, every call.
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
        """Answer with `reply`, or with what it returns for the call (None: as usual). The first match counts."""
        self._add(_Rule(having, nth, times, reply=reply))

    def before(
        self, hook: Callable[[Call], object], *, nth: int | None = None, times: int | None = None, **having: object
    ) -> None:
        """Run `hook` before the call is answered, and before what would answer it is looked at."""
        self._add(_Rule(having, nth, times, hook=hook))

    def clear(self) -> None:
        """Forget every order."""
        with self._lock:
            self._rules.clear()

    def play(self, call: Call) -> Reply | None:
        """Run the hooks that are due at this call; return the reply ordered for it, or None for the usual one."""
        with self._lock:
            due = [rule for rule in self._rules if rule.takes(call)]
        for rule in due:
            if rule.hook is not None:
                rule.hook(call)
        for rule in due:
            reply = rule.reply(call) if callable(rule.reply) else rule.reply
            if reply is not None:
                return reply
        return None

    def _add(self, rule: _Rule[Call]) -> None:
        with self._lock:
            self._rules.append(rule)
