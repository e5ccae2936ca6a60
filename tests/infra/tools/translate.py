"""Translate the SAM template as CloudFormation does, once per set of parameters on stdin. Runs in .venv-deploy."""

import json
import sys
from pathlib import Path

from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

TEMPLATE = Path(__file__).parents[3] / "infra" / "template.yaml"


def main() -> None:
    """Print the translated templates, in the order of the parameters."""
    print(json.dumps([translated(parameters) for parameters in json.load(sys.stdin)]))


def translated(parameters: dict[str, str]) -> object:
    """Return the template as CloudFormation receives it after `sam build` and the upload."""
    template = yaml_parse(TEMPLATE.read_text())
    template["Globals"]["Function"]["CodeUri"] = "s3://artifacts/reconciler.zip"
    return Translator({}, Parser()).translate(template, parameter_values=parameters)


if __name__ == "__main__":
    main()
