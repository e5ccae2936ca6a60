"""RDS's certificate authorities, which sign the certificates of its databases. The build packs infra/ca/*.pem."""

import hashlib
import http.client
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ops.console import OpsError

BUNDLE = "infra/ca/global-bundle.pem"
# https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.SSL.html
_ADDRESSES = {
    "aws": "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
    "aws-us-gov": "https://truststore.pki.us-gov-west-1.rds.amazonaws.com/global/global-bundle.pem",
    "aws-cn": "https://rds-truststore.s3.cn-north-1.amazonaws.com.cn/global/global-bundle.pem",
}
_TIMEOUT_S = 30.0
_MOST_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Authorities:
    """A file of authorities: how many, and the SHA-256 of the file."""

    count: int
    sha256: str


def address(partition: str) -> str:
    """Return where RDS publishes its authorities."""
    return _ADDRESSES.get(partition, _ADDRESSES["aws"])


def described(path: Path) -> Authorities:
    """Describe a file of authorities. Raises OpsError."""
    return _read(path.read_bytes(), str(path))


def fetch(path: Path, partition: str) -> Authorities:
    """Fetch the authorities into a file. Raises OpsError, and leaves no half of a file."""
    url = address(partition)
    try:
        content = _read_url(url)
    except (OSError, http.client.HTTPException) as error:
        raise OpsError(
            f"RDS's authorities cannot be fetched from {url} ({error}): put that file into {BUNDLE} by other means"
        ) from error
    found = _read(content, url)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)
    return found


def _read_url(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - an https constant
        content: bytes = answer.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(f"more than {_MOST_BYTES} bytes")
    return content


def _read(content: bytes, where: str) -> Authorities:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=content.decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        raise OpsError(
            f"{where} is not a whole file of certificates (PEM): delete it, or put the right one into {BUNDLE}"
        ) from error
    return Authorities(context.cert_store_stats()["x509"], hashlib.sha256(content).hexdigest())
