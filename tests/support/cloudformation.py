"""Resolves a template as CloudFormation does: decides its conditions and resolves its functions.

A resource's `Ref` and `GetAtt` become the words `<Name>` and `<Name.Attribute>`, so that tests can tell what refers to
what. Only the functions that the template uses are known; any other one is an error with its name.
"""

import re
from collections.abc import Mapping
from typing import Any

ACCOUNT = "123456789012"
REGION = "eu-central-1"
STACK = "reconciler"

PSEUDO_PARAMETERS = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": STACK,
    "AWS::URLSuffix": "amazonaws.com",
}

_NO_VALUE = object()
_PLACEHOLDER = re.compile(r"\$\{([^!}][^}]*)\}")


class Stack:
    """A stack that the template describes for some parameters; those not given have their defaults."""

    def __init__(
        self,
        template: Mapping[str, Any],
        parameters: Mapping[str, str],
        *,
        partition: str = "aws",
        region: str = REGION,
        account: str = ACCOUNT,
    ) -> None:
        self._template = template
        own = {"AWS::Partition": partition, "AWS::Region": region, "AWS::AccountId": account}
        self._pseudo_parameters = PSEUDO_PARAMETERS | own
        declared = template["Parameters"]
        missing = [
            name for name, parameter in declared.items() if "Default" not in parameter and name not in parameters
        ]
        assert not missing, f"parameters without a value: {missing}"
        assert not parameters.keys() - declared.keys(), "parameters that the template does not have"
        # CloudFormation hands numbers on as text.
        defaults = {name: str(parameter["Default"]) for name, parameter in declared.items() if "Default" in parameter}
        self.parameters = {**defaults, **parameters}
        self.resources = self._present("Resources")
        self.outputs = self._present("Outputs")

    def of_type(self, resource_type: str) -> dict[str, Any]:
        """Return the properties of the resources of a type, by name."""
        return {
            name: resource.get("Properties", {})
            for name, resource in self.resources.items()
            if resource["Type"] == resource_type
        }

    def properties(self, name: str) -> Any:
        """Return the properties of a resource."""
        return self.resources[name]["Properties"]

    def environment(self, function: str) -> dict[str, str]:
        """Return the environment variables of a function."""
        variables: dict[str, str] = self.properties(function)["Environment"]["Variables"]
        return variables

    def refusals(self) -> list[str]:
        """Return the messages of the template's rules that refuse the parameters."""
        return [
            assertion["AssertDescription"]
            for rule in self._template["Rules"].values()
            if self._resolve(rule["RuleCondition"])
            for assertion in rule["Assertions"]
            if not self._resolve(assertion["Assert"])
        ]

    def _present(self, section: str) -> dict[str, Any]:
        return {
            name: self._resolve(item)
            for name, item in self._template[section].items()
            if "Condition" not in item or self._holds(item["Condition"])
        }

    def _holds(self, condition: str) -> bool:
        return bool(self._resolve(self._template["Conditions"][condition]))

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [item for item in map(self._resolve, value) if item is not _NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name in ("Ref", "Condition") and isinstance(argument, str):
                return self._ref(argument) if name == "Ref" else self._holds(argument)
            if name.startswith("Fn::"):
                return self._call(name, argument)
        # A resource's own condition, which is a name, has been decided by now; a policy statement's is a mapping.
        resolved = {
            key: self._resolve(item) for key, item in value.items() if key != "Condition" or not isinstance(item, str)
        }
        return {key: item for key, item in resolved.items() if item is not _NO_VALUE}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return _NO_VALUE
        for values in (self._pseudo_parameters, self.parameters):
            if name in values:
                return values[name]
        return self._reference(name)

    def _reference(self, name: str, attribute: str = "") -> str:
        resource = self._template["Resources"][name]  # a KeyError here is a dangling reference
        if "Condition" in resource:
            assert self._holds(resource["Condition"]), f"{name} is referred to, but not created"
        return f"<{name}.{attribute}>" if attribute else f"<{name}>"

    def _call(self, function: str, argument: Any) -> Any:  # noqa: C901, PLR0911  # one case for each function
        match function, argument:
            case "Fn::If", [condition, yes, no]:
                return self._resolve(yes if self._holds(condition) else no)
            case "Fn::Equals", [left, right]:
                return str(self._resolve(left)) == str(self._resolve(right))
            case "Fn::Not", [operand]:
                return not self._resolve(operand)
            case "Fn::And", operands:
                return all(map(self._resolve, operands))
            case "Fn::Or", operands:
                return any(map(self._resolve, operands))
            case "Fn::Contains", [values, one]:
                return self._resolve(one) in self._resolve(values)
            case "Fn::FindInMap", [mapping, first, second]:
                return str(self._template["Mappings"][mapping][self._resolve(first)][second])
            case "Fn::GetAtt", [name, attribute]:
                return self._reference(name, attribute)
            case "Fn::Split", [separator, text]:
                return self._resolve(text).split(separator)
            case "Fn::Select", [index, values]:
                return self._resolve(values)[int(index)]
            case "Fn::Sub", [text, values]:
                return self._substitute(text, {name: self._resolve(value) for name, value in values.items()})
            case "Fn::Sub", str() as text:
                return self._substitute(text, {})
        raise NotImplementedError(function)

    def _substitute(self, text: str, values: Mapping[str, str]) -> str:
        def replacement(match: re.Match[str]) -> str:
            name: str = match[1]
            if name in values:
                return values[name]
            if "." in name:
                return self._reference(*name.split(".", 1))
            return str(self._ref(name))

        return _PLACEHOLDER.sub(replacement, text)
