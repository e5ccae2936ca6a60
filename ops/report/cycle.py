"""One cycle: what was found, what was or would be flipped and why, what was not and why not, and how things stand."""

from collections.abc import Iterator, Sequence

from ops import checklist
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
    lasting,
    listed,
    moment,
    number,
    seconds,
)
from ops.report.reading import Cycle, Decision
from ops.report.words import SKIPPED, SOURCES

# The handler lists no more flips than these in a report.
_MOST_FLIPS = 100
# What CYCLE_DEADLINE_SECONDS is unless somebody has set it: the report does not say.
_USUAL_DEADLINE_MS = 45_000
_LONG_MS = 30_000
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

_RESTARTS = (
    ("accepted", "accepted", Tone.GOOD, "the platform does it"),
    ("refused", "refused", Tone.CAUTION, "the platform said no, or could not be reached; tried again later"),
    (
        "uncertain",
        "uncertain",
        Tone.CAUTION,
        "sent, but no answer came; left alone for a while, so as not to ask twice",
    ),
    ("cancelled", "cancelled", Tone.QUIET, "not needed any more: the workspace has moved on, or its machine runs"),
    ("pending", "owed at the end", Tone.WAIT, "in their grace, waiting for their turn, or to be tried again"),
    ("blocked", "… of these, blocked", Tone.WAIT, "an ancestor of the workspace is paused"),
    (
        "backing_off",
        "… of these, backing off",
        Tone.WAIT,
        "the workspace dies again and again, so each restart waits longer",
    ),
    (
        "unrecovered",
        "without success",
        Tone.CAUTION,
        "asked for more than 15 minutes ago, and the workspace is not back",
    ),
)

# What a person should look at, if it is news of this cycle. The rest lasts, maybe for days.
_HAPPENED = ("targets_failed", "deadline_hit")


def document(cycle: Cycle) -> Document:
    """Lay out one cycle."""
    title, tone = _title(cycle)
    return Document(
        kind=f"{'Dry run' if is_dry_run(cycle) else 'Cycle'}{f' of {moment(cycle.at)}' if cycle.at else ''}",
        title=title,
        tone=tone,
        lead=tuple(_lead(cycle)),
        figures=tuple(_figures(cycle)) if _completed(cycle) else (),
        sections=tuple(_sections(cycle)) if _completed(cycle) else (),
    )


def summary(cycle: Cycle, before: Cycle | None = None) -> tuple[str, Tone]:
    """Say in a line what a cycle did, for a table of many. What a dry run would flip is news only once."""
    if not _completed(cycle):
        return "another cycle was running", Tone.QUIET
    said = [text for name, text, _ in _to_look_at(cycle) if name in _HAPPENED]
    tone = Tone.CAUTION if said else Tone.PLAIN
    if cycle["breaker_open"]:
        said, tone = ["breaker open, so nothing flipped", *said], Tone.BAD
    did = [f"flipped {number(cycle['flipped'])}"] if cycle["flipped"] else []
    did += [f"adopted {number(cycle['adopted'])}"] if cycle["adopted"] else []
    if is_dry_run(cycle) and _ids(cycle) != (_ids(before) if before else set()):
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


def is_dry_run(cycle: Cycle) -> bool:
    """Tell whether the cycle changed nothing."""
    return bool(cycle.report["mode"] != "apply")


def _completed(cycle: Cycle) -> bool:
    return bool(cycle.report["outcome"] == "completed")


def _source(cycle: Cycle) -> str:
    return SOURCES.get(cycle.report["probe"], str(cycle.report["probe"]))


def _ids(cycle: Cycle) -> set[str]:
    return {one.workspace_id for one in cycle.flips}


def _would(cycle: Cycle) -> str:
    """Return how many a dry run would flip or adopt. The report lists a hundred."""
    return f"{_MOST_FLIPS} or more" if len(cycle.flips) >= _MOST_FLIPS else number(len(cycle.flips))


def _title(cycle: Cycle) -> tuple[str, Tone]:
    if not _completed(cycle):
        return "Another cycle was already running, so this one did nothing", Tone.QUIET
    if cycle["breaker_open"]:
        return "The breaker is open: nothing is flipped or restarted", Tone.BAD
    return _would_do(cycle) if is_dry_run(cycle) else _did(cycle)


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
    if not _completed(cycle):
        yield "Only one cycle works at a time. If this repeats for minutes, no cycle completes."
        return
    looked = f"looked at {counted(cycle['checked'], 'workspace')}, with {_source(cycle)} as the source"
    yield f"This was a dry run: it {looked}, and changed nothing." if is_dry_run(cycle) else f"The cycle {looked}."
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
    if is_dry_run(cycle):
        yield Figure(
            _would(cycle).replace(" or more", "+"), "would be flipped", Tone.CAUTION if cycle.flips else Tone.PLAIN
        )
    else:
        touched = cycle["flipped"] + cycle["adopted"]
        yield Figure(number(touched), "flipped or adopted", Tone.CAUTION if touched else Tone.PLAIN)
        yield Figure(number(cycle.report["restarts"]["accepted"]), "restarts accepted")
    yield Figure(number(skips(cycle)), "dead, but left alone")
    yield Figure(
        seconds(cycle["duration_ms"]), "the cycle took", Tone.CAUTION if cycle["duration_ms"] > _LONG_MS else Tone.PLAIN
    )


def _sections(cycle: Cycle) -> Iterator[Section]:
    if is_dry_run(cycle):
        yield _before_switching_on(cycle)
    yield _found(cycle)
    yield _flipped(cycle)
    yield _left_alone(cycle)
    yield _restarts(cycle)
    yield look_at(cycle, "Doubts, and what else to look at")
    yield _time(cycle)


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
    heading = "What would be flipped, and why" if is_dry_run(cycle) else "What was flipped, and why"
    blocked = [one for one in cycle.flips if one.blocked]
    flips = [one for one in cycle.flips if not one.blocked]
    sentences, tables = [], []
    if cycle["breaker_open"]:
        heading = "What the open breaker keeps from being flipped"
        sentences.append(
            "With the breaker lifted, a cycle would do this. Do not lift it before you know why so many look dead."
        )
    elif not is_dry_run(cycle) and (touched := cycle["flipped"] + cycle["adopted"]) > len(flips):
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


def _restarts(cycle: Cycle) -> Section:
    counts = cycle.report["restarts"]
    rows = tuple(
        Row((word, number(counts[name]), meaning), tone) for name, word, tone, meaning in _RESTARTS if counts[name]
    )
    columns = (Column("Restarts"), Column("Count", Kind.NUMBER), Column("What it means"))
    if not rows:
        said = "None is owed."
        return Section("Restarts", (said if is_dry_run(cycle) else f"{said} None was asked for.",))
    said = "A dry run asks for none." if is_dry_run(cycle) else ""
    tables = (Table("Restarts by what became of them", columns, rows, marked=True),)
    return Section("Restarts", (said,) if said else (), tables=tables)


def look_at(cycle: Cycle, heading: str) -> Section:
    """List what a person should look at."""
    rows = tuple(Row((text, meaning), Tone.CAUTION) for _, text, meaning in _to_look_at(cycle))
    if not rows:
        return Section(heading, ("Nothing.",))
    columns = (Column("What"), Column("What it means"))
    return Section(
        heading,
        ("docs/runbook.md has a section for each.",),
        tables=(Table("What else to look at", columns, rows, marked=True),),
    )


def _to_look_at(cycle: Cycle) -> Iterator[tuple[str, str, str]]:
    """Yield what a person should look at: its field, what is the case, and what it means."""
    for name, what in (("targets_failed", "gave no answer"), ("targets_empty", "has none of the instances")):
        if cycle.report[name]:
            meaning = {
                "targets_failed": "to some question. Until it answers, none is flipped because it was not found",
                "targets_empty": "until it shows one, none is flipped because it was not found",
            }[name]
            yield name, f"{listed(cycle.report[name])} {what}", meaning
    if cycle["deadline_hit"]:
        yield "deadline_hit", "the deadline cut the cycle short", "what it left undone goes first in the next one"
    if cycle["oldest_doubt_seconds"]:
        age = lasting(cycle["oldest_doubt_seconds"])
        yield (
            "doubt",
            f"in doubt for {age}",
            "the oldest doubt: a workspace that is neither alive nor flipped for so long",
        )
    if cycle["unrecorded"]:
        text = f"{counted(cycle['unrecorded'], 'workspace')} up without an instance"
        yield "unrecorded", text, "the row names no machine, so nobody can look after it"
    if cycle["offline_unowed"]:
        text = f"{counted(cycle['offline_unowed'], 'workspace')} offline, and nobody at it"
        yield "offline_unowed", text, "for more than 15 minutes, without a restart that is owed or watched"
    if cycle["impaired"]:
        text = f"{counted(cycle['impaired'], 'instance')} impaired"
        yield "impaired", text, "the machine runs, but fails EC2's system status check. It is never flipped for that"
    if cycle["on_hold"]:
        text = f"{counted(cycle['on_hold'], 'workspace')} on hold"
        yield "on_hold", text, "by somebody's order: looked at, but neither flipped nor restarted"
    if cycle.report["restarts"]["unrecovered"]:
        text = f"{counted(cycle.report['restarts']['unrecovered'], 'restart')} without success"
        yield "unrecovered", text, "asked for more than 15 minutes ago, and the workspace is not back"


def _time(cycle: Cycle) -> Section:
    took = cycle["duration_ms"]
    left = max(0, _USUAL_DEADLINE_MS - took)
    sentences = [
        f"{seconds(took)} in all. A cycle may take {_USUAL_DEADLINE_MS // 1000} s, if not set otherwise.",
    ]
    if cycle["checked"]:
        each = took / cycle["checked"]
        sentences.append(f"For {counted(cycle['checked'], 'workspace')}, that is {each:,.1f} ms each.")
    out_of_time = cycle.report["skipped"]["out_of_time"]
    if cycle["deadline_hit"] or cycle["deferred"] or out_of_time:
        sentences.append(
            f"Time ran out: {counted(cycle['deferred'], 'workspace')} not reached, "
            f"{number(out_of_time)} not flipped in time."
        )
    sentences.append(
        "Every workspace has had its turn in this round."
        if cycle["completed_pass"]
        else "The round of all workspaces goes on in the next cycle."
    )
    tone = Tone.CAUTION if took > _LONG_MS or cycle["deadline_hit"] else Tone.GOOD
    return Section("Where the time went", tuple(sentences), bar=(Share(took, tone), Share(left, Tone.PLAIN)))
