"""Three hours in which much goes wrong: deaths, a slow source, a lost zone, restarts refused, a failover."""

from typing import Any

from sandbox.http_server import Answer, Hang
from tests.support.events import event
from tests.support.rehearsal import Rehearsal

MINUTES = 180
# With the default, a slow cycle would take three quarters of a real minute.
PARAMETERS = {"CycleDeadlineSeconds": "2"}
_FLEET = 60
_SLOW_S = 0.4
# What the platform takes to bring a workspace back.
_BACK_AFTER = 2
_AWAY = "postgresql://reconciler@127.0.0.1:1/away?sslmode=disable"
_ANOTHER_CYCLE = """
    INSERT INTO reconciler.lease VALUES ('fleet', gen_random_uuid(), now(), now() + interval '80 seconds')
"""


class Night:
    """The story. The platform brings back what it is asked to restart, but for some."""

    def __init__(self, now: Rehearsal) -> None:
        self.now = now
        self._minute = 0
        self._coming: dict[int, list[str]] = {}
        self._answer: Answer | None = None
        now.story.monitor = True
        now.settings["CYCLE_DEADLINE_SECONDS"] = now.stack.parameters["CycleDeadlineSeconds"]
        self._workspaces = now.story.workspaces(_FLEET)
        self._zone = self._workspaces[:36]
        self._crashing, self._blocked, self._never_back, self._stuck, self._silent, self._on_hold, *self._others = (
            self._workspaces[36:]
        )

    def play(self) -> None:
        """Play it to the end."""
        self._answers(None)
        self._ordinary()
        self._slow_source()
        self._lost_zone()
        self._odds_and_ends()
        self._until(MINUTES)

    def _ordinary(self) -> None:
        """Some die, and EC2's events tell at once; one dies again and again, one is blocked."""
        self._until(15)
        for minute in (16, 23, 30, 37):
            self._dies(self._crashing, self._others.pop())
            self._until(minute + 6)
        self._dies(self._blocked)
        self._until(47)

    def _slow_source(self) -> None:
        ec2 = self.now.stage.ec2
        for factor in (1, 2, 3):
            ec2.latency_s = factor * _SLOW_S
            self._until(self._minute + 1)
        self.now.stage.database.query(_ANOTHER_CYCLE)
        ec2.script.reply(Hang())
        self._until(54)
        ec2.script.clear()
        ec2.latency_s = 0.0
        self._until(62)

    def _lost_zone(self) -> None:
        """The breaker opens; somebody overrides it, and the platform cannot restart so many."""
        self.now.story.dies(*self._zone)
        self._until(76)
        self._answers(Answer(503))
        self.now.send(event("override-breaker"))
        self._until(84)
        self._answers(None)
        self._until(106)

    def _odds_and_ends(self) -> None:
        now, ec2 = self.now, self.now.stage.ec2
        self._dies(self._never_back)
        ec2.set_state(now.stage.instance_of(self._stuck), "shutting-down")
        now.story.alive.discard(self._silent)
        ec2.impair(now.stage.instance_of(self._others[0]))
        row = now.stage.fleet.add(None)
        self._until(118)
        now.settings["DATABASE_URL"] = _AWAY
        self._dies(self._others[1])
        self._until(122)
        del now.settings["DATABASE_URL"]
        self._hold()
        self._until(126)
        now.messages["FailedQueue"] = 0
        self._until(138)
        ec2.mend(now.stage.instance_of(self._others[0]))
        now.stage.fleet.delete(row)
        self._until(150)
        ec2.set_state(now.stage.instance_of(self._stuck), "running")
        now.story.alive.add(self._silent)
        self._until(162)
        now.send({**event("adopt"), "workspace_ids": [self._others[1]]})  # no cycle saw it dead while it was up

    def _hold(self) -> None:
        hold: dict[str, Any] = event("hold")
        hold["hold"] |= {"workspace_ids": [self._on_hold], "seconds": 30 * 60}
        self.now.send(hold)
        self.now.story.dies(self._on_hold, state="stopped")

    def _dies(self, *workspaces: str) -> None:
        self.now.story.dies(*workspaces)
        for one in workspaces:
            self.now.happens(one)

    def _answers(self, answer: Answer | None) -> None:
        self._answer = answer
        instead = self.now.stage.platform.instead
        instead.clear()
        instead.reply(Answer(409), workspace_id=self._blocked)
        instead.reply(answer or Answer(202))

    def _until(self, minute: int) -> None:
        while self._minute < minute:
            self._minute += 1
            for one in self._coming.pop(self._minute, []):
                self.now.story.comes_back(one)
                self.now.story.becomes(one, status="online")
            asked = len(self.now.stage.platform.calls)
            self.now.minutes()
            for call in self.now.stage.platform.calls[asked:]:
                self._restarts(call.workspace_id)

    def _restarts(self, workspace: str) -> None:
        if workspace == self._never_back:
            self.now.story.becomes(workspace, status="failed")
        elif self._answer is None and workspace != self._blocked:
            self.now.story.becomes(workspace, status="provisioning")
            self._coming.setdefault(self._minute + _BACK_AFTER, []).append(workspace)
