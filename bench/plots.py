"""Plots of bench/results.json, into bench/plots. Runs in .venv-bench: nothing else here needs matplotlib."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from bench.child import PROJECT
from bench.scale import DEADLINE_S, WHOLE_CORE_MB, Setup, answer
from bench.tables import NAMES, of, scaled

HERE = Path(__file__).parent
DIRECTORY = HERE / "plots"
_STYLE = {PROJECT: "o-", "batches": "s--", "batches_at_once": "^--", "loop": "s--"}


def main() -> int:
    """Draw every plot; return the process's exit code."""
    scenarios = json.loads((HERE / "results.json").read_text())["scenarios"]
    DIRECTORY.mkdir(exist_ok=True)
    plt.rcParams.update({"figure.figsize": (7, 4), "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "bench"})
    _coverage(scenarios["control_plane"])
    _growth(scenarios)
    _cold_start(scenarios["cold"])
    _scale()
    return 0


def _coverage(figures: Mapping[str, Any]) -> None:
    _, axes = plt.subplots()
    latencies = sorted({row["latency_s"] for row in figures["rows"]})
    for name, having in ((PROJECT, {"rows": 1_000}), ("loop", {})):
        covered = [of(figures["rows"], name, latency_s=one, **having)["checked"][0] for one in latencies]
        axes.plot(latencies, covered, _STYLE[name], label=NAMES[name])
        for latency_s, rows in zip(latencies, covered, strict=True):
            axes.annotate(f"{rows:,}", (latency_s, rows), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.set(
        xscale="log", yscale="log", ylim=(3, 3_000), xticks=latencies, xticklabels=[f"{one:g}" for one in latencies]
    )
    axes.set(xlabel="seconds until the control plane answers", ylabel="rows covered by one cycle, of 1,000")
    axes.set_title("One cycle against the control plane's latency")
    axes.legend()
    _save("coverage")


def _growth(scenarios: Mapping[str, Any]) -> None:
    _, axes = plt.subplots()
    rows = [*scenarios["growth"]["rows"], *scenarios["large_fleet"]["rows"]]
    sizes = sorted({row["rows"] for row in rows if row["contestant"] == PROJECT})
    for name in (PROJECT, "batches_at_once", "batches"):
        seconds = [scaled(of(rows, name, rows=size), "wall_s") for size in sizes]
        axes.plot(sizes, seconds, _STYLE[name], label=NAMES[name])
    axes.axhline(DEADLINE_S, color="grey", linewidth=1)
    axes.annotate("deadline", (sizes[0], DEADLINE_S), textcoords="offset points", xytext=(0, 4), color="grey")
    axes.set(xscale="log", yscale="log", xlabel="workspaces", ylabel="seconds for one cycle")
    axes.set_title("One cycle against the size of the fleet (EC2, 0.2 s a call)")
    axes.legend()
    _save("growth")


def _cold_start(figures: Mapping[str, Any]) -> None:
    _, axes = plt.subplots()
    parts = {name: _parts(figures, name) for name in ("least", PROJECT)}
    labels = [NAMES[name] for name in parts]
    left = [0.0] * len(parts)
    for number, part in enumerate(parts[PROJECT]):
        widths = [parts[name][part] for name in parts]
        axes.barh(labels, widths, left=left, label=part, color=plt.cm.tab20(number))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="milliseconds")
    axes.set_title("Where a cold start goes")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize="small")
    _save("cold-start")


def _scale() -> None:
    """Draw the model: how often everybody is checked, by size and set-up."""
    fast = {"memory_mb": WHOLE_CORE_MB, "concurrency": 900}
    setups = {
        "EC2, 512 MB": Setup("ec2", 0.2),
        "EC2, 1,769 MB": Setup("ec2", 0.2, memory_mb=WHOLE_CORE_MB),
        "CP at 1 s: one function, 64 at once": Setup("control_plane", 1.0),
        "CP at 1 s: 8 shards, 64 at once": Setup("control_plane", 1.0, shards=8),
        "CP at 1 s: one function, 900 at once, 1,769 MB": Setup("control_plane", 1.0, **fast),
        "CP at 1 s: 40 shards, 900 at once, 1,769 MB": Setup("control_plane", 1.0, shards=40, **fast),
    }
    sizes = [round(10 ** (exponent / 20)) for exponent in range(40, 141)]
    _, axes = plt.subplots(figsize=(7, 5))
    for name, setup in setups.items():
        minutes = [answer(setup, size).minutes for size in sizes]
        axes.plot(sizes, minutes, "-" if setup.probe == "ec2" else "--", label=name, drawstyle="steps-post")
    axes.axhline(10, color="grey", linewidth=1)
    axes.annotate(
        "alarm: candidates wait too long", (sizes[0], 10), textcoords="offset points", xytext=(0, 4), color="grey"
    )
    axes.set(xscale="log", yscale="log", ylim=(0.8, 1_000), xlabel="workspaces", ylabel="minutes until all are checked")
    axes.set_title("How far a set-up goes (model)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="small")
    _save("scale")


def _parts(figures: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return the phases, the imports divided as `-X importtime` (which makes them slower) divides them."""
    phases = dict(figures["phases"][name])
    imports = phases.pop("imports")
    groups = figures["imports"][name]["groups"]
    share = imports / sum(groups.values())
    rest = {phase: phases[phase] for phase in sorted(phases)}
    return {f"import {group}": milliseconds * share for group, milliseconds in groups.items()} | rest


def _save(name: str) -> None:
    plt.tight_layout()
    plt.savefig(DIRECTORY / f"{name}.png", dpi=110, metadata={"Software": None})
    plt.close()


if __name__ == "__main__":
    sys.exit(main())
