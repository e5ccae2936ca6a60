"""The least script that does what a cycle cannot do without: the artifact's libraries, one query, one describe call."""

import time

began_at = time.perf_counter()
import json  # noqa: E402 - the imports are what is measured
import os  # noqa: E402
import sys  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

import boto3  # noqa: E402
import pg8000.native  # noqa: E402
import requests  # noqa: E402, F401
from aws_lambda_powertools import Logger, Metrics  # noqa: E402

imported_at = time.perf_counter()
logger, metrics = Logger(service="least"), Metrics(namespace="Least", service="least")
client = boto3.client("ec2", region_name=os.environ["AWS_REGION"])
created_at = time.perf_counter()
url = urlsplit(os.environ["DATABASE_URL"])
connection = pg8000.native.Connection(
    str(url.username), url.hostname or "", url.path[1:], url.port or 0, url.password, ssl_context=False
)
connected_at = time.perf_counter()
rows = connection.run("SELECT id::text, instance_id FROM workspaces WHERE status IN ('online', 'degraded')")
queried_at = time.perf_counter()
answer = client.describe_instances(InstanceIds=[row[1] for row in rows])
described_at = time.perf_counter()
assert len(answer["Reservations"]) == len(rows) == 1  # noqa: S101 - it did what it is measured for
logger.info("done", rows=len(rows))
metrics.add_metric(name="Rows", unit="Count", value=len(rows))
metrics.flush_metrics()
connection.close()
phases = {
    "imports": imported_at - began_at,
    "EC2 client": created_at - imported_at,
    "connection to PostgreSQL": connected_at - created_at,
    "queries": queried_at - connected_at,
    "EC2 call": described_at - queried_at,
}
print(json.dumps(phases), file=sys.stderr)
