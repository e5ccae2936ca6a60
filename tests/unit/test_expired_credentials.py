"""Credentials of an assumed role that expire, or cannot be had, while EC2 is asked."""

from typing import TYPE_CHECKING, cast

import pytest

from handler.deadline import Deadline
from handler.domain.model import Cause, Failure
from handler.net.roles import Assumed, RoleClient
from handler.probes.ec2.api import Ec2Api, Ec2Error
from tests.unit.builders import Clock, instance
from tests.unit.test_ec2_probe import DENIED, THROTTLED, Account, Failing, broken, refusal

if TYPE_CHECKING:
    from types_boto3_ec2 import EC2Client


class Role:
    """A role, whose credentials are accepted or refused by one account."""

    def __init__(self, clock: Clock) -> None:
        self.account = Account({instance(1): "running"}, clock=clock)
        self.failure: Failing | None = None
        self.assumed = 0
        self.clock = clock
        self._client = RoleClient(self._assume, clock=clock)

    def _assume(self) -> Assumed:
        self.assumed += 1
        if self.failure is not None:
            raise self.failure()
        client = _Client(self.account)  # each time another one
        return Assumed(cast("EC2Client", client), self.clock() + 3600)

    def states(self) -> dict[str, str]:
        """Ask in a new cycle. Raises Ec2Error."""
        client = self._client.for_cycle(45)
        api = Ec2Api(
            client, self.account.within, timeout_s=10, renew=client.renew, clock=self.clock, sleep=self.clock.sleep
        )
        pages = api.states([instance(1)], Deadline(30, clock=self.clock))
        return {one: state for page in pages for one, state in page.named}


class _Client:
    def __init__(self, account: Account) -> None:
        self.describe_instances = account.describe_instances


@pytest.fixture
def role() -> Role:
    return Role(Clock())


@pytest.mark.parametrize("code", ["RequestExpired", "ExpiredToken", "ExpiredTokenException", "AuthFailure"])
def test_a_call_with_expired_credentials_is_made_again_with_new_ones(role: Role, code: str) -> None:
    role.account.failures = [refusal(code)]
    assert role.states() == {instance(1): "running"}
    assert role.assumed == 2
    assert role.states() == {instance(1): "running"}
    assert role.assumed == 2


def test_credentials_that_are_refused_again_are_refused(role: Role) -> None:
    role.account.failure = lambda *_: refusal("AuthFailure")
    with pytest.raises(Ec2Error) as error:
        role.states()
    assert error.value.failure == Failure(Cause.REFUSED, "AuthFailure")
    assert (role.assumed, len(role.account.calls)) == (2, 2)


def test_a_right_that_is_missing_is_not_looked_for_in_new_credentials(role: Role) -> None:
    role.account.failure = lambda *_: DENIED
    with pytest.raises(Ec2Error):
        role.states()
    assert role.assumed == 1


@pytest.mark.parametrize(
    ("failure", "detail"),
    [
        (refusal("AccessDenied", 403), "refused_AccessDenied"),
        (THROTTLED, "throttled"),
        (broken(Cause.TIMEOUT), "timeout"),
        (lambda: KeyError("Credentials"), "garbled_answer"),
    ],
)
def test_a_role_that_cannot_be_assumed_fails_the_call_and_says_why(role: Role, failure: Failing, detail: str) -> None:
    role.failure = failure
    with pytest.raises(Ec2Error) as error:
        role.states()
    assert error.value.failure == Failure(Cause.ROLE_NOT_ASSUMED, detail)
    assert (role.assumed, role.account.calls) == (1, [])
    role.failure = None
    assert role.states() == {instance(1): "running"}
