"""The figures as tables, for the terminal and for README."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.child import PROJECT
from bench.figures import LAMBDA_SHARE, at_share

Figures = Mapping[str, Any]

NAMES = {
    PROJECT: "this project",
    "batches": "500 ids a call, one after another",
    "batches_at_once": "1,000 ids a call, 8 at once",
    "loop": "the loop, one check after another",
    "loop_ec2": "the loop, one call after another",
    "bare_calls": "bare SELECT and calls, 200 ids each, 8 at once",
    "bare_call": "bare SELECT and one call of 1,000 ids",
    "least": "the least script",
}


# The fleet that the loop is compared on in CP mode.
_COVERED_OF = 1_000


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, what its figures depend on, and cells of text."""

    title: str
    conditions: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def all_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return every table for which there are figures."""
    scenarios = results["scenarios"]
    makers = {
        "large_fleet": (_large_fleet, _drained),
        "small_account": (_small_account,),
        "growth": (_growth,),
        "control_plane": (_coverage, _control_plane, _slow, _failing),
        "shards": (_shards,),
        "targets": (_targets,),
        "events": (_events,),
        "zone": (_zone,),
        "mass_death": (_mass_death,),
        "own_tables": (_own_tables,),
        "https": (_https,),
        "cold": (_cold, _imports),
        "warm": (_warm,),
    }
    return [make(scenarios) for name, made in makers.items() if name in scenarios for make in made]


def scaled(figures: Figures, field: str) -> float:
    """Return the median of a figure, scaled from the share of the rows that it was measured on."""
    median = float(statistics.median(figures[field]))
    return median if field == "peak_mib" else median / figures["share"]


def of(figures: Sequence[Figures], contestant: str, **having: Any) -> Figures:
    """Return the figures of a contestant that have these values; there may be several of it."""
    wanted = {"contestant": contestant, **having}
    return next(one for one in figures if all(one[name] == value for name, value in wanted.items()))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def _comparison(rows: Sequence[Figures]) -> tuple[tuple[str, ...], ...]:
    base = scaled(rows[0], "wall_s")
    return tuple(
        (
            NAMES[row["contestant"]] + (f" (measured on {row['share']:.0%})" if row["share"] < 1 else ""),
            f"{scaled(row, 'checked'):,.0f}",
            _seconds(scaled(row, "wall_s")),
            f"{scaled(row, 'wall_s') / base:.1f}",
            _seconds(scaled(row, "cpu_s")),
            _at_share(row),
            f"{scaled(row, 'peak_mib'):.0f}",
            f"{scaled(row, 'calls'):,.0f}",
        )
        for row in rows
    )


_AT_SHARE = f"time at {LAMBDA_SHARE} of a CPU"
_COMPARED = ("", "rows checked", "time", "ratio", "CPU", _AT_SHARE, "peak MiB", "EC2 calls")


def _at_share(row: Figures) -> str:
    return _seconds(at_share(scaled(row, "wall_s"), scaled(row, "cpu_s")))


def _large_fleet(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["large_fleet"]
    limited = scaled(figures["limited"], "wall_s")
    conditions = (
        f"{figures['conditions']}; really run at {LAMBDA_SHARE} of a CPU, this project took {_seconds(limited)}"
    )
    return Table("100,000 workspaces in one cycle", conditions, _COMPARED, _comparison(figures["rows"]))


def _drained(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["large_fleet"]["drained"]
    return Table(
        "The same, while other tools drain EC2's bucket",
        figures["conditions"],
        ("rows checked", "deferred", "calls", "share of the calls that AWS allows", "throttled", "the others got"),
        (
            (
                f"{figures['checked']:,}",
                f"{figures['deferred']:,}",
                str(figures["calls"]),
                f"{figures['calls'] / figures['allowance']:.0%}",
                str(figures["throttled"]),
                str(figures["others_served"]),
            ),
        ),
    )


def _small_account(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["small_account"]
    return Table("A small part of a large account", figures["conditions"], _COMPARED, _comparison(figures["rows"]))


def _growth(scenarios: Mapping[str, Any]) -> Table:
    rows = [*scenarios["growth"]["rows"], *scenarios.get("large_fleet", {"rows": []})["rows"]]
    sizes = sorted({row["rows"] for row in rows if row["contestant"] == PROJECT})
    cells = []
    for size in sizes:
        own = of(rows, PROJECT, rows=size)
        peers = [of(rows, name, rows=size) for name in ("batches", "batches_at_once")]
        cells.append(
            (
                f"{size:,}",
                _seconds(scaled(own, "wall_s")),
                _seconds(scaled(own, "cpu_s")),
                f"{scaled(own, 'peak_mib'):.0f}",
                f"{scaled(own, 'calls'):.0f}",
                *(_seconds(scaled(peer, "wall_s")) for peer in peers),
            )
        )
    header = ("workspaces", "time", "CPU", "peak MiB", "EC2 calls", "500 ids, in turn", "1,000 ids, 8 at once")
    return Table("Growth", scenarios["growth"]["conditions"], header, tuple(cells))


def _coverage(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["control_plane"]
    cells = []
    for latency_s in sorted({row["latency_s"] for row in figures["rows"]}):
        own = of(figures["rows"], PROJECT, rows=_COVERED_OF, latency_s=latency_s)
        loop = of(figures["rows"], "loop", latency_s=latency_s)
        cells.append(
            (
                f"{latency_s:g} s",
                f"{own['checked'][0]:,}",
                _seconds(own["wall_s"][0]),
                str(own["peak_in_flight"]),
                str(loop["checked"][0]),
                f"{own['checked'][0] / loop['checked'][0]:.0f}",
            )
        )
    header = ("the CP answers in", "rows covered", "cycle", "peak in flight", "the loop covers", "ratio")
    return Table(
        f"Control plane: rows covered by one cycle, of {_COVERED_OF:,}", figures["conditions"], header, tuple(cells)
    )


def _control_plane(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["control_plane"]
    rows = sorted(
        (row for row in figures["rows"] if row["contestant"] == PROJECT and row["rows"] != _COVERED_OF),
        key=lambda row: (row["rows"], row["latency_s"]),
    )
    cells = tuple(
        (
            str(row["rows"]),
            f"{row['latency_s']:g} s",
            str(row["checked"][0]),
            _seconds(row["wall_s"][0]),
            _seconds(row["cpu_s"][0]),
        )
        for row in rows
    )
    header = ("workspaces", "the CP answers in", "checked", "cycle", "CPU")
    return Table("Control plane: smaller fleets", figures["conditions"], header, cells)


def _failing(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["control_plane"]["failing"]
    first, *later = figures["calls_each_second"]
    return Table(
        "A control plane that begins to fail",
        figures["conditions"],
        ("checks in the first second", "in each later one", "checked in all", "it said"),
        (
            (
                str(first),
                str(statistics.median(later)) if later else "-",
                str(figures["checked"]),
                "; ".join(f"{said['count']}: {said['reason']}" for said in figures["said"]) or "nothing",
            ),
        ),
    )


def _shards(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["shards"]
    cells = tuple(
        (
            str(row["shards"]),
            f"{row['checked'][0]:,}",
            f"{row['ratio']} (at least {row['least']})" if "ratio" in row else "1",
            _seconds(row["wall_s"][0]),
            _seconds(row["cpu_s"][0]),
            f"{row['peak_mib'][0]:.0f}",
            str(row["flipped"][0]),
        )
        for row in figures["rows"]
    )
    header = ("shards", "rows checked", "ratio", "the longest took", "CPU of all", "peak MiB of one", "flipped")
    return Table("Shards: one minute of a slow control plane", figures["conditions"], header, cells)


def _targets(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["targets"]
    cells = tuple(
        (
            f"{row['rows']:,}",
            str(row["regions"]),
            f"{scaled(row, 'checked'):,.0f}",
            _seconds(scaled(row, "wall_s")),
            f"{row['ratio']} (at most {row['most']})" if "ratio" in row else "1",
            _seconds(scaled(row, "cpu_s")),
            f"{scaled(row, 'peak_mib'):.0f}",
            f"{scaled(row, 'calls'):,.0f}",
        )
        for row in figures["rows"]
    )
    header = ("workspaces", "Regions", "rows checked", "time", "ratio", "CPU", "peak MiB", "EC2 calls")
    return Table("Several Regions", figures["conditions"], header, cells)


def _events(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["events"]
    cells = tuple(
        (
            f"{row['events']:,}" + (f", at {row['cpu_share']} of a CPU" if row["cpu_share"] else ""),
            *(_seconds(statistics.median(row[name])) for name in ("median_s", "p99_s", "wall_s")),
            *(f"{statistics.median(row[name]):.0f}" for name in ("batches", "calls")),
            f"{max(row['calls'])}",
        )
        for row in figures["rows"]
    )
    header = (
        "events",
        "from arrival to commit: median",
        "p99",
        "until the queue is empty",
        "batches",
        "EC2 calls",
        "at most",
    )
    return Table("State-change events", figures["conditions"], header, cells)


def _zone(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["zone"]
    own, peer = figures["rows"]
    limited = scaled(figures["limited"], "wall_s")
    restarts = f"{figures['restarts']} ({figures['restarts_at_once']} at once)"
    cells = tuple(
        (
            name,
            f"{scaled(row, 'flipped'):,.0f}",
            _seconds(scaled(row, "wall_s")),
            _seconds(scaled(row, "cpu_s")),
            _at_share(row),
            f"{figures['events']:,}" if row is not peer else "none",
            restarts if row is own else "none",
        )
        for name, row in (
            (NAMES[PROJECT], figures["flips"]),
            (f"{NAMES[PROJECT]}, no grace", own),
            (NAMES[peer["contestant"]], peer),
        )
    )
    header = ("", "flipped", "time", "CPU", _AT_SHARE, "events", "restarts asked for")
    conditions = f"{figures['conditions']}; really run at {LAMBDA_SHARE} of a CPU, the first took {_seconds(limited)}"
    return Table("A zone is lost: 2,000 dead of 4,000", conditions, header, cells)


def _mass_death(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["mass_death"]
    cells = tuple(
        (
            f"{number}",
            f"{cycle['checked'][0]:,}",
            f"{cycle['dead']:,}",
            f"{cycle['flipped'][0]:,}",
            str(cycle["restarts"]),
            _seconds(cycle["wall_s"][0]),
            f"{cycle['doubts']:,}",
            "yes" if cycle["place_saved"] else "no",
            f"{cycle['most_lines'][1]} ({cycle['most_lines'][0]})",
        )
        for number, cycle in enumerate(figures["cycles"], 1)
    )
    header = (
        "cycle",
        "rows checked",
        "dead",
        "flipped",
        "restarts asked for",
        "time",
        "doubts saved",
        "place saved",
        "most log lines of a kind",
    )
    return Table("45,000 dead of 100,000", figures["conditions"], header, cells)


def _own_tables(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["own_tables"]
    cells = tuple(
        (
            what,
            f"{scaled(figures[name], 'wall_s') * 1000:.0f} ms",
            f"{scaled(figures[name], 'cpu_s') * 1000:.0f} ms",
        )
        for what, name in (("empty", "empty"), ("years later", "full"))
    )
    return Table("A quiet cycle, and the size of our own tables", figures["conditions"], ("", "time", "CPU"), cells)


def _https(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["https"]
    cells = []
    for warm in (False, True):
        for checks in sorted({row["rows"] for row in figures["rows"]}):
            plain, encrypted = (
                next(
                    scaled(row, "cpu_s")
                    for row in figures["rows"]
                    if (row["rows"], row["scheme"], row["warm"]) == (checks, scheme, warm)
                )
                for scheme in ("http", "https")
            )
            cells.append(
                (
                    str(checks),
                    "warm" if warm else "new",
                    _seconds(plain),
                    _seconds(encrypted),
                    f"{encrypted / plain:.2f}",
                    f"{(encrypted - plain) * 1000:.0f} ms",
                )
            )
    header = ("checks", "process", "CPU, HTTP", "CPU, HTTPS", "ratio", "difference")
    return Table("A control plane over HTTPS", figures["conditions"], header, tuple(cells))


def _slow(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["control_plane"]["slow"]
    header = ("rows checked", "dead", "flipped", "restarts asked for", "cycle", "peak in flight")
    cells = (
        f"{figures['checked'][0]:,}",
        str(figures["dead"]),
        str(figures["flipped"][0]),
        str(figures["restarts"]),
        _seconds(figures["wall_s"][0]),
        str(figures["peak_in_flight"]),
    )
    return Table("A slow control plane, deaths and due restarts", figures["conditions"], header, (cells,))


def _cold(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["cold"]
    medians = {name: statistics.median(taken) for name, taken in figures["wall_s"].items()}
    cells = tuple(
        (NAMES[name], f"{median * 1000:.0f} ms", f"{median / medians['least']:.2f}") for name, median in medians.items()
    )
    return Table("Cold start", figures["conditions"], ("", "from start to end", "ratio"), cells)


def _imports(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["cold"]
    columns = {name: figures["imports"][name]["groups"] for name in (PROJECT, "least")}
    cells = [
        ("import " + group, *(f"{column[group]:.0f} ms" for column in columns.values())) for group in columns[PROJECT]
    ]
    phases = {name: figures["phases"][name] for name in (PROJECT, "least")}
    cells += [
        (phase, *(f"{column[phase]:.0f} ms" for column in phases.values()))
        for phase in phases["least"]
        if phase != "imports"
    ]
    conditions = "imports as -X importtime tells them, which makes them slower; the rest by timers"
    return Table("Where a cold start goes", conditions, ("", *(NAMES[name] for name in columns)), tuple(cells))


def _warm(scenarios: Mapping[str, Any]) -> Table:
    figures = scenarios["warm"]
    cells = []
    for row in figures["rows"]:
        bare = of(figures["rows"], "bare_calls", latency_s=row["latency_s"])
        cells.append(
            (
                f"{row['latency_s']:g} s",
                NAMES[row["contestant"]],
                _seconds(scaled(row, "wall_s")),
                f"{scaled(row, 'wall_s') / scaled(bare, 'wall_s'):.2f}",
                _seconds(scaled(row, "cpu_s")),
                f"{scaled(row, 'calls'):.0f}",
            )
        )
    header = ("an EC2 call takes", "", "time", "ratio", "CPU", "EC2 calls")
    return Table("A warm cycle over 1,000 running workspaces", figures["conditions"], header, tuple(cells))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.1f} s"  # noqa: PLR2004 - three digits
