"""AWS's errors: throttling in every word, and what may be shown."""

import pytest
from botocore.exceptions import ClientError
from botocore.retries.standard import ThrottledRetryableChecker

from handler.net.aws_errors import THROTTLED_CODES, code_of, is_server_error, is_throttling


def error(code: object = "AuthFailure", status: int = 400) -> ClientError:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "DescribeInstances")  # type: ignore[arg-type]  # botocore's types want more


def test_every_word_of_botocores_for_throttling_is_known() -> None:
    """Botocore is pinned; with a newer one there may be more."""
    assert set(vars(ThrottledRetryableChecker)["_THROTTLED_ERROR_CODES"]) <= THROTTLED_CODES


@pytest.mark.parametrize("code", sorted(THROTTLED_CODES))
@pytest.mark.parametrize("status", [400, 403, 503, 509])
def test_a_word_for_throttling_counts_with_any_status(code: str, status: int) -> None:
    assert is_throttling(error(code, status))


@pytest.mark.parametrize("code", ["429", "x", "", None])
def test_too_many_requests_counts_with_any_word(code: object) -> None:
    assert is_throttling(error(code, 429))


@pytest.mark.parametrize(
    ("code", "status"), [("AuthFailure", 400), ("InternalError", 500), ("Unavailable", 503), ("", 0)]
)
def test_other_errors_are_no_throttling(code: str, status: int) -> None:
    assert not is_throttling(error(code, status))
    assert is_server_error(error(code, status)) == (status >= 500)


def test_an_error_without_anything_is_neither() -> None:
    bare = ClientError({}, "DescribeInstances")
    assert (is_throttling(bare), is_server_error(bare), code_of(bare)) == (False, False, "")


@pytest.mark.parametrize(
    ("code", "shown"),
    [("InvalidParameter.Value", "InvalidParameter.Value"), ("x" * 61, ""), ("a b", ""), (5, "")],
)
def test_only_a_proper_code_is_shown(code: object, shown: str) -> None:
    assert code_of(error(code)) == shown
