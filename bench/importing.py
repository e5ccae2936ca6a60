"""Where a process's start goes: `-X importtime`, summed up."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence

# What belongs together, by the first part of a module's name. The standard library is the rest.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "boto3, botocore": ("boto3", "botocore", "s3transfer", "jmespath", "dateutil"),
    "requests": ("requests", "charset_normalizer", "idna", "certifi"),
    "urllib3": ("urllib3",),
    "pg8000": ("pg8000", "scramp", "asn1crypto"),
    "Powertools": ("aws_lambda_powertools", "typing_extensions"),
    "handler": ("handler",),
}
_STANDARD_LIBRARY = "standard library"
_PREFIX = "import time:"
_DEAREST = 12


def profile(traces: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each group of modules, and of the dearest ones with all that they import: medians."""
    own = [_own(trace) for trace in traces]
    groups = {name: round(statistics.median(one[name] for one in own), 1) for name in own[0]}
    whole = [_cumulative(trace) for trace in traces]
    modules = {name: round(statistics.median(one.get(name, 0.0) for one in whole), 1) for name in whole[0]}
    dearest = sorted(modules, key=lambda name: -modules[name])[:_DEAREST]
    return {"groups": groups, "modules": {name: modules[name] for name in dearest}}


def phases(runs: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Return the milliseconds of each phase that the scripts tell of, and of the rest: medians."""
    told = [json.loads(errors.splitlines()[-1]) | {"whole": wall_s} for wall_s, errors in runs]
    medians = {name: statistics.median(one[name] for one in told) for name in told[0]}
    whole = medians.pop("whole")
    medians["interpreter, and the rest"] = whole - sum(medians.values())
    return {name: round(seconds * 1000, 1) for name, seconds in medians.items()}


def _lines(trace: str) -> Iterable[tuple[float, float, str]]:
    for line in trace.splitlines():
        if line.startswith(_PREFIX) and "[us]" not in line:
            own, cumulative, module = line.removeprefix(_PREFIX).split("|")
            yield int(own) / 1000, int(cumulative) / 1000, module.strip()


def _own(trace: str) -> dict[str, float]:
    sums = dict.fromkeys([*_GROUPS, _STANDARD_LIBRARY], 0.0)
    for own_ms, _, module in _lines(trace):
        sums[_group(module.partition(".")[0])] += own_ms
    return sums


def _group(package: str) -> str:
    return next((name for name, packages in _GROUPS.items() if package in packages), _STANDARD_LIBRARY)


def _cumulative(trace: str) -> dict[str, float]:
    """Return the milliseconds of third-party and own modules, packages alone."""
    known = {package for packages in _GROUPS.values() for package in packages}
    return {module: whole_ms for _, whole_ms, module in _lines(trace) if module.partition(".")[0] in known}
