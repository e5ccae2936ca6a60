"""CloudFormation's templates as plain values, for looking into them and comparing them."""

import json
from typing import Any

import yaml

from ops.console import OpsError


class _AnyTag(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the quick one, if it is there
    """Reads CloudFormation's short tags, too: two templates are equal if tags and values are."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return [suffix, loader.construct_scalar(node)]
    if isinstance(node, yaml.SequenceNode):
        return [suffix, loader.construct_sequence(node, deep=True)]
    if isinstance(node, yaml.MappingNode):
        return [suffix, loader.construct_mapping(node, deep=True)]
    raise OpsError("the template is not YAML that CloudFormation reads")


_AnyTag.add_multi_constructor("!", _tagged)


def plain(template: Any) -> Any:
    """Return a template as plain values. boto3 gives JSON parsed and YAML as text."""
    if not isinstance(template, str):
        return json.loads(json.dumps(template))
    if template.lstrip().startswith("{"):
        return json.loads(template)
    return yaml.load(template, _AnyTag)  # noqa: S506 - it is a safe loader
