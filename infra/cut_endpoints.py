"""Cut botocore's `endpoints.json` down to the services that are called, into `handler/aws_models`.

Reading the whole file, with 400 services, takes a sixth of a cold start. Run it (`make models`) when botocore's version
moves; a test fails as long as the two tell of different endpoints.
"""

import argparse
import json
from pathlib import Path

import botocore

WHOLE = Path(botocore.__file__).parent / "data" / "endpoints.json"
CUT = Path(__file__).resolve().parent.parent / "handler" / "aws_models" / "endpoints.json"
# handler.aws.SERVICES, as their endpoints are called.
PREFIXES = ("ec2", "oidc", "portal.sso", "rds", "secretsmanager", "signin", "sts")


def main() -> None:
    """Write the file, or another one that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=CUT, help="the file to write")
    output: Path = parser.parse_args().output
    endpoints = json.loads(WHOLE.read_text())
    for partition in endpoints["partitions"]:
        services = partition["services"]
        partition["services"] = {prefix: services[prefix] for prefix in PREFIXES if prefix in services}
    output.write_text(json.dumps(endpoints, indent=1) + "\n")


if __name__ == "__main__":
    main()
