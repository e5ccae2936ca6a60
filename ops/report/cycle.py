"""One cycle: what was found, what was or would be flipped and why, and what was not and why not."""

from collections.abc import Iterator, Sequence

from ops import checklist
from ops.report import state
from ops.report.document import (
    Column,
    Document,
    Figure,
    Kind,
    Row,
    Section,
    Share,
    Table,
    Tone,
    counted,
    listed,
    moment,
    number,
    seconds,
)
from ops.report.reading import Cycle, Decision
from ops.report.words import SKIPPED, SOURCES

# The handler lists no more flips than these in a report.
_MOST_FLIPS = 100
_MANY_ROWS = 12

# In the order in which they are shown: the field, its word, how it is to be taken, and what follows from it.
_VERDICTS = (
    ("running", "running", Tone.GOOD, "nothing to do"),
    ("transition", "changing state", Tone.WAIT, "starting or stopping; the next cycle looks again"),
    ("dead", "dead", Tone.BAD, "stopped or terminated: to be flipped, unless something speaks against it"),
    (
        "absent",
        "not found",
        Tone.CAUTION,
        "the source does not know the instance. That must repeat over minutes before it counts as a death",
    ),
    ("unknown", "unknown", Tone.ODD, "no usable answer, which proves nothing and has no effect"),
    ("deferred", "not reached", Tone.QUIET, "no time was left; the next cycle begins with these"),
)


def document(cycle: Cycle) -> Document:
    """Lay out one cycle."""
    title, tone = _title(cycle)
    return Document(
        kind=f"{'Dry run' if cycle.dry_run else 'Cycle'}{f' of {moment(cycle.at)}' if cycle.at else ''}",
        title=title,
        tone=tone,
        lead=tuple(_lead(cycle)),
        figures=tuple(_figures(cycle)) if cycle.completed else (),
        sections=tuple(_sections(cycle)) if cycle.completed else (),
    )


def summary(cycle: Cycle, before: Cycle | None = None) -> tuple[str, Tone]:
    """Say in a line what a cycle did, for a table of many. What a dry run would flip is news only once."""
    if not cycle.completed:
        return "another cycle was running", Tone.QUIET
    said = state.news(cycle)
    tone = Tone.CAUTION if said else Tone.PLAIN
    if cycle["breaker_open"]:
        said, tone = ["breaker open, so nothing flipped", *said], Tone.BAD
    did = [f"flipped {number(cycle['flipped'])}"] if cycle["flipped"] else []
    did += [f"adopted {number(cycle['adopted'])}"] if cycle["adopted"] else []
    if cycle.dry_run and _ids(cycle) != (_ids(before) if before else set()):
        did.append(f"would flip {_would(cycle)}")
    restarts = cycle.report["restarts"]
    did += [
        f"restarts {name}: {number(restarts[name])}" for name in ("accepted", "refused", "uncertain") if restarts[name]
    ]
    if tone is Tone.PLAIN and did:
        tone = Tone.WAIT
    return "; ".join([*did, *said]), tone


def skips(cycle: Cycle) -> int:
    """Return how many workspaces looked dead and were left alone."""
    return sum(cycle.report["skipped"].values())


def _source(cycle: Cycle) -> str:
    return SOURCES.get(cycle.report["probe"], str(cycle.report["probe"]))


def _ids(cycle: Cycle) -> set[str]:
    return {one.workspace_id for one in cycle.flips}


def _would(cycle: Cycle) -> str:
    """Return how many a dry run would flip or adopt. The report lists a hundred."""
    return f"{_MOST_FLIPS} or more" if len(cycle.flips) >= _MOST_FLIPS else number(len(cycle.flips))


def _title(cycle: Cycle) -> tuple[str, Tone]:
    if not cycle.completed:
        return "Another cycle was already running, so this one did nothing", Tone.QUIET
    if cycle["breaker_open"]:
        return "The breaker is open: nothing is flipped or restarted", Tone.BAD
    return _would_do(cycle) if cycle.dry_run else _did(cycle)


def _would_do(cycle: Cycle) -> tuple[str, Tone]:
    if not cycle.flips:
        return "An applied cycle would take no workspace offline", Tone.GOOD
    workspaces = "workspace" if len(cycle.flips) == 1 else "workspaces"
    if all(one.adopted for one in cycle.flips):
        return f"{_would(cycle)} {workspaces}, offline already, would be owed a restart", Tone.CAUTION
    return f"{_would(cycle)} {workspaces} would be taken offline, to be restarted", Tone.CAUTION


def _did(cycle: Cycle) -> tuple[str, Tone]:
    flipped, adopted = cycle["flipped"], cycle["adopted"]
    if not flipped and not adopted:
        return "No workspace was taken offline", Tone.GOOD
    if not flipped:
        return (
            f"{counted(adopted, 'workspace')}, offline already, {'is' if adopted == 1 else 'are'} owed a restart",
            Tone.CAUTION,
        )
    more = f", and {number(adopted)} adopted" if adopted else ""
    return f"{counted(flipped, 'workspace')} {'was' if flipped == 1 else 'were'} taken offline{more}", Tone.CAUTION


def _lead(cycle: Cycle) -> Iterator[str]:
    if not cycle.completed:
        yield "Only one cycle works at a time. If this repeats for minutes, no cycle completes."
        return
    looked = f"looked at {counted(cycle['checked'], 'workspace')}, with {_source(cycle)} as the source"
    yield f"This was a dry run: it {looked}, and changed nothing." if cycle.dry_run else f"The cycle {looked}."
    if cycle["breaker_open"]:
        yield (
            f"Too many look dead at once. Then {_source(cycle)} may be wrong, and the machines well: "
            "somebody has to look before anything is done."
        )
    elif cycle.flips or cycle["flipped"]:
        yield (
            "A restart ends the old machine for good and makes a new one. It is asked for only after a grace, three "
            "minutes if not set otherwise, and only if the workspace is then still offline and its instance still dead."
        )


def _figures(cycle: Cycle) -> Iterator[Figure]:
    yield Figure(
        number(cycle["checked"]), "checked" if not cycle["deferred"] else f"checked of {number(cycle['candidates'])}"
    )
    yield Figure(number(cycle["running"]), "running", Tone.GOOD)
    gone = cycle["dead"] + cycle["absent"]
    yield Figure(number(gone), "dead or not found", Tone.BAD if gone else Tone.PLAIN)
    if cycle.dry_run:
        yield Figure(
            _would(cycle).replace(" or more", "+"), "would be flipped", Tone.CAUTION if cycle.flips else Tone.PLAIN
        )
    else:
        touched = cycle["flipped"] + cycle["adopted"]
        yield Figure(number(touched), "flipped or adopted", Tone.CAUTION if touched else Tone.PLAIN)
        yield Figure(number(cycle.report["restarts"]["accepted"]), "restarts accepted")
    yield Figure(number(skips(cycle)), "dead, but left alone")
    yield Figure(
        seconds(cycle["duration_ms"]),
        "the cycle took",
        Tone.CAUTION if cycle["duration_ms"] > checklist.MOST_DURATION_MS else Tone.PLAIN,
    )


def _sections(cycle: Cycle) -> Iterator[Section]:
    if cycle.dry_run:
        yield _before_switching_on(cycle)
    yield _found(cycle)
    yield _flipped(cycle)
    yield _left_alone(cycle)
    yield state.restarts(cycle)
    yield state.look_at(cycle, "Doubts, and what else to look at")
    yield state.time(cycle)


def _before_switching_on(cycle: Cycle) -> Section:
    results = checklist.checked(cycle.report, None)
    failed = sum(not one.passed for one in results)
    rows = [
        Row(
            (one.name, "passed" if one.passed else "look here", one.reason),
            Tone.GOOD if one.passed else Tone.CAUTION,
        )
        for one in sorted(results, key=lambda one: one.passed)
    ]
    said = "Every point passed." if not failed else f"{counted(failed, 'point')} of {len(results)} did not pass."
    more = "One point no report can settle: does EC2's console, too, call each instance below stopped or terminated?"
    return Section(
        "Before switching on",
        (said, *([more] if cycle.flips and cycle.report["probe"] == "ec2" else [])),
        tables=(Table("The checklist", (Column("Point"), Column("Result"), Column("Why")), tuple(rows), marked=True),),
    )


def _found(cycle: Cycle) -> Section:
    rows, bar = [], []
    for name, word, tone, meaning in _VERDICTS:
        if cycle[name]:
            bar.append(Share(cycle[name], tone))
            rows.append(Row((word, number(cycle[name]), meaning), tone))
    if not cycle["candidates"]:
        return Section("What was found", ("There are no candidates: no workspace is up with an instance of its own.",))
    columns = (Column("Instances"), Column("Count", Kind.NUMBER), Column("What it means"))
    return Section(
        "What was found",
        (f"{counted(cycle['candidates'], 'workspace')} to look at. What {_source(cycle)} says of their instances:",),
        bar=tuple(bar),
        tables=(Table("Instances by what was found", columns, tuple(rows), marked=True),),
    )


def _flipped(cycle: Cycle) -> Section:
    heading = "What would be flipped, and why" if cycle.dry_run else "What was flipped, and why"
    blocked = [one for one in cycle.flips if one.blocked]
    flips = [one for one in cycle.flips if not one.blocked]
    sentences, tables = [], []
    if cycle["breaker_open"]:
        heading = "What the open breaker keeps from being flipped"
        sentences.append(
            "With the breaker lifted, a cycle would do this. Do not lift it before you know why so many look dead."
        )
    elif not cycle.dry_run and (touched := cycle["flipped"] + cycle["adopted"]) > len(flips):
        names = "The report names" if cycle.flips_listed else "The log names"
        sentences.append(f"{counted(touched, 'workspace')} in all. {names} {number(len(flips))} of them.")
    elif len(flips) >= _MOST_FLIPS:
        sentences.append(f"A report names {_MOST_FLIPS} at most, so there may be more.")
    for some, caption in (
        (flips, "Workspaces that are flipped or adopted"),
        (blocked, "Workspaces that the breaker keeps back"),
    ):
        if some:
            columns = (Column("Workspace", Kind.ID), Column("Instance", Kind.ID), Column("Why"))
            tables.append(
                Table(
                    caption, columns, tuple(Row((one.workspace_id, one.instance_id, why(one, cycle))) for one in some)
                )
            )
    if not tables and not sentences:
        sentences.append("No workspace.")
    return Section(heading, tuple(sentences), tables=tuple(tables))


def why(one: Decision, cycle: Cycle) -> str:
    """Say why a workspace is flipped or adopted, or would be."""
    if one.reason:
        said = one.reason
    elif one.state == "not_found":
        said = f"{_source(cycle)} has not found its instance, time and again"
    else:
        said = f"{_source(cycle)} says that its instance is {one.state}"
    return f"{said}; the platform has it offline already, so that only its restart is recorded" if one.adopted else said


def _left_alone(cycle: Cycle) -> Section:
    counts = {name: count for name, count in cycle.report["skipped"].items() if count}
    rows = [
        Row((SKIPPED.get(name, name), number(count)), Tone.CAUTION if name == "reconfirm_error" else Tone.PLAIN)
        for name, count in sorted(counts.items(), key=lambda one: -one[1])
    ]
    tables = []
    if rows:
        columns = (Column("Why"), Column("Workspaces", Kind.NUMBER))
        tables.append(Table("Left alone, by reason", columns, tuple(rows)))
    if cycle.others:
        tables.append(_decisions(cycle.others))
    said = (
        f"{counted(skips(cycle), 'workspace')} looked dead and {'was' if skips(cycle) == 1 else 'were'} left alone."
        if rows
        else "Nothing that looked dead was left alone."
    )
    waiting = [
        f"{number(cycle[name])} {word}"
        for name, word, *_ in _VERDICTS
        if name not in ("running", "dead") and cycle[name]
    ]
    also = f"Without effect, too: {listed(waiting)}." if waiting else ""
    return Section("What was left alone, and why", tuple(filter(None, (said, also))), tables=tuple(tables))


def _decisions(decisions: Sequence[Decision]) -> Table:
    """List the workspaces that were left alone, as the log names them."""
    columns = (Column("Workspace", Kind.ID), Column("Instance", Kind.ID), Column("State"), Column("Why"))
    rows = tuple(Row((one.workspace_id, one.instance_id, one.state or "no answer", _why_not(one))) for one in decisions)
    return Table("Left alone, by workspace", columns, rows, folded=len(rows) > _MANY_ROWS)


def _why_not(one: Decision) -> str:
    if one.message == "flip skipped":
        return SKIPPED.get(one.reason, one.reason)
    return f"no usable answer: {one.reason}" if one.message == "instance unknown" else one.reason
