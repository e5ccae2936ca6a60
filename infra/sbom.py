"""Say what the artifact is made of: a software bill of materials (CycloneDX), and the licences in docs/licences.md.

`make build` writes the bill beside the artifact, and `make licences` rewrites the page. Both are made from what the
packages in the artifact say of themselves. Nothing depends on time or place: one artifact has one bill.
"""

import argparse
import json
import tomllib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
START, END = "<!-- licences:start -->\n", "<!-- licences:end -->\n"

# For the packages that do not say it in the words of SPDX, as their licence files have it.
SPDX = {
    "aws-lambda-powertools": "MIT-0",
    "pg8000": "BSD-3-Clause",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "s3transfer": "Apache-2.0",
}
# What packages may say. Anything else is looked at by a person first, and added here or above.
KNOWN = {"Apache-2.0", "BSD-3-Clause", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0", *SPDX.values()}

# Where the artifact runs, for the markers of requirements.
LAMBDA = {
    "python_version": "3.13",
    "python_full_version": "3.13.0",
    "implementation_version": "3.13.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "aarch64",
    "os_name": "posix",
    "extra": "",
}


@dataclass(frozen=True, slots=True)
class Package:
    """One package in the artifact, with the names of those that it needs."""

    name: str
    version: str
    licence: str
    needs: tuple[str, ...]

    @property
    def purl(self) -> str:
        """Return its package URL, which scanners look vulnerabilities up by."""
        return f"pkg:pypi/{self.name}@{self.version}"


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="the directory that infra/build.py filled")
    parser.add_argument("--bill", type=Path, help="where to write the bill of materials")
    parser.add_argument("--licences", action="store_true", help="rewrite the table in docs/licences.md")
    arguments = parser.parse_args()
    found = packages(arguments.artifact)
    if arguments.bill:
        arguments.bill.write_text(json.dumps(bill(found), indent=2) + "\n")
    if arguments.licences:
        PAGE.write_text(with_table(PAGE.read_text(), table(found)))


def packages(artifact: Path) -> list[Package]:
    """Return the packages in the artifact, by name."""
    found = [_package(one) for one in distributions(path=[str(artifact)])]
    if not found:
        raise SystemExit(f"{artifact} has no packages: build it first")
    return sorted(found, key=lambda package: package.name)


def _package(distribution: Distribution) -> Package:
    name = canonicalize_name(distribution.name)
    metadata = distribution.metadata
    said = next((metadata[field] for field in ("License-Expression", "License") if field in metadata), "")
    licence = SPDX.get(name, said)
    if licence not in KNOWN:
        raise SystemExit(f"{name}: infra/sbom.py does not know the licence {licence!r}; read it and add it there")
    requirements = map(Requirement, distribution.requires or ())
    needs = {canonicalize_name(one.name) for one in requirements if one.marker is None or one.marker.evaluate(LAMBDA)}
    return Package(name, distribution.version, licence, tuple(sorted(needs)))


def bill(found: Sequence[Package]) -> dict[str, Any]:
    """Return the bill of materials, as CycloneDX 1.6 has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = f"pkg:generic/{project['name']}@{project['version']}"
    direct = sorted({canonicalize_name(Requirement(one).name) for one in project["dependencies"]})
    by_name = {package.name: package for package in found}
    content = {
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "component": _component("application", project["name"], project["version"], project["license"], own),
        },
        "components": [
            _component("library", package.name, package.version, package.licence, package.purl) for package in found
        ],
        "dependencies": [
            {"ref": own, "dependsOn": [by_name[name].purl for name in direct]},
            *({"ref": one.purl, "dependsOn": [by_name[name].purl for name in one.needs]} for one in found),
        ],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, own + json.dumps(content, sort_keys=True))}",
        "version": 1,
        **content,
    }


def _component(kind: str, name: str, version: str, licence: str, purl: str) -> dict[str, Any]:
    licences = [{"expression": licence}] if " " in licence else [{"license": {"id": licence}}]
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "licenses": licences, "purl": purl}


def table(found: Sequence[Package]) -> str:
    """Return the licences as a table in Markdown. It has no versions, so that only a new licence changes it."""
    rows = [f"| {package.name} | {package.licence} |\n" for package in found]
    return "".join(["| package | licence (SPDX) |\n", "| --- | --- |\n", *rows])


def with_table(page: str, rows: str) -> str:
    """Return the page with these rows between its marks."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return before + START + rows + END + after


if __name__ == "__main__":
    main()
