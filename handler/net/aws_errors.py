"""What an error from AWS, or from what answers in its place, means."""

import re
from http import HTTPStatus

from botocore.exceptions import ClientError

# Every word for throttling that botocore knows, whichever service says it. A test compares them with botocore's own.
THROTTLED_CODES = frozenset(
    {
        *("BandwidthLimitExceeded", "EC2ThrottledException", "LimitExceededException", "PriorRequestNotComplete"),
        *("ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled"),
        *("RequestThrottledException", "SlowDown", "ThrottledException", "Throttling", "ThrottlingException"),
        *("TooManyRequestsException", "TransactionInProgressException"),
    }
)
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
_EXPIRED_CODES = ("RequestExpired", "ExpiredToken", "ExpiredTokenException", "AuthFailure")
_SERVER_ERROR = 500
# Only such error codes are shown: whoever answers may not be AWS.
_CODE = re.compile(r"[A-Za-z.]{1,60}")


def is_throttling(error: ClientError) -> bool:
    """Tell whether AWS turned the call away because there are too many."""
    return _code(error) in THROTTLED_CODES or _status(error) == HTTPStatus.TOO_MANY_REQUESTS


def is_server_error(error: ClientError) -> bool:
    """Tell whether the answer is a 5xx."""
    return _status(error) >= _SERVER_ERROR


def is_expired(error: ClientError) -> bool:
    """Tell whether AWS may have refused the credentials because they have expired."""
    return _code(error) in _EXPIRED_CODES


def code_of(error: ClientError) -> str:
    """Return the error's code, or nothing if it has no proper one."""
    code = _code(error)
    return code if _CODE.fullmatch(code) else ""


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code") or "")


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
