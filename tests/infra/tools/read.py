"""Print a CloudFormation template as JSON. Runs in .venv-deploy."""

import json
import sys
from pathlib import Path

from samtranslator.yaml_helper import yaml_parse

if __name__ == "__main__":
    print(json.dumps(yaml_parse(Path(sys.argv[1]).read_text())))
