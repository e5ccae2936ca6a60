"""EC2's answers in XML. They are as long as the real ones, because length determines a client's costs."""

from collections.abc import Iterable
from dataclasses import dataclass

# EC2's own codes, without the high byte, which EC2 reserves.
STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}

_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"


@dataclass(slots=True)
class Instance:
    """One instance. `position` is its place in the account's listings."""

    id: str
    state: str
    zone: str
    position: int
    forgotten: bool = False
    impaired: bool = False


def instances(page: Iterable[Instance], next_token: str | None, *, request_id: str) -> bytes:
    """Return a `DescribeInstancesResponse`."""
    rows = b"".join(_INSTANCE % _fields(instance) for instance in page)
    return _response("DescribeInstances", request_id, b"<reservationSet>%b</reservationSet>" % rows, next_token)


def statuses(page: Iterable[Instance], next_token: str | None, *, request_id: str) -> bytes:
    """Return a `DescribeInstanceStatusResponse`."""
    rows = b"".join(_STATUS % _fields(instance) for instance in page)
    return _response(
        "DescribeInstanceStatus", request_id, b"<instanceStatusSet>%b</instanceStatusSet>" % rows, next_token
    )


def zones(names: Iterable[str], *, request_id: str) -> bytes:
    """Return a `DescribeAvailabilityZonesResponse` in which every zone is available."""
    rows = "".join(f"<item><zoneName>{name}</zoneName><zoneState>available</zoneState></item>" for name in names)
    content = f"<availabilityZoneInfo>{rows}</availabilityZoneInfo>".encode()
    return _response("DescribeAvailabilityZones", request_id, content, None)


def error(code: str, message: str, *, request_id: str) -> bytes:
    """Return an error document. Code and message must already be escaped."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        f"<RequestID>{request_id}</RequestID></Response>"
    ).encode()


def _response(action: str, request_id: str, content: bytes, next_token: str | None) -> bytes:
    token = f"<nextToken>{next_token}</nextToken>" if next_token else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{action}Response xmlns="{_NAMESPACE}">'
        f"<requestId>{request_id}</requestId>"
    ).encode() + b"%b%b</%bResponse>" % (content, token.encode(), action.encode())


def _fields(instance: Instance) -> dict[bytes, bytes]:
    number = instance.position
    return {
        b"id": instance.id.encode(),
        b"suffix": b"%017x" % number,
        b"state": instance.state.encode(),
        b"code": b"%d" % STATE_CODES[instance.state],
        b"zone": instance.zone.encode(),
        b"system": b"impaired" if instance.impaired else b"ok",
        b"reachability": b"failed" if instance.impaired else b"passed",
        b"address": b"%d.%d.%d" % (number >> 16 & 255, number >> 8 & 255, number & 255),
        b"dashed": b"%d-%d-%d" % (number >> 16 & 255, number >> 8 & 255, number & 255),
    }


def _squeezed(document: str) -> bytes:
    """Return a document without its indentation, which only helps the reader of this module."""
    return "".join(line.strip() for line in document.splitlines()).encode()


_STATUS = _squeezed("""
    <item>
      <instanceId>%(id)b</instanceId>
      <availabilityZone>%(zone)b</availabilityZone>
      <instanceState><code>%(code)b</code><name>%(state)b</name></instanceState>
      <systemStatus>
        <status>%(system)b</status>
        <details><item><name>reachability</name><status>%(reachability)b</status></item></details>
      </systemStatus>
      <instanceStatus>
        <status>ok</status>
        <details><item><name>reachability</name><status>passed</status></item></details>
      </instanceStatus>
    </item>
""")

_INSTANCE = _squeezed("""
    <item>
      <reservationId>r-%(suffix)b</reservationId>
      <ownerId>123456789012</ownerId>
      <groupSet/>
      <instancesSet>
        <item>
          <instanceId>%(id)b</instanceId>
          <imageId>ami-0a1b2c3d4e5f60718</imageId>
          <instanceState><code>%(code)b</code><name>%(state)b</name></instanceState>
          <privateDnsName>ip-10-%(dashed)b.eu-central-1.compute.internal</privateDnsName>
          <dnsName/>
          <reason/>
          <keyName>workspaces</keyName>
          <amiLaunchIndex>0</amiLaunchIndex>
          <productCodes/>
          <instanceType>t4g.medium</instanceType>
          <launchTime>2026-01-15T10:30:00.000Z</launchTime>
          <placement>
            <availabilityZone>%(zone)b</availabilityZone>
            <groupName/>
            <tenancy>default</tenancy>
          </placement>
          <monitoring><state>disabled</state></monitoring>
          <subnetId>subnet-0a1b2c3d4e5f60718</subnetId>
          <vpcId>vpc-0a1b2c3d4e5f60718</vpcId>
          <privateIpAddress>10.%(address)b</privateIpAddress>
          <sourceDestCheck>true</sourceDestCheck>
          <groupSet>
            <item><groupId>sg-0a1b2c3d4e5f60718</groupId><groupName>workspaces</groupName></item>
          </groupSet>
          <architecture>arm64</architecture>
          <rootDeviceType>ebs</rootDeviceType>
          <rootDeviceName>/dev/xvda</rootDeviceName>
          <blockDeviceMapping>
            <item>
              <deviceName>/dev/xvda</deviceName>
              <ebs>
                <volumeId>vol-%(suffix)b</volumeId>
                <status>attached</status>
                <attachTime>2026-01-15T10:30:01.000Z</attachTime>
                <deleteOnTermination>true</deleteOnTermination>
              </ebs>
            </item>
          </blockDeviceMapping>
          <virtualizationType>hvm</virtualizationType>
          <tagSet>
            <item><key>Name</key><value>workspace-%(suffix)b</value></item>
            <item><key>managed-by</key><value>platform</value></item>
            <item><key>environment</key><value>production</value></item>
          </tagSet>
          <hypervisor>xen</hypervisor>
          <networkInterfaceSet>
            <item>
              <networkInterfaceId>eni-%(suffix)b</networkInterfaceId>
              <subnetId>subnet-0a1b2c3d4e5f60718</subnetId>
              <vpcId>vpc-0a1b2c3d4e5f60718</vpcId>
              <description/>
              <ownerId>123456789012</ownerId>
              <status>in-use</status>
              <macAddress>06:1a:2b:3c:4d:5e</macAddress>
              <privateIpAddress>10.%(address)b</privateIpAddress>
              <privateDnsName>ip-10-%(dashed)b.eu-central-1.compute.internal</privateDnsName>
              <sourceDestCheck>true</sourceDestCheck>
              <groupSet>
                <item><groupId>sg-0a1b2c3d4e5f60718</groupId><groupName>workspaces</groupName></item>
              </groupSet>
              <attachment>
                <attachmentId>eni-attach-%(suffix)b</attachmentId>
                <deviceIndex>0</deviceIndex>
                <status>attached</status>
                <attachTime>2026-01-15T10:30:00.000Z</attachTime>
                <deleteOnTermination>true</deleteOnTermination>
                <networkCardIndex>0</networkCardIndex>
              </attachment>
              <privateIpAddressesSet>
                <item>
                  <privateIpAddress>10.%(address)b</privateIpAddress>
                  <privateDnsName>ip-10-%(dashed)b.eu-central-1.compute.internal</privateDnsName>
                  <primary>true</primary>
                </item>
              </privateIpAddressesSet>
              <ipv6AddressesSet/>
              <interfaceType>interface</interfaceType>
            </item>
          </networkInterfaceSet>
          <iamInstanceProfile>
            <arn>arn:aws:iam::123456789012:instance-profile/workspaces</arn>
            <id>AIPAEXAMPLEEXAMPLE000</id>
          </iamInstanceProfile>
          <ebsOptimized>false</ebsOptimized>
          <cpuOptions><coreCount>2</coreCount><threadsPerCore>1</threadsPerCore></cpuOptions>
          <metadataOptions>
            <state>applied</state>
            <httpTokens>required</httpTokens>
            <httpPutResponseHopLimit>2</httpPutResponseHopLimit>
            <httpEndpoint>enabled</httpEndpoint>
            <httpProtocolIpv6>disabled</httpProtocolIpv6>
            <instanceMetadataTags>disabled</instanceMetadataTags>
          </metadataOptions>
          <currentInstanceBootMode>uefi</currentInstanceBootMode>
        </item>
      </instancesSet>
    </item>
""")
