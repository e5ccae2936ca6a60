"""The answers of an environment, in samconfig.toml, which `sam` reads, too: stack, Region and parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from ops.console import OpsError

FILE = "samconfig.toml"
DEFAULT = "default"  # SAM's name for the environment that is meant when none is named
STACK = "instance-state-reconciler"


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered for one environment."""

    environment: str = DEFAULT
    stack: str = STACK
    region: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    # SAM's bucket for artifacts is used unless there is one of somebody's own.
    bucket: str = ""

    def but(self, **parameters: str) -> "Answers":
        """Return these answers with other parameters."""
        return replace(self, parameters={**self.parameters, **parameters})

    def get(self, parameter: str, default: str = "") -> str:
        """Return a parameter."""
        return self.parameters.get(parameter) or default


def stack_name(environment: str) -> str:
    """Return the name of an environment's stack, unless its section says otherwise."""
    return STACK if environment == DEFAULT else f"{STACK}-{environment}"


def read(path: Path, environment: str) -> Answers | None:
    """Return the environment's answers, or None if there are none yet. Raises OpsError."""
    section = _document(path)
    for name in (environment, "deploy", "parameters"):
        section = section.get(name)
        if section is None:
            return None
        if not isinstance(section, Mapping):
            raise OpsError(f"{path.name} cannot be read: {name} is no table in it. Correct it, or move it away")
    return Answers(
        environment=environment,
        stack=str(section.get("stack_name") or stack_name(environment)),
        region=str(section.get("region") or ""),
        parameters=_overrides(path, section),
        bucket=str(section.get("s3_bucket") or ""),
    )


def write(path: Path, answers: Answers) -> None:
    """Keep the answers. Whatever else is in the file stays as it is."""
    document = _document(path)
    document.setdefault("version", 0.1)
    section = document
    for name in (answers.environment, "deploy", "parameters"):
        if name not in section:
            section[name] = tomlkit.table(is_super_table=name != "parameters")
        section = section[name]
    section["stack_name"] = answers.stack
    section["region"] = answers.region
    section["capabilities"] = "CAPABILITY_IAM"
    if not answers.bucket:
        section["resolve_s3"] = True
    overrides = tomlkit.table()
    for name, value in answers.parameters.items():
        overrides[name] = value
    section["parameter_overrides"] = overrides
    _save(path, document)


def forget(path: Path, environment: str) -> None:
    """Forget the environment's answers. Whatever else is in the file stays as it is."""
    if read(path, environment) is None:
        return
    document = _document(path)
    del document[environment]["deploy"]
    if not document[environment]:
        del document[environment]
    _save(path, document)


def _save(path: Path, document: Any) -> None:
    """Replace the file as a whole, or not at all."""
    temporary = path.with_suffix(".toml.new")
    temporary.write_text(tomlkit.dumps(document))
    temporary.replace(path)


def _document(path: Path) -> Any:
    try:
        return tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    except (tomlkit.exceptions.TOMLKitError, UnicodeDecodeError) as error:
        raise OpsError(f"{path.name} cannot be read: {error}. Correct it, or move it away") from error


def _overrides(path: Path, section: Any) -> dict[str, str]:
    """Return the parameters in any of the forms that SAM reads, by its own reader, which takes a while to load."""
    found = section.unwrap().get("parameter_overrides", {})
    if isinstance(found, dict) and "$include" not in found:
        return {name: str(value) for name, value in found.items()}
    import click  # noqa: PLC0415
    from samcli.cli.types import CfnParameterOverridesType  # noqa: PLC0415

    try:
        read: dict[str, str] = CfnParameterOverridesType().convert(found, None, None)
    except click.ClickException as error:
        raise OpsError(f"{path.name}: parameter_overrides cannot be read: {error.message}") from error
    return read
