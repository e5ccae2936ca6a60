"""The VPC: from which subnets a function reaches AWS's APIs, and what it would not reach."""

from collections.abc import Sequence
from dataclasses import dataclass

from ops.account import Account
from ops.answers import Answers

# Two zones: the loss of one stops no cycle.
_MOST_SUBNETS = 2
_SEEN = "A dry run shows it: `the secret cannot be fetched: timeout`, or every instance is unknown because of a timeout"


@dataclass(frozen=True, slots=True)
class Vpc:
    """A VPC: the zones of its subnets, the subnets behind NAT, and the services that have an endpoint."""

    vpc_id: str
    zones: dict[str, str]
    by_nat: frozenset[str]
    endpoints: frozenset[str]


def look(account: Account, vpc_id: str) -> Vpc:
    """Look at a VPC."""
    here = [{"Name": "vpc-id", "Values": [vpc_id]}]
    subnets = account.pages("ec2", "describe_subnets", "Subnets", Filters=here)
    zones = {subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in subnets}
    endpoints = account.pages("ec2", "describe_vpc_endpoints", "VpcEndpoints", Filters=here)
    # Without private names, the functions' calls do not go through an endpoint.
    usable = [one for one in endpoints if one.get("State", "available") == "available" and one.get("PrivateDnsEnabled")]
    services = frozenset(one["ServiceName"].rpartition(".")[2] for one in usable)
    return Vpc(vpc_id, zones, _behind_nat(account, vpc_id, zones), services)


def vpc_of(account: Account, subnet_ids: Sequence[str]) -> set[str]:
    """Return the VPCs of subnets: one, if they can be used together."""
    return {subnet["VpcId"] for subnet in account.client("ec2").describe_subnets(SubnetIds=list(subnet_ids))["Subnets"]}


def choose_subnets(vpc: Vpc, near_database: Sequence[str]) -> tuple[str, ...]:
    """Return the database's subnets that are behind NAT, or others of the VPC that are; else the database's.

    All subnets of a VPC reach the database. NAT leads everywhere, endpoints to single services.
    """
    near = [subnet for subnet in near_database if subnet in vpc.by_nat]
    if near:
        return tuple(near)
    others = {vpc.zones[subnet]: subnet for subnet in sorted(vpc.by_nat)}
    return tuple(sorted(others.values())[:_MOST_SUBNETS]) or tuple(near_database)


def unreached(account: Account, answers: Answers) -> list[str]:
    """Return what the functions would not reach from the answered subnets, as warnings."""
    subnet_ids = [subnet for subnet in answers.get("VpcSubnetIds").split(",") if subnet]
    if not subnet_ids:
        return []
    warnings = []
    for vpc_id in sorted(vpc_of(account, subnet_ids)):
        vpc = look(account, vpc_id)
        cut_off = sorted(subnet for subnet in subnet_ids if subnet in vpc.zones and subnet not in vpc.by_nat)
        if not cut_off:
            continue
        where = f"{', '.join(cut_off)} in {vpc_id}"
        lacking = [service for service in _services(answers) if service not in vpc.endpoints]
        if lacking:
            warnings.append(
                f"{where}: no NAT, and no endpoint (with private names) for {', '.join(lacking)}. So the functions"
                f" would reach the database, but not AWS. {_SEEN}. See docs/deploy.md, Network and costs"
            )
        outside = [answers.get(name) for name in ("PlatformBaseUrl", "CpBaseUrl", "Ec2Targets") if answers.get(name)]
        if outside:
            warnings.append(
                f"{where}: no NAT. So the functions reach {', '.join(outside)} only if it is inside the VPC"
            )
    return warnings


def _services(answers: Answers) -> list[str]:
    """Return what the functions call. Lambda itself delivers logs, metrics, traces and failed events."""
    services = ["secretsmanager"]
    if answers.get("Probe", "ec2") == "ec2":
        services.append("ec2")
    if answers.get("Ec2TargetRoleArns"):
        services.append("sts")
    return services


def _behind_nat(account: Account, vpc_id: str, subnet_ids: Sequence[str] | dict[str, str]) -> frozenset[str]:
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
    return frozenset(
        subnet for subnet in subnet_ids if any(map(_leads_out, (table_of.get(subnet) or main or {}).get("Routes", [])))
    )


def _leads_out(route: dict[str, str]) -> bool:
    return (
        route.get("DestinationCidrBlock") == "0.0.0.0/0"
        and route.get("State") != "blackhole"  # its gateway is gone
        and not (route.get("GatewayId") or "").startswith("igw-")
    )
