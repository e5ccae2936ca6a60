"""The template's parameters: which there are, and which values they take. CloudFormation would refuse others later."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.templates import plain

_TEMPLATE = Path(__file__).parent.parent / "infra" / "template.yaml"


@functools.cache
def declared() -> Mapping[str, Mapping[str, Any]]:
    """Return the parameters' declarations, by name."""
    parameters: Mapping[str, Mapping[str, Any]] = plain(_TEMPLATE.read_text())["Parameters"]
    return parameters


def refusal(name: str, value: str) -> str:
    """Return why a parameter cannot have a value, or nothing."""
    declaration = declared().get(name)
    if declaration is None:
        return f"{name}: the template has no such parameter"
    why = declaration.get("ConstraintDescription") or declaration["Description"]
    values = [str(one) for one in declaration.get("AllowedValues", [])]
    if values and value not in values:
        return f"{name}: found {value!r}, expected one of {', '.join(values)}"
    pattern = declaration.get("AllowedPattern")
    if pattern and not re.fullmatch(pattern, value):
        return f"{name}: found {value!r}. {why}"
    if declaration["Type"] == "Number" and not _is_within(value, declaration):
        least, most = declaration.get("MinValue", "any"), declaration.get("MaxValue", "any")
        return f"{name}: found {value!r}, expected a number (least: {least}, most: {most})"
    return ""


def _is_within(value: str, declaration: Mapping[str, Any]) -> bool:
    try:
        number = float(value)
    except ValueError:
        return False
    return bool(
        declaration.get("MinValue", number) <= number <= declaration.get("MaxValue", number)  # NaN is in no range
    )


def missing(parameters: Mapping[str, str], *, owner_follows: bool) -> list[str]:
    """Return what is missing, of all that the first deploy needs. `owner_follows`: a secret with the owner's login."""
    found = []
    if not parameters.get("DatabaseSecretArn"):
        found += [f"{name}: {why}" for name, why in _DATABASE.items() if not parameters.get(name)]
    if parameters.get("DatabaseAuth") == "iam":
        if not parameters.get("DatabaseResourceId"):
            found.append("DatabaseResourceId: DatabaseAuth=iam needs the resource id (db-…, cluster-… or prx-…)")
    elif not (parameters.get("DatabaseSecretArn") or parameters.get("InstallerSecretArn") or owner_follows):
        found.append(
            "InstallerSecretArn: the secret of the tables' owner, with which the installer gives the role a generated"
            " password. (Or DatabaseSecretArn, if the role is there; or DatabaseAuth=iam and DatabaseResourceId)"
        )
    return found


_DATABASE = {"DatabaseHost": "the host of the platform's database", "DatabaseName": "the name of the database on it"}
