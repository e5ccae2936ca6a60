"""The VPC: from which subnets a function reaches AWS's APIs."""

from collections.abc import Sequence
from dataclasses import dataclass

from ops.account import Account

# What a function calls from inside the VPC: Lambda itself delivers logs, metrics, traces and failed events.
SERVICES = ("ec2", "secretsmanager")
# Two zones: the loss of one stops no cycle.
_MOST_SUBNETS = 2


@dataclass(frozen=True, slots=True)
class Chosen:
    """Subnets for the functions, and what is missing on the way from them to AWS: empty if nothing is."""

    subnet_ids: tuple[str, ...]
    missing: tuple[str, ...]


def choose_subnets(account: Account, vpc_id: str, near_database: Sequence[str]) -> Chosen:
    """Return the database's subnets if they reach AWS, or others of the VPC that do; else what is missing."""
    subnets = account.pages("ec2", "describe_subnets", "Subnets", Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])
    by_nat = _behind_nat(account, vpc_id, [subnet["SubnetId"] for subnet in subnets])
    lacking = _services_without_endpoint(account, vpc_id)
    if not lacking:
        return Chosen(tuple(near_database), ())
    near = [subnet for subnet in near_database if subnet in by_nat]
    if near:
        return Chosen(tuple(near), ())
    others = {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in subnets if subnet["SubnetId"] in by_nat}
    if others:
        return Chosen(tuple(sorted(others.values())[:_MOST_SUBNETS]), ())
    return Chosen(tuple(near_database), tuple(lacking))


def _behind_nat(account: Account, vpc_id: str, subnet_ids: Sequence[str]) -> set[str]:
    """Return the subnets whose default route leads to NAT. Functions have no address for an internet gateway."""
    tables = account.pages(
        "ec2", "describe_route_tables", "RouteTables", Filters=[{"Name": "vpc-id", "Values": [vpc_id]}]
    )
    table_of, main = {}, None
    for table in tables:
        for association in table.get("Associations", []):
            if association.get("Main"):
                main = table
            elif association.get("SubnetId"):
                table_of[association["SubnetId"]] = table
    found = set()
    for subnet in subnet_ids:
        routes = (table_of.get(subnet) or main or {}).get("Routes", [])
        defaults = [route for route in routes if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
        if any(not (route.get("GatewayId") or "").startswith("igw-") for route in defaults):
            found.add(subnet)
    return found


def _services_without_endpoint(account: Account, vpc_id: str) -> list[str]:
    endpoints = account.pages(
        "ec2", "describe_vpc_endpoints", "VpcEndpoints", Filters=[{"Name": "vpc-id", "Values": [vpc_id]}]
    )
    there = {endpoint["ServiceName"].rpartition(".")[2] for endpoint in endpoints}
    return [service for service in SERVICES if service not in there]
