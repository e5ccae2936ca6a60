"""Runs the soak, prints what it did, and exits with 1 if anything went wrong. `--help` lists the options."""

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext

import pg8000.exceptions

from bench.conditions import limited
from tests.soak.world import DEADLINE_S, HEARTBEAT_FRESH_S, Adversary, World, world
from tests.support.events import APPLY, DRY_RUN, SCHEDULED
from tests.support.killing import Invocations
from tests.support.warm import Holdings, WarmProcess

PROBES = ("ec2", "control_plane")
KILLED_SHARE = 0.5
# So many of a warm process's invocations get the share of a processor that Lambda gives at 512 MB.
SLOWED_SHARE = 0.5
# The contract allows one second over the deadline; an answer has to come back through a pipe, too.
LONGEST_CYCLE_S = DEADLINE_S + 1.5
SETTLING_S = 120.0
# How much more a process may use at the end than after its first cycles.
MORE_MIB = 12.0


class Soak:
    """One run: what was invoked, and what went wrong."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.outcomes: Counter[str] = Counter()
        self.killed = 0
        self.longest_s = 0.0
        self.wrong: list[str] = []
        self._random = random.Random(seed)  # noqa: S311 - it has to be the same again
        self._over = threading.Event()

    def run(self, minutes: float, adversary_seed: int) -> None:
        """Let everything happen for this long, then let it settle, and check what is wrong."""
        ends_at = time.monotonic() + minutes * 60
        with ExitStack() as parts:
            warm = {probe: parts.enter_context(WarmProcess(self.world.environment(probe))) for probe in PROBES}
            early = {probe: process.invoke(SCHEDULED, 20) for probe, process in warm.items()}
            drivers = [
                threading.Thread(target=self._drive_warm, args=(warm,)),
                threading.Thread(target=self._drive_killed),
            ]
            with Adversary(self.world, adversary_seed) as adversary:
                for driver in drivers:
                    driver.start()
                while time.monotonic() < ends_at and all(driver.is_alive() for driver in drivers):
                    drivers[0].join(min(15.0, max(0.0, ends_at - time.monotonic())))
                    self._say(f"{adversary.actions} actions of the adversary, {adversary.failovers} failovers")
                if any(not driver.is_alive() for driver in drivers):
                    self.wrong.append("a driver of invocations has given up")
                self._over.set()
                for driver in drivers:
                    driver.join()
            if adversary.failure is not None:
                self.wrong.append(f"the adversary has given up: {adversary.failure!r}")
            self._settle(warm["ec2"])
            late = {probe: process.invoke(SCHEDULED, 20) for probe, process in warm.items()}
            self.wrong += self._not_flat(early, late)
        self._say("the end")
        self.wrong += self._not_right()

    def _drive_warm(self, warm: dict[str, WarmProcess]) -> None:
        while not self._over.is_set():
            process = warm[self._random.choice(PROBES)]
            event = self._random.choice([SCHEDULED, SCHEDULED, SCHEDULED, APPLY, DRY_RUN])
            began_at = time.monotonic()
            slowed = limited(process.pid) if self._random.random() < SLOWED_SHARE else nullcontext()
            with slowed:
                self.outcomes.update(process.invoke(event, 1).outcomes)
            self.longest_s = max(self.longest_s, time.monotonic() - began_at)

    def _drive_killed(self) -> None:
        with Invocations() as invocations:
            while not self._over.wait(self._random.uniform(0, 1)):
                kill_after_s = self._random.uniform(0.01, 0.3) if self._random.random() < KILLED_SHARE else None
                environment = self.world.environment(self._random.choice(PROBES))
                try:
                    ending = invocations.run(SCHEDULED, environment, kill_after_s=kill_after_s)
                except AssertionError as error:  # the handler's own, which it may raise: the database hung up
                    self.outcomes[str(error).strip().splitlines()[-1].split(":")[0].rpartition(".")[2]] += 1
                    continue
                if ending.report is None:
                    self.killed += 1
                else:
                    self.outcomes[str(ending.report["outcome"])] += 1
                    self.longest_s = max(self.longest_s, ending.took_s)

    def _settle(self, process: WarmProcess) -> None:
        """Run cycles in a world that has come to rest, until nothing is owed and nobody is dead."""
        until = time.monotonic() + SETTLING_S
        while self._restless() and time.monotonic() < until:
            process.invoke(SCHEDULED, 1)
            self.world.beat()
            if unowed := self._offline_and_unowed():  # what the runbook has a person do about the alarm
                process.invoke({"mode": "apply", "workspace_ids": unowed, "adopt": True}, 1)
            time.sleep(0.2)
        self.wrong += [f"{what} after {SETTLING_S:.0f} s without any fault" for what in self._restless()]
        self.world.platform.settle()

    def _restless(self) -> list[str]:
        rows = self.world.database.query(
            "SELECT id::text AS id, status::text AS status, instance_id FROM workspaces WHERE status::text <> 'paused'"
        )
        dead = [row["id"] for row in rows if self.world.ec2.state_of(row["instance_id"] or "") != "running"]
        not_online = [row["id"] for row in rows if row["status"] not in ("online", "degraded")]
        owed = [one["id"] for one in self.world.fleet.restarts() if one["closed_at"] is None]
        return [
            f"{len(which)} {what}"
            for what, which in (("dead", dead), ("not online", not_online), ("restarts owed", owed))
            if which
        ]

    def _offline_and_unowed(self) -> list[str]:
        rows = self.world.database.query(
            "SELECT id::text AS id FROM workspaces WHERE status = 'offline' AND instance_id <> '' AND NOT EXISTS ("
            "SELECT FROM reconciler.restarts WHERE workspace_id = workspaces.id AND closed_at IS NULL)"
        )
        return [row["id"] for row in rows]

    def _not_flat(self, early: dict[str, Holdings], late: dict[str, Holdings]) -> Iterator[str]:
        for probe in PROBES:
            before, after = early[probe], late[probe]
            if after.threads > before.threads or after.descriptors > before.descriptors:
                yield f"the warm process ({probe}) holds more than at first: {before}, {after}"
            if after.peak_mib > before.peak_mib + MORE_MIB:
                yield f"the warm process ({probe}) grew from {before.peak_mib:.0f} to {after.peak_mib:.0f} MiB"
        sessions = self.world.database.query(
            "SELECT count(*) AS open FROM pg_stat_activity WHERE application_name = 'instance-state-reconciler'"
        )[0]["open"]
        if sessions > len(PROBES):
            yield f"{sessions} sessions are open for {len(PROBES)} processes"

    def _not_right(self) -> Iterator[str]:
        """Yield every visible violation of the guarantees."""
        ledger, witness = self.world.ledger, self.world.database.query("SELECT * FROM witness")
        for flip in witness:
            instance = flip["instance_id"]
            if flip["status"] not in ("online", "degraded") or flip["runtime"] == "external":
                yield f"false flip: the row of {instance} was {flip['status']}"
            if not ledger.was_dead(instance, flip["at_s"]):
                yield f"false flip: {instance} was alive"
            if flip["heartbeat_age_s"] is not None and flip["heartbeat_age_s"] < HEARTBEAT_FRESH_S * 0.9:
                yield f"false flip: {instance} had sent a heartbeat {flip['heartbeat_age_s']:.2f} s before"
        flips = Counter((str(flip["workspace_id"]), flip["instance_id"]) for flip in witness)
        events = Counter((str(one["workspace_id"]), one["payload"]["instance_id"]) for one in self.world.fleet.events())
        flipped = {  # one that is owed again keeps the time of its flip
            (str(one["workspace_id"]), one["instance_id"], one["flipped_at"])
            for one in self.world.fleet.restarts()
            if not one["adopted"]
        }
        owed = Counter((workspace_id, instance_id) for workspace_id, instance_id, _ in flipped)
        for what, others in (("events", events), ("owed restarts", owed)):
            if others != flips:
                yield f"flips and {what} differ: too few {flips - others}, too many {others - flips}"
        restarts = Counter(one.old_instance_id for one in self.world.platform.restarts if one.old_instance_id)
        yield from (f"restarted twice: {one}" for one, times in restarts.items() if times > 1)
        yield from (f"a living instance was destroyed: {one}" for one in ledger.destroyed_alive)
        if self.longest_s > LONGEST_CYCLE_S:
            yield f"a cycle took {self.longest_s:.1f} s with a deadline of {DEADLINE_S:.0f} s"

    def _say(self, what: str) -> None:
        try:
            flips = self.world.database.query("SELECT count(*) AS count FROM witness")[0]["count"]
        except (pg8000.exceptions.Error, OSError):  # in the middle of a failover
            return
        restarts, in_the_window = len(self.world.platform.restarts), len(self.world.ledger.in_the_window)
        outcomes = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        print(
            f"{time.strftime('%H:%M:%S')}  {what}; cycles: {outcomes}, killed {self.killed}; {flips} flips, "
            f"{restarts} restarts ({in_the_window} of a living instance, in the platform's window); "
            f"longest cycle {self.longest_s:.1f} s",
            flush=True,
        )


def main() -> int:
    """Run the soak as the command line says."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="how long, besides setting up and settling; default: 5"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what the adversary does, and when")  # noqa: S311
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    with world() as everything:
        soak = Soak(everything, options.seed)
        soak.run(options.minutes, options.seed + 1)
    for one in soak.wrong:
        print(f"WRONG  {one}")
    print("FAILED" if soak.wrong else "Nothing is wrong.")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
