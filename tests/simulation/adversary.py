"""What may happen to the world, and to the function, at any point."""

from collections.abc import Callable
from dataclasses import dataclass

from handler.domain.model import NOT_FOUND
from handler.domain.state_changes import StateChange
from handler.request import APPLY, DRY_RUN, Request
from handler.store.times import HAPPENED, WAITS
from tests.fakes.tables import Row, StoredHold
from tests.fakes.world import ERROR, Lie, World
from tests.simulation.simulation import FULL, OTHERS, Actor, Simulation

DELAY_SECONDS = 50.0  # more than a cycle may last
SHORT_DELAY_SECONDS = 12.0  # more than a call may last
AGEING_SECONDS = 3.0  # less than evidence lasts, and more if it happens twice
FREEZE_SECONDS = 400.0  # more than a lease lasts, and than a claim keeps others away
SHORT_FREEZE_SECONDS = 5.5  # more than evidence lasts
HOLD_SECONDS = 600.0
A_YEAR_SECONDS = 365 * 86_400.0
# EC2 may be wrong about a new instance for minutes; a stale answer is corrected by the next one.
NOT_FOUND_ANSWERS = 2
DEEPEST = 2  # one cycle within another

# What can happen at which call. Every call that is not one of the two below goes to the database.
PROBE, CONNECT, RESTART = "probe", "connect", "restart"
INSIDE = ("inside flip", "inside claim")
_NO_DATABASE = (PROBE, CONNECT, RESTART, *INSIDE)
# Here the cycle looks at nothing that somebody else might have changed since its call before, and writes nothing that
# anybody else reads before its next call. So what happens to rows and instances here, might as well happen there.
_QUIET = (
    *(
        "check_rights",
        "acquire",
        "any_due",
        "take_back_times",
        "take_up",
        "recall",
        "save_coverage",
        "_forget",
        "_save",
    ),
    *("set_reasons", "purge"),
)
_AT_THE_END = ("gauges", "fleet_gauges", "release")

# Returns whether it had any effect.
Act = Callable[[Simulation, Actor, str], bool]


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can happen, and the calls before which it makes a difference that it makes nowhere else."""

    name: str
    act: Act
    offered: Callable[[str], bool] = lambda _: True


def _row(write: Callable[[Simulation, Row], bool]) -> Act:
    return lambda simulation, _, one: simulation.on_row(one, lambda row: write(simulation, row))


def _set(row: Row, status: str) -> bool:
    changed, row.status = row.status != status, status
    return changed


def _change(simulation: Simulation, row: Row) -> bool:
    row.instance_id = simulation.world.launch()
    return True


def _clear(_: Simulation, row: Row) -> bool:
    changed, row.instance_id = row.instance_id is not None, None
    return changed


def _reprovision(simulation: Simulation, row: Row) -> bool:
    """Restart a workspace as the platform does at a person's request. The new instance is up at once, or later."""
    simulation.world.become(row.instance_id, "terminated")
    row.instance_id, row.status, row.heartbeat_at = (
        simulation.world.launch(),
        "online",
        simulation.world.tables.now,
    )
    return True


def _hibernate(simulation: Simulation, row: Row) -> bool:
    simulation.world.become(row.instance_id, "stopped")
    return _set(row, "hibernated")


def _heartbeat(simulation: Simulation, row: Row) -> bool:
    changed, row.heartbeat_at = row.heartbeat_at != simulation.world.tables.now, simulation.world.tables.now
    return changed


def _lock(_: Simulation, row: Row) -> bool:
    row.locked_by = OTHERS
    return True


def _external(_: Simulation, row: Row) -> bool:
    changed, row.runtime = row.runtime != "external", "external"
    return changed


def _hold(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    """Place a hold, which waits for nobody's lock."""
    tables = simulation.world.tables
    tables.holds[workspace_id] = StoredHold("maintenance", tables.now + HOLD_SECONDS)
    return True


def _hold_everything(simulation: Simulation, _: Actor, __: str) -> bool:
    tables = simulation.world.tables
    tables.holds[None] = StoredHold("maintenance", tables.now + HOLD_SECONDS)
    return True


def _release(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    """End the workspace's hold, or the one on everything."""
    tables = simulation.world.tables
    active = [one for one in (workspace_id, None) if one in tables.holds and tables.holds[one].ends_at > tables.now]
    for one in active:
        tables.holds[one].ends_at = tables.now
    return bool(active)


def _was_ahead(simulation: Simulation, _: Actor, __: str) -> bool:
    """Have the database's clock have been a year ahead until now."""
    tables = simulation.world.tables
    tables.leases = {of: (holder, ends_at + A_YEAR_SECONDS) for of, (holder, ends_at) in tables.leases.items()}
    for shard in tables.shards.values():
        for name in HAPPENED["shard_coverage"]:
            _add_a_year(shard, name)
    for source in tables.sources.values():
        for name in HAPPENED["source_doubts"]:
            _add_a_year(source, name)
    for doubt in tables.doubts.values():
        for name in HAPPENED["doubts"]:
            _add_a_year(doubt, name)
    for restart in tables.restarts:
        for name in (*HAPPENED["restarts"], *WAITS):
            _add_a_year(restart, name)
    for stop in tables.stops:
        stop.ends_at += A_YEAR_SECONDS
    return True


def _add_a_year(record: object, name: str) -> None:
    at = getattr(record, name)
    setattr(record, name, None if at is None else at + A_YEAR_SECONDS)


def _lock_restart(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    """Lock our own row about a restart. One that a cycle has locked is not free."""
    live = simulation.world.tables.live_restart(workspace_id)
    if live is None or live.locked_by is not None:
        return False
    live.locked_by = OTHERS
    return True


def _lock_doubts(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    doubts = simulation.world.tables.doubts_of(workspace_id)
    for one in doubts:
        one.locked_by = OTHERS
    return bool(doubts)


def _lock_table(name: str) -> Act:
    def act(simulation: Simulation, _: Actor, __: str) -> bool:
        locked = simulation.world.tables.locked
        changed = name not in locked
        locked.add(name)
        return changed

    return act


def _monitor(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    """Have the platform's monitor take the workspace offline, as it does when heartbeats stop."""
    world = simulation.world
    return simulation.on_row(workspace_id, lambda _: world.take_offline(workspace_id))


def _restart_itself(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    return simulation.world.restart_itself(workspace_id)


def _delete(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    workspaces = simulation.world.tables.workspaces
    return simulation.on_row(workspace_id, lambda _: workspaces.pop(workspace_id, None) is not None)


def _instance(state: str) -> Act:
    def act(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
        row = simulation.world.tables.workspaces.get(workspace_id)
        return row is not None and simulation.world.become(row.instance_id, state)

    return act


def _lie(word: str | None, times: int) -> Act:
    """Make EC2 give this state for the recorded instance, or (None) its previous state."""

    def act(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
        row, instance = simulation.world.tables.workspaces.get(workspace_id), simulation.world.instance_of(workspace_id)
        if row is None or instance is None:
            return False
        said = word or instance.before
        if said is None or said == instance.state:
            return False
        simulation.world.lies[row.instance_id or ""] = Lie(said, times)
        return True

    return act


def _mood(mood: str) -> Act:
    def act(simulation: Simulation, _: Actor, __: str) -> bool:
        changed, simulation.world.platform_mood = simulation.world.platform_mood != mood, mood
        return changed

    return act


def _unreachable(simulation: Simulation, _: Actor, __: str) -> bool:
    changed, simulation.world.unreachable = not simulation.world.unreachable, True
    return changed


def _block(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    """Pause an ancestor: the platform refuses restarts with 409."""
    simulation.world.blocked.add(workspace_id)
    return True


def _pass(seconds: float, *, frozen: bool = False) -> Act:
    def act(simulation: Simulation, actor: Actor, _: str) -> bool:
        simulation.world.tables.now += seconds
        if frozen:
            actor.frozen_s += seconds
        return True

    return act


def _fault(when: str) -> Act:
    def act(_: Simulation, actor: Actor, __: str) -> bool:
        changed, actor.fault = actor.fault is None, when
        return changed

    return act


def _crash(_: Simulation, actor: Actor, __: str) -> bool:
    actor.crashed = True
    return True


def _second(order: Request, *, freeze: bool = False) -> Act:
    """Run another invocation meanwhile; with `freeze`, so much later that it gets the lease."""

    def act(simulation: Simulation, actor: Actor, _: str) -> bool:
        if simulation.depth >= DEEPEST:
            return False
        if freeze:
            simulation.world.tables.now += FREEZE_SECONDS
            actor.frozen_s += FREEZE_SECONDS
        simulation.cycle(order)
        return True

    return act


def after_event(world: World, *workspace_ids: str, age_s: float | None = 0.0) -> Request:
    """Return the request after events of that age (None: without a time), true or not, about recorded instances."""
    rows = (world.tables.workspaces.get(one) for one in workspace_ids)
    instances = [row.instance_id or "" for row in rows if row is not None]
    at = None if age_s is None else world.tables.now - age_s
    return Request(APPLY, state_changes={one: StateChange(one, "terminated", at) for one in instances if one})


def _event_cycle(simulation: Simulation, _: Actor, workspace_id: str) -> bool:
    """Have EC2 tell of the instance's death just now, which may be a lie; the cycle after it runs at once."""
    if simulation.depth >= DEEPEST:
        return False
    simulation.cycle(after_event(simulation.world, workspace_id))
    return True


def _database(call: str) -> bool:
    return call not in _NO_DATABASE


def _seen(call: str) -> bool:
    return call not in _QUIET and call not in _AT_THE_END


def _not_at_the_end(call: str) -> bool:
    return call not in _AT_THE_END


def _before(*calls: str) -> Callable[[str], bool]:
    return lambda call: call in calls


ACTIONS = (
    # the platform's row
    Action("records another instance", _row(_change), _seen),
    Action("clears the instance", _row(_clear), _seen),
    Action("deletes the row", _delete, _seen),
    Action("pauses it", _row(lambda _, row: _set(row, "paused")), _seen),
    Action("hibernates it", _row(_hibernate), _seen),
    Action("reprovisions it", _row(_reprovision), _seen),
    Action("sets it degraded", _row(lambda _, row: _set(row, "degraded")), _seen),
    Action("sets it online", _row(lambda _, row: _set(row, "online")), _seen),
    Action("makes it external", _row(_external), _seen),
    Action("records a heartbeat", _row(_heartbeat), _seen),
    Action("locks the row", _row(_lock), _seen),
    Action("the monitor takes it offline", _monitor, _seen),
    Action("the platform restarts it itself", _restart_itself, _seen),
    # our own rows
    Action("holds it", _hold, _seen),
    Action("holds everything", _hold_everything, _before("select", "flip", *INSIDE, "claim", RESTART)),
    Action("releases it", _release, _seen),
    Action("locks the restart", _lock_restart, _seen),
    Action("locks the doubts", _lock_doubts, _before("tend", "_forget", "_save", "flip", "inside flip", "set_reasons")),
    Action("locks the coverage", _lock_table("shard_coverage"), _before("save_coverage")),
    Action("locks the lease", _lock_table("lease"), _before("acquire", "release")),
    Action("the database's clock was ahead", _was_ahead, _before("acquire")),
    # the instance
    Action("stops the instance", _instance("stopped"), _seen),
    Action("starts the instance", _instance("running"), _seen),
    Action("terminates the instance", _instance("terminated"), _seen),
    # what is said of it
    Action("EC2 is stale", _lie(None, 1), _before(PROBE)),
    Action("EC2 does not find it", _lie(NOT_FOUND, NOT_FOUND_ANSWERS), _before(PROBE)),
    Action("no answer about it", _lie(ERROR, 1), _before(PROBE)),
    # the platform's restart
    Action("nobody can connect to the platform", _unreachable, _before(CONNECT)),
    Action("the platform refuses", _mood("refuse"), _before(RESTART)),
    Action("the platform throttles", _mood("throttle"), _before(RESTART)),
    Action("the platform loses the request", _mood("lose"), _before(RESTART)),
    Action("the platform writes late", _mood("write late"), _before(RESTART)),
    Action("the platform reads late", _mood("read late"), _before(RESTART)),
    Action("the platform accepts in vain", _mood("in vain"), _before(RESTART)),
    Action("the platform fails to provision", _mood("fail"), _before(RESTART)),
    Action("the platform is blocked", _block, _before(RESTART)),
    # the function
    Action("evidence ages", _pass(AGEING_SECONDS), _before("flip", CONNECT, "claim", *INSIDE, RESTART)),
    Action("a short delay", _pass(SHORT_DELAY_SECONDS), _seen),
    Action("the deadline passes", _pass(DELAY_SECONDS), _not_at_the_end),
    Action(
        "it is frozen for a moment",
        _pass(SHORT_FREEZE_SECONDS, frozen=True),
        _before("flip", CONNECT, "claim", "inside claim"),
    ),
    Action("it is frozen", _pass(FREEZE_SECONDS, frozen=True), _not_at_the_end),
    Action("it crashes", _crash, lambda call: call not in ("gauges", "fleet_gauges")),
    Action("its request to the database is lost", _fault("before"), _database),
    Action("the database's answer is lost", _fault("after"), _database),
    Action("a second cycle", _second(FULL), _before("check_rights", "acquire", "flip", "claim", "release")),
    Action("a cycle after an event", _event_cycle, _before("flip", "inside flip", "claim")),
    Action("a dry run meanwhile", _second(Request(DRY_RUN)), _before("select", "flip", "inside flip", "claim")),
    Action("frozen, a second cycle", _second(FULL, freeze=True), _not_at_the_end),
)


def narrowed(workspace_id: str, *, adopt: bool = False) -> Request:
    """Return the request for one workspace."""
    return Request(APPLY, workspace_ids=(workspace_id,), adopt=adopt)
