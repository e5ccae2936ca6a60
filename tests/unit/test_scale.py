"""The model of how far it goes agrees with what was measured."""

import statistics
from dataclasses import replace
from typing import Any

import pytest

from bench import readme, scale
from bench.child import PROJECT
from bench.scale import Setup, answer, checks_per_cycle, fitting, listing, memory_mib
from bench.tables import of
from handler import cycle, phases
from handler.domain.shards import MOST_SHARDS
from handler.probes.ec2 import api, probe
from handler.settings import Settings

MEASURED = readme.measured()["scenarios"]
CP = [row for row in MEASURED["control_plane"]["rows"] if row["contestant"] == PROJECT]
# The fleets that EC2 was asked about: rows, Regions, and what was measured.
EC2 = [
    *((row["rows"], 1, row) for row in MEASURED["growth"]["rows"] if row["contestant"] == PROJECT),
    *((row["rows"], 1, row) for row in MEASURED["large_fleet"]["rows"] if row["contestant"] == PROJECT),
    *((row["rows"], row["regions"], row) for row in MEASURED["targets"]["rows"]),
]


def close_to(measured: float) -> Any:
    return pytest.approx(measured, rel=scale.TOLERANCE)


def start_s(latency_s: float) -> float:
    """How long the cycles of this scenario took to start, beside others: what 100 checks took beyond two rounds."""
    return float(of(CP, PROJECT, rows=100, latency_s=latency_s)["wall_s"][0] - 2 * latency_s)


@pytest.mark.parametrize("latency_s", [1.0, 2.0, 4.0, 8.0])
def test_a_cycle_covers_as_much_of_a_control_plane_as_was_measured(latency_s: float) -> None:
    measured = of(CP, PROJECT, rows=1_000, latency_s=latency_s)["checked"][0]
    setup = Setup("control_plane", latency_s, memory_mb=scale.WHOLE_CORE_MB, start_s=start_s(latency_s))
    assert min(1_000, checks_per_cycle(setup)) == close_to(measured)


@pytest.mark.parametrize("shards", [1, 8])
def test_shards_cover_as_much_as_was_measured(shards: int) -> None:
    row = next(one for one in MEASURED["shards"]["rows"] if one["shards"] == shards)
    setup = Setup("control_plane", 1.0, memory_mb=scale.WHOLE_CORE_MB, shards=shards)
    assert checks_per_cycle(setup) == close_to(row["checked"][0])


def test_a_check_computes_for_as_long_as_was_measured() -> None:
    """In one function: eight of them share two cores, and take some time from each other."""
    alone = MEASURED["shards"]["rows"][0]
    assert alone["cpu_s"][0] / alone["checked"][0] == close_to(scale.CPU_S_PER_CHECK)


@pytest.mark.parametrize(
    ("rows", "regions", "row"), EC2, ids=[f"{rows}-{regions}-{n}" for n, (rows, regions, _) in enumerate(EC2)]
)
def test_a_cycle_over_ec2_takes_as_long_and_as_many_calls_and_as_much_memory_as_was_measured(
    rows: int, regions: int, row: dict[str, Any]
) -> None:
    setup = Setup("ec2", 0.2, memory_mb=scale.WHOLE_CORE_MB, targets=regions)
    modelled = listing(setup, rows, dead=rows >= 1_000)
    assert modelled.seconds == close_to(statistics.median(row["wall_s"]))
    assert modelled.calls == pytest.approx(row["calls"][0], rel=scale.TOLERANCE, abs=1)
    assert memory_mib(rows) == close_to(statistics.median(row["peak_mib"]))


def test_at_a_part_of_a_core_the_large_fleet_takes_as_long_as_was_measured() -> None:
    measured = MEASURED["large_fleet"]["limited"]["wall_s"][0]
    assert listing(Setup("ec2", 0.2), 100_000).seconds == pytest.approx(measured, rel=0.25), (
        "waiting and computing overlap"
    )


def test_the_model_uses_the_project_s_own_limits() -> None:
    settings = Settings.from_env({"DATABASE_URL": "postgresql://user@127.0.0.1/name"})
    assert settings.cycle_deadline_seconds == scale.DEADLINE_S
    assert settings.candidate_limit == scale.CANDIDATE_LIMIT
    assert phases.PROBING_ENDS * scale.DEADLINE_S == scale.PROBING_S
    assert phases.FLIPPING_ENDS * scale.DEADLINE_S == scale.FLIPPING_S
    assert cycle.SECOND_PROBE_FACTOR == scale.SECOND_PROBE_FACTOR
    assert (api.PAGE, api.BURST_CALLS, api.CALLS_PER_SECOND) == (scale.PAGE, scale.BURST_CALLS, scale.CALLS_PER_S)
    assert (probe.IDS_PER_CALL, probe.CALLS_AT_ONCE) == (scale.IDS_PER_CALL, scale.CALLS_AT_ONCE)
    assert (probe.ZONES_ABOVE, probe.LISTING_TIME_SHARE) == (scale.ZONES_ABOVE, scale.LISTING_SHARE)
    assert scale.MOST_SHARDS <= MOST_SHARDS


def test_more_of_anything_covers_no_less() -> None:
    base = Setup("control_plane", 1.0)
    more = (replace(base, memory_mb=1_769), replace(base, concurrency=900), replace(base, shards=8))
    assert all(checks_per_cycle(one) >= checks_per_cycle(base) for one in (*more, replace(base, latency_s=0.1)))


@pytest.mark.parametrize("size", scale.FLEETS)
def test_only_a_control_plane_gets_shards_and_only_where_one_function_is_too_few(size: int) -> None:
    assert fitting("ec2", 0.2, size).setup.shards == 1
    for latency_s in (0.1, 1.0):
        found = fitting("control_plane", latency_s, size)
        alone = answer(Setup("control_plane", latency_s, memory_mb=1_769, concurrency=900), size)
        assert (found.setup.shards == 1) == (alone.minutes == 1)


def test_a_fleet_of_one_s_own_is_answered_in_the_words_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["--workspaces", "20000", "--answer", "1"]) == 0
    ec2, control_plane = capsys.readouterr().out.splitlines()
    assert ec2.startswith("EC2: 512 MB; ")
    assert control_plane.startswith("control plane, 1 s an answer: one function, 900 at once, 1,024 MB; ")


@pytest.mark.parametrize("arguments", [["--workspaces", "0"], ["--answer", "0"], ["--answer", "nan"]], ids=" ".join)
def test_a_fleet_that_cannot_be_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        scale.main(arguments)
