"""Run the scenarios side by side, print what came out, and keep it.

    python -m bench [SCENARIO …] [--results FILE]

Without a scenario all are run, in less than ten minutes, and README's figures and the plots are made from FILE.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import readme, run
from bench.tables import all_tables
from bench.world import site
from sandbox.terminal import headline, say, table

RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    """Run what the command line names; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the project beside its peers.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"one of {', '.join(run.SCENARIOS)}; all")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where to keep the figures")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(run.SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    began_at = time.monotonic()
    headline("Measuring")
    with site() as place:
        scenarios = run.run(place, options.scenarios or run.SCENARIOS)
    some_are_kept = options.scenarios and options.results.exists()
    kept = json.loads(options.results.read_text())["scenarios"] if some_are_kept else {}
    results = {"machine": _machine(), "took_s": round(time.monotonic() - began_at), "scenarios": kept | scenarios}
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    for one in all_tables(results):
        headline(one.title)
        say(f"  {one.conditions}")
        table(one.header, one.rows)
    if not options.scenarios and options.results == RESULTS:
        readme.rewrite()
    say(f"\n{results['took_s']} s in all; kept in {os.path.relpath(options.results)}")
    return 0


def _machine() -> dict[str, str | int]:
    return {
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Return the processor's name as the system tells it."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    names = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return next(names, "").partition(":")[2].strip() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
