"""An operator's laptop and an AWS account in moto: runs commands of `ops`, one after another. Runs in .venv-deploy.

It serves one test after another, each in a process forked from this one, which has imported everything by then. The
argument is the descriptor of a socket. A request names the file with the scenario, one for what came of it, and the
terminal, or the file that takes the output if there is none. What comes back: the process, each question, and the end.

SAM is the one part that is played: it translates the template, and creates the stack in moto's CloudFormation, which
does not know SAM's transform.
"""

import functools
import gc
import json
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.exceptions
import botocore.loaders
from moto import mock_aws
from moto.awslambda_simple.models import LambdaSimpleBackend
from moto.cloudformation import models as cloudformation_models
from moto.cloudformation.models import cloudformation_backends
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from ops import __main__ as orders
from ops import authorities, deploy, mode, undeploy, verify
from ops.account import Account
from ops.answers import Answers
from ops.console import Console, OpsError
from ops.sam import Sam
from ops.stack import Stack

CERTIFICATE = (Path(__file__).parents[2] / "support" / "authority.pem").read_text()
TEMPLATE = Path(__file__).parents[3] / "infra" / "template.yaml"
REGION = "eu-central-1"


@functools.cache
def aws(service: str) -> Any:
    """Return a client of the account."""
    client: Any = boto3.client(service, region_name=REGION)  # type: ignore[call-overload]
    return client


# What the commands have called, as IAM names it.
CALLED: set[str] = set()
NOT_YOU = "User: arn:aws:iam::123456789012:user/op is not authorized to perform: "


@functools.cache
def translated() -> Any:
    """Return the template as CloudFormation gets it."""
    template = yaml_parse(TEMPLATE.read_text())
    template["Globals"]["Function"]["CodeUri"] = "s3://artifacts/VERSION.zip"
    return Translator({}, Parser()).translate(template, parameter_values={})


def for_moto(version: int) -> str:
    """Return the template of a version, as far as moto can create it."""
    template = dict(translated())
    # moto wants what a condition leaves out, too, once a stack is updated.
    left_out = ("TakesForwardedEvents", "AdmitsAccounts")
    for part in ("Resources", "Outputs"):
        template[part] = {name: one for name, one in template[part].items() if one.get("Condition") not in left_out}
    for name in ("Dashboard", "StateChangesQueuePolicy", "UndeliveredQueuePolicy"):
        del template["Resources"][name]
    del template["Outputs"]["DashboardUrl"]
    group = json.dumps({"Fn::GetAtt": ["ScheduleGroup", "Arn"]})  # moto skips schedules, alarms and queries
    arn = f'"arn:aws:scheduler:{REGION}:123456789012:schedule-group/reconciler"'
    return json.dumps(template).replace(group, arn).replace("VERSION.zip", f"{version}.zip")


class PlayedSam(Sam):
    """SAM as far as `ops` uses it. `happenings` has every call; `version` is that of the code to package."""

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        super().__init__(Path(scenario["root"]))
        self.happenings: list[str] = []
        self.version = 1
        self._fails = scenario.get("sam_fails", [])

    def build(self) -> None:
        """Build."""
        self._happens("build")

    def package(self, answers: Answers) -> str:
        """Return the template as CloudFormation gets it."""
        self._happens("package")
        del answers
        return for_moto(self.version)

    def deploy(self, answers: Answers, parameters: Mapping[str, str]) -> None:
        """Create or update the stack."""
        self._happens(f"deploy {parameters['ScheduleState']} {parameters.get('Mode', '-')}")
        cloudformation = aws("cloudformation")
        template = for_moto(self.version)
        # moto forgets the values that are defaults.
        defaults = {name: str(one["Default"]) for name, one in json.loads(template)["Parameters"].items()}
        given = {**defaults, **parameters}
        arguments = {
            "StackName": answers.stack,
            "TemplateBody": template,
            "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
            "Capabilities": ["CAPABILITY_IAM"],
        }
        try:
            cloudformation.describe_stacks(StackName=answers.stack)
        except botocore.exceptions.ClientError:
            cloudformation.create_stack(**arguments)
        else:
            cloudformation.update_stack(**arguments)

    def _happens(self, what: str) -> None:
        self.happenings.append(what)
        step = what.partition(" ")[0]
        if step in self._fails:
            self._fails.remove(step)
            raise OpsError(f"`sam {step}` failed; it says why above")


def main(scenario: dict[str, Any], answer: Path) -> None:
    """Play the scenario."""
    sam, root = PlayedSam(scenario), Path(scenario["root"])
    denied = list(scenario.get("denied", []))
    deny(denied)
    fill_in_for_moto(scenario.get("alarms", {}))
    authorities._read_url = functools.partial(published, scenario)  # noqa: SLF001
    let_the_log_know(scenario.get("logged", {}))
    invoked: list[Any] = []
    LambdaSimpleBackend.invoke = function_that(scenario, invoked)  # type: ignore[method-assign]
    with mock_aws(config={"lambda": {"use_docker": False}}):
        prepare(scenario)
        statuses = []
        for command, *arguments in scenario["runs"]:
            if command == "new version":
                sam.version += 1
            elif command == "deny":
                denied += arguments
            elif command == "block":
                (root / arguments[0]).mkdir()
            elif command == "status":
                set_status(*arguments)
            elif command == "fix":
                scenario.pop("installer_fails", None)
                scenario["report"] = {}
                scenario.pop("authorities", None)
            elif command == "break":
                scenario["function_fails"] = arguments[0]
            else:
                try:
                    statuses.append(run_command(command, arguments, root, sam))
                except SystemExit as exit_:  # argparse
                    statuses.append(int(exit_.code or 0))
                print(f"[{command} ended with {statuses[-1]}]", flush=True)
        outcome = {"statuses": statuses, "happened": sam.happenings, "invoked": invoked, "called": sorted(CALLED)}
        outcome["types"] = sorted({resource["Type"] for resource in translated()["Resources"].values()})
        answer.write_text(json.dumps(outcome | account(), default=str))


def run_command(command: str, arguments: list[str], root: Path, sam: PlayedSam) -> int:
    """Run a command as its own `main` would."""
    subnets = [one for one in aws("ec2").describe_subnets()["Subnets"] if one["CidrBlock"].startswith("10.9.")]
    words = {"SECRET_ARN": secret_arn(), "SUBNETS": ",".join(one["SubnetId"] for one in subnets)}
    words["VPC"] = subnets[0]["VpcId"]
    for word, value in words.items():
        arguments = [argument.replace(f"={word}", f"={value}") for argument in arguments]
    match command:
        case "deploy":
            return deploy.main(arguments, root=root, sam=sam)
        case "mode":
            return mode.main(arguments, root=root)
        case "verify":
            return verify.main(arguments, root=root)
        case "undeploy":
            return undeploy.main(arguments, root=root)
        case "ops":
            return orders.main(arguments, root=root)
    raise NotImplementedError(command)


def published(scenario: Mapping[str, Any], url: str) -> bytes:
    """Return what RDS publishes at an address."""
    match scenario.get("authorities"):
        case "refused":
            raise OSError(f"connection refused: {url}")
        case "half":
            return CERTIFICATE.encode() + CERTIFICATE.encode()[:300]
        case "a page":
            return b"<html>sign in</html>"
    return CERTIFICATE.encode()


def set_status(stack: str, status: str) -> None:
    """Bring a stack into a state that moto does not know."""
    for one in cloudformation_backends["123456789012"][REGION].stacks.values():
        if one.name == stack:
            one.status = status


def secret_arn() -> str:
    """Return the ARN of the owner's secret, which is there from the beginning."""
    return str(aws("secretsmanager").describe_secret(SecretId="owner")["ARN"])


def function_that(scenario: dict[str, Any], invoked: list[Any]) -> Any:
    """Return what stands for Lambda: the installer and the reconciler, by the event."""

    def invoke(_: Any, function_name: str, qualifier: Any, body: Any, headers: Any, response_headers: Any) -> bytes:
        del function_name, qualifier, headers
        event = json.loads(body)
        invoked.append(event)
        if "install" in event and scenario.get("installer_fails"):
            response_headers["x-amz-function-error"] = "Unhandled"
            return json.dumps({"errorType": "StoreError", "errorMessage": scenario["installer_fails"]}).encode()
        if "install" in event:
            report = {"role": "reconciler", "login": "created", "created": ["a"], "granted": ["b"], "warnings": []}
            return json.dumps(report).encode()
        if scenario.get("function_fails"):
            response_headers["x-amz-function-error"] = "Unhandled"
            return json.dumps({"errorType": "StoreError", "errorMessage": scenario["function_fails"]}).encode()
        for field in ("workspace_id", "hold", "release"):
            if field in event:
                return json.dumps(scenario["function_answers"][field]).encode()
        mode = scenario.get("mode") or event["mode"]
        return json.dumps(scenario["dry_run"] | {"mode": mode} | scenario.get("report", {})).encode()

    return invoke


def prepare(scenario: Mapping[str, Any]) -> None:
    """Make what is in the account already: a VPC, a database, the owner's secret, SAM's bucket."""
    ec2, rds = aws("ec2"), aws("rds")
    aws("secretsmanager").create_secret(Name="owner", SecretString='{"username": "platform", "password": "x"}')
    package_bucket()
    for name in scenario.get("log_groups", []):
        aws("logs").create_log_group(logGroupName=name)
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{number}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"]
        for number, zone in enumerate("ab")
    ]
    if scenario.get("endpoints", True):
        for service in ("ec2", "secretsmanager"):
            ec2.create_vpc_endpoint(
                VpcId=vpc,
                ServiceName=f"com.amazonaws.{REGION}.{service}",
                VpcEndpointType="Interface",
                PrivateDnsEnabled=True,
            )
    group = ec2.create_security_group(GroupName="database", Description="of the database", VpcId=vpc)["GroupId"]
    rds.create_db_subnet_group(
        DBSubnetGroupName="here", DBSubnetGroupDescription="here", SubnetIds=[one["SubnetId"] for one in subnets]
    )
    key = aws("kms").create_key()["KeyMetadata"]["KeyId"] if scenario.get("own_key") else None
    for name in scenario.get("clusters", []):
        rds.create_db_cluster(
            DBClusterIdentifier=name,
            DatabaseName="molecule",
            Engine="aurora-postgresql",
            MasterUsername="master",
            ManageMasterUserPassword=True,
            EnableIAMDatabaseAuthentication=True,
            VpcSecurityGroupIds=[group],
            DBSubnetGroupName="here",
        )
        rds.create_db_instance(
            DBInstanceIdentifier=f"{name}-1",
            DBClusterIdentifier=name,
            Engine="aurora-postgresql",
            DBInstanceClass="db.r6g",
        )
    for name in scenario.get("databases", ["platform"]):
        rds.create_db_instance(
            DBInstanceIdentifier=name,
            DBName="molecule",
            Engine="postgres",
            DBInstanceClass="db.t4g.micro",
            AllocatedStorage=20,
            MasterUsername="master",
            ManageMasterUserPassword=scenario.get("managed", True),
            **({} if scenario.get("managed", True) else {"MasterUserPassword": "hunter22hunter22"}),
            **({"MasterUserSecretKmsKeyId": key} if key else {}),
            EnableIAMDatabaseAuthentication=scenario.get("iam", True),
            VpcSecurityGroupIds=[group],
            DBSubnetGroupName="here",
        )


def package_bucket() -> None:
    """Make SAM's bucket, with artifacts in it."""
    s3 = aws("s3")
    s3.create_bucket(Bucket="artifacts", CreateBucketConfiguration={"LocationConstraint": REGION})
    empty = b"PK\x05\x06" + bytes(18)
    for version in (1, 2):
        s3.put_object(Bucket="artifacts", Key=f"{version}.zip", Body=empty)


def deny(operations: list[str]) -> None:
    """Let IAM deny these operations, once each; or let them fail with an error: Operation=Code:message."""
    original = Account.client

    def client(self: Account, service: str) -> Any:
        made = original(self, service)
        if not getattr(made, "_denying", False):
            made._denying = True  # noqa: SLF001
            made.meta.events.register("before-call", denied)
        return made

    def denied(model: Any, **context: Any) -> None:
        del context
        for one in operations:
            name, _, failure = one.partition("=")
            if name == model.name:
                operations.remove(one)
                code, _, message = (failure or f"AccessDenied:{NOT_YOU}{name}").partition(":")
                raise botocore.exceptions.ClientError({"Error": {"Code": code, "Message": message}}, name)

    Account.client = client  # type: ignore[method-assign]


def fill_in_for_moto(alarms: Mapping[str, str]) -> None:
    """Add what moto's CloudFormation does not create: saved queries, and alarms in these states."""
    original_client, original_resources = Account.client, Stack.resources

    def record(model: Any, **_: Any) -> None:
        CALLED.add(f"{model.service_model.service_name}:{model.name}")

    def queries(params: Any, **_: Any) -> tuple[Any, Any]:
        stack = json.loads(params["body"])["queryDefinitionNamePrefix"]
        group = aws("logs").describe_log_groups()["logGroups"][0]["logGroupName"]
        query = {"name": f"{stack}What went wrong", "logGroupNames": [group], "queryString": "fields @message"}
        return SimpleNamespace(status_code=200), {"queryDefinitions": [query]}

    def client(self: Account, service: str) -> Any:
        made = original_client(self, service)
        made.meta.events.register("before-call", record)
        made.meta.events.register("before-call.cloudwatch-logs.DescribeQueryDefinitions", queries)
        return made

    def resources(self: Stack, kind: str) -> dict[str, str]:
        if kind != "AWS::CloudWatch::Alarm" or not alarms:
            return original_resources(self, kind)
        cloudwatch = aws("cloudwatch")
        for name, state in alarms.items():
            dimensions = [{"Name": "service", "Value": self.name}]
            cloudwatch.put_metric_alarm(
                AlarmName=name,
                Namespace="InstanceStateReconciler",
                MetricName=name,
                Dimensions=dimensions,
                Statistic="Sum",
                Period=60,
                EvaluationPeriods=1,
                ComparisonOperator="GreaterThanThreshold",
                Threshold=0,
            )
            cloudwatch.set_alarm_state(AlarmName=name, StateValue=state, StateReason="the test says so")
            if name != "NeverSeen":
                metric = {"MetricName": name, "Dimensions": dimensions, "Value": 0}
                cloudwatch.put_metric_data(Namespace="InstanceStateReconciler", MetricData=[metric])
        return {name: name for name in alarms}

    Account.client, Stack.resources = client, resources  # type: ignore[method-assign]


def let_the_log_know(logged: Mapping[str, list[str]]) -> None:
    """Let queries find by which workspaces instances were recorded, as far as it was `logged`."""
    original = Account.client

    def ask(params: Any, **_: Any) -> tuple[Any, Any] | None:
        query = json.loads(params["body"])["queryString"]
        asked = [instance for instance in logged if f'instance_id = "{instance}"' in query]
        return (SimpleNamespace(status_code=200), {"queryId": f"about {asked[0]}"}) if asked else None

    def found(params: Any, **_: Any) -> tuple[Any, Any] | None:
        query_id = json.loads(params["body"])["queryId"]
        if not query_id.startswith("about "):
            return None
        rows = [[{"field": "workspace_id", "value": one}] for one in logged[query_id.removeprefix("about ")]]
        return SimpleNamespace(status_code=200), {"status": "Complete", "results": rows}

    def client(self: Account, service: str) -> Any:
        made = original(self, service)
        made.meta.events.register("before-call.cloudwatch-logs.StartQuery", ask)
        made.meta.events.register("before-call.cloudwatch-logs.GetQueryResults", found)
        return made

    Account.client = client  # type: ignore[method-assign]


def account() -> dict[str, Any]:
    """Return what is in the account."""
    cloudformation = aws("cloudformation")
    vault, ec2 = aws("secretsmanager"), aws("ec2")
    stacks = {
        stack["StackName"]: {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
        for stack in cloudformation.describe_stacks()["Stacks"]
        if stack["StackStatus"] != "DELETE_COMPLETE"
    }
    secrets = {
        one["Name"]: vault.get_secret_value(SecretId=one["Name"])["SecretString"]
        for one in vault.list_secrets()["SecretList"]
    }
    rules = [
        [group["GroupId"], rule["UserIdGroupPairs"][0]["GroupId"], rule["FromPort"]]
        for group in ec2.describe_security_groups()["SecurityGroups"]
        for rule in group["IpPermissions"]
        if rule["UserIdGroupPairs"]
    ]
    return {"stacks": stacks, "secrets": secrets, "rules": rules}


def serve(line: socket.socket) -> None:
    """Play one scenario after another, until the test process hangs up."""
    rehearse()
    requests = line.makefile()
    for request in requests:
        child = os.fork()
        if child == 0:
            os._exit(play(line, **json.loads(request)))
        tell(line, process=child)
        os.waitpid(child, 0)
        tell(line, ended=True)


def rehearse() -> None:
    """Import, read and translate what every scenario needs."""
    # moto reads JSON by its reader of YAML, which takes a second. And every session of botocore's reads the services'
    # descriptions anew, unless all share a loader.
    setattr(cloudformation_models.Stack, "parse_template", staticmethod(json.loads))  # noqa: B010 - for mypy
    botocore.loaders.create_loader = functools.cache(botocore.loaders.create_loader)
    scenario = {"root": "/nowhere"}
    with mock_aws(config={"lambda": {"use_docker": False}}):
        prepare(scenario)
        answers = Answers(parameters={"DatabaseHost": "a", "DatabaseName": "b", "InstallerSecretArn": secret_arn()})
        PlayedSam(scenario).deploy(answers, {**answers.parameters, "ScheduleState": "DISABLED"})
        account()
    gc.freeze()  # the forked processes share what is here


def play(line: socket.socket, *, scenario: str, outcome: str, output: str, environment: dict[str, str]) -> int:
    """Play a scenario on its terminal. This is the forked process."""
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()  # then the first terminal that is opened is this session's own, and its Ctrl-C comes here
    is_terminal = output.startswith("/dev/")
    opened = os.open(output, os.O_RDWR | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((opened if is_terminal else nothing, opened, opened)):
        os.dup2(source, target)
    announce_questions(line)
    try:
        main(json.loads(Path(scenario).read_text()), Path(outcome))
    except BaseException:  # noqa: BLE001 - the test shows the screen
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


def announce_questions(line: socket.socket) -> None:
    """Tell the test what is asked, before it is on the screen."""
    original = Console._input  # noqa: SLF001

    def asking(self: Console, prompt: str, *, hidden: bool) -> str:
        if self.interactive:
            tell(line, asks=prompt)
        return original(self, prompt, hidden=hidden)

    Console._input = asking  # type: ignore[method-assign]  # noqa: SLF001


def tell(line: socket.socket, **message: Any) -> None:
    """Tell the test something."""
    line.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(socket.socket(fileno=int(sys.argv[1])))
