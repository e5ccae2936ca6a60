"""PostgreSQL databases in RDS: which there are, and what a stack needs to know of one."""

from dataclasses import dataclass
from typing import Any

from ops.account import Account

_ENGINES = ("postgres", "aurora-postgresql")


@dataclass(frozen=True, slots=True)
class Found:
    """An instance, or a cluster by its writer's endpoint."""

    name: str
    kind: str
    version: str
    host: str
    port: int
    database: str
    resource_id: str
    iam: bool
    vpc_id: str
    subnet_ids: tuple[str, ...]
    security_group_ids: tuple[str, ...]
    # Only if RDS manages the master user's password.
    master_secret_arn: str = ""
    master_key_arn: str = ""

    def __str__(self) -> str:
        """Describe it in one line of a menu."""
        iam = "IAM" if self.iam else "password"
        secret = "managed secret" if self.master_secret_arn else "no managed secret"
        return f"{self.name}  {self.kind}, PostgreSQL {self.version}, {iam} login, {secret}, {self.host}:{self.port}"


def databases(account: Account) -> list[Found]:
    """Return the databases of the account and Region that can be connected to, by name."""
    groups = {
        group["DBSubnetGroupName"]: group
        for group in account.pages("rds", "describe_db_subnet_groups", "DBSubnetGroups")
    }
    clusters = [
        _cluster(one, groups.get(one.get("DBSubnetGroup", ""), {}))
        for one in account.pages("rds", "describe_db_clusters", "DBClusters")
        if one["Engine"] in _ENGINES and one.get("Endpoint") and not one.get("ReplicationSourceIdentifier")
    ]
    instances = [
        _instance(one)
        for one in account.pages("rds", "describe_db_instances", "DBInstances")
        if one["Engine"] in _ENGINES and one.get("Endpoint") and _is_primary(one)
    ]
    return sorted([*clusters, *instances], key=lambda found: found.name)


def _is_primary(instance: dict[str, Any]) -> bool:
    """Tell whether an instance stands for itself: it is no part of a cluster, and no replica."""
    return not instance.get("DBClusterIdentifier") and not instance.get("ReadReplicaSourceDBInstanceIdentifier")


def _instance(one: dict[str, Any]) -> Found:
    group = one.get("DBSubnetGroup") or {}
    return Found(
        name=one["DBInstanceIdentifier"],
        kind="instance",
        host=one["Endpoint"]["Address"],
        port=int(one["Endpoint"]["Port"]),
        database=one.get("DBName") or "",
        resource_id=one.get("DbiResourceId") or "",
        **_common(one, group),
    )


def _cluster(one: dict[str, Any], group: dict[str, Any]) -> Found:
    return Found(
        name=one["DBClusterIdentifier"],
        kind="cluster",
        host=one["Endpoint"],
        port=int(one.get("Port") or 5432),
        database=one.get("DatabaseName") or "",
        resource_id=one.get("DbClusterResourceId") or "",
        **_common(one, group),
    )


def _common(one: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    secret = one.get("MasterUserSecret") or {}
    return {
        "version": one.get("EngineVersion") or "?",
        "iam": bool(one.get("IAMDatabaseAuthenticationEnabled")),
        "vpc_id": group.get("VpcId") or "",
        "subnet_ids": tuple(subnet["SubnetIdentifier"] for subnet in group.get("Subnets", [])),
        "security_group_ids": tuple(each["VpcSecurityGroupId"] for each in one.get("VpcSecurityGroups", [])),
        "master_secret_arn": secret.get("SecretArn") or "",
        "master_key_arn": secret.get("KmsKeyId") or "",
    }
