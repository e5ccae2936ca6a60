"""Check a bill of materials against CycloneDX's own schema, strictly. Runs in .venv-checkov, which has the schema.

stdin: the bill. stdout: what is wrong with it; nothing if it is valid.
"""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()) or "", end="")
